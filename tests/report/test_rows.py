"""The rows of a run as a stream: the same for a compacted run, only the columns and rows asked for."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support import compacting
from tests.support.builders import photo, write_tar
from tests.support.report_runs import make_run
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.frozen_listing import FrozenListing, PageMetadata
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.report import rows as run_rows
from wordsworth.pipeline.report.rows import RunRows

IMAGES = 11  # of each tar, so that units of 4 end in a short one


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for tar in "ba":
        members = {f"{tar}{number:02d}.jpg": photo(number, (24, 16)) for number in range(IMAGES - 1)}
        write_tar(folder / "in" / f"{tar}.tar", {**members, f"{tar}bad.jpg": b"no image"})
    return make_run(folder / "out", folder / "in")


def table(run: RunRows, *arguments, **options) -> pa.Table:
    return pa.Table.from_batches(run.batches(*arguments, **options)).unify_dictionaries()


def test_all_rows_come_in_the_order_of_the_files(out):
    run = RunRows.open(str(out))
    rows = table(run).to_pylist()
    assert len(rows) == run.num_rows == 2 * IMAGES
    assert [row["key"] for row in rows[:2]] == ["a00", "a01"] and rows[-1]["key"] == "bbad"
    assert [row["index"] for row in rows] == [*range(IMAGES)] * 2
    assert run.plan.asked["top-k"] == 2 and run.summary.rows == len(rows)
    assert run.schema.names[:5] == ["key", "shard", "index", "offset", "size"]
    assert len(run.files) == 6


def test_only_the_columns_and_rows_that_are_asked_for_come(out):
    run = RunRows.open(str(out))
    where = (pc.field("label") == "bee") & (pc.field("score") > 0.6) & pc.field("error").is_null()
    rows = table(run, ["key", "score"], where)
    assert rows.column_names == ["key", "score"] and 0 < rows.num_rows < IMAGES
    assert pc.min(rows["score"]).as_py() > 0.6
    shard = f"{out.parent}/in/b.tar"
    assert table(run, ["key"], pc.field("shard") == shard).num_rows == IMAGES
    assert table(run, ["key"], pc.field("error").is_valid())["key"].to_pylist() == ["abad", "bbad"]
    assert table(run, []).num_rows == 2 * IMAGES


def test_a_compacted_run_has_the_same_rows(out):
    def by_place(run):
        return sorted(table(run).to_pylist(), key=lambda row: (row["shard"], row["index"]))

    large = compacting.large_of(out)
    compacting.run(out, size=1 << 30)
    compacted = RunRows.open(str(large))
    assert len(compacted.files) == 1 and compacted.num_rows == 2 * IMAGES
    assert by_place(compacted) == by_place(RunRows.open(str(out)))


def test_a_run_that_is_not_complete_counts_its_rows_by_the_footers(out, tmp_path):
    write_tar(tmp_path / "in" / "a.tar", {f"{n}.jpg": photo(n, (8, 8)) for n in range(9)})
    begun = make_run(tmp_path / "out", tmp_path / "in")
    (begun / "_run" / "summary.json").unlink()
    sorted((begun / "predictions").iterdir())[1].unlink()
    run = RunRows.open(str(begun))
    assert run.summary is None and run.num_rows == table(run).num_rows == 5


def test_a_run_without_a_row_has_columns_and_no_rows(tmp_path):
    (tmp_path / "in").mkdir()
    run = RunFolder(str(tmp_path / "out"))
    from tests.support.runs import made_up_plan

    run.create(made_up_plan({"top-k": 5}))
    FrozenListing(run).put(0, [], last=True, metadata=PageMetadata())
    opened = RunRows.open(str(tmp_path / "out"))
    assert opened.num_rows == 0 and list(opened.batches(["key", "label", "error"])) == []


def test_no_run_a_wrong_column_and_a_wrong_condition_are_one_line_each(out, tmp_path):
    with pytest.raises(UserError, match=r"holds no run: name the --output of a wordsworth label"):
        RunRows.open(str(tmp_path))
    run = RunRows.open(str(out))
    with pytest.raises(UserError, match=r"have no column lable: they have key, shard, "):
        next(run.batches(["lable"]))
    with pytest.raises(UserError, match=r"cannot be chosen so: .*lable"):
        next(run.batches(["key"], pc.field("lable") == "x"))


def test_a_damaged_file_is_told_and_not_read_short(tmp_path):
    write_tar(tmp_path / "in" / "a.tar", {f"{n}.jpg": photo(n, (8, 8)) for n in range(4)})
    out = make_run(tmp_path / "out", tmp_path / "in")
    compacting.flipped(next((out / "predictions").iterdir()))
    with pytest.raises(UserError, match=r"is damaged .*`wordsworth verify .*` says which"):
        list(RunRows.open(str(out)).batches())


def test_a_batch_has_a_bounded_number_of_rows(out, monkeypatch):
    monkeypatch.setattr(run_rows, "BATCH_ROWS", 3)
    sizes = [batch.num_rows for batch in RunRows.open(str(out)).batches(["key"])]
    assert max(sizes) == 3 and sum(sizes) == 2 * IMAGES
