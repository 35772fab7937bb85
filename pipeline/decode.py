"""Encoded bytes -> checked pixels -> patches: the decode stage. Every refusal has a short, stable name.

Images are untrusted: the header is judged before a pixel is decoded, and whatever a decoder raises becomes a row.
"""

import io
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL
import pyarrow as pa
from PIL import Image

from pipeline.unit import Unit
from vit_model.config import Preprocessing
from vit_model.patches import patchify

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
DECODER = f"Pillow {PIL.__version__}"
# 16 bits are shifted to 8 (Pillow's own conversion clips them); float and 32-bit pictures have no agreed range.
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
UNSUPPORTED = ("F", "I")
EXIF_ORIENTATION = 0x0112
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


class DecodeError(Exception):
    """An image that gives no pixels. `code` is what the column `error` says, the message is `error_detail`."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True)
class DecodeSettings:
    """image_size: (height, width) that the model takes. max_pixels: a larger picture is refused by its header."""

    preprocessing: Preprocessing
    image_size: tuple[int, int]
    patch_size: int
    max_pixels: int = 100_000_000

    @property
    def patches_shape(self) -> tuple[int, int]:
        """(N, P*P*3) of one image."""
        (height, width), side = self.image_size, self.patch_size
        return (height // side) * (width // side), side * side * 3


def decode_stage(table: pa.Table, settings: DecodeSettings) -> pa.Table:
    """Ray Data's function: a unit of encoded images in, the same unit with patches out."""
    return decode_unit(Unit.from_arrow(table), settings).to_arrow()


def decode_unit(unit: Unit, settings: DecodeSettings, crop: Crop | None = None) -> Unit:
    """Encoded images in, patches out: uint8 [M, N, P*P*3] of the M samples that could be decoded; the others get an error.

    crop: RGB picture -> uint8 (H, W, 3); the evaluation crop `fit` unless training brings its own.
    """
    crop = crop or (lambda image: fit(image, settings.preprocessing, settings.image_size))
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
            image = open_image(unit.payload[begin:end].tobytes(), settings)
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
    """Bytes -> an RGB picture, upright if EXIF orientation is applied. Raises DecodeError and nothing else."""
    if not data:
        raise DecodeError("empty", "0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what we judge ourselves
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _judge(image, settings)
            image.load()
            return _upright(_rgb(image), image, settings.preprocessing.exif)
    except DecodeError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DecodeError("not_an_image", f"{len(data)} bytes that begin with {data[:8]!r}") from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too_many_pixels", str(error)) from error
    except Exception as error:  # a decoder may raise anything: struct.error, KeyError, SyntaxError, ...
        truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise DecodeError("truncated" if truncated else "corrupt", f"{type(error).__name__}: {error}") from error


def _judge(image: Image.Image, settings: DecodeSettings) -> None:
    """The header alone: size and mode."""
    width, height = image.size
    if width * height > settings.max_pixels:
        raise DecodeError("too_many_pixels", f"{width}x{height}, the limit is {settings.max_pixels} pixels")
    if image.mode in UNSUPPORTED:
        raise DecodeError("unsupported_mode", f"{image.format} of mode {image.mode} has no agreed range of values")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _upright(rgb: Image.Image, original: Image.Image, exif: str) -> Image.Image:
    if exif == "ignore":
        return rgb
    try:
        turn = UPRIGHT.get(original.getexif().get(EXIF_ORIENTATION))
    except Exception:  # broken EXIF says nothing about the pixels
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


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
