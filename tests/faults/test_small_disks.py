"""Check disks that are full or read-only: one clear line, no partial file, and the same command continues
once there is room."""

import contextlib

import pytest

from tests.faults.jobs import Job
from tests.faults.scenarios import small_disks
from wordsworth.pipeline.verification.verifier import verify


@pytest.mark.long  # a full disk's one line, and no partial file: tests/storage
def test_a_full_or_read_only_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path):
    job = Job(tmp_path / "job", shards=12, out=tmp_path / "disk" / "out")
    expected = job.expected()
    with contextlib.closing(job), contextlib.ExitStack() as stack:
        try:
            machine = stack.enter_context(small_disks(job))
        except PermissionError as error:
            pytest.skip(str(error))
        job.check(expected, whole=False)
        assert {fault.code for fault in verify(str(job.out)).findings} <= {
            "missing_unit",
            "missing_end",
            "not_finished",
        }
        assert job.finish(job.start(machine.address)) == 0, job.said()
        job.check(expected)
