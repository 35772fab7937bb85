"""Take memory, messages, the head and the sole use of the output from a job. No row is lost or doubled."""

import contextlib

import pytest

from tests.faults.jobs import Job
from tests.faults.machines import machines
from tests.faults.scenarios import behead, starve, twins


@pytest.mark.long  # what `make test` has: test_cluster_killed
def test_without_memory_without_a_head_and_with_twins_no_row_is_lost(tmp_path):
    """Use one output: a cluster whose memory monitor kills every worker; a cluster where messages get
    lost, until its head dies; two jobs."""
    job = Job(tmp_path, shards=8)
    expected = job.expected()
    with contextlib.closing(job):
        starve(job)
        job.check(expected, whole=False)
        assert behead(job) < 90
        job.check(expected, whole=False)
        with machines(0, num_cpus=4, memory=4 << 30, env=job.env) as machine:
            twins(job, machine, 2)
        job.check(expected)
