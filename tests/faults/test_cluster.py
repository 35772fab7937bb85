"""Kill every kind of process, machine and disk of a cluster under a job: the same command again, and nothing is lost or twice."""

import json
import os
import random
import signal
import time

import pytest

from tests.faults.jobs import Job, fault_env
from tests.faults.machines import machines

SEED = int(os.environ.get("FAULT_SEED", "5"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    armed = tmp_path_factory.mktemp("cluster") / "armed"
    armed.mkdir()
    with machines(env=fault_env(armed)) as made:
        made.armed = armed
        yield made


@pytest.fixture
def job(tmp_path, cluster):
    made = Job(tmp_path, armed=cluster.armed)
    made.rows = made.expected()
    yield made
    made.close()


def kill(cluster, *words: str, seconds: float = 60) -> None:
    """SIGKILL for the next process whose command line has one of the words."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (process := cluster.find(*words)) is not None:
            process.kill()
            return
        time.sleep(0.01)
    raise AssertionError(f"no process is called {words}: {[line for _, line in cluster.workers()]}")


def test_killed_processes_and_machines_cost_no_row(cluster, job):
    """One command survives the death of a decode child, of workers, writers and an actor; the next, after the driver's own death,
    survives a machine that dies, one that is taken away with notice, and one that hangs for 40 seconds."""
    chance = random.Random(SEED)
    first = job.start(cluster.address)
    job.wait_for(2, first)
    kill(cluster, "decoder.py")
    kill(cluster, "decode_stage", "read_stage")
    job.arm("after-link")
    job.arm("before-link")
    job.wait_for(10, first)
    kill(cluster, "MapWorker(MapBatches(Predictor))")
    job.wait_for(14 + chance.randrange(4), first)
    assert not job.armed_left(), "no writer died"
    first.kill()
    first.wait()
    job.check(job.rows, whole=False)

    before = job.written()
    second = job.start(cluster.address)
    hung = cluster.nodes[0]
    job.wait_for(before + 2, second)
    cluster.kill_node(cluster.nodes[1])
    cluster.nodes.append(cluster.add())
    job.wait_for(before + 6, second)
    cluster.send(hung, signal.SIGSTOP)
    time.sleep(40)
    cluster.send(hung, signal.SIGCONT)
    assert cluster.drain(cluster.nodes[1], 5)
    assert job.finish(second) == 0, job.said()
    job.check(job.rows)


RPC = {"num_failures": 20, "req_failure_prob": 10, "resp_failure_prob": 10, "in_flight_failure_prob": 5}
METHODS = ("NodeManagerService.grpc_client.RequestWorkerLease", "CoreWorkerService.grpc_client.PushTask")


def test_without_memory_without_a_head_and_with_twins_no_row_is_lost(cluster, job):
    """One output, three clusters: where Ray's memory guard kills every worker, the job gives up and says so; where messages get
    lost, it works on until the head dies; then three jobs at once finish it."""
    with machines(0, env={"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}) as starved:
        process = job.start(starved.address, "--stall-timeout", "15")
        assert job.finish(process) == 1
        assert "stalled: no unit was written for 15 s" in job.said() and "run the same command again" in job.said()
        assert "What every stage is doing" in job.said() and "Traceback" not in job.said(), job.said()
    job.check(job.rows, whole=False)

    chaos = {"RAY_testing_rpc_failure": json.dumps(dict.fromkeys(METHODS, RPC))}
    with machines(1, env=fault_env(cluster.armed) | chaos) as lossy:
        process = job.start(lossy.address, env=chaos)
        job.wait_for(job.units // 3, process)
        os.kill(lossy.gcs, signal.SIGKILL)
        died = time.monotonic()
        assert job.finish(process, 120) not in (0, None)
        assert time.monotonic() - died < 90
        assert "run the same command again" in job.said(), job.said()
    job.check(job.rows, whole=False)

    twins = [job.start(cluster.address) for _ in range(3)]
    assert [job.finish(process) for process in twins] == [0, 0, 0], job.log.read_text()[-3000:]
    assert "another job is at work on this output" in job.log.read_text()
    job.check(job.rows)
