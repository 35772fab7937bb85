"""Check files of weights alone, torchvision's and those with nearly timm's names, against the library."""

import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import checkpoint_filter_fn

from tests.support.parity import FP32, assert_outputs, assert_training, coarse, images
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.load import from_file
from wordsworth.vit_model.weights import load_weights

TIMM_SIZE = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 192,
    "depth": 12,
    "num_heads": 3,
    "num_classes": 5,
}  # Ti's: a known size


@pytest.mark.slow
def test_a_torchvision_file_is_their_model(randomised, tmp_path):
    theirs = randomised(torchvision.models.VisionTransformer(32, 8, 12, 3, 192, 768, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    checkpoint = from_file(tmp_path / "vit.pth")
    assert checkpoint.config.pos_interp == "torchvision"
    assert (checkpoint.preprocessing.interpolation, checkpoint.preprocessing.crop_pct) == (
        "bicubic",
        1.0,
    )  # not 224: one of SWAG
    ours = checkpoint.model()
    assert_outputs(ours, theirs, lambda m, x: m(x), lambda m: m.encoder.layers)
    hub = {
        key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): t
        for key, t in theirs.state_dict().items()
    }
    torch.save(hub, tmp_path / "hub.pth")  # as the files that it downloads are named
    assert from_file(tmp_path / "hub.pth").fingerprint() == checkpoint.fingerprint()
    assert_training(ours, theirs, lambda m, x: m(x))


# ---- formats with timm's names, or nearly ----------------------------------------------------------------


def deit_iii(theirs):
    return {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t
        for key, t in theirs.state_dict().items()
    }


def mae(theirs):
    decoder = {
        "mask_token": torch.ones(1, 1, 16),
        "decoder_pos_embed": torch.ones(1, 17, 16),
        "decoder_embed.weight": torch.ones(16, 64),
    }
    return {"model": {**theirs.state_dict(), **decoder, "decoder_blocks.0.norm1.weight": torch.ones(16)}}


def dinov2(theirs):
    return {**theirs.state_dict(), "mask_token": torch.ones(1, 192)}


def distilled_deit(theirs):
    return {"model": theirs.state_dict()}


NEARLY_TIMM = {
    "DeiT III": ("vit_base_patch16_224", {"init_values": 0.1, "no_embed_class": True}, deit_iii),
    "MAE": ("vit_base_patch16_224", {"num_classes": 0}, mae),
    "DINOv2": ("vit_base_patch16_224", {"init_values": 0.1, "num_classes": 0}, dinov2),
    "distilled DeiT": ("deit_base_distilled_patch16_224", {}, distilled_deit),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEARLY_TIMM)
def test_a_file_of_the_authors_is_timms_model(name, randomised, tmp_path):
    architecture, parts, saved = NEARLY_TIMM[name]
    theirs = coarse(randomised(timm.create_model(architecture, **TIMM_SIZE | parts)))
    torch.save(saved(theirs), tmp_path / "authors.pth")
    checkpoint = from_file(tmp_path / "authors.pth")
    assert checkpoint.extra["format"] == name
    assert checkpoint.config.norm_eps == 1e-6 and checkpoint.preprocessing.mean == (0.485, 0.456, 0.406)
    assert_outputs(checkpoint.model(), theirs, lambda m, x: m(x), lambda m: m.blocks)
    if name != "distilled DeiT":  # whose two heads are one of ours
        assert_training(checkpoint.model(), theirs, lambda m, x: m(x))


@pytest.mark.slow
def test_dinov2_with_registers_is_what_timm_makes_of_the_same_file(randomised, tmp_path):
    parts = {"init_values": 0.1, "num_classes": 0, "reg_tokens": 4, "no_embed_class": True}
    theirs = coarse(randomised(timm.create_model("vit_base_patch16_224", **TIMM_SIZE | parts)))
    state = dict(theirs.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat(
        [torch.full((1, 1, 192), 0.375), state["pos_embed"]], dim=1
    )  # in the file [class] has a position
    torch.save(state | {"mask_token": torch.ones(1, 192)}, tmp_path / "dinov2.pth")
    theirs.load_state_dict(checkpoint_filter_fn(torch.load(tmp_path / "dinov2.pth"), theirs))
    checkpoint = from_file(tmp_path / "dinov2.pth")
    assert (
        checkpoint.config.registers == 4
        and checkpoint.config.class_position
        and checkpoint.config.pos_interp == "timm"
    )
    assert_outputs(checkpoint.model(), theirs, lambda m, x: m(x), lambda m: m.blocks)


@pytest.mark.slow
def test_timms_distilled_deit_by_name(randomised, tmp_path):
    from wordsworth.vit_model.foreign.load import from_timm

    theirs = randomised(timm.create_model("deit_tiny_distilled_patch16_224"))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    checkpoint = from_timm("deit_tiny_distilled_patch16_224", tmp_path / "w.pth")
    x = images((224, 224), 2)
    torch.testing.assert_close(checkpoint.model()(x), theirs(x), **FP32)
    assert len(checkpoint.labels) == 1000


@pytest.mark.slow
def test_timms_clip_gives_the_common_space_and_not_five_hundred_classes(randomised, tmp_path):
    from wordsworth.vit_model.foreign.load import from_timm

    name = "vit_base_patch32_clip_quickgelu_224.openai"
    theirs = randomised(timm.create_model(name))
    theirs.head.bias.data.zero_()  # as timm converts the projection
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    checkpoint = from_timm(name, tmp_path / "w.pth")
    assert (
        checkpoint.config.num_classes == 0
        and checkpoint.config.embedding_dim == 512
        and checkpoint.config.gelu == "quick"
    )
    x = images((224, 224), 2)
    torch.testing.assert_close(checkpoint.model()(x), theirs(x), **FP32)
    theirs.head.bias.data += 1
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    assert (
        from_timm(name, tmp_path / "w.pth").config.num_classes == 512
    )  # a bias that was trained: these are classes


# ---- what can be wrong -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_size_that_nobody_published_does_not_tell_its_heads(tmp_path):
    theirs = timm.create_model(
        "vit_base_patch16_224", **TIMM_SIZE | {"embed_dim": 256, "num_heads": 8, "num_classes": 0}
    )
    torch.save(mae(theirs), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="256 wide and 12 deep with an MLP of 1024, no published size"):
        from_file(tmp_path / "w.pth")


def test_a_file_of_nobody_known_lists_the_formats_and_its_first_tensors(tmp_path):
    torch.save({"layer.a": torch.ones(1), "layer.b": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(
        ModelError,
        match=r"in no format known here \(Google's.*MAE.*\); its first tensors are layer.a, layer.b",
    ):
        from_file(tmp_path / "w.pth")


@pytest.mark.slow
def test_a_position_table_that_is_no_square_asks_for_the_architecture(randomised, tmp_path):
    theirs = timm.create_model("vit_base_patch16_224", **TIMM_SIZE | {"img_size": (32, 48), "num_classes": 0})
    torch.save(mae(theirs), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="table has 25 rows, which is no square; name the architecture"):
        from_file(tmp_path / "w.pth")


@pytest.mark.slow
def test_a_torchscript_archive_is_refused_as_code(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(ModelError, match="TorchScript archive, which holds code; save its state_dict"):
        load_weights(tmp_path / "w.pt")
