"""Check what stands in front of names: prefixes of trainers go, the names of formats stay."""

import pytest
import timm
import torch
from torch import nn

from tests.support.parity import FP32, images
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign.load import from_timm, weights_for
from wordsworth.vit_model.foreign.translate import translate
from wordsworth.vit_model.weights import Weights

SMALL = ViTConfig(image_size=(16, 16), patch_size=8, width=16, depth=2, heads=2, mlp_dim=32, num_classes=3)


@pytest.fixture(scope="module")
def state():
    made = random_checkpoint(SMALL, Preprocessing(), 0).state
    return {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in made.items()}


def behind(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def without_head(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def same(found, state) -> bool:
    return found.state.keys() == state.keys() and all(
        torch.equal(found.state[name], state[name]) for name in state
    )


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model.",
        "net.",
        "backbone.",
        "encoder.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.backbone.",
        "_forward_module.model.",
        "model.vit.",
        "student.module.backbone.",
        "anything.at.all.",
    ],
)
def test_a_prefix_of_all_names_is_taken_off(state, prefix):
    found = translate(behind(prefix, state), "w.ckpt")
    assert same(found, state) and found.left_out == 0
    assert found.provenance("w.ckpt") == {"format": "timm", "weights": "w.ckpt"}


def test_compiled_blocks_inside_a_model_lose_their_wrapper(state):
    compiled = {name.replace("blocks.1.", "blocks.1._orig_mod."): tensor for name, tensor in state.items()}
    assert same(translate(behind("model.", compiled), "w"), state)
    sharded = {
        name.replace(".attn.", "._fsdp_wrapped_module.attn."): tensor for name, tensor in state.items()
    }
    assert same(translate(sharded, "w"), state)


def test_what_lies_beside_the_model_is_left_out_and_counted(state):
    beside = {
        "criterion.weight": torch.ones(3),
        "train_acc.tp": torch.ones(3, dtype=torch.int64),
        "val_loss.value": torch.tensor(1.0),
        "n_averaged": torch.tensor(5),
    }
    found = translate(behind("net.", state) | beside, "w")
    assert same(found, state) and found.left_out == 4
    found = translate(state | {"n_averaged": torch.tensor(5), "step": torch.ones(1, dtype=torch.int32)}, "w")
    assert same(found, state) and found.left_out == 2


def test_a_fraction_that_the_model_does_not_know_is_still_refused(state, tmp_path):
    torch.save(state | {"scale": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"1 unexpected \(scale\)"):
        weights_for(SMALL, tmp_path / "w.pth")


# ---- several models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("averaged", "other"),
    [
        ("teacher.", "student."),
        ("teacher.backbone.", "student.backbone."),
        ("ema_model.module.", "model."),
        ("model_ema.", "model."),
        ("target_encoder.", "encoder."),
        ("net_ema.", "net."),
        ("teacher_embedding_model.wrapped.", "student_embedding_model.wrapped."),
    ],
)
def test_the_average_of_a_model_is_taken_before_the_model(state, averaged, other):
    worse = {name: tensor + 1 for name, tensor in state.items()}
    found = translate(behind(other, worse) | behind(averaged, state), "w")
    assert same(found, state) and found.left_out == len(state)
    origin = found.provenance("w")
    assert origin["weights_key"] == averaged.rstrip(".") and origin["other_weights"] == [other.rstrip(".")]


def test_the_teacher_of_a_distillation_is_no_average_of_its_student(state):
    larger = {name: torch.cat([tensor, tensor], -1) for name, tensor in state.items()}
    with pytest.raises(
        ModelError, match="several models: teacher, student; --weights-key KEY takes one of them"
    ):
        translate(behind("teacher.", larger) | behind("student.", state), "w")


def test_two_models_of_which_none_is_an_average_ask_for_a_key(state, tmp_path):
    both = behind("base_encoder.", state) | behind("momentum_encoder.", {k: t + 1 for k, t in state.items()})
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="several models: base_encoder, momentum_encoder; --weights-key"):
        weights_for(SMALL, tmp_path / "w.pth")
    found, tensors, origin = weights_for(SMALL, tmp_path / "w.pth", "base_encoder")
    assert found == SMALL and torch.equal(tensors["norm.weight"], state["norm.weight"])
    assert origin["weights_key"] == "base_encoder"


def test_one_module_under_two_names_is_one_model(state):
    assert same(translate(behind("backbone.", state) | behind("model.0.", state), "w"), state)


def test_the_key_of_a_set_and_of_a_prefix_are_one(state):
    weights = Weights(
        behind("teacher.", state) | behind("student.", state | {"norm.bias": state["norm.bias"] + 1})
    )
    weights.key, weights.others = "state_dict", ("other",)
    origin = translate(weights, "w").provenance("w")
    assert origin["weights_key"] == "state_dict.teacher" and origin["other_weights"] == ["other", "student"]


# ---- a head beside the model -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head", "classifier", "fc"])
def test_a_linear_layer_beside_a_backbone_is_its_head(state, name):
    beside = {f"{name}.weight": state["head.weight"], f"{name}.bias": state["head.bias"]}
    found = translate(behind("backbone.", without_head(state)) | beside, "w")
    assert same(found, state) and found.left_out == 0
    assert found.provenance("w")["head"] == name


@pytest.mark.parametrize(
    "beside",
    [
        {"head.weight": torch.ones(3, 32)},
        {"head.weight": torch.ones(3, 16), "fc.weight": torch.ones(3, 16)},
        {"head.mlp.0.weight": torch.ones(3, 16)},
        {"head.weight": torch.ones(16)},
    ],
)
def test_a_layer_that_does_not_fit_or_is_not_alone_is_no_head(state, beside):
    found = translate(behind("backbone.", without_head(state)) | beside, "w")
    assert same(found, without_head(state)) and found.left_out == len(beside)
    assert "head" not in found.provenance("w")


# ---- formats whose own names begin like a wrapper's --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "model.", "net._orig_mod."])
def test_the_names_of_other_formats_stay_whole_behind_a_prefix(prefix):
    import torchvision
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    theirs = {
        "torchvision": torchvision.models.VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=5),
        "Hugging Face ViT": ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8)),
        "Hugging Face CLIP": CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8)),
    }
    for name, model in theirs.items():
        plain = translate(model.state_dict(), "w")
        assert plain.format.name == name
        assert same(translate(behind(prefix, model.state_dict()), "w"), plain.state)


# ---- modules of other libraries ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_timm_module_in_a_lightning_checkpoint_keeps_its_counters_and_takes_its_classes(
    randomised, tmp_path
):
    theirs = randomised(timm.create_model("resnet10t", num_classes=7)).eval()
    assert isinstance(theirs.bn1, nn.BatchNorm2d)
    worse = {name: torch.zeros_like(tensor) for name, tensor in theirs.state_dict().items()}
    content = {
        "state_dict": behind("model.", worse) | behind("ema_model.module.", theirs.state_dict()),
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [],
    }
    torch.save(content, tmp_path / "last.ckpt")
    notes = []
    found = from_timm("resnet10t", tmp_path / "last.ckpt", notes.append)
    assert found.config.num_classes == 7 and found.labels is None
    assert found.extra["weights_key"] == "ema_model.module" and found.extra["other_weights"] == ["model"]
    x = images((224, 224), 2)
    logits, _ = found.model()(x)
    torch.testing.assert_close(logits, theirs(x), **FP32)
