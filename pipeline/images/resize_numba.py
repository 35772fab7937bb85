"""Pillow's antialiased resampling of a region, straight from the decoder's memory: bit for bit, in a third of the time.

Every output pixel is a weighted sum of the input pixels under a filter that is stretched with the scale when it shrinks, and cut
off at the picture's edge: one pass along the rows and one along the columns, with weights of 22 bits, rounded to uint8 in between.
Pillow's C code takes a pixel at a time, in four bytes; here a tile of rows is turned first, so that 192 sums run side by side in
the processor's vectors. Numba compiles the loops once a machine and keeps them; to load them takes a process 1.5 CPU-seconds, which
is why `wordsworth.pipeline.images.resize` does without them at first.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

TILE = 64  # rows at a time: three colours of them are twelve vectors of 16 sums
BITS = 22  # of a weight; 8 of a pixel, and 2 for the sum, make an int32
HALF = np.int32(1 << (BITS - 1))

Box = tuple[float, float, float, float]


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _hamming(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


class Filter(NamedTuple):
    weight: Callable[[np.ndarray], np.ndarray]
    support: float  # beyond so many pixels of the coarser side the weight is 0


FILTERS = {
    "box": Filter(_box, 0.5),
    "bilinear": Filter(_triangle, 1.0),
    "hamming": Filter(_hamming, 1.0),
    "bicubic": Filter(_cubic, 2.0),
    "lanczos": Filter(_lanczos, 3.0),
}


class Axis(NamedTuple):
    """first, taps: int32 (n,), the input pixels of each output pixel. weights: int32 (n, most taps), whose rows sum to 2**BITS."""

    first: np.ndarray
    taps: np.ndarray
    weights: np.ndarray


@functools.lru_cache(maxsize=256)  # pictures of one size come in rows; an entry has some kilobytes
def axis(size: int, begin: float, scale: float, first_out: int, count: int, method: str) -> Axis:
    """How `count` output pixels from `first_out` on draw on the `size` of a side; each is `scale` long, the 0th at `begin`."""
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


def window(
    pixels: np.ndarray, resized: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], method: str
) -> np.ndarray:
    """As `wordsworth.pipeline.images.resize.window`. method: a key of FILTERS."""
    (height, width), (rows, columns) = pixels.shape[:2], size
    across = axis(width, 0.0, width / resized[0], corner[0], columns, method)
    down = axis(height, 0.0, height / resized[1], corner[1], rows, method)
    return _resample(pixels, across, down, resized)


def region(pixels: np.ndarray, box: Box, size: tuple[int, int], method: str = "bicubic") -> np.ndarray:
    """The region `box` (left, top, right, bottom in pixels) of uint8 (h, w, 3), resized: uint8 (height, width, 3).

    size: (height, width). method: a key of FILTERS, or "nearest".
    """
    (height, width), (rows, columns), (left, top, right, bottom) = pixels.shape[:2], size, box
    if method == "nearest":
        return pixels[_nearest(height, top, bottom, rows)][:, _nearest(width, left, right, columns)]
    to_x, to_y = (right - left) / columns, (bottom - top) / rows
    across, down = axis(width, left, to_x, 0, columns, method), axis(height, top, to_y, 0, rows, method)
    return _resample(pixels, across, down, (round(width / to_x), round(height / to_y)))


def _resample(pixels: np.ndarray, across: Axis, down: Axis, resized: tuple[int, int]) -> np.ndarray:
    """Both passes. resized: (width, height) of the whole picture at this scale."""
    pixels, rows, columns = np.ascontiguousarray(pixels), len(down.first), len(across.first)
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
    step = (end - begin) / count
    places = np.add.accumulate(
        np.r_[begin + step * 0.5, np.full(count - 1, step)]
    )  # Pillow adds up, and so rounds
    return np.minimum(places.astype(np.int64), size - 1)


def _columns_first(width: int, height: int, to_width: int, to_height: int) -> bool:
    """Whether Pillow shrinks the height of a whole picture first (found by trying): rounding in between depends on it."""
    return height > to_height and height - to_height > 2 * (width - to_width)


def _reach(along: Axis) -> tuple[int, int]:
    return int(along.first[0]), int((along.first + along.taps).max())


_options = {"error_model": "numpy", "nogil": True, "cache": True}
_picture, _line, _table = numba.uint8[:, :, ::1], numba.int32[::1], numba.int32[:, ::1]
_read_only = numba.types.Array(numba.uint8, 3, "C", readonly=True)
_pass = numba.njit([(_read_only, numba.int64, numba.int64, _line, _line, _table, _picture)], **_options)
_part = numba.njit(**_options)


@_part
def _swap(a, b, shift, mask):
    """Exchange the bytes of `a` that are `shift` bits above those of `b` in the mask."""
    other = ((a >> shift) ^ b) & mask
    return a ^ (other << shift), b ^ other


@_part
def _turn(source, top, left, rows, columns, target):
    """target[x, y] = source[top + y, left + x], both uint8; rows beyond `rows` repeat the last.

    Eight by eight bytes are turned in eight words: three times, halves of them change places (Hacker's Delight, 7-3).
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
def _rows(source, skip, origin, first, taps, weights, out):
    """Along the rows, of which `skip` are left out; `origin`: the first column of `source`, as `first` counts columns."""
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
        _turn(lines, skip + top, begin, count, length, tile)
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
        _turn(done, 0, 0, done.shape[0], TILE, back)
        for y in range(count):
            target[top + y] = back[y, : 3 * width]


@_pass
def _columns(source, skip, origin, first, taps, weights, out):
    """Along the columns, of which `skip` are left out; `origin`: the first row of `source`, as `first` counts rows."""
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
