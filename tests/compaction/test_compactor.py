"""compact: the rows that were there are there, whatever it is killed at and however often it runs."""

import json
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.compacting import ALL, counts, killed, make, names, rows, run, state, target
from tests.support.runs import pictures, update, write_tar
from tests.support.stores import s3_bucket
from wordsworth.pipeline.compaction import compactor as compaction
from wordsworth.pipeline.compaction.compacted_file import CompactedFile
from wordsworth.pipeline.compaction.compactor import planned
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.run_folder import FOOTER, PLANNED, RunFolder
from wordsworth.pipeline.verification.verifier import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def out(made, tmp_path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


# ---- what comes out ---------------------------------------------------------------------------------------------------------


def test_the_rows_before_are_the_rows_after_in_every_column_and_verify_counts_the_same_at_every_moment(out):
    before, counted = rows(out / "predictions"), counts(out, source=True)
    assert len(before) == 34 and counted[2] == 11
    summary, _ = run(out, target(out))
    assert (
        rows(out / "predictions") == rows(out / "compacted") == before and counts(out, source=True) == counted
    )
    assert pq.read_schema(next((out / "compacted").iterdir())).equals(
        pq.read_schema(next((out / "predictions").iterdir()))
    )
    assert (summary["rows"], summary["units"], summary["generations"], summary["small_files"]) == (
        34,
        11,
        1,
        11,
    )
    assert summary["files"] == len(names(out / "compacted")) > 1
    summary, _ = run(out, target(out), delete_small=True)
    assert (
        names(out / "predictions") == []
        and summary["small_files"] == 0
        and summary["last_command"]["removed"] == 11
    )
    assert rows(out / "compacted") == before and counts(out, source=True) == counted
    assert counts(out)[:4] == counted[:4]


def test_a_compacted_file_stays_within_the_target_unless_one_unit_is_larger(out):
    sizes = sorted(path.stat().st_size for path in (out / "predictions").iterdir())
    for size in (sizes[-1] + sizes[-2], sizes[0] - 1):
        copy = out.parent / f"copy-{size}"
        shutil.copytree(out, copy)
        run(copy, size)
        units = RunFolder(str(copy)).compacted(["file", "bytes", "into", "into_bytes"]).to_pylist()
        for name in {unit["into"] for unit in units}:
            there = [unit for unit in units if unit["into"] == name]
            assert len(there) == 1 or sum(unit["bytes"] for unit in there) <= size
            assert (
                len(there) == 1
                or (copy / "compacted" / name).stat().st_size == there[0]["into_bytes"] <= size
            )
        assert len(units) == 11 and (size > sizes[0] or len(names(copy / "compacted")) == 11)


def test_units_lie_in_the_order_of_the_listing_and_a_row_group_holds_whole_ones(out, monkeypatch):
    monkeypatch.setattr(compaction, "GROUP_ROWS", 9)
    run(out)
    units = RunFolder(str(out)).compacted()
    assert [uri.rpartition("/")[2] for uri in dict.fromkeys(units["shard"].to_pylist())] == [
        f"{c}.tar" for c in "abxyz"
    ]
    file = CompactedFile(RunFolder(str(out)), "00000-00000.parquet")
    assert max(file.group_rows) <= 9 and len(file.group_rows) >= 4 and sum(file.group_rows) == 34
    for unit in units.to_pylist():
        begin = unit["first"] - int(file.starts[unit["row_group"]])
        there = file.read(unit["row_group"]).slice(begin, unit["rows"]).to_pylist()
        assert there == pq.read_table(out / "predictions" / unit["file"]).to_pylist()
    assert counts(out)[0] == 34


def test_a_compacted_file_says_what_it_is_of_and_every_page_has_a_checksum(out):
    run(out)
    (path,) = (out / "compacted").iterdir()
    footer = json.loads(pq.read_schema(path).metadata[FOOTER])
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
        assert [fault.what for fault in verify(str(out)).faults] == ["unreadable_file"], column.path_in_schema


@pytest.mark.parametrize(
    "store", [{}, {"late": True}, {"conditional": False}], ids=["sound", "late", "unconditional"]
)
def test_on_an_object_store_it_is_the_same(made, store):
    with s3_bucket() as bucket:
        for name, value in store.items():
            setattr(bucket, name, value)
        for path, data in state(made / "out").items():
            bucket.objects[f"bucket/out/{path}"] = data
        before = [name for name in bucket.objects if "/predictions/" in name]
        summary, _ = run("s3://bucket/out", 9000, delete_small=True)
        assert (
            summary["rows"] == 34
            and summary["files"] > 1
            and summary["last_command"]["removed"] == len(before) == 11
        )
        assert not [name for name in bucket.objects if "/predictions/" in name]
        report = verify("s3://bucket/out")
        assert report.faults == [] and (report.rows, report.files) == (34, 11)


def test_as_ray_tasks_it_is_the_same(made, out, monkeypatch, local_ray):
    shutil.copytree(made / "out", out.parent / "here")
    run(out.parent / "here", target(out))
    monkeypatch.setattr(compaction, "FEW", 0)
    monkeypatch.setattr(compaction, "IN_FLIGHT", 0.5)
    run(out, target(out))
    assert state(out) == state(out.parent / "here")
    (out / "compacted").joinpath("x").write_bytes(b"")
    with pytest.raises(UserError, match=r"takes .* GiB of memory in one place"):
        monkeypatch.setattr(compaction, "MiB", 1 << 40)
        update(out, write_tar(out.parent / "new" / "new.tar", pictures(2, 900)))
        run(out)


def test_a_million_units_are_planned_by_size_in_seconds():
    count = 1_000_000
    columns = {"bytes": pa.array([100_000] * count), "rows": pa.array([512] * count)}
    fill = {field.name: pa.nulls(count, field.type) for field in PLANNED}
    units = planned(pa.table(fill | columns), 3, 256_000_000)
    into = units["into"].value_counts()
    assert len(into) == 391 and max(entry["counts"].as_py() for entry in into) == 2560
    assert units["into"][count - 1].as_py() == "00003-00390.parquet"


# ---- again, and later -------------------------------------------------------------------------------------------------------


def test_again_it_says_that_there_is_nothing_to_merge_and_changes_nothing(out):
    run(out)
    before = state(out)
    summary, watcher = run(out, 1000)
    assert (
        watcher.notes == ["every unit is in a compacted file already: nothing to merge"]
        and state(out) == before
    )
    assert summary["last_command"]["units"] == 0 and summary["units"] == 11


@pytest.mark.parametrize("delete", [False, True])
def test_what_an_update_adds_is_the_next_generation(out, delete):
    run(out, target(out), delete_small=delete)
    first = {name: data for name, data in state(out).items() if "compacted" in name}
    update(out, write_tar(out.parent / "new" / "new.tar", pictures(6, 900)))
    assert len(names(out / "predictions")) == 2 + 11 * (not delete)
    assert counts(out)[:3] == (40, 6, 13)
    assert json.loads((out / "_run" / "summary.json").read_text())["rows"] == 40
    both = rows(out / "predictions", *([out / "compacted"] if delete else []))
    summary, _ = run(out, delete_small=delete)
    assert (summary["generations"], summary["units"], summary["last_command"]["units"]) == (2, 13, 2)
    assert rows(out / "compacted") == both and len(both) == 40 and counts(out)[:3] == (40, 6, 13)
    assert first.items() <= state(out).items(), "what was compacted is left alone"


def test_a_pending_plan_is_finished_before_what_an_update_added_is_planned(out):
    killed(out, target(out), after=2)
    update(out, write_tar(out.parent / "new" / "new.tar", pictures(6, 900)))
    assert counts(out)[:3] == (40, 6, 13)
    summary, watcher = run(out)
    assert [note.split(" files")[0] for note in watcher.notes] == ["merging 11", "merging 2"]
    assert (
        summary["generations"] == 2
        and rows(out / "compacted") == rows(out / "predictions")
        and counts(out)[0] == 40
    )


def test_two_at_once_make_the_same_files(made, out):
    shutil.copytree(made / "out", out.parent / "alone")
    run(out.parent / "alone", target(out), delete_small=True)
    failed = []

    def one():
        try:
            run(out, target(out), delete_small=True)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and state(out) == state(out.parent / "alone")


def test_what_changes_units_is_refused_once_a_compaction_is_planned(out):
    folder = RunFolder(str(out))
    folder.refuse_compacted("--retry-errors")  # not before
    killed(out, ALL, after=1)
    for option in ("--retry-errors", "--replace-changed"):
        with pytest.raises(
            UserError,
            match=rf"{option} changes units that `wordsworth compact` has merged.*use {option} before",
        ) as told:
            folder.refuse_compacted(option)
        assert "\n" not in str(told.value)


# ---- killed -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory) -> dict[bool, Path]:
    """The same run after a compaction that nothing happened to, without and with --delete-small."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for delete in (False, True):
        shutil.copytree(made / "out", folder / str(delete))
        run(folder / str(delete), target(made / "out"), delete_small=delete)
    assert len(names(folder / "True" / "compacted")) == 4
    return {delete: folder / str(delete) for delete in (False, True)}


# Puts: the plan, four files, the commit. Each is a place to die at: what follows it has not begun.
KILLS = {
    "after the plan": {"after": 1},
    "after the first file": {"after": 2},
    "after the second file": {"after": 3},
    "before the commit": {"after": 5},
    "after the commit": {"after": 6},
    "after the commit, before the removal": {"after": 6, "delete": True},
    "at the first removal": {"removed": 1, "delete": True},
    "at the fifth removal": {"removed": 5, "delete": True},
    "at the last removal": {"removed": 11, "delete": True},
}


@pytest.mark.parametrize("place", KILLS)
def test_killed_anywhere_it_goes_on_and_ends_as_if_nothing_had_happened(made, out, undisturbed, place):
    before, counted, size = rows(out / "predictions"), counts(out, source=True), target(out)
    killed(out, size, **KILLS[place])
    assert counts(out, source=True) == counted
    small, large = rows(out / "predictions"), rows(out / "compacted")
    assert small == before or "removal" in place
    assert large == before or KILLS[place].get("after", 9) < 5, (
        "from the last file on compacted/ alone is right"
    )
    delete = KILLS[place].get("delete", False)
    run(out, size, delete_small=delete)
    assert state(out) == state(undisturbed[delete]) and counts(out, source=True) == counted
    assert rows(out / "compacted") == before


def test_a_killed_compaction_met_by_another_target_size_keeps_its_plan(out, undisturbed):
    killed(out, target(out), after=3)
    run(out, 17)
    assert state(out) == state(undisturbed[False])
