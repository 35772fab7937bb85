"""A training that is told to end saves a checkpoint at its next step, where the same command continues."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.faults.jobs import end
from tests.support.trainings import request as asked_for
from tests.support.trainings import write_classes
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.training import ending
from wordsworth.pipeline.training.ending import EndWatch, TrainingEnd, training_end
from wordsworth.pipeline.training.news import BeginNews, EpochNews, StepNews
from wordsworth.pipeline.training.trainer import train
from wordsworth.vit_model.model_folder import load_folder

PATIENT = ClusterRequest(grace=400)  # the grace of a busy machine

# ---- the workers ----


class Exchange:
    """Stand for the exchange of numbers between workers that are threads."""

    def __init__(self, num_workers: int):
        self.barrier = threading.Barrier(num_workers, timeout=20)
        self.given: dict[int, list[float]] = {}

    def of(self, rank: int) -> SimpleNamespace:
        def maxima(values: list[float]) -> list[float]:
            self.given[rank] = values
            self.barrier.wait()
            largest = [max(column) for column in zip(*self.given.values(), strict=True)]
            self.barrier.wait()
            return largest

        return SimpleNamespace(rank=rank, maxima=maxima)


def test_all_workers_end_behind_the_same_step_and_the_first_one_alone_asks(monkeypatch):
    monkeypatch.setattr(ending, "LOOK_S", 0.05)
    exchange = Exchange(3)
    end_at = time.monotonic() + 0.5
    ended: dict[int, int] = {}

    def work(rank: int) -> None:
        watch = EndWatch(exchange.of(rank), lambda: rank == 0 and time.monotonic() > end_at)
        step = 1
        while not watch.step():
            time.sleep(0.001 * (rank + 1))
            step += 1
        ended[rank] = step

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ended.keys() == {0, 1, 2} and len(set(ended.values())) == 1
    assert ended[0] > 20


@pytest.mark.parametrize(("step_s", "most"), [(0.001, 25), (0.3, 10), (20.0, 4)])
def test_a_look_comes_about_every_second_and_not_at_every_step(monkeypatch, step_s, most):
    clock = [0.0]
    asked: list[float] = []
    monkeypatch.setattr(ending, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    alone = SimpleNamespace(rank=0, maxima=lambda values: values)
    watch = EndWatch(alone, lambda: asked.append(clock[0]) is not None)
    while clock[0] < max(8.0, 3 * step_s):
        clock[0] += step_s
        watch.step()
    assert 3 <= len(asked) <= most
    gaps = [later - before for before, later in itertools.pairwise(asked)]
    assert max(gaps) <= max(1.0, step_s) + 0.1


def test_a_step_that_becomes_slow_is_looked_at_more_often(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(ending, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    watch = EndWatch(SimpleNamespace(rank=0, maxima=lambda values: values), lambda: False)
    for _ in range(5000):
        clock[0] += 0.001
        watch.step()
    assert watch.steps_between > 500
    for _ in range(2000):
        clock[0] += 2.0
        watch.step()
    assert watch.steps_between == 1


# ---- the command ----


@pytest.fixture(autouse=True)
def interrupting():
    """End by KeyboardInterrupt at Ctrl-C and at SIGTERM, as the command line does."""

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    before = {one: signal.signal(one, interrupt) for one in (signal.SIGINT, signal.SIGTERM)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@contextlib.contextmanager
def told(seconds: float, notes: list[str], has_begun: bool = True) -> Iterator[TrainingEnd]:
    """Give a TrainingEnd that was told to end by one SIGTERM."""
    with training_end(seconds, notes.append) as end:
        end.has_begun = has_begun
        assert not end.is_told()
        os.kill(os.getpid(), signal.SIGTERM)
        yield end


def test_the_first_signal_lets_the_workers_save(monkeypatch):
    notes: list[str] = []
    with told(60, notes) as end:
        assert end.is_told()
        while not notes:
            time.sleep(0.01)  # another thread tells
        with pytest.raises(KeyboardInterrupt, match=str(int(signal.SIGTERM))):
            end.finish()
    assert notes == [
        "told to end: the workers save a checkpoint, for 60 s at most (--grace); a second signal ends at once"
    ]


def test_a_checkpoint_that_takes_longer_than_the_grace_is_not_waited_for():
    with pytest.raises(KeyboardInterrupt), told(0.1, []):
        time.sleep(20)  # the end comes first
        pytest.fail("it went on")


def test_a_second_signal_ends_at_once():
    with pytest.raises(KeyboardInterrupt), told(60, []):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)  # the end comes first
        pytest.fail("it went on")


@pytest.mark.parametrize(("seconds", "has_begun"), [(0.0, True), (60.0, False)])
def test_without_grace_and_before_the_first_step_the_first_signal_ends_at_once(seconds, has_begun):
    with pytest.raises(KeyboardInterrupt), told(seconds, [], has_begun):
        time.sleep(20)  # the end comes first
        pytest.fail("it went on")


def test_a_training_that_ended_by_itself_is_not_interrupted():
    with training_end(60, print) as end:
        end.finish()


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_a_training_that_is_told_to_end_saves_every_step_that_it_told_of(tmp_path):
    """Without --save-every, and within an epoch: where the same command continues is below."""
    write_classes(tmp_path / "shards", shards=2, images=40)
    steps: list[int] = []

    def tell(news) -> None:
        if isinstance(news, BeginNews):
            os.kill(os.getpid(), signal.SIGTERM)
        if isinstance(news, StepNews | EpochNews):
            steps.append(news.step)

    with pytest.raises(KeyboardInterrupt):
        train(asked_for(tmp_path, epochs=400, batch_size=8, save_every=0, cluster=PATIENT), tell)
    last = max(int(path.name.split("-")[1]) for path in (tmp_path / "model" / "_train").glob("step-*"))
    assert max(steps, default=1) <= last < 400 * 10


@pytest.mark.long  # the signal itself: above
@pytest.mark.ray
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_command_that_is_told_to_end_changes_no_bit_of_the_model(tmp_path, workers, request):
    write_classes(tmp_path / "shards", shards=4, images=32)
    command = [
        "pretrain",
        str(tmp_path / "shards"),
        "--batch-size",
        "16",
        "--epochs",
        "40",
        "--save-every",
        "0",
    ]
    command += ["--width", "32", "--depth", "2", "--heads", "2", "--patch-size", "8", "--image-size", "32"]
    command += ["--dropout", "0.1", "--ema", "0.9", "--workers", workers, "--grace", "300", "--device", "cpu"]

    def start(name: str) -> subprocess.Popen:
        """Start the command, and end it after the test if it still runs."""
        with open(tmp_path / f"{name}.log", "a") as log:
            whole = [sys.executable, "-m", "wordsworth", *command, "--output", str(tmp_path / name)]
            process = subprocess.Popen(whole, stdout=log, stderr=log)
        request.addfinalizer(partial(end, process))
        return process

    def said(name: str) -> str:
        return (tmp_path / f"{name}.log").read_text()

    assert start("whole").wait(timeout=400) == 0, said("whole")
    cut, metrics = start("cut"), Path(tmp_path / "cut" / "metrics.jsonl")
    deadline = time.monotonic() + 300
    while not (metrics.exists() and '"epoch": 2' in metrics.read_text()):
        assert cut.poll() is None and time.monotonic() < deadline, said("cut")
        time.sleep(0.05)  # nothing tells when a line is there
    cut.send_signal(signal.SIGTERM)
    assert cut.wait(timeout=400) == 143, said("cut")
    assert "told to end: the workers save a checkpoint" in said("cut")
    assert "interrupted: what is done is kept" in said("cut") and "Traceback" not in said("cut")
    last = max(int(path.name.split("-")[1]) for path in (tmp_path / "cut" / "_train").glob("step-*"))
    assert start("cut").wait(timeout=400) == 0, said("cut")
    again = "workers go" if workers == "2" else "worker goes"
    assert f"{workers} {again} on from step {last:,}" in said("cut")
    one, other = (load_folder(tmp_path / name).state for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
