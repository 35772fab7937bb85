"""compact: the rows that were there are there, whatever it is killed at and however often it runs."""

import json
import shutil
import threading
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.compacting import (
    ALL,
    compact_in_place,
    counts,
    delete_small,
    killed,
    large_of,
    make,
    names,
    rows,
    run,
    state,
    target,
)
from tests.support.runs import image_members, made_up_plan, update, write_tar
from tests.support.stores import s3_bucket
from wordsworth.pipeline.compaction import compactor, file_plan
from wordsworth.pipeline.compaction.file_plan import plan_files
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.compacted_file import PLANNED, CompactedFile
from wordsworth.pipeline.output.records import FOOTER_KEY, MANIFEST
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.verification.verifier import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def out(made, tmp_path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def large(out) -> Path:
    return large_of(out)


def new_shard(out: Path) -> None:
    update(out, write_tar(out.parent / "new" / "new.tar", image_members(6, 900)))


# ---- what comes out -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_rows_before_are_the_rows_after_in_every_column_and_verify_counts_the_same_at_every_moment(
    out, large
):
    before, counted, whole = rows(out / "predictions"), counts(out, source=True), state(out)
    assert len(before) == 34 and counted[2] == 11
    summary, _ = run(out, target(out))
    assert state(out) == whole and counts(out, source=True) == counted
    assert rows(large / "compacted") == before and counts(large, source=True) == counted
    assert pq.read_schema(next((large / "compacted").iterdir())).equals(
        pq.read_schema(next((out / "predictions").iterdir()))
    )
    assert (summary["rows"], summary["units"]) == (34, 11)
    assert summary["files"] == len(names(large / "compacted")) > 1
    assert not (large / "predictions").exists()
    for name in ("plan.json", "summary.json", "manifest.parquet"):
        assert (large / "_run" / name).read_bytes() == whole[f"_run/{name}"]


def keys_read(folder: Path) -> list[list]:
    """Shard and index of all rows, as readers see them who are given the whole folder."""
    ordered = ["shard", "index"]
    by_arrow = pq.read_table(folder, columns=ordered).to_pandas()
    by_pandas = pd.read_parquet(folder, columns=ordered)
    by_duckdb = duckdb.sql(f"select shard, \"index\" from '{folder}/[a-z]*/*.parquet'").df()
    return [
        sorted(map(tuple, found[ordered].astype(str).values)) for found in (by_arrow, by_pandas, by_duckdb)
    ]


@pytest.mark.slow
def test_who_reads_the_whole_folder_sees_each_row_once_before_while_and_after(out, large, monkeypatch):
    expected = keys_read(out)
    assert len(expected[0]) == len(set(expected[0])) == 34 and expected[0] == expected[1] == expected[2]
    real, merged = compactor.merge, []

    def stopped(*arguments):
        if len(merged) == 2:
            raise OSError("the network is down")
        merged.append(real(*arguments))
        assert keys_read(out) == expected
        return merged[-1]

    monkeypatch.setattr(compactor, "merge", stopped)
    with pytest.raises(UserError, match=r"cannot compact .*the network is down.*run the same command again"):
        run(out, target(out))
    assert keys_read(out) == expected and len(names(large / "compacted")) == 2
    monkeypatch.undo()
    run(out, target(out))
    assert keys_read(out) == keys_read(large) == expected


def test_a_compacted_file_stays_within_the_target_unless_one_unit_is_larger(out):
    sizes = sorted(path.stat().st_size for path in (out / "predictions").iterdir())
    for size in (sizes[-1] + sizes[-2], sizes[0] - 1):
        copy = out.parent / f"copy-{size}"
        run(out, size, large=copy)
        units = RunFolder(str(copy)).units().recorded().to_pylist()
        for name in {unit["into"] for unit in units}:
            there = [unit for unit in units if unit["into"] == name]
            assert len(there) == 1 or sum(unit["bytes"] for unit in there) <= size
            assert (
                len(there) == 1
                or (copy / "compacted" / name).stat().st_size == there[0]["into_bytes"] <= size
            )
        assert len(units) == 11 and (size > sizes[0] or len(names(copy / "compacted")) == 11)


def test_units_lie_in_the_order_of_the_listing_and_a_row_group_holds_whole_ones(out, large, monkeypatch):
    monkeypatch.setattr(file_plan, "GROUP_ROWS", 9)
    run(out)
    folder = RunFolder(str(large))
    units = folder.units().recorded()
    assert [uri.rpartition("/")[2] for uri in dict.fromkeys(units["shard"].to_pylist())] == [
        f"{c}.tar" for c in "abxyz"
    ]
    file = CompactedFile(folder.fs, folder.path("compacted", "00000-00000.parquet"))
    assert max(file.group_rows) <= 9 and len(file.group_rows) >= 4 and sum(file.group_rows) == 34
    for unit in units.to_pylist():
        begin = unit["first"] - int(file.starts[unit["row_group"]])
        there = file.read(unit["row_group"]).slice(begin, unit["rows"]).to_pylist()
        assert there == pq.read_table(out / "predictions" / unit["file"]).to_pylist()
    assert counts(large)[0] == 34


@pytest.mark.slow
def test_a_compacted_file_says_what_it_is_of_and_every_page_has_a_checksum(out, large):
    run(out)
    (path,) = (large / "compacted").iterdir()
    footer = json.loads(pq.read_schema(path).metadata[FOOTER_KEY])
    told = {
        "run_id": "0123456789abcdef",
        "fingerprint": "f" * 64,
        "model": "made up",
        "generation": 0,
        "units": 11,
        "rows": 34,
    }
    assert (
        told.items() <= footer.items()
        and footer["errors"] == {"missing_image": 1}
        and footer["file"] == path.name
    )
    data, group = path.read_bytes(), pq.ParquetFile(path).metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        assert column.compression == "ZSTD"
        damaged = bytearray(data)
        damaged[
            (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1
        ] ^= 0x10
        path.write_bytes(damaged)
        found = [fault.code for fault in verify(str(large)).findings]
        assert found == ["unreadable_file", "wrong_summary", "wrong_summary"], column.path_in_schema


@pytest.mark.parametrize(
    "store", [{}, {"late": True}, {"conditional": False}], ids=["sound", "late", "unconditional"]
)
def test_on_an_object_store_it_is_the_same(made, store):
    with s3_bucket() as bucket:
        for name, value in store.items():
            setattr(bucket, name, value)
        for path, data in state(made / "out").items():
            bucket.objects[f"bucket/out/{path}"] = data
        before = dict(bucket.objects)
        summary, _ = run("s3://bucket/out", 9000)
        assert summary["rows"] == 34 and summary["files"] > 1
        assert before.items() <= bucket.objects.items()
        for folder in ("s3://bucket/out", "s3://bucket/out-large"):
            report = verify(folder)
            assert report.findings == [] and (report.rows, report.files) == (34, 11)


def test_as_ray_tasks_it_is_the_same(out, large, monkeypatch, local_ray):
    run(out, target(out), large=out.parent / "here")
    monkeypatch.setattr(compactor, "FEW_UNITS", 0)
    monkeypatch.setattr(compactor, "TASKS_PER_CPU", 0.5)
    run(out, target(out))
    assert state(large) == state(out.parent / "here")
    with pytest.raises(UserError, match=r"takes .* GiB of memory in one place"):
        monkeypatch.setattr(compactor, "MiB", 1 << 40)
        run(out, large=out.parent / "another")


@pytest.mark.slow
def test_a_million_units_are_planned_by_size_in_seconds():
    count = 1_000_000
    columns = {"bytes": pa.array([100_000] * count), "rows": pa.array([512] * count)}
    fill = {field.name: pa.nulls(count, field.type) for field in MANIFEST}
    units = plan_files(pa.table(fill | columns), 256_000_000)
    into = units["into"].value_counts()
    assert units.schema.equals(PLANNED)
    assert len(into) == 391 and max(entry["counts"].as_py() for entry in into) == 2560
    assert units["into"][count - 1].as_py() == "00000-00390.parquet"


# ---- again, and later -----------------------------------------------------------------------------------


def test_again_it_says_that_there_is_nothing_to_merge_and_changes_nothing(out, large):
    run(out)
    before = state(large)
    summary, watcher = run(out, 1000)
    assert (
        watcher.notes == ["every file is in a compacted file already: nothing to merge"]
        and state(large) == before
    )
    assert summary["last_command"]["units"] == 0 and summary["units"] == 11


@pytest.mark.slow
@pytest.mark.parametrize("size", [ALL, 9000], ids=["one", "several"])
def test_what_an_update_adds_to_a_compacted_run_is_compacted_with_the_rest(out, large, size):
    run(out, size)
    first = {name: data for name, data in state(large).items() if "compacted" in name}
    new_shard(large)
    assert len(names(large / "predictions")) == 2 and counts(large)[:3] == (40, 6, 13)
    assert json.loads((large / "_run" / "summary.json").read_text())["rows"] == 40
    assert first.items() <= state(large).items(), "what was compacted is left alone"
    both, whole, again = rows(large), state(large), out.parent / "again"
    assert len(both) == 40
    summary, _ = run(large, large=again)
    assert (summary["units"], summary["files"]) == (13, 1) and state(large) == whole
    assert rows(again) == both and counts(again)[:3] == (40, 6, 13)
    assert rows(again / "compacted") == both and names(again / "_run" / "compacted") == [
        "00000-plan.parquet",
        "00000.parquet",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 10], ids=["killed", "complete"])
def test_a_compaction_of_a_run_that_was_changed_since_is_refused(out, large, after):
    killed(out, target(out), after=after)
    new_shard(out)
    before = state(large)
    with pytest.raises(UserError, match="as it was before its last change: choose a new folder") as told:
        run(out, target(out))
    assert "\n" not in str(told.value) and state(large) == before


@pytest.mark.slow
def test_two_at_once_make_the_same_files(out, large):
    run(out, target(out), large=out.parent / "alone")
    failed = []

    def one():
        try:
            run(out, target(out))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and state(large) == state(out.parent / "alone")


def test_what_changes_units_is_refused_once_a_compaction_is_planned(out, large):
    RunFolder(str(out)).units().refuse_change("--retry-errors")  # not before
    run(out)
    RunFolder(str(out)).units().refuse_change("--retry-errors")  # the run itself is as it was
    compact_in_place(out, commit=False)
    for folder in (large, out):
        for option in ("--retry-errors", "--replace-changed"):
            with pytest.raises(
                UserError,
                match=rf"{option} changes files that `wordsworth compact` has merged.*use {option} on the",
            ) as told:
                RunFolder(str(folder)).units().refuse_change(option)
            assert "\n" not in str(told.value)


# ---- runs that earlier versions compacted in place ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("small", [True, False], ids=["with small files", "without"])
@pytest.mark.parametrize("generations", [1, 2])
def test_a_run_that_was_compacted_in_place_is_read_verified_updated_and_compacted(
    out, large, small, generations
):
    before = rows(out / "predictions")
    compact_in_place(out, target(out))
    if not small:
        delete_small(out)
    assert rows(out / "compacted") == before and counts(out, source=True)[:3] == (34, 5, 11)
    if generations == 2:
        new_shard(out)
        assert counts(out)[:3] == (40, 6, 13)
        compact_in_place(out, generation=1)
        if not small:
            delete_small(out)
    counted, whole = counts(out), state(out)
    done = RunFolder(str(out)).committed()
    assert (done.units, len(done)) == (counted[2], counted[1])
    run(out, target(out) if small else ALL)
    assert state(out) == whole and counts(large) == counted
    assert rows(large) == rows(out / "compacted") and len(rows(large)) == counted[0]


@pytest.mark.slow
def test_a_run_whose_compaction_in_place_was_not_committed_is_verified_and_compacted(out, large):
    before, counted = rows(out / "predictions"), counts(out)
    compact_in_place(out, target(out), commit=False)
    assert counts(out) == counted
    run(out)
    assert counts(large) == counted and rows(large) == before


# ---- killed ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory) -> Path:
    """Return the same run after a compaction that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "large"
    run(made / "out", target(made / "out"), large=folder)
    assert len(names(folder / "compacted")) == 4
    return folder


# Objects that are put before the command dies: the plan, four files, the commit, a page of the listing,
# manifest, summary, plan.json.
KILLS = {
    "after the plan": 1,
    "after the first file": 2,
    "after the second file": 3,
    "before the commit": 5,
    "after the commit": 6,
    "after the listing": 7,
    "after the manifest": 8,
    "after the summary": 9,
    "at the end": 10,
}


@pytest.mark.slow
@pytest.mark.parametrize("place", KILLS)
def test_killed_anywhere_it_goes_on_and_ends_as_if_nothing_had_happened(out, large, undisturbed, place):
    before, counted, whole, size = rows(out), counts(out, source=True), state(out), target(out)
    killed(out, size, after=KILLS[place])
    assert state(out) == whole and counts(out, source=True) == counted
    if place == "at the end":
        assert counts(large, source=True) == counted
    else:
        with pytest.raises(UserError, match=r"holds no run: name the --output of a wordsworth label"):
            verify(str(large))
        with pytest.raises(UserError, match="holds a compaction that is not complete"):
            RunFolder(str(large)).create(made_up_plan({}, "another"))
        with pytest.raises(UserError, match=r"holds no run: name the --output of a wordsworth label"):
            run(large, large=out.parent / "further")
    run(out, size)
    assert state(large) == state(undisturbed) and state(out) == whole
    assert rows(large) == before and counts(large, source=True) == counted


@pytest.mark.slow
def test_a_killed_compaction_met_by_another_target_size_keeps_its_plan(out, large, undisturbed):
    killed(out, target(out), after=3)
    run(out, 17)
    assert state(large) == state(undisturbed)
