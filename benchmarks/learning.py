"""Compare training with a plain loop around timm's model, and measure pre-training without classes.

    python -m benchmarks.learning [--parts supervised pretraining] [--sets digits shapes signs clothing]
        [--seeds N] [--data FOLDER] [--arms scratch masked-patch mae independent] [--shots 5 10]
        [--pretrained FOLDER] [--pool avg-norm]

FOLDER holds the photographs of signs and clothing (learning_data.py says how). Without FOLDER these two sets
are left out. Rows of parts, sets, arms and shots that are not measured now stay in the file.

supervised: `wordsworth.pipeline.training.trainer.train` on Ray Train, and a PyTorch loop around
timm.models.vision_transformer of the same size, for each seed in turn. Both have the same recipe (AdamW and
the parameters that decay, warm-up and cosine, batch, epochs, label smoothing, clip, crops and flips, all in
fp32) and the same images. Each has its own initial weights, shuffle and random crops. Accuracy is on the same
held-out pixels. Expected: the mean difference less its 95% interval (t, over the seeds) is above -1 point.

pretraining: `masked-patch` and `mae` once on all training images without their classes, then fine-tuning on
a few images of each class, drawn anew by each seed. "scratch" is training the same architecture from random
weights on these images alone, for as many steps as the fine-tuning. "independent" is a masked autoencoder on
timm's ViT and its fine-tuning in plain loops (pretraining_loops.py), for as many steps as ours. --arms and
--shots choose among the arms and the numbers of labelled images, and --pool what our heads look at: an arm
with another than avg-norm has its name behind its own, as "mae, token". "scratch" is measured without being
named where the file has no row of it for the same draw. --pretrained keeps the pre-trained models for later
calls, which have the same settings.

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
from functools import cache
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
    write,
    write_shards,
)
from benchmarks.machine import machine, write_rows
from benchmarks.pretraining import INDEPENDENT
from benchmarks.pretraining_loops import DECODER, Pixels, State, fine_tuned, load, pretrained
from wordsworth.jobs.pretrain import DEFAULT_POSITION
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.training.augment import Augmentation
from wordsworth.pipeline.training.news import EpochNews
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.trainer import train
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.few_shot import draw
from wordsworth.vit_model.model_folder import load_folder

CSV = Path(__file__).with_suffix(".csv")
BASELINES = {"supervised": "timm", "pretraining": "scratch"}  # what the other arms are compared with
PREPROCESSING = Preprocessing(crop_pct=1.0)
POOL = "avg-norm"  # what the head looks at in fine-tuning: the best of three, at times by far


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
    """Hold the settings of a pre-training and of the fine-tuning behind it.

    Attributes:
        pool: what the head looks at in fine-tuning.
        shots: labelled images of each class.
        fine_steps: of the fine-tuning, and of the training from scratch.
    """

    shots: tuple[int, ...] = (5, 10)
    fine_steps: int = 300
    crop_scale: float = 0.4
    batch_size: int = 64
    arms: tuple[str, ...] = ("scratch", "masked-patch", "mae", "independent")
    pool: str = POOL


RECIPES = {
    "digits": Recipe(
        epochs=30, flip=False, batch_size=64, width=64, depth=4, heads=4, lr=2e-3, crop_scale=0.5
    ),
    "shapes": Recipe(epochs=8, flip=True),
    "signs": Recipe(epochs=24, flip=False, crop_scale=0.7),
    "clothing": Recipe(epochs=24, flip=True, crop_scale=0.7),
}
SEEDS = {"digits": 5, "shapes": 5, "signs": 3, "clothing": 3}  # of supervised
MOST_SEEDS = 5
PRETRAINING = {"signs": Pretraining(), "clothing": Pretraining(), "shapes": Pretraining(shots=(30,))}
STEPS = {"masked-patch": 3000, "mae": 1500, "independent": 1500}  # of the pre-training
BETA2 = {"mae": 0.95}  # of AdamW, as in MAE's paper
COPIES = 1000  # about as many images as the labelled ones are repeated to, so that an epoch has some steps


# ---- ours --------------------------------------------------------------------------------------------------


def ours(
    found: LearningSet, recipe: Recipe, seed: int, output: Path, **changes: Any
) -> tuple[Checkpoint, dict[str, Any]]:
    """Train by Ray Train, and return the model that training wrote, its seconds and its steps.

    Args:
        changes: of the TrainRequest.
    """
    names = ("epochs", "batch_size", "lr", "weight_decay", "warmup", "label_smoothing", "clip")
    request = TrainRequest(
        sources=(str(found.train),),
        output=str(output),
        config=our_config(found, recipe),
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


def our_config(found: LearningSet, recipe: Recipe) -> ViTConfig:
    return ViTConfig(
        image_size=found.image_size,
        patch_size=found.patch_size,
        width=recipe.width,
        depth=recipe.depth,
        heads=recipe.heads,
        mlp_dim=4 * recipe.width,
        num_classes=0,  # the training takes the number of classes from the shards
    )


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


def pretraining(
    found: LearningSet, seed: int, folder: Path, val: Arrays, before: Path, known: set[int]
) -> Iterator[dict[str, Any]]:
    """Return a row for each arm and number of labelled images, the baseline first.

    Args:
        before: folder of the pre-trained models.
        known: numbers of labelled images of a class whose baseline is measured already.
    """
    asked, recipe = PRETRAINING[found.name], RECIPES[found.name]
    for shots in asked.shots:
        few = labelled(found, shots, seed, folder / f"few-{shots}")
        fine = replace(recipe, epochs=epochs_of(few, recipe.batch_size, asked.fine_steps))
        labels = {"shots": shots, "labelled": shots * found.classes}
        if shots not in known:
            config = masked_config(found, "mae")
            saved, trained = ours(few, fine, seed, folder / f"scratch-{shots}", config=config)
            yield {"arm": "scratch", **labels, "accuracy": accuracy(saved.model(), *val), **trained}
        for arm in asked.arms:
            if arm == "scratch":
                continue
            if arm == "independent":
                yield {"arm": arm, **labels, **independent(found, shots, seed)}
                continue
            start = pretrained_once(found, arm, before / arm).pooled(asked.pool)
            output = folder / f"{arm}-{shots}"
            saved, trained = ours(few, fine, seed, output, start=start, config=start.config)
            yield {
                "arm": named(arm, asked.pool),
                **labels,
                "accuracy": accuracy(saved.model(), *val),
                **trained,
            }


def named(arm: str, pool: str) -> str:
    """Return the name of an arm in the file."""
    return f"{arm}, {pool}" if arm in ("masked-patch", "mae") and pool != POOL else arm


def pretrained_once(found: LearningSet, objective: str, output: Path) -> Checkpoint:
    """Return the encoder that an objective trained on all images of a set, as fine-tuning begins with it."""
    asked, recipe = PRETRAINING[found.name], RECIPES[found.name]
    if not (output / "config.json").exists():  # if it was cut off, the training goes on
        recipe = replace(recipe, batch_size=asked.batch_size, crop_scale=asked.crop_scale)
        recipe = replace(recipe, epochs=epochs_of(found, asked.batch_size, STEPS[objective]))
        config = masked_config(found, objective)
        beta2 = BETA2.get(objective, 0.999)
        ours(found, recipe, 0, output, objective=objective, config=config, decoder=DECODER, beta2=beta2)
    return load_folder(output)


def masked_config(found: LearningSet, objective: str) -> ViTConfig:
    """Return the architecture that `wordsworth pretrain` gives an objective."""
    return replace(our_config(found, RECIPES[found.name]), position=DEFAULT_POSITION[objective])


@cache
def independently_pretrained(found: LearningSet) -> tuple[Pixels, State]:
    pixels = load(found)
    state, _ = pretrained(replace(INDEPENDENT.pre, steps=STEPS["independent"]), pixels)
    return pixels, state


def independent(found: LearningSet, shots: int, seed: int) -> dict[str, Any]:
    """Fine-tune timm's model after an independent pre-training, and return its accuracy and seconds."""
    pixels, state = independently_pretrained(found)
    begin = time.perf_counter()
    fine = replace(INDEPENDENT.fine, steps=PRETRAINING[found.name].fine_steps)
    said = fine_tuned(replace(INDEPENDENT, fine=fine), state, pixels, shots, seed)
    seconds = time.perf_counter() - begin
    return {"accuracy": said, "training_seconds": seconds, "seconds": seconds, "steps": fine.steps}


def labelled(found: LearningSet, shots: int, seed: int, folder: Path) -> LearningSet:
    """Return a few training images of each class, as often as makes about COPIES images."""
    images, classes = read(found.train)
    places = draw(classes, shots, seed)
    places = np.tile(places, max(1, COPIES // len(places)))
    order = np.random.default_rng([seed, 1]).permutation(len(places))
    write_shards(folder, images[places], classes[places], order)
    return replace(found, train=folder, counts=(len(places), found.counts[1]))


def epochs_of(found: LearningSet, batch_size: int, steps: int) -> int:
    return round(steps / (found.counts[0] // batch_size))


PARTS = ("supervised", "pretraining")


def measured(
    options: argparse.Namespace, folder: Path, known: dict[tuple[str, ...], float]
) -> Iterator[dict[str, Any]]:
    """Return the rows that are asked for.

    Args:
        known: accuracy of the baselines that are not measured again, by `draw_of`.
    """
    for name in options.sets:
        found = write(name, folder / name, photographs=options.data)
        val = read(found.val, found.image_size)
        for part, seed in product(options.parts, range(options.seeds or MOST_SEEDS)):
            if part == "pretraining" and name not in PRETRAINING:
                continue
            if part == "supervised" and not options.seeds and seed >= SEEDS[name]:
                continue
            told = {"part": part, "set": name, "seed": seed}
            place = folder / name / f"{part}-{seed}"
            if part == "supervised":
                rows = supervised(found, seed, place, val)
            else:
                shots = PRETRAINING[name].shots
                ready = {few for few in shots if draw_of({**told, "shots": few}) in known}
                before = (options.pretrained or folder / "pretrained") / name
                rows = pretraining(found, seed, place, val, before, ready)
            for row in rows:
                row = told | row
                if row["arm"] == BASELINES[part]:
                    known[draw_of(row)] = row["accuracy"]
                    row["difference"] = ""
                else:
                    row["difference"] = row["accuracy"] - known[draw_of(row)]
                row = {
                    key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()
                }
                images = {"train_images": found.counts[0], "val_images": found.counts[1]}
                yield row | images | {"classes": found.classes}


def draw_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Return what rows that are compared with each other have in common."""
    return tuple(str(row.get(key, "")) for key in ("part", "set", "seed", "shots"))


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return the mean of each arm, and the mean of its difference from the baseline."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        group = row["part"], row["set"], row["arm"], str(row.get("shots") or "")
        groups.setdefault(group, []).append(row)
    for (part, name, arm, shots), of_it in groups.items():
        mean = {
            key: statistics.mean(float(row[key]) for row in of_it)
            for key in ("accuracy", "training_seconds", "seconds")
        }
        seconds = f"{mean['training_seconds']:.0f} s of {mean['seconds']:.0f} s"
        few = f", {shots} a class" if shots else ""
        line = f"{part}, {name}{few}: {arm} {mean['accuracy']:.2f}%, {seconds}"
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
        return [row for row in csv.DictReader(file) if not is_measured_now(row, options)]


def is_measured_now(row: dict[str, Any], options: argparse.Namespace) -> bool:
    if row["part"] not in options.parts or row["set"] not in options.sets:
        return False
    if row["part"] == "supervised":
        return True
    return (
        row["arm"] in {named(arm, options.pool) for arm in options.arms}
        and int(row["shots"]) in PRETRAINING[row["set"]].shots
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, help="five; three with all classes of photographs")
    parser.add_argument("--arms", nargs="+", choices=Pretraining.arms, default=Pretraining.arms)
    parser.add_argument("--shots", nargs="+", type=int, help="labelled images of each class")
    parser.add_argument("--pool", choices=("token", "avg", POOL), default=POOL)
    parser.add_argument("--pretrained", type=Path, help="where pre-trained models stay")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=CSV)
    options = parser.parse_args()
    if options.data is None and (left_out := [name for name in options.sets if name in PHOTOGRAPHS]):
        print(f"left out without --data: {', '.join(left_out)}", flush=True)
        options.sets = [name for name in options.sets if name not in left_out]
    for name, asked in PRETRAINING.items():
        shots = tuple(options.shots or asked.shots)
        PRETRAINING[name] = replace(asked, arms=tuple(options.arms), shots=shots, pool=options.pool)
    rows = kept(options)
    known = {draw_of(row): float(row["accuracy"]) for row in rows if row["arm"] == BASELINES[row["part"]]}
    with tempfile.TemporaryDirectory(prefix="learning-") as folder, ray_session():
        for row in measured(options, Path(folder), known):
            rows.append(row | {"machine": machine()})
            print(row, flush=True)
            write_rows(options.output, rows)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
