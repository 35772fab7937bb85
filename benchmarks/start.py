"""Measure the time until the first row is written, beside the steps that nobody can do without.

    python -m benchmarks.start [--rounds 5] [--training] [--before CHECKOUT]

Each round in turn: `wordsworth label` of four small shards by a ViT-Ti/16, to its first file and to its end;
and in one process, one after the other, import torch, ray.init without changes, and loading that model.

Expected: the first file within twice the sum of these steps.

--training measures `wordsworth pretrain` instead, from its start to its first step, into start_training.csv:
a ViT-Ti/16 on 640 generated photographs in 8 packed tars, batches of 64, bf16, as benchmarks.training has it.
The seconds of each part come from the command's own log (`--log-format json`), whose lines are up to half a
second late, from the start of the worker's process, and from the first line of metrics.jsonl. --before names
a checkout of an earlier version, which runs in turn; what its log does not tell counts to the part behind.

Expected: the first step within 25 s on 2 cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from benchmarks.decode import photographs
from benchmarks.machine import machine, write_rows
from benchmarks.training import BATCH, CLASSES, SHARDS, size
from tests.support.builders import make_model, write_shards
from tests.support.trainings import workers
from wordsworth.pipeline.sources.pack import pack

CSV = Path(__file__).with_suffix(".csv")
TRAINING_CSV = Path(__file__).with_name("start_training.csv")
TRAINING_IMAGES = 640
LOOK_S = 0.2  # seconds between two looks for the worker's process
# Parts of a training's start, in order: imports of the command, Ray and the counts, Ray Train's controller
# until it starts the worker, the worker's process until it builds the model, the model, the first batch, and
# the step.
TRAINING_PARTS = ("command", "ray_and_counts", "controller", "worker", "model", "first_batch", "first_step")
# The part that ends with a line of the log, by its event, and by what it waits for.
PART_BEFORE = {"plan": "command", "data": "ray_and_counts", "begin": "model"}
PART_BEFORE_WAIT = {"building the model ...": "worker"}
ENV = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
PARTS = """
import sys, time
now = [time.perf_counter()]
import torch; now.append(time.perf_counter())
import ray
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
now.append(time.perf_counter())
from wordsworth.vit_model.model_folder import load_folder
load_folder(sys.argv[1]).model()
now.append(time.perf_counter())
print(*(after - before for before, after in zip(now, now[1:])))
"""


def round_of(source: Path, model: Path, out: Path) -> dict[str, float]:
    begin = time.time()
    command = [
        sys.executable,
        "-m",
        "wordsworth",
        "label",
        str(source),
        "--output",
        str(out),
        "--model",
        str(model),
    ]
    subprocess.run(command, capture_output=True, check=True, env=os.environ | ENV)
    seconds = time.time() - begin
    first = min(path.stat().st_mtime for path in out.glob("predictions/*.parquet")) - begin
    said = subprocess.run(
        [sys.executable, "-c", PARTS, str(model)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | ENV,
    )
    torch, ray, loading = map(float, said.stdout.split())
    found = {
        "first_file": first,
        "whole": seconds,
        "import_torch": torch,
        "ray_init": ray,
        "load_model": loading,
    }
    return {
        name: round(value, 2) for name, value in (found | {"ratio": first / (torch + ray + loading)}).items()
    }


# ---- a training ----


def write_packed(folder: Path) -> Path:
    """Write class folders of photographs, and pack them."""
    for number, data in enumerate(photographs(None, TRAINING_IMAGES)):
        path = folder / "images" / f"class-{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    pack(str(folder / "images"), str(folder / "packed"), shard_size=TRAINING_IMAGES // SHARDS)
    return folder / "packed"


def training(checkout: Path, source: Path, out: Path) -> dict[str, float]:
    """Return the seconds of each part of a training's start, and their sum."""
    command = [sys.executable, "-m", "wordsworth", "pretrain", str(source), *size("Ti/16")]
    command += ["--patch-size", "16", "--precision", "bf16", "--device", "cpu", "--epochs", "1"]
    command += ["--output", str(out), "--log-format", "json"]
    begin = time.time()
    ends: dict[str, float] = {}
    with tempfile.TemporaryFile("w+") as log:
        environment = os.environ | ENV | {"PYTHONPATH": str(checkout)}
        ran = subprocess.Popen(command, stdout=log, stderr=log, cwd=checkout, env=environment)
        while ran.poll() is None:
            time.sleep(LOOK_S)
            if "controller" not in ends and (found := workers()):
                ends["controller"] = found[0].create_time()
        log.seek(0)
        told = log.read()
    if ran.returncode:
        raise SystemExit(told)
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    for line in lines:
        moment = datetime.fromisoformat(line["time"]).timestamp()
        part = PART_BEFORE.get(line["event"]) or PART_BEFORE_WAIT.get(line["message"])
        if part:
            ends.setdefault(part, moment)
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    step_s = BATCH * first["step"] / first["images_per_second"]
    ends["first_batch"] = first["time"] - step_s * (1 - first["data_wait"])
    ends["first_step"] = first["time"]
    seconds: dict[str, float] = {}
    for part in TRAINING_PARTS:
        if part in ends:
            seconds[part] = round(ends[part] - begin - sum(seconds.values()), 2)
    return {**seconds, "sum": round(first["time"] - begin, 2)}


def measure_training(rounds: int, before: Path | None) -> None:
    rows = []
    checkouts = {"today": Path.cwd(), **({"before": before} if before else {})}
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        source = write_packed(Path(name))
        for turn in range(rounds):
            for version, checkout in list(checkouts.items())[:: 1 if turn % 2 else -1]:
                seconds = training(checkout, source, Path(name) / f"{version}-{turn}")
                rows.append({"version": version, "round": turn, **seconds, "machine": machine()})
                print({key: value for key, value in rows[-1].items() if key != "machine"}, flush=True)
                write_rows(TRAINING_CSV, rows, ["version", "round", *TRAINING_PARTS, "sum", "machine"])


# ---- all ----


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--before", type=Path)
    options = parser.parse_args()
    if options.training:
        measure_training(options.rounds, options.before)
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        folder = Path(name)
        write_shards(folder / "in", shards=4, images=8)
        model = make_model(folder / "model", width=192, depth=12, heads=3, mlp_dim=768)
        for turn in range(options.rounds):
            rows.append(
                {
                    "round": turn,
                    **round_of(folder / "in", model, folder / f"out-{turn}"),
                    "machine": machine(),
                }
            )
            print({key: value for key, value in rows[-1].items() if key != "machine"}, flush=True)
            write_rows(CSV, rows)
    ratio = statistics.median(row["ratio"] for row in rows)
    print(f"first file / (import torch + ray.init + load): {ratio:.2f}")


if __name__ == "__main__":
    main()
