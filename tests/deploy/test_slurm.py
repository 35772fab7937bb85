"""Run deploy/slurm/wordsworth.sbatch with programs in place of Slurm's, whose nodes are all this machine."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.deploy import fake_slurm
from tests.deploy.manifests import ROOT, SBATCH
from tests.support.builders import write_shards
from wordsworth.pipeline.verification.verifier import verify

BIN = Path(sys.executable).parent
NODES = 3


def test_shellcheck_finds_nothing():
    found = subprocess.run([BIN / "shellcheck", SBATCH], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


@dataclasses.dataclass
class Slurm:
    """Run the script as Slurm runs it, in a folder."""

    folder: Path
    job: int

    def start(self, *command: str, restarts: int = 0) -> subprocess.Popen:
        env = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FAKE_SLURM_LOG": str(self.folder / "slurm.log"),
            "SLURM_JOB_ID": str(self.job),
            "SLURM_JOB_NODELIST": f"node[1-{NODES}]",
            "SLURM_JOB_NUM_NODES": str(NODES),
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_RESTART_COUNT": str(restarts),
        }
        with open(self.folder / "job.log", "ab") as log:
            return subprocess.Popen(
                ["bash", SBATCH, *command],
                env=os.environ | env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return (self.folder / "job.log").read_text()

    @property
    def calls(self) -> list[str]:
        return (self.folder / "slurm.log").read_text().splitlines()

    def left_behind(self) -> list[str]:
        """Return the processes of this job's cluster that live, and its folder if it is there."""
        temp = f"/tmp/ray-{self.job}"
        found = [temp] if Path(temp).exists() else []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            found += [line] if temp in line else []
        return found


@pytest.fixture
def slurm(tmp_path) -> Slurm:
    fake_slurm.install(tmp_path / "bin")
    return Slurm(tmp_path, job=100_000 + os.getpid() % 90_000)


def written(out: Path) -> int:
    return len(list(out.glob("predictions/*.parquet")))


@pytest.mark.long
@pytest.mark.ray
def test_a_job_that_is_told_to_end_is_queued_again_and_continues(slurm, small_model, tmp_path):
    write_shards(tmp_path / "in", shards=60, images=10)
    out = tmp_path / "out"
    command = ["label", str(tmp_path / "in"), "--output", str(out), "--model", str(small_model)]
    slow = [*command, "--unit-rows", "2"]
    first = slurm.start(*slow)
    while first.poll() is None and written(out) < 3:
        time.sleep(0.1)  # nothing tells when a unit is written
    first.send_signal(signal.SIGTERM)  # as --signal=B:TERM@240 does
    assert first.wait(timeout=300) == 143, slurm.log
    assert f"scontrol requeue {slurm.job}" in slurm.calls
    kept = written(out)
    assert 3 <= kept < 300
    assert slurm.left_behind() == []

    again = slurm.start(*slow, restarts=1)
    assert again.wait(timeout=400) == 0, slurm.log
    assert slurm.calls.count(f"scontrol requeue {slurm.job}") == 1
    assert verify(str(out), source=True).ok
    assert slurm.left_behind() == []


@pytest.mark.long
@pytest.mark.ray
def test_a_wrong_command_is_not_queued_again(slurm, tmp_path):
    wrong = slurm.start(
        "label", str(tmp_path / "nothing"), "--output", str(tmp_path / "out"), "--no-such-option"
    )
    assert wrong.wait(timeout=300) == 2, slurm.log
    assert not any("requeue" in call for call in slurm.calls)
    assert slurm.left_behind() == []


@pytest.mark.long
@pytest.mark.ray
def test_all_nodes_are_there_before_the_command_plans_and_no_token_is_in_an_argument(
    slurm, small_model, tmp_path
):
    write_shards(tmp_path / "in", shards=2, images=4)
    out = str(tmp_path / "out")
    done = slurm.start("label", str(tmp_path / "in"), "--output", out, "--model", str(small_model))
    assert done.wait(timeout=400) == 0, slurm.log
    starts = [call for call in slurm.calls if " ray start " in call]
    assert [
        ("--head" in call, f"--ntasks={count}" in call) for call, count in zip(starts, (1, 2), strict=True)
    ] == [
        (True, True),
        (False, True),
    ]
    assert not any("TOKEN" in call or "token" in call for call in slurm.calls)
    assert verify(out).ok
