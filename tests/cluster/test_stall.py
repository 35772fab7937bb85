"""stall: receipts pass as they come, and a run that gets none any more ends and says why."""

import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import hostile
from tests.support.builders import photo, write_shards, write_tar
from tests.support.hostile import ordered
from tests.support.labelling import Watcher, rows, run
from wordsworth.pipeline.cluster import stall
from wordsworth.pipeline.cluster.stall import with_stall_timeout
from wordsworth.pipeline.errors import ClusterGone, UserError
from wordsworth.pipeline.images.limits import DecodeLimits
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
        match=r"stalled: no file was written for 1 s \(--stall-timeout\).*run the same command again",
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


def decode_by_orders(script):
    """Return the decode stage with a child that obeys orders, and with signs of life in quick succession."""

    def stage(table, settings):
        from dataclasses import replace

        from wordsworth.pipeline.cluster.life import give_sign_of_life
        from wordsworth.pipeline.images import budget
        from wordsworth.pipeline.images.decode import decode_unit
        from wordsworth.pipeline.images.sandbox import process_sandbox
        from wordsworth.pipeline.unit import Unit

        budget.SIGN_EVERY_S = 1.0
        sandbox = process_sandbox(replace(settings.sandbox_settings, script=script))
        unit = Unit.from_arrow(table)
        return decode_unit(unit, settings, sandbox=sandbox, alive=give_sign_of_life).to_arrow()

    return stage


@pytest.mark.long
def test_images_that_all_time_out_cost_their_rows_and_never_the_run(
    tmp_path, local_ray, small_model, monkeypatch
):
    images = {f"{n:02d}.jpg": ordered(photo(n), "hang") if n < 30 else photo(n) for n in range(36)}
    write_tar(tmp_path / "x.tar", images)
    monkeypatch.setattr(dataset, "decode_stage", decode_by_orders(Path(hostile.__file__)))
    limits = DecodeLimits(max_pixels=25_000_000, timeout_s=2.0)
    model = load_model(str(small_model))
    begun = time.monotonic()
    summary, _ = run(tmp_path, model, tmp_path / "x.tar", stall_timeout=25.0, limits=limits, unit_rows=64)
    assert time.monotonic() - begun > 60, "one unit took twice the time that a run may have without a receipt"
    assert summary.errors == {"decoder_timeout": 30} and len(rows(tmp_path)) == 36


def test_a_sign_of_life_counts_like_a_receipt_and_its_end_is_seen(monkeypatch):
    monkeypatch.setattr(stall, "LOOK", 0.2)
    signs = iter([None, "1", "2", "3", "4", "5", "6"])
    monkeypatch.setattr(stall, "last_sign_of_life", lambda: next(signs, "6"))

    def silent():
        time.sleep(30)
        yield {}

    begun = time.monotonic()
    with pytest.raises(UserError, match="stalled: no file was written for 1 s"):
        list(with_stall_timeout(silent(), 1.0, lambda line: None))
    assert 2.0 < time.monotonic() - begun < 25, "six signs, and a second of silence after the last one"


def test_the_driver_sees_the_signs_of_its_workers(local_ray):
    import ray

    from wordsworth.pipeline.cluster.life import give_sign_of_life, last_sign_of_life

    before = last_sign_of_life()
    ray.get(ray.remote(give_sign_of_life).remote())
    once = last_sign_of_life()
    ray.get(ray.remote(give_sign_of_life).remote())
    assert once is not None and len({before, once, last_sign_of_life()}) == 3


def hangs(table, settings):
    time.sleep(3600)


def test_a_run_in_which_a_stage_hangs_ends_says_where_and_goes_on_later(
    tmp_path, local_ray, small_model, monkeypatch
):
    model = load_model(str(small_model))
    write_shards(tmp_path / "shards", shards=1, images=4)
    watcher = Watcher()
    monkeypatch.setattr(dataset, "decode_stage", hangs)
    with pytest.raises(UserError, match="stalled: no file was written for 25 s"):
        run(tmp_path, model, tmp_path / "shards", watcher=watcher, stall_timeout=25.0)
    told = "\n".join(watcher.notes)
    assert "hangs: 1 running" in told and "read: done, 1 tasks" in told and "1 of 1 nodes alive" in told, told
    monkeypatch.undo()
    run(tmp_path, model, tmp_path / "shards")
    assert len(rows(tmp_path)) == 4
