"""Change one thing at a time in pre-training without classes, and see what fine-tuning on few labels gives.

    python -m benchmarks.pretraining [--sets signs clothing shapes] [--arms NAME...] [--shots 10] [--seeds N]
        [--data FOLDER] [--output CSV]

All arms are plain loops over pixels in memory: so they show the objectives, the initial weights and the
hand-over, without the trainer (benchmarks/learning.py has the trainer). "independent" is a masked autoencoder
on timm's ViT, from initial weights to fine-tuning. An arm is pre-trained once a set, on all training images
(seed 0), and fine-tuned on `shots` images of each class, drawn anew by each seed. "scratch" has the same
number of fine-tuning steps.

Columns: explained is the share of the masked pixels' variance that is explained in the last sixth of the
pre-training (of masked-patch: the share of the colours that are right). probe is the accuracy of least
squares on the frozen mean of the patches of ten images a class (five draws), knn that of ten neighbours among
all training images. accuracy is that of the fine-tuned model. seconds are of one thread that others slow
down. Rows of arms that are not measured now stay in the file.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.learning_data import write
from benchmarks.machine import machine, write_rows
from benchmarks.pretraining_loops import Arm, Fine, Masked, Pixels, State, fine_tuned, load, pretrained

CSV = Path(__file__).with_suffix(".csv")
LEARNED = Masked()
FIXED = Masked(start="mae", position="sincos-2d-mae")
TIMM = Masked(model="timm", position="sincos-2d-mae")
COLOURS = Masked(objective="masked-patch", share=0.5, steps=600, beta2=0.999)
FIXED_COLOURS = replace(COLOURS, position="sincos-2d-mae")
MAE_COLOURS = replace(FIXED_COLOURS, start="mae")
LONG_COLOURS = replace(MAE_COLOURS, steps=1500)
CELLS = replace(MAE_COLOURS, target="colours_4x4")
PIXELS = replace(MAE_COLOURS, target="pixels")
CLASS = Fine()  # the settings that all arms share: the head looks at [class]
SCRATCH_MEAN = Fine(head=0.02, pool="avg")
SCRATCH_NORM = Fine(head=0.02, pool="avg-norm")
INDEPENDENT = Arm(pre=TIMM, fine=replace(CLASS, pool="avg"))  # the hand-over of MAE's paper
ARMS = {
    "scratch": Arm(pre=None, fine=Fine(head=0.02)),
    "scratch, head of zeros": Arm(pre=None),
    "scratch, fixed positions": Arm(pre=None, fine=Fine(head=0.02), position="sincos-2d-mae"),
    "scratch, fixed positions, mean": Arm(pre=None, fine=SCRATCH_MEAN, position="sincos-2d-mae"),
    "scratch, mean before the norm": Arm(pre=None, fine=SCRATCH_NORM),
    "scratch, fixed positions, mean before the norm": Arm(
        pre=None, fine=SCRATCH_NORM, position="sincos-2d-mae"
    ),
    "mae": Arm(pre=FIXED),
    "mae, learned positions": Arm(pre=LEARNED),
    "mae, learned positions, mean": Arm(pre=LEARNED, fine=replace(CLASS, pool="avg")),
    "mae, mean": Arm(pre=FIXED, fine=replace(CLASS, pool="avg")),
    "mae, mean, layer decay": Arm(pre=FIXED, fine=replace(CLASS, pool="avg", layer_decay=0.75)),
    "mae, mean before the norm": Arm(pre=FIXED, fine=replace(CLASS, pool="avg-norm")),
    "mae, head of 0.02": Arm(pre=FIXED, fine=replace(CLASS, head=0.02)),
    "mae, matrices of 0.02": Arm(pre=replace(FIXED, start="timm")),
    "mae, weights of JAX": Arm(pre=replace(FIXED, start="jax")),
    "mae, raw targets": Arm(pre=replace(FIXED, standardised=False)),
    "mae, share of 0.5": Arm(pre=replace(FIXED, share=0.5)),
    "masked-patch": Arm(pre=FIXED_COLOURS),
    "masked-patch, learned positions": Arm(pre=COLOURS),
    "masked-patch, weights of MAE": Arm(pre=MAE_COLOURS),
    "masked-patch, weights of MAE, mean": Arm(pre=MAE_COLOURS, fine=replace(CLASS, pool="avg")),
    "masked-patch, weights of MAE, layer decay": Arm(pre=MAE_COLOURS, fine=replace(CLASS, layer_decay=0.75)),
    "masked-patch, long": Arm(pre=LONG_COLOURS),
    "masked-patch, longer": Arm(pre=replace(LONG_COLOURS, steps=3000)),
    "masked-patch, longer, mean": Arm(pre=replace(LONG_COLOURS, steps=3000), fine=replace(CLASS, pool="avg")),
    "masked-patch, longer, mean before the norm": Arm(
        pre=replace(LONG_COLOURS, steps=3000), fine=replace(CLASS, pool="avg-norm")
    ),
    "masked-patch, long, mean": Arm(pre=LONG_COLOURS, fine=replace(CLASS, pool="avg")),
    "masked-patch, long, layer decay": Arm(pre=LONG_COLOURS, fine=replace(CLASS, layer_decay=0.75)),
    "masked-patch, 4x4 colours": Arm(pre=CELLS),
    "masked-patch, 4x4 colours, mean": Arm(pre=CELLS, fine=replace(CLASS, pool="avg")),
    "masked-patch, pixels": Arm(pre=PIXELS),
    "masked-patch, pixels, mean": Arm(pre=PIXELS, fine=replace(CLASS, pool="avg")),
    "masked-patch, share of 0.75": Arm(pre=replace(MAE_COLOURS, share=0.75)),
    "masked-patch, rate of 3e-3": Arm(pre=replace(MAE_COLOURS, lr=3e-3)),
    "independent": INDEPENDENT,
}


def measured(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    for name in options.sets:
        pixels = load(write(name, folder / name, photographs=options.data))

        @cache
        def once(asked: Masked, pixels: Pixels = pixels) -> tuple[State, dict[str, Any]]:
            return pretrained(asked, pixels)

        for arm, shots in product(options.arms, options.shots):
            pre = ARMS[arm].pre
            state, known = once(pre) if pre else (None, {})
            told = {key: round(value, 3) for key, value in known.items()}
            for seed in range(options.seeds):
                start = time.perf_counter()
                accuracy = fine_tuned(ARMS[arm], state, pixels, shots, seed)
                seconds = round(time.perf_counter() - start, 1)
                row = {"set": name, "arm": arm, "shots": shots, "seed": seed, "accuracy": round(accuracy, 2)}
                yield row | {"seconds": seconds} | told


def is_measured_now(row: dict[str, Any], options: argparse.Namespace) -> bool:
    return row["set"] in options.sets and row["arm"] in options.arms and int(row["shots"]) in options.shots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["signs", "clothing", "shapes"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--shots", nargs="+", type=int, default=[10])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=CSV)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.output.exists():
        with open(options.output, newline="") as file:
            rows = [row for row in csv.DictReader(file) if not is_measured_now(row, options)]
    with tempfile.TemporaryDirectory(prefix="pretraining-") as folder:
        for row in measured(options, Path(folder)):
            rows.append(row | {"machine": machine()})
            print(row, flush=True)
            write_rows(options.output, rows)


if __name__ == "__main__":
    main()
