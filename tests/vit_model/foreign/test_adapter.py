"""Check that a merged adapter computes what peft's own wrapped model computes."""

import copy
import json
import sys

import pytest
import torch

from tests.support.parity import FP32
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign.adapter import merge, merge_transformers
from wordsworth.vit_model.foreign.load import from_folder
from wordsworth.vit_model.weights import load_weights

SMALL = ViTConfig(image_size=(16, 16), patch_size=8, width=16, depth=2, heads=2, mlp_dim=32, num_classes=3)


@pytest.fixture
def base(randomised):
    made = random_checkpoint(SMALL, Preprocessing(), 0, labels=("a", "b", "c"))
    model = randomised(made.model())
    made.state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return made


def trained(module, folder, **options):
    """Return peft's model with random adapters around a module, saved in a folder."""
    import peft

    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["qkv", "fc1"]} | options
    model = peft.get_peft_model(module, peft.LoraConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"blocks.1.attn.qkv": 3}, "alpha_pattern": {"mlp.fc1": 5}},
        {"modules_to_save": ["head"]},
    ],
    ids=str,
)
def test_a_merged_adapter_computes_what_peft_computes_beside_the_model(base, tmp_path, options):
    theirs = trained(copy.deepcopy(base.model()), tmp_path, **options)
    merged = merge(tmp_path, base)
    x = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(merged.model()(x), theirs(x), **FP32)
    assert (base.model()(x) - theirs(x)).abs().max() > 0.01  # it changes the model
    assert merged.labels == base.labels and merged.config == base.config
    assert not any(tensor.requires_grad for tensor in merged.state.values())


@pytest.mark.slow
def test_the_weight_of_a_merged_layer_is_w_plus_scale_times_b_a(base, tmp_path):
    trained(copy.deepcopy(base.model()), tmp_path)
    small = load_weights(tmp_path / "adapter_model.safetensors")
    layer = "base_model.model.blocks.0.attn.qkv.lora_"
    expected = (
        base.state["blocks.0.attn.qkv.weight"] + 6 / 2 * small[layer + "B.weight"] @ small[layer + "A.weight"]
    )
    merged = merge(tmp_path, base)
    torch.testing.assert_close(merged.state["blocks.0.attn.qkv.weight"], expected)
    assert torch.equal(merged.state["blocks.0.attn.proj.weight"], base.state["blocks.0.attn.proj.weight"])


@pytest.mark.slow
def test_the_head_of_an_adapter_brings_its_own_classes(base, tmp_path):
    theirs = trained(base.with_head(7).model(), tmp_path, modules_to_save=["head"])
    merged = merge(tmp_path, base)
    x = torch.rand(3, 3, 16, 16)
    assert merged.config.num_classes == 7 and merged.labels is None
    torch.testing.assert_close(merged.model()(x), theirs(x), **FP32)


def hugging_face(folder, randomised, num_labels=3):
    from transformers import ViTConfig as Config
    from transformers import ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = Config(**sizes, image_size=32, patch_size=8, num_labels=num_labels)
    model = randomised(ViTForImageClassification(config)).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 32, "width": 32}, "resample": 3})
    )
    return model


@pytest.mark.slow
@pytest.mark.parametrize("names", ["of version 5", "of version 4"])
def test_an_adapter_of_a_transformers_model_is_merged_whatever_version_named_it(randomised, tmp_path, names):
    base = hugging_face(tmp_path / "base", randomised)
    labels = base.config.id2label
    base.classifier = torch.nn.Linear(32, 5)
    theirs = trained(
        base,
        tmp_path / "adapter",
        target_modules=["q_proj", "v_proj", "o_proj", "fc1", "fc2"],
        modules_to_save=["classifier"],
    )
    assert len(labels) == 3
    if names == "of version 4":
        rename_as_in_4(tmp_path / "adapter")
    merge_transformers(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")
    merged = from_folder(tmp_path / "merged")
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(merged.model()(x), theirs(pixel_values=x).logits, **FP32)
    assert merged.config.num_classes == 5 and merged.labels is None
    assert (merged.preprocessing.interpolation, merged.preprocessing.crop_mode) == ("bicubic", "squash")


def rename_as_in_4(adapter) -> None:
    """Give an adapter the names that transformers 4 gave to the modules of a ViT."""
    import safetensors.torch

    renamed = {
        "vit.layers": "vit.encoder.layer",
        "attention.q_proj": "attention.attention.query",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    state = {}
    for name, tensor in load_weights(adapter / "adapter_model.safetensors").items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        state[name] = tensor
    safetensors.torch.save_file(state, adapter / "adapter_model.safetensors")
    about = json.loads((adapter / "adapter_config.json").read_text())
    about["target_modules"] = ["query", "value", "dense"]
    (adapter / "adapter_config.json").write_text(json.dumps(about))


# ---- what is refused -------------------------------------------------------------------------------------


def changed(folder, **fields) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder, base) -> str:
    with pytest.raises(ModelError) as refusal:
        merge(folder, base)
    message = str(refusal.value)
    assert "\n" not in message and str(folder) in message
    return message


@pytest.mark.slow
def test_an_adapter_that_cannot_be_merged_names_its_base_and_the_reason(base, tmp_path, monkeypatch):
    trained(copy.deepcopy(base.model()), tmp_path)
    changed(tmp_path, base_model_name_or_path="owner/base")
    begin = "is an adapter for owner/base and was not merged: "
    changed(tmp_path, peft_type="PROMPT_TUNING")
    assert f"{begin}its kind is 'PROMPT_TUNING'; LORA, " in refused(tmp_path, base)
    changed(tmp_path, peft_type="LORA", megatron_config={"a": 1}, megatron_core="trap")
    assert f"{begin}it is one of Megatron, which names code to import" in refused(tmp_path, base)
    assert "trap" not in sys.modules
    changed(tmp_path, megatron_config=None)
    other = random_checkpoint(ViTConfig(**base.config.to_dict() | {"depth": 1}), Preprocessing(), 0)
    assert f"{begin}it does not fit this base model: " in refused(tmp_path, other)
    wider = random_checkpoint(ViTConfig(**base.config.to_dict() | {"width": 32}), Preprocessing(), 0)
    assert f"{begin}it does not fit this base model: " in refused(tmp_path, wider)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert f"{begin}that needs peft; pip install peft" in refused(tmp_path, base)
    (tmp_path / "adapter_model.safetensors").unlink()
    assert "is an adapter without weights" in refused(tmp_path, base)
