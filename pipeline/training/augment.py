"""What training does to pictures so that no epoch shows the same ones: crops, mirroring, RandAugment."""

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings


@dataclass(frozen=True)
class Augmentation:
    """Inception-style crops. crop_scale: the smallest share of the picture's area that a crop covers; aspect: the largest change of
    its aspect ratio, as a factor. flip: mirror every second picture. rand_augment: timm's name of a RandAugment (arXiv:1909.13719)
    such as "rand-m10-n2": two of its changes of colour or shape, of strength 10 of 10."""

    crop_scale: float = 1.0
    aspect: float = 4 / 3
    flip: bool = False
    rand_augment: str | None = None


def augment(
    image: np.ndarray, settings: DecodeSettings, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """uint8 (h, w, 3) -> uint8 (H, W, 3); the generator decides all of it."""
    pixels = random_crop(image, settings, augmentation, rng)
    if augmentation.rand_augment is None:
        return pixels
    from PIL import Image

    fill = tuple(round(255 * mean) for mean in settings.preprocessing.mean)
    change = rand_augment(augmentation.rand_augment, fill)
    seed = int(rng.integers(1 << 32))
    random.seed(seed)  # timm's draws come from these two
    np.random.seed(seed)
    return np.asarray(change(Image.fromarray(np.ascontiguousarray(pixels))))


@lru_cache
def rand_augment(name: str, fill: tuple[int, int, int]):
    """timm's RandAugment: a PIL image -> a PIL image. fill: the colour of what is moved in from outside.

    Raises UserError for a name that timm does not know.
    """
    from timm.data.auto_augment import (
        rand_augment_transform,  # torch comes with it: only where it is asked for
    )

    try:
        return rand_augment_transform(name, {"img_mean": fill})
    except (AssertionError, ValueError) as error:
        hint = "write rand-m10-n2, with a strength and a number"
        raise UserError(f"--rand-augment {name}: timm knows no such one; {hint}", exit_code=2) from error


def random_crop(
    image: np.ndarray, settings: DecodeSettings, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """uint8 (h, w, 3) -> a crop of random area, aspect ratio and place, resized: uint8 (H, W, 3) (Inception; the paper's code)."""
    from wordsworth.pipeline.images.resize_numba import region  # Numba: only where it is used

    height, width = image.shape[:2]
    area = width * height * rng.uniform(augmentation.crop_scale, 1.0)
    aspect = math.exp(rng.uniform(-1, 1) * math.log(augmentation.aspect))
    crop_width, crop_height = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    pixels = region(image, box, settings.image_size, settings.preprocessing.interpolation)
    return pixels[:, ::-1] if augmentation.flip and rng.random() < 0.5 else pixels
