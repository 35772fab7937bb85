"""Run a training command beside a plain PyTorch loop around timm's model.

    python -m benchmarks.training [FOLDER] [--images 2000] [--epochs 3] [--rounds 3] [--models Ti/16 S/16]

Both train on the same shards, in turn, each by a command of its own. FOLDER holds photographs (.jpg) at any
depth; they are used again until there are enough. Without FOLDER, photographs are generated. The loop
(peers/training_loop.py) has a DataLoader with webdataset, random crops and mirroring by torchvision, AdamW
and autocast. Its threads and workers are tried first, and the fastest setting is the peer. Both have one
worker, batches of 64, in bf16.

The steady rate is the rate between the first quarter of the images and the last one. data_wait: the share of
the last epoch in which the step waited for its batch. mfu: as in docs/training.md.

Expected: at least 0.95 of the loop's rate, and a data wait below 5%: the model takes ten times as long as
decoding.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.decode import photographs
from benchmarks.label import MODELS, done_by_line, figures, run
from benchmarks.machine import machine, write_rows
from tests.support.builders import write_tar

CSV = Path(__file__).with_suffix(".csv")
SHARDS, BATCH, CLASSES = 8, 64, 10
SWEEP = [{"workers": workers, "threads": threads} for workers, threads in product((1, 2), (1, 2))]


def write_shards(folder: Path, images: list[bytes], count: int) -> Path:
    """Write JPEGs with a class each; the classes mean nothing."""
    for shard in range(SHARDS):
        members = {}
        for number in range(shard, count, SHARDS):
            members |= {
                f"{number:06d}.jpg": images[number % len(images)],
                f"{number:06d}.cls": str(number % CLASSES).encode(),
            }
        write_tar(folder / f"part-{shard}.tar", members)
    return folder


def size(model: str) -> list[str]:
    width, depth, heads = MODELS[model]
    return ["--width", str(width), "--depth", str(depth), "--heads", str(heads), "--batch-size", str(BATCH)]


def loop(shards: Path, model: str, epochs: int, setting: dict[str, int]) -> dict[str, Any]:
    settings = [text for name, value in setting.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.peers.training_loop", str(shards), *size(model), *settings]
    ran = run([*command, "--epochs", str(epochs), "--classes", str(CLASSES), "--dtype", "bf16"])
    return {"settings": json.dumps(setting), **figures(done_by_line(ran["lines"]), ran)}


def ours(shards: Path, model: str, epochs: int, output: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "wordsworth",
        "pretrain",
        str(shards),
        *size(model),
        "--patch-size",
        "16",
        "--lr",
        "1e-4",
    ]
    ran = run(
        [*command, "--epochs", str(epochs), "--precision", "bf16", "--device", "cpu", "--output", str(output)]
    )
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    done = [(line["time"] - ran["begin"], line["step"] * BATCH) for line in lines]
    last = next(line for line in reversed(lines) if line["kind"] == "epoch")
    return {**figures(done, ran), "data_wait": last["data_wait"], "mfu": last["mfu"]}


def measured(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    images = photographs(options.folder, min(options.images, 1000))
    shards = write_shards(folder / "all", images, options.images)
    few = write_shards(folder / "few", images, options.images // 4)
    for model in options.models:
        tried = [
            {"model": model, "arm": "sweep of loop", **loop(few, model, options.epochs, setting)}
            for setting in SWEEP
        ]
        yield from tried
        best = json.loads(max(tried, key=lambda row: row["steady_images_per_second"])["settings"])
        for turn in range(options.rounds):
            arms = {
                "ours": lambda turn=turn, model=model: ours(
                    shards, model, options.epochs, folder / f"{model[:-3]}-{turn}"
                ),
                "loop": lambda model=model, best=best: loop(shards, model, options.epochs, best),
            }
            for name in list(arms)[:: 1 if turn % 2 else -1]:
                yield {"model": model, "arm": name, "round": turn, **arms[name]()}


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return the medians over the rounds."""
    for model in dict.fromkeys(row["model"] for row in rows):
        of_it = [row for row in rows if row["model"] == model and "round" in row]
        rates = {(row["round"], row["arm"]): row["steady_images_per_second"] for row in of_it}
        rounds = {turn for turn, _ in rates}
        ratios = [rates[turn, "ours"] / rates[turn, "loop"] for turn in rounds]
        waits = [row["data_wait"] for row in of_it if row["arm"] == "ours"]
        middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
        ratio = f"ours / loop {middle:.2f} ({least:.2f} to {most:.2f})"
        yield f"{model}: {ratio}, data wait {statistics.median(waits):.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["Ti/16", "S/16"])
    parser.add_argument("--output", type=Path, default=CSV)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        for row in measured(options, Path(folder)):
            rows.append(
                row | {"data": options.folder.name if options.folder else "generated", "machine": machine()}
            )
            print({key: value for key, value in row.items() if key != "machine"}, flush=True)
            write_rows(options.output, rows)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
