"""Encoded bytes -> checked pixels -> patches: the decode stage. Every refusal has a short, stable name.

Images are untrusted: the header is judged before a pixel is decoded, and whatever a decoder raises becomes a row.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.decoder import DECODER, DecodeError, Limits, decode
from pipeline.guard import Guard, GuardSettings, guard
from pipeline.unit import Unit
from vit_model.config import Preprocessing
from vit_model.patches import patchify

__all__ = ["DECODER", "DecodeError", "DecodeSettings", "decode_stage", "decode_unit", "fit", "open_image", "resize_box"]

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Crop = Callable[[Image.Image], np.ndarray]


@dataclass(frozen=True)
class DecodeSettings:
    """image_size: (height, width) that the model takes. max_pixels, max_side: a larger picture is refused by its header.
    timeout: seconds that decoding one image may take."""

    preprocessing: Preprocessing
    image_size: tuple[int, int]
    patch_size: int
    max_pixels: int = 100_000_000
    max_side: int = 65_500
    timeout: float = 30.0

    @property
    def patches_shape(self) -> tuple[int, int]:
        """(N, P*P*3) of one image."""
        (height, width), side = self.image_size, self.patch_size
        return (height // side) * (width // side), side * side * 3


def decode_stage(table: pa.Table, settings: DecodeSettings) -> pa.Table:
    """Ray Data's function: a unit of encoded images in, the same unit with patches out."""
    return decode_unit(Unit.from_arrow(table), settings).to_arrow()


def decode_unit(unit: Unit, settings: DecodeSettings, crop: Crop | None = None, child: Guard | None = None) -> Unit:
    """Encoded images in, patches out: uint8 [M, N, P*P*3] of the M samples that could be decoded; the others get an error.

    crop: RGB picture -> uint8 (H, W, 3); the evaluation crop `fit` unless training brings its own. child: where images are decoded;
    this process's own unless a test brings another. Raises UserError if the child cannot be started.
    """
    crop = crop or (lambda image: fit(image, settings.preprocessing, settings.image_size))
    child = child or guard(GuardSettings(settings.max_pixels, settings.max_side, settings.timeout))
    start = time.perf_counter()
    samples = unit.samples.to_pydict()
    count, side = len(samples["key"]), settings.patch_size
    patches = np.empty((count, *settings.patches_shape), np.uint8)
    widths, heights = [None] * count, [None] * count
    filled = begin = 0
    for row in range(count):
        if samples["error"][row] is not None:
            continue
        end = begin + samples["size"][row]
        try:
            image = upright(*child.decode(unit.payload[begin:end]), settings.preprocessing.exif)
            widths[row], heights[row] = image.size
            patches[filled] = patchify(crop(image), side)
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
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(samples[name], pa.string()))
    return table.append_column("width", pa.array(widths, pa.int32())).append_column("height", pa.array(heights, pa.int32()))


def open_image(data: bytes, settings: DecodeSettings) -> Image.Image:
    """Bytes -> an RGB picture, upright if EXIF orientation is applied, decoded in this process: for images that are trusted.

    Raises DecodeError and nothing else.
    """
    pixels = memoryview(b"")

    def room(count: int) -> memoryview:
        nonlocal pixels
        pixels = memoryview(bytearray(count))
        return pixels

    width, height, orientation, _ = decode(data, Limits(settings.max_pixels, settings.max_side), room)
    return upright(Image.frombytes("RGB", (width, height), pixels), orientation, settings.preprocessing.exif)


def upright(image: Image.Image, orientation: int, exif: str) -> Image.Image:
    """The picture turned as EXIF orientation (1 to 8) says, unless `exif` is "ignore"."""
    turn = UPRIGHT.get(orientation) if exif != "ignore" else None
    return image if turn is None else image.transpose(turn)


def fit(image: Image.Image, preprocessing: Preprocessing, image_size: tuple[int, int]) -> np.ndarray:
    """Resize so that the crop covers `image_size` / crop_pct, crop the centre: uint8 (H, W, 3), as timm evaluates.

    Only the region that the crop keeps is resampled, straight from the source: half the work, and no intermediate picture (a 1x4000
    strip would blow up to hundreds of megapixels). The difference to resize-then-crop is rounding: 0.001 of 255 in the mean, 0.2
    for tall pictures, of which Pillow may resample the region in another order than the whole.
    """
    (height, width), (source_width, source_height) = image_size, image.size
    resized_width, resized_height = _resized(image.size, image_size, preprocessing)
    left, top = round((resized_width - width) / 2), round((resized_height - height) / 2)
    to_x, to_y = source_width / resized_width, source_height / resized_height
    box = (left * to_x, top * to_y, (left + width) * to_x, (top + height) * to_y)
    return resize_box(image, box, preprocessing, image_size)


def _resized(source: tuple[int, int], image_size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) that covers image_size / crop_pct with the source's aspect ratio, or squashed: to the pixel as timm has it.

    The tight side is the target itself: 427 * (235 / 427) is 234.99..., and a picture one pixel smaller is another crop.
    """
    (source_width, source_height), (height, width) = source, (math.floor(side / preprocessing.crop_pct) for side in image_size)
    if preprocessing.crop_mode == "squash":
        return width, height
    whole = math.floor if width == height else round  # torchvision's Resize; timm's own for other shapes
    if source_width * height >= source_height * width:
        return whole(source_width * height / source_height), height
    return width, whole(source_height * width / source_width)


def resize_box(
    image: Image.Image, box: tuple[float, float, float, float], preprocessing: Preprocessing, image_size: tuple[int, int]
) -> np.ndarray:
    """The region `box` (left, top, right, bottom in pixels of the source) at `image_size`: uint8 (H, W, 3)."""
    method = getattr(Image.Resampling, preprocessing.interpolation.upper())
    return np.asarray(image.resize(image_size[::-1], method, box=box))
