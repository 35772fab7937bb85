"""Promises of timm's own modules: any of timm's models, from any of timm's places and files."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.load import from_folder, from_timm
from wordsworth.vit_model.foreign.module import ModuleCheckpoint
from wordsworth.vit_model.model_folder import save_folder
from wordsworth.vit_model.patches import patchify

NAME = "test_convnext"


@pytest.fixture
def load(tmp_path: Path):
    """A function that loads a timm model with tensors as a file has them; the model and what was said."""

    def load(name: str, state: dict[str, torch.Tensor]) -> ModuleCheckpoint:
        torch.save(state, tmp_path / "w.pth")
        found = from_timm(name, tmp_path / "w.pth", lambda note: None)
        assert isinstance(found, ModuleCheckpoint)
        return found

    return load


def images_of(checkpoint: ModuleCheckpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two images as uint8 patches, and as timm wants them."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, *checkpoint.config.image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    mean, std = torch.tensor(checkpoint.preprocessing.mean), torch.tensor(checkpoint.preprocessing.std)
    images = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    return patchify(pixels, checkpoint.config.patch_size), images


@torch.no_grad()
def check_equal(checkpoint: ModuleCheckpoint, theirs: nn.Module) -> None:
    """Check that a checkpoint gives the logits of timm's own module."""
    patches, images = images_of(checkpoint)
    logits, embedding = checkpoint.for_inference("fp32", "cpu")(patches)
    assert embedding.shape == (2, checkpoint.config.embedding_dim)
    torch.testing.assert_close(logits, theirs(images), rtol=1e-4, atol=1e-5)


def timm_folder(path: Path, net: nn.Module, **about: object) -> Path:
    """Write a folder as timm's `push_to_hf_hub` uploads it."""
    path.mkdir()
    save_file(net.state_dict(), path / "model.safetensors")
    content = {"architecture": net.pretrained_cfg["architecture"], "num_classes": net.num_classes, **about}
    (path / "config.json").write_text(json.dumps(content))
    return path


def test_a_file_with_other_classes_brings_its_own_head(load, randomised):
    theirs = randomised(timm.create_model(NAME, num_classes=7))
    found = load(NAME, theirs.state_dict())
    assert (found.config.num_classes, found.labels) == (7, None)
    check_equal(found, theirs)


def test_a_file_without_a_head_gives_embeddings(load, randomised):
    theirs = randomised(timm.create_model(NAME, num_classes=0))
    found = load(NAME, theirs.state_dict())
    patches, images = images_of(found)
    logits, embedding = found.for_inference("fp32", "cpu")(patches)
    assert (found.config.num_classes, logits) == (0, None)
    torch.testing.assert_close(embedding, theirs(images), rtol=1e-4, atol=1e-5)


def test_half_precision_files_and_files_without_counters_are_read(load, randomised):
    theirs = randomised(timm.create_model("test_resnet"))
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "num_batches" not in name}
    half = {name: tensor.half() for name, tensor in state.items()}
    found = load("test_resnet", half)
    theirs.load_state_dict({name: tensor.float() for name, tensor in half.items()}, strict=False)
    check_equal(found, theirs)


@pytest.mark.slow
def test_a_file_in_the_names_of_the_first_repository_is_renamed_by_timms_filter(load, randomised):
    theirs = randomised(timm.create_model("convnext_atto"))
    found = load("convnext_atto", as_convnext_was_published(theirs.state_dict()))
    check_equal(found, theirs)


def as_convnext_was_published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of timm's ConvNeXt under the names of the code that the model was published with."""
    published = {}
    for name, tensor in state.items():
        for timms, theirs in {
            "stem.": "downsample_layers.0.",
            "stages.1.downsample.": "downsample_layers.1.",
            "stages.2.downsample.": "downsample_layers.2.",
            "stages.3.downsample.": "downsample_layers.3.",
            ".blocks.": ".",
            "conv_dw": "dwconv",
            "mlp.fc1": "pwconv1",
            "mlp.fc2": "pwconv2",
            "head.norm.": "norm.",
            "head.fc.": "head.",
        }.items():
            name = name.replace(timms, theirs)
        published[name] = tensor
    return published


def test_a_folder_of_timms_loads_without_that_folder(tmp_path, randomised):
    theirs = randomised(timm.create_model(NAME, num_classes=3, patch_size=2))
    cfg = {"input_size": [3, 64, 96], "mean": [0.4, 0.5, 0.6], "classifier": "head.fc"}
    folder = timm_folder(
        tmp_path / "theirs",
        theirs,
        pretrained_cfg=cfg,
        label_names=["cat", "dog", "car"],
        model_args={"patch_size": 2},
    )
    found = from_folder(folder, lambda note: None)
    assert found.config.image_size == (64, 96) and found.labels == ("cat", "dog", "car")
    check_equal(found, theirs)
    save_folder(tmp_path / "ours", found)
    folder.rename(tmp_path / "elsewhere")
    again = from_folder(tmp_path / "ours")
    assert again.fingerprint() == found.fingerprint()
    assert str(tmp_path) not in json.dumps(again.about())
    check_equal(again, theirs)


def test_a_model_folder_takes_the_weights_of_a_file(load, randomised, tmp_path):
    save_folder(tmp_path / "ours", load(NAME, timm.create_model(NAME).state_dict()))
    for num_classes, labels in ((1000, 1000), (4, 0)):
        theirs = randomised(timm.create_model(NAME, num_classes=num_classes))
        torch.save(theirs.state_dict(), tmp_path / "new.pth")
        found = load_model(str(tmp_path / "ours"), weights=str(tmp_path / "new.pth"))
        assert (found.config.num_classes, len(found.labels or ())) == (num_classes, labels)
        check_equal(found, theirs)


@pytest.mark.slow
def test_the_projection_of_a_clip_tower_is_an_embedding_and_no_classes(load, randomised):
    name = "fastvit_mci0.apple_mclip"
    theirs = randomised(timm.create_model(name))
    found = load(name, theirs.state_dict())
    patches, images = images_of(found)
    logits, embedding = found.for_inference("fp32", "cpu")(patches)
    assert logits is None and found.config.num_classes == 0
    assert embedding.shape == (2, 512)
    torch.testing.assert_close(embedding, theirs(images), rtol=1e-4, atol=1e-5)


def test_images_of_other_channels_are_refused(tmp_path, randomised):
    theirs = timm.create_model(NAME, in_chans=1)
    folder = timm_folder(tmp_path / "grey", theirs, pretrained_cfg={"input_size": [1, 160, 160]})
    with pytest.raises(ModelError, match="takes images of 1 channels; images here are RGB"):
        from_folder(folder, lambda note: None)


def test_a_model_that_gives_maps_and_no_vector_is_refused(tmp_path):
    theirs = timm.create_model(NAME, num_classes=0, global_pool="")
    folder = timm_folder(tmp_path / "maps", theirs, pretrained_cfg={}, model_args={"global_pool": ""})
    with pytest.raises(ModelError, match=r"gives \(2, 64, 7, 7\) .* neither a classifier nor an embedder"):
        from_folder(folder, lambda note: None)


def test_a_model_of_any_image_shape_gets_one_size_and_a_line_says_so(tmp_path, randomised):
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    net = randomised(timm.create_model("naflexvit_base_patch16_gap", num_classes=3, **small))
    cfg = {"num_classes": 3, "input_size": [3, 384, 384]}
    timm_folder(tmp_path / "naflex", net, model_args=small, pretrained_cfg=cfg)
    notes: list[str] = []
    found = from_folder(tmp_path / "naflex", notes.append)
    assert any("all are cut to 384 x 384 pixels" in note for note in notes)
    check_equal(found, net)
