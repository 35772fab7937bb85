"""compact and verify: what is damaged, foreign or not ready is named, and nothing is lost by it."""

import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.compacting import (
    compact_in_place,
    counts,
    delete_small,
    flipped,
    killed,
    large_of,
    make,
    names,
    retold,
    rows,
    run,
    state,
    target,
)
from tests.support.runs import build, finish, image_members, write_tar
from wordsworth.pipeline.compaction import file_plan
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.compacted_file import CompactedFile
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


# ---- what it refuses ------------------------------------------------------------------------------------


def refused(out: Path, message: str, **asked) -> None:
    before = state(out)
    with pytest.raises(UserError, match=message) as told:
        run(out, target(out), **asked)
    assert "\n" not in str(told.value)
    assert state(out) == before, "the run is never changed"


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
    assert not large_of(out).exists()


DAMAGES = {
    "a flipped bit": (flipped, "it is damaged"),
    "a cut": (lambda path: os.truncate(path, path.stat().st_size - 9), "it is damaged"),
    "fewer rows": (lambda path: retold(path, lambda table: table.slice(1)), "its rows is 3, not 4"),
    "another run": (
        lambda path: retold(path, run_id="fedcba9876543210"),
        "its run_id is fedcba9876543210, not",
    ),
    "another fingerprint": (lambda path: retold(path, fingerprint="e" * 64), "its fingerprint is"),
    "another unit": (lambda path: retold(path, unit=7), "its unit is 7, not 1"),
    "no footer": (
        lambda path: pq.write_table(pq.read_table(path).replace_schema_metadata({}), path),
        "does not say what it is of",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_small_file_is_named_and_nothing_is_lost(out, large, damage):
    plant, message = DAMAGES[damage]
    path = next((out / "predictions").glob("z-*-00001.parquet"))
    whole = path.read_bytes()
    plant(path)
    refused(out, rf"{path.name} cannot be merged: .*{message}.*verify")
    path.write_bytes(whole)
    run(out, target(out))
    assert counts(large)[0] == 34 and rows(large) == rows(out)


TWINS = {
    "of another run": (lambda path: retold(path, run_id="fedcba9876543210"), r"\(run_id differ\)"),
    "of another place": (lambda path: retold(path, file="00000-00003.parquet"), r"\(file differ\)"),
    "with other rows": (lambda path: retold(path, lambda table: table.slice(1)), r"\(row groups differ\)"),
    "damaged": (flipped, "is damaged .*move it away"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 9), "is damaged .*move it away"),
    "of something else": (lambda path: path.write_bytes(b"x" * 100), "is damaged .*move it away"),
}


@pytest.mark.slow
@pytest.mark.parametrize("twin", TWINS)
def test_a_file_that_has_a_compacted_name_and_is_another_is_refused(out, large, twin):
    killed(out, target(out), after=3)
    plant, message = TWINS[twin]
    path = large / "compacted" / "00000-00001.parquet"
    plant(path)
    refused(out, rf"00000-00001\.parquet exists and .*{message}")
    path.unlink()
    run(out, target(out))
    assert counts(large)[0] == 34


def another_run(out: Path) -> None:
    """Compact a run over other tars into the folder that the run is to be compacted to."""
    write_tar(out.parent / "other" / "a.tar", image_members(3, 700))
    other = build(out.parent / "other-out", out.parent / "other")
    plan = other / "_run" / "plan.json"
    plan.write_text(plan.read_text().replace("0123456789abcdef", "fedcba9876543210"))
    for path in (other / "predictions").iterdir():
        retold(path, run_id="fedcba9876543210")
    finish(other)
    run(other, large=large_of(out))


OTHERS = {
    "something else": (
        lambda out: fill(large_of(out) / "thesis.doc"),
        "is not empty and holds no run: choose a new",
    ),
    "a run": (
        lambda out: shutil.copytree(out, large_of(out)),
        "holds a run: choose a new folder as --output",
    ),
    "another run's compaction": (another_run, "is a compaction of another run: choose a new folder"),
    "a damaged plan": (
        lambda out: fill(large_of(out) / "_run" / "compacted" / "00000-plan.parquet"),
        "00000-plan.parquet is damaged .*choose a new folder",
    ),
    "another listing": (
        lambda out: [
            killed(out, target(out), after=6),
            fill(large_of(out) / "_run" / "shards" / "00000-end.parquet"),
        ],
        "00000-end.parquet is of another compaction: choose a new folder",
    ),
}


def fill(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"precious")


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_a_folder_that_holds_something_else_is_refused_and_kept(out, large, other):
    plant, message = OTHERS[other]
    plant(out)
    before = state(large)
    refused(out, message)
    assert state(large) == before


@pytest.mark.parametrize("place", [".", "large", ".."])
def test_a_folder_inside_the_other_is_refused(out, place):
    refused(out, "overlap: choose a new folder beside the run", large=out / place)


# ---- what verify finds ------------------------------------------------------------------------------------


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
        return table.set_column(
            place, table.schema.field(place), pa.array([0.5] * table.num_rows, pa.float32())
        )

    retold(out / "compacted" / "00000-00001.parquet", change)


def rows_in_another_order(out):
    retold(
        out / "compacted" / "00000-00001.parquet", lambda table: table.take(list(range(table.num_rows))[::-1])
    )


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


@pytest.mark.slow
@pytest.mark.parametrize("small", [True, False], ids=["both", "compacted"])
@pytest.mark.parametrize(
    "plant, what, where", FAULTS, ids=[f"{plant.__name__}-{what}" for plant, what, _ in FAULTS]
)
def test_a_planted_fault_is_found_and_named(out, plant, what, where, small):
    compact_in_place(out, target(out))
    if not small:
        delete_small(out)
    assert counts(out)[0] == 34, "the control: nothing is wrong before"
    plant(out)
    faults = verify(str(out)).findings
    assert any(fault.code == what and where in fault.where for fault in faults), faults
    assert all("\n" not in fault.detail for fault in faults)


def test_rows_that_are_not_those_of_the_small_file_are_found(out):
    compact_in_place(out, target(out))
    for plant in (score_of_another, rows_in_another_order):
        whole = state(out)
        plant(out)
        faults = [fault for fault in verify(str(out)).findings if fault.code == "differing_rows"]
        assert faults and all("compacted/00000-00001.parquet" in fault.detail for fault in faults)
        for name, data in whole.items():
            (out / name).write_bytes(data)


def test_wrong_rows_are_found_where_the_small_files_are_gone(out, large):
    run(out, target(out))
    rows_in_another_order(large)
    assert {"repeated_row", "wrong_shard"} & {fault.code for fault in verify(str(large)).findings}


def test_a_file_of_a_compaction_that_is_under_way_is_no_stranger_but_must_be_whole(out):
    compact_in_place(out, target(out), commit=False)
    assert counts(out)[0] == 34
    bit_flipped(out)
    assert [(fault.code, fault.where) for fault in verify(str(out)).findings] == [
        ("unreadable_file", "compacted/00000-00001.parquet")
    ]


def test_verify_keeps_one_row_group(out, large, monkeypatch):
    monkeypatch.setattr(file_plan, "GROUP_ROWS", 4)
    run(out)
    reads = []
    monkeypatch.setattr(
        CompactedFile,
        "read",
        lambda self, group, read=CompactedFile.read: reads.append(group) or read(self, group),
    )
    assert counts(large)[0] == 34
    assert reads == sorted(set(reads)) and len(reads) >= 9, "each is decoded once, in order"


def test_names_of_generations_are_those_that_the_documents_say(out, large):
    run(out, target(out))
    assert names(large / "_run" / "compacted") == ["00000-plan.parquet", "00000.parquet"]
    assert all(re.fullmatch(r"00000-\d{5}\.parquet", name) for name in names(large / "compacted"))
