"""Kill processes, machines and disks under a labelling job, hundreds of times, and count lost rows.

    python -m benchmarks.faults [--sets 2] [--rounds 6] [--seed 1] [--kind KIND ...]

On a head and three raylets, every round labels the same generated shards while one kind of fault happens to
the job, several times. A job that ends is started again. Then its rows are compared with those of an
undisturbed run by place, label and score, and `verify --source` must find nothing.

Without Ray, several processes label the shards of a small run, on a disk and on stores that fail, and are
killed wherever a seeded plan says (tests/faults/protocol.py). faults.csv has a row for each kind.

recovery: seconds from a fault to the next unit that is written, a new start of the command included.
repeated: units that were done again, for each fault.
"""

import argparse
import csv
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.machine import machine, write_rows
from tests.faults import scenarios, servers
from tests.faults.jobs import AHEAD, Job
from tests.faults.machines import Machines, machines
from tests.faults.protocol import run_rounds
from tests.faults.proxy import Faults
from wordsworth.pipeline.verification.verifier import verify

CSV = Path(__file__).with_suffix(".csv")


@dataclass
class Count:
    """Count what a kind of fault did, over all its rounds."""

    rounds: int = 0
    faults: int = 0
    rows_in: int = 0
    rows_out: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    partial: int = 0
    findings: int = 0
    repeated: int = 0
    recovery: list[float] = field(default_factory=list)

    def row(self, kind: str) -> dict[str, object]:
        plain = {name: value for name, value in vars(self).items() if name not in ("recovery", "repeated")}
        times = (
            {"recovery_median_s": median(self.recovery), "recovery_worst_s": max(self.recovery)}
            if self.recovery
            else {}
        )
        each = {"repeated_per_fault": self.repeated / max(1, self.faults)}
        return {"kind": kind, **plain, **{name: round(value, 2) for name, value in {**times, **each}.items()}}

    @property
    def wrong(self) -> int:
        return self.lost + self.doubled + self.different + self.partial + self.findings


class Round:
    """Run one job under faults of one kind."""

    def __init__(self, cluster: Machines, job: Job, expected: dict, chance: random.Random, count: Count):
        self.cluster, self.job, self.expected, self.chance, self.count = cluster, job, expected, chance, count
        self.process = None

    def start(self) -> None:
        self.process = self.job.start(self.cluster.address)

    def spread(self, fault: Callable[["Round"], None], times: int) -> None:
        """Cause `times` faults, spread over the units of a run."""
        self.job.forget()
        self.start()
        for mark in sorted(self.chance.sample(range(1, self.job.units - 4), times)):
            self.reach(mark)
            if self.job.written() >= self.job.units - 1:
                break
            self.timed(lambda: fault(self))
        self.finish()

    def once(self, scenario: Callable[[Job, Machines], None], faults: int) -> None:
        """Run a scenario that starts jobs itself, and then the command once more."""
        self.job.forget()
        scenario(self.job, self.cluster)
        self.count.faults += faults
        begun, before = time.monotonic(), self.job.written()
        self.start()
        if before < self.job.units:
            self.reach(before + 1)
            self.count.recovery.append(time.monotonic() - begun)
        self.finish()

    def timed(self, fault: Callable[[], None]) -> None:
        before, begun = self.job.written(), time.monotonic()
        fault()
        self.count.faults += 1
        self.reach(min(before + 1, self.job.units))
        self.count.recovery.append(time.monotonic() - begun)

    def reach(self, units: int, seconds: float = 400) -> None:
        """Wait until this number of units is written. A job that gave up is started again."""
        deadline = time.monotonic() + seconds
        self.job.allow(units + AHEAD)
        while self.job.written() < units:
            if self.process.poll() is not None and self.job.written() < units:
                self.start()
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.job.written()} of {units} units after {seconds} s: {self.job.said()}"
                )
            time.sleep(0.02)

    def finish(self) -> None:
        for _ in range(5):
            if self.job.finish(self.process, 400) == 0:
                return self.tally()
            self.start()
        raise RuntimeError(f"the run does not come to its end: {self.job.said()}")

    def tally(self) -> None:
        self.count.rounds += 1
        self.count.rows_in += len(self.expected)
        self.count.repeated += self.job.decoded() - self.job.units
        self.count.findings += len(verify(str(self.job.out), source=True).findings)
        for name, value in self.job.compare(self.expected).items():
            setattr(self.count, name, getattr(self.count, name) + value)


# ---- kinds of faults ---------------------------------------------------------------------------------------


def kills(*words: str) -> Callable[[Round], None]:
    return lambda run: scenarios.kill(run.cluster, *words, chance=run.chance)


def writer(point: str) -> Callable[[Round], None]:
    return lambda run: scenarios.kill_writer(run.job, run.process, point)


def driver(run: Round) -> None:
    run.process.kill()
    run.process.wait()
    run.start()


SPREAD: dict[str, tuple[Callable[[Round], None], int]] = {
    "decode child killed": (kills("codec.py"), 10),
    "worker that reads or decodes killed": (kills("read_stage", "decode_stage"), 6),
    "writer killed before its file appears": (writer("before-link"), 6),
    "writer killed after its file appears": (writer("after-link"), 6),
    "model actor killed": (kills("MapWorker(MapBatches(Predictor))"), 3),
    "driver killed": (driver, 5),
    "machine dies": (lambda run: scenarios.kill_machine(run.cluster, run.chance), 2),
    "machine preempted": (lambda run: scenarios.take_machine(run.cluster, run.chance), 2),
    "machine hangs for 40 s and comes back": (lambda run: scenarios.hang_machine(run.cluster, run.chance), 1),
}
ONCE: dict[str, tuple[Callable[[Job, Machines], None], int]] = {
    "memory guard kills every worker": (lambda job, _: scenarios.starve(job), 1),
    "messages lost, then the head dies": (lambda job, _: scenarios.behead(job), 2),
    "two jobs at once": (lambda job, cluster: scenarios.twins(job, cluster, 2), 1),
    "three jobs at once": (lambda job, cluster: scenarios.twins(job, cluster, 3), 1),
}
DISKS = "disks read-only and full"
PROTOCOL: dict[str, Callable[[Path], AbstractContextManager[servers.Backend]]] = {
    "without Ray: workers on a disk killed": servers.disk,
    "without Ray: the same, a store with conditions that fails": lambda _: faulty(servers.moto()),
    "without Ray: the same, a store without conditions that fails": lambda _: faulty(servers.rclone()),
}


@contextmanager
def faulty(server: AbstractContextManager[servers.Backend]) -> Iterator[servers.Backend]:
    """Lose acknowledgements, answer 503, and reset connections."""
    with server as backend, servers.through(backend, Faults(lost=0.1, slow=0.05, reset=0.02), 1) as through:
        yield through


def protocol(kind: str, rounds: int, seed: int, folder: Path) -> Count:
    with PROTOCOL[kind](folder) as backend:
        result = run_rounds(seed, rounds, backend)
        faults = result.kills + sum(backend.met.values())
    return Count(
        result.rounds,
        faults,
        result.rows_in,
        result.rows_out,
        result.lost,
        result.doubled,
        result.differing,
        result.partial,
        len(result.findings) + len(result.failures),
        sum(result.repeated_units),
        list(result.recovery_seconds),
    )


def on_small_disks(job: Job, expected: dict, chance: random.Random, count: Count) -> None:
    own = Job.like(job, job.folder / f"disk-{count.rounds}" / "out")
    with scenarios.small_disks(own) as cluster:
        count.faults += 3
        run = Round(cluster, own, expected, chance, count)
        run.start()
        run.finish()


def measured(options: argparse.Namespace) -> Iterator[tuple[str, Count]]:
    """Yield each kind, and its counts so far."""
    kinds = options.kind or [*PROTOCOL, *SPREAD, *ONCE, DISKS]
    counts = {kind: Count() for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for kind in filter(PROTOCOL.__contains__, kinds):
            yield kind, protocol(kind, options.rounds, options.seed, Path(folder))
        rest = [kind for kind in kinds if kind not in PROTOCOL]
        job = Job(Path(folder, "job"))
        expected = job.expected() if rest else {}
        for number in range(options.sets if rest else 0):
            with machines(3, env=job.env) as cluster:
                for kind in rest:
                    chance, count = random.Random(f"{options.seed} {number} {kind}"), counts[kind]
                    run = Round(cluster, job, expected, chance, count)
                    if kind in SPREAD:
                        run.spread(*SPREAD[kind])
                    elif kind in ONCE:
                        run.once(*ONCE[kind])
                    else:
                        on_small_disks(job, expected, chance, count)
                    yield kind, count


def write(done: dict[str, Count], seed: int) -> None:
    """Write the rows. Rows of kinds that are not measured now stay in the file."""
    lines = (
        {line["kind"]: line for line in csv.DictReader(CSV.read_text().splitlines())} if CSV.exists() else {}
    )
    lines |= {kind: {**count.row(kind), "seed": seed, "machine": machine()} for kind, count in done.items()}
    write_rows(CSV, (lines[kind] for kind in [*PROTOCOL, *SPREAD, *ONCE, DISKS] if kind in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sets", type=int, default=2, help="how often every kind has its round on the cluster"
    )
    parser.add_argument("--rounds", type=int, default=6, help="rounds of the protocol on every backend")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--kind",
        action="append",
        choices=[*PROTOCOL, *SPREAD, *ONCE, DISKS],
        help="only this one (again for more)",
    )
    options = parser.parse_args()
    done, begun = {}, time.monotonic()
    for kind, count in measured(options):
        done[kind] = count
        print(f"{time.monotonic() - begun:6.0f} s  {count.row(kind)}", flush=True)
        write(done, options.seed)
    wrong = sum(count.wrong for count in done.values())
    print(
        f"{sum(count.faults for count in done.values())} faults; "
        f"rows lost, doubled, different or partial, and findings: {wrong}"
    )


if __name__ == "__main__":
    main()
