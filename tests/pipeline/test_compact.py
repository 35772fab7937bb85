"""compact: the rows that were there are there, whatever it is killed at and however often it runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import compact as compaction
from pipeline.compact import CompactRequest, compact, planned
from pipeline.compacted import CompactedFile
from pipeline.errors import UserError
from pipeline.output import FOOTER, PLANNED, RunFolder
from pipeline.verify import verify
from tests.pipeline.labelling import Watcher
from tests.pipeline.runs import build, pictures, update, write_tar
from tests.pipeline.stores import s3_bucket

ALL = 1 << 40  # a target that nothing reaches


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run over five tars, one of them empty, and one image without a picture beside it: 11 units, 34 rows."""
    folder = tmp_path_factory.mktemp("made")
    for number, images in enumerate((9, 3, 0, 17, 4)):
        names = [*pictures(images, 100 * number), *([("d/lone.json", b"no image")] if number == 1 else [])]
        write_tar(folder / "in" / f"{'zyxab'[number]}.tar", names)
    build(folder / "out", folder / "in")
    return folder


@pytest.fixture
def out(made, tmp_path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def target(out: Path) -> int:
    """A size that makes three files or so."""
    return sum(path.stat().st_size for path in (out / "predictions").iterdir()) // 3


def run(out, size: int = ALL, **asked):
    watcher = Watcher()
    return compact(CompactRequest(str(out), size, **asked), watcher), watcher


def rows(*folders: Path) -> list[dict]:
    """All rows as any reader of Parquet sees them, in one order."""
    found = [row for folder in folders if any(folder.glob("*.parquet")) for row in pq.read_table(folder).to_pylist()]
    return sorted(found, key=lambda row: (row["shard"], row["index"]))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def state(out: Path) -> dict[str, bytes]:
    """Everything that is visible in a run folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and "_tmp-" not in path.name}


def counts(out: Path, source: bool = False) -> tuple:
    report = verify(str(out), source=source)
    assert report.faults == []
    return report.rows, report.shards, report.files, report.errors, report.recounted


# ---- what comes out ---------------------------------------------------------------------------------------------------------


def test_the_rows_before_are_the_rows_after_in_every_column_and_verify_counts_the_same_at_every_moment(out):
    before, counted = rows(out / "predictions"), counts(out, source=True)
    assert len(before) == 34 and counted[2] == 11
    summary, _ = run(out, target(out))
    assert rows(out / "predictions") == rows(out / "compacted") == before and counts(out, source=True) == counted
    assert pq.read_schema(next((out / "compacted").iterdir())).equals(pq.read_schema(next((out / "predictions").iterdir())))
    assert (summary["rows"], summary["units"], summary["generations"], summary["small_files"]) == (34, 11, 1, 11)
    assert summary["files"] == len(names(out / "compacted")) > 1
    summary, _ = run(out, target(out), delete_small=True)
    assert names(out / "predictions") == [] and summary["small_files"] == 0 and summary["last_command"]["removed"] == 11
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
            assert len(there) == 1 or (copy / "compacted" / name).stat().st_size == there[0]["into_bytes"] <= size
        assert len(units) == 11 and (size > sizes[0] or len(names(copy / "compacted")) == 11)


def test_units_lie_in_the_order_of_the_listing_and_a_row_group_holds_whole_ones(out, monkeypatch):
    monkeypatch.setattr(compaction, "GROUP_ROWS", 9)
    run(out)
    units = RunFolder(str(out)).compacted()
    assert [uri.rpartition("/")[2] for uri in dict.fromkeys(units["shard"].to_pylist())] == [f"{c}.tar" for c in "abxyz"]
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
    told = {"run_id": "0123456789abcdef", "fingerprint": "f" * 64, "model": "made up", "generation": 0, "units": 11, "rows": 34}
    assert told.items() <= footer.items() and footer["errors"] == {"missing_image": 1} and footer["file"] == path.name
    data, group = path.read_bytes(), pq.ParquetFile(path).metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        assert column.compression == "ZSTD"
        damaged = bytearray(data)
        damaged[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 0x10
        path.write_bytes(damaged)
        assert [fault.what for fault in verify(str(out)).faults] == ["unreadable_file"], column.path_in_schema


@pytest.mark.parametrize("store", [{}, {"late": True}, {"conditional": False}], ids=["sound", "late", "unconditional"])
def test_on_an_object_store_it_is_the_same(made, store):
    with s3_bucket() as bucket:
        for name, value in store.items():
            setattr(bucket, name, value)
        for path, data in state(made / "out").items():
            bucket.objects[f"bucket/out/{path}"] = data
        before = [name for name in bucket.objects if "/predictions/" in name]
        summary, _ = run("s3://bucket/out", 9000, delete_small=True)
        assert summary["rows"] == 34 and summary["files"] > 1 and summary["last_command"]["removed"] == len(before) == 11
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
    assert watcher.notes == ["every unit is in a compacted file already: nothing to merge"] and state(out) == before
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
    assert summary["generations"] == 2 and rows(out / "compacted") == rows(out / "predictions") and counts(out)[0] == 40


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
            UserError, match=rf"{option} changes units that `wordsworth compact` has merged.*use {option} before"
        ) as told:
            folder.refuse_compacted(option)
        assert "\n" not in str(told.value)


# ---- killed -----------------------------------------------------------------------------------------------------------------

# A child that dies, without unwinding anything, once it has put `after` objects or removed `removed` files.
CHILD = """
import os, sys
from pipeline import compact, merging, output
out, size, after, removed, delete = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "True"
done = {"put": 0, "removed": 0}
def dying(call, what, limit):
    def counted(*arguments):
        result = call(*arguments)
        done[what] += 1
        if done[what] == limit:
            os._exit(9)
        return result
    return counted
compact.put_if_absent = merging.put_if_absent = dying(merging.put_if_absent, "put", after)
run = output.RunFolder
run.remove = lambda self, paths, rm=run.remove: [dying(rm, "removed", removed)(self, [path]) for path in paths]
class Quiet:
    note = staticmethod(print)
compact.compact(compact.CompactRequest(out, size, delete), Quiet)
"""


def killed(out: Path, size: int, after: int = 0, removed: int = 0, delete: bool = False) -> None:
    arguments = [str(out), str(size), str(after), str(removed), str(delete)]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 9, done.stderr


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
    assert large == before or KILLS[place].get("after", 9) < 5, "from the last file on compacted/ alone is right"
    delete = KILLS[place].get("delete", False)
    run(out, size, delete_small=delete)
    assert state(out) == state(undisturbed[delete]) and counts(out, source=True) == counted
    assert rows(out / "compacted") == before


def test_a_killed_compaction_met_by_another_target_size_keeps_its_plan(out, undisturbed):
    killed(out, target(out), after=3)
    run(out, 17)
    assert state(out) == state(undisturbed[False])


# ---- what it refuses --------------------------------------------------------------------------------------------------------


def refused(out: Path, message: str, **asked) -> None:
    before = state(out)
    with pytest.raises(UserError, match=message) as told:
        run(out, target(out), **asked)
    assert "\n" not in str(told.value)
    assert before.items() <= state(out).items(), "nothing is lost"


def test_only_a_complete_run_is_compacted(out, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        run(tmp_path / "none")
    summary = (out / "_run" / "summary.json").read_text()
    (out / "_run" / "summary.json").unlink()
    refused(out, "is not complete: run its label command to the end first")
    (out / "_run" / "summary.json").write_text(summary)
    next((out / "predictions").glob("*-end.parquet")).unlink()
    refused(out, "is not complete")
    assert not (out / "compacted").exists() and not (out / "_run" / "compacted").exists()


def flipped(path: Path) -> None:
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0x10
    path.write_bytes(data)


def retold(path: Path, change=lambda table: table, **footer) -> None:
    """A changed file, padded to the size that it had."""
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[FOOTER]) | footer
    pq.write_table(change(table).replace_schema_metadata({FOOTER: json.dumps(told)}), path, write_page_checksum=True)


DAMAGES = {
    "a flipped bit": (flipped, "it is damaged"),
    "a cut": (lambda path: os.truncate(path, path.stat().st_size - 9), "it is damaged"),
    "fewer rows": (lambda path: retold(path, lambda table: table.slice(1)), "its rows is 3, not 4"),
    "another run": (lambda path: retold(path, run_id="fedcba9876543210"), "its run_id is fedcba9876543210, not"),
    "another fingerprint": (lambda path: retold(path, fingerprint="e" * 64), "its fingerprint is"),
    "another unit": (lambda path: retold(path, unit=7), "its unit is 7, not 1"),
    "no footer": (lambda path: pq.write_table(pq.read_table(path).replace_schema_metadata({}), path), "does not say what it is of"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_small_file_is_named_and_nothing_is_lost(out, damage):
    plant, message = DAMAGES[damage]
    path = next((out / "predictions").glob("z-*-00001.parquet"))
    whole = path.read_bytes()
    plant(path)
    refused(out, rf"{path.name} cannot be merged: .*{message}.*verify", delete_small=True)
    path.write_bytes(whole)
    run(out, target(out))
    assert counts(out)[0] == 34 and rows(out / "compacted") == rows(out / "predictions")


TWINS = {
    "of another run": (lambda path: retold(path, run_id="fedcba9876543210"), r"\(run_id\)"),
    "of another place": (lambda path: retold(path, file="00000-00003.parquet"), r"\(file\)"),
    "with other rows": (lambda path: retold(path, lambda table: table.slice(1)), r"rows"),
    "damaged": (flipped, "Damaged"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 9), "Damaged"),
    "of something else": (lambda path: path.write_bytes(b"x" * 100), "Damaged"),
}


@pytest.mark.parametrize("twin", TWINS)
def test_a_file_that_has_a_compacted_name_and_is_another_is_refused(out, twin):
    killed(out, target(out), after=3)
    plant, message = TWINS[twin]
    path = out / "compacted" / "00000-00001.parquet"
    plant(path)
    refused(out, rf"00000-00001\.parquet exists and is not what this compaction writes.*{message}.*move it away", delete_small=True)
    path.unlink()
    run(out, target(out))
    assert counts(out)[0] == 34


@pytest.mark.parametrize("plant", [os.unlink, lambda path: os.truncate(path, 99)], ids=["missing", "cut"])
def test_small_files_stay_while_their_compacted_file_is_not_what_was_committed(out, plant):
    run(out, target(out))
    plant(out / "compacted" / "00000-00002.parquet")
    refused(out, r"00000-00002\.parquet is not what was committed.*nothing was removed", delete_small=True)


def test_a_small_file_that_changed_since_it_was_merged_stays(out):
    run(out, target(out))
    retold(next((out / "predictions").glob("z-*-00001.parquet")), model="another name")
    refused(out, r"z-.*-00001\.parquet is not the file that was merged", delete_small=True)


# ---- what verify finds ------------------------------------------------------------------------------------------------------


def missing(out):
    (out / "compacted" / "00000-00001.parquet").unlink()


def truncated(out):
    path = out / "compacted" / "00000-00001.parquet"
    os.truncate(path, path.stat().st_size - 50)


def bit_flipped(out):
    flipped(out / "compacted" / "00000-00001.parquet")


def foreign(out):
    shutil.copy(out / "compacted" / "00000-00001.parquet", out / "compacted" / "00000-00009.parquet")


def foreign_record(out):
    (out / "_run" / "compacted" / "notes.txt").write_text("x")


def of_another_run(out):
    retold(out / "compacted" / "00000-00001.parquet", run_id="fedcba9876543210")


def under_another_name(out):
    shutil.copy(out / "compacted" / "00000-00002.parquet", out / "compacted" / "00000-00001.parquet")


def fewer_rows(out):
    retold(out / "compacted" / "00000-00001.parquet", lambda table: table.slice(1))


def score_of_another(out):
    def change(table):
        place = table.schema.get_field_index("score")
        return table.set_column(place, table.schema.field(place), pa.array([0.5] * table.num_rows, pa.float32()))

    retold(out / "compacted" / "00000-00001.parquet", change)


def rows_in_another_order(out):
    retold(out / "compacted" / "00000-00001.parquet", lambda table: table.take(list(range(table.num_rows))[::-1]))


def lost_plan(out):
    (out / "_run" / "compacted" / "00000-plan.parquet").unlink()


def damaged_commit(out):
    os.truncate(out / "_run" / "compacted" / "00000.parquet", 99)


def commit_of_other_units(out):
    path = out / "_run" / "compacted" / "00000.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def damaged_plan(out):
    os.truncate(out / "_run" / "compacted" / "00000-plan.parquet", 99)


FAULTS = [
    (missing, "missing_file", "compacted/00000-00001"),
    (truncated, "unreadable_file", "compacted/00000-00001"),
    (bit_flipped, "unreadable_file", "compacted/00000-00001"),
    (foreign, "foreign_file", "compacted/00000-00009"),
    (foreign_record, "foreign_file", "_run/compacted/notes.txt"),
    (of_another_run, "other_run", "compacted/00000-00001"),
    (under_another_name, "wrong_footer", "compacted/00000-00001"),
    (fewer_rows, "wrong_rows", "compacted/00000-00001"),
    (score_of_another, "wrong_size", "compacted/00000-00001"),
    (lost_plan, "wrong_generation", "_run/compacted/00000-plan"),
    (damaged_plan, "unreadable_generation", "_run/compacted/00000-plan"),
    (damaged_commit, "unreadable_generation", "_run/compacted/00000.parquet"),
    (commit_of_other_units, "wrong_generation", "_run/compacted/00000.parquet"),
]


@pytest.mark.parametrize("delete", [False, True], ids=["both", "compacted"])
@pytest.mark.parametrize("plant, what, where", FAULTS, ids=[f"{plant.__name__}-{what}" for plant, what, _ in FAULTS])
def test_a_planted_fault_is_found_and_named(out, plant, what, where, delete):
    run(out, target(out), delete_small=delete)
    assert counts(out)[0] == 34, "the control: nothing is wrong before"
    plant(out)
    faults = verify(str(out)).faults
    assert any(fault.what == what and where in fault.where for fault in faults), faults
    assert all("\n" not in fault.detail for fault in faults)


def test_rows_that_are_not_those_of_the_small_file_are_found(out):
    run(out, target(out))
    for plant in (score_of_another, rows_in_another_order):
        whole = state(out)
        plant(out)
        faults = [fault for fault in verify(str(out)).faults if fault.what == "differing_rows"]
        assert faults and all("compacted/00000-00001.parquet" in fault.detail for fault in faults)
        for name, data in whole.items():
            (out / name).write_bytes(data)


def test_wrong_rows_are_found_where_the_small_files_are_gone(out):
    run(out, target(out), delete_small=True)
    rows_in_another_order(out)
    assert {"repeated_row", "wrong_shard"} & {fault.what for fault in verify(str(out)).faults}


def test_a_file_of_a_compaction_that_is_under_way_is_no_stranger_but_must_be_whole(out):
    killed(out, target(out), after=3)
    assert counts(out)[0] == 34
    bit_flipped(out)
    assert [(fault.what, fault.where) for fault in verify(str(out)).faults] == [
        ("unreadable_file", "compacted/00000-00001.parquet")
    ]


def test_verify_follows_a_compaction_that_removes_what_it_reads(out, monkeypatch):
    """The small files are listed, and gone when they are to be read."""
    from pipeline import verify as module

    counted, found = counts(out), module._Verifier._shards

    def shards(self):
        run(out, target(out), delete_small=True)
        yield from found(self)

    monkeypatch.setattr(module._Verifier, "_shards", shards)
    assert counts(out) == counted


def test_verify_keeps_one_row_group(out, monkeypatch):
    monkeypatch.setattr(compaction, "GROUP_ROWS", 4)
    run(out, delete_small=True)
    reads = []
    monkeypatch.setattr(
        CompactedFile, "read", lambda self, group, read=CompactedFile.read: reads.append(group) or read(self, group)
    )
    assert counts(out)[0] == 34
    assert reads == sorted(set(reads)) and len(reads) >= 9, "each is decoded once, in order"


def test_names_of_generations_are_those_that_the_documents_say(out):
    run(out, target(out))
    assert names(out / "_run" / "compacted") == ["00000-plan.parquet", "00000.parquet"]
    assert all(re.fullmatch(r"00000-\d{5}\.parquet", name) for name in names(out / "compacted"))
