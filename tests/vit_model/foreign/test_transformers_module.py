"""Promises of a model that transformers' own class computes: its numbers, in our predictor, every family."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from tests.support.transformers_families import CLASSIFIERS, ENCODERS, blotches, randomised
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.load import checkpoint_from_bytes, from_folder
from wordsworth.vit_model.foreign.module import ModuleCheckpoint
from wordsworth.vit_model.model_folder import save_folder
from wordsworth.vit_model.patches import patchify

MEAN = (0.4, 0.5, 0.6)
STD = (0.2, 0.3, 0.4)


def write_processor(folder: Path, size: int, **more) -> None:
    """Write a processor that squashes, as most do."""
    about = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(about | more))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 (B, H, W, 3) as transformers prepares it."""
    return ((pixels.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).float().permute(0, 3, 1, 2)


def logits_of(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=images).logits


def saved(folder: Path, kind: type, config, size: int, read=logits_of) -> torch.nn.Module:
    """Write a folder of transformers' with random weights, and return transformers' model."""
    theirs = randomised(kind(config), read, size)
    theirs.save_pretrained(folder)
    write_processor(folder, size)
    return theirs


def loaded(folder: Path) -> ModuleCheckpoint:
    notes: list[str] = []
    found = from_folder(folder, notes.append)
    assert isinstance(found, ModuleCheckpoint)
    assert len(notes) == 1 and f"transformers' {found.config.architecture} runs it" in notes[0]
    return found


def predict(checkpoint: ModuleCheckpoint, pixels: torch.Tensor, precision: str = "fp32"):
    return checkpoint.for_inference(precision, "cpu")(patchify(pixels, checkpoint.config.patch_size))


def assert_agrees(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Compare numbers of which those of two images differ by more than the tolerance."""
    assert expected.std(0).mean() > 1e-3
    torch.testing.assert_close(found, expected, rtol=10 * tolerance, atol=tolerance)


# Of each kind of head and of pooling one; the other families are tried by `make test-long`.
EVERY_TIME = (
    "beit",
    "convnext",
    "dinov2",
    "dinov3_vit",
    "levit",
    "mobilenet_v2",
    "resnet",
    "swin",
    "vit_mae",
)


def families(known: dict) -> list:
    return [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.long) for name in known]


@pytest.mark.slow
@pytest.mark.parametrize("name", families(CLASSIFIERS))
def test_the_logits_of_a_family_are_transformers_own(name, tmp_path):
    kind, make_config, size = CLASSIFIERS[name]
    theirs = saved(tmp_path, kind, make_config(), size)
    pixels = blotches(size)
    with torch.no_grad():
        expected = logits_of(theirs, normalised(pixels))
    checkpoint = loaded(tmp_path)
    assert checkpoint.config.num_classes == 5
    logits, embedding = predict(checkpoint, pixels)
    assert_agrees(logits, expected)
    assert embedding.shape == (3, checkpoint.config.embedding_dim)
    in_bf16, _ = predict(checkpoint, pixels, "bf16")
    assert torch.nn.functional.cosine_similarity(in_bf16, logits).min() > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", families(ENCODERS))
def test_the_embeddings_of_a_family_are_transformers_own(name, tmp_path):
    kind, make_config, size, read = ENCODERS[name]
    theirs = saved(tmp_path, kind, make_config(), size, read)
    pixels = blotches(size)
    with torch.no_grad():
        expected = read(theirs, normalised(pixels))
    checkpoint = loaded(tmp_path)
    logits, embedding = predict(checkpoint, pixels)
    assert logits is None and checkpoint.config.num_classes == 0
    assert_agrees(embedding, expected)
    _, in_bf16 = predict(checkpoint, pixels, "bf16")
    assert torch.nn.functional.cosine_similarity(in_bf16, embedding).min() > 0.98


@pytest.fixture
def convnext(tmp_path: Path) -> Path:
    kind, make_config, size = CLASSIFIERS["convnext"]
    folder = tmp_path / "convnext"
    saved(folder, kind, make_config(), size)
    return folder


def test_the_embedding_is_what_the_linear_head_takes_and_the_head_stays_exact(convnext):
    checkpoint = loaded(convnext)
    assert checkpoint.config.linear_head
    model = checkpoint.for_inference("bf16", "cpu")
    logits, embedding = model(patchify(blotches(32), 32))
    classifier = model.model.tower.classifier
    assert classifier.weight.dtype == torch.float32
    assert torch.equal(logits, classifier(embedding))


def test_bytes_and_a_folder_bring_the_model_back_without_the_folder_of_transformers(convnext, tmp_path):
    checkpoint = loaded(convnext)
    expected = predict(checkpoint, blotches(32))
    save_folder(tmp_path / "model", checkpoint)
    for file in convnext.iterdir():
        file.unlink()
    for found in (checkpoint_from_bytes(checkpoint.to_bytes()), from_folder(tmp_path / "model")):
        assert found.config == checkpoint.config
        assert found.fingerprint() == checkpoint.fingerprint()
        torch.testing.assert_close(predict(found, blotches(32)), expected, rtol=0, atol=0)


def test_names_of_classes_come_along_and_are_no_part_of_what_builds_the_model(convnext):
    about = json.loads((convnext / "config.json").read_text())
    labels = ["ant", "bee", "cat", "dog", "elk"]
    (convnext / "config.json").write_text(json.dumps(about | {"id2label": dict(enumerate(labels))}))
    checkpoint = loaded(convnext)
    assert checkpoint.labels == tuple(labels)
    assert "ant" not in json.dumps(checkpoint.config.to_dict())


def test_the_number_of_classes_is_that_of_the_weights(convnext):
    about = json.loads((convnext / "config.json").read_text())
    (convnext / "config.json").write_text(json.dumps(about | {"id2label": {"0": "ant", "3": "dog"}}))
    checkpoint = loaded(convnext)
    assert checkpoint.labels == ("ant", "LABEL_1", "LABEL_2", "dog", "LABEL_4")
    assert predict(checkpoint, blotches(32))[0].shape == (3, 5)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_the_kind_of_the_head_is_that_of_problem_type(kind, convnext):
    about = json.loads((convnext / "config.json").read_text())
    (convnext / "config.json").write_text(json.dumps(about | {"problem_type": kind}))
    expected = {"multi_label_classification": "sigmoid", "regression": "value"}[kind]
    assert loaded(convnext).head.kind == expected


def test_a_missing_tensor_is_refused_and_not_made_up(convnext):
    state = safetensors.torch.load_file(convnext / "model.safetensors")
    del state["classifier.weight"]
    safetensors.torch.save_file(state, convnext / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"lacks 1 tensors of ConvNextForImageClassification: classifier\.weight"
    ):
        from_folder(convnext)


def test_a_tensor_of_another_shape_is_refused_by_its_name(convnext):
    state = safetensors.torch.load_file(convnext / "model.safetensors")
    state["classifier.bias"] = torch.zeros(7)  # beside a weight for five classes
    safetensors.torch.save_file(state, convnext / "model.safetensors")
    with pytest.raises(ModelError, match=r"classifier\.weight is \(5, 32\), not \(7, 32\)"):
        from_folder(convnext)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "my_net", "auto_map": {"AutoModel": "net.MyNet"}},
            "code that lies beside the weights",
        ),
        ({"architectures": ["ConvNextForObjectDetection"]}, "neither labels nor embeddings of images"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "no model of single images"),
        ({"model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"]}, "no model of single images"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"depths": "many"}, "transformers"),
    ],
)
def test_what_is_no_model_of_images_is_refused_in_one_line(change, message, convnext):
    about = json.loads((convnext / "config.json").read_text())
    (convnext / "config.json").write_text(json.dumps(about | change))
    with pytest.raises(ModelError, match=message) as refused:
        from_folder(convnext, lambda note: None)
    assert "\n" not in str(refused.value)


def test_code_beside_the_weights_is_never_run(convnext, tmp_path):
    about = json.loads((convnext / "config.json").read_text())
    about["auto_map"] = {"AutoModelForImageClassification": "trap.Trap", "AutoConfig": "trap.Trap"}
    (convnext / "config.json").write_text(json.dumps(about))
    (convnext / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    assert loaded(convnext).config.architecture == "ConvNextForImageClassification"
    assert not (tmp_path / "sprung").exists()


def test_without_transformers_the_command_that_installs_it_is_said(convnext, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'wordsworth\[zeroshot\]'"):
        from_folder(convnext, lambda note: None)


def test_a_model_that_takes_bgr_gets_bgr(convnext):
    rgb, _ = predict(loaded(convnext), blotches(32))
    write_processor(convnext, 32, do_flip_channel_order=True, do_normalize=False)
    bgr, _ = predict(loaded(convnext), blotches(32))
    theirs = transformers.ConvNextForImageClassification.from_pretrained(convnext)
    with torch.no_grad():
        expected = logits_of(theirs, (blotches(32).float() / 255).flip(3).permute(0, 3, 1, 2))
    assert_agrees(bgr, expected)
    assert (rgb - bgr).abs().max() > 1e-2
