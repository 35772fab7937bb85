"""Kill the whole job, start the same command again: nothing lost, nothing twice, nothing read again."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.support.builders import make_model, write_shards

SHARDS, IMAGES, KILLS = 48, 16, 5

# A file system in place of s3 that notes every object that is opened. It is registered as any fsspec plug-in
# is, by an entry point, so every process of the job has it, and none of our code knows.
COUNTED_FS = """
import os
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

class Counted(DirFileSystem):
    protocol = "s3"
    def __init__(self, **options):
        super().__init__(path=os.environ["COUNTED_ROOT"], fs=LocalFileSystem(), skip_instance_cache=True)
    @classmethod
    def _strip_protocol(cls, path):
        if not isinstance(path, str):
            return [cls._strip_protocol(one) for one in path]
        return path.removeprefix("s3://").rstrip("/")
    def open(self, path, *arguments, **options):
        with open(os.environ["COUNTED_LOG"], "a") as log:
            log.write(path + "\\n")
        return super().open(path, *arguments, **options)
"""


@pytest.fixture
def counted(tmp_path) -> dict[str, str]:
    """The environment of a job whose s3:// is the folder tmp_path/store, every open noted in
    tmp_path/opened."""
    plugin = tmp_path / "plugin"
    (plugin / "counted_fs-1.dist-info").mkdir(parents=True)
    (plugin / "counted_fs.py").write_text(COUNTED_FS)
    (plugin / "counted_fs-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: counted-fs\nVersion: 1\n"
    )
    (plugin / "counted_fs-1.dist-info" / "entry_points.txt").write_text(
        "[fsspec.specs]\ns3 = counted_fs:Counted\n"
    )
    (tmp_path / "opened").touch()
    paths = os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")])
    return {
        "PYTHONPATH": paths,
        "COUNTED_ROOT": str(tmp_path / "store"),
        "COUNTED_LOG": str(tmp_path / "opened"),
    }


def start(command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen:
    with open(log, "ab") as output:
        return subprocess.Popen(
            command, env={**os.environ, **env}, stdout=output, stderr=output, start_new_session=True
        )


def finished_shards(output: Path) -> set[str]:
    return {path.name.split("-")[1] for path in output.glob("predictions/*-end.parquet")}


def kill(process: subprocess.Popen) -> None:
    """Kill a command, then by their ids the processes of its Ray: tests beside this one have a Ray too.

    Ray's daemons would notice within seconds that their driver is gone.
    """
    started_by_it = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for leftover in started_by_it:
        with contextlib.suppress(psutil.NoSuchProcess):
            leftover.kill()


@pytest.mark.long
def test_killed_run_resumes_without_losing_or_repeating_a_row(tmp_path, counted, wordsworth):
    keys = write_shards(tmp_path / "store" / "bucket", SHARDS, IMAGES)
    model = make_model(
        tmp_path / "model", image_size=224, patch_size=16, width=192, depth=12, heads=3, mlp_dim=768
    )
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "wordsworth",
        "label",
        "s3://bucket",
        "--output",
        str(output),
        "--model",
        str(model),
    ]
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10_000))
    chance = random.Random(seed)
    marks = sorted(chance.sample(range(1, SHARDS - 4), KILLS))

    for times, mark in enumerate(marks):
        done_before = finished_shards(output)
        opened_before = (tmp_path / "opened").read_text().count("\n")
        began = time.time()
        process = start(command, counted, tmp_path / "log")
        while len(finished_shards(output)) < mark and process.poll() is None and time.time() < began + 120:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5))
        assert process.poll() is None, (
            f"seed {seed}: ended before kill {times}: {(tmp_path / 'log').read_text()[-2000:]}"
        )
        kill(process)
        opened = (tmp_path / "opened").read_text().splitlines()[opened_before:]
        again = {path for path in opened if Path(path).stem.split("-")[1] in done_before}
        assert not again, f"seed {seed}: shards that were finished were opened again: {sorted(again)}"

    last = wordsworth("label", "s3://bucket", "--output", output, "--model", model, env=counted)
    assert last.returncode == 0, last.stderr
    rows = pq.read_table(output / "predictions", columns=["key", "error", "label"]).to_pylist()
    counts = Counter(row["key"] for row in rows)
    assert counts == Counter(keys), f"seed {seed}"
    assert all(row["error"] is None and row["label"] for row in rows)
    proof = wordsworth("verify", output, "--source", env=counted)
    assert proof.returncode == 0, proof.stdout + proof.stderr
