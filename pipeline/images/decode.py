"""Encoded bytes -> checked pixels -> patches: the decode stage. Every refusal has a short, stable name.

Images are untrusted: the header is judged before a pixel is decoded, and whatever a decoder raises becomes a row.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.images import codec as decoder
from wordsworth.pipeline.images.codec import DecodeError, Limits, decode
from wordsworth.pipeline.images.resize import window
from wordsworth.pipeline.images.sandbox import Guard, GuardSettings, guard
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.patches import patchify

__all__ = [
    "DECODER",
    "FAST_DECODER",
    "DecodeError",
    "DecodeSettings",
    "decode_stage",
    "decode_unit",
    "fit",
    "open_image",
]

# What decides the pixels, for fingerprints: the number goes up when `wordsworth.pipeline.images.resize_numba` gives others.
DECODER = f"{decoder.DECODER}, loops 1"
FAST_DECODER = f"{DECODER}, JPEG reduced"
Crop = Callable[[np.ndarray], np.ndarray]
# EXIF 2.32, 4.6.4: which side of the scene the stored picture's first row and first column are.
UPRIGHT: dict[int, Crop] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


@dataclass(frozen=True)
class DecodeSettings:
    """image_size: (height, width) that the model takes. max_pixels, max_side: a larger picture is refused by its header.
    timeout: seconds that decoding one image may take. fast: a large JPEG is decoded at a half, a quarter or an eighth of its
    size, never smaller than what it is resized to; the pixels are then not quite timm's."""

    preprocessing: Preprocessing
    image_size: tuple[int, int]
    patch_size: int
    max_pixels: int = 100_000_000
    max_side: int = 65_500
    timeout: float = 30.0
    fast: bool = False

    @property
    def guard(self) -> GuardSettings:
        cover = math.floor(max(self.image_size) / self.preprocessing.crop_pct) if self.fast else 0
        return GuardSettings(self.max_pixels, self.max_side, self.timeout, cover=cover)

    @property
    def patches_shape(self) -> tuple[int, int]:
        """(N, P*P*3) of one image."""
        (height, width), side = self.image_size, self.patch_size
        return (height // side) * (width // side), side * side * 3


def decode_stage(table: pa.Table, settings: DecodeSettings) -> pa.Table:
    """Ray Data's function: a unit of encoded images in, the same unit with patches out."""
    return decode_unit(Unit.from_arrow(table), settings).to_arrow()


def decode_unit(
    unit: Unit, settings: DecodeSettings, crop: Crop | None = None, child: Guard | None = None
) -> Unit:
    """Encoded images in, patches out: uint8 [M, N, P*P*3] of the M samples that could be decoded; the others get an error.

    crop: uint8 (h, w, 3) -> (H, W, 3); the evaluation crop `fit` unless training brings its own. child: where images are decoded;
    this process's own unless a test brings another. Raises UserError if the child cannot be started.
    """
    child = child or guard(settings.guard)
    start = time.perf_counter()
    samples = unit.samples.to_pydict()
    count, side = len(samples["key"]), settings.patch_size
    patches = np.empty((count, *settings.patches_shape), np.uint8)
    widths, heights = [None] * count, [None] * count
    filled = begin = 0

    def take(pixels: np.ndarray, orientation: int, stored: tuple[int, int]) -> None:
        """From the child's memory into the unit, in one go."""
        exif = settings.preprocessing.exif
        pixels, size = upright(pixels, orientation, exif), _turned(stored, orientation, exif)
        widths[row], heights[row] = size
        image = crop(pixels) if crop else fit(pixels, settings.preprocessing, settings.image_size, size)
        patches[filled] = patchify(image, side)

    for row in range(count):
        if samples["error"][row] is not None:
            continue
        end = begin + samples["size"][row]
        try:
            child.decode(unit.payload[begin:end], take)
            filled += 1
        except DecodeError as error:
            samples["error"][row], samples["error_detail"][row] = error.code, str(error)[:500]
        begin = end
    unit.samples = _with_columns(unit.samples, samples, widths, heights)
    unit.payload = patches[:filled]
    unit.seconds["decode"] = time.perf_counter() - start
    return unit


def _with_columns(table: pa.Table, samples: dict, widths: list, heights: list) -> pa.Table:
    for name in ("error", "error_detail"):
        table = table.set_column(
            table.schema.get_field_index(name), name, pa.array(samples[name], pa.string())
        )
    return table.append_column("width", pa.array(widths, pa.int32())).append_column(
        "height", pa.array(heights, pa.int32())
    )


def open_image(data: bytes, settings: DecodeSettings) -> np.ndarray:
    """Bytes -> uint8 (h, w, 3), upright if EXIF orientation is applied, decoded in this process: for images that are trusted.

    Raises DecodeError and nothing else.
    """
    pixels = np.empty(0, np.uint8)

    def room(count: int) -> memoryview:
        nonlocal pixels
        pixels = np.empty(count, np.uint8)
        return memoryview(pixels)

    width, height, orientation, *_ = decode(data, Limits(settings.max_pixels, settings.max_side), room)
    return upright(pixels.reshape(height, width, 3), orientation, settings.preprocessing.exif)


def upright(pixels: np.ndarray, orientation: int, exif: str) -> np.ndarray:
    """A view of the picture turned as EXIF orientation (1 to 8) says, unless `exif` is "ignore"."""
    turn = UPRIGHT.get(orientation) if exif != "ignore" else None
    return pixels if turn is None else turn(pixels)


def _turned(size: tuple[int, int], orientation: int, exif: str) -> tuple[int, int]:
    """The (width, height) of an upright picture."""
    return size[::-1] if orientation >= 5 and exif != "ignore" else size


def fit(
    image: np.ndarray,
    preprocessing: Preprocessing,
    image_size: tuple[int, int],
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Resize so that the crop covers `image_size` / crop_pct, crop the centre: uint8 (H, W, 3), as timm evaluates.

    size: (width, height) that the picture has in its file, where `image` was decoded at a fraction of it.
    """
    pixels = np.asarray(image)
    height, width = image_size
    resized = _resized(size or pixels.shape[1::-1], image_size, preprocessing)
    corner = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return window(pixels, resized, corner, image_size, preprocessing.interpolation)


def _resized(
    source: tuple[int, int], image_size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[int, int]:
    """(width, height) that covers image_size / crop_pct with the source's aspect ratio, or squashed: to the pixel as timm has it.

    The tight side is the target itself: 427 * (235 / 427) is 234.99..., and a picture one pixel smaller is another crop.
    """
    (source_width, source_height), (height, width) = (
        source,
        (math.floor(side / preprocessing.crop_pct) for side in image_size),
    )
    if preprocessing.crop_mode == "squash":
        return width, height
    whole = math.floor if width == height else round  # torchvision's Resize; timm's own for other shapes
    if source_width * height >= source_height * width:
        return whole(source_width * height / source_height), height
    return width, whole(source_height * width / source_width)
