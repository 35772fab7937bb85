"""Test the unit protocol under faults: workers are killed anywhere, and a reader must never notice.

Each round is a run of its own. Several processes (tests/faults/worker.py) label all shards of the run at
once, die where their fates say, and are started again, until every unit is written. Meanwhile a reader opens
all of predictions/ again and again. In the end the rows must be those of an undisturbed run, and `verify`
must find nothing. Everything random comes from the seed.
"""

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.servers import Backend
from tests.faults.worker import EXITED, ON_A_DISK, ON_A_STORE, UNIT_ROWS, Fate, Job, work
from tests.support.runs import finish, image_members, write_tar
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.storage.filesystem import open_filesystem
from wordsworth.pipeline.verification.verifier import verify

ROOT = Path(__file__).parents[2]
OUTSIDE = "outside"  # a SIGKILL that comes at no point, but at any moment
PATIENCE = 240.0  # seconds for one round
STUMBLES = 3  # a worker that fails so often without having been killed is given up


@dataclass
class Result:
    """Count the results of some rounds.

    Attributes:
        deaths: kills by the point at which they struck.
        rows_in: rows of the undisturbed runs.
        lost, doubled, differing: rows.
        partial: files that could not be read, at any moment.
        findings: findings of `verify`.
        failures: last words of workers that failed without being killed.
        recovery_seconds: from a death to the first unit that the successor finished (if it lived to finish
            one), less the time that the successor was made to wait.
        repeated_units: for the same deaths, the units that the successor did and the dead worker had begun.
    """

    rounds: int = 0
    processes: int = 0
    kills: int = 0
    deaths: Counter = field(default_factory=Counter)
    rows_in: int = 0
    rows_out: int = 0
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    partial: int = 0
    looks: int = 0
    findings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    recovery_seconds: list[float] = field(default_factory=list)
    repeated_units: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exact(self) -> bool:
        """Return whether no row is lost, doubled or different, no file was partial at any moment, and
        `verify` found nothing."""
        wrong = self.lost + self.doubled + self.differing + self.partial
        return not wrong and not self.findings and self.rows_in == self.rows_out > 0


def run_rounds(
    seed: int,
    rounds: int,
    backend: Backend,
    processes: int = 3,
    *,
    lives: int = 3,
    shards: int = 4,
    deed: str = "honest",
    short: float = 0.0,
    pace: float = 0.01,
) -> Result:
    """Disturb `rounds` runs on a backend, each with `processes` workers that die `lives` - 1 times.

    Args:
        deed, short, pace: as in worker.Job.
    """
    result, start = Result(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            dice = random.Random(f"{seed} {number}")
            place = Path(scratch, str(number))
            place.mkdir()
            root = f"{backend.root}/{seed}-{number}-{deed}-{time.time_ns()}"
            source = _source(backend, f"{root}/in", place, shards, dice)
            job = Job(f"{root}/out", source, backend.options, deed=deed, short=short, pace=pace)
            clean = _undisturbed(Job(str(place / "clean"), source), backend)
            _round(
                result,
                job,
                backend,
                clean,
                _fates(dice, _points(backend, deed), processes, lives),
                place,
                dice,
            )
    result.seconds = time.monotonic() - start
    return result


def _source(backend: Backend, uri: str, place: Path, shards: int, dice: random.Random) -> str:
    """Make tars of 2 to 5 units, one tar without an image and one without any sample; on a store if the
    backend is a store."""
    fs, root = open_filesystem(uri, backend.direct)
    for shard in range(shards):
        count = 0 if shard == shards - 1 else dice.randrange(2 * UNIT_ROWS - 1, 5 * UNIT_ROWS)
        members = [
            *image_members(count, 100 * shard),
            *([("d/lone.json", b"no image")] if shard == 1 else []),
        ]
        path = write_tar(place / "in" / f"part-{shard:03d}.tar", members)
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/{path.name}", path.read_bytes())
    return uri


def _undisturbed(job: Job, backend: Backend) -> dict[tuple, dict]:
    """Return the rows of a run that one worker makes in this process, on this disk, from the same source."""
    work(Job(job.output, job.source, backend.direct))
    return {
        (row["shard"], row["index"]): row
        for path in Path(job.output, "predictions").iterdir()
        for row in _rows_of(path)
    }


def _rows_of(path: Path) -> list[dict]:
    return pq.ParquetFile(path).read().to_pylist()


# ---- the plan of faults ------------------------------------------------------------------------------------


def _points(backend: Backend, deed: str) -> list[str]:
    """Return the points where a worker can die. A writer in place neither syncs nor links."""
    places = ON_A_STORE if backend.is_store else ON_A_DISK if deed != "in_place" else ("written",)
    return [*places, OUTSIDE]


def _fates(dice: random.Random, points: list[str], processes: int, lives: int) -> list[list[Fate | None]]:
    """Return how each life of each process ends; the last life is undisturbed. Every point has its turn
    before a point comes again."""
    deck: list[str] = []
    while len(deck) < processes * (lives - 1):
        deck += dice.sample(points, len(points))
    deal = iter(deck)
    return [
        [*(Fate(next(deal), dice.randrange(1, 3), dice.random() < 0.5) for _ in range(lives - 1)), None]
        for _ in range(processes)
    ]


# ---- a round -----------------------------------------------------------------------------------------------


class Worker:
    """Run one of the round's processes through all its lives."""

    def __init__(self, job: Job, rank: int, fates: list[Fate | None], place: Path, dice: random.Random):
        self.job, self.rank, self.fates, self.place = job, rank, fates, place
        self.seed, self.delay = dice.randrange(1 << 30), dice.uniform(0.0, 0.12)
        self.life, self.stumbles, self.done = 0, 0, False
        self.logs: list[Path] = []
        self.died: list[float] = []  # when each life but the last ended
        self.killed_at: float | None = None
        self.start()

    @property
    def fate(self) -> Fate | None:
        return self.fates[min(self.life, len(self.fates) - 1)]

    def start(self) -> None:
        name = f"{self.rank}-{len(self.logs)}"
        self.gate = self.place / f"gate-{name}"
        self.logs.append(self.place / f"log-{name}")
        told = self.fate if self.fate and self.fate.point != OUTSIDE else None
        job = Job(**vars(self.job) | {"rank": self.rank, "fate": told, "seed": self.seed + len(self.logs)})
        job.log, job.gate = str(self.logs[-1]), str(self.gate)
        self.words = self.place / f"words-{name}"
        with self.words.open("wb") as words:
            command = [sys.executable, "-m", "tests.faults.worker", job.dumps()]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=words, stderr=words)

    def said(self, what: str) -> float | None:
        """Return when the present life first logged something."""
        return next((entry["t"] for entry in entries(self.logs[-1]) if entry["what"] == what), None)

    def strike(self) -> None:
        """Kill from outside, once the time for this kill has come."""
        began = self.fate and self.fate.point == OUTSIDE and self.said("go")
        if began and time.time() > began + self.delay and self.process.poll() is None:
            self.process.kill()

    def attend(self, result: Result) -> None:
        """Notice a death and start the next life."""
        status = self.process.poll()
        if status is None or self.done:
            return
        if status == 0:
            self.done = True
            return
        if self.fate and status in (-9, EXITED):
            result.kills += 1
            result.deaths[self.fate.point] += 1
            self.died.append(time.time())
            self.life += 1
        else:
            self.stumbles += 1
            self.died.append(0.0)
            result.failures.append(self.words.read_text("utf-8", "replace").strip()[-400:])
            self.done = self.stumbles >= STUMBLES
        if not self.done:
            self.start()

    @property
    def at_last(self) -> bool:
        return self.done or self.fate is None


def entries(log: Path) -> list[dict]:
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def _round(
    result: Result,
    job: Job,
    backend: Backend,
    clean: dict[tuple, dict],
    fates: list[list[Fate | None]],
    place: Path,
    dice: random.Random,
) -> None:
    workers = [Worker(job, rank, own, place, dice) for rank, own in enumerate(fates)]
    until = time.monotonic() + PATIENCE
    with _watched(job.output, backend, clean) as watcher:
        try:
            while not all(worker.done for worker in workers):
                if time.monotonic() > until:
                    raise TimeoutError(f"a round takes longer than {PATIENCE:g} s: {result}")
                _open_gates(workers)
                for worker in workers:
                    worker.strike()
                    worker.attend(result)
                time.sleep(0.01)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
    result.rounds += 1
    result.processes += sum(len(worker.logs) for worker in workers)
    for worker in workers:
        _account(result, worker)
    _judge(result, job, backend, watcher)


def _open_gates(workers: list[Worker]) -> None:
    """Let first lives begin at one moment. A last life begins when all other workers have come to theirs,
    or it would do all the work."""
    first = all(worker.said("ready") or len(worker.logs) > 1 for worker in workers)
    last = all(worker.at_last for worker in workers)
    for worker in workers:
        if (len(worker.logs) > 1 or first) and (last or not worker.at_last) and not worker.gate.exists():
            worker.gate.touch()


def _account(result: Result, worker: Worker) -> None:
    """Compute recovery and repetition of each kill, from the logs of the dead workers and of their
    successors."""
    lives = [entries(log) for log in worker.logs]
    for death, before, after in zip(worker.died, lives, lives[1:], strict=False):
        when = {entry["what"]: entry["t"] for entry in reversed(after)}  # the first of each
        finished = when.get("done", when.get("end"))
        if not death or finished is None:
            continue
        result.recovery_seconds.append(round(when["ready"] - death + finished - when["go"], 4))
        begun = [{entry["name"] for entry in life if entry["what"] == "begin"} for life in (before, after)]
        result.repeated_units.append(len(begun[0] & begun[1]))


def _judge(result: Result, job: Job, backend: Backend, watcher: "Watcher") -> None:
    """Compare the finished run with the undisturbed one."""
    watcher.look()
    result.looks += watcher.looks
    result.rows_in += len(watcher.clean)
    result.rows_out += watcher.rows
    result.lost += len(watcher.clean.keys() - watcher.seen)
    result.doubled += len(watcher.doubled)
    result.differing += len(watcher.differing)
    result.partial += len(watcher.partial)
    try:
        finish(job.output, backend.direct)
    except Exception as error:
        result.findings.append(f"cannot be finished: {error}")
    report = verify(job.output, source=True, storage_options=backend.direct)
    result.findings += [f"{fault.code} {fault.where}: {fault.detail}" for fault in report.findings]


# ---- the reader --------------------------------------------------------------------------------------------


class Watcher(threading.Thread):
    """Open all of predictions/ again and again, and remember every state that no reader may see."""

    def __init__(self, output: str, backend: Backend, clean: dict[tuple, dict]):
        super().__init__(daemon=True)
        self.run_folder, self.clean, self.pause = (
            RunFolder(output, backend.direct),
            clean,
            0.4 if backend.is_store else 0.02,
        )
        self.partial: set[str] = set()
        self.doubled: set[tuple] = set()
        self.differing: set[tuple] = set()
        self.seen: set[tuple] = set()
        self.rows = self.looks = 0
        self.over = threading.Event()

    def run(self) -> None:
        took = 0.0
        while not self.over.wait(
            max(self.pause, took)
        ):  # not more than half of a core: the workers need theirs
            start = time.monotonic()
            self.look()
            took = time.monotonic() - start

    def look(self) -> None:
        rows = [row for path in self.run_folder.prediction_files() for row in self._read(path)]
        keys, places = (Counter(of(row) for row in rows) for of in (_key, _place))
        self.doubled |= {name for counts in (keys, places) for name, count in counts.items() if count > 1}
        self.differing |= {_place(row) for row in rows if self.clean.get(_place(row)) != row}
        self.seen, self.rows, self.looks = set(places), len(rows), self.looks + 1

    def _read(self, path: str) -> list[dict]:
        data = self.run_folder.fs.cat_file(path)
        try:
            return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read().to_pylist()
        except Exception:  # whatever these bytes do to a Parquet reader
            self.partial.add(path)
            return []


def _key(row: dict) -> tuple:
    return "key", row["shard"], row["key"]


def _place(row: dict) -> tuple:
    return row["shard"], row["index"]


@contextlib.contextmanager
def _watched(output: str, backend: Backend, clean: dict[tuple, dict]) -> Iterator[Watcher]:
    watcher = Watcher(output, backend, clean)
    watcher.start()
    try:
        yield watcher
    finally:
        watcher.over.set()
        watcher.join()
