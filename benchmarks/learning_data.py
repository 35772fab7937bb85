"""Write the sets that benchmarks/learning.py learns from: WebDataset shards with .cls, split by a fixed seed.

    digits     scikit-learn's 1,797 handwritten digits, 8x8, enlarged to 32x32
    shapes     generated: 21 classes, one of seven textures in one of three shapes, among clutter
    signs      hands that show the digits 0 to 9: FOLDER/sign_digits/CLASS/*.jpg
    clothing   photographs of clothes, 10 classes: FOLDER/clothing/{train,test}/CLASS/*.jpg, both together

Photographs are stored at 64x64, squashed, so that decoding costs little. All images are PNG.

    python -m benchmarks.learning_data SHEET.png     shows shapes, a row for each class
"""

import io
import math
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tests.support.builders import write_tar

SHARD = 1000  # images
SIDE = 48  # S: pixels a side of an image of shapes
TRAIN, VAL = 6000, 4000  # shapes
# What makes them hard: the most that a shape and its texture are turned by (radians), the noise's deviation,
# the radius as a share of the side, and how near to the border the centre may be, in radii. A model of 96 x 3
# is right on 96 of 100 after 1,200 steps of 40. With the triangle for a fourth shape (and five textures)
# seeds were seven points apart, more than what is to be shown.
TURNS, NOISE = np.array([0.2, 0.3]), 0.05
RADIUS, MARGIN = (0.36, 0.46), 1.06
BICUBIC = Image.Resampling.BICUBIC
Arrays = tuple[np.ndarray, np.ndarray]  # uint8 (M, H, W, 3) and classes, int64 (M,)


@dataclass(frozen=True)
class LearningSet:
    """Name the shards of a set, and describe a model for them.

    Attributes:
        counts: images in train and in val.
    """

    name: str
    train: Path
    val: Path
    classes: int
    image_size: int
    patch_size: int
    counts: tuple[int, int]


def write(name: str, folder: Path, seed: int = 0, photographs: Path | None = None) -> LearningSet:
    """Write FOLDER/train and FOLDER/val; the same seed gives the same files.

    Args:
        photographs: the folder that signs and clothing are in.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    load, image_size, patch_size, share = SETS[name]
    images, classes = load(rng, photographs)
    train = np.setdiff1d(np.arange(len(classes)), val := stratified(classes, share, rng))
    parts = [
        write_shards(folder / part, images, classes, rng.permutation(at))
        for part, at in (("train", train), ("val", val))
    ]
    return LearningSet(name, *parts, int(classes.max()) + 1, image_size, patch_size, (len(train), len(val)))


def stratified(classes: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return the places of a random share of each class: (M,) -> about (share M,)."""
    of_class = (rng.permutation(np.flatnonzero(classes == number)) for number in range(classes.max() + 1))
    return np.concatenate([places[: round(share * len(places))] for places in of_class])


def write_shards(folder: Path, images: np.ndarray, classes: np.ndarray, order: np.ndarray) -> Path:
    """Write images into shards.

    Args:
        images: uint8 (M, H, W, 3).
        classes: (M,).
        order: the places that are written, in this order.
    """
    for at in range(0, len(order), SHARD):
        members = {}
        for place in order[at : at + SHARD]:
            buffer = io.BytesIO()
            Image.fromarray(images[place]).save(buffer, "PNG", compress_level=1)
            members |= {
                f"{place:06d}.png": buffer.getvalue(),
                f"{place:06d}.cls": str(classes[place]).encode(),
            }
        write_tar(folder / f"shard-{at // SHARD:03d}.tar", members)
    return folder


def read(folder: Path, image_size: int | None = None) -> Arrays:
    """Read all images of the shards by Pillow: resized to a square as for evaluation, or in their stored
    size."""
    images, classes = [], []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".cls"):
                    classes.append(int(data))
                else:
                    image = Image.open(io.BytesIO(data))
                    images.append(
                        np.asarray(image.resize((image_size, image_size), BICUBIC) if image_size else image)
                    )
    return np.stack(images), np.array(classes, np.int64)


# ---- digits and photographs --------------------------------------------------------------------------------


def digits(rng: np.random.Generator, photographs: Path | None) -> Arrays:
    from sklearn.datasets import load_digits

    found = load_digits()
    small = (
        Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)) for image in found.images
    )  # they count from 0 to 16
    return np.stack(
        [np.asarray(image.resize((32, 32), BICUBIC).convert("RGB")) for image in small]
    ), found.target.astype(np.int64)


def folders(pattern: str, rng: np.random.Generator, photographs: Path | None) -> Arrays:
    """Read images from class folders.

    Args:
        pattern: of the class folders; folders of one name are one class.
    """
    files = sorted(photographs.glob(f"{pattern}/*.jpg")) if photographs else []
    if not files:
        raise ValueError(f"no {pattern}/*.jpg in {photographs}")
    names = sorted({file.parent.name for file in files})
    images = (
        ImageOps.exif_transpose(Image.open(file)).convert("RGB").resize((64, 64), BICUBIC) for file in files
    )
    return np.stack([np.asarray(image) for image in images]), np.array(
        [names.index(file.parent.name) for file in files]
    )


# ---- shapes ------------------------------------------------------------------------------------------------


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - math.sqrt(0.5)


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.68) - 0.32


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    most, least = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(most - 1, least - 0.36)


def wave(t: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 1.6 * np.sin(2 * np.pi * t), 0, 1)


def line(t: np.ndarray) -> np.ndarray:
    return np.clip(2.2 * np.cos(2 * np.pi * t) - 1.2, 0, 1)


# Of x and y in radii, (S, S) both: about the distance to the edge, below zero inside.
SHAPES: tuple[Callable, ...] = (square, ring, cross)
# Of u and v in periods, (S, S) both, and a source of chance: how much of the bright colour there is, 0 to 1.
TEXTURES: tuple[Callable, ...] = (
    lambda u, v, rng: wave(u),  # stripes
    lambda u, v, rng: wave(v),  # the same across
    lambda u, v, rng: np.abs(wave(u / 1.4) - wave(v / 1.4)),  # checks
    lambda u, v, rng: np.clip(3 * (np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v)) - 1.5, 0, 1),  # dots
    lambda u, v, rng: wave(u + 0.4 * np.abs(v % 2 - 1)),  # zigzag
    lambda u, v, rng: np.maximum(line(u), line(v)),  # grid
    lambda u, v, rng: rng.random(u.shape) > 0.5,  # speckle
    lambda u, v, rng: np.full(u.shape, rng.random()),  # one colour: clutter alone
)
KINDS = len(TEXTURES) - 1  # of which there are classes
PLACES = (
    np.arange(SIDE) + 0.5 + 1j * (np.arange(SIDE)[:, None] + 0.5)
)  # of the pixels, (S, S): across and down


def shapes(rng: np.random.Generator, photographs: Path | None) -> Arrays:
    classes = np.arange(TRAIN + VAL) % (KINDS * len(SHAPES))
    return np.stack([draw_image(int(number), rng) for number in classes]), classes


def draw_image(number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw an image of class `number`, uint8 (S, S, 3): clouds, small shapes, the shape that counts, small
    shapes over it, noise."""
    texture, shape = divmod(number, len(SHAPES))
    canvas = (
        sum(weight * cloud(cells, rng) for cells, weight in ((2, 0.3), (5, 0.15), (12, 0.1))) + 0.22
    )  # 0.22 to 0.77
    for _ in range(rng.integers(1, 4)):
        paint(canvas, rng.choice(SHAPES), rng.choice(TEXTURES), rng, rng.uniform(0.08, 0.16), margin=0)
    paint(canvas, SHAPES[shape], TEXTURES[texture], rng, rng.uniform(*RADIUS), MARGIN)
    for _ in range(rng.integers(0, 3)):
        paint(canvas, rng.choice(SHAPES), TEXTURES[KINDS], rng, rng.uniform(0.05, 0.1), margin=0)
    canvas += rng.normal(0, rng.uniform(0, NOISE), canvas.shape)
    return np.round(255 * canvas.clip(0, 1)).astype(np.uint8)


def cloud(cells: int, rng: np.random.Generator) -> np.ndarray:
    """Return random colours on a coarse grid, smoothed: (S, S, 3)."""
    return (
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8)).resize((SIDE, SIDE), BICUBIC)
        )
        / 255
    )


def paint(
    canvas: np.ndarray,
    shape: Callable,
    texture: Callable,
    rng: np.random.Generator,
    size: float,
    margin: float,
) -> None:
    """Paint a shape of random place, turn and colours onto (S, S, 3).

    Args:
        size: radius of the shape as a share of the side.
        margin: radii from the shape's centre to the border, at least.
    """
    radius = size * SIDE
    down, across = rng.uniform(margin * radius, SIDE - margin * radius, 2)
    turns = np.exp(1j * TURNS * rng.uniform(-1, 1, 2))
    at, waves = (PLACES - complex(across, down)) * turns[0] / radius, PLACES * turns[1] / rng.uniform(4.5, 7)
    cover = np.clip(0.5 - shape(at.real, at.imag) * radius, 0, 1)[..., None]  # of each pixel
    share = texture(waves.real, waves.imag, rng)[..., None]
    dark, bright = rng.uniform(0, 0.35, 3), rng.uniform(0.65, 1, 3)
    canvas += cover * (dark + share * (bright - dark) - canvas)


# How a set is loaded, the model's pixels and patch a side, and the share of the images that is kept for
# evaluation.
SETS: dict[str, tuple[Callable[[np.random.Generator, Path | None], Arrays], int, int, float]] = {
    "digits": (digits, 16, 4, 0.25),
    "shapes": (shapes, SIDE, 8, VAL / (TRAIN + VAL)),
    "signs": (partial(folders, "sign_digits/*"), 48, 8, 0.3),
    "clothing": (partial(folders, "clothing/*/*"), 48, 8, 0.3),
}
PHOTOGRAPHS = ("signs", "clothing")

if __name__ == "__main__":
    chance = np.random.default_rng(0)
    sheet = np.vstack(
        [np.hstack([draw_image(number, chance) for _ in range(16)]) for number in range(KINDS * len(SHAPES))]
    )
    Image.fromarray(sheet).save(sys.argv[1])
