"""Make the recorded runs: what the program of commit fc59102 wrote, before its packages were divided anew.

They were made once, by that program, and are only read since: `test_recorded_runs.py` continues, verifies and
repeats them with the program as it is now. This script says what they are. To run it again, from the root of
a checkout of that commit (a training that is stopped is not stopped at the same step twice):

    PYTHONPATH=. python .../tests/labeling/recorded/make.py FOLDER

A run knows its shards by URI, size and etag, and its plan holds the URIs of its sources and its model. So all
of it lies in a bucket of an object store on loopback while the commands run: the URIs are the same
everywhere, an etag is the MD5 of the content, and the store's address is in --storage-options, which no plan
holds. No name and no identity in a record depends on the machine, the port or the time, so a copy of it in
another store is the same run.
"""

import gzip
import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.builders import make_model, photo, write_tar
from tests.faults.servers import BUCKET, moto

ROOT = f"s3://{BUCKET}"
ON_CPU = ["--precision", "fp32", "--device", "cpu", "--batch-size", "4"]
MODEL = ["--model", f"{ROOT}/model", *ON_CPU, "--unit-rows", "4"]
# One picture is larger than the limit, which is no part of the plan: without it, --retry-errors labels it.
LIMIT = ["--max-pixels", "20000"]
LABEL = ["label", f"{ROOT}/source/tars", *MODEL, "--top-k", "3", "--keep", "json", *LIMIT]
EMBED = ["embed", f"{ROOT}/source/loose", f"{ROOT}/source/table.csv", *MODEL, "--normalize"]
SIZE = ["--width", "8", "--depth", "1", "--heads", "2", "--mlp-ratio", "2"]
SIZE += ["--patch-size", "8", "--image-size", "16"]
RECIPE = ["--epochs", "3", "--lr", "0.01", "--ema", "0.9", "--dropout", "0.1"]
RECIPE += ["--save-every", "1", "--keep", "1"]
PRETRAIN = ["pretrain", f"{ROOT}/source/classes", "--val", f"{ROOT}/source/classes/bright.tar"]
PRETRAIN += [*SIZE, *RECIPE, *ON_CPU]

RUNS = {name: [*LABEL, "--output", f"{ROOT}/{name}"] for name in ("begun", "finished", "compacted")}
RUNS |= {"grown": ["label", f"{ROOT}/source/grown", *MODEL, "--output", f"{ROOT}/grown"]}
RUNS |= {"embedded": [*EMBED, "--dtype", "float16", "--output", f"{ROOT}/embedded"]}
RUNS |= {name: [*PRETRAIN, "--output", f"{ROOT}/{name}"] for name in ("training", "uninterrupted")}
# Commands that change nothing and start no Ray, for their exit codes.
READING = [
    ["verify", f"{ROOT}/finished"],
    ["verify", f"{ROOT}/begun"],
    ["verify", f"{ROOT}/source"],
    [*RUNS["finished"], "--max-error-rate", "0.05"],
    [*RUNS["finished"], "--fast-decode"],
    [*RUNS["finished"], "--on-error", "neither"],
    [*RUNS["compacted"], "--retry-errors"],
    [*RUNS["grown"], "--replace-changed"],
    RUNS["uninterrupted"],
]
LATE = f"{ROOT}/source/grown/late.tar.gz"
# What is kept of the training without a stop.
MODEL_FOLDER = ("config.json", "model.safetensors", "metrics.jsonl")


def main(folder: Path) -> None:
    """Make all of it in a folder."""
    make_source(folder / "source")
    make_model(folder / "model", image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_dim=32)
    with moto() as backend:
        store = Store(backend.options)
        for name in ("source", "model"):
            store.put(folder / name)
        make_runs(store)
        codes = [{"arguments": arguments, "exit_code": store.run(arguments)} for arguments in READING]
        for name in RUNS:
            store.get(folder / name)
    for path in (folder / "finished").rglob("*.*"):  # of the compacted run, what was added is kept
        (folder / "compacted" / path.relative_to(folder / "finished")).unlink()
    pack(folder / "training")
    keep_only(folder / "uninterrupted", MODEL_FOLDER)
    commands = {"runs": RUNS, "exit_codes": codes}
    (folder / "commands.json").write_text(json.dumps(commands, indent=1) + "\n")


def make_runs(store: "Store") -> None:
    """Make the runs, each by its own command."""
    assert store.run(RUNS["finished"]) == 0
    # A run that is killed leaves its plan, its listing and the units that it wrote, each whole. A finished
    # run has the same files and more.
    store.fs.cp(f"{ROOT}/finished", f"{ROOT}/begun", recursive=True)
    store.fs.rm([f"{ROOT}/begun/_run/summary.json", f"{ROOT}/begun/_run/manifest.parquet"])
    store.fs.rm(sorted(store.fs.ls(f"{ROOT}/begun/predictions", detail=False))[1::2])
    store.fs.cp(f"{ROOT}/finished", f"{ROOT}/compacted", recursive=True)
    assert store.run(["compact", f"{ROOT}/compacted"]) == 0  # the small files stay beside the compacted one
    make_grown(store)
    assert store.run(RUNS["embedded"]) == 0
    assert store.run(RUNS["uninterrupted"]) == 0
    store.run_until_second_epoch(RUNS["training"])


def make_grown(store: "Store") -> None:
    """Make a run that is compacted, updated and compacted again; only its last small file is left."""
    late = store.fs.cat_file(LATE)
    store.fs.rm(LATE)
    assert store.run(RUNS["grown"]) == 0
    assert store.run(["compact", f"{ROOT}/grown", "--delete-small"]) == 0
    store.fs.pipe_file(LATE, late)
    assert store.run([*RUNS["grown"], "--update"]) == 0
    assert store.run(["compact", f"{ROOT}/grown"]) == 0


class Store:
    """Work in the bucket with the command line of the program in the working directory."""

    def __init__(self, options: dict[str, Any]):
        import s3fs

        self.storage = ["--storage-options", json.dumps(options)]
        self.fs = s3fs.S3FileSystem(**options, use_listings_cache=False)

    def put(self, folder: Path) -> None:
        """Copy a folder into the bucket."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                self.fs.pipe_file(f"{ROOT}/{folder.name}/{name}", path.read_bytes())

    def get(self, folder: Path) -> None:
        """Copy the folder of this name out of the bucket."""
        shutil.rmtree(folder, ignore_errors=True)
        for name in self.fs.find(f"{ROOT}/{folder.name}"):
            path = folder / name.removeprefix(f"{BUCKET}/{folder.name}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.fs.cat_file(name))

    def start(self, arguments: list[str]) -> subprocess.Popen:
        """Start a command."""
        print("wordsworth", *arguments, flush=True)
        return subprocess.Popen([sys.executable, "-m", "jobs", *arguments, *self.storage])

    def run(self, arguments: list[str]) -> int:
        """Run a command, and return its exit code."""
        return self.start(arguments).wait()

    def run_until_second_epoch(self, arguments: list[str]) -> None:
        """Start a training, and stop it when it has a checkpoint of its second epoch."""
        training = self.start(arguments)
        while not self.is_in_second_epoch(arguments[-1]):
            assert training.poll() is None, "it ended by itself"
            time.sleep(0.02)
        training.send_signal(signal.SIGTERM)
        assert training.wait() == 143
        assert not self.fs.exists(f"{arguments[-1]}/config.json"), "it was too fast to be stopped"

    def is_in_second_epoch(self, output: str) -> bool:
        """Return whether the first epoch is written down and the only checkpoint is one of the second."""
        lines, snapshot = f"{output}/metrics.jsonl", f"{output}/_train/checkpoint_manager_snapshot.json"
        if not self.fs.exists(lines) or not self.fs.exists(snapshot):
            return False
        checkpoints = self.fs.glob(f"{output}/_train/step-*")
        told = b'"kind": "epoch"' in self.fs.cat_file(lines) and b"-epoch-1" in self.fs.cat_file(snapshot)
        return told and len(checkpoints) == 1


# ---- sources -----------------------------------------------------------------------------------------------


def make_source(folder: Path) -> None:
    """Make tars, loose images, a table and tars with classes; with a fault of most kinds."""
    samples = samples_of("a", range(9))
    samples["a/3.jpg"] = b"no image at all"
    samples["a/6.jpg"] = photo(6, (200, 150))
    write_tar(folder / "tars" / "plain.tar", samples)
    packed = samples_of("b", range(20, 25))
    packed["b/lost.json"] = b'{"picture": "none"}'
    (folder / "tars" / "packed.tar.gz").write_bytes(gzip.compress(tar(packed), mtime=0))
    cut = tar(samples_of("c", range(40, 44)))
    (folder / "tars" / "truncated.tar").write_bytes(cut[: 9 * 512 + 100])
    (folder / "tars" / "README.txt").write_text("This file is ignored.\n")

    (folder / "grown").mkdir()
    for name, numbers in (("early", range(80, 86)), ("late", range(86, 88))):
        data = gzip.compress(tar(samples_of("d", numbers)), mtime=0)
        (folder / "grown" / f"{name}.tar.gz").write_bytes(data)

    (folder / "loose" / "deep").mkdir(parents=True)
    for n in range(60, 64):
        (folder / "loose" / f"{n}.jpg").write_bytes(sample(n)["jpg"])
    (folder / "loose" / "deep" / "64.png").write_bytes(photo(64, (24, 16), "PNG"))
    (folder / "loose" / "deep" / "broken.jpg").write_bytes(sample(65)["jpg"][:200])
    table = "image,note\nloose/60.jpg,there\nloose/deep/64.png,there\nloose/99.jpg,missing\n"
    (folder / "table.csv").write_text(table)

    for number, name in enumerate(("dark", "bright")):
        members = {}
        for n in range(8):
            label = (n + number) % 2
            members |= {
                f"{name}/{n}.png": plain_picture(n, 150 * label),
                f"{name}/{n}.cls": str(label).encode(),
            }
        write_tar(folder / "classes" / f"{name}.tar", members)


def samples_of(folder: str, numbers: range) -> dict[str, bytes]:
    """Return the files of some samples by their names."""
    return {f"{folder}/{n}.{kind}": data for n in numbers for kind, data in sample(n).items()}


def sample(number: int) -> dict[str, bytes]:
    """Return an image and its sidecar by their extensions."""
    return {"jpg": photo(number, (40 + number % 5, 32)), "json": json.dumps({"number": number}).encode()}


def plain_picture(number: int, brightness: int) -> bytes:
    """Return a PNG of 4 colours, dark or bright."""
    colours = np.random.default_rng(number).integers(0, 100, (2, 2, 3)) + brightness
    buffer = io.BytesIO()
    Image.fromarray(colours.astype(np.uint8)).resize((16, 16), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    """Return a tar of files by their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pack(folder: Path) -> None:
    """Replace a folder by a compressed tar of it: a checkpoint is 260 kB, of which 36 kB are numbers."""
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    data = tar({name: path.read_bytes() for name, path in files.items()})
    folder.with_name(f"{folder.name}.tar.xz").write_bytes(lzma.compress(data, preset=9))
    shutil.rmtree(folder)


def keep_only(folder: Path, names: tuple[str, ...]) -> None:
    """Remove everything from a folder but the files of these names."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in names:
            path.unlink()


if __name__ == "__main__":
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    main(Path(sys.argv[1]).resolve())
