"""verify: a whole run passes, and every fault that was planted in the folder is found and named."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.runs import UNIT_ROWS, build, codes, finish, whole_run, write_tar
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.records import FOOTER_KEY
from wordsworth.pipeline.verification.report import Report
from wordsworth.pipeline.verification.verifier import verify


@pytest.fixture
def run(tmp_path):
    return whole_run(tmp_path)


# ---- a whole run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [False, True])
def test_a_whole_run_verifies(run, source):
    report = verify(str(run.out), source=source)
    assert report.findings == []
    assert (report.ok, report.rows, report.shards, report.files) == (True, 13, 2, 4)
    assert report.errors == {"missing_image": 1} and report.notes() == []
    assert report.recounted == (13 if source else None)


def test_empty_shards_and_leftovers_of_killed_writers_verify(tmp_path):
    write_tar(tmp_path / "in" / "empty.tar", [])
    out = build(tmp_path / "out", tmp_path / "in")
    (out / "predictions" / "_tmp-0123").write_bytes(b"half a file")
    report = verify(str(out), source=True)
    assert report.findings == []
    assert (report.rows, report.files, report.recounted) == (0, 1, 0)


@pytest.mark.parametrize("source", [False, True])
def test_a_key_that_comes_twice_in_a_shard_is_a_note_and_no_finding(tmp_path, source):
    members = [(f"{name}.jpg", bytes([number])) for number, name in enumerate("abcdefbgb")]
    write_tar(tmp_path / "in" / "a.tar", members)
    write_tar(tmp_path / "in" / "b.tar", [("b.jpg", b"another shard")])
    report = verify(str(build(tmp_path / "out", tmp_path / "in")), source=source)
    assert report.ok and report.rows == 10 and report.to_dict()["repeated_keys"] == 2
    (note,) = report.notes()
    assert note.startswith(
        f"2 rows have the key of another row of their shard, first 'b' in {tmp_path}/in/a.tar"
    )


def test_a_folder_without_a_run_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no run: name the --output of a wordsworth label"):
        verify(str(tmp_path))
    (tmp_path / "_run").mkdir()
    (tmp_path / "_run" / "plan.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        verify(str(tmp_path))


@pytest.mark.slow
def test_verify_and_recount_import_neither_the_reader_nor_torch_nor_ray():
    ours = [
        "wordsworth.pipeline.sources.tar",
        "wordsworth.pipeline.sources.reader",
        "wordsworth.pipeline.sources.compressed",
        "wordsworth.pipeline.sources.table",
        "wordsworth.pipeline.sources.table_records",
        "wordsworth.pipeline.sources.table_images",
        "wordsworth.pipeline.labeling.labeler",
        "wordsworth.pipeline.images.decode",
        "wordsworth.pipeline.labeling.plan",
        "wordsworth.vit_model",
    ]
    names = [*ours, "torch", "ray", "webdataset"]
    modules = "wordsworth.pipeline.verification.recount, wordsworth.pipeline.verification.verifier"
    code = f"import sys, {modules}; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert done.stdout.strip() == "[]"


# ---- planted faults ----------------------------------------------------------------------------------------


def rewrite(path: Path, change=lambda table: table, **footer) -> None:
    """Put a changed file in a unit's place; its footer counts the rows that it now has."""
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[FOOTER_KEY])
    table = change(table)
    errors = dict(Counter(table["error"].drop_null().to_pylist()))
    told |= {"rows": table.num_rows, "errors": errors} | footer
    pq.write_table(
        table.replace_schema_metadata({FOOTER_KEY: json.dumps(told)}), path, write_page_checksum=True
    )


def drop(table: pa.Table, place: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, place), table.slice(place + 1)])


def put(table: pa.Table, name: str, values: list) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def missing_unit(run):
    run.middle.unlink()


def missing_end(run):
    run.end.unlink()


def lost_end_mark(run):
    run.end.rename(run.end.with_name(run.end.name.replace("-end", "")))


def unit_after_end(run):
    run.middle.rename(run.middle.with_name(run.middle.name.replace(".parquet", "-end.parquet")))


def unit_under_two_names(run):
    shutil.copy(run.end, run.end.with_name(run.end.name.replace("-end", "")))


def doubled_row(run):
    rewrite(run.middle, lambda table: pa.concat_tables([table, table.slice(3, 1)]))
    finish(run.out)


def row_of_another_unit(run):
    rewrite(
        run.middle, lambda table: pa.concat_tables([pq.read_table(run.first).slice(3, 1), table.slice(1)])
    )
    finish(run.out)


def dropped_row(run):
    rewrite(run.middle, lambda table: drop(table, 1))
    finish(run.out)


def dropped_row_at_a_unit_edge(run):
    rewrite(run.middle, lambda table: drop(table, 3))
    finish(run.out)


def fewer_rows_than_told(run):
    rewrite(run.end, lambda table: table.slice(0, 1), rows=2)


def truncated_parquet(run):
    os.truncate(run.middle, run.middle.stat().st_size - 100)


def emptied_parquet(run):
    os.truncate(run.middle, 0)


def row_from_another_fingerprint(run):
    rewrite(run.middle, fingerprint="e" * 64)


def row_from_another_run(run):
    rewrite(run.middle, run_id="fedcba9876543210")


def renamed_to_another_unit(run):
    run.middle.rename(run.middle.with_name(run.middle.name.replace("00001", "00003")))


def no_footer(run):
    table = pq.read_table(run.middle).replace_schema_metadata({})
    pq.write_table(table, run.middle, write_page_checksum=True)


def rows_of_another_shard(run):
    place = pq.read_table(run.middle).schema.get_field_index("shard")
    other = pa.DictionaryArray.from_arrays(np.zeros(UNIT_ROWS, np.int32), ["/other.tar"])
    rewrite(run.middle, lambda table: table.set_column(place, "shard", other))


def error_that_the_footer_does_not_count(run):
    rewrite(run.end, errors={})


def null_prediction(run):
    rewrite(run.middle, lambda table: put(table, "embedding", [None, *table["embedding"].to_pylist()[1:]]))


def prediction_beside_an_error(run):
    rewrite(run.end, lambda table: put(table, "label_id", [1] * table.num_rows))


def unit_without_labels(run):
    rewrite(run.middle, lambda table: table.drop_columns(["label_id", "label", "score", "topk"]))


def foreign_file(run):
    shutil.copy(run.middle, run.middle.with_name("part-0.parquet"))


def file_of_a_shard_that_is_not_in_the_run(run):
    shutil.copy(run.middle, run.middle.with_name("other-0123456789ab-00000-end.parquet"))


def wrong_summary(run):
    finish(run.out, rows=12)


def damaged_summary(run):
    (run.out / "_run" / "summary.json").write_text("{")


def no_summary(run):
    (run.out / "_run" / "summary.json").unlink()


def wrong_manifest(run):
    path = run.out / "_run" / "manifest.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def manifest_with_other_counts(run):
    path = run.out / "_run" / "manifest.parquet"
    table = pq.read_table(path)
    pq.write_table(put(table, "rows", [5, *table["rows"].to_pylist()[1:]]), path)


def no_manifest(run):
    (run.out / "_run" / "manifest.parquet").unlink()


def lost_listing_page(run):
    (run.out / "_run" / "shards" / "00000-end.parquet").unlink()


def edited_listing_page(run):
    path = run.out / "_run" / "shards" / "00000-end.parquet"
    table = pq.read_table(path)
    pq.write_table(put(table, "size", [1, *table["size"].to_pylist()[1:]]), path)


def damaged_listing_page(run):
    os.truncate(run.out / "_run" / "shards" / "00000-end.parquet", 200)


FAULTS = [
    (missing_unit, "missing_unit", "a-"),
    (missing_end, "missing_end", "a-"),
    (lost_end_mark, "missing_end", "a-"),
    (unit_after_end, "unit_after_end", "a-"),
    (unit_under_two_names, "two_names", "a-"),
    (unit_under_two_names, "repeated_row", "00002-end"),
    (doubled_row, "repeated_row", "00001.parquet"),
    (row_of_another_unit, "repeated_row", "00001.parquet"),
    (dropped_row, "missing_row", "00001.parquet"),
    (dropped_row_at_a_unit_edge, "missing_row", "00002-end"),
    (fewer_rows_than_told, "wrong_rows", "00002-end"),
    (truncated_parquet, "unreadable_file", "00001.parquet"),
    (emptied_parquet, "unreadable_file", "00001.parquet"),
    (row_from_another_fingerprint, "other_run", "00001.parquet"),
    (row_from_another_run, "other_run", "00001.parquet"),
    (renamed_to_another_unit, "wrong_footer", "00003.parquet"),
    (renamed_to_another_unit, "unit_after_end", "a-"),
    (no_footer, "wrong_footer", "00001.parquet"),
    (rows_of_another_shard, "wrong_shard", "00001.parquet"),
    (error_that_the_footer_does_not_count, "wrong_errors", "00002-end"),
    (null_prediction, "missing_prediction", "00001.parquet"),
    (prediction_beside_an_error, "prediction_on_error", "00002-end"),
    (unit_without_labels, "wrong_schema", "00001.parquet"),
    (foreign_file, "foreign_file", "part-0.parquet"),
    (file_of_a_shard_that_is_not_in_the_run, "foreign_file", "other-"),
    (wrong_summary, "wrong_summary", "summary.json"),
    (damaged_summary, "wrong_summary", "summary.json"),
    (no_summary, "not_finished", "summary.json"),
    (wrong_manifest, "wrong_manifest", "manifest.parquet"),
    (manifest_with_other_counts, "wrong_manifest", "manifest.parquet"),
    (no_manifest, "wrong_manifest", "manifest.parquet"),
    (lost_listing_page, "incomplete_listing", "_run/shards"),
    (edited_listing_page, "wrong_listing", "00000-end.parquet"),
    (damaged_listing_page, "unreadable_listing", "00000-end.parquet"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant, what, where", FAULTS, ids=[f"{plant.__name__}-{what}" for plant, what, _ in FAULTS]
)
def test_a_planted_fault_is_found_and_named(run, plant, what, where):
    plant(run)
    report = verify(str(run.out))
    assert not report.ok
    assert any(fault.code == what and where in fault.where for fault in report.findings), report.findings
    assert all("\n" not in fault.detail for fault in report.findings)


@pytest.mark.parametrize(
    "plant", [doubled_row, dropped_row, row_of_another_unit], ids=lambda plant: plant.__name__
)
def test_the_places_alone_give_away_a_row_whose_footer_and_summary_agree(run, plant):
    plant(run)
    assert codes(verify(str(run.out))) <= {"repeated_row", "missing_row"}


@pytest.mark.slow
def test_every_flipped_byte_of_a_page_is_found(run):
    """One byte in each column's pages, data and dictionary alike."""
    data, group = run.middle.read_bytes(), pq.ParquetFile(run.middle).metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        begin = column.dictionary_page_offset or column.data_page_offset
        damaged = bytearray(data)
        damaged[begin + column.total_compressed_size - 1] ^= 0x10
        run.middle.write_bytes(damaged)
        assert "unreadable_file" in codes(verify(str(run.out))), column.path_in_schema


def test_a_report_on_a_run_with_errors_can_be_printed_as_json():
    report = Report(rows=2, shards=1, files=1, recounted=2)
    report.errors.update({"not_an_image": 1})
    report.add("missing_unit", "a-0123456789ab", "file 00000 of 0 to 1 is not there", 2)
    told = json.loads(json.dumps(report.to_dict()))
    detail = "file 00000 of 0 to 1 is not there (2 such here)"
    assert told["errors"] == {"not_an_image": 1} and told["ok"] is False
    assert told["faults"] == [{"what": "missing_unit", "where": "a-0123456789ab", "detail": detail}]
