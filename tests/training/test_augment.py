"""Augmentation: where crops lie, how often images are mirrored, and that a generator decides all of it."""

import numpy as np
import pytest

from tests.support.samples import photo
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images import resize_numba as loops
from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.training.augment import Augmentation, augment, random_crop
from wordsworth.vit_model.config import Preprocessing

DECODE = DecodeSettings(preprocessing=Preprocessing(), image_size=(16, 16), patch_size=8)
PLAIN = Augmentation()
WHOLE = Augmentation(crop_scale=1.0, aspect=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1, 1), (1, 4000), (3000, 2), (100, 100)])
@pytest.mark.parametrize(
    "augmentation",
    [
        PLAIN,
        Augmentation(crop_scale=0.05),
        Augmentation(crop_scale=0.05, aspect=2.0, flip=True),
        WHOLE,
    ],
)
def test_a_crop_lies_inside_the_picture_and_has_the_area_and_aspect_allowed(size, augmentation, monkeypatch):
    boxes, rng, (width, height) = [], np.random.default_rng(0), size
    resized = loops.resize_region
    monkeypatch.setattr(
        loops, "resize_region", lambda pixels, box, *rest: boxes.append(box) or resized(pixels, box, *rest)
    )
    image = np.zeros((height, width, 3), np.uint8)
    for _ in range(300):
        assert random_crop(image, DECODE, augmentation, rng).shape == (16, 16, 3)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width * (1 + 1e-9) and 0 <= top < bottom <= height * (1 + 1e-9)
        share = (right - left) * (bottom - top) / (width * height)
        cut = (
            right - left > width * 0.999 or bottom - top > height * 0.999
        )  # a side that would have stuck out was cut off
        assert share <= 1 + 1e-9 and (cut or share >= augmentation.crop_scale - 1e-9)
        assert cut or abs(np.log((right - left) / (bottom - top))) <= np.log(augmentation.aspect) + 1e-9
    if augmentation == WHOLE and width == height:
        assert set(boxes) == {(0, 0, width, height)}


def test_crops_differ_in_size_shape_and_place_and_half_are_mirrored():
    gradient = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    rng = np.random.default_rng(0)
    crops = [
        random_crop(gradient, DECODE, Augmentation(crop_scale=0.3, flip=True), rng).astype(int)
        for _ in range(400)
    ]
    mirrored = sum(crop[0, 0, 0] > crop[0, -1, 0] for crop in crops)
    assert 150 < mirrored < 250
    assert not any(
        crop[0, 0, 0] > crop[0, -1, 0]
        for crop in (random_crop(gradient, DECODE, PLAIN, rng).astype(int) for _ in range(99))
    )
    assert len({crop.tobytes() for crop in crops}) > 300


def test_every_small_picture_can_be_cropped():
    rng = np.random.default_rng(0)
    for width in range(1, 30):
        for height in (*range(1, 30), 997):
            crop = random_crop(
                np.full((height, width, 3), (1, 2, 3), np.uint8),
                DECODE,
                Augmentation(crop_scale=0.05, aspect=2.0),
                rng,
            )
            assert (crop == (1, 2, 3)).all()


def test_rand_augment_changes_pictures_as_the_generator_says():
    image = np.asarray(photo(3))
    asked = Augmentation(crop_scale=1.0, aspect=1.0, rand_augment="rand-m10-n2")
    plain = augment(image, DECODE, PLAIN, np.random.default_rng(0))
    first = [augment(image, DECODE, asked, np.random.default_rng(seed)) for seed in range(8)]
    again = [augment(image, DECODE, asked, np.random.default_rng(seed)) for seed in range(8)]
    assert all(one.shape == plain.shape and one.dtype == np.uint8 for one in first)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({one.tobytes() for one in first}) > 4


@pytest.mark.parametrize("name", ["ramd-m9", "cubism", ""])
def test_a_rand_augment_that_timm_does_not_know_is_one_line(name):
    with pytest.raises(UserError, match=r"--rand-augment .*: timm knows no such one"):
        augment(np.asarray(photo(0)), DECODE, Augmentation(rand_augment=name), np.random.default_rng(0))
