"""run_watch: display and metrics hear of a run while it goes on, also on a cluster that answers badly."""

import time

import pytest

from tests.labeling.test_pace import receipt, sign
from tests.support.labelling import Watcher
from wordsworth.pipeline.cluster.ray_internals import StageFigures
from wordsworth.pipeline.cluster.signs import Sign, StoreTries
from wordsworth.pipeline.errors import ClusterGone
from wordsworth.pipeline.labeling import run_watch
from wordsworth.pipeline.labeling.run_watch import RunWatch


class Recorder:
    """Remember what metrics are told."""

    def __init__(self):
        self.counted, self.gauges = {}, {}

    def add(self, name, amount, **tags):
        key = (name, *tags.values())
        self.counted[key] = self.counted.get(key, 0) + max(0, amount)

    add_up_to = add

    def set(self, name, value, **tags):
        self.gauges[name, *tags.values()] = value

    def set_all(self, values):
        for name, value in values.items():
            self.set(name, value)


def stage(name: str, **given) -> StageFigures:
    empty = {"running": 0, "waiting": 0, "failed": 0, "actors": 0, "pending": 0, "restarting": 0}
    return StageFigures(name=name, **empty | given)


@pytest.fixture
def cluster(monkeypatch):
    """Stand for a cluster: what it answers, and what was removed from it."""
    state = {"signs": dict, "stages": [], "removed": 0}

    def remove():
        state["removed"] += 1

    monkeypatch.setattr(run_watch, "TICK_S", 0.02)
    monkeypatch.setattr(run_watch, "METRICS_EVERY_S", 0.02)
    monkeypatch.setattr(run_watch, "look_every_s", lambda: 0.02)
    monkeypatch.setattr(run_watch, "find_signs", lambda: state["signs"]())
    monkeypatch.setattr(run_watch, "remove_signs", remove)
    monkeypatch.setattr(run_watch.ExecutorProbe, "figures", lambda: state["stages"])
    return state


def until(is_so) -> None:
    """Wait for a watch, which looks in a thread of its own."""
    deadline = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # nothing tells when it has looked


def test_what_is_waited_for_is_said_and_then_how_far_units_are(cluster):
    watcher = Watcher()
    with RunWatch(watcher) as watch:
        until(lambda: "starting the workers" in watcher.waits)
        cluster["stages"] = [stage("read"), stage("predict", pending=3)]
        until(lambda: "starting 3 model actors" in watcher.waits)
        cluster["stages"] = [stage("read", running=1), stage("predict", actors=3)]
        until(lambda: watcher.waits[-1] == "reading the first images")
        half = Sign(node="a1", pid=7, number=1, unit=sign(0, "decode", 0.5))
        cluster["signs"] = lambda: {b"a1:7": half}
        until(lambda: watcher.figures and watcher.figures[-1].decoded == 250)
        watch.receipt(receipt(0))
        until(lambda: watcher.figures[-1].written == 500)
    assert cluster["removed"] == 1, "nothing stays in the cluster's store"


def test_metrics_get_receipts_stages_and_stores(cluster):
    tried = {"http://store": StoreTries(tries=4, waited_s=5.0, said="refused")}
    cluster["signs"] = lambda: {b"a1:7": Sign(node="a1", pid=7, number=1, stores=tried)}
    cluster["stages"] = [stage("decode", waiting=9, running=2), stage("predict", actors=2, restarting=1)]
    recorder, watcher = Recorder(), Watcher()
    with RunWatch(watcher, recorder, batch_size=64) as watch:
        watch.pace.total = 50_000_000
        watch.receipt(receipt(0, errors={"truncated": 2}))
        watch.receipt(receipt(1, rows=0, fault="unreadable: x", bytes_read=0, seconds={}))
        until(lambda: ("progress",) in recorder.gauges and recorder.gauges["progress",])
        until(lambda: ("store_retries", "http://store") in recorder.counted)
    assert recorder.counted["images",] == 500 and recorder.counted["units",] == 1
    assert recorder.counted["errors", "truncated"] == 2 and recorder.counted["shard_faults",] == 1
    assert recorder.counted["stage_seconds", "predict"] == 18.0
    assert recorder.counted["actor_restarts",] == 1, "one that goes on is one"
    assert recorder.gauges["queue_depth", "decode"] == 9 and recorder.gauges["actors", "alive"] == 2
    assert recorder.gauges["batch_size",] == 64 and recorder.gauges["running",] == 1
    assert watch.stores.tries == {"http://store": 4}
    assert any("http://store does not answer" in note for note in watcher.notes)


def test_a_cluster_that_does_not_answer_ends_no_watch(cluster):
    def fails():
        raise ConnectionError("short of breath")

    cluster["signs"] = fails
    watcher = Watcher()
    with RunWatch(watcher) as watch:
        watch.receipt(receipt(0))
        until(lambda: watcher.figures and watcher.figures[-1].written == 500)


def test_a_cluster_that_is_gone_is_asked_nothing_more(cluster):
    with pytest.raises(ClusterGone), RunWatch(Watcher()):
        raise ClusterGone("the head is gone")
    assert cluster["removed"] == 0


class GoingOn:
    """A listing: `shards` of a million bytes each, and whether it has ended."""

    shards = bytes_total = 0
    is_complete = False

    @property
    def known_bytes(self) -> int:
        return self.bytes_total if self.is_complete else 0

    def refresh(self) -> bool:
        self.bytes_total = 1_000_000 * self.shards
        return True


def test_a_share_is_told_when_the_listing_has_ended_and_not_before(cluster):
    watcher, totals = Watcher(), GoingOn()
    totals.shards = 1
    with RunWatch(watcher, totals=totals) as watch:
        watch.receipt(receipt(0))
        until(lambda: watcher.figures and watcher.figures[-1].written == 500)
        assert watcher.figures[-1].share is None and watcher.figures[-1].seconds_left is None
        totals.shards, totals.is_complete = 100, True
        until(lambda: watcher.plan.get("shards") == 100 and watcher.figures[-1].share is not None)
    assert 0 < watcher.figures[-1].share < 1
