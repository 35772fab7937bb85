"""Disks that are full or read-only: one clear line, nothing partial, and the same command goes on once there is room."""

import contextlib
import subprocess
from pathlib import Path

import pytest

from pipeline.verify import verify
from tests.faults.jobs import Job
from tests.faults.machines import machines


@contextlib.contextmanager
def disk(folder: Path, size: str):
    """A file system of its own, so large."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting a disk of a certain size needs root: {made.stderr.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_or_read_only_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path):
    """The output's disk is read-only, then too small, then large enough; and Ray's own, for what memory does not hold, is full."""
    with disk(tmp_path / "spill", "1m") as _, disk(tmp_path / "disk", "100k") as remount:
        (tmp_path / "spill" / "full").write_bytes(bytes(900_000))
        job = Job(tmp_path / "job", out=tmp_path / "disk" / "out")
        expected = job.expected()
        with (
            contextlib.closing(job),
            machines(0, num_cpus=4, object_spilling_directory=str(tmp_path / "spill"), object_store_memory=80 << 20) as machine,
        ):
            remount("ro")
            assert job.finish(job.start(machine.address)) == 1
            assert "the file system is read-only: make it writable" in job.said() and len(job.said().splitlines()) < 5, job.said()

            remount("rw")
            assert job.finish(job.start(machine.address)) == 1
            assert "no space is left: make room, then run the same command again" in job.said(), job.said()
            assert 0 < job.written() < job.units
            job.check(expected, whole=False)
            assert {fault.what for fault in verify(str(job.out)).faults} <= {"missing_unit", "missing_end", "not_finished"}

            remount("size=64m")
            assert job.finish(job.start(machine.address)) == 0, job.said()
            job.check(expected)
