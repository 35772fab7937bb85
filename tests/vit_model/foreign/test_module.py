"""Promises of a model that another library's module computes: the same numbers, in the same predictor."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.load import checkpoint_from_bytes, from_folder, from_timm
from wordsworth.vit_model.foreign.module import ModuleCheckpoint
from wordsworth.vit_model.model_folder import save_folder
from wordsworth.vit_model.patches import patchify

NAME = "test_convnext"


@pytest.fixture
def theirs(randomised) -> torch.nn.Module:
    return randomised(timm.create_model(NAME))


@pytest.fixture
def checkpoint(theirs: torch.nn.Module, tmp_path: Path) -> ModuleCheckpoint:
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    notes: list[str] = []
    found = from_timm(NAME, tmp_path / "w.pth", notes.append)
    assert isinstance(found, ModuleCheckpoint)
    assert len(notes) == 1 and "timm's own module runs it" in notes[0]
    return found


def pixels_of(checkpoint: ModuleCheckpoint, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, *checkpoint.config.image_size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def as_timm_has_it(checkpoint: ModuleCheckpoint, pixels: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(checkpoint.preprocessing.mean)
    std = torch.tensor(checkpoint.preprocessing.std)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def test_logits_and_embeddings_are_timms(checkpoint: ModuleCheckpoint, theirs: torch.nn.Module):
    pixels = pixels_of(checkpoint)
    with torch.no_grad():
        features = theirs.forward_features(as_timm_has_it(checkpoint, pixels))
        expected = theirs.forward_head(features), theirs.forward_head(features, pre_logits=True)
    found = checkpoint.for_inference("fp32", "cpu")(patchify(pixels, checkpoint.config.patch_size))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_patches_of_an_image_that_is_no_square_are_put_together_again(
    checkpoint: ModuleCheckpoint, theirs: torch.nn.Module
):
    tall = replace(checkpoint, config=replace(checkpoint.config, image_size=(96, 64)))
    assert tall.config.grid == (3, 2)
    pixels = pixels_of(tall)
    with torch.no_grad():
        expected = theirs(as_timm_has_it(tall, pixels))
    found, _ = tall.for_inference("fp32", "cpu")(patchify(pixels, 32))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_agrees_and_leaves_the_final_layer_exact(checkpoint: ModuleCheckpoint):
    patches = patchify(pixels_of(checkpoint), checkpoint.config.patch_size)
    fp32, _ = checkpoint.for_inference("fp32", "cpu")(patches)
    model = checkpoint.for_inference("bf16", "cpu")
    bf16, embedding = model(patches)
    assert torch.nn.functional.cosine_similarity(bf16, fp32).min() > 0.999
    classifier = model.model.tower.classifier
    assert classifier.weight.dtype == torch.float32
    assert torch.equal(bf16, classifier(embedding))


def test_bytes_and_a_folder_bring_the_same_model_back(checkpoint: ModuleCheckpoint, tmp_path: Path):
    save_folder(tmp_path / "model", checkpoint)
    for found in (checkpoint_from_bytes(checkpoint.to_bytes()), from_folder(tmp_path / "model")):
        assert isinstance(found, ModuleCheckpoint)
        assert found.config == checkpoint.config
        assert found.fingerprint() == checkpoint.fingerprint()


def test_weights_of_another_model_are_refused_in_one_line(tmp_path: Path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"does not fit the model: .* missing") as refused:
        from_timm(NAME, tmp_path / "w.pth", lambda note: None)
    assert "\n" not in str(refused.value)


def test_multiplications_are_counted(checkpoint: ModuleCheckpoint):
    assert 1e6 < checkpoint.macs() < 1e9
