"""signs: workers tell the driver how far units are and which stores do not answer, and not too often."""

from types import SimpleNamespace

import pytest

from wordsworth.pipeline.cluster import signs
from wordsworth.pipeline.cluster.signs import Sign, StoreTries, UnitSign, UnitUnderWay, hear_store, interval_s
from wordsworth.pipeline.cluster.store_watch import StoreWatch
from wordsworth.pipeline.storage.patience import Trouble, hearing_trouble, tell_trouble

STORE = "http://127.0.0.1:9000"


@pytest.fixture
def left(monkeypatch):
    """Return the notes of a fresh worker, as it leaves them."""
    notes = []
    worker = signs._Worker()
    monkeypatch.setattr(signs, "_worker", worker)
    monkeypatch.setattr(worker, "leave", lambda: notes.append((worker.unit, dict(worker.stores))))
    return SimpleNamespace(notes=notes, worker=worker)


def test_a_note_comes_back_as_it_was_left():
    unit = UnitSign(stage="predict", unit="x-00001", share=0.5, rows=500, size_bytes=9, seconds=1.5)
    sign = Sign(
        node="a1", pid=7, number=3, unit=unit, stores={STORE: StoreTries(tries=2, waited_s=1, said="x")}
    )
    assert Sign.from_json(sign.to_json()) == sign
    assert Sign.from_json(Sign(node="a1", pid=7, number=1).to_json()).unit is None


def test_a_worker_leaves_two_notes_a_second_however_many_images_it_decodes(left, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(signs.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(
        left.worker, "leave", lambda: (left.notes.append(clock.now), setattr(left.worker, "last", clock.now))
    )
    unit = UnitUnderWay("decode", "x-00001", 5000, 1)
    for done in range(5000):
        clock.now += 0.01
        unit.reached(done, 5000)
    assert 90 <= len(left.notes) <= 101, "fifty seconds"


@pytest.mark.parametrize(("cpus", "seconds"), [(2, 0.5), (64, 1.28), (1000, 20.0), (100_000, 60.0)])
def test_the_notes_of_a_large_cluster_come_less_often(cpus, seconds):
    assert interval_s(cpus) == seconds


def test_a_store_that_fails_once_is_counted_and_not_told(left):
    with hearing_trouble(hear_store):
        tell_trouble(STORE, 0.3, OSError("503"))
    tell_trouble(STORE, 60.0, OSError("nobody listens any more"))
    assert left.notes == [] and left.worker.stores[STORE].tries == 1


def test_a_store_that_is_away_is_told_at_once_and_then_every_few_seconds(left):
    for waited_s in (0.3, 1.0, 2.5, 2.6, 2.7):
        hear_store(Trouble(address=STORE, waited_s=waited_s, said="refused"))
    assert len(left.notes) == 1 and left.worker.stores[STORE].tries == 5


def signed(pid: int, tries: int, waited_s: float) -> tuple[bytes, Sign]:
    stores = {STORE: StoreTries(tries=tries, waited_s=waited_s, said="ConnectionError: refused")}
    return str(pid).encode(), Sign(node=f"node-{pid}", pid=pid, number=tries, stores=stores)


def test_the_user_hears_of_a_store_once_in_ten_seconds_with_node_and_pid_and_when_it_answers():
    clock, told = SimpleNamespace(now=0.0), []
    watch = StoreWatch(
        lambda message, **fields: told.append((clock.now, message, fields)), clock=lambda: clock.now
    )
    for second in range(60):
        clock.now = float(second)
        tries = min(second, 25)  # the store is away for 25 seconds
        watch.look(dict([signed(1, tries, 1.0 + tries), signed(2, tries, 2.5 + tries), signed(3, 0, 0)]))
    times = [moment for moment, _, _ in told]
    assert times == [1.0, 11.0, 21.0, 41.0]
    _, first, fields = told[0]
    assert first.startswith(f"{STORE} does not answer: ConnectionError: refused. It is asked again")
    assert first.endswith("(node node-2, pid 2 and 1 more)")
    assert (fields["event"], fields["level"], fields["node"], fields["pid"]) == (
        "store",
        "warning",
        "node-2",
        2,
    )
    assert told[-1][1].startswith(f"{STORE} answers again, after")
    assert watch.tries == {STORE: 50}
