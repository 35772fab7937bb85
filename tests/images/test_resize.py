"""resize: Pillow's pixels, bit for bit, for every filter, shape and region, without Pillow's time."""

import numpy as np
import pytest
from PIL import Image

from wordsworth.pipeline.images import resize, resize_numba
from wordsworth.pipeline.images.resize import NUMBA_LOAD_S, WarmUp, resize_and_crop
from wordsworth.pipeline.images.resize_numba import FILTERS, resize_region

METHODS = [*FILTERS, "nearest"]


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """What forgives no error of the weights, of rounding, or of the order of the passes."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(pixels: np.ndarray, size: tuple[int, int], method: str, box=None) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling[method.upper()], box)).astype(int)


def whole(pixels: np.ndarray) -> tuple[int, int, int, int]:
    return (0, 0, pixels.shape[1], pixels.shape[0])


@pytest.mark.parametrize("method", METHODS)
def test_any_shape_to_any_shape_is_pillows_picture(method):
    rng = np.random.default_rng(1)
    for number in range(80):
        width, height, to_width, to_height = (int(side) for side in rng.integers(1, 300, 4))
        pixels = noise(width, height, number)
        found = resize_region(pixels, whole(pixels), (to_height, to_width), method)
        assert np.array_equal(found, by_pillow(pixels, (to_width, to_height), method)), (
            (width, height),
            (to_width, to_height),
        )


@pytest.mark.parametrize(
    ("width", "height"), [(400, 534), (534, 400), (300, 3000), (3000, 300), (260, 1024), (1024, 260)]
)
def test_the_order_of_the_passes_is_pillows(width, height, monkeypatch):
    """Pillow rounds in between: in the other order a tenth of the pixels differ."""
    pixels = noise(width, height)
    size = (
        (256, max(1, round(256 * height / width)))
        if width < height
        else (max(1, round(256 * width / height)), 256)
    )
    assert np.array_equal(
        resize_region(pixels, whole(pixels), size[::-1]), by_pillow(pixels, size, "bicubic")
    )
    pillows = resize_numba._columns_first
    monkeypatch.setattr(resize_numba, "_columns_first", lambda *sides: not pillows(*sides))
    assert (
        resize_region(pixels, whole(pixels), size[::-1]) != by_pillow(pixels, size, "bicubic")
    ).mean() > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_a_window_is_cut_out_of_the_whole_resized_picture_by_either_way(method, monkeypatch):
    rng = np.random.default_rng(2)
    for number in range(40):
        source_width, source_height, width, height = (int(side) for side in rng.integers(8, 400, 4))
        pixels = noise(source_width, source_height, number)
        left, top = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        size = (height - top - height // 4, width - left - width // 4)
        arguments = (pixels, (width, height), (left, top), size, method)
        monkeypatch.setattr(resize, "_warm_up", WarmUp())
        by_pillow = resize_and_crop(*arguments)
        monkeypatch.setattr(resize, "_warm_up", WarmUp(0.0))
        assert np.array_equal(resize_and_crop(*arguments), by_pillow) and by_pillow.shape == (*size, 3)


def test_pillow_is_left_when_it_has_taken_its_time_and_for_what_is_long_and_thin(monkeypatch):
    calls = []
    monkeypatch.setattr(resize_numba, "resize_and_crop", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(resize, "_warm_up", WarmUp())
    for _ in range(3):
        resize_and_crop(noise(640, 480), (320, 240), (0, 0), (224, 224), "bicubic")
    assert not calls and 0 < resize._warm_up.left_s < NUMBA_LOAD_S
    resize_and_crop(noise(1, 4000), (248, 992_000), (12, 495_888), (224, 224), "bicubic")
    assert len(calls) == 1
    resize.end_warm_up()
    resize_and_crop(noise(640, 480), (320, 240), (0, 0), (224, 224), "bicubic")
    assert len(calls) == 2


def test_what_is_not_contiguous_and_what_cannot_be_written_is_read_as_it_is():
    pixels = noise(90, 70)
    pixels.setflags(write=False)
    for view in (pixels[:, ::-1], pixels[::-1], pixels.transpose(1, 0, 2)):
        plain = np.ascontiguousarray(view)
        assert np.array_equal(
            resize_region(view, whole(view), (32, 32)), resize_region(plain, whole(plain), (32, 32))
        )


def test_one_colour_stays_that_colour_at_every_edge():
    for width, height in ((1, 1), (1, 500), (500, 1), (7, 3), (33, 65)):
        for method in METHODS:
            pixels = np.full((height, width, 3), (1, 128, 254), np.uint8)
            assert (resize_region(pixels, whole(pixels), (16, 40), method) == (1, 128, 254)).all()
