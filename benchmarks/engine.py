"""Measure the cost of the engine itself: a model that computes almost nothing, over small images.

    python -m benchmarks.engine [--images 1000000] [--units 3000] [--raylets 1 2 4] [--rounds 1]

Images: one run over this many JPEGs of 64 by 64, in tars of 10,000 (hard links of ten tars, so the disk holds
little), on a local Ray. Measured at marks on the way: the CPU-seconds of the command and of all processes
that the command starts, and the driver's memory.

Units: one run over tars of four images, each tar one unit, on a Ray of 1, 2 and 4 raylets of four logical
CPUs, all on this machine. Measured from the first quarter on: CPU and time of a unit, by the time at which
the unit's file was done. The processes of the cluster count too.

Expected: CPU for an image over the last half within 10% of the CPU between 50,000 and 100,000 images; the
driver's memory flat; about 50 CPU-milliseconds a unit, and no fewer units/s with more raylets than the cores
allow.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks.machine import machine, write_rows
from tests.support.builders import make_model, photo, write_tar

CSV = Path(__file__).with_suffix(".csv")
SHARD, TARS = 10_000, 10
MARKS = (0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the images
NOTHING = {"image_size": 32, "patch_size": 16, "width": 8, "depth": 1, "heads": 1, "mlp_dim": 8}
ENV = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
FIELDS = (
    "what",
    "raylets",
    "done",
    "seconds",
    "cpu_seconds",
    "cpu_ms_each",
    "each_per_second",
    "driver_mib",
    "machine",
)


@dataclass(frozen=True)
class Look:
    """Hold one moment: CPU-seconds of all processes so far, and the driver's memory."""

    at: float
    cpu: float
    driver_mib: float


def watched(command: list[str], others: list[int]) -> list[Look]:
    """Run the command, and look every half second at the command, at the processes `others`, and at all
    processes that these have started."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | ENV
    )
    roots, used, looks = [psutil.Process(pid) for pid in (process.pid, *others)], {}, []
    before = {
        one.pid: sum(one.cpu_times()[:2])
        for root in roots[1:]
        for one in [root, *root.children(recursive=True)]
    }
    while process.poll() is None:
        for one in [one for root in roots for one in _tree(root)]:
            with contextlib.suppress(psutil.Error):
                used[one.pid] = sum(one.cpu_times()[:2]) - before.get(one.pid, 0.0)
        with contextlib.suppress(psutil.Error):
            looks.append(Look(time.time(), sum(used.values()), roots[0].memory_info().rss / 2**20))
        time.sleep(0.5)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {process.stderr.read()[-2000:]}")
    return looks


def _tree(root: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [root, *root.children(recursive=True)]
    return []


def label(source: Path, out: Path, model: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "wordsworth",
        "label",
        str(source),
        "--output",
        str(out),
        "--model",
        str(model),
        *more,
    ]


def files(out: Path) -> list[tuple[float, int]]:
    """Return when each file was done, and the number of rows at that time."""
    done, rows = [], 0
    for at, path in sorted((path.stat().st_mtime, path) for path in out.glob("predictions/*.parquet")):
        rows += pq.read_metadata(path).num_rows
        done.append((at, rows))
    return done


def at(looks: list[Look], when: float) -> Look:
    return min(looks, key=lambda look: abs(look.at - when))


def row(what: str, raylets: int, done: int, first: Look, last: Look, each: int) -> dict[str, Any]:
    """Return a row for the time between two looks, in which `each` images or units were done."""
    seconds, cpu = last.at - first.at, last.cpu - first.cpu
    return {
        "what": what,
        "raylets": raylets,
        "done": done,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "cpu_ms_each": round(1000 * cpu / each, 3),
        "each_per_second": round(each / seconds, 1),
        "driver_mib": round(last.driver_mib),
    }


def of_images(folder: Path, images: int) -> Iterator[dict[str, Any]]:
    """Return a row for each mark, of the images since the mark before."""
    images = [photo(seed, (64, 64)) for seed in range(1000)]
    tars = [
        write_tar(folder / f"t{n}", {f"{n}/{i:05d}.jpg": images[i % 1000] for i in range(SHARD)})
        for n in range(TARS)
    ]
    (folder / "in").mkdir()
    for number in range(images // SHARD):
        os.link(tars[number % TARS], folder / "in" / f"part-{number:04d}.tar")
    out = folder / "out"
    begun = Look(time.time(), 0.0, 0.0)
    looks = watched(label(folder / "in", out, make_model(folder / "model", **NOTHING)), [])
    done, before, images_before = files(out), begun, 0
    assert done[-1][1] == images, f"{done[-1][1]} of {images} rows"
    for mark in MARKS:
        when, count = next((when, count) for when, count in done if count >= mark * images)
        if count > images_before:
            yield row("images", 1, count, before, look := at(looks, when), count - images_before)
            before, images_before = look, count


def of_units(folder: Path, units: int, raylets: int) -> Iterator[dict[str, Any]]:
    """Return a row of the units behind the first quarter."""
    from tests.faults.machines import machines

    for number in range(units // 4):
        write_tar(
            folder / "in" / f"{number:05d}.tar", {f"{number}-{i}.jpg": photo(i, (64, 64)) for i in range(4)}
        )
    out, model = folder / "out", make_model(folder / "model", **NOTHING)
    with machines(raylets - 1, num_cpus=4, memory=4 << 30, object_store_memory=200 << 20) as cluster:
        more = ("--unit-rows", "1", "--address", cluster.address)
        looks = watched(label(folder / "in", out, model, *more), [cluster._process.pid])
    done = files(out)
    assert len(done) == units, f"{len(done)} of {units} units"
    first, last = at(looks, done[units // 4][0]), at(looks, done[-1][0])
    yield row("units", raylets, units, first, last, units - units // 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=3000)
    parser.add_argument("--raylets", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=CSV)
    options = parser.parse_args()
    runs = [
        lambda folder, raylets=raylets: of_units(folder, options.units, raylets)
        for raylets in options.raylets
    ] * options.rounds
    if options.images:
        runs.append(lambda folder: of_images(folder, options.images))
    rows = []
    for run in runs:
        with tempfile.TemporaryDirectory(prefix="engine-") as folder:
            for found in run(Path(folder)):
                rows.append(found | {"machine": machine()})
                print(found, flush=True)
                write_rows(options.output, rows, FIELDS)


if __name__ == "__main__":
    main()
