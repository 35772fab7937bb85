"""Measure a folder of images beside a list of its files, and a table that names them.

    python -m benchmarks.lists [--rounds 3] [--tree PATH]

Each round in turn: the sources are listed and all units are read, in a fresh process; then `wordsworth label`
labels them by a small model. `--tree` measures another checkout in turn with this one: a version before.

Expected: the list and the table take at most 1.2 times as long to label as the folder.
"""

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

from PIL import Image

from benchmarks.machine import machine, write_rows
from tests.support.builders import make_model

CSV = Path(__file__).with_suffix(".csv")
ENV = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
FOLDERS = 10  # of images
READ = """
import sys, time
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.source_lists import expand_sources

def read():
    begin, cpu = time.perf_counter(), time.process_time()
    shards = find_shards(expand_sources([sys.argv[1]])).shards
    settings = ReadSettings(unit_rows=640)
    rows = sum(len(unit.samples) for shard in shards for unit in read_units(shard, settings))
    return len(shards), rows, time.perf_counter() - begin, time.process_time() - cpu

read()  # loads what is imported late
print(*read())
"""


def make_sources(folder: Path, count: int) -> dict[str, str]:
    """Write small images into class folders, and name them in a list and in a table."""
    names = []
    for number in range(count):
        path = folder / "images" / f"class{number % FOLDERS}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = BytesIO()
        Image.new("RGB", (64, 48), (number % 256, number // 256 % 256, 90)).save(buffer, "JPEG")
        path.write_bytes(buffer.getvalue())
        names.append(str(path))
    random.Random(0).shuffle(names)
    (folder / "list.txt").write_text("\n".join(names))
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["url"], *([name] for name in names)])
    return {"folder": f"{folder}/images", "list": f"@{folder}/list.txt", "table": f"{folder}/table.csv"}


def run(tree: Path, *arguments: str) -> str:
    """Run Python in a checkout and return what it prints."""
    env = os.environ | ENV | {"PYTHONPATH": str(tree)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=tree).stdout


def measure(tree: Path, source: str, model: Path, out: Path) -> dict[str, float]:
    """Return the seconds of reading all units and of a whole run, and the number of shards."""
    shards, rows, wall, cpu = run(tree, "-c", READ, source).split()
    begin = time.perf_counter()
    run(tree, "-m", "wordsworth", "label", source, "--output", str(out), "--model", str(model))
    seconds = time.perf_counter() - begin
    found = {"read_s": float(wall), "read_cpu_s": float(cpu), "label_s": seconds}
    return {"images": int(rows), "shards": int(shards)} | {
        name: round(value, 3) for name, value in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--tree", type=Path, help="another checkout, measured in turn with this one")
    options = parser.parse_args()
    trees = {"this": Path(__file__).parents[1]}
    if options.tree:
        trees = {"before": options.tree.resolve()} | trees
    rows = []
    with tempfile.TemporaryDirectory(prefix="lists-") as name:
        folder = Path(name)
        sources = make_sources(folder, options.images)
        model = make_model(
            folder / "model", image_size=32, patch_size=16, width=32, depth=2, heads=2, mlp_dim=64
        )
        for turn in range(options.rounds):
            for tree, path in trees.items():
                for kind, source in sources.items():
                    found = measure(path, source, model, folder / f"out-{turn}-{tree}-{kind}")
                    rows.append({"round": turn, "tree": tree, "source": kind, **found, "machine": machine()})
                    print({name: value for name, value in rows[-1].items() if name != "machine"}, flush=True)
                    write_rows(CSV, rows)
    for tree in trees:
        for kind in ("list", "table"):
            print(tree, kind, {name: ratio(rows, tree, kind, name) for name in ("read_cpu_s", "label_s")})


def ratio(rows: list[dict], tree: str, kind: str, name: str) -> float:
    """Return how many times as long as the folder a source takes, by the medians."""
    medians = []
    for one in (kind, "folder"):
        values = [row[name] for row in rows if (row["tree"], row["source"]) == (tree, one)]
        medians.append(statistics.median(values))
    return round(medians[0] / medians[1], 2)


if __name__ == "__main__":
    main()
