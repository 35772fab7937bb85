"""Show what an update makes of a source of which a part is gone, without a model."""

import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from tests.support.labelling import Watcher
from tests.support.runs import KEYS, build, commit_shards, finish, image_members, write_tar
from tests.support.stores import s3_bucket
from tests.support.tables import write_parquet
from wordsworth.pipeline.compaction.compactor import CompactRequest, compact
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling import update
from wordsworth.pipeline.labeling.label_run import LabelRun
from wordsworth.pipeline.labeling.progress import ReceiptCounter
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.labeling.update import compare_with_source, drop_lost_shards, update_listing
from wordsworth.pipeline.output import source_changes
from wordsworth.pipeline.output.frozen_listing import FrozenListing, PageMetadata, open_pages
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources import finder
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.verification.verifier import verify


def run_of(out: Path, *sources, **asked) -> LabelRun:
    """Return a run as a command meets it."""
    folder = RunFolder(str(out))
    request = LabelRequest(
        command="label",
        sources=tuple(map(str, sources)),
        output=str(out),
        model="made up",
        image_keys=KEYS,
        **asked,
    )
    return LabelRun(
        folder=folder,
        frozen=FrozenListing(folder),
        plan=folder.plan(),
        request=request,
        checkpoint=None,
        progress=Watcher(),
    )


def drop(out: Path, *sources) -> list[str]:
    """Do what `--update --drop-missing` does where nothing has to be labelled; return the notes."""
    run = run_of(out, *sources, update=True, drop_missing=True)
    update_listing(run)
    run.folder.remove_shards(run.frozen.replaced())
    finish(out)
    return run.progress.notes


def opened(out: Path) -> list[str]:
    """Return the names of the shards that are not complete."""
    run = RunFolder(str(out))
    return [
        row["uri"] for page in open_pages(FrozenListing(run), run.committed()) for row in page.to_pylist()
    ]


def contents(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "predictions").iterdir()}


def rows(out: Path) -> dict[str, dict]:
    return {f"{row['shard']}/{row['key']}": row for row in pq.read_table(out / "predictions").to_pylist()}


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def tars(tmp_path):
    for number in range(3):
        write_tar(tmp_path / "in" / f"{number}.tar", image_members(5 + number, 10 * number))
    return tmp_path / "in"


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Sixteen images, five in a page and four in a unit."""
    monkeypatch.setattr(finder, "PAGE", 5)
    monkeypatch.setattr(source_changes, "PAGE", 5)
    (tmp_path / "in").mkdir()
    for number in range(16):
        (tmp_path / "in" / f"{number:02d}.jpg").write_bytes(bytes(10 + number))
    return tmp_path / "in"


# ---- what is gone ------------------------------------------------------------------------------------------


def test_a_shard_that_is_gone_is_noted_and_dropped_with_its_rows_only_when_asked(tmp_path, tars):
    out = build(tmp_path / "out", tars)
    before = contents(out)
    (tars / "1.tar").unlink()
    for updating in (compare_with_source, update_listing):
        run = run_of(out, tars)
        updating(run)
        (note,) = run.progress.notes
        assert "1 gone" in note or "1 shard or image of this run is gone" in note
        assert f"{tars}/1.tar" in note and "--drop-missing" in note
    assert contents(out) == before and not opened(out)
    assert [finding.detail for finding in verify(str(out), source=True).findings] == ["it is gone"]

    (note,) = drop(out, tars)
    assert note.endswith(f"1 gone, first {tars}/1.tar: dropped")
    report = verify(str(out), source=True)
    assert report.findings == [] and (report.rows, report.shards) == (5 + 7, 2)
    assert contents(out).items() <= before.items() and not opened(out)


def test_a_source_that_is_gone_does_not_hide_the_others(tmp_path, tars):
    given = [tars / f"{number}.tar" for number in range(3)]
    out = build(tmp_path / "out", *given)
    given[1].unlink()
    run = run_of(out, *given)
    compare_with_source(run)
    assert "first " + str(given[1]) in run.progress.notes[0]
    drop(out, *given)
    assert verify(str(out), source=True).findings == []


def test_images_that_are_gone_are_dropped_and_the_rows_of_the_others_are_kept(tmp_path, images):
    out = build(tmp_path / "out", images)
    before = rows(out)
    gone = [1, 4, *range(5, 10), 15]  # some of a page, a page, all of the last page
    for number in gone:
        (images / f"{number:02d}.jpg").unlink()
    (note,) = drop(out, images)
    assert "8 gone" in note and not opened(out), "nothing is labelled again"
    report = verify(str(out), source=True)
    assert report.findings == [] and (report.rows, report.shards) == (8, 2)
    for key, row in rows(out).items():
        assert {**before[key], "index": row["index"]} == row
    assert sorted(row["index"] for row in rows(out).values()) == [0, 1, 2, 10, 11, 12, 13, 14]


def test_rows_of_a_page_that_is_not_labelled_to_its_end_are_kept_too(tmp_path, images):
    out = build(tmp_path / "out", images)
    first = next(FrozenListing(RunFolder(str(out))).shards())
    (out / "predictions" / f"{first.name}-00001-end.parquet").unlink()
    (images / "01.jpg").unlink()
    run = run_of(out, images, drop_missing=True)
    update_listing(run)
    (page,) = open_pages(run.frozen, run.folder.committed())
    (row,) = page.to_pylist()
    assert (row["start"], len(row["members"])) == (1, 4), "the images 00, 02 and 03 are there"
    footer = run.folder.units().footer(f"{Shard.from_row(row).name}-00000.parquet")
    assert (footer.rows, footer.next_offset, footer.next_index) == (3, 3, 3)


def test_an_update_that_was_killed_before_the_rows_were_carried_reads_them_again(
    tmp_path, images, monkeypatch
):
    out = build(tmp_path / "out", images)
    (images / "01.jpg").unlink()
    monkeypatch.setattr(update, "carry_rows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        update_listing(run_of(out, images, drop_missing=True))
    run = run_of(out, images)
    assert run.summary_if_complete() is None and opened(out) == [str(images)]
    run.folder.remove_shards(run.frozen.replaced())
    label_open(run)
    assert verify(str(out), source=True).findings == []


def label_open(run: LabelRun) -> None:
    pages = list(open_pages(run.frozen, run.folder.committed()))
    commit_shards(run.folder, [Shard.from_row(row) for page in pages for row in page.to_pylist()])


def test_what_was_dropped_and_comes_back_as_it_was_is_labelled_again(tmp_path, tars):
    out = build(tmp_path / "out", tars)
    (tars / "1.tar").rename(tmp_path / "away.tar")
    drop(out, tars)
    (tmp_path / "away.tar").rename(tars / "1.tar")
    run = run_of(out, tars, update=True)
    update_listing(run)
    assert opened(out) == [f"{tars}/1.tar"] and not run.frozen.replaced()
    label_open(run)
    report = verify(str(out), source=True)
    assert report.findings == [] and report.rows == 5 + 6 + 7
    run.folder.remove_shards(run.frozen.replaced())
    (tars / "1.tar").unlink()
    drop(out, tars)
    report = verify(str(out), source=True)
    assert report.findings == [] and report.rows == 5 + 7


def test_a_run_of_which_something_was_dropped_is_compacted_and_then_drops_nothing(tmp_path, images):
    out = build(tmp_path / "out", images)
    for number in (1, *range(5, 10)):
        (images / f"{number:02d}.jpg").unlink()
    drop(out, images)
    large = tmp_path / "large"
    compact(CompactRequest(run=str(out), output=str(large)), Watcher())
    report = verify(str(large), source=True)
    assert report.findings == [] and report.rows == 10
    (images / "00.jpg").unlink()
    with pytest.raises(UserError, match="--drop-missing changes files that `wordsworth compact` has merged"):
        update_listing(run_of(large, images, drop_missing=True))


def test_a_source_of_which_nothing_is_left_is_not_dropped(tmp_path, tars):
    out = build(tmp_path / "out", tars)
    before = contents(out)
    for path in tars.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"nothing of .* is in its source any more, first .*0\.tar: mount"):
        drop(out, tars)
    assert contents(out) == before and verify(str(out)).ok


def test_two_drops_at_once_are_one_and_a_refusal(tmp_path, tars):
    at = run_of(build(tmp_path / "out", tars), tars).frozen
    first, second, _ = [shard.id for shard in at.shards()]
    assert at.put(1, [], last=True, metadata=PageMetadata(replaces=[first]))
    assert at.put(1, [], last=True, metadata=PageMetadata(replaces=[first]))
    assert not at.put(1, [], last=True, metadata=PageMetadata(replaces=[first, second]))


def test_a_link_that_was_mended_is_noted_and_is_no_other_input(tmp_path, images):
    (images / "link.jpg").symlink_to(tmp_path / "target.jpg")
    out = build(tmp_path / "out", images)
    (tmp_path / "target.jpg").write_bytes(b"mended")
    run = run_of(out, images)
    compare_with_source(run)
    assert run.progress.notes == [
        "1 link or name that led nowhere before: --retry-errors labels what is there now"
    ]
    os.remove(images / "link.jpg")
    os.symlink(tmp_path / "target.jpg", images / "link.jpg")
    with pytest.raises(UserError, match="shard_changed"):
        compare_with_source(run_of(out, images))


# ---- what may not be read ----------------------------------------------------------------------------------


def test_the_message_names_the_open_shards_and_advises_what_can_help():
    def said(*told: tuple[str, str]) -> str:
        counter = ReceiptCounter(Watcher())
        counter.faults = [SimpleNamespace(shard=shard, fault=fault) for shard, fault in told]
        with pytest.raises(UserError) as error:
            counter.refuse_faults()
        return str(error.value)

    passing = said(("a.tar", "OSError: 503"))
    assert passing == (
        "1 shard could not be read to the end, first a.tar: OSError: 503. "
        "What is done is kept: run the same command again, which reads only these"
    )
    lost = said(
        *((f"{n}.tar", "not_found: there is no such object") for n in range(7)), ("x", "forbidden: no")
    )
    assert "first 0.tar: not_found: there is no such object; then 1.tar, 2.tar, 3.tar, 4.tar, 3 more." in lost
    assert "put back what is gone, allow reading what is forbidden, then run the same command again" in lost
    assert lost.endswith("; --update --drop-missing drops from the run what cannot be had")
    unfit = said(("t.csv", "unfit_table: t.csv has no column x"))
    assert (
        "kept: mend the table and add --replace-changed, or name its columns with a new --output, then"
        in unfit
    )


def faults(out: Path, *numbers: int) -> list[SimpleNamespace]:
    """Return receipts of tars of the run that are forbidden."""
    shards = list(FrozenListing(RunFolder(str(out))).shards())
    return [
        SimpleNamespace(
            shard=shards[number].uri,
            file=f"{shards[number].name}-00000.parquet",
            fault="forbidden: not allowed",
        )
        for number in numbers
    ]


def test_forbidden_shards_are_dropped_where_another_can_be_read_and_not_where_none_can(tmp_path, tars):
    with s3_bucket() as bucket:
        for path in tars.iterdir():
            bucket.objects[f"b/{path.name}"] = path.read_bytes()
        out = build(tmp_path / "out", "s3://b")
        run = run_of(out, "s3://b", drop_missing=True)
        bucket.refused = PermissionError
        told = faults(out, 0, 2)
        assert drop_lost_shards(run, told) == told and not run.frozen.replaced()
        bucket.refused = TimeoutError
        assert drop_lost_shards(run, told) == told
        assert all(note.startswith("nothing is dropped") for note in run.progress.notes)
        run.progress.notes.clear()
        bucket.refused = None
        passing = SimpleNamespace(shard="s3://b/1.tar", file=faults(out, 1)[0].file, fault="OSError: 503")
        assert drop_lost_shards(run, [passing]) == [passing]
        assert drop_lost_shards(run, [*told, passing]) == [passing]
        assert run.progress.notes == ["dropped 2 shards that cannot be read, first s3://b/0.tar"]
        finish(out)
        report = verify(str(out))
        assert report.findings == [] and (report.rows, report.shards) == (6, 1)


def test_an_output_below_its_source_and_images_beside_tars_are_named_and_add_nothing(tars):
    out = build(tars / "out", tars)
    (tars / "new.jpg").write_bytes(b"image")
    run = run_of(out, tars, update=True)
    update_listing(run)
    assert run.progress.notes[0] == "update: 0 new shards or images"
    assert any(f"the first of its source: {tars}/new.jpg; name" in note for note in run.progress.notes)
    assert opened(out) == [] and verify(str(out), source=True).ok


def test_what_the_first_listing_passed_over_is_not_said_again_by_update(tmp_path):
    write_parquet(tmp_path / "in" / "t.parquet", {"image": [b"1", b"2"]})
    (tmp_path / "in" / "way").symlink_to(".")
    build(tmp_path / "out", tmp_path / "in")
    run = run_of(tmp_path / "out", tmp_path / "in", update=True)
    update_listing(run)
    assert sum("link to a folder above" in note for note in run.progress.notes) == 1
    found = finder.find_shards([str(tmp_path / "in")])
    run.frozen.put(1, [], last=True, metadata=PageMetadata(left_out=dict(found.passed_over.left_out)))
    again = run_of(tmp_path / "out", tmp_path / "in", update=True)
    update_listing(again)
    assert again.progress.notes == ["update: 0 new shards or images"]


def test_a_run_below_its_own_source_of_tables_is_complete_and_stays_so(tmp_path):
    write_parquet(tmp_path / "in" / "t.parquet", {"image": [b"1", b"2"]})
    out = build(tmp_path / "in" / "out", tmp_path / "in")
    run = run_of(out, tmp_path / "in", update=True)
    update_listing(run)
    assert run.progress.notes[0] == "update: 0 new shards or images"
    assert opened(out) == [] and verify(str(out), source=True).ok
