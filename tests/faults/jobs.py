"""Run a labelling job as a person runs it, on machines that fail, and check its output afterwards."""

import copy
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import torch

from tests.faults.machines import ENV
from tests.support.builders import make_model, write_shards
from wordsworth.pipeline.images.decode import DecodeSettings, decode_unit
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.inference import prepare

UNIT_ROWS, TOP_K = 4, 5
PACE = 0.5  # seconds, of one of several tasks
# Units that a run may write beyond those that are waited for: a fault must not come after the run's end.
AHEAD = 6
# Goes on PYTHONPATH of jobs and clusters: sitecustomize.py arms the writers.
PLUGIN = Path(__file__).with_name("plugin")


class Job:
    """Hold one run folder over generated shards, labelled by a small ViT. Decoding a unit takes PACE
    seconds, so that a fault can meet the unit."""

    def __init__(
        self,
        folder: Path,
        shards: int = 24,
        images: int = 8,
        armed: Path | None = None,
        out: Path | None = None,
    ):
        self.folder, self.out = folder, out or folder / "out"
        self.source, self.armed = folder / "in", armed or folder / "armed"
        self.keys = write_shards(self.source, shards, images)
        self.model = make_model(
            folder / "model", image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64
        )
        self.units = shards * -(-images // UNIT_ROWS)
        self.armed.mkdir(exist_ok=True)
        self.log = folder / "log"
        self.started: list[subprocess.Popen] = []

    @classmethod
    def like(cls, other: "Job", out: Path) -> "Job":
        """Return a job with the same source and model and another output."""
        made = copy.copy(other)
        made.out, made.started = out, []
        return made

    @property
    def env(self) -> dict[str, str]:
        """Return the environment that a job and every worker of its cluster need for `arm`."""
        return fault_env(self.armed)

    def arm(self, point: str) -> None:
        """Let the next writer that comes to the point die there: "before-link" or "after-link"."""
        (self.armed / point).touch()

    def armed_left(self) -> list[str]:
        return sorted(path.name for path in self.armed.iterdir())

    def allow(self, units: int | None) -> None:
        """Let writers wait once this number of units is written; None lets no writer wait."""
        path = self.armed.with_name("allowed")
        if units is None:
            return path.unlink(missing_ok=True)
        path.with_suffix(".new").write_text(str(units))
        path.with_suffix(".new").replace(path)

    def start(self, address: str | None, *more: str, env: dict[str, str] | None = None) -> subprocess.Popen:
        """Start the labeler's command in a process of its own; its output goes to `log`."""
        place = ["--address", address] if address else []
        command = [
            sys.executable,
            "-m",
            "wordsworth",
            "label",
            str(self.source),
            "--output",
            str(self.out),
            "--model",
            str(self.model),
        ]
        settings = ["--unit-rows", str(UNIT_ROWS), "--batch-size", str(UNIT_ROWS), "--precision", "fp32"]
        with open(self.log, "ab") as log:
            log.write(f"---- {' '.join(more)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [*command, *settings, *place, *more],
                env=os.environ | ENV | self.env | (env or {}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def close(self) -> None:
        """End the processes that still run."""
        for process in self.started:
            end(process)

    def said(self) -> str:
        """Return the output of the last command."""
        return self.log.read_text().rpartition("---- ")[2]

    def written(self) -> int:
        return sum(1 for _ in self.out.glob("predictions/*.parquet"))

    def wait_for(self, units: int, process: subprocess.Popen, seconds: float = 400) -> None:
        """Wait until this number of units is written. The run waits for the next call, or for `finish`,
        when AHEAD more units are written."""
        self.allow(units + AHEAD)
        deadline = time.monotonic() + seconds
        while self.written() < units:
            assert process.poll() is None, (
                f"the job ended with {process.returncode} at {self.written()} units: {self.said()[-3000:]}"
            )
            assert time.monotonic() < deadline, (
                f"{self.written()} of {units} units after {seconds} s: {self.said()[-3000:]}"
            )
            time.sleep(0.02)

    def finish(self, process: subprocess.Popen, seconds: float = 500) -> int:
        self.allow(None)
        try:
            return process.wait(seconds)
        finally:
            end(process)

    def forget(self) -> None:
        """Remove the output; source and model stay."""
        shutil.rmtree(self.out, ignore_errors=True)
        for path in [*self.armed.iterdir(), *map(self.armed.with_name, ("decoded", "allowed"))]:
            path.unlink(missing_ok=True)

    def expected(self) -> dict[tuple[str, int], tuple[str, list[int], list[float]]]:
        """Return key, best classes and scores of every row of an undisturbed run, by shard and index: made
        without Ray, unit by unit."""
        checkpoint = load_model(str(self.model))
        model = prepare(checkpoint.model(), checkpoint.preprocessing, "fp32", "cpu")
        settings = DecodeSettings(
            preprocessing=checkpoint.preprocessing,
            image_size=checkpoint.config.image_size,
            patch_size=checkpoint.config.patch_size,
        )
        found = {}
        for shard in find_shards([str(self.source)], format=None, image_keys=("jpg",)).shards:
            for unit in read_units(shard, ReadSettings(unit_rows=UNIT_ROWS, image_keys=("jpg",))):
                samples = unit.samples.select(["key", "index"]).to_pylist()
                patches = decode_unit(unit, settings).payload.reshape(len(samples), *settings.patches_shape)
                with torch.inference_mode():
                    scores, ids = model(torch.from_numpy(patches.copy()))[0].softmax(-1).topk(TOP_K)
                for sample, best, values in zip(samples, ids.tolist(), scores.tolist(), strict=True):
                    found[shard.uri, sample["index"]] = sample["key"], best, values
        return found

    def compare(self, expected: dict[tuple[str, int], tuple]) -> Counter:
        """Return the number of rows, and the numbers of rows that are lost, doubled or different from an
        undisturbed run."""
        rows = pq.read_table(self.out / "predictions").to_pylist() if self.written() else []
        places = Counter((row["shard"], row["index"]) for row in rows)
        return Counter(
            rows_out=len(rows),
            lost=len(expected.keys() - places.keys()),
            doubled=sum(count - 1 for count in places.values()),
            different=sum(not _agrees(row, expected.get((row["shard"], row["index"]))) for row in rows),
        )

    def check(self, expected: dict[tuple[str, int], tuple], whole: bool = True) -> None:
        """Check that no row is doubled or different. With `whole`, check also that no row is lost and that
        `verify --source` finds nothing."""
        found = self.compare(expected)
        assert (found["doubled"], found["different"]) == (0, 0)
        if whole:
            assert (found["lost"], found["rows_out"]) == (0, len(expected))
            report = verify(str(self.out), source=True)
            assert not report.findings, report.findings

    def decoded(self) -> int:
        """Return the number of units that were decoded since `forget`, repeated units included."""
        path = self.armed.with_name("decoded")
        return path.read_text().count("\n") if path.exists() else 0


def _agrees(row: dict, expected: tuple[str, list[int], list[float]] | None) -> bool:
    if expected is None or row["error"]:
        return False
    key, ids, scores = expected
    same = (row["key"], row["label_id"], [entry["label_id"] for entry in row["topk"]]) == (key, ids[0], ids)
    return (
        same
        and max(abs(entry["score"] - score) for entry, score in zip(row["topk"], scores, strict=True)) < 1e-5
    )


def fault_env(armed: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(PLUGIN), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": paths, "WORDSWORTH_TEST_ARMED": str(armed), "WORDSWORTH_TEST_PACE": str(PACE)}


def end(process: subprocess.Popen) -> None:
    """End a command and every process that it started."""
    try:
        whole = psutil.Process(process.pid)
        tree = [*whole.children(recursive=True), whole]
    except psutil.NoSuchProcess:
        return
    for one in tree:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
