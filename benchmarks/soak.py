"""Label for a long time on a small cluster while workers die, and measure what grows and what is left behind.

    python -m benchmarks.soak [--minutes 20] [--seed 1]

A head and one more node, started by `ray start`, label shards of which 1 image in 100 is damaged, 2 units a
second. Every half minute a worker of another kind is killed. Every few seconds memory and open files of the
driver, the model actors, the raylets and the head are sampled. Afterwards the rows are counted and verified,
and what is still there is counted: processes, objects, files.

slope: MiB of resident memory an hour. A straight line through the means of half a minute each, each process
    with an intercept of its own, without the first quarter of the time; low and high bound its 95% interval.
handles: open files and sockets of a process, in the first and in the last half minute that counts.

soak.csv has a row for each kind of process and for each count.
"""

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from scipy import stats

from benchmarks.machine import machine, write_rows
from tests.faults.jobs import UNIT_ROWS, Job, fault_env
from tests.support.builders import photo, write_tar
from tests.support.ray_cluster import RayCluster, ray_cluster
from wordsworth.pipeline.verification.verifier import verify

CSV = Path(__file__).with_suffix(".csv")
FIELDS = ("what", "value", "low", "high", "first", "last", "note", "machine")
UNITS_PER_SECOND = 2.0
MIN_UNITS = 2000  # of a soak of 20 minutes
SHARD_IMAGES = 40
BAD_EVERY = 100  # one image in so many is damaged
PACE = 2.0  # seconds that decoding a unit takes at least; four units are decoded at a time
SAMPLE_S = 3.0  # seconds between two samples
BLOCK_S = 30.0  # seconds over which samples are averaged
WARM_UP = 0.25  # share of the time that is left out
FAULT_S = 30.0  # seconds between two killed workers
SETTLE_S = 45.0  # seconds after the end of the job until what is left is counted
MODEL = "MapWorker(MapBatches(Predictor))"
# What is killed, in turn: words of the process's command line. An actor may be restarted six times, so actors
# die less often.
VICTIMS = ("decode_stage", "codec.py", "read_stage", "write_stage", "decode_stage", MODEL, "write_stage")
MAX_ACTORS_KILLED = 5


def write_source(folder: Path, units: int) -> tuple[int, int]:
    """Write shards of that number of units together. Return the numbers of images and of damaged images."""
    num_shards = -(-units * UNIT_ROWS // SHARD_IMAGES)
    num_bad = 0
    for shard in range(num_shards):
        members = {}
        for image in range(SHARD_IMAGES):
            number = shard * SHARD_IMAGES + image
            data = photo(number)
            if number % BAD_EVERY == 7:
                num_bad += 1
                data = (b"", data[: len(data) // 3], b"<html>404</html>")[number // BAD_EVERY % 3]
            members[f"{shard:04d}/{image:03d}.jpg"] = data
        write_tar(folder / f"part-{shard:04d}.tar", members)
    return num_shards * SHARD_IMAGES, num_bad


# ---- samples -----------------------------------------------------------------------------------------------


@dataclass
class Samples:
    """Hold samples of one kind of process.

    Attributes:
        at: seconds since the begin, by process id.
        rss: resident MiB, by process id.
        handles: open files and sockets, by process id.
    """

    at: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    rss: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    handles: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, at: float, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            rss, handles = process.memory_info().rss / 2**20, process.num_fds()
            self.at[process.pid].append(at)
            self.rss[process.pid].append(rss)
            self.handles[process.pid].append(handles)

    def row(self, what: str, begin: float, machine_name: str) -> dict[str, Any]:
        """Return the slope of the memory with its interval, and what the processes hold."""
        times, values = [], []
        firsts, lasts, handles = [], [], []
        for pid, at in self.at.items():
            points = _blocks(np.array(at), np.array(self.rss[pid]), max(begin, at[0] + BLOCK_S))
            if len(points) < 3:
                continue
            times.append(points[:, 0] - points[:, 0].mean())
            values.append(points[:, 1] - points[:, 1].mean())
            firsts.append(points[0, 1])
            lasts.append(points[-1, 1])
            held = _blocks(np.array(at), np.array(self.handles[pid]), max(begin, at[0] + BLOCK_S))
            handles.append((round(held[0, 1]), round(held[-1, 1])))
        if not times:
            return {"what": f"memory of {what}", "note": "lived too shortly", "machine": machine_name}
        slope, error = _line(np.concatenate(times), np.concatenate(values), len(times))
        grown = ", ".join(f"{first} to {last}" for first, last in handles)
        return {
            "what": f"memory of {what}",
            "value": round(slope, 2),
            "low": round(slope - error, 2),
            "high": round(slope + error, 2),
            "first": round(float(np.mean(firsts)), 1),
            "last": round(float(np.mean(lasts)), 1),
            "note": f"MiB an hour, {len(times)} processes, handles {grown}",
            "machine": machine_name,
        }


def _blocks(at: np.ndarray, values: np.ndarray, begin: float) -> np.ndarray:
    """Return (blocks, 2): mean time and mean value of each BLOCK_S seconds after `begin`."""
    numbers = ((at - begin) // BLOCK_S).astype(int)
    kept = [numbers == number for number in range(numbers.max() + 1)] if len(at) else []
    return np.array([[at[one].mean(), values[one].mean()] for one in kept if one.any()]).reshape(-1, 2)


def _line(times: np.ndarray, values: np.ndarray, processes: int) -> tuple[float, float]:
    """Return the slope an hour of a line through points, and half of its 95% interval.

    Args:
        times: seconds, with mean 0 in each process.
        values: MiB, with mean 0 in each process.
        processes: number of processes, each of which costs a degree of freedom.
    """
    spread = float((times**2).sum())
    slope = float((times * values).sum()) / spread
    free = max(1, len(times) - processes - 1)
    error = np.sqrt(((values - slope * times) ** 2).sum() / free / spread)
    return slope * 3600, float(stats.t.ppf(0.975, free) * error * 3600)


# ---- the cluster -------------------------------------------------------------------------------------------


def commands(cluster: RayCluster) -> list[tuple[psutil.Process, str]]:
    """Return all processes of the cluster with their command lines."""
    found = []
    for node in [cluster.head, *cluster.nodes]:
        for process in node.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                found.append((process, " ".join(process.cmdline()).strip()))
    return found


def sample(seen: dict[str, Samples], driver: psutil.Process, cluster: RayCluster, at: float) -> None:
    seen["the driver"].add(at, driver)
    for process, command in commands(cluster):
        if MODEL in command:
            seen["the model actors"].add(at, process)
        elif "/raylet/raylet" in command:
            seen["the raylets"].add(at, process)
        elif "/gcs/gcs_server" in command:
            seen["the head's store"].add(at, process)


def kill_one(cluster: RayCluster, words: str, chance: random.Random) -> bool:
    """Kill a worker. Return whether there was one."""
    found = [process for process, command in commands(cluster) if words in command]
    if not found:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        chance.choice(found).kill()
    return True


def objects(cluster: RayCluster) -> str:
    """Return what `ray memory` says of the objects that are left, such as "0 MiB, 0 objects"."""
    command = [str(Path(sys.executable).with_name("ray")), "memory", "--stats-only"]
    env = os.environ | cluster.env | {"RAY_ADDRESS": cluster.address}
    said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    found = re.search(r"Plasma memory usage (.*?objects)", said.stdout)
    return found[1] if found else (said.stdout + said.stderr)[-200:]


def workers(cluster: RayCluster) -> Counter[str]:
    """Count the workers of Ray and the processes of ours on the cluster, by title.

    A model actor whose interpreter has ended and whose process stays keeps its title.
    """
    titles = Counter[str]()
    for _, command in commands(cluster):
        if command.startswith("ray::") or "codec.py" in command:
            titles[command.split(" ")[0] if command.startswith("ray::") else "decode child"] += 1
    return titles


def strays(output: Path) -> list[str]:
    """Return the files of a run that no reader knows: what writers left that were killed."""
    known = re.compile(r"predictions/[^/]+\.parquet|_run/[^./][^/]*|_run/shards/[^./][^/]*")
    names = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    return [name for name in names if not known.fullmatch(name)]


# ---- the soak ----------------------------------------------------------------------------------------------


def soak(minutes: float, seed: int) -> Iterator[dict[str, Any]]:
    """Run one job, and yield the rows of the table."""
    chance = random.Random(seed)
    machine_name = machine()
    units = max(int(MIN_UNITS * minutes / 20), int(minutes * 60 * UNITS_PER_SECOND))
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as temporary:
        folder = Path(temporary)
        (folder / "armed").mkdir()
        job = Job(folder, shards=0)
        num_images, num_bad = write_source(job.source, units)
        env = fault_env(folder / "armed") | {"WORDSWORTH_TEST_PACE": str(PACE)}
        size = {"num_cpus": 4, "memory": 3 << 30}
        with ray_cluster([size], head=size, env=env) as cluster:
            before, shared = workers(cluster), set(os.listdir("/dev/shm"))
            begun = time.monotonic()
            process = job.start(cluster.address, "--stall-timeout", "300", env=cluster.env)
            seen, faults = run(job, process, cluster, chance, units)
            seconds = time.monotonic() - begun
            if process.returncode:
                raise SystemExit(f"the job ended with {process.returncode}: {job.said()[-3000:]}")
            time.sleep(SETTLE_S)
            left = workers(cluster) - before
            told = objects(cluster)
            new_shared = [
                name for name in set(os.listdir("/dev/shm")) - shared if not name.startswith("plasma")
            ]
        for what, samples in seen.items():
            yield samples.row(what, WARM_UP * seconds, machine_name)
        rows = pq.read_table(job.out / "predictions", columns=["shard", "index", "error"]).to_pylist()
        places = Counter((row["shard"], row["index"]) for row in rows)
        counts: dict[str, tuple[Any, str]] = {
            "minutes": (round(seconds / 60, 1), f"of the command, {job.written()} units"),
            "images": (num_images, f"{num_bad} of them damaged"),
            "rows": (len(rows), f"{sum(bool(row['error']) for row in rows)} with an error"),
            "doubled rows": (sum(places.values()) - len(places), ""),
            "findings of verify": (len(verify(str(job.out), source=True).findings), "with --source"),
            "workers killed": (sum(faults.values()), _listed(faults)),
            "units done again": (job.decoded() - job.written(), ""),
            "processes left": (sum(left.values()), _listed(left)),
            "objects left": (told, "ray memory"),
            "stray files": (len(strays(job.out)), ", ".join(strays(job.out)[:3])),
            "files left in /dev/shm": (len(new_shared), ", ".join(new_shared[:3])),
        }
        for what, (value, note) in counts.items():
            yield {"what": what, "value": value, "note": note, "machine": machine_name}


def run(
    job: Job, process: subprocess.Popen, cluster: RayCluster, chance: random.Random, units: int
) -> tuple[dict[str, Samples], Counter[str]]:
    """Sample and kill until all units are written, and wait for the command's end.

    Returns:
        the samples by kind of process, and what was killed.
    """
    seen: dict[str, Samples] = defaultdict(Samples)
    faults: Counter[str] = Counter()
    begun = time.monotonic()
    next_fault = None  # nothing is killed before the first unit is written
    turn = told = 0
    driver = psutil.Process(process.pid)
    while process.poll() is None and job.written() < units:
        at = time.monotonic() - begun
        sample(seen, driver, cluster, at)
        if next_fault is None and job.written():
            next_fault = at + FAULT_S
        if next_fault is not None and at >= next_fault:
            words = VICTIMS[turn % len(VICTIMS)]
            spared = words == MODEL and faults[MODEL] >= MAX_ACTORS_KILLED
            if spared or kill_one(cluster, words, chance):
                faults[words] += not spared
                turn += 1
                next_fault = at + FAULT_S
        time.sleep(SAMPLE_S)  # the time between two samples
        if int(at / BLOCK_S) > told:
            told = int(at / BLOCK_S)
            print(f"{at:6.0f} s  {job.written()} units  {sum(faults.values())} killed", flush=True)
    process.wait(600)
    return seen, faults


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=CSV)
    chosen = parser.parse_args()
    rows = []
    for row in soak(chosen.minutes, chosen.seed):
        rows.append(row)
        print(*(str(row.get(name, "")) for name in FIELDS[:-1]), sep="  ")
    write_rows(chosen.csv, rows, FIELDS)


if __name__ == "__main__":
    main()
