"""Compare training with a plain loop around timm's model, and measure pre-training without classes.

    python -m benchmarks.learning [--parts supervised pretraining] [--sets digits shapes signs clothing]
        [--seeds N] [--data FOLDER]

FOLDER holds the photographs of signs and clothing (learning_data.py says how). Without FOLDER these two sets
are left out. Rows of parts and sets that are not measured now stay in the file.

supervised: `wordsworth.pipeline.training.trainer.train` on Ray Train, and a PyTorch loop around
timm.models.vision_transformer of the same size, for each seed in turn. Both have the same recipe (AdamW and
the parameters that decay, warm-up and cosine, batch, epochs, label smoothing, clip, crops and flips, all in
fp32) and the same images. Each has its own initial weights, shuffle and random crops. Accuracy is on the same
held-out pixels. Expected: the mean difference less its 95% interval (t, over the seeds) is above -1 point.

pretraining: `masked-patch` and `mae` on all training images without their classes, then fine-tuning on a
share of the images with classes, drawn anew by each seed. The comparison trains from random weights on that
share alone, for as many optimiser steps as both parts together.

training_seconds: of the epochs alone. seconds: of the call, from shards to a model; Ray itself already runs.
The two arms do not do the same work: ours reads and decodes every image in every epoch, and timm's loop holds
decoded images in memory.
"""

import argparse
import csv
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.learning_data import (
    PHOTOGRAPHS,
    SETS,
    Arrays,
    LearningSet,
    read,
    stratified,
    write,
    write_shards,
)
from benchmarks.machine import machine, write_rows
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.training.augment import Augmentation
from wordsworth.pipeline.training.news import EpochNews
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.trainer import train
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.model_folder import load_folder

CSV = Path(__file__).with_suffix(".csv")
BASELINES = {"supervised": "timm", "pretraining": "scratch"}  # what the other arms are compared with
PREPROCESSING = Preprocessing(crop_pct=1.0)


@dataclass(frozen=True)
class Recipe:
    """Hold a model's size and the settings of its training.

    Attributes:
        flip: whether a mirrored image has the same class.
    """

    epochs: int
    flip: bool
    batch_size: int = 40
    width: int = 96
    depth: int = 3
    heads: int = 3
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    clip: float = 1.0
    crop_scale: float = 0.8
    aspect: float = 4 / 3


@dataclass(frozen=True)
class Pretraining:
    """Hold the settings of a pre-training.

    Attributes:
        share: of the training images, those with a class.
        epochs: over all training images.
        fine_epochs: over the share, afterwards.
    """

    share: float
    epochs: int
    fine_epochs: int
    objectives: tuple[str, ...] = ("masked-patch", "mae")
    decoder: tuple[int, int, int] = (64, 2, 4)  # MAE's width, depth and heads


RECIPES = {
    "digits": Recipe(
        epochs=30, flip=False, batch_size=64, width=64, depth=4, heads=4, lr=2e-3, crop_scale=0.5
    ),
    "shapes": Recipe(epochs=8, flip=True),
    "signs": Recipe(epochs=24, flip=False, crop_scale=0.7),
    "clothing": Recipe(epochs=24, flip=True, crop_scale=0.7),
}
SEEDS = {"digits": 5, "shapes": 5, "signs": 3, "clothing": 3}
PRETRAINING = {"shapes": Pretraining(share=0.1, epochs=4, fine_epochs=20)}


# ---- ours --------------------------------------------------------------------------------------------------


def ours(
    found: LearningSet, recipe: Recipe, seed: int, output: Path, **changes: Any
) -> tuple[Checkpoint, dict[str, Any]]:
    """Train by Ray Train, and return the model that training wrote, its seconds and its steps.

    Args:
        changes: of the TrainRequest.
    """
    config = ViTConfig(
        image_size=found.image_size,
        patch_size=found.patch_size,
        width=recipe.width,
        depth=recipe.depth,
        heads=recipe.heads,
        mlp_dim=4 * recipe.width,
        num_classes=0,  # the training takes the number of classes from the shards
    )
    names = ("epochs", "batch_size", "lr", "weight_decay", "warmup", "label_smoothing", "clip")
    request = TrainRequest(
        sources=(str(found.train),),
        output=str(output),
        config=config,
        preprocessing=PREPROCESSING,
        **{name: getattr(recipe, name) for name in names},
        augmentation=Augmentation(crop_scale=recipe.crop_scale, aspect=recipe.aspect, flip=recipe.flip),
        seed=seed,
        precision="fp32",
        device="cpu",
    )
    news, begin = [], time.perf_counter()
    train(replace(request, **changes), news.append)
    seconds, images = time.perf_counter() - begin, steps_of(found, recipe, 1) * recipe.batch_size
    rates = [told.rates for told in news if isinstance(told, EpochNews)]
    epochs = sum(images / rate.images_per_second for rate in rates)
    return load_folder(output), {
        "training_seconds": epochs,
        "seconds": seconds,
        "steps": steps_of(found, recipe, recipe.epochs),
    }


def steps_of(found: LearningSet, recipe: Recipe, epochs: int) -> int:
    return epochs * (found.counts[0] // recipe.batch_size)


# ---- timm's model in a plain loop --------------------------------------------------------------------------


class Crops(Dataset):
    """Hold training images in memory, (M, H, W, 3); an item is a random crop, uint8 (3, S, S), and its
    class."""

    def __init__(self, images: np.ndarray, classes: np.ndarray, image_size: int, recipe: Recipe):
        self.images, self.classes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), classes
        scale, ratio = (recipe.crop_scale, 1.0), (1 / recipe.aspect, recipe.aspect)
        crop = v2.RandomResizedCrop(image_size, scale, ratio, v2.InterpolationMode.BICUBIC, antialias=True)
        self.transform = v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if recipe.flip else 0.0)])

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[place]), int(self.classes[place])


def timm(found: LearningSet, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Train timm's model, and return its accuracy, seconds and steps."""
    begin = time.perf_counter()
    torch.manual_seed(seed)
    size = {
        "embed_dim": recipe.width,
        "depth": recipe.depth,
        "num_heads": recipe.heads,
        "num_classes": found.classes,
    }
    model = VisionTransformer(img_size=found.image_size, patch_size=found.patch_size, **size)
    crops = Crops(*read(found.train), found.image_size, recipe)
    loader = DataLoader(
        crops, recipe.batch_size, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True
    )
    groups = param_groups_weight_decay(
        model, recipe.weight_decay, no_weight_decay_list=model.no_weight_decay()
    )
    optimizer = torch.optim.AdamW(groups, recipe.lr, fused=True)
    steps = recipe.epochs * len(loader)
    rising = max(1, round(recipe.warmup * steps))

    def rate(step: int) -> float:
        falling = 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
        return (step + 1) / rising if step < rising else falling

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = time.perf_counter()
    for _ in range(recipe.epochs):
        for images, classes in loader:
            loss = F.cross_entropy(model(normalised(images)), classes, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
    end = time.perf_counter()
    said = accuracy(model, *read(found.val, found.image_size))
    return {"accuracy": said, "training_seconds": end - start, "seconds": end - begin, "steps": steps}


# ---- what both are measured by -----------------------------------------------------------------------------


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Return floats from -1 to 1, as PREPROCESSING has them, from uint8 (B, 3, H, W)."""
    return (images.float() / 255 - 0.5) / 0.5


@torch.inference_mode()
def accuracy(model: nn.Module, images: np.ndarray, classes: np.ndarray) -> float:
    """Return the share of images (M, H, W, 3), uint8, whose class (M,) the model gives, from 0 to 100."""
    model.eval()
    parts = torch.from_numpy(images).permute(0, 3, 1, 2).split(500)
    said = torch.cat([model(normalised(part)).argmax(-1) for part in parts])
    return 100 * (said == torch.from_numpy(classes)).float().mean().item()


def interval(differences: list[float]) -> float:
    """Return half of the 95% interval of the mean."""
    count = len(differences)
    return (
        float(student.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
        if count > 1
        else math.inf
    )


# ---- the parts ---------------------------------------------------------------------------------------------


def supervised(found: LearningSet, seed: int, folder: Path, val: Arrays) -> Iterator[dict[str, Any]]:
    """Return a row for each arm, the baseline first."""
    recipe = RECIPES[found.name]
    with ProcessPoolExecutor(
        1, get_context("spawn")
    ) as alone:  # a DataLoader forks, which a process that uses Ray should not
        yield {"arm": "timm", **alone.submit(timm, found, recipe, seed).result()}
    saved, trained = ours(found, recipe, seed, folder / "ours")
    yield {"arm": "ours", "accuracy": accuracy(saved.model(), *val), **trained}


def pretraining(found: LearningSet, seed: int, folder: Path, val: Arrays) -> Iterator[dict[str, Any]]:
    asked, recipe = PRETRAINING[found.name], RECIPES[found.name]
    few = labelled(found, asked.share, seed, folder / "few")
    fine = replace(recipe, epochs=asked.fine_epochs)
    steps = steps_of(found, recipe, asked.epochs) + steps_of(few, recipe, asked.fine_epochs)
    saved, trained = ours(
        few, replace(recipe, epochs=math.ceil(steps / steps_of(few, recipe, 1))), seed, folder / "scratch"
    )
    yield {"arm": "scratch", "labelled": few.counts[0], "accuracy": accuracy(saved.model(), *val), **trained}
    for objective in asked.objectives:
        alone = {"objective": objective, "decoder": asked.decoder}
        start, before = ours(found, replace(recipe, epochs=asked.epochs), seed, folder / objective, **alone)
        saved, trained = ours(few, fine, seed, folder / f"{objective}-fine", start=start)
        both = {name: before[name] + trained[name] for name in trained}
        yield {"arm": objective, "labelled": few.counts[0], "accuracy": accuracy(saved.model(), *val), **both}


def labelled(found: LearningSet, share: float, seed: int, folder: Path) -> LearningSet:
    """Return a share of the training images of each class."""
    images, classes = read(found.train)
    places = stratified(classes, share, rng := np.random.default_rng([seed, 1]))
    write_shards(folder, images, classes, rng.permutation(places))
    return replace(found, train=folder, counts=(len(places), found.counts[1]))


PARTS = {"supervised": supervised, "pretraining": pretraining}


def measured(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    for name in options.sets:
        found = write(name, folder / name, photographs=options.data)
        val = read(found.val, found.image_size)
        for part, seed in product(options.parts, range(options.seeds or SEEDS[name])):
            if part == "pretraining" and name not in PRETRAINING:
                continue
            baseline = None
            for row in PARTS[part](found, seed, folder / name / f"{part}-{seed}", val):
                baseline = row["accuracy"] if baseline is None else baseline
                row["difference"] = "" if row["arm"] == BASELINES[part] else row["accuracy"] - baseline
                row = {
                    key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()
                }
                images = {"train_images": found.counts[0], "val_images": found.counts[1]}
                yield {"part": part, "set": name, "seed": seed, **row, **images, "classes": found.classes}


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return the mean of each arm, and the mean of its difference from the baseline."""
    for part, name, arm in dict.fromkeys((row["part"], row["set"], row["arm"]) for row in rows):
        of_it = [row for row in rows if (row["part"], row["set"], row["arm"]) == (part, name, arm)]
        mean = {
            key: statistics.mean(float(row[key]) for row in of_it)
            for key in ("accuracy", "training_seconds", "seconds")
        }
        seconds = f"{mean['training_seconds']:.0f} s of {mean['seconds']:.0f} s"
        line = f"{part}, {name}: {arm} {mean['accuracy']:.2f}%, {seconds}"
        if arm != BASELINES[part]:
            differences = [float(row["difference"]) for row in of_it]
            middle, half = statistics.mean(differences), interval(differences)
            line += f"; {middle:+.2f} points to {BASELINES[part]}, "
            line += f"95% from {middle - half:+.2f} to {middle + half:+.2f}"
        yield line


def kept(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of the file that are not measured again."""
    if not options.output.exists():
        return []
    with open(options.output, newline="") as file:
        return [
            row
            for row in csv.DictReader(file)
            if row["part"] not in options.parts or row["set"] not in options.sets
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, help="five, of photographs three")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=CSV)
    options = parser.parse_args()
    if options.data is None and (left_out := [name for name in options.sets if name in PHOTOGRAPHS]):
        print(f"left out without --data: {', '.join(left_out)}", flush=True)
        options.sets = [name for name in options.sets if name not in left_out]
    rows = kept(options)
    with tempfile.TemporaryDirectory(prefix="learning-") as folder, ray_session():
        for row in measured(options, Path(folder)):
            rows.append(row | {"machine": machine()})
            print(row, flush=True)
            write_rows(options.output, rows)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
