"""Faults by the hundred: kill processes and machines under a labelling job, start it again, count what is lost and what is twice.

    python -m benchmarks.faults [--sets 2] [--seed 1]

Every round labels the same generated shards on three raylets of this machine while one kind of fault happens to it, several times;
then its rows are held against those of an undisturbed run, by their places, labels and scores, and `verify --source` must find
nothing. faults.csv has a row for each kind of fault.
"""

import argparse
import csv
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.machine import machine
from pipeline.verify import verify
from tests.faults.jobs import Job
from tests.faults.machines import Machines, machines

CSV = Path(__file__).with_suffix(".csv")


@dataclass
class Count:
    """What a kind of fault did, over all its rounds."""

    rounds: int = 0
    faults: int = 0
    commands: int = 0
    rows_in: int = 0
    rows_out: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    verify_faults: int = 0
    units: int = 0
    repeated: int = 0
    recovery: list[float] = field(default_factory=list)

    def row(self, kind: str) -> dict[str, object]:
        plain = {name: value for name, value in vars(self).items() if name != "recovery"}
        each = {"repeated_per_fault": round(self.repeated / max(1, self.faults), 2)}
        times = {"recovery_median_s": round(median(self.recovery), 1), "recovery_worst_s": round(max(self.recovery), 1)}
        return {"kind": kind, **plain, **each, **times}


class Round:
    """One run under faults of one kind."""

    def __init__(self, cluster: Machines, job: Job, expected: dict, chance: random.Random, count: Count):
        self.cluster, self.job, self.expected, self.chance, self.count = cluster, job, expected, chance, count
        self.process = None

    def start(self) -> None:
        self.process, self.count.commands = self.job.start(self.cluster.address), self.count.commands + 1

    def again(self) -> None:
        """The job is dead, or did not survive: the same command once more."""
        self.job.finish(self.process, 120)
        self.start()

    def run(self, fault: Callable[["Round"], None], times: int) -> None:
        """`times` faults, spread over the units of the run."""
        self.job.forget()
        self.start()
        marks = sorted(self.chance.sample(range(1, self.job.units - 2), times))
        for mark in marks:
            self.reach(mark)
            if self.job.written() >= self.job.units - 1:
                break
            before, begun = self.job.written(), time.monotonic()
            fault(self)
            self.count.faults += 1
            self.reach(before + 1)
            self.count.recovery.append(time.monotonic() - begun)
        self.finish()
        self.tally()

    def reach(self, units: int, seconds: float = 400) -> None:
        """Until so many units are written, starting the job again where it has given up."""
        deadline = time.monotonic() + seconds
        while self.job.written() < units:
            if self.process.poll() is not None and self.job.written() < units:
                self.again()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.job.written()} of {units} units after {seconds} s: {self.job.said()}")
            time.sleep(0.02)

    def finish(self) -> None:
        for _ in range(5):
            if self.job.finish(self.process, 400) == 0:
                return
            self.start()
        raise RuntimeError(f"the run does not come to its end: {self.job.said()}")

    def tally(self) -> None:
        found = self.job.compare(self.expected)
        found["verify_faults"] = len(verify(str(self.job.out), source=True).faults)
        self.count.rounds += 1
        self.count.rows_in += len(self.job.keys)
        self.count.units += self.job.units
        self.count.repeated += self.job.decoded() - self.job.units
        for name, value in found.items():
            setattr(self.count, name, getattr(self.count, name) + value)


# ---- the faults -------------------------------------------------------------------------------------------------------------


def process_dies(*words: str) -> Callable[[Round], None]:
    def fault(run: Round) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (process := run.cluster.find(*words, chance=run.chance)) is not None:
                process.kill()
                return
            time.sleep(0.005)
        raise RuntimeError(f"no process is called {words}")

    return fault


def writer_dies(point: str) -> Callable[[Round], None]:
    def fault(run: Round) -> None:
        run.job.arm(point)
        while run.job.armed_left():
            if run.process.poll() is not None:
                return
            time.sleep(0.005)

    return fault


def driver_dies(run: Round) -> None:
    run.process.kill()
    run.process.wait()
    run.again()


def machine_dies(run: Round) -> None:
    run.cluster.kill_node(run.chance.choice(run.cluster.nodes))
    run.cluster.nodes.append(run.cluster.add())


def machine_hangs(run: Round) -> None:
    node = run.chance.choice(run.cluster.nodes)
    run.cluster.send(node, signal.SIGSTOP)
    time.sleep(40)
    run.cluster.send(node, signal.SIGCONT)
    run.cluster.kill_node(node)  # Ray has given it up; what it still does is the zombie's work
    run.cluster.nodes.append(run.cluster.add())


def machine_is_taken(run: Round) -> None:
    node = run.chance.choice(run.cluster.nodes)
    run.cluster.drain(node, 5)
    time.sleep(5)
    run.cluster.kill_node(node)
    run.cluster.nodes.append(run.cluster.add())


KINDS: dict[str, tuple[Callable[[Round], None], int]] = {
    "decode child killed": (process_dies("decoder.py"), 10),
    "worker that reads or decodes killed": (process_dies("read_stage", "decode_stage"), 6),
    "writer killed before its file appears": (writer_dies("before-link"), 6),
    "writer killed after its file appears": (writer_dies("after-link"), 6),
    "model actor killed": (process_dies("MapWorker(MapBatches(Predictor))"), 3),
    "driver killed": (driver_dies, 5),
    "machine dies": (machine_dies, 2),
    "machine hangs 40 s": (machine_hangs, 1),
    "machine preempted": (machine_is_taken, 2),
}


def rounds(sets: int, seed: int, kinds: list[str]) -> Iterator[tuple[str, Count]]:
    counts = {kind: Count() for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        job = Job(Path(folder))
        expected = job.expected()
        print(f"{job.units} units, {len(expected)} images, seed {seed}", flush=True)
        for number in range(sets):
            with machines(env=job.env) as cluster:
                for kind in kinds:
                    fault, times = KINDS[kind]
                    begun = time.monotonic()
                    Round(cluster, job, expected, random.Random(f"{seed} {number} {kind}"), counts[kind]).run(fault, times)
                    print(f"set {number + 1}: {kind}: {counts[kind].row(kind)} ({time.monotonic() - begun:.0f} s)", flush=True)
                    yield kind, counts[kind]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=2, help="how often every kind has its round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one (again for more)")
    options = parser.parse_args()
    done: dict[str, Count] = {}
    for kind, count in rounds(options.sets, options.seed, options.kind or list(KINDS)):
        done[kind] = count
        write(done)
    bad = sum(count.lost + count.doubled + count.different + count.verify_faults for count in done.values())
    print(f"{sum(count.faults for count in done.values())} faults; rows lost, doubled or different: {bad}")


def write(done: dict[str, Count]) -> None:
    """What is known so far, with the machine."""
    with open(CSV, "w", newline="") as file:
        lines = [{**count.row(kind), "machine": machine()} for kind, count in done.items()]
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
