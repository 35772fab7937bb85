"""What the guarded child costs: the same photographs decoded, cropped and patchified with and without it, in turn in one process.

    python -m benchmarks.guard [FOLDER] [--images 200] [--rounds 9]

FOLDER holds JPEG, PNG or WebP files at any depth; without it, photographs of 500x375 are generated. Expected: at most 1.03 of the
time without the guard. Every round times each arm once, in an order that turns; a ratio is the median over the rounds of the arm's
time divided by the first arm's in the same round. The first arm decodes in this process with the code that the child runs. CPU is
that of this process and of the child together: what the guard costs where every core is busy and waiting for the other is free.
"""

import argparse
import csv
import io
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import machine
from pipeline.decode import DECODER, DecodeSettings, fit, open_image, upright
from pipeline.guard import Guard, GuardSettings
from vit_model.config import Preprocessing
from vit_model.patches import patchify

SETTINGS = DecodeSettings(Preprocessing(), (224, 224), 16)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FIELDS = ("arm", "ms_per_image", "images_per_second", "times_unguarded", "cpu_ms_per_image", "cpu_times_unguarded", "images")
FIELDS += ("mean_megapixels", "rounds", "data", "decoder", "machine")


def photographs(folder: Path | None, count: int) -> list[bytes]:
    """Encoded photographs: a seeded choice from the folder, or generated ones."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        return [path.read_bytes() for path in random.Random(0).sample(files, min(count, len(files)))]
    return [_generated(seed) for seed in range(count)]


def _generated(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def arms(guard: Guard) -> dict[str, Callable[[bytes], Image.Image]]:
    """What is timed: bytes -> an upright RGB picture."""

    def guarded(data: bytes) -> Image.Image:
        return upright(*guard.decode(data), "apply")

    def pillow(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data))
        return upright(image.convert("RGB"), image.getexif().get(0x0112), "apply")

    return {"in this process": lambda data: open_image(data, SETTINGS), "guarded": guarded, "Pillow in this process": pillow}


def measure(images: list[bytes], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every round, by arm, on the clock and of CPU. All arms must give the same patches."""
    guard = Guard(GuardSettings(SETTINGS.max_pixels, SETTINGS.max_side, SETTINGS.timeout))
    timed = arms(guard)
    for data in images:  # warm, and the same
        first, *others = [patches(decode(data)) for decode in timed.values()]
        assert all(np.array_equal(first, other) for other in others), "the arms disagree"
    seconds: dict[str, list[float]] = {arm: [] for arm in timed}
    cpu: dict[str, list[float]] = {arm: [] for arm in timed}
    for number in range(rounds):
        names = list(timed)
        for arm in names[number % len(names) :] + names[: number % len(names)]:
            start, used = time.perf_counter(), cpu_seconds(guard)
            for data in images:
                patches(timed[arm](data))
            seconds[arm].append(time.perf_counter() - start)
            cpu[arm].append(cpu_seconds(guard) - used)
    guard.close()
    return seconds, cpu


def cpu_seconds(guard: Guard) -> float:
    """CPU that this process and the child have used."""
    return time.process_time() + int(Path(f"/proc/{guard.pid}/schedstat").read_text().split()[0]) / 1e9


def patches(image: Image.Image) -> np.ndarray:
    return patchify(fit(image, SETTINGS.preprocessing, SETTINGS.image_size), SETTINGS.patch_size)


def ratio(times: list[float], baseline: list[float]) -> float:
    """The median over the rounds: what slows the machine down for a while slows both."""
    return round(statistics.median(t / b for t, b in zip(times, baseline, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    images = photographs(options.folder, options.images)
    seconds, cpu = measure(images, options.rounds)
    pixels = [np.prod(Image.open(io.BytesIO(data)).size) for data in images]
    with open(options.output, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for arm, times in seconds.items():
            row = {
                "arm": arm,
                "ms_per_image": round(1000 * statistics.median(times) / len(images), 3),
                "images_per_second": round(len(images) / statistics.median(times), 1),
                "times_unguarded": ratio(times, seconds["in this process"]),
                "cpu_ms_per_image": round(1000 * statistics.median(cpu[arm]) / len(images), 3),
                "cpu_times_unguarded": ratio(cpu[arm], cpu["in this process"]),
                "images": len(images),
                "mean_megapixels": round(float(np.mean(pixels)) / 1e6, 3),
                "rounds": options.rounds,
                "data": options.folder.name if options.folder else "generated",
                "decoder": DECODER,
                "machine": machine(),
            }
            writer.writerow(row)
            print(f"{arm:24} {row['ms_per_image']:8} ms/image  {row['times_unguarded']:6} x  CPU {row['cpu_times_unguarded']:6} x")


if __name__ == "__main__":
    main()
