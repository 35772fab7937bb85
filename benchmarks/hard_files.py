"""Label thousands of hard files among good ones: every file gives a row, and no good image is disturbed.

    python -m benchmarks.hard_files [--hard 2000] [--good 1000] [--seed 0]

Expected: rows == files; no Ray worker died; the good images have the predictions that they have alone. The
hard files are mutants of all nine formats (see benchmarks.fuzz), and files that no mutation makes: bombs in
headers, wrong names, HTML, cut images, odd modes. A worker that is killed on purpose shows that a death would
be counted.
"""

import argparse
import contextlib
import io
import json
import random
import re
import struct
import tarfile
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.fuzz import mutant, originals
from benchmarks.machine import machine, write_rows
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.labeling.labeler import label
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.checkpoint import Checkpoint, random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig

FIELDS = (
    "files",
    "hard",
    "good",
    "rows",
    "errors",
    "decoded_mutants",
    "workers_died",
    "good_predictions_changed",
    "verified",
)
FIELDS += ("seconds", "peak_mib", "seed", "machine")


WENT_WRONG = re.compile(r"SYSTEM_ERROR|RAY_WORKER_FAILURE|RAY_WORKER_CREATION_ERROR")
WORKER = re.compile(r"worker[_ ]id\W{1,5}([0-9a-f]{56})")


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def special() -> dict[str, bytes]:
    """Return files that no mutation makes."""
    sound = originals()
    jpeg = bytearray(sound["jpeg"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    return {
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100,
        "zeros": b"\0" * 5000,
        "png bomb": png_header(60000, 60000),
        "png wide": png_header(2_000_000_000, 1),
        "jpeg bomb": bytes(jpeg),
        "cut jpeg": sound["jpeg"][: len(sound["jpeg"]) // 2],
        "cut png": sound["png"][:-40],
        "jpeg and garbage": sound["jpeg"] + b"garbage" * 100,
    }


def hard_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    sound, odd = list(originals().items()), list(special().items())
    for number in range(count):
        if number < 10 * len(odd):
            name, data = odd[number % len(odd)]
        else:
            name, whole = sound[number % len(sound)]
            data = mutant(whole, random.Random(f"{seed}|{number}"))
        yield f"hard/{number:05d}-{name.replace(' ', '_')}.jpg", data


def good_files(count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 10, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        yield f"good/{number:05d}.jpg", buffer.getvalue()


def write(folder: Path, files: list[tuple[str, bytes]], shards: int = 4) -> None:
    """Write half of the files in tars and half as loose files, mixed."""
    mixed = random.Random(1).sample(files, len(files))
    for name, data in mixed[::2]:
        path = folder / "loose" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "tars").mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / "tars" / f"{shard}.tar", "w") as tar:
            for name, data in mixed[1::2][shard::shards]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


class _Silent:
    """Stand for a progress display that shows nothing."""

    def planned(self, **_): ...
    def listed(self, **_): ...
    def note(self, *_, **__): ...
    def waiting(self, _): ...
    def working(self, _): ...
    def receipt(self, *_): ...


@contextlib.contextmanager
def peak() -> Iterator[list[float]]:
    """Return the most MiB that this process and its children held, by proportional set size."""
    most, done = [0.0], threading.Event()

    def watch():
        me = psutil.Process()
        while not done.wait(1.0):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            most[0] = max(most[0], total / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield most
    done.set()
    thread.join()


def deaths() -> set[str]:
    """Return the ids of this Ray's workers that died and were not ended by Ray, by Ray's logs."""
    from ray._private.worker import _global_node

    logs = Path(_global_node.get_session_dir_path(), "logs")
    files = [*logs.glob("gcs_server*.out"), *logs.glob("events/event_*.log")]
    lines = (line for path in files for line in path.read_text(errors="replace").splitlines())
    return {found for line in lines if WENT_WRONG.search(line) for found in WORKER.findall(line)}


def _killed_worker_is_counted() -> bool:
    """Check the control: a worker that kills itself is counted as a death."""
    import ray

    @ray.remote(max_retries=0)
    def suicide():
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    before = deaths()
    with contextlib.suppress(Exception):
        ray.get(suicide.remote())
    for _ in range(200):
        if deaths() - before:
            return True
        time.sleep(0.1)
    return False


def model() -> Checkpoint:
    config = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64, num_classes=50)
    made = random_checkpoint(config, Preprocessing(), 0)
    generator = np.random.default_rng(0)
    for tensor in made.state.values():
        tensor.add_(tensor.new_tensor(generator.normal(0, 0.2, tensor.shape)))
    return made


def predictions(out: Path) -> dict[str, tuple]:
    table = pq.read_table(out / "predictions", columns=["key", "label_id", "score", "error"]).to_pylist()
    return {row["key"].removesuffix(".jpg"): (row["label_id"], row["score"], row["error"]) for row in table}


def run(hard: int, good: int, seed: int) -> dict:
    checkpoint = model()
    with tempfile.TemporaryDirectory() as scratch, ray_session():
        place = Path(scratch)
        sound, bad = list(good_files(good)), list(hard_files(hard, seed))
        write(place / "mixed", sound + bad)
        write(place / "alone", sound)
        before = deaths()
        start = time.perf_counter()
        with peak() as most:
            for name in ("mixed", "alone"):
                folder = place / name
                sources = (str(folder / "tars"), str(folder / "loose"))
                request = LabelRequest(
                    command="label",
                    sources=sources,
                    output=str(place / f"{name}-out"),
                    model="random",
                    top_k=1,
                    precision="fp32",
                    device="cpu",
                )
                summary = label(request, checkpoint, _Silent())
                if name == "mixed":
                    mixed, seconds = summary, time.perf_counter() - start
        died = len(deaths() - before)
        if not _killed_worker_is_counted():
            raise SystemExit(
                "a worker that was killed on purpose was not counted: the figure of deaths would mean nothing"
            )
        found, alone = predictions(place / "mixed-out"), predictions(place / "alone-out")
        changed = sum(
            found[key][0] != value[0] or abs(found[key][1] - value[1]) > 1e-5 for key, value in alone.items()
        )
        rows = Counter(error or "image" for key, (_, _, error) in found.items() if key.startswith("hard/"))
        return {
            "files": hard + good,
            "hard": hard,
            "good": good,
            "rows": mixed.rows,
            "errors": json.dumps(mixed.errors),
            "decoded_mutants": rows["image"],
            "workers_died": died,
            "good_predictions_changed": changed,
            "verified": verify(str(place / "mixed-out"), source=True).ok,
            "seconds": round(seconds, 1),
            "peak_mib": round(most[0]),
            "seed": seed,
            "machine": machine(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hard", type=int, default=2000)
    parser.add_argument("--good", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    row = run(options.hard, options.good, options.seed)
    for name in FIELDS:
        print(f"{name:26} {row[name]}")
    write_rows(options.output, [row], FIELDS)


if __name__ == "__main__":
    main()
