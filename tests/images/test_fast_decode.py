"""--fast-decode: a large JPEG is decoded at a fraction of its size, and looks the same."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.support.samples import encoded, photo, units_of, write_tar
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images import codec
from wordsworth.pipeline.images.codec import Limits, decode, reduced_shape
from wordsworth.pipeline.images.decode import DecodeSettings, crop_for_evaluation, decode_unit, open_image
from wordsworth.pipeline.labeling.plan import asked_for, make_plan, refuse_another_run
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig

EXACT = DecodeSettings(preprocessing=Preprocessing(), image_size=(64, 64), patch_size=8)
FAST = replace(EXACT, fast=True)

pytestmark = pytest.mark.skipif(codec.simplejpeg is None, reason="simplejpeg is not installed")


def both(tmp_path, *images: bytes) -> list[Unit]:
    """The unit of these images as it is decoded exactly, and fast."""
    path = write_tar(tmp_path / "in" / "a.tar", [(f"{n:03d}.jpg", data) for n, data in enumerate(images)])
    return [decode_unit(unit, settings) for settings in (EXACT, FAST) for unit in units_of(path, rows=100)]


def difference(exact: Unit, fast: Unit) -> np.ndarray:
    """Return the mean over the pixels of each image."""
    one, other = (unit.payload.reshape(-1, 64 * 64 * 3).astype(int) for unit in (exact, fast))
    return np.abs(one - other).mean(1)


@pytest.mark.slow
def test_a_large_picture_shows_the_same_in_every_form_of_jpeg(tmp_path):
    image = photo(1, 1200, 900)
    forms = itertools.product((75, 95), ("4:4:4", "4:2:2", "4:2:0"), (False, True))
    images = [
        encoded(image, quality=quality, subsampling=form, progressive=step) for quality, form, step in forms
    ]
    exact, fast = both(
        tmp_path,
        *images,
        encoded(image.convert("L")),
        encoded(photo(2, 900, 2000)),
        encoded(photo(3, 301, 299)),
    )
    found = difference(exact, fast)
    assert found.min() > 0 and found[:-1].max() < 1.5 and found[-1] < 2.5, (
        found
    )  # the last is hardly resized any more
    apart = np.abs(exact.payload[:1].astype(int) - exact.payload[-1:].astype(int)).mean()
    assert apart > 10, "other images are as near: this would show nothing"


@pytest.mark.slow
def test_the_row_has_the_size_of_the_file_and_a_turned_picture_is_turned(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    images = [
        encoded(photo(4, 1001, 777), exif=turned),
        encoded(photo(4, 1001, 777)),
        encoded(photo(5, 1001, 777), "PNG"),
    ]
    exact, fast = both(tmp_path, *images)
    sizes = [
        list(zip(unit.samples["width"].to_pylist(), unit.samples["height"].to_pylist(), strict=True))
        for unit in (exact, fast)
    ]
    assert sizes[0] == sizes[1] == [(777, 1001), (1001, 777), (1001, 777)]
    assert difference(exact, fast).max() < 3  # another turn would be as far as another image


@pytest.mark.slow
def test_what_is_small_or_no_jpeg_has_the_same_pixels(tmp_path):
    images = [encoded(photo(n, 141, 900)) for n in range(3)] + [
        encoded(photo(3, 800, 600), "PNG"),
        encoded(photo(4, 800, 600), "WEBP"),
    ]
    images.append(encoded(photo(5, 800, 600).convert("CMYK")))
    exact, fast = both(tmp_path, *images)
    assert np.array_equal(exact.payload, fast.payload)


@pytest.mark.slow
def test_no_side_gets_shorter_than_what_the_picture_is_resized_to():
    for width, height in (
        (142, 142),
        (143, 1000),
        (284, 500),
        (567, 568),
        (568, 568),
        (1136, 4000),
        (37, 8000),
    ):
        data, held = encoded(photo(0, width, height), quality=30), []
        found = decode(
            data,
            Limits(10**9, 10**5, keep_side=71),
            lambda count, held=held: held.append(bytearray(count)) or held[-1],
        )
        assert found.shape == reduced_shape(width, height, found.reduced) and len(held[-1]) == np.prod(
            found.shape
        )
        assert found.reduced == max([by for by in (1, 2, 4, 8) if min(width, height) // by >= 71], default=1)
    assert FAST.sandbox_settings.keep_side == 71 and EXACT.sandbox_settings.keep_side == 0  # 64 / 0.9


@pytest.mark.slow
def test_a_broken_file_is_refused_for_the_same_reason(tmp_path):
    whole = encoded(photo(6, 1200, 900))
    broken = [
        whole[:-2],
        whole[: len(whole) // 2],
        whole[:30],
        b"\xff\xd8\xff",
        b"",
        whole[:2000] + bytes(500) + whole[2500:],
    ]
    exact, fast = both(tmp_path, *broken)
    assert exact.samples["error"].to_pylist() == fast.samples["error"].to_pylist()


def test_the_crop_of_a_reduced_picture_is_that_of_the_whole_one():
    whole = open_image(encoded(photo(7, 1000, 700), quality=95), EXACT)
    half = np.asarray(Image.fromarray(whole).reduce(2))
    one, other = (
        crop_for_evaluation(whole, Preprocessing(), (64, 64)),
        crop_for_evaluation(half, Preprocessing(), (64, 64), (1000, 700)),
    )
    assert np.abs(one.astype(int) - other.astype(int)).mean() < 1.5
    assert np.array_equal(one, crop_for_evaluation(whole, Preprocessing(), (64, 64), (1000, 700)))


def test_a_run_says_that_it_decodes_fast_and_is_another_run(tmp_path):
    model = random_checkpoint(
        ViTConfig(image_size=(64, 64), patch_size=16, width=8, depth=1, heads=1, mlp_dim=8),
        Preprocessing(),
        0,
    )
    output = str(tmp_path / "out")
    exact = LabelRequest(command="label", sources=(str(tmp_path),), output=output, model="m")
    fast = replace(exact, fast_decode=True)
    one, other = (
        make_plan(asked_for(request, model), request, model, {"CPU": 4.0}) for request in (exact, fast)
    )
    assert one.fingerprint != other.fingerprint
    assert other.resolved.decoder == f"{one.resolved.decoder}, JPEG reduced"
    with pytest.raises(UserError, match="--fast-decode was not given and is now"):
        refuse_another_run(RunFolder(output), one, asked_for(fast, model))
