"""Cause faults of a job and its machines. The tests cause each fault once; benchmarks/faults.py causes it
again and again."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.jobs import AHEAD, Job
from tests.faults.machines import Machines, machines

RPC = {"num_failures": 20, "req_failure_prob": 10, "resp_failure_prob": 10, "in_flight_failure_prob": 5}
METHODS = ("NodeManagerService.grpc_client.RequestWorkerLease", "CoreWorkerService.grpc_client.PushTask")
GO_ON = "run the same command again"


def kill(cluster: Machines, *words: str, chance: random.Random | None = None, seconds: float = 60) -> None:
    """Send SIGKILL to a process whose command line has one of the words, as soon as there is one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (process := cluster.find(*words, chance=chance)) is not None:
            process.kill()
            return
        time.sleep(0.01)
    raise AssertionError(f"no process is called {words}: {[line for _, line in cluster.workers()]}")


def kill_writer(job: Job, process: subprocess.Popen, point: str) -> None:
    """Let the next writer die at the point; return when it is dead, or when the job has ended."""
    job.arm(point)
    job.allow(job.written() + AHEAD)
    while job.armed_left() and process.poll() is None:
        time.sleep(0.005)


def kill_machine(cluster: Machines, chance: random.Random) -> None:
    """Power a machine off, and put another in its place."""
    cluster.kill_node(chance.choice(cluster.nodes))
    cluster.nodes.append(cluster.add())


def take_machine(cluster: Machines, chance: random.Random, notice: float = 5.0) -> None:
    """Preempt a machine: the loss is announced some seconds before."""
    node = chance.choice(cluster.nodes)
    assert cluster.drain(node, notice)
    time.sleep(notice)
    cluster.kill_node(node)
    cluster.nodes.append(cluster.add())


def hang_machine(cluster: Machines, chance: random.Random, seconds: float = 40.0) -> None:
    """Stop a machine. It is given up and comes back as a zombie; another machine takes its place."""
    node = chance.choice(cluster.nodes)
    cluster.send(node, signal.SIGSTOP)
    time.sleep(seconds)
    cluster.send(node, signal.SIGCONT)
    cluster.nodes = [other for other in cluster.nodes if other is not node]
    cluster.nodes.append(cluster.add())


def starve(job: Job) -> None:
    """Let Ray's memory monitor kill every worker: the job gives up in one line, and says how to continue."""
    with machines(
        0, num_cpus=3, env={"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    ) as starved:
        assert job.finish(job.start(starved.address, "--stall-timeout", "10")) == 1
    said = job.said()
    assert (
        "stalled: no file was written for 10 s" in said
        and GO_ON in said
        and "What every stage is doing" in said
    ), said
    assert "Traceback" not in said, said


def behead(job: Job) -> float:
    """Lose messages, which the job survives; then kill the head. Return the seconds until the job has
    ended and said how to continue."""
    chaos = {"RAY_testing_rpc_failure": json.dumps(dict.fromkeys(METHODS, RPC))}
    with machines(1, num_cpus=2, env=job.env | chaos) as lossy:
        process = job.start(lossy.address, env=chaos)
        job.wait_for(job.units // 3, process)
        os.kill(lossy.gcs, signal.SIGKILL)
        died = time.monotonic()
        assert job.finish(process, 150) not in (0, None)
        assert GO_ON in job.said(), job.said()
        return time.monotonic() - died


def twins(job: Job, cluster: Machines, count: int) -> None:
    """Run several jobs on one output at once, all of which end well."""
    processes = [job.start(cluster.address) for _ in range(count)]
    assert [job.finish(process) for process in processes] == [0] * count, job.log.read_text()[-3000:]
    assert "another job is at work on this output" in job.log.read_text()


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator:
    """Make a file system of its own of this size, and give a function that changes it.

    Raises:
        PermissionError: only root may make a file system.
    """
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if made.returncode:
        raise PermissionError(f"mounting a disk of a certain size needs root: {made.stderr.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def small_disks(job: Job) -> Iterator[Machines]:
    """Make the output's disk read-only, then too small, and then, in the block, large enough. The disk for
    objects that do not fit into memory is full all the time. The block gets the machine."""
    with disk(job.out.parent, "100k") as remount, disk(job.folder / "spill", "1m"):
        (job.folder / "spill" / "full").write_bytes(bytes(900_000))
        spill = str(job.folder / "spill")
        with machines(
            0, num_cpus=4, object_spilling_directory=spill, object_store_memory=80 << 20
        ) as machine:
            remount("ro")
            assert job.finish(job.start(machine.address)) == 1
            assert (
                "the file system is read-only: make it writable" in job.said()
                and len(job.said().splitlines()) < 5
            ), job.said()
            remount("rw")
            assert job.finish(job.start(machine.address)) == 1
            assert f"no space is left: make room, then {GO_ON}" in job.said(), job.said()
            assert 0 < job.written() < job.units
            remount("size=64m")
            yield machine
