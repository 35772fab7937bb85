"""A window of a resized picture: by Pillow, until that has taken as long as it takes to start what is faster."""

import math
import time

import numpy as np
from PIL import Image

# CPU-seconds that `wordsworth.pipeline.images.resize_numba` takes to load: a process that decodes a few hundred pictures is done before
LOOPS_START = 1.5
LARGE = 4 << 20  # pixels: of a 1x4000 strip the whole resized picture would have hundreds of millions

_taken = 0.0


def start_loops() -> None:
    """What Pillow's time would come to in a long run, at once: for measuring."""
    global _taken
    import wordsworth.pipeline.images.resize_numba  # noqa: F401

    _taken = LOOPS_START


def window(
    pixels: np.ndarray, resized: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], method: str
) -> np.ndarray:
    """What is `size` (height, width) at `corner` (left, top) of the picture at `resized` (width, height).

    pixels: uint8 (h, w, 3); so is what comes back. method: the name of a Pillow filter, such as "bicubic". Pillow and
    `wordsworth.pipeline.images.resize_numba` give the same pixels, bit for bit.
    """
    global _taken
    (height, width), (left, top) = size, corner
    if (_taken < LOOPS_START or method == "nearest") and math.prod(resized) <= LARGE:
        begin = time.thread_time()
        whole = Image.fromarray(np.ascontiguousarray(pixels)).resize(
            resized, Image.Resampling[method.upper()]
        )
        found = np.asarray(whole.crop((left, top, left + width, top + height)))
        _taken += time.thread_time() - begin
        return found
    from wordsworth.pipeline.images import resize_numba as loops

    if method == "nearest":
        to_x, to_y = pixels.shape[1] / resized[0], pixels.shape[0] / resized[1]
        return loops.region(
            pixels, (left * to_x, top * to_y, (left + width) * to_x, (top + height) * to_y), size, method
        )
    return loops.window(pixels, resized, corner, size, method)
