"""A job that is stopped by `ray job stop` loses nothing, whether Ray waits for its end or kills it."""

import sys
import time

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.faults.jobs import Job, fault_env
from tests.support.ray_cluster import ray_cluster

pytestmark = [pytest.mark.long, pytest.mark.ray]

AGAIN = "interrupted: what is done is kept, run the same command again to continue"


@pytest.mark.parametrize("waits_s", [3, 60])
def test_a_stopped_job_goes_on_where_it_was(tmp_path, waits_s, monkeypatch):
    """Ray waits three seconds where nobody says otherwise, which is less than the grace of a run."""
    job = Job(tmp_path, shards=30)
    expected = job.expected()
    faults = fault_env(job.armed)
    with ray_cluster(
        head={"num_cpus": 4, "memory": 4 << 30}, env=faults | {"RAY_JOB_STOP_WAIT_TIME_S": str(waits_s)}
    ) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        client = JobSubmissionClient(cluster.jobs)
        arguments = [str(job.source), "--output", str(job.out), "--model", str(job.model)]
        arguments += ["--unit-rows", "4", "--batch-size", "4", "--precision", "fp32"]
        command = f"{sys.executable} -m wordsworth label {' '.join(arguments)}"
        first = client.submit_job(entrypoint=command)
        wait_for(lambda: job.written() >= 4, lambda: client.get_job_logs(first))
        client.stop_job(first)
        ends = (JobStatus.STOPPED, JobStatus.FAILED)
        wait_for(lambda: client.get_job_status(first) in ends, lambda: client.get_job_logs(first))
        assert job.written() < job.units
        if waits_s > 30:
            assert AGAIN in client.get_job_logs(first)
        job.check(expected, whole=False)
        second = client.submit_job(entrypoint=command)
        wait_for(lambda: client.get_job_status(second).is_terminal(), lambda: client.get_job_logs(second))
        assert client.get_job_status(second) == JobStatus.SUCCEEDED, client.get_job_logs(second)
        job.check(expected)


def wait_for(is_so, said, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, said()
        time.sleep(0.2)  # the job server tells nobody
