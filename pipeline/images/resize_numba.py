"""Resize images as Pillow does, bit for bit, in a third of the time, straight from the decoder's memory.

Every output pixel is a weighted sum of input pixels. The weights are a filter's, which is stretched with the
scale when the image shrinks, and cut off at the edge of the image. One pass goes along the rows and one along
the columns, with weights of 22 bits, and values are rounded to uint8 in between. Pillow's C code computes one
pixel at a time, in four bytes. Here a tile of rows is transposed first, so that 192 sums run side by side in
the processor's vectors. Numba compiles the loops once per machine and caches the
code on disk. A process takes 1.5 CPU-seconds to load the code, so `images.resize` begins with Pillow.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

TILE = 64  # rows computed at a time: with three colours, twelve vectors of 16 sums
BITS = 22  # bits of a weight; with 8 bits of a pixel and 2 for the sum they fill an int32
HALF = np.int32(1 << (BITS - 1))  # added before the shift, so that sums are rounded

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _hamming(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return Keys' cubic with a = -0.5."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


class Filter(NamedTuple):
    """Hold a filter.

    Attributes:
        weight: the weight at a distance from the centre.
        support: distance beyond which the weight is 0. One unit is a pixel of the input, or of the output if
            that is coarser.
    """

    weight: Callable[[np.ndarray], np.ndarray]
    support: float


FILTERS = {
    "box": Filter(_box, 0.5),
    "bilinear": Filter(_triangle, 1.0),
    "hamming": Filter(_hamming, 1.0),
    "bicubic": Filter(_cubic, 2.0),
    "lanczos": Filter(_lanczos, 3.0),
}


class Axis(NamedTuple):
    """Say how each output pixel of one side is summed up.

    Attributes:
        first: int32 (n,), the first input pixel of each output pixel.
        taps: int32 (n,), number of input pixels of each output pixel.
        weights: int32 (n, largest number of taps); each row sums to 2**BITS.
    """

    first: np.ndarray
    taps: np.ndarray
    weights: np.ndarray


@functools.lru_cache(maxsize=256)  # images of one size often follow each other; an entry has some kilobytes
def axis(size: int, begin: float, scale: float, first_out: int, count: int, method: str) -> Axis:
    """Return how the output pixels of one side are summed up.

    Args:
        size: input pixels of the side.
        begin: where output pixel 0 begins, in input pixels.
        scale: length of an output pixel, in input pixels.
        first_out: the first output pixel that is wanted.
        count: number of output pixels that are wanted.
        method: a key of FILTERS.
    """
    stretch = max(scale, 1.0)
    support = FILTERS[method].support * stretch
    centres = begin + (np.arange(first_out, first_out + count) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((centres + support + 0.5).astype(np.int64), size)
    pixels = first[:, None] + np.arange((stop - first).max())
    weights = FILTERS[method].weight((pixels - centres[:, None] + 0.5) / stretch)
    weights[pixels >= stop[:, None]] = 0
    weights *= (1 << BITS) / weights.sum(1, keepdims=True)
    rounded = np.trunc(weights + np.copysign(0.5, weights))
    return Axis(
        first.astype(np.int32), (stop - first).astype(np.int32), np.ascontiguousarray(rounded, np.int32)
    )


def resize_and_crop(
    pixels: np.ndarray, resized: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], method: str
) -> np.ndarray:
    """Return a rectangle of the resized image: `images.resize.resize_and_crop` for the keys of FILTERS."""
    height, width = pixels.shape[:2]
    rows, columns = size
    across = axis(width, 0.0, width / resized[0], corner[0], columns, method)
    down = axis(height, 0.0, height / resized[1], corner[1], rows, method)
    return _resample(pixels, across, down, resized)


def resize_region(pixels: np.ndarray, box: Box, size: tuple[int, int], method: str = "bicubic") -> np.ndarray:
    """Return a region of the image, resized.

    Args:
        pixels: uint8 (h, w, 3).
        box: the region.
        size: (height, width) to resize to.
        method: a key of FILTERS, or "nearest".

    Returns:
        uint8 (height, width, 3).
    """
    height, width = pixels.shape[:2]
    rows, columns = size
    left, top, right, bottom = box
    if method == "nearest":
        return pixels[_nearest(height, top, bottom, rows)][:, _nearest(width, left, right, columns)]
    to_x = (right - left) / columns
    to_y = (bottom - top) / rows
    across = axis(width, left, to_x, 0, columns, method)
    down = axis(height, top, to_y, 0, rows, method)
    return _resample(pixels, across, down, (round(width / to_x), round(height / to_y)))


def _resample(pixels: np.ndarray, across: Axis, down: Axis, resized: tuple[int, int]) -> np.ndarray:
    """Return the pixels after both passes.

    Args:
        pixels: uint8 (h, w, 3).
        across: the sums along the rows.
        down: the sums along the columns.
        resized: (width, height) of the whole image at this scale.
    """
    pixels = np.ascontiguousarray(pixels)
    rows = len(down.first)
    columns = len(across.first)
    out = np.empty((rows, columns, 3), np.uint8)
    if _columns_first(pixels.shape[1], pixels.shape[0], *resized):
        begin, end = _reach(across)
        between = np.empty((rows, end - begin, 3), np.uint8)
        _columns(pixels, begin, 0, *down, between)
        _rows(between, 0, begin, *across, out)
    else:
        begin, end = _reach(down)
        between = np.empty((end - begin, columns, 3), np.uint8)
        _rows(pixels, begin, 0, *across, between)
        _columns(between, 0, begin, *down, out)
    return out


def _nearest(size: int, begin: float, end: float, count: int) -> np.ndarray:
    """Return the input pixel of each output pixel of one side."""
    step = (end - begin) / count
    # Pillow adds the steps up one by one, with the rounding errors of this.
    places = np.add.accumulate(np.r_[begin + step * 0.5, np.full(count - 1, step)])
    return np.minimum(places.astype(np.int64), size - 1)


def _columns_first(width: int, height: int, to_width: int, to_height: int) -> bool:
    """Return whether Pillow shrinks the height of a whole image first, and rounds in between.

    The rule was found by trying.
    """
    return height > to_height and height - to_height > 2 * (width - to_width)


def _reach(along: Axis) -> tuple[int, int]:
    """Return the first input pixel that is needed, and the one behind the last."""
    return int(along.first[0]), int((along.first + along.taps).max())


_options = {"error_model": "numpy", "nogil": True, "cache": True}
_image = numba.uint8[:, :, ::1]
_line = numba.int32[::1]
_table = numba.int32[:, ::1]
_read_only = numba.types.Array(numba.uint8, 3, "C", readonly=True)
_pass = numba.njit([(_read_only, numba.int64, numba.int64, _line, _line, _table, _image)], **_options)
_part = numba.njit(**_options)


@_part
def _swap(a: np.uint64, b: np.uint64, shift: np.uint64, mask: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Exchange the masked bytes of `b` with the bytes of `a` that are `shift` bits higher."""
    other = ((a >> shift) ^ b) & mask
    return a ^ (other << shift), b ^ other


@_part
def _transpose(source: np.ndarray, top: int, left: int, rows: int, columns: int, target: np.ndarray) -> None:
    """Set target[x, y] to source[top + y, left + x], both uint8. Rows beyond `rows` repeat the last one.

    Eight by eight bytes are transposed in eight words: halves of the words change places three times
    (Hacker's Delight, 7-3).
    """
    four, two, one = np.uint64(0xFFFFFFFF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00FF00FF00FF00FF)
    b4, b2, b1 = np.uint64(32), np.uint64(16), np.uint64(8)
    whole, last = columns // 8, top + rows - 1
    squares = np.empty((8, whole), np.uint64)
    for y in range(0, target.shape[1], 8):
        for n in range(8):
            squares[n] = source[min(top + y + n, last)][left : left + 8 * whole].view(np.uint64)
        for x in range(whole):
            r0, r4 = _swap(squares[0, x], squares[4, x], b4, four)
            r1, r5 = _swap(squares[1, x], squares[5, x], b4, four)
            r2, r6 = _swap(squares[2, x], squares[6, x], b4, four)
            r3, r7 = _swap(squares[3, x], squares[7, x], b4, four)
            r0, r2 = _swap(r0, r2, b2, two)
            r1, r3 = _swap(r1, r3, b2, two)
            r4, r6 = _swap(r4, r6, b2, two)
            r5, r7 = _swap(r5, r7, b2, two)
            squares[0, x], squares[1, x] = _swap(r0, r1, b1, one)
            squares[2, x], squares[3, x] = _swap(r2, r3, b1, one)
            squares[4, x], squares[5, x] = _swap(r4, r5, b1, one)
            squares[6, x], squares[7, x] = _swap(r6, r7, b1, one)
        wide = target.view(np.uint64)
        for x in range(whole):
            for n in range(8):
                wide[8 * x + n, y // 8] = squares[n, x]
        for x in range(8 * whole, columns):
            for n in range(8):
                target[x, y + n] = source[min(top + y + n, last), left + x]


@_pass
def _rows(  # noqa: PLR0913 - a compiled loop takes plain arrays and numbers
    source: np.ndarray,
    skip: int,
    origin: int,
    first: np.ndarray,
    taps: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Sum up along the rows.

    `skip` rows of `source` are left out. `origin` is the first column of `source`, as `first` counts columns.
    """
    height, width = out.shape[0], out.shape[1]
    begin = 3 * (first[0] - origin)
    length = 3 * (first[width - 1] + taps[width - 1] - origin) - begin
    lines, target = source.reshape(source.shape[0], -1), out.reshape(height, -1)
    tile = np.empty((length, TILE), np.uint8)
    done = np.empty((-(-3 * width // 8) * 8, TILE), np.uint8)
    back = np.empty((TILE, done.shape[0]), np.uint8)
    flat, result = tile.reshape(-1), done.reshape(-1)
    sums = np.empty(3 * TILE, np.int32)
    for top in range(0, height, TILE):
        count = min(TILE, height - top)
        _transpose(lines, skip + top, begin, count, length, tile)
        for x in range(width):
            at = (3 * (first[x] - origin) - begin) * TILE
            sums[:] = HALF
            for tap in range(taps[x]):
                weight = weights[x, tap]
                column = flat[at + 3 * TILE * tap : at + 3 * TILE * (tap + 1)]
                for n in range(3 * TILE):
                    sums[n] += weight * np.int32(column[n])
            put = result[3 * TILE * x : 3 * TILE * (x + 1)]
            for n in range(3 * TILE):
                put[n] = np.uint8(min(max(sums[n] >> BITS, 0), 255))
        _transpose(done, 0, 0, done.shape[0], TILE, back)
        for y in range(count):
            target[top + y] = back[y, : 3 * width]


@_pass
def _columns(  # noqa: PLR0913 - a compiled loop takes plain arrays and numbers
    source: np.ndarray,
    skip: int,
    origin: int,
    first: np.ndarray,
    taps: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Sum up along the columns.

    `skip` columns of `source` are left out. `origin` is the first row of `source`, as `first` counts rows.
    """
    height, length = out.shape[0], 3 * out.shape[1]
    sums = np.empty(length, np.int32)
    for y in range(height):
        sums[:] = HALF
        for tap in range(taps[y]):
            weight = weights[y, tap]
            row = source[first[y] - origin + tap].reshape(-1)[3 * skip : 3 * skip + length]
            for x in range(length):
                sums[x] += weight * np.int32(row[x])
        line = out[y].reshape(-1)
        for x in range(length):
            line[x] = np.uint8(min(max(sums[x] >> BITS, 0), 255))
