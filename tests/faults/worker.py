"""Label all shards of a run as the labeler does, and die on order: a worker of the protocol's tests.

    python -m tests.faults.worker JOB

JOB is a Job as JSON. The product has no hooks, so this program replaces os.fsync, os.link and pipe_file in
its own process. Predictions are made up, from the bytes of each image alone. The worker logs a line for each
of its actions in the job's log.
"""

import hashlib
import io
import itertools
import json
import os
import random
import secrets
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.support.runs import made_up_plan, provenance_of
from wordsworth.pipeline.labeling.stages import read_stage
from wordsworth.pipeline.output import commit as output
from wordsworth.pipeline.output.commit import commit
from wordsworth.pipeline.output.frozen_listing import FrozenListing, PageMetadata, open_shards
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.records import RunPlan
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources import tar_reader, tar_split
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.tar_headers import TarCut
from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem
from wordsworth.pipeline.unit import Unit

KEYS = ("jpg", "png")
UNIT_ROWS = 4
WIDTH = 4
LABELS = ("ant", "bee", "cat", "dog", "elk")
EXITED = 17  # the status of a worker that leaves by os._exit, as a crash inside C code would

# Where a worker can be told to die, in the order in which it passes them.
ON_A_DISK = ("build", "written", "synced", "appearing", "appeared", "between")
ON_A_STORE = ("build", "appearing", "appeared", "between")


@dataclass(frozen=True)
class Fate:
    """Die the `at`-th time that `point` is passed: by os._exit if `exits`, else by SIGKILL."""

    point: str
    at: int
    exits: bool = False


@dataclass
class Job:
    """Hold the orders of a worker.

    Attributes:
        deed: "honest", or the fault of a worse protocol.
        short: how often an answer of the store is cut.
        pace: seconds that a unit takes.
    """

    output: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    rank: int = 0
    fate: Fate | None = None
    deed: str = "honest"
    short: float = 0.0
    pace: float = 0.0
    seed: int = 0
    log: str = os.devnull
    gate: str = ""  # waits for this file before it begins

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "Job":
        job = cls(**json.loads(text))
        job.fate = Fate(**job.fate) if job.fate else None
        return job


def plan_of(job: Job) -> RunPlan:
    asked = {"source": [job.source], "image-key": list(KEYS), "top-k": 2, "embedding": "float16"}
    return made_up_plan(asked)


# ---- the work ----------------------------------------------------------------------------------------------


def predicted(unit: Unit) -> Unit:
    """Return the unit with two classes and an embedding for every image, made from its bytes."""
    rows, payload, at = unit.samples.select(["size", "error"]).to_pylist(), unit.payload.tobytes(), 0
    ids, scores, vectors, sides = [], [], [], []
    for row in rows:
        if row["error"]:
            for column in (ids, scores, vectors, sides):
                column.append(None)
            continue
        digest = hashlib.blake2b(payload[at : at + row["size"]]).digest()
        at += row["size"]
        best = digest[0] % len(LABELS)
        ids.append([best, (best + 1) % len(LABELS)])
        scores.append([0.5 + digest[1] / 512, digest[2] / 1024])
        vectors.append((np.frombuffer(digest[:WIDTH], np.uint8) / 16).astype(np.float16))
        sides.append(digest[3])
    kinds = {
        "width": (sides, pa.int32()),
        "height": (sides, pa.int32()),
        "topk_ids": (ids, pa.list_(pa.int32())),
        "topk_scores": (scores, pa.list_(pa.float32())),
        "embedding": (vectors, pa.list_(pa.float16(), WIDTH)),
    }
    for name, (values, kind) in kinds.items():
        unit.samples = unit.samples.append_column(name, pa.array(values, kind))
    return unit


def work(job: Job, say: Callable = lambda *said: None, passing: Callable = lambda point: None) -> None:
    """Begin or continue the run as the labeler does, and label every shard that is not complete."""
    run = RunFolder(job.output, job.options)
    frozen = FrozenListing(run)
    plan = run.create(plan_of(job))
    if not frozen.files():
        found = find_shards([job.source], format="tar", image_keys=KEYS, storage_options=job.options)
        frozen.put(0, found.shards, last=True, metadata=PageMetadata())
    done = run.committed()
    todo = [shard for page in frozen.pages() for shard in open_shards(page, done)]
    first = job.rank * len(todo) // 3
    settings = WriteSettings(
        output=job.output,
        provenance=provenance_of(plan),
        labels=LABELS,
        top_k=2,
        embedding="float16",
        width=WIDTH,
        storage_options=job.options,
    )
    reading = ReadSettings(unit_rows=UNIT_ROWS, image_keys=KEYS, storage_options=job.options)
    for shard in todo[first:] + todo[:first]:
        for table in read_stage(shard, reading, job.output):
            unit = predicted(Unit.from_arrow(table))
            if unit.fault:
                raise SystemExit(f"{unit.shard_uri}: {unit.fault}")
            name = f"{unit.shard_name}-{unit.number:05d}"
            say("begin", name)
            passing("build")
            time.sleep(job.pace)
            commit(unit, settings)
            say("done", name)
            passing("between")


# ---- the faults --------------------------------------------------------------------------------------------


class Doom:
    """Count how often the point of its fate is passed, and die there."""

    def __init__(self, fate: Fate | None, say: Callable):
        self.fate, self.say, self.count = fate, say, itertools.count(1)

    def __call__(self, point: str) -> None:
        if self.fate and point == self.fate.point and next(self.count) == self.fate.at:
            self.say("dies", point)
            if self.fate.exits:
                os._exit(EXITED)
            os.kill(os.getpid(), signal.SIGKILL)


def around(real: Callable, passing: Callable, before: str, after: str) -> Callable:
    def call(*args, **kwargs):
        passing(before)
        result = real(*args, **kwargs)
        passing(after)
        return result

    return call


def arm(job: Job, passing: Callable) -> None:
    """Put the points of death into this process's commits."""
    fs, _ = open_filesystem(job.output, job.options)
    if not is_local(fs):
        fs.pipe_file = around(fs.pipe_file, passing, "appearing", "appeared")
        return
    sync, of_a_file = os.fsync, around(os.fsync, passing, "written", "synced")
    os.fsync = lambda descriptor: (of_a_file if stat.S_ISREG(os.fstat(descriptor).st_mode) else sync)(
        descriptor
    )
    os.link = around(os.link, passing, "appearing", "appeared")


def shorten(job: Job) -> None:
    """Let the source sometimes give less of a shard than it holds, without an error."""
    fs, _ = open_filesystem(job.source, job.options)
    real, dice = fs.open, random.Random(job.seed)

    def answer(path, mode="rb", **kwargs):
        file = real(path, mode, **kwargs)
        if not path.endswith(".tar") or dice.random() >= job.short:
            return file
        with file:
            data = file.read()
        return io.BytesIO(data[: dice.randrange(1, len(data))])

    fs.open = answer


# ---- what a worse protocol would do ------------------------------------------------------------------------


def random_names(job: Job, passing: Callable) -> None:
    """Use a new name for every attempt, as writers do that put a uuid into the name."""
    output.unit_file = lambda shard, number, last: (
        f"{shard}-{secrets.token_hex(6)}-{number:05d}{'-end' if last else ''}.parquet"  # no resume knows it
    )


def in_place(job: Job, passing: Callable) -> None:
    """Open the final name of a unit's file, and write it in pieces."""
    whole = output.put_if_absent

    def put(fs, path, data):
        if "/predictions/" not in path:
            return whole(fs, path, data)
        if fs.exists(path):
            return False
        data = bytes(data)
        fs.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb", buffering=0) as file:
            for piece in range(0, len(data), 64):
                file.write(data[piece : piece + 64])
                passing("written")
                time.sleep(0.002)
        return True

    output.put_if_absent = put


def trusting(job: Job, passing: Callable) -> None:
    """End a shard where the store's answer ends: an end without proof."""
    read_samples = tar_split.read_samples

    def until_it_ends(*args, **options):
        try:
            yield from read_samples(*args, **options)
        except TarCut:
            return

    def whatever(stream, want):
        if stream._file is None:
            stream._file = stream.fs.open(stream.path, "rb", block_size=8 << 20, cache_type="readahead")
            stream._file.seek(stream.position)
        return stream._file.read(want)

    tar_split.read_samples, tar_reader.ObjectStream._read = until_it_ends, whatever


DEEDS = {
    "honest": lambda job, passing: None,
    "random_names": random_names,
    "in_place": in_place,
    "trusting": trusting,
}


class NoPandas:
    """Hide pandas from pyarrow. pyarrow would import pandas for nothing, which is half of the cost of a
    worker's start."""

    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            raise ImportError("no worker needs pandas")


def main(text: str) -> None:
    sys.meta_path.insert(0, NoPandas())
    job = Job.loads(text)
    log = os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(what: str, name: str = "") -> None:
        os.write(log, (json.dumps({"t": time.time(), "what": what, "name": name}) + "\n").encode())

    passing = Doom(job.fate, say)
    DEEDS[job.deed](job, passing)
    arm(job, passing)
    if job.short:
        shorten(job)
    say("ready")
    while job.gate and not Path(job.gate).exists():
        time.sleep(0.002)
    say("go")
    work(job, say, passing)
    say("end")
    # As Ray ends its workers: Arrow's threads now and then abort an interpreter that is torn down
    # (apache/arrow#34314).
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
