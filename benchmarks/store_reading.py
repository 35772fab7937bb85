"""Measure what reading from an object store costs beside a local disk, and write the rows into stores.csv.

    python -m benchmarks.store_reading --data FOLDER [--latency 0.05] [--rounds 3] [--parts read paced label]

The same images, each of about 100 kB, as 8 tars, as loose images, as 8 tables that name them, in 8 Parquet
files and in 8 zip archives.
The store is tests/support/counting_store.py in a process of its own: read only, one thread, each answer after
the latency. It shares the cores with the reader; the note has its CPU-seconds. Rounds in turn: disk, store.

read: all units are read in one process, and nothing is done with them.
paced: the same, by a reader that waits for a 60th of a second with each image, about as long as two cores
take for an image by ViT-Ti/16. It needs little CPU: other programs on the machine disturb it little.
label: `wordsworth label` by a ViT-Ti/16 with random weights. The rate is the steady one of label.py.

Expected of 50 ms, before anything was read ahead: tars 0.83 of the disk's rate, loose images 0.37 (each waits
for its own answer). With reading ahead: tars 0.95, since a range of 8 MiB lasts for a second of decoding;
loose images 0.85, since a request costs 3 CPU-milliseconds of the 35 that an image takes.
"""

import argparse
import csv
import io
import json
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.label import done_by_file, figures, run
from benchmarks.machine import machine, write_rows
from tests.faults.servers import free_port
from tests.support.builders import make_model

CSV = Path(__file__).with_name("stores.csv")
FIELDS = ("store", "fault", "latency_ms", "source", "rounds", "rows_exact", "seconds")
FIELDS += ("requests_per_image", "rate", "ratio_to_disk", "note")
STORE = "counting server"
SHARDS = 8
# What is read, by the name of the source.
KINDS = {"tar": "tar", "loose": "loose", "table": "*.csv", "parquet": "parquet", "zip": "zip"}
PACES_S = {"read": 0.0, "paced": 1 / 60}  # seconds for an image
READ = """
import json, sys, time
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings

options = json.loads(sys.argv[2])
shards = find_shards([sys.argv[1]], storage_options=options).shards
begin, cpu = time.perf_counter(), time.process_time()
rows = 0
for shard in shards:
    for unit in read_units(shard, ReadSettings(unit_rows=64, storage_options=options)):
        assert not unit.fault, unit.fault
        time.sleep(len(unit.samples) * float(sys.argv[3]))
        rows += sum(error is None for error in unit.samples["error"].to_pylist())
print(json.dumps([rows, time.perf_counter() - begin, time.process_time() - cpu]))
"""


def images_of(data: Path, count: int) -> list[bytes]:
    """Return images of about 100 kB, made from the photographs of a folder."""
    paths = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    random.Random(0).shuffle(paths)
    made = []
    for path in paths[:count]:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        for quality in (80, 90, 94, 96, 98, 100):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality)
            if buffer.tell() >= 95_000:
                break
        made.append(buffer.getvalue())
    return [made[number % len(made)] for number in range(count)]


def write_sources(root: Path, images: list[bytes]) -> None:
    """Write the sources into the bucket "b" below `root`: see KINDS."""
    bucket = root / "b"
    for folder in ("tar", "loose", "parquet", "zip"):
        (bucket / folder).mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(len(images))]
    for name, data in zip(names, images, strict=True):
        (bucket / "loose" / name).write_bytes(data)
    share = -(-len(images) // SHARDS)
    for number in range(SHARDS):
        part = range(number * share, min(len(images), (number + 1) * share))
        with tarfile.open(bucket / "tar" / f"{number}.tar", "w") as archive:
            for index in part:
                info = tarfile.TarInfo(names[index])
                info.size = len(images[index])
                archive.addfile(info, io.BytesIO(images[index]))
        with zipfile.ZipFile(bucket / "zip" / f"{number}.zip", "w") as packed:
            for index in part:
                packed.writestr(names[index], images[index])
        columns = {"key": [names[index] for index in part], "image": [images[index] for index in part]}
        pq.write_table(pa.table(columns), bucket / "parquet" / f"{number}.parquet", row_group_size=100)
        with open(bucket / f"{number}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["url"], *([f"loose/{names[index]}"] for index in part)])


class Server:
    """Run the counting store in a process of its own."""

    def __init__(self, root: Path, latency_s: float):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "tests.support.counting_store", str(root), str(self.port)]
        self.process = subprocess.Popen([*command, "--latency", str(latency_s)])
        while True:
            try:
                self.counts()
            except OSError:
                time.sleep(0.05)
            else:
                break

    @property
    def options(self) -> dict[str, Any]:
        return {"key": "K", "secret": "S", "endpoint_url": self.url}

    def counts(self) -> dict[str, float]:
        """Return the requests since the last call by method, and the CPU-seconds until now."""
        with urllib.request.urlopen(f"{self.url}/?counts") as answer:
            return json.load(answer)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def read(source: str, options: dict[str, Any], pace_s: float) -> dict[str, float]:
    """Read all units of a source, and return rows, seconds, CPU-seconds and the rate.

    Args:
        source: what is read
        options: of the store
        pace_s: seconds for which the reader waits with an image, as if for who takes it
    """
    ran = run([sys.executable, "-c", READ, source, json.dumps(options), str(pace_s)])
    rows, seconds, cpu = json.loads(ran["lines"][-1])
    return {"rows": rows, "seconds": seconds, "cpu": cpu, "rate": rows / seconds}


def label(source: str, options: dict[str, Any], model: Path, out: Path) -> dict[str, float]:
    """Label a source, and return rows, seconds, CPU-seconds and the steady rate."""
    command = [
        sys.executable,
        "-m",
        "wordsworth",
        "label",
        source,
        "--output",
        str(out),
        "--model",
        str(model),
    ]
    command += ["--unit-rows", "64", *(["--storage-options", json.dumps(options)] if options else [])]
    ran = run(command)
    tables = [pq.read_table(path, columns=["error"]) for path in (out / "predictions").glob("*.parquet")]
    rate = figures(done_by_file(out, ran["begin"]), ran)["steady_images_per_second"]
    shutil.rmtree(out)
    rows = sum(table["error"].null_count for table in tables)
    return {"rows": rows, "seconds": ran["seconds"], "cpu": ran["cpu"], "rate": rate}


def measure(options: argparse.Namespace, server: Server, root: Path, model: Path) -> list[dict[str, Any]]:
    """Return a row of stores.csv for each part, source and arm, with medians of the rounds."""
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    server.counts()
    cpu_before = server.counts()["cpu_s"]
    for turn in range(options.rounds):
        for part in options.parts:
            for kind in options.kinds:
                for arm in ("disk", "store"):
                    source = f"{'s3:/' if arm == 'store' else root}/b/{KINDS[kind]}"
                    to = server.options if arm == "store" else {}
                    if part in PACES_S:
                        took = read(source, to, PACES_S[part])
                    else:
                        took = label(source, to, model, root / f"out-{turn}-{kind}-{arm}")
                    counts = server.counts()
                    took["server_cpu"] = counts["cpu_s"] - cpu_before
                    cpu_before = counts["cpu_s"]
                    took["requests"] = sum(counts.get(name, 0) for name in ("GET", "HEAD", "LIST"))
                    found.setdefault((part, kind, arm), []).append(took)
                    print(turn, part, kind, arm, {name: round(x, 2) for name, x in took.items()}, flush=True)
    return [row_of(options, key, found) for key in found]


def row_of(options: argparse.Namespace, key: tuple[str, str, str], found: dict) -> dict[str, Any]:
    """Return a row of stores.csv."""
    part, kind, arm = key
    took = found[key]

    def median(name: str) -> float:
        return statistics.median(one[name] for one in took)

    beside = found[part, kind, "disk"]
    ratios = [mine["rate"] / disk["rate"] for mine, disk in zip(took, beside, strict=True)]
    rows = max(1, median("rows"))
    note = (
        f"{part}{options.name}: {options.images} images of {options.image_bytes / 1000:.0f} kB; "
        f"ratio {min(ratios):.2f} to {max(ratios):.2f}; {1000 * median('cpu') / rows:.1f} CPU-ms an image, "
        f"{1000 * median('server_cpu') / rows:.2f} of the server; {machine()}"
    )
    return {
        "store": STORE if arm == "store" else "disk",
        "fault": "none",
        "latency_ms": 1000 * options.latency if arm == "store" else 0,
        "source": kind,
        "rounds": len(took),
        "rows_exact": all(one["rows"] == options.images for one in took),
        "seconds": round(median("seconds"), 1),
        "requests_per_image": round(median("requests") / rows, 3),
        "rate": round(median("rate"), 1),
        "ratio_to_disk": round(statistics.median(ratios), 2),
        "note": note,
    }


def merge(rows: list[dict[str, Any]]) -> None:
    """Write the rows into the file, in the place of rows of the same arm, source, latency and part."""

    def what(row: dict[str, Any]) -> tuple[str, ...]:
        head = row["note"].partition(":")[0]
        return (row["store"], row["fault"], str(row["latency_ms"]), row["source"], head)

    old = list(csv.DictReader(CSV.read_text().splitlines())) if CSV.exists() else []
    measured = {what(row) for row in rows}
    write_rows(CSV, [*(row for row in old if what(row) not in measured), *rows], FIELDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--parts", nargs="+", choices=(*PACES_S, "label"), default=[*PACES_S, "label"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--name", default="", help="stands in the note, behind the part: such as ' before'")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stores-") as name:
        root = Path(name)
        images = images_of(options.data, options.images)
        options.image_bytes = statistics.mean(map(len, images))
        write_sources(root, images)
        model = make_model(
            root / "model", image_size=224, patch_size=16, width=192, depth=12, heads=3, mlp_dim=768
        )
        server = Server(root, options.latency)
        try:
            merge(measure(options, server, root, model))
        finally:
            server.close()


if __name__ == "__main__":
    main()
