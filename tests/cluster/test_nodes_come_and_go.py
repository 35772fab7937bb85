"""Nodes that join in the middle of a run are used, nodes that leave cost their units, and a run that is told
to end ends well."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.faults.jobs import Job, fault_env
from tests.faults.machines import Machines, machines
from wordsworth.pipeline.cluster import growth
from wordsworth.pipeline.cluster.grace import Grace, grace
from wordsworth.pipeline.cluster.growth import Follower, following_nodes
from wordsworth.pipeline.cluster.ray_internals import RunningPlan
from wordsworth.pipeline.errors import UserError

AGAIN = "interrupted: what is done is kept, run the same command again to continue"
NOTICE_S = 8.0  # seconds between the announcement that a node is taken away and its end


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "armed").mkdir()
    with machines(0, env=fault_env(tmp_path / "armed"), num_cpus=3, memory=6 << 30) as made:
        yield made


@pytest.fixture
def job(tmp_path):
    made = Job(tmp_path, shards=30)
    yield made
    made.close()


def actors(cluster: Machines) -> int:
    return sum("MapWorker(MapBatches(Predictor))" in title for _, title in cluster.workers())


def wait_for(is_so: Callable[[], bool], job: Job, process: subprocess.Popen, seconds: float = 400) -> None:
    """Wait until something is so, while the job goes on."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline, job.said()
        time.sleep(0.1)  # neither a file system nor Ray tells of a change


@pytest.mark.long
@pytest.mark.ray
def test_a_run_uses_nodes_that_join_and_outlives_nodes_and_commands_that_are_taken_away(cluster, job):
    """One command is told to end and finishes its units in flight. The next one gets a node within a minute,
    and loses it with notice."""
    expected = job.expected()
    first = job.start(cluster.address)
    job.allow(2)  # the writers wait then, so that units are in flight
    wait_for(lambda: job.written() >= 2 and job.decoded() >= 6, job, first)
    first.send_signal(signal.SIGTERM)
    wait_for(lambda: "told to end: finishes" in job.said(), job, first)
    job.allow(None)
    assert first.wait(150) == 143, job.said()
    assert AGAIN in job.said() and job.written() > 2, job.said()
    job.check(expected, whole=False)
    assert job.written() < job.units

    second = job.start(cluster.address)
    job.wait_for(job.written() + 1, second)
    before = actors(cluster)
    node = cluster.add()
    wait_for(lambda: actors(cluster) > before, job, second)
    job.wait_for(job.written() + 4, second)
    assert cluster.drain(node, NOTICE_S)
    time.sleep(NOTICE_S)  # the notice that a cloud gives
    cluster.kill_node(node)
    assert job.finish(second) == 0, job.said()
    job.check(expected)
    said = job.said()
    grown, shrunk = (
        int(re.search(rf"{what}: (\d+) model actor", said)[1]) for what in ("joined", "being taken away")
    )
    assert grown > before == shrunk, said


# ---- without a cluster -------------------------------------------------------------------------------------


def test_a_node_that_cannot_be_used_is_named_and_does_not_count(monkeypatch):
    nodes = {"a" * 56: "node one (aaaaaaaa)"}
    monkeypatch.setattr(growth, "LOOK_S", 0.01)
    monkeypatch.setattr(growth, "_living_nodes", lambda: dict(nodes))
    monkeypatch.setattr(growth, "draining_nodes", set)
    notes: list[str] = []
    divided: list[frozenset[str]] = []

    def check(node: str) -> None:
        if node.startswith("b"):
            raise UserError("its GPU is too old for this torch")

    def divide(without: frozenset[str]) -> dict[str, int]:
        divided.append(without)
        return {"Predictor": len(nodes) - len(without)}

    RunningPlan.forget()
    with following_nodes(Follower(check=check, divide=divide, model="Predictor", note=notes.append)):
        nodes |= {"b" * 56: "node two (bbbbbbbb)", "c" * 56: "node three (cccccccc)"}
        deadline = time.monotonic() + 10
        while len(notes) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)  # the thread looks every 0.01 s
    assert notes == [
        "node two (bbbbbbbb) joined, and is left alone: its GPU is too old for this torch",
        "node three (cccccccc) joined: 2 model actors now",
    ]
    assert divided == [frozenset({"b" * 56})]
    assert RunningPlan.workers == {"Predictor": 2}


@pytest.fixture
def in_flight(monkeypatch):
    """The number of units that a plan works on, which a test sets."""
    units = SimpleNamespace(number=3)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    monkeypatch.setattr(RunningPlan, "close", lambda stages: True)
    monkeypatch.setattr(RunningPlan, "units_in_flight", lambda stages: units.number)
    yield units
    signal.signal(signal.SIGINT, ctrl_c)


@contextlib.contextmanager
def interrupted(seconds: float, notes: list[str]):
    """Give a Grace that was told to end by one Ctrl-C."""
    with grace(seconds, ("Predictor",), lambda message, **_: notes.append(message)) as ending:
        ending.check()
        os.kill(os.getpid(), signal.SIGINT)
        yield ending


def test_the_first_signal_lets_units_in_flight_be_finished(in_flight):
    notes: list[str] = []
    with interrupted(60, notes) as ending:
        ending.check()
        ending.check()
        in_flight.number = 0
        with pytest.raises(KeyboardInterrupt):
            ending.check()
    assert len(notes) == 1 and notes[0].startswith(
        "told to end: finishes the 3 files under way, for 60 s at most"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_unit_that_takes_longer_than_the_grace_is_abandoned(in_flight):
    with interrupted(0.05, []) as ending:
        time.sleep(0.1)  # the grace is over
        with pytest.raises(KeyboardInterrupt):
            ending.check()


def test_the_second_signal_ends_at_once(in_flight):
    with interrupted(60, []), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)  # the handler comes first


def test_without_grace_the_first_signal_ends_at_once(in_flight):
    with pytest.raises(KeyboardInterrupt), interrupted(0, []):
        time.sleep(5)  # the handler comes first


def test_a_signal_that_is_ignored_stays_ignored(in_flight):
    """Ignore Ctrl-C as a shell's background job does, which Ctrl-C does not mean."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ending = Grace(60, ("Predictor",), print)
        ending.take_signals()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ending.give_back()
    finally:
        signal.signal(signal.SIGINT, before)
