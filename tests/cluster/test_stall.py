"""stall: receipts pass as they come, and a run that gets none any more ends and says why."""

import socket
import time
from types import SimpleNamespace

import pytest

from tests.support.builders import write_shards
from tests.support.labelling import Watcher, rows, run
from wordsworth.pipeline.cluster import stall
from wordsworth.pipeline.cluster.stall import with_stall_timeout
from wordsworth.pipeline.errors import ClusterGone, UserError
from wordsworth.pipeline.labeling import dataset
from wordsworth.pipeline.prediction.load_model import load_model

pytestmark = pytest.mark.ray


def test_receipts_pass_in_order_and_an_error_is_raised_where_they_are_used():
    assert list(with_stall_timeout(iter([{"rows": n} for n in range(5000)]), 60, print)) == [
        {"rows": n} for n in range(5000)
    ]

    def fails():
        yield {"rows": 1}
        raise ZeroDivisionError("in the plan")

    receipts = with_stall_timeout(fails(), 60, print)
    assert next(receipts) == {"rows": 1}
    with pytest.raises(ZeroDivisionError, match="in the plan"):
        next(receipts)


def test_it_is_the_time_between_two_receipts_that_counts():
    def slow():
        for n in range(5):
            time.sleep(0.3)
            yield {"rows": n}
        time.sleep(30)

    notes, seen, begun = [], [], time.monotonic()
    with pytest.raises(
        UserError,
        match=r"stalled: no unit was written for 1 s \(--stall-timeout\).*run the same command again",
    ):
        for receipt in with_stall_timeout(slow(), 1.0, notes.append):
            seen.append(receipt["rows"])
    assert seen == [0, 1, 2, 3, 4]
    assert time.monotonic() - begun < 20 and "What every stage is doing" in notes[0]


def test_a_head_is_given_up_when_look_after_look_finds_nobody_and_not_at_the_first(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(stall.time, "monotonic", lambda: clock.now)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = stall._Head()
        head.place = server.getsockname()
        head.check()
    clock.now += 3600  # receipts came all the time, so nobody looked
    head.check()
    clock.now += stall.HEAD_PATIENCE
    head.check()
    clock.now += 1
    with pytest.raises(ClusterGone, match=r"is gone, and with it the cluster.*run the same command again"):
        head.check()


def hangs(table, settings):
    time.sleep(3600)


def test_a_run_in_which_a_stage_hangs_ends_says_where_and_goes_on_later(
    tmp_path, local_ray, small_model, monkeypatch
):
    model = load_model(str(small_model))
    write_shards(tmp_path / "shards", shards=1, images=4)
    watcher = Watcher()
    monkeypatch.setattr(dataset, "decode_stage", hangs)
    with pytest.raises(UserError, match="stalled: no unit was written for 25 s"):
        run(tmp_path, model, tmp_path / "shards", watcher=watcher, stall_timeout=25.0)
    told = "\n".join(watcher.notes)
    assert "hangs: 1 running" in told and "read: done, 1 tasks" in told and "1 of 1 nodes alive" in told, told
    monkeypatch.undo()
    run(tmp_path, model, tmp_path / "shards")
    assert len(rows(tmp_path)) == 4
