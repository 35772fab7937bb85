"""Read how transformers prepares images: the JSON of an image processor becomes our `Preprocessing`.

Resized images are Pillow's to the pixel. Where the margin around the centre is an odd number of pixels, the
crop may lie one pixel further right or down: transformers rounds half a pixel down, and we to even, as
torchvision does.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign.formats import CLIP_COLOURS, HALF_COLOURS, IMAGENET_COLOURS
from wordsworth.vit_model.foreign.hub_folder import read_json

Colours = tuple[float, float, float]  # of R, G and B

PREPROCESSOR_CONFIG = "preprocessor_config.json"  # of the image processor alone
PROCESSOR_CONFIG = "processor_config.json"  # of the processor for images and texts
# In the order of Pillow's numbers.
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
BILINEAR = 2
BICUBIC = 3


def _colours(named: dict[str, Any]) -> dict[str, Any]:
    return {"image_mean": named["mean"], "image_std": named["std"]}


# What a processor's class fills in for fields that its JSON lacks, by the name of the class without its end.
# A "size" that is one number means the shorter edge where the size here does.
DEFAULTS: dict[str, dict[str, Any]] = {
    "Beit": {"size": {"height": 224, "width": 224}, "resample": BICUBIC, **_colours(HALF_COLOURS)},
    "Bit": {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "resample": BICUBIC}
    | _colours(CLIP_COLOURS),
    "Blip": {"size": {"height": 384, "width": 384}, "resample": BICUBIC, **_colours(CLIP_COLOURS)},
    "CLIP": {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "resample": BICUBIC}
    | _colours(CLIP_COLOURS),
    "ChineseCLIP": {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224}
    | {"resample": BICUBIC, **_colours(CLIP_COLOURS)},
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "resample": BICUBIC}
    | _colours(HALF_COLOURS),
    "DINOv3ViT": {"size": {"height": 224, "width": 224}, "resample": BILINEAR, **_colours(IMAGENET_COLOURS)},
    "DeiT": {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224}
    | {"resample": BICUBIC, **_colours(HALF_COLOURS)},
    "EfficientNet": {"size": {"height": 346, "width": 346}, "crop_size": 289, "resample": BICUBIC}
    | {"include_top": True, **_colours(HALF_COLOURS)},
    "Levit": {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "resample": BICUBIC}
    | _colours(IMAGENET_COLOURS),
    "MobileNetV1": {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}
    | {"resample": BILINEAR, **_colours(HALF_COLOURS)},
    "MobileNetV2": {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}
    | {"resample": BILINEAR, **_colours(HALF_COLOURS)},
    "MobileViT": {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 256}
    | {"resample": BICUBIC, "do_normalize": False, "do_flip_channel_order": True},
    "PoolFormer": {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "crop_pct": 0.9}
    | {"resample": BICUBIC, **_colours(IMAGENET_COLOURS)},
    "Pvt": {"size": {"height": 224, "width": 224}, "resample": BICUBIC, **_colours(IMAGENET_COLOURS)},
    "Segformer": {"size": {"height": 512, "width": 512}, "resample": BILINEAR, **_colours(IMAGENET_COLOURS)},
    "Siglip": {"size": {"height": 224, "width": 224}, "resample": BICUBIC, **_colours(HALF_COLOURS)},
    "Siglip2": {"patch_size": 16, "max_num_patches": 256, "resample": BILINEAR, **_colours(HALF_COLOURS)},
    "ViT": {"size": {"height": 224, "width": 224}, "resample": BILINEAR, **_colours(HALF_COLOURS)},
}
# Steps that are said by our Preprocessing, or that concern no photographs.
KNOWN_STEPS = (
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_flip_channel_order",
    "do_convert_rgb",
    "do_reduce_labels",  # of segmentation maps
)
# Fields of processors with steps of their own, which ours has not.
STRANGE_FIELDS = ("max_num_patches", "resize_short", "size_divisor", "size_divisibility", "clusters")
LARGE = 384  # pixels: from this size on a ConvNeXt's images are squashed, not cropped
LEVIT_MARGIN = 256 / 224  # side of the resized image by the side of the crop


@dataclass(frozen=True)
class ImageProcessor:
    """Hold what the JSON of an image processor says.

    Attributes:
        preprocessing: from a decoded image to normalised pixels.
        image_size: (height, width) in pixels; None: the model's own.
        flips_channels: the model takes BGR.
    """

    preprocessing: Preprocessing
    image_size: tuple[int, int] | None = None
    flips_channels: bool = False


def read_image_processor(
    folder: Path, model_type: str, default: Preprocessing | None = None
) -> ImageProcessor:
    """Read how the images of a model folder are prepared.

    Args:
        folder: of transformers' form.
        model_type: the kind of model, of its config.json.
        default: where the folder does not say.

    Raises:
        ModelError: our Preprocessing cannot say what the processor does.
    """
    default = default or Preprocessing()
    told = _told(folder)
    if told is None:
        return ImageProcessor(default)
    kind = _kind(told, model_type)
    settings = DEFAULTS.get(kind, {}) | {name: value for name, value in told.items() if value is not None}
    if kind == "Siglip2":
        settings = _at_fixed_size(settings)
    _refuse_strange(settings, kind, folder)
    resized, given, squash = _sizes(settings, kind, folder)
    mean, std = _scaled_colours(settings, default)
    resample = settings.get("resample")
    preprocessing = Preprocessing(
        interpolation=default.interpolation if resample is None else RESAMPLING[resample],
        crop_pct=_crop_pct(given, resized, squash, folder),
        mean=mean,
        std=std,
        crop_mode="squash" if squash else "center",
    )
    return ImageProcessor(preprocessing, given, bool(settings.get("do_flip_channel_order")))


def has_image_processor(folder: Path) -> bool:
    """Tell whether a folder says how images are prepared."""
    return _told(folder) is not None


def _told(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the image processor, or None if the folder has none."""
    if (folder / PREPROCESSOR_CONFIG).is_file():
        return read_json(folder / PREPROCESSOR_CONFIG)
    if (folder / PROCESSOR_CONFIG).is_file():
        return read_json(folder / PROCESSOR_CONFIG).get("image_processor")
    return None


def _kind(told: dict[str, Any], model_type: str) -> str:
    """Return the name of the processor's class without its end, which differs between versions."""
    name = told.get("image_processor_type") or told.get("feature_extractor_type")
    if not name:
        return "CLIP" if model_type.startswith("clip") else ""
    return re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name)


def _at_fixed_size(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the square of as many patches as a NaFlex image has at most."""
    side = settings["patch_size"] * math.isqrt(settings["max_num_patches"])
    settings = {name: value for name, value in settings.items() if name != "max_num_patches"}
    return settings | {"size": {"height": side, "width": side}}


def _refuse_strange(settings: dict[str, Any], kind: str, folder: Path) -> None:
    """Refuse a processor with a step that our Preprocessing cannot say, by the name of the field."""
    strange = [name for name in STRANGE_FIELDS if name in settings]
    for name, value in settings.items():
        if name.startswith("do_") and value and name not in KNOWN_STEPS:
            strange.append(name)
    if settings.get("do_resize") is False:
        strange.append("do_resize = false")
    if kind == "Perceiver" and settings.get("do_center_crop", True):
        strange.append("do_center_crop before the resize")
    if strange:
        raise ModelError(
            f"{folder}: its {kind} image processor has {', '.join(strange)}, "
            "which our way of preparing images does not know"
        )


def _sizes(
    settings: dict[str, Any], kind: str, folder: Path
) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Return the sizes (height, width) of the resized image and of its crop, and whether it is squashed.

    Where the aspect ratio is kept, the resized image covers the first size.
    """
    size = _size(settings, kind, folder)
    edge = size.get("shortest_edge")
    if kind == "ConvNext" and edge is not None:
        if edge >= LARGE:
            return (edge, edge), (edge, edge), True
        resized = int(edge / settings["crop_pct"])
        return (resized, resized), (edge, edge), False
    if edge is None and kind != "PoolFormer":
        resized_size = (size["height"], size["width"])
        return resized_size, _crop(settings, resized_size), True
    edge = size["height"] if edge is None else edge
    if kind == "PoolFormer":
        edge = int(edge / settings["crop_pct"])
    if kind == "Levit":
        edge = int(LEVIT_MARGIN * edge)
    return (edge, edge), _crop(settings, (edge, edge)), False


def _size(settings: dict[str, Any], kind: str, folder: Path) -> dict[str, int]:
    """Return {"shortest_edge"} or {"height", "width"}, however it is written."""
    size = settings.get("size") or 224
    if isinstance(size, int):
        by_edge = "shortest_edge" in DEFAULTS.get(kind, {}).get("size", {})
        return {"shortest_edge": size} if by_edge else {"height": size, "width": size}
    if isinstance(size, list | tuple):
        return {"height": size[0], "width": size[1]}
    size = {name: value for name, value in size.items() if value is not None}
    if set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise ModelError(
            f"{folder}: its image processor has size = {size}; known are height and width, or shortest_edge"
        )
    return size


def _crop(settings: dict[str, Any], resized: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of what is cut out of the resized image.

    Without a crop the centre square of an image with its own aspect ratio is taken: a batch has one size.
    """
    if not settings.get("do_center_crop"):
        return resized
    crop = settings.get("crop_size") or resized
    if isinstance(crop, dict):
        crop = (crop["height"], crop["width"])
    return (crop, crop) if isinstance(crop, int) else (crop[0], crop[1])


def _crop_pct(given: tuple[int, int], resized: tuple[int, int], squash: bool, folder: Path) -> float:
    """Return the share of the resized image that is given to the model.

    Raises:
        ModelError: there is no such number for both sides, or the crop is larger than the image.
    """
    sides = list(zip(given, resized, strict=True))
    if not squash:  # the shorter side of the image is resized to `resized`
        sides = [min(sides)]
    share = min(g / r for g, r in sides)
    for candidate in (share, math.nextafter(share, 0)):  # 160 / (160 / 212) is below 212
        if candidate <= 1 and all(math.floor(g / candidate) == r for g, r in sides):
            return candidate
    raise ModelError(
        f"{folder}: its image processor has crop_size = {given} in size = {resized}: "
        "a larger crop, or one of another shape, is not known"
    )


def _scaled_colours(settings: dict[str, Any], default: Preprocessing) -> tuple[Colours, Colours]:
    """Return mean and std of pixels in [0, 1].

    A processor computes x rescale_factor - offset first, and may divide by the std twice (EfficientNet).
    """
    mean = _three(0.0)
    std = _three(1.0)
    image_std = _three(settings.get("image_std") or default.std)
    if settings.get("do_normalize", True):
        mean, std = _three(settings.get("image_mean") or default.mean), image_std
    if settings.get("include_top"):
        std = _three([s * again for s, again in zip(std, image_std, strict=True)])
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    range_ = 255 * scale  # of the rescaled pixels
    if abs(range_ - 1) < 1e-6:  # 1/255 in single precision
        range_ = 1.0
    offset = 1.0 if settings.get("rescale_offset") else 0.0
    return _three([(m + offset) / range_ for m in mean]), _three([s / range_ for s in std])


def _three(colours: Any) -> Colours:
    """Return one number for each of R, G and B."""
    r, g, b = [colours] * 3 if isinstance(colours, int | float) else colours
    return r, g, b
