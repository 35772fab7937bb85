"""Measure the way from encoded bytes to the model's input: ours beside that of other code.

    python -m benchmarks.decode [FOLDER] [--images 200] [--rounds 9]

FOLDER holds JPEG, PNG or WebP files at any depth. Without FOLDER, photographs of 500x375 are generated. All
arms decode the same photographs, in turn in one process with one thread.

Expected: ours, with the child, at least 2.2 times timm's transform, and at most 1.03 times the CPU of ours
without the child. The second figure came out at 1.20, not 1.03.

Every round times each arm once, in an order that turns. A ratio is the median over the rounds of one arm's
CPU divided by the other arm's CPU in the same round. CPU is that of this process and of the child together,
because this sum counts where every core is busy.

difference: mean and largest difference, of 255, from Pillow's resize-then-crop over all photographs.
"""

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import copy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.machine import machine, write_rows
from tests.support.builders import write_tar
from wordsworth.pipeline.images.decode import (
    DECODER,
    DecodeSettings,
    crop_for_evaluation,
    decode_unit,
    open_image,
)
from wordsworth.pipeline.images.resize import end_warm_up
from wordsworth.pipeline.images.sandbox import Sandbox
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.patches import patchify, unpatchify

SETTINGS = DecodeSettings(preprocessing=Preprocessing(), image_size=(224, 224), patch_size=16)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
TIMM, OURS, UNGUARDED = "timm's transform", "ours", "ours without the child"


def photographs(folder: Path | None, count: int) -> list[bytes]:
    """Return encoded photographs: a seeded choice from the folder, or generated ones."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        return [path.read_bytes() for path in random.Random(0).sample(files, min(count, len(files)))]
    return [_generated(seed) for seed in range(count)]


def _generated(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def unit_of(images: list[bytes]) -> Unit:
    """Return the photographs as the reader gives them."""
    with tempfile.TemporaryDirectory() as folder:
        write_tar(Path(folder, "a.tar"), {f"{number:06d}.jpg": data for number, data in enumerate(images)})
        (unit,) = read_units(find_shards([folder]).shards[0], ReadSettings(unit_rows=len(images)))
    return unit


def arms(images: list[bytes], sandbox: Sandbox) -> dict[str, Callable[[], list[np.ndarray]]]:
    """Return the arms. An arm makes the model's input of every photograph; `seen` turns this input into an
    image again."""
    unit, side = unit_of(images), SETTINGS.patch_size
    told = SETTINGS.preprocessing
    by_timm = create_transform(
        (3, 224, 224), interpolation="bicubic", crop_pct=told.crop_pct, mean=told.mean, std=told.std
    )
    by_v2 = v2.Compose([v2.Resize(248, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)])
    by_pillow = create_transform(
        (3, 224, 224), interpolation="bicubic", crop_pct=told.crop_pct, normalize=False
    )
    by_pillow.transforms.pop()  # the last one turns the image into floats

    def pillow(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    def torchvision(data: bytes) -> np.ndarray:
        pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        return by_v2(pixels).numpy()

    def unguarded(data: bytes) -> np.ndarray:
        pixels = open_image(data, SETTINGS)
        return patchify(crop_for_evaluation(pixels, SETTINGS.preprocessing, SETTINGS.image_size), side)

    return {
        TIMM: lambda: [by_timm(pillow(data)).numpy() for data in images],
        "Pillow, uint8": lambda: [patchify(np.asarray(by_pillow(pillow(data))), side) for data in images],
        "torchvision, uint8": lambda: [torchvision(data) for data in images],
        UNGUARDED: lambda: [unguarded(data) for data in images],
        OURS: lambda: list(decode_unit(copy(unit), SETTINGS, sandbox=sandbox).payload),
    }


def seen(found: np.ndarray) -> np.ndarray:
    """Turn an arm's result into an image: float (H, W, 3), 0 to 255."""
    if found.dtype == np.float32:  # timm has normalised the image: (3, H, W)
        preprocessing = SETTINGS.preprocessing
        return (found.transpose(1, 2, 0) * preprocessing.std + preprocessing.mean) * 255
    (height, width), side = SETTINGS.image_size, SETTINGS.patch_size
    return 1.0 * (
        found.transpose(1, 2, 0)
        if found.ndim == 3
        else unpatchify(found, (height // side, width // side), side)
    )


def measure(
    images: list[bytes], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, tuple[float, float]]]:
    """Return the CPU-seconds and the seconds of every round by arm, and the difference of each arm's
    images from Pillow's."""
    torch.set_num_threads(1)
    end_warm_up()
    sandbox = Sandbox(SETTINGS.sandbox_settings)
    timed = arms(images, sandbox)
    made = {arm: [seen(found) for found in run()] for arm, run in timed.items()}  # and warms up each arm
    away = {
        arm: [np.abs(a - b) for a, b in zip(found, made["Pillow, uint8"], strict=True)]
        for arm, found in made.items()
    }
    difference = {
        arm: (np.mean([a.mean() for a in found]), max(a.max() for a in found)) for arm, found in away.items()
    }
    cpu: dict[str, list[float]] = {arm: [] for arm in timed}
    seconds: dict[str, list[float]] = {arm: [] for arm in timed}
    for number in range(rounds):
        names = list(timed)
        for arm in names[number % len(names) :] + names[: number % len(names)]:
            start, used = time.perf_counter(), cpu_seconds(sandbox)
            timed[arm]()
            seconds[arm].append(time.perf_counter() - start)
            cpu[arm].append(cpu_seconds(sandbox) - used)
    sandbox.close()
    return cpu, seconds, difference


def cpu_seconds(sandbox: Sandbox) -> float:
    """Return the CPU-seconds that this process and the child have used."""
    return time.process_time() + int(Path(f"/proc/{sandbox.pid}/schedstat").read_text().split()[0]) / 1e9


def ratio(times: list[float], others: list[float]) -> float:
    """Return the median over the rounds: a slow moment of the machine slows both arms of a round."""
    return round(statistics.median(a / b for a, b in zip(times, others, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    images = photographs(options.folder, options.images)
    cpu, seconds, difference = measure(images, options.rounds)
    megapixels = np.mean([np.prod(Image.open(io.BytesIO(data)).size) for data in images]) / 1e6
    rows = [
        {
            "arm": arm,
            "cpu_us_per_image": round(1e6 * statistics.median(times) / len(images)),
            "us_per_image": round(1e6 * statistics.median(seconds[arm]) / len(images)),
            "times_timm": ratio(cpu[TIMM], times),
            "cpu_over_unguarded": ratio(times, cpu[UNGUARDED]),
            "mean_difference": f"{difference[arm][0]:.5f}",
            "largest_difference": f"{difference[arm][1]:.0f}",
            "images": len(images),
            "mean_megapixels": f"{megapixels:.3f}",
            "mean_kB": round(np.mean([len(data) for data in images]) / 1000),
            "rounds": options.rounds,
            "data": options.folder.name if options.folder else "generated",
            "decoder": DECODER,
            "machine": machine(),
        }
        for arm, times in cpu.items()
    ]
    write_rows(options.output, rows)
    for row in rows:
        print(f"{row['arm']:24} {row['cpu_us_per_image']:6} CPU-us an image  {row['times_timm']:6} x timm  "
              f"{row['cpu_over_unguarded']:6} x unguarded  difference {row['mean_difference']}")  # fmt: skip


if __name__ == "__main__":
    main()
