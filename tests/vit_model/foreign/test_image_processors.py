"""Pixels of transformers' own image processors (those of Pillow), against ours from their JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from wordsworth.pipeline.images.decode import crop_for_evaluation
from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign.image_processors import DEFAULTS, RESAMPLING, read_image_processor

# (width, height) of images whose margins around the crops below are even numbers of pixels: see the docstring
# of image_processors.
PHOTOGRAPHS = ((320, 240), (240, 320), (256, 256))
# name: (the processor's class, what differs from its defaults)
PROCESSORS = {
    "squashed": ("ViTImageProcessor", {"size": {"height": 48, "width": 32}}),
    "the shorter edge": ("BitImageProcessor", {"size": {"shortest_edge": 60}, "crop_size": 48}),
    "squashed, then cropped": (
        "DeiTImageProcessor",
        {"size": {"height": 60, "width": 60}, "crop_size": {"height": 48, "width": 48}},
    ),
    "a small ConvNeXt": ("ConvNextImageProcessor", {"size": {"shortest_edge": 42}, "crop_pct": 0.7}),
    "a large ConvNeXt": ("ConvNextImageProcessor", {}),
    "LeViT": ("LevitImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": 56}),
    "PoolFormer": ("PoolFormerImageProcessor", {"size": {"shortest_edge": 54}, "crop_size": 54}),
    "EfficientNet": (
        "EfficientNetImageProcessor",
        {"size": {"height": 48, "width": 48}, "image_std": [0.4, 0.5, 0.6], "image_mean": [0.3, 0.4, 0.5]},
    ),
    "EfficientNet with an offset": (
        "EfficientNetImageProcessor",
        {"size": {"height": 48, "width": 48}, "rescale_factor": 1 / 127.5, "rescale_offset": True}
        | {"do_normalize": False, "include_top": False},
    ),
    "MobileNet": ("MobileNetV2ImageProcessor", {"size": {"shortest_edge": 60}, "crop_size": 48}),
    "MobileViT": ("MobileViTImageProcessor", {"size": {"shortest_edge": 60}, "crop_size": 48}),
    "PVT": ("PvtImageProcessor", {}),
    "BEiT": ("BeitImageProcessor", {"size": {"height": 48, "width": 48}, "resample": 1}),
    "not rescaled": ("ViTImageProcessor", {"do_rescale": False, "image_mean": [99.0] * 3}),
}


def photograph(size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def written(folder: Path, kind: str, settings: dict) -> transformers.BaseImageProcessor:
    """Return transformers' processor, and write its JSON with the name that is in files of the hub."""
    processor = getattr(transformers, f"{kind}Pil")(**settings)
    processor.save_pretrained(folder)
    where = folder / "preprocessor_config.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | {"image_processor_type": kind}))
    return processor


def ours(image: Image.Image, folder: Path) -> np.ndarray:
    """Return normalised pixels (3, H, W) by the JSON in a folder."""
    found = read_image_processor(folder, "any")
    assert found.image_size is not None
    pixels = crop_for_evaluation(image, found.preprocessing, found.image_size)
    values = (pixels / 255 - np.array(found.preprocessing.mean)) / np.array(found.preprocessing.std)
    if found.flips_channels:
        values = values[..., ::-1]
    return values.transpose(2, 0, 1)


@pytest.mark.parametrize("size", PHOTOGRAPHS, ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor(name, size, tmp_path):
    kind, settings = PROCESSORS[name]
    processor = written(tmp_path, kind, settings)
    image = photograph(size)
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    found = ours(image, tmp_path)
    assert found.shape == theirs.shape
    level = 1 / 255 / min(read_image_processor(tmp_path, "any").preprocessing.std)
    assert np.abs(found - theirs).max() < 1.01 * level, "one level of 255"


@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_a_json_leaves_out_is_what_the_class_has(kind):
    processor = getattr(transformers, f"{kind}ImageProcessorPil", None)
    if processor is None:
        processor = getattr(transformers, f"{kind}ImageProcessor")
    told = DEFAULTS[kind]
    if kind == "Siglip2":  # sizes by patches: ours makes a fixed size of them
        assert (told["patch_size"], told["max_num_patches"]) == (
            processor.patch_size,
            processor.max_num_patches,
        )
    else:
        assert told["size"] == dict(processor.size)
    assert RESAMPLING[told["resample"]] == Image.Resampling(processor.resample).name.lower()
    if told.get("do_normalize", True):
        assert list(told["image_mean"]) == pytest.approx(list(processor.image_mean))
        assert list(told["image_std"]) == pytest.approx(list(processor.image_std))
    assert bool(told.get("do_center_crop")) == bool(getattr(processor, "do_center_crop", False))
    assert told.get("crop_pct") == getattr(processor, "crop_pct", None)
    assert bool(told.get("include_top")) == bool(getattr(processor, "include_top", False))
    assert told.get("do_flip_channel_order") == getattr(processor, "do_flip_channel_order", None)
    if "crop_size" in told:
        assert {"height": told["crop_size"], "width": told["crop_size"]} == dict(processor.crop_size)


def test_every_family_of_transformers_has_a_processor_that_is_known_or_named():
    known = {f"{kind}ImageProcessor" for kind in DEFAULTS}
    for family in (
        "convnextv2",
        "cvt",
        "swin",
        "dinov2",
        "dinov3_vit",
        "levit",
        "hiera",
        "pvt_v2",
        "altclip",
    ):
        assert IMAGE_PROCESSOR_MAPPING_NAMES[family]["torchvision"] in known


def test_old_and_new_names_of_a_processor_are_one(tmp_path):
    found = []
    for name in ("ConvNextFeatureExtractor", "ConvNextImageProcessor", "ConvNextImageProcessorFast"):
        about = {"feature_extractor_type" if "Feature" in name else "image_processor_type": name, "size": 224}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
        found.append(read_image_processor(tmp_path, "convnext"))
    assert found[0] == found[1] == found[2]
    assert found[0].preprocessing == Preprocessing(interpolation="bicubic", crop_pct=0.875)


@pytest.mark.parametrize(
    ("about", "field"),
    [
        ({"image_processor_type": "Gemma4ImageProcessor", "max_num_patches": 256}, "max_num_patches"),
        ({"image_processor_type": "TextNetImageProcessor", "size_divisor": 32}, "size_divisor"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad"),
        ({"image_processor_type": "ViTImageProcessor", "do_thumbnail": True}, "do_thumbnail"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "do_resize"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 224}}, "longest_edge"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "crop_size"),  # 256 of 224: a black frame
        ({"image_processor_type": "PerceiverImageProcessor"}, "do_center_crop"),
    ],
)
def test_what_ours_cannot_say_is_refused_by_its_field(about, field, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=field) as refused:
        read_image_processor(tmp_path, "any")
    assert "\n" not in str(refused.value)
