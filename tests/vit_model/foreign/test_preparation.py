"""Promises where weights do not say how images are prepared or pooled: each guess is told, or right."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
import transformers
from torchvision.models import vision_transformer as theirs_of

from tests.support.parity import FP32, images
from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign.load import UNUSUAL_PARTS, from_file, from_folder, from_variant
from wordsworth.vit_model.foreign.preparation import usual_preprocessing
from wordsworth.vit_model.foreign.timm import config_of, foreign_parts
from wordsworth.vit_model.foreign.translate import architecture, translate

KINDS = [
    weights
    for name in ("ViT_B_16", "ViT_B_32", "ViT_L_16", "ViT_L_32", "ViT_H_14")
    for weights in getattr(theirs_of, f"{name}_Weights")
]


def as_torchvision(weights, name: str):
    """Return the tensors of torchvision's model for these weights, without memory, as read from a file."""
    build = getattr(theirs_of, str(weights).partition("_Weights")[0].lower())
    with torch.device("meta"):
        model = build(image_size=weights.meta["min_size"][0])
    return translate(model.state_dict(), name)


def prepared(weights, name, tmp_path):
    notes: list[str] = []
    found = as_torchvision(weights, name)
    config = architecture(found, name)
    return usual_preprocessing(found, config, tmp_path / name, notes.append), config, notes


def is_as_theirs(preprocessing: Preprocessing, size: int, weights) -> bool:
    transform = weights.transforms()
    sizes = ([size], [int(size / preprocessing.crop_pct)])
    colours = (list(preprocessing.mean), list(preprocessing.std))
    kind = (preprocessing.interpolation, preprocessing.crop_mode)
    return (
        sizes == (transform.crop_size, transform.resize_size)
        and colours == (transform.mean, transform.std)
        and kind == (transform.interpolation.value, "center")
    )


@pytest.mark.parametrize("weights", KINDS, ids=str)
def test_a_file_of_torchvisions_own_is_prepared_as_torchvision_does(weights, tmp_path):
    name = weights.url.rpartition("/")[2]
    preprocessing, config, notes = prepared(weights, name, tmp_path)
    assert is_as_theirs(preprocessing, config.image_size[0], weights) and notes == []


@pytest.mark.parametrize("weights", KINDS, ids=str)
def test_under_another_name_what_the_file_cannot_tell_is_told_with_the_options(weights, tmp_path):
    preprocessing, config, [note] = prepared(weights, "mine.pth", tmp_path)
    linear = str(weights).endswith("SWAG_LINEAR_V1") and not str(weights).startswith("ViT_H_14")
    if str(weights)[4:8] in ("B_16", "L_16") and config.image_size == (224, 224):
        crop = "0.875" if str(weights).startswith("ViT_B") else "0.9256"
        assert "mine.pth does not say which of torchvision's weights it has" in note
        assert f"crop_pct {crop}" in note and "SWAG_LINEAR needs --interpolation bicubic --crop-pct 1" in note
    else:
        assert "does not say how images are prepared, so as torchvision: " in note and "--crop-mode" in note
    if linear:  # the options of the line
        preprocessing = replace(preprocessing, interpolation="bicubic", crop_pct=1.0)
    assert is_as_theirs(preprocessing, config.image_size[0], weights)


@pytest.mark.slow
def test_a_variant_prepares_images_as_the_file_alone(randomised, tmp_path):
    theirs = randomised(torchvision.models.VisionTransformer(64, 16, 12, 3, 192, 768, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    alone, named = from_file(tmp_path / "vit.pth"), from_variant("Ti/16", tmp_path / "vit.pth", print)
    assert alone.preprocessing == named.preprocessing and alone.preprocessing.interpolation == "bicubic"
    large = alone.resized(96)
    expected = theirs_of.interpolate_embeddings(96, 16, dict(theirs.state_dict()))["encoder.pos_embedding"]
    torch.testing.assert_close(large.state["pos_embed"], expected, atol=1e-6, rtol=0)
    # A run that an earlier version began goes on: that version called the way of torchvision "hf".
    earlier = replace(alone, config=replace(alone.config, pos_interp="hf"))
    assert earlier.fingerprint() == alone.fingerprint()


# ---- pooling ---------------------------------------------------------------------------------------------


def ours(name: str):
    """Return timm's model with one layer and without memory, and our config; None where it is not ours."""
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    if not hasattr(model, "num_reg_tokens") or foreign_parts(model):
        return None
    try:
        return model, config_of(model)
    except ModelError:  # patches that do not divide its images
        return None


@pytest.mark.slow
@pytest.mark.parametrize("module", ["vision_transformer", "deit", "vision_transformer_hybrid"])
def test_every_model_of_timms_pools_as_its_tensors_tell(module):
    tried = 0
    for name in timm.list_models(module=module):
        known = ours(name)
        if known is None:
            continue
        model, config = known
        found = translate(model.state_dict(), name)
        if any(key.startswith(part) for key in found.state for part in UNUSUAL_PARTS):
            continue  # a bare variant refuses it
        told = architecture(found, name, heads=config.heads, image_size=config.image_size)
        assert (told.pool, told.pool_norm) == (config.pool, config.pool_norm), name
        tried += 1
    assert tried > 3


@pytest.mark.slow
def test_a_pooling_that_no_tensor_tells_is_said_and_a_folder_says_it(randomised, tmp_path):
    options = {"img_size": 64, "patch_size": 16, "global_pool": "avg", "fc_norm": False, "num_classes": 5}
    theirs = randomised(timm.create_model("vit_tiny_patch16_224", **options))
    x = images((64, 64))
    with torch.no_grad():
        expected = theirs(x)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    notes: list[str] = []
    guessed = from_variant("Ti/16", tmp_path / "w.pth", notes.append)
    assert guessed.config.pool == "token"
    assert any("w.pth does not say how it pools: the class token" in note for note in notes)
    timm.models.save_for_hf(theirs, tmp_path / "folder", model_args=options)
    found = from_folder(tmp_path / "folder")
    assert (found.config.pool, found.config.pool_norm) == ("avg", False)
    with torch.no_grad():
        torch.testing.assert_close(found.model()(x), expected, **FP32)
        assert (guessed.model()(x) - expected).abs().max() > 1e-3, "the wrong pooling would be seen"


# ---- folders of transformers without a preprocessor_config.json ------------------------------------------

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"image_size": 32, "patch_size": 8}
FAMILIES = {
    "vit": (transformers.ViTModel, transformers.ViTConfig(**SIZE, intermediate_size=64)),
    "deit": (transformers.DeiTModel, transformers.DeiTConfig(**SIZE, intermediate_size=64)),
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config(**SIZE, mlp_ratio=2)),
    "clip_vision_model": (
        transformers.CLIPVisionModel,
        transformers.CLIPVisionConfig(**SIZE, intermediate_size=64),
    ),
    "siglip_vision_model": (
        transformers.SiglipVisionModel,
        transformers.SiglipVisionConfig(**SIZE, intermediate_size=64),
    ),
}
# As the preprocessor_config.json of the published models of each type says.
PUBLISHED = {
    "vit": ("bilinear", 1.0, (0.5, 0.5, 0.5), "squash"),
    "deit": ("bicubic", 0.875, (0.485, 0.456, 0.406), "squash"),
    "dinov2": ("bicubic", 0.875, (0.485, 0.456, 0.406), "center"),
    "clip_vision_model": ("bicubic", 1.0, (0.48145466, 0.4578275, 0.40821073), "center"),
    "siglip_vision_model": ("bicubic", 1.0, (0.5, 0.5, 0.5), "squash"),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_folder_without_preprocessing_gets_that_of_its_type_and_says_so(kind, tmp_path):
    build, config = FAMILIES[kind]
    build(config).save_pretrained(tmp_path)
    notes: list[str] = []
    found = from_folder(tmp_path, notes.append).preprocessing
    assert (found.interpolation, found.crop_pct, tuple(found.mean), found.crop_mode) == PUBLISHED[kind]
    [note] = notes
    assert f"no preprocessor_config.json: images are prepared as for most models of type {kind}: " in note
    assert f"interpolation {found.interpolation}" in note and "(--interpolation, --crop-pct, " in note
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 32, "width": 32}, "do_center_crop": False})
    )
    from_folder(tmp_path, notes.append)
    assert len(notes) == 1
