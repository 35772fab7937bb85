"""Where a zero-shot model and its classes come from: the hub, the Python door, ImageNet's published names."""

import json

import pytest
import torch
from huggingface_hub import constants

import wordsworth
from tests.support.dual_encoders import (
    CLASSES,
    TEXT,
    save_bert,
    save_clip,
    save_open_clip,
)
from tests.support.hub import closed_port, hub
from tests.support.stores import s3_bucket
from tests.vit_model.foreign.test_zero_shot import zero_shot
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.pipeline.sources.model_target import model_target
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.zero_shot import published_classes

pytestmark = pytest.mark.slow


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """A function that lets huggingface_hub use an endpoint, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def connect(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return connect


def test_tokenizers_are_fetched_with_classes_alone(connect, tmp_path):
    save_clip(tmp_path / "clip")
    with hub({"tiny/clip": tmp_path / "clip"}) as (endpoint, downloaded):
        connect(endpoint)
        load_model("hf:tiny/clip")
        assert not any(name.startswith(("tokenizer", "vocab", "merges")) for name in downloaded)
        found = load_model("hf:tiny/clip", classes="cat,dog")
    assert {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"} <= set(downloaded)
    assert len(found.extra["commit"]) == 40 and found.labels == ("cat", "dog")
    assert found.fingerprint() == zero_shot(tmp_path / "clip", ("cat", "dog")).fingerprint()


def test_the_config_of_a_hugging_face_text_tower_comes_from_the_hub(connect, tmp_path):
    import transformers

    bert, folder = tmp_path / "bert", tmp_path / "clip"
    tokenizer = save_bert(folder)
    config = transformers.BertConfig(**TEXT, vocab_size=len(tokenizer), pad_token_id=1)
    config.save_pretrained(bert)
    text_cfg = {"hf_model_name": str(bert), "hf_proj_type": "linear", "context_length": 32}
    save_open_clip(folder, custom_text=True, text_cfg=text_cfg)
    expected = zero_shot(folder)
    path = folder / "open_clip_config.json"
    path.write_text(path.read_text().replace(json.dumps(str(bert)), '"tiny/bert"'))
    connect(closed_port())
    with pytest.raises(ModelError, match=r"hf:tiny/bert.*hf download tiny/bert config\.json"):
        zero_shot(folder)
    with hub({"tiny/bert": bert}) as (endpoint, downloaded):
        connect(endpoint)
        assert zero_shot(folder).fingerprint() == expected.fingerprint()
    assert downloaded == ["config.json"]


@pytest.mark.parametrize("form", ["bin", "sharded"])
def test_weights_of_the_text_tower_in_other_files(form, tmp_path):
    theirs = save_clip(tmp_path)
    expected = zero_shot(tmp_path).fingerprint()
    (tmp_path / "model.safetensors").unlink()
    if form == "bin":
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        theirs.save_pretrained(tmp_path, max_shard_size="40KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
    assert zero_shot(tmp_path).fingerprint() == expected


def test_a_pickle_with_code_is_never_run(tmp_path):
    save_clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    ran = tmp_path / "ran"
    torch.save({"x": _Code(ran)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError) as error:
        zero_shot(tmp_path)
    assert not ran.exists() and "\n" not in str(error.value)


class _Code:
    """Touch a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


def test_a_folder_in_a_store_comes_with_its_tokenizer(tmp_path):
    save_clip(tmp_path)
    with s3_bucket() as bucket:
        for path in tmp_path.iterdir():
            bucket.objects[f"b/clip/{path.name}"] = path.read_bytes()
        found = load_model("s3://b/clip", classes=",".join(CLASSES))
    assert found.fingerprint() == zero_shot(tmp_path).fingerprint()


def test_from_python_classes_are_a_list(tmp_path):
    save_clip(tmp_path)
    found = wordsworth.load_model(tmp_path, classes=["cat, grey", "dog"], prompt=["a {}", "the {}"])
    assert found.labels == ("cat, grey", "dog")
    assert found.checkpoint.extra["zero_shot"]["prompts"] == ["a {}", "the {}"]
    assert "left_out" not in found.checkpoint.extra  # the tensors of the text tower made the head


def test_what_cannot_go_with_classes_is_said(tmp_path):
    def refused(model, **options) -> str:
        with pytest.raises((UserError, ModelError)) as error:
            load_model(str(model), **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "leave --weights out" in refused("B/16", classes="a,b", weights="w.pth")
    assert "leave --labels out" in refused("B/16", classes="a,b", labels="l.txt")
    assert "--prompt needs --classes" in refused("B/16", prompt="a {}")
    for model in ("timm:vit_base_patch16_224", "B/16"):
        assert f"--model {model} has no text tower" in refused(model, classes="a,b")


def test_evaluate_finds_imagenets_published_names_by_wordnet_ids():
    labels = published_classes()
    target = model_target("folder", labels, len(labels))
    assert target.number("n01440764") == 0 and labels[0] == "tench"
    assert target.number("n02123045") == 281 and labels[281] == "tabby cat"
    own = model_target("folder", CLASSES, len(CLASSES))
    assert [own.number(name) for name in CLASSES] == [0, 1, 2, 3]
