"""adapters: --model ADAPTER takes the base that it names, --model BASE --weights ADAPTER another one."""

import copy
import json

import pytest
import torch

from tests.prediction.test_load_model import make, refused
from tests.vit_model.foreign.test_adapter import changed, trained
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.vit_model.config import ViTConfig
from wordsworth.vit_model.model_folder import save_folder


@pytest.fixture
def small():
    return make(
        ViTConfig(image_size=(16, 16), patch_size=8, width=16, depth=2, heads=2, mlp_dim=32, num_classes=3)
    )


@pytest.mark.slow
def test_an_adapter_is_merged_into_the_base_that_it_names_or_that_is_given(small, tmp_path):
    save_folder(tmp_path / "base", small)
    theirs = trained(copy.deepcopy(small.model()), tmp_path / "adapter")
    adapter, base = str(tmp_path / "adapter"), str(tmp_path / "base")
    notes = []
    found = load_model(base, weights=adapter, note=notes.append)
    assert notes == [f"adapter is an adapter: it is merged into {base}"]
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(found.model()(x), theirs(x), atol=1e-5, rtol=1e-4)
    assert found.fingerprint() != small.fingerprint() and found.labels == small.labels
    assert (found.extra["adapter"], found.extra["base"]) == ("adapter", base)
    changed(tmp_path / "adapter", base_model_name_or_path=base)
    assert load_model(adapter).fingerprint() == found.fingerprint()


def adapter_folder(tmp_path, **fields) -> str:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | fields))
    return str(tmp_path)


def test_an_adapter_whose_base_is_not_known_says_how_to_name_it(tmp_path):
    message, code = refused(adapter_folder(tmp_path))
    assert (
        code == 2
        and "is an adapter that names no base model: give the base as --model, and the adapter" in message
    )
    message, code = refused(adapter_folder(tmp_path, base_model_name_or_path="/nowhere/base"))
    assert (
        code == 2
        and "is an adapter for /nowhere/base, which is not here: give the base as --model" in message
    )
    message, code = refused("S/16", weights=str(tmp_path))
    assert code == 2 and "is an adapter, which needs a base model with weights" in message
