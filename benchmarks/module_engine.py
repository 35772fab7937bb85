"""Measure the engine's rate with a ViT that timm's module runs beside our own, on the same weights, in turn.

    python -m benchmarks.module_engine [--models vit_small_patch16_224 ...] [--rounds 15] [--images 32]

Expected: at least 0.97 of our own ViT's rate. Each arm is a Predictor as an actor has it: uint8 patches in,
top 5 out, one thread. A round times both arms once, in an order that turns, in CPU-seconds, so that other
programs of the machine do not count. The ratio is the median over the rounds of our own ViT's seconds divided
by the module's in the same round. `mib_of_images` is the memory of the images between decoder and model,
which is uint8 for both: patches of 16 pixels for our own ViT, one patch of 224 for the module.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch

from benchmarks.machine import machine, write_rows
from wordsworth.pipeline.prediction.actor import Predictor, PredictSettings
from wordsworth.vit_model.foreign.timm import from_timm
from wordsworth.vit_model.foreign.timm_module import load_timm_module
from wordsworth.vit_model.patches import patchify


def predictors(name: str, batch_size: int) -> dict[str, Predictor]:
    """Return both predictors of a timm ViT, with the same random weights."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "w.pth")
        torch.save(timm.create_model(name).state_dict(), weights)
        checkpoints = {"ours": from_timm(name, weights), "timm": load_timm_module(name, weights)}
    settings = PredictSettings(precision="fp32", device="cpu", batch_size=batch_size)
    return {arm: Predictor(checkpoint, settings) for arm, checkpoint in checkpoints.items()}


def measure(name: str, rounds: int, num_images: int, batch_size: int) -> list[dict]:
    """Return a row for each arm."""
    arms = predictors(name, batch_size)
    config = arms["timm"].config
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, *config.image_size, 3), np.uint8)
    patches = {arm: patchify(pixels, predictor.config.patch_size) for arm, predictor in arms.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    answers = {arm: predictor.predict(patches[arm]) for arm, predictor in arms.items()}  # warm
    assert (answers["ours"]["ids"][:, 0] == answers["timm"]["ids"][:, 0]).all(), "the arms differ"
    for number in range(rounds):
        for arm in list(arms)[:: 1 if number % 2 else -1]:
            begin = time.process_time()
            arms[arm].predict(patches[arm])
            seconds[arm].append(time.process_time() - begin)
    ratios = [ours / timms for ours, timms in zip(seconds["ours"], seconds["timm"], strict=True)]
    rows = []
    for arm, times in seconds.items():
        rows.append(
            {
                "model": name,
                "arm": arm,
                "images_per_cpu_second": round(num_images / statistics.median(times), 2),
                "times_ours": 1.0 if arm == "ours" else round(statistics.median(ratios), 3),
                "batch_size": batch_size,
                "rounds": rounds,
                "mib_of_images": round(patches[arm].nbytes / 2**20, 2),
                "timm": timm.__version__,
                "machine": machine(),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["vit_tiny_patch16_224", "vit_small_patch16_224"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for row in measure(name, options.rounds, options.images, options.batch_size):
            print(
                f"{row['model']:26} {row['arm']:5} {row['images_per_cpu_second']:8} images/CPU-second "
                f"{row['times_ours']}"
            )
            rows.append(row)
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
