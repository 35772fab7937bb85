"""Measure what it costs a run when a node joins, is taken away with notice, or dies.

    python -m benchmarks.cluster_changes [--sleep-ms 50] [--rounds 1]

A head without CPUs and one node; a model that sleeps in place of its forward pass, two actors a node, units
of 20 images (benchmarks/cluster.py). While the run goes on, a second node joins; it is taken away by SIGTERM,
upon which `ray start --block` drains it; a third one joins and is killed.

seconds: what the change costs, in seconds of the rate afterwards: of the WINDOW_S seconds behind the change,
    those in which nothing came, if the rest of the time had the full new rate.
rate: images/s afterwards. ratio: of the rate before.

The rows go into cluster.csv.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.cluster import CSV, NOTHING, ROOT, UNIT_ROWS, keep, label, sleeping_env, write_images
from tests.support.builders import make_model
from tests.support.ray_cluster import Node, RayCluster, ray_cluster

NODE = {"num_cpus": 4, "memory": 4 << 30, "object_store_memory": 100 << 20}
ACTORS_ON_NODE = 2
IMAGES = 60_000  # more than a round takes
WINDOW_S = 60.0  # seconds behind a change in which its cost is looked for
STEADY_S = 20.0  # seconds over which a rate is measured

Row = dict[str, Any]


@dataclass
class Run:
    """Hold a run under way: its process, its output and its log."""

    process: subprocess.Popen
    out: Path
    log: Path

    def units(self) -> int:
        return sum(1 for _ in self.out.glob("predictions/*.parquet"))

    def rate(self, seconds: float = STEADY_S) -> float:
        """Measure units/s."""
        before, begun = self.units(), time.monotonic()
        time.sleep(seconds)  # what is measured is what comes meanwhile
        written = self.units() - before
        if self.process.poll() is not None or not written:
            how = "stands still" if self.process.returncode is None else f"ended: {self.process.returncode}"
            raise SystemExit(f"the run {how}:\n{self.log.read_text()[-4000:]}")
        return written / (time.monotonic() - begun)


def change(run: Run, what: str, make: Callable[[], Any]) -> tuple[Any, Row]:
    """Make a change, and return what it returned and a row with its cost."""
    before = run.rate()
    made = make()
    units, begun = run.units(), time.monotonic()
    first = 0.0
    while time.monotonic() - begun < WINDOW_S:
        if not first and run.units() > units:
            first = time.monotonic() - begun
        time.sleep(0.05)  # a file system tells nobody
    seconds, gained = time.monotonic() - begun, run.units() - units
    after = run.rate()
    return made, {
        "what": what,
        "nodes": 2,
        "seconds": round(seconds - gained / after, 1),
        "rate": round(after * UNIT_ROWS, 1),
        "ratio": round(after / before, 2),
        "note": f"the next unit came after {first:.1f} s",
    }


def take_away(node: Node) -> None:
    """End a node as Kubernetes does."""
    node.process.terminate()


def measure_changes(rounds: int, sleep_ms: float, **_: Any) -> Iterator[Row]:
    """Return a row for each kind of change: the median of the rounds."""
    found: dict[str, list[Row]] = {}
    env = sleeping_env(sleep_ms)
    for _round in range(rounds):
        with tempfile.TemporaryDirectory(prefix="cluster-") as scratch:
            for row in _round_of(Path(scratch), env):
                print(row, flush=True)
                found.setdefault(row["what"], []).append(row)
    for what, rows in found.items():
        costs = sorted(row["seconds"] for row in rows)
        yield rows[0] | {
            "what": what,
            "seconds": median(costs),
            "rate": median(row["rate"] for row in rows),
            "ratio": median(row["ratio"] for row in rows),
            "sleep_ms": sleep_ms,
            "note": f"{costs[0]} to {costs[-1]} s, {len(rows)} rounds; {rows[0]['note']}",
        }


def _round_of(folder: Path, env: dict[str, str]) -> Iterator[Row]:
    source = write_images(folder / "in", IMAGES)
    model = make_model(folder / "model", **NOTHING)
    with ray_cluster([NODE], head={"num_cpus": 0}, env=env) as cluster:
        actors = ["--max-actors", str(2 * ACTORS_ON_NODE), "--address", cluster.address]
        command = [sys.executable, "-m", "wordsworth", *label(source, folder / "out", model, *actors)]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                command, env=_environment(cluster), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        try:
            run = Run(process, folder / "out", folder / "log")
            while not run.units():
                if process.poll() is not None:
                    raise SystemExit(f"the run ended:\n{run.log.read_text()[-4000:]}")
                time.sleep(0.1)  # until the first unit
            node, row = change(run, "a node joins", lambda: cluster.add_node(**NODE))
            yield row
            _, row = change(run, "a node is taken away with notice", lambda: take_away(node))
            yield row
            node, _ = change(run, "a node joins again", lambda: cluster.add_node(**NODE))
            _, row = change(run, "a node is killed", lambda: cluster.kill(node))
            yield row
        finally:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            process.wait()


def _environment(cluster: RayCluster) -> dict[str, str]:
    return os.environ | cluster.env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sleep-ms", type=float, default=50.0)
    parser.add_argument("--output", type=Path, default=CSV)
    chosen = parser.parse_args()
    for row in measure_changes(chosen.rounds, chosen.sleep_ms):
        keep(chosen.output, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
