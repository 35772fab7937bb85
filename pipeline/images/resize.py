"""Resize and crop an image in one step, with Pillow or with Numba, which give the same pixels bit for bit.

The Numba version is three times as fast, but a process takes 1.5 CPU-seconds to load it. So a process warms
up first: its images are resized by Pillow until Pillow has taken that long, and by the Numba version from
then on. A process that decodes a few hundred images is done before.
"""

import math
import time

import numpy as np
from PIL import Image

NUMBA_LOAD_S = 1.5  # CPU-seconds that a process takes to load `images.resize_numba`
MAX_WHOLE_PIXELS = (
    4 << 20
)  # of a resized image that Pillow makes; a strip of 1x4000 would become hundreds of millions


class WarmUp:
    """Say whether this process still warms up, which means that Pillow resizes its images.

    Attributes:
        left_s: CPU-seconds that Pillow may still take; none are left when the warm-up is over.
    """

    def __init__(self, length_s: float = NUMBA_LOAD_S):
        self.left_s = length_s

    def is_over(self) -> bool:
        """Return whether the Numba version is worth its loading time."""
        return self.left_s <= 0

    def count(self, cpu_seconds: float) -> None:
        """Count CPU-seconds that Pillow has taken."""
        self.left_s -= cpu_seconds


_warm_up = WarmUp()


def end_warm_up() -> None:
    """Load the Numba version, and use it from the next image on: for measurements of what a long run does."""
    import wordsworth.pipeline.images.resize_numba  # noqa: F401

    _warm_up.left_s = 0.0


def resize_and_crop(
    pixels: np.ndarray, resized: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], method: str
) -> np.ndarray:
    """Return a rectangle of the resized image.

    Args:
        pixels: uint8 (h, w, 3).
        resized: (width, height) that the whole image is resized to.
        corner: (left, top) of the rectangle in the resized image.
        size: (height, width) of the rectangle.
        method: name of a Pillow filter, such as "bicubic".

    Returns:
        uint8 (height, width, 3).
    """
    # "nearest" costs Pillow so little that it is never worth to load Numba.
    use_pillow = not _warm_up.is_over() or method == "nearest"
    if use_pillow and math.prod(resized) <= MAX_WHOLE_PIXELS:
        return _by_pillow(pixels, resized, corner, size, method)
    return _by_numba(pixels, resized, corner, size, method)


def _by_pillow(
    pixels: np.ndarray, resized: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], method: str
) -> np.ndarray:
    begin = time.thread_time()
    left, top = corner
    height, width = size
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize(resized, Image.Resampling[method.upper()])
    rectangle = np.asarray(image.crop((left, top, left + width, top + height)))
    _warm_up.count(time.thread_time() - begin)
    return rectangle


def _by_numba(
    pixels: np.ndarray, resized: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], method: str
) -> np.ndarray:
    # Imported late: most processes never get here.
    from wordsworth.pipeline.images import resize_numba

    if method != "nearest":
        return resize_numba.resize_and_crop(pixels, resized, corner, size, method)
    left, top = corner
    height, width = size
    to_x = pixels.shape[1] / resized[0]
    to_y = pixels.shape[0] / resized[1]
    box = (left * to_x, top * to_y, (left + width) * to_x, (top + height) * to_y)
    return resize_numba.resize_region(pixels, box, size, method)
