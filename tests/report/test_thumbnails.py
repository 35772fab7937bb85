"""Small images: upright, of the right shape and colour, decoded in the sandbox alone."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.builders import photo
from tests.support.runs import made_up_plan
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.images.sandbox import close_process_sandbox
from wordsworth.pipeline.report.thumbnails import ThumbnailSettings, thumbnail

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="module", autouse=True)
def one_sandbox():
    yield
    close_process_sandbox()


def pixels_of(small) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(small.data)).convert("RGB")).astype(int)


def halves(size: tuple[int, int], orientation: int | None = None, kind: str = "PNG") -> bytes:
    """Return an image whose left half is red and whose right half is blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("size", [(1200, 800), (800, 1200), (5000, 40)])
def test_a_small_image_keeps_the_shape_and_the_colours(size, format):
    small = thumbnail(halves(size), 120, ThumbnailSettings(format=format))
    assert max(small.width, small.height) == 120
    assert min(small.width, small.height) == max(1, round(120 * min(size) / max(size)))
    pixels = pixels_of(small)
    assert pixels.shape == (small.height, small.width, 3)
    assert np.abs(pixels[small.height // 2, 8] - RED).max() < 40
    assert np.abs(pixels[small.height // 2, -8] - BLUE).max() < 40


def test_a_large_image_becomes_what_pillow_makes_of_it():
    data = photo(3, (1600, 1200), "PNG")
    expected = Image.open(io.BytesIO(data)).resize((100, 75), Image.Resampling.LANCZOS)
    found = pixels_of(thumbnail(data, 100, ThumbnailSettings(quality=95)))
    assert np.abs(found - np.asarray(expected).astype(int)).mean() < 3


def test_an_image_is_never_enlarged():
    assert thumbnail(halves((30, 20)), 120, ThumbnailSettings())[1:] == (30, 20)


def test_images_are_turned_upright_as_in_the_run():
    turned = halves((600, 300), orientation=6, kind="JPEG")  # as stored left is red; upright the top is
    small = thumbnail(turned, 60, ThumbnailSettings())
    assert (small.width, small.height) == (30, 60)
    assert np.abs(pixels_of(small)[6, 15] - RED).max() < 60
    ignoring = made_up_plan({"preprocessing": {"exif": "ignore"}})
    assert thumbnail(turned, 60, ThumbnailSettings.of(ignoring))[1:] == (60, 30)
    assert ThumbnailSettings.of(made_up_plan({})).exif == "apply"


def test_what_cannot_be_decoded_is_a_reason_of_one_line():
    assert thumbnail(b"<script>alert(1)</script>", 60, ThumbnailSettings()).startswith("not_an_image: ")
    assert thumbnail(photo(1)[:300], 60, ThumbnailSettings()).startswith("truncated: ")
    few = ThumbnailSettings(limits=DecodeLimits(max_pixels=1000, max_bytes=10_000))
    assert thumbnail(photo(1), 60, few).startswith("too_many_pixels: ")
    assert thumbnail(b"x" * 10_001, 60, few) == "too_many_bytes: 10001 bytes"
