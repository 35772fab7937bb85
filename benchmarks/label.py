"""Run the whole labeler beside the code that one would write instead.

    python -m benchmarks.label [FOLDER] [--images 4000] [--rounds 3] [--models Ti/16 S/16 no-op] [--sweep]

All arms label the same shards, in turn, each by a command of its own. FOLDER holds photographs (.jpg) at any
depth; they are used again until there are enough. Without FOLDER, photographs are generated.

Arms: ours; a torch DataLoader with webdataset and timm (peers/loader.py); Ray Data as its documentation
teaches it (peers/ray_data.py), which is in fp32; and both peers in the dtype that ours chooses. With --sweep
the peers' workers, threads and batch sizes are tried first, on a quarter of the images. All results go into
the file, and the best setting in the file is the peer. Rows of models and of sweeps that are not measured now
stay in the file. "no-op" is a model of one layer, 8 wide, so that the engine is what counts.

The steady rate is the rate between the first quarter of the images and the last one, by the time at which
each batch (of ours: each file) was done. floor: the cores divided by the CPU-seconds of decoding and of the
model's forward pass, measured in the same round in one process with one thread. CPU is that of all processes
of the command, mib their proportional memory (PSS) at its peak.

Expected: at least 0.90 of the floor; 1.0 of the loader in the same dtype, 1.5 of the loader in fp32; 2 of Ray
Data; for the no-op 0.75 of the loader.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import torch

from benchmarks.decode import SETTINGS, photographs, unit_of
from benchmarks.machine import machine, write_rows
from tests.support.builders import write_tar
from wordsworth.pipeline.cluster.cores import cores
from wordsworth.pipeline.images.decode import decode_unit
from wordsworth.pipeline.images.resize import end_warm_up
from wordsworth.pipeline.images.sandbox import Sandbox
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.inference import prepare
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.model_folder import save_folder

CSV = Path(__file__).with_suffix(".csv")
SHARDS = 8
LAST_LINES = 8  # of a command that failed, which are shown
MODELS = {"Ti/16": (192, 12, 3), "S/16": (384, 12, 6), "no-op": (8, 1, 1)}
ARMS = [("ours", "bf16"), ("loader", "bf16"), ("loader", "fp32"), ("ray_data", "bf16"), ("ray_data", "fp32")]
SWEEPS = {
    "loader": [{"workers": w, "threads": t, "batch-size": b} for w, t, b in product((1, 2), (1, 2), (8, 32))],
    "ray_data": [{"actors": actors, "batch-size": batch} for actors, batch in product((1, 2), (8, 32, 128))],
}
USUAL = {
    "loader": {"workers": 2, "threads": 2, "batch-size": 32},
    "ray_data": {"actors": 2, "batch-size": 128},
}  # the best for Ti/16


# ---- what is labelled --------------------------------------------------------------------------------------


def write_shards(folder: Path, images: list[bytes], count: int) -> Path:
    each = count // SHARDS
    for shard in range(SHARDS):
        members = {f"{shard}/{n:05d}.jpg": images[(shard * each + n) % len(images)] for n in range(each)}
        write_tar(folder / f"part-{shard}.tar", members)
    return folder


def config(model: str) -> ViTConfig:
    width, depth, heads = MODELS[model]
    return ViTConfig(width=width, depth=depth, heads=heads, mlp_dim=4 * width, num_classes=1000)


def floor(model: str, images: list[bytes], precision: str) -> float:
    """Return the images/s at which all cores do nothing but decode and run the model."""
    torch.set_num_threads(1)
    end_warm_up()
    sample = images[:64]
    sandbox = Sandbox(SETTINGS.sandbox_settings)
    network = prepare(VisionTransformer(config(model)), Preprocessing(), precision, "cpu")

    def decode() -> torch.Tensor:
        return torch.from_numpy(decode_unit(unit_of(sample), SETTINGS, sandbox=sandbox).payload)

    @torch.inference_mode()
    def forward() -> None:
        for at in range(0, len(patches), 8):
            network(patches[at : at + 8])

    patches = decode()
    forward()
    child = Path(f"/proc/{sandbox.pid}/schedstat")
    before, begin = int(child.read_text().split()[0]), time.process_time()
    decode()
    forward()
    seconds = time.process_time() - begin + (int(child.read_text().split()[0]) - before) / 1e9
    sandbox.close()
    return cores() * len(sample) / seconds


# ---- one command -------------------------------------------------------------------------------------------


def ours(shards: Path, out: Path, model: Path | str, precision: str, command: str = "label") -> list[str]:
    return [
        *(sys.executable, "-m", "wordsworth", command, str(shards)),
        *("--output", str(out), "--model", str(model), "--precision", precision),
    ]


def peer(name: str, shards: Path, out: Path, model: str, settings: dict[str, Any]) -> list[str]:
    width, depth, heads = MODELS[model]
    settings = {"width": width, "depth": depth, "heads": heads, **settings}
    flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return [sys.executable, "-m", f"benchmarks.peers.{name}", str(shards), str(out), *flags]


def run(command: list[str]) -> dict[str, Any]:
    """Run a command.

    Returns:
        seconds, CPU-seconds and peak memory of the command and of all processes that it starts, and its
            stdout.

    Raises:
        RuntimeError: the command failed; the message has the last lines of its stderr.
    """
    begin, used, peak = time.time(), {}, 0.0
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=env)
        root, lines = psutil.Process(process.pid), []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        reader.start()
        looked = 0.0
        while process.poll() is None:
            memory, now, look = (
                0,
                time.monotonic(),
                time.monotonic() - looked > 10,
            )  # to look takes CPU itself
            for one in [root, *root.children(recursive=True)]:
                try:
                    times = one.cpu_times()
                    used[one.pid] = times.user + times.system
                    memory += one.memory_full_info().pss if look else 0
                except psutil.Error:
                    continue
            looked, peak = (now, max(peak, memory / 2**20)) if memory else (looked, peak)
            time.sleep(0.5)
        reader.join()
        said.seek(0)
        last = said.readlines()[-LAST_LINES:]
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(last)}")
    return {
        "begin": begin,
        "seconds": time.time() - begin,
        "cpu": sum(used.values()),
        "mib": round(peak),
        "lines": lines,
    }


def done_by_file(out: Path, begin: float) -> list[tuple[float, int]]:
    """Return the times at which images were done, with their numbers, by the files of a run."""
    files = sorted(
        (path.stat().st_mtime - begin, pq.read_metadata(path).num_rows)
        for path in out.glob("predictions/*.parquet")
    )
    images = 0
    return [(at, images := images + rows) for at, rows in files]


def done_by_line(lines: list[str]) -> list[tuple[float, int]]:
    return [(line["at"], line["images"]) for line in map(json.loads, lines) if "at" in line]


def figures(done: list[tuple[float, int]], ran: dict[str, Any]) -> dict[str, Any]:
    """Return the steady rate: between a quarter of the images and the last."""
    total = done[-1][1]
    at, before = next((at, images) for at, images in done if images >= total / 4)
    return {
        "images": total,
        "steady_images_per_second": round((total - before) / (done[-1][0] - at), 1),
        "first_done_seconds": round(done[0][0], 1),
        "seconds": round(ran["seconds"], 1),
        "cpu_ms_per_image": round(1000 * ran["cpu"] / total, 1),
        "mib": ran["mib"],
    }


# ---- everything --------------------------------------------------------------------------------------------


class Arms:
    """Hold one set of shards, and run the arms on it."""

    def __init__(self, folder: Path, images: list[bytes], count: int):
        self.folder, self.number = folder, 0
        self.shards = write_shards(folder / "shards", images, count)

    def out(self) -> Path:
        self.number += 1
        return self.folder / f"out-{self.number}"

    def peer(self, name: str, model: str, setting: dict[str, Any], dtype: str) -> dict[str, Any]:
        ran = run(peer(name, self.shards, self.out(), model, {**setting, "dtype": dtype}))
        return {"settings": json.dumps(setting), **figures(done_by_line(ran["lines"]), ran)}

    def ours(self, model: str, dtype: str) -> dict[str, Any]:
        out, saved = self.out(), self.folder / f"model-{self.number}"
        save_folder(saved, random_checkpoint(config(model), Preprocessing(), 0))
        ran = run(ours(self.shards, out, saved, dtype))
        return figures(done_by_file(out, ran["begin"]), ran)


def swept(few: Arms, model: str, name: str) -> Iterator[dict[str, Any]]:
    """Run every setting of a peer once."""
    for setting in SWEEPS[name]:
        yield {
            "model": model,
            "arm": f"sweep of {name}",
            "dtype": "bf16",
            **few.peer(name, model, setting, "bf16"),
        }


def best(rows: list[dict[str, Any]], model: str, name: str) -> dict[str, Any]:
    """Return the fastest setting of a peer in the measured sweeps."""
    of_it = [row for row in rows if (row["model"], row["arm"]) == (model, f"sweep of {name}")]
    fastest = max(of_it, key=lambda row: float(row["steady_images_per_second"]), default=None)
    return json.loads(fastest["settings"]) if fastest else USUAL[name]


def measured(
    options: argparse.Namespace, rows: list[dict[str, Any]], folder: Path
) -> Iterator[dict[str, Any]]:
    """Run all arms and return their rows.

    Args:
        rows: all known rows; the new rows are added.
    """
    images = photographs(options.folder, min(options.images, 1000))
    arms = Arms(folder / "all", images, options.images)
    few = Arms(folder / "few", images, options.images // 4)
    for model in options.models:
        for name in SWEEPS if options.sweep else ():
            yield from swept(few, model, name)
        for turn in range(options.rounds):
            lowest = floor(model, images, "bf16")
            for name, dtype in ARMS[turn % len(ARMS) :] + ARMS[: turn % len(ARMS)]:
                found = (
                    arms.ours(model, dtype)
                    if name == "ours"
                    else arms.peer(name, model, best(rows, model, name), dtype)
                )
                row = {"model": model, "arm": name, "dtype": dtype, "round": turn, **found}
                yield row | {"floor_images_per_second": round(lowest, 1)}


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return, as medians over the rounds, our figures divided by the peers' figures of the same round."""
    rounds = [row for row in rows if isinstance(row.get("round"), int)]
    for model in dict.fromkeys(row["model"] for row in rounds):
        mine = {row["round"]: row for row in rounds if (row["model"], row["arm"]) == (model, "ours")}
        rate = statistics.median(row["steady_images_per_second"] for row in mine.values())
        share = statistics.median(
            row["steady_images_per_second"] / row["floor_images_per_second"] for row in mine.values()
        )
        yield f"{model}: ours {rate:.1f} images/s, {share:.2f} of the floor"
        for arm in ARMS[1:]:
            others = [row for row in rounds if (row["model"], row["arm"], row["dtype"]) == (model, *arm)]
            for name in ("steady_images_per_second", "seconds"):
                ratios = [mine[row["round"]][name] / row[name] for row in others]
                middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
                yield f"{model}: ours / {' '.join(arm)}, {name}: {middle:.2f} ({least:.2f} to {most:.2f})"


def kept(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of the file that are not measured again."""
    if not options.output.exists():
        return []
    with open(options.output, newline="") as file:
        return [
            row
            for row in csv.DictReader(file)
            if row["model"] not in options.models or (row["arm"].startswith("sweep") and not options.sweep)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--output", type=Path, default=CSV)
    options = parser.parse_args()
    rows = kept(options)
    with tempfile.TemporaryDirectory(prefix="label-") as folder:
        for row in measured(options, rows, Path(folder)):
            rows.append(
                row | {"data": options.folder.name if options.folder else "generated", "machine": machine()}
            )
            print({key: value for key, value in row.items() if key != "machine"}, flush=True)
            write_rows(options.output, rows)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
