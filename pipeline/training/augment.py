"""Change training images at random, so that every epoch shows other pixels: crops, mirroring, RandAugment."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings

if TYPE_CHECKING:
    from PIL import Image

    ImageChange = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Hold the settings of the random changes that training makes to an image.

    Attributes:
        crop_scale: the smallest share of the image's area that a crop covers.
        aspect: the largest factor by which a crop changes the image's aspect ratio.
        flip: whether every second image is mirrored.
        rand_augment: timm's name of a RandAugment (arXiv:1909.13719), None for none. "rand-m10-n2" makes two
            changes of colour or shape, of strength 10 of 10.
    """

    crop_scale: float = 1.0
    aspect: float = 4 / 3
    flip: bool = False
    rand_augment: str | None = None


def augment(
    image: np.ndarray, settings: DecodeSettings, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Return a random crop of an image, changed by RandAugment if that is asked for.

    Args:
        image: uint8 (h, w, 3).
        settings: the size and the interpolation of the crop.
        augmentation: the changes to choose from.
        rng: the only source of what is random.

    Returns:
        uint8 (H, W, 3).
    """
    pixels = random_crop(image, settings, augmentation, rng)
    if augmentation.rand_augment is None:
        return pixels
    from PIL import Image

    mean_colour = [round(255 * mean) for mean in settings.preprocessing.mean]
    change = rand_augment(augmentation.rand_augment, (mean_colour[0], mean_colour[1], mean_colour[2]))
    seed = int(rng.integers(1 << 32))
    random.seed(seed)  # timm draws from the global generators of Python and NumPy
    np.random.seed(seed)
    return np.asarray(change(Image.fromarray(np.ascontiguousarray(pixels))))


@lru_cache
def rand_augment(name: str, fill: tuple[int, int, int]) -> "ImageChange":
    """Return timm's RandAugment of that name, a function of a PIL image.

    Args:
        name: such as "rand-m10-n2".
        fill: the colour of pixels that a change moves in from outside the image.

    Raises:
        UserError: timm does not know the name.
    """
    # Imported late: timm imports torch, which processes that decode do without.
    from timm.data.auto_augment import rand_augment_transform

    try:
        return rand_augment_transform(name, {"img_mean": fill})
    except (AssertionError, ValueError) as error:
        hint = "write rand-m10-n2, with a strength and a number"
        raise UserError(f"--rand-augment {name}: timm knows no such one; {hint}", exit_code=2) from error


def random_crop(
    image: np.ndarray, settings: DecodeSettings, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Return a resized crop of random area, aspect ratio and place, as Inception and the paper's code cut it.

    Args:
        image: uint8 (h, w, 3).
        settings: the size and the interpolation of the crop.
        augmentation: the bounds of area and aspect ratio, and whether to mirror.
        rng: the only source of what is random.

    Returns:
        uint8 (H, W, 3).
    """
    # Imported late: Numba takes seconds to import, and only processes that augment need it.
    from wordsworth.pipeline.images.resize_numba import resize_region

    height, width = image.shape[:2]
    area = width * height * rng.uniform(augmentation.crop_scale, 1.0)
    aspect = math.exp(rng.uniform(-1, 1) * math.log(augmentation.aspect))
    crop_width = min(width, math.sqrt(area * aspect))
    crop_height = min(height, math.sqrt(area / aspect))
    left = rng.uniform(0, width - crop_width)
    top = rng.uniform(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    pixels = resize_region(image, box, settings.image_size, settings.preprocessing.interpolation)
    if augmentation.flip and rng.random() < 0.5:
        return pixels[:, ::-1]
    return pixels
