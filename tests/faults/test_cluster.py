"""Kill every kind of process and machine under a job: the same command again, and nothing is lost, twice, or different."""

import os
import random

import pytest

from tests.faults.jobs import Job, fault_env
from tests.faults.machines import machines
from tests.faults.scenarios import behead, hang_machine, kill, kill_machine, kill_writer, starve, take_machine, twins

SEED = int(os.environ.get("FAULT_SEED", "5"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    armed = tmp_path_factory.mktemp("cluster") / "armed"
    armed.mkdir()
    with machines(env=fault_env(armed)) as made:
        made.armed = armed
        yield made


@pytest.fixture
def job(tmp_path, cluster, request):
    made = Job(tmp_path, shards=request.param, armed=cluster.armed)
    made.rows = made.expected()
    yield made
    made.close()


@pytest.mark.parametrize("job", [26], indirect=True, ids=["26 shards"])
def test_killed_processes_and_machines_cost_no_row(cluster, job):
    """One command survives the death of a decode child, of workers, writers and an actor; the next, after the driver's own death,
    survives a machine that dies, one that is taken away with notice, and one that hangs for 40 seconds."""
    chance = random.Random(SEED)
    first = job.start(cluster.address)
    job.wait_for(2, first)
    kill(cluster, "decoder.py", chance=chance)
    kill(cluster, "decode_stage", "read_stage", chance=chance)
    for point in ("before-link", "after-link"):
        kill_writer(job, first, point)
    kill(cluster, "MapWorker(MapBatches(Predictor))", chance=chance)
    job.wait_for(job.written() + 2 + chance.randrange(4), first)
    first.kill()
    first.wait()
    job.check(job.rows, whole=False)

    second = job.start(cluster.address)
    job.wait_for(job.written() + 2, second)
    kill_machine(cluster, chance)
    job.wait_for(job.written() + 3, second)
    take_machine(cluster, chance)
    job.wait_for(job.written() + 3, second)
    hang_machine(cluster, chance)
    assert job.finish(second) == 0, job.said()
    job.check(job.rows)


@pytest.mark.parametrize("job", [8], indirect=True, ids=["8 shards"])
def test_without_memory_without_a_head_and_with_twins_no_row_is_lost(cluster, job):
    """One output: a cluster whose memory guard kills every worker; one where messages get lost, until its head dies; two jobs."""
    starve(job)
    job.check(job.rows, whole=False)
    assert behead(job) < 90
    job.check(job.rows, whole=False)
    twins(job, cluster, 2)
    job.check(job.rows)
