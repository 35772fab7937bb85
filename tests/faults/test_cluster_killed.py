"""Kill every kind of process and machine under a job: the same command again loses, doubles and changes
nothing."""

import os
import random

import pytest

from tests.faults.jobs import Job, fault_env
from tests.faults.machines import machines
from tests.faults.scenarios import hang_machine, kill, kill_machine, kill_writer, take_machine

SEED = int(os.environ.get("FAULT_SEED", "5"))


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "armed").mkdir()
    with machines(env=fault_env(tmp_path / "armed")) as made:
        yield made


@pytest.fixture
def job(tmp_path):
    made = Job(tmp_path, shards=26)
    yield made
    made.close()


@pytest.mark.long
def test_killed_processes_and_machines_cost_no_row(cluster, job):
    """One command survives the death of a decode child, of workers, of writers and of an actor. Then the
    driver is killed. The next command survives a machine that dies, a machine that is taken away with
    notice, and a machine that hangs for 40 seconds."""
    chance, expected = random.Random(SEED), job.expected()
    first = job.start(cluster.address)
    job.wait_for(2, first)
    kill(cluster, "codec.py", chance=chance)
    kill(cluster, "decode_stage", "read_stage", chance=chance)
    for point in ("before-link", "after-link"):
        kill_writer(job, first, point)
    kill(cluster, "MapWorker(MapBatches(Predictor))", chance=chance)
    job.wait_for(job.written() + 2 + chance.randrange(4), first)
    first.kill()
    first.wait()
    job.check(expected, whole=False)

    second = job.start(cluster.address)
    job.wait_for(job.written() + 2, second)
    kill_machine(cluster, chance)
    job.wait_for(job.written() + 3, second)
    take_machine(cluster, chance)
    job.wait_for(job.written() + 3, second)
    hang_machine(cluster, chance)
    assert job.finish(second) == 0, job.said()
    job.check(expected)
