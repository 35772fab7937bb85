import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.layers import resample_abs_pos_embed
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign.load import from_timm
from wordsworth.vit_model.foreign.timm import NotOurs, timm_config
from wordsworth.vit_model.inference import prepare
from wordsworth.vit_model.model_folder import load_folder, save_folder
from wordsworth.vit_model.patches import patchify
from wordsworth.vit_model.variants import variant_name


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty cache"))


@pytest.fixture
def saved(tmp_path, randomised):
    """A function that saves a randomised timm model and gives it with the path of its weights."""

    def save(name, **options):
        model = randomised(timm.create_model(name, **options))
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        return model, tmp_path / "weights.pth"

    return save


def photograph() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)


def prepared_pixels(image: Image.Image, preprocessing: Preprocessing, size: int) -> torch.Tensor:
    """(size, size, 3) uint8, by the meaning of the fields of Preprocessing."""
    image = transforms.resize(
        image, int(size / preprocessing.crop_pct), InterpolationMode(preprocessing.interpolation)
    )
    return transforms.pil_to_tensor(transforms.center_crop(image, [size, size])).permute(1, 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", "test_vit", "flexivit_small"]
)
def test_a_timm_model_gives_timms_logits_on_timms_own_preprocessing(name, saved):
    model, weights = saved(name)
    checkpoint = from_timm(name, weights)
    image = photograph()
    with torch.no_grad():
        expected = model(create_transform(**resolve_data_config(model=model))(image)[None])
    pixels = prepared_pixels(image, checkpoint.preprocessing, checkpoint.config.image_size[0])
    patches = patchify(pixels[None], checkpoint.config.patch_size)
    logits, _ = prepare(checkpoint.model(), checkpoint.preprocessing, "fp32", "cpu")(patches)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_timm_model_survives_a_model_folder(saved, tmp_path):
    checkpoint = from_timm("vit_tiny_patch16_224", saved("vit_tiny_patch16_224")[1])
    assert variant_name(checkpoint.config) == "Ti/16"
    save_folder(tmp_path / "folder", checkpoint)
    found = load_folder(tmp_path / "folder")
    assert found.fingerprint() == checkpoint.fingerprint() and found.labels == checkpoint.labels


@pytest.mark.slow
def test_the_labels_of_an_imagenet_head_are_timms(saved):
    labels = from_timm("test_vit", saved("test_vit")[1]).labels
    assert len(labels) == 1000
    assert (
        labels[0] == "tench, Tinca tinca"
        and labels[207] == "golden retriever"
        and labels[999].startswith("toilet")
    )
    name = "vit_tiny_patch16_224.augreg_in21k"
    checkpoint = from_timm(name, saved(name)[1])
    assert checkpoint.config.num_classes == len(checkpoint.labels) == 21843


@pytest.mark.slow
def test_a_headless_timm_model_has_no_labels(saved):
    checkpoint = from_timm("vit_small_patch8_224.dino", saved("vit_small_patch8_224.dino")[1])
    assert checkpoint.config.num_classes == 0 and checkpoint.labels is None


@pytest.mark.slow
def test_another_image_size_resamples_the_position_table_as_timm_does(saved):
    model, weights = saved("test_vit")
    checkpoint = from_timm("test_vit", weights).resized((224, 96))
    model.set_input_size((224, 96))
    assert checkpoint.config.grid == (14, 6)
    assert torch.equal(checkpoint.state["pos_embed"], model.pos_embed)
    native = from_timm("test_vit", weights)
    expected = resample_abs_pos_embed(native.state["pos_embed"], (14, 6), native.config.grid)
    assert torch.equal(checkpoint.state["pos_embed"], expected)
    x = torch.randn(2, 3, 224, 96)
    torch.testing.assert_close(checkpoint.model()(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vit_giant_patch14_dinov2", "an MLP of type GluMlp"),
        ("resnet50", "timm.models.resnet"),
    ],
)
def test_a_timm_model_with_parts_that_we_lack_is_not_ours_and_the_part_is_said(name, part):
    with pytest.raises(NotOurs, match=f"timm:{name} .*{part}") as error:
        timm_config(name)
    assert "\n" not in str(error.value)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ModelError, match="no model 'vit_tiny_patch16_242'; nearest: 'vit_tiny_patch16_224'"):
        from_timm("vit_tiny_patch16_242")
    with pytest.raises(ModelError, match=r"deit_tiny_patch16_224\.x.*known: deit_tiny_patch16_224\.fb_in1k"):
        from_timm("deit_tiny_patch16_224.x")


@pytest.mark.slow
def test_weights_for_another_number_of_classes_bring_their_head_and_no_names(saved):
    model, weights = saved("test_vit", num_classes=10)
    found = from_timm("test_vit", weights)
    assert found.config.num_classes == 10 and found.labels is None
    assert torch.equal(found.state["head.weight"], model.head.weight)


@pytest.mark.slow
def test_without_a_network_the_message_asks_for_a_file():
    told = r"timm:test_vit: HF_HUB_OFFLINE is set, and .* has no copy.*`hf download timm/test_vit.r160_in1k "
    with pytest.raises(ModelError, match=told) as error:
        from_timm("test_vit")
    assert "\n" not in str(error.value)
