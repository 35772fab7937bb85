"""A run that is there already, and the command again: resumed, updated, retried, or refused."""

import gzip
import json
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from tests.support.builders import photo, write_shards, write_tar
from tests.support.labelling import Watcher, label_of, rows, run
from wordsworth.pipeline.compaction.compactor import CompactRequest, compact
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.labeling import labeler
from wordsworth.pipeline.output import frozen_listing as listings
from wordsworth.pipeline.sources import finder as sources
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def model(small_model):
    return load_folder(small_model)


def test_the_same_command_again_does_nothing_and_another_command_is_refused(tmp_path, model):
    write_shards(tmp_path / "shards", shards=2, images=4)
    first, _ = run(tmp_path, model, tmp_path / "shards")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    again, watcher = run(tmp_path, model, tmp_path / "shards")
    assert again == first and not watcher.receipts
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    with pytest.raises(UserError, match=r"holds another run: --top-k was 5 and is 3"):
        run(tmp_path, model, tmp_path / "shards", top_k=3)
    other = replace(model, state={name: tensor + 1 for name, tensor in model.state.items()})
    with pytest.raises(UserError, match=r"the weights of model \S+ differ \(fingerprint was \w{16} and"):
        run(tmp_path, other, tmp_path / "shards")


def test_new_shards_are_noted_and_a_replaced_shard_is_refused(tmp_path, model):
    write_shards(tmp_path / "shards", shards=2, images=4)
    run(tmp_path, model, tmp_path / "shards")
    write_tar(tmp_path / "shards" / "part-777.tar", {"n.jpg": photo(1)})
    summary, watcher = run(tmp_path, model, tmp_path / "shards")
    assert summary.rows == 8 and any("1 shard or image is new" in note for note in watcher.notes)
    write_tar(tmp_path / "shards" / "part-000.tar", {"other.jpg": photo(2)})
    with pytest.raises(UserError, match=r"shard_changed: .*part-000\.tar was replaced since"):
        run(tmp_path, model, tmp_path / "shards")


def test_labelling_begins_before_the_listing_ends_and_a_resume_lists_on(tmp_path, model, monkeypatch):
    """The first page is small here, so the plan itself lists the rest, page after page, as it labels."""
    for number in range(30):
        path = tmp_path / "photos" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo(number, (40, 30)))
    monkeypatch.setattr(sources, "PAGE", 4)
    monkeypatch.setattr(listings, "SHARDS_IN_PAGE", 2)
    monkeypatch.setattr(labeler, "_label_rest", lambda *_: 1 / 0)  # killed when the first page is frozen
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, model, tmp_path / "photos")
    monkeypatch.undo()
    assert len(list((tmp_path / "out" / "_run" / "shards").iterdir())) == 1
    summary, watcher = run(tmp_path, model, tmp_path / "photos")
    assert summary.rows == 30 and sorted(row["index"] for row in rows(tmp_path)) == list(range(30))
    assert (
        watcher.plan["listed"] is False and summary.shards == 3
    )  # two pages of 4 images and, by the plan, one of the other 22
    assert verify(str(tmp_path / "out"), source=True).ok


def test_update_labels_only_what_is_new_and_replace_changed_what_is_another(tmp_path, model):
    write_shards(tmp_path / "shards", shards=2, images=4)
    run(tmp_path, model, tmp_path / "shards")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "predictions").iterdir()}
    write_tar(tmp_path / "shards" / "new.tar", {"new.jpg": photo(99)})
    summary, watcher = run(tmp_path, model, tmp_path / "shards")
    assert summary.rows == 8 and any("--update labels what is new" in note for note in watcher.notes)
    summary, watcher = run(tmp_path, model, tmp_path / "shards", update=True)
    assert summary.rows == 9 and watcher.notes[0] == "update: 1 new shard or image"
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "predictions").iterdir()}
    assert before.items() <= after.items() and len(after) == 3, "what was labelled is left alone"
    assert verify(str(tmp_path / "out"), source=True).ok

    (shard,) = (tmp_path / "shards").glob("*000.tar")
    write_tar(shard, {"other.jpg": photo(7), "another.jpg": photo(8)})
    with pytest.raises(UserError, match=r"000\.tar was replaced .* --replace-changed labels it again"):
        run(tmp_path, model, tmp_path / "shards")
    summary, watcher = run(tmp_path, model, tmp_path / "shards", update=True)
    assert summary.rows == 9 and "1 changed (--replace-changed" in watcher.notes[0]
    summary, _ = run(tmp_path, model, tmp_path / "shards", replace_changed=True)
    assert summary.rows == 4 + 1 + 2 and verify(str(tmp_path / "out"), source=True).ok
    assert Counter(row["key"] for row in rows(tmp_path))["other"] == 1


def test_what_vanished_after_the_plan_holds_up_nothing_and_is_dropped_when_asked(
    tmp_path, model, monkeypatch
):
    write_shards(tmp_path / "shards", shards=3, images=4)
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in range(5):
        (loose / f"{number}.jpg").write_bytes(photo(number))
    (loose / "2b.jpg").symlink_to("/nowhere/x.jpg")
    given = (tmp_path / "shards", loose)
    monkeypatch.setattr(labeler, "_label_rest", lambda *_: 1 / 0)  # killed when the run is planned
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, model, *given)
    monkeypatch.undo()
    (tmp_path / "shards" / "part-001.tar").unlink()
    (loose / "4.jpg").unlink()
    with pytest.raises(UserError, match=r"1 shard .* first .*part-001\.tar: not_found: .*--drop-missing"):
        run(tmp_path, model, *given)
    errors = {row["key"]: row["error"] for row in rows(tmp_path) if row["error"]}
    assert errors == {"2b.jpg": "not_found", "4.jpg": "not_found"} and len(rows(tmp_path)) == 8 + 6
    summary, watcher = run(tmp_path, model, *given, update=True, drop_missing=True)
    assert (summary.rows, summary.shards, summary.errors) == (13, 3, {"not_found": 1})
    assert not watcher.receipts, "nothing is labelled again"
    assert verify(str(tmp_path / "out"), source=True).findings == []


def test_retried_errors_replace_their_rows_and_no_others(tmp_path, model):
    """Images that are too large for the first command only: in a tar, in a compressed tar, and loose."""
    members = {f"{n}.jpg": photo(n, (400, 300) if n % 3 == 0 else (60, 40)) for n in range(9)}
    members |= {"lost.txt": b"no image", "z.png": b"x"}
    plain = write_tar(tmp_path / "tars" / "plain.tar", members)
    (tmp_path / "tars" / "packed.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    for name, data in members.items():
        path = tmp_path / "loose" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    sources = (tmp_path / "tars", tmp_path / "loose")
    asked = {"keep": ("txt",), "unit_rows": 4}
    summary, _ = run(tmp_path, model, *sources, **asked, limits=DecodeLimits(max_pixels=10_000))
    assert summary.errors == {"too_many_pixels": 9, "not_an_image": 3, "missing_image": 2}
    before = {(row["shard"], row["key"], row["index"]): row for row in rows(tmp_path)}
    names = sorted(path.name for path in (tmp_path / "out" / "predictions").iterdir())

    summary, _ = run(tmp_path, model, *sources, **asked, retry_errors=True)
    assert summary.errors == {"not_an_image": 3, "missing_image": 2} and summary.rows == len(before)
    after = {(row["shard"], row["key"], row["index"]): row for row in rows(tmp_path)}
    assert before.keys() == after.keys() and names == sorted(
        path.name for path in (tmp_path / "out" / "predictions").iterdir()
    )
    for place, row in after.items():
        if before[place]["error"] == "too_many_pixels":
            assert row["error"] is None and row["label"] and (row["width"], row["height"]) == (400, 300)
        else:
            assert row == before[place], "what was right, or cannot be helped, is left alone"
    report = verify(str(tmp_path / "out"), source=True)
    assert report.ok, report.findings
    right = {f"{n}": label_of(model, photo(n, (400, 300))) for n in range(0, 9, 3)}
    retried = [row for place, row in after.items() if before[place]["error"] == "too_many_pixels"]
    assert len(retried) == 9 and all(
        row["label"] == right[row["key"].removesuffix(".jpg")] for row in retried
    )


def test_a_missing_unit_is_made_again_from_where_the_one_before_it_ended(tmp_path, model):
    write_shards(tmp_path / "shards", shards=1, images=30)
    run(tmp_path, model, tmp_path / "shards", unit_rows=7)
    whole = rows(tmp_path)
    files = sorted((tmp_path / "out" / "predictions").glob("*.parquet"))
    files[2].unlink()
    files[4].unlink()
    _, watcher = run(tmp_path, model, tmp_path / "shards", unit_rows=7)
    assert sorted(receipt.file for receipt in watcher.receipts) == [files[2].name, files[4].name]
    assert rows(tmp_path) == whole


def test_a_compacted_run_is_complete_and_takes_an_update_and_nothing_that_changes_its_units(tmp_path, model):
    write_shards(tmp_path / "shards", shards=2, images=4)
    first, _ = run(tmp_path, model, tmp_path / "shards", unit_rows=2)
    large, larger = tmp_path / "large", tmp_path / "larger"
    before = rows(tmp_path)
    compact(CompactRequest(run=str(tmp_path / "out"), output=str(large)), Watcher())
    asked = {"output": str(large), "unit_rows": 2}
    again, watcher = run(tmp_path, model, tmp_path / "shards", **asked)
    assert again == first and not watcher.receipts
    assert watcher.notes == ["this run is complete already: nothing to do"]
    for option in ("retry_errors", "replace_changed"):
        said = rf"--{option.replace('_', '-')} changes files that `wordsworth compact` has merged"
        with pytest.raises(UserError, match=said):
            run(tmp_path, model, tmp_path / "shards", **asked, **{option: True})

    write_tar(tmp_path / "shards" / "new.tar", {"new.jpg": photo(99)})
    summary, watcher = run(tmp_path, model, tmp_path / "shards", **asked, update=True)
    assert [receipt.rows for receipt in watcher.receipts] == [1], "what is compacted is not labelled again"
    assert (summary.rows, summary.shards, summary.files) == (9, 3, first.files + 1)
    assert summary.bytes_read > first.bytes_read and summary.bytes_written > first.bytes_written
    (new,) = pq.read_table(large / "predictions").to_pylist()
    assert new["key"] == "new" and verify(str(large), source=True).ok
    compact(CompactRequest(run=str(large), output=str(larger)), Watcher())
    report = verify(str(larger), source=True)
    assert report.ok and (report.rows, report.files) == (9, summary.files)
    merged = pq.read_table(larger / "compacted").to_pylist()
    assert [row for row in merged if row["key"] != "new"] == before


def test_an_update_that_was_killed_before_its_summary_writes_it_when_the_command_runs_again(
    tmp_path, model, monkeypatch
):
    write_shards(tmp_path / "shards", shards=2, images=4)
    run(tmp_path, model, tmp_path / "shards")
    write_tar(tmp_path / "shards" / "new.tar", {"new.jpg": photo(99)})
    monkeypatch.setattr(labeler, "write_manifest_and_summary", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, model, tmp_path / "shards", update=True)
    monkeypatch.undo()
    with pytest.raises(UserError, match="is not complete: run its label command to the end first"):
        compact(CompactRequest(run=str(tmp_path / "out"), output=str(tmp_path / "large")), Watcher())
    summary, watcher = run(tmp_path, model, tmp_path / "shards")
    assert summary.rows == 9 and not watcher.receipts and verify(str(tmp_path / "out"), source=True).ok


def test_a_limit_labels_the_first_images_and_the_same_command_without_it_the_rest(tmp_path, model):
    write_shards(tmp_path / "shards", shards=3, images=4)
    summary, watcher = run(tmp_path, model, tmp_path / "shards", limit=6)
    first = rows(tmp_path)
    assert len(first) == 6 and (summary.rows, summary.limit, summary.shards) == (6, 6, 2)
    assert any("6 images are labelled; the same command without --limit labels" in n for n in watcher.notes)
    assert [fault.code for fault in verify(str(tmp_path / "out"), source=True).findings] == ["limited_run"]
    again, _ = run(tmp_path, model, tmp_path / "shards", limit=6)
    assert (again.rows, again.last_command.images) == (6, 0)
    with pytest.raises(UserError, match="label the rest without --limit first, then give --update"):
        run(tmp_path, model, tmp_path / "shards", limit=6, update=True)
    summary, _ = run(tmp_path, model, tmp_path / "shards")
    assert (summary.rows, summary.limit, summary.last_command.images) == (12, None, 6)
    report = verify(str(tmp_path / "out"), source=True)
    assert report.ok and report.recounted == 12
    run(tmp_path, model, tmp_path / "shards", output=str(tmp_path / "whole"))
    plans = [json.loads((tmp_path / out / "_run" / "plan.json").read_text()) for out in ("out", "whole")]
    for plan in plans:  # of a source that is not listed to its end, nobody knows that it is small
        assert plan.pop("run_id") and plan["resolved"].pop("unit_rows") >= 128
    assert plans[0] == plans[1]
    assert sorted(rows(tmp_path), key=str) == sorted(
        pq.read_table(tmp_path / "whole" / "predictions").to_pylist(), key=str
    )
