"""Turn encoded images into patches: the decode stage. Every refusal has a short, stable name.

Images are untrusted: the header is judged before a pixel is decoded, and whatever a decoder raises becomes a
row.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
from PIL import Image

from wordsworth.pipeline.images import codec
from wordsworth.pipeline.images.budget import DecodeBudget
from wordsworth.pipeline.images.codec import DecodeError, decode, decode_opened
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.images.resize import resize_and_crop
from wordsworth.pipeline.images.sandbox import Sandbox, SandboxSettings, header_limits, process_sandbox
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.patches import patchify

__all__ = [
    "DECODER",
    "FAST_DECODER",
    "DecodeError",
    "DecodeSettings",
    "crop_for_evaluation",
    "decode_unit",
    "open_image",
]

# Name all that decides the pixels, for a run's fingerprint. The number goes up when `images.codec` or
# `images.resize_numba` gives other pixels. 2: a TIFF with an orientation is turned once.
DECODER = f"{codec.DECODER}, loops 2"
FAST_DECODER = f"{DECODER}, JPEG reduced"  # with DecodeSettings.fast
MAX_DETAIL = 500  # characters of the column `error_detail`
Crop = Callable[[np.ndarray], np.ndarray]
# By EXIF orientation, how an image as stored becomes upright (EXIF 2.32, 4.6.4).
UPRIGHT: dict[int, Crop] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Tell the decode stage how to make patches.

    Attributes:
        preprocessing: how the model's images are cropped and resized.
        image_size: (height, width) that the model takes, pixels.
        patch_size: side of a patch, pixels.
        limits: what one image may take.
        fast: decode a large JPEG at a half, a quarter or an eighth of its size, but never smaller than what
            the image is resized to. The pixels are then not quite timm's.
    """

    preprocessing: Preprocessing
    image_size: tuple[int, int]
    patch_size: int
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    fast: bool = False

    @property
    def sandbox_settings(self) -> SandboxSettings:
        """Return the settings of the sandbox that decodes."""
        keep_side = 0
        if self.fast:
            keep_side = math.floor(max(self.image_size) / self.preprocessing.crop_pct)
        return SandboxSettings(limits=self.limits, keep_side=keep_side)

    @property
    def patches_shape(self) -> tuple[int, int]:
        """Return (N, P*P*3) of one image."""
        height, width = self.image_size
        side = self.patch_size
        return (height // side) * (width // side), side * side * 3


def decode_unit(
    unit: Unit,
    settings: DecodeSettings,
    crop: Crop | None = None,
    sandbox: Sandbox | None = None,
    alive: Callable[[], None] = lambda: None,
    reached: Callable[[int, int], None] = lambda done, rows: None,
) -> Unit:
    """Decode a unit: its payload becomes the patches of the M samples that could be decoded.

    The other samples get an error.

    Args:
        unit: encoded images; changed in place.
        settings: how to make patches.
        crop: uint8 (h, w, 3) -> uint8 (H, W, 3); None is the crop for evaluation.
        sandbox: where images are decoded; None is the sandbox of this process.
        alive: called every few seconds, between two images.
        reached: called after each image with the rows that are done, and all rows.

    Raises:
        UserError: the sandbox cannot start its child.
    """
    sandbox = sandbox or process_sandbox(settings.sandbox_settings)
    start = time.perf_counter()
    sizes = unit.samples["size"].to_pylist()
    errors = unit.samples["error"].to_pylist()
    details = unit.samples["error_detail"].to_pylist()
    images = _PatchedImages(len(errors), settings, crop)
    budget = DecodeBudget(settings.limits, alive)
    begin = 0
    for row, error in enumerate(errors):
        if error is not None:
            continue
        end = begin + sizes[row]
        is_short = budget.is_used_up
        try:
            with budget.one_image() as timeout_s:
                sandbox.decode(unit.payload[begin:end].data, partial(images.add, row), timeout_s)
        except DecodeError as refusal:
            is_late = is_short and refusal.code == "decoder_timeout"
            errors[row] = refusal.code
            details[row] = (budget.told(str(refusal)) if is_late else str(refusal))[:MAX_DETAIL]
        begin = end
        reached(row + 1, len(errors))
    unit.samples = _with_columns(unit.samples, errors, details, images)
    unit.payload = images.patches[: images.num_good]
    unit.seconds["decode"] = time.perf_counter() - start
    return unit


class _PatchedImages:
    """Collect the patches and the sizes of a unit's images.

    Attributes:
        patches: uint8 [rows of the unit, N, P*P*3]; the first `num_good` are filled.
        widths, heights: pixels of each row's image when it is upright; None for a row without an image.
    """

    def __init__(self, num_rows: int, settings: DecodeSettings, crop: Crop | None):
        self.settings = settings
        self.crop = crop
        self.num_good = 0
        self.patches = np.empty((num_rows, *settings.patches_shape), np.uint8)
        self.widths: list[int | None] = [None] * num_rows
        self.heights: list[int | None] = [None] * num_rows

    def add(self, row: int, pixels: np.ndarray, orientation: int, stored_size: tuple[int, int]) -> None:
        """Crop an image and cut it into patches, straight from the sandbox's memory."""
        settings = self.settings
        exif = settings.preprocessing.exif
        upright = turn_upright(pixels, orientation, exif)
        size = _upright_size(stored_size, orientation, exif)
        self.widths[row], self.heights[row] = size
        if self.crop is None:
            image = crop_for_evaluation(upright, settings.preprocessing, settings.image_size, size)
        else:
            image = self.crop(upright)
        self.patches[self.num_good] = patchify(image, settings.patch_size)
        self.num_good += 1


def _with_columns(
    samples: pa.Table, errors: list[str | None], details: list[str | None], images: _PatchedImages
) -> pa.Table:
    """Return the samples with new errors, and with the columns `width` and `height`."""
    for name, values in (("error", errors), ("error_detail", details)):
        column = pa.array(values, pa.string())
        samples = samples.set_column(samples.schema.get_field_index(name), name, column)
    samples = samples.append_column("width", pa.array(images.widths, pa.int32()))
    return samples.append_column("height", pa.array(images.heights, pa.int32()))


def open_image(data: bytes | Image.Image, settings: DecodeSettings) -> np.ndarray:
    """Decode an image in this process: for images that are trusted.

    Args:
        data: the encoded image, or an image of Pillow's.
        settings: the limits, and whether EXIF orientation is applied.

    Returns:
        uint8 (h, w, 3), upright if the settings apply EXIF orientation.

    Raises:
        DecodeError: the image is refused. Nothing else is raised.
    """
    pixels = np.empty(0, np.uint8)

    def allocate(num_bytes: int) -> memoryview:
        nonlocal pixels
        pixels = np.empty(num_bytes, np.uint8)
        return pixels.data

    limits = header_limits(settings.limits)
    if isinstance(data, Image.Image):
        decoded = decode_opened(data, limits, allocate)
    else:
        decoded = decode(data, limits, allocate)
    return turn_upright(pixels.reshape(decoded.shape), decoded.orientation, settings.preprocessing.exif)


def turn_upright(pixels: np.ndarray, orientation: int, exif: str) -> np.ndarray:
    """Return a view of an image turned as its EXIF orientation (1 to 8) says, unless `exif` is "ignore"."""
    if exif == "ignore" or orientation not in UPRIGHT:
        return pixels
    return UPRIGHT[orientation](pixels)


def _upright_size(size: tuple[int, int], orientation: int, exif: str) -> tuple[int, int]:
    """Return (width, height) of an image when it is upright. Orientations from 5 on exchange the sides."""
    width, height = size
    return (height, width) if orientation >= 5 and exif != "ignore" else (width, height)


def crop_for_evaluation(
    image: np.ndarray,
    preprocessing: Preprocessing,
    image_size: tuple[int, int],
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Resize an image until the crop covers `image_size` / crop_pct, and crop the centre, as timm evaluates.

    Args:
        image: uint8 (h, w, 3), or a Pillow image.
        preprocessing: how to crop and resize.
        image_size: (height, width) of the crop, pixels.
        size: (width, height) of the image in its file, where `image` was decoded at a fraction of that; None
            is the size of `image`.

    Returns:
        uint8 (H, W, 3).
    """
    pixels = np.asarray(image)
    height, width = image_size
    if size is None:
        size = (pixels.shape[1], pixels.shape[0])
    resized = _resized(size, image_size, preprocessing)
    corner = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return resize_and_crop(pixels, resized, corner, image_size, preprocessing.interpolation)


def _resized(
    source: tuple[int, int], image_size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[int, int]:
    """Return (width, height) of a resized image, to the pixel as timm has it.

    The image covers image_size / crop_pct with its own aspect ratio, or is squashed to exactly that size. The
    tight side is the target itself: 427 * (235 / 427) is 234.99..., and an image one pixel smaller is another
    crop.

    Args:
        source: (width, height) of the image.
        image_size: (height, width) of the crop.
        preprocessing: crop_pct and crop_mode.
    """
    source_width, source_height = source
    height = math.floor(image_size[0] / preprocessing.crop_pct)
    width = math.floor(image_size[1] / preprocessing.crop_pct)
    if preprocessing.crop_mode == "squash":
        return width, height
    # Square sizes are torchvision's Resize, which rounds down; other sizes are timm's own transform, which
    # rounds.
    to_pixels = math.floor if width == height else round
    if source_width * height >= source_height * width:
        return to_pixels(source_width * height / source_height), height
    return width, to_pixels(source_height * width / source_width)
