"""verify: a whole run passes, every planted fault is found and named, and only the recount sees what the reader never gave."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import tar
from pipeline.errors import UserError
from pipeline.output import FOOTER, RunFolder, WriteSettings, commit
from pipeline.reader import ReadSettings, read_units
from pipeline.source import Shard, find_shards
from pipeline.unit import SAMPLE, Unit
from pipeline.verify import Report, _is_part, _tar_samples, _Whole, verify

KEYS = ("jpg", "jpeg", "png")
UNIT_ROWS = 4


# ---- runs, made by hand ---------------------------------------------------------------------------------------------------


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def pictures(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    """`count` samples of an image and a sidecar; the bytes are never decoded here."""
    generator = random.Random(first)
    names = [(f"d/{i:03d}.jpg", f"d/{i:03d}.json") for i in range(first, first + count)]
    return [pair for image, side in names for pair in ((image, generator.randbytes(50 + 37 * len(image))), (side, b"{}"))]


def predicted(unit: Unit) -> Unit:
    """The unit with two classes and an embedding for every row without an error."""
    good = [error is None for error in unit.samples["error"].to_pylist()]
    ids = pa.array([[3, 1] if ok else None for ok in good], pa.list_(pa.int32()))
    scores = pa.array([[0.75, 0.25] if ok else None for ok in good], pa.list_(pa.float32()))
    embedding = pa.array([np.ones(4, np.float16) if ok else None for ok in good], pa.list_(pa.float16(), 4))
    side = pa.array([8 if ok else None for ok in good], pa.int32())
    columns = {"width": side, "height": side, "topk_ids": ids, "topk_scores": scores, "embedding": embedding}
    for name, column in columns.items():
        unit.samples = unit.samples.append_column(name, column)
    return unit


def read_rows(shard: Shard) -> list[dict]:
    units = read_units(shard, ReadSettings(UNIT_ROWS, image_keys=KEYS))
    return [row for unit in units for row in unit.samples.to_pylist()]


def units_of(shard: Shard, rows: list[dict]) -> list[Unit]:
    """Rows cut into units, their places counted anew: the folder is consistent, whatever the rows are."""
    cuts = range(0, max(1, len(rows)), UNIT_ROWS)
    batches = [rows[i : i + UNIT_ROWS] for i in cuts]
    units = []
    for number, batch in enumerate(batches):
        first = number * UNIT_ROWS
        batch = [{**row, "index": shard.first_index + first + i} for i, row in enumerate(batch)]
        samples = pa.Table.from_pylist(batch, schema=SAMPLE)
        end, last = first + len(batch), number == len(batches) - 1
        units.append(Unit(shard.uri, shard.name, number, last, 0, end, 0, samples, np.empty(0, np.uint8)))
    return units


def finish(out: Path, **changes) -> None:
    """Manifest and summary of what lies in the folder."""
    run = RunFolder(str(out))
    footers = run.footers(run.prediction_files())
    errors = Counter()
    for footer in footers:
        errors.update(json.loads(footer["errors"]))
    plan = run.plan()
    summary = {"run_id": plan["run_id"], "fingerprint": plan["fingerprint"], "shards": sum(row["last"] for row in footers)}
    summary |= {"files": len(footers), "rows": sum(row["rows"] for row in footers), "errors": dict(errors)}
    run.finish(pa.Table.from_pylist(footers), summary | changes)


def build(out: Path, *sources: Path, reader=read_rows, format: str | None = None) -> Path:
    """A finished run over real files; `reader` says which rows each shard has."""
    run = RunFolder(str(out))
    listing = find_shards([str(source) for source in sources], format, KEYS)
    asked = {"source": sorted(map(str, sources)), "image-key": list(KEYS), "top-k": 2, "embedding": "float16"}
    plan = run.create({"schema_version": 1, "run_id": "0123456789abcdef", "fingerprint": "f" * 64, "asked": asked})
    run.freeze_listing(listing)
    provenance = {name: plan[name] for name in ("run_id", "fingerprint")}
    settings = WriteSettings(str(out), provenance, ("a", "b", "c", "d"), 2, "float16", 4)
    for shard in listing.shards:
        for unit in units_of(shard, reader(shard)):
            commit(predicted(unit), settings)
    finish(out)
    return out


@pytest.fixture
def shards(tmp_path):
    """Two tars, of 3 units and of 1, and what belongs to them: an image without sidecar, a sidecar without image, a hidden file."""
    write_tar(tmp_path / "in" / "a.tar", [*pictures(9), ("._x.jpg", b"x"), ("README", b"x"), ("d/lone.txt", b"no image")])
    write_tar(tmp_path / "in" / "b.tar", [*pictures(2, 100), ("z.PNG", b"z" * 700)])
    return tmp_path / "in"


@pytest.fixture
def run(tmp_path, shards):
    out = build(tmp_path / "out", shards)
    files = sorted((out / "predictions").iterdir())
    return SimpleNamespace(out=out, source=shards, files=files, first=files[0], middle=files[1], end=files[2])


def codes(report: Report) -> set[str]:
    return {fault.what for fault in report.faults}


def rewrite(path: Path, change=lambda table: table, **footer) -> None:
    """Put a changed file in a unit's place; its footer counts the rows that it now has."""
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[FOOTER])
    table = change(table)
    errors = dict(Counter(table["error"].drop_null().to_pylist()))
    told |= {"rows": table.num_rows, "errors": errors} | footer
    pq.write_table(table.replace_schema_metadata({FOOTER: json.dumps(told)}), path, write_page_checksum=True)


def drop(table: pa.Table, place: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, place), table.slice(place + 1)])


def put(table: pa.Table, name: str, values: list) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


# ---- a whole run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [False, True])
def test_a_whole_run_verifies(run, source):
    report = verify(str(run.out), source=source)
    assert report.faults == []
    assert (report.ok, report.rows, report.shards, report.files) == (True, 13, 2, 4)
    assert report.errors == {"missing_image": 1}
    assert report.recounted == (13 if source else None)


def test_empty_shards_and_leftovers_of_killed_writers_verify(tmp_path):
    write_tar(tmp_path / "in" / "empty.tar", [])
    out = build(tmp_path / "out", tmp_path / "in")
    (out / "predictions" / "_tmp-0123").write_bytes(b"half a file")
    report = verify(str(out), source=True)
    assert report.faults == []
    assert (report.rows, report.files, report.recounted) == (0, 1, 0)


def test_a_folder_without_a_run_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no run: _run/plan\.json is missing"):
        verify(str(tmp_path))
    (tmp_path / "_run").mkdir()
    (tmp_path / "_run" / "plan.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        verify(str(tmp_path))


def test_verify_imports_neither_the_reader_nor_torch_nor_ray():
    ours = ["pipeline.tar", "pipeline.reader", "pipeline.labeler", "pipeline.decode", "pipeline.plan", "vit_model"]
    names = [*ours, "torch", "ray", "webdataset"]
    code = f"import sys, pipeline.verify; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert done.stdout.strip() == "[]"


# ---- planted faults ---------------------------------------------------------------------------------------------------------


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
    rewrite(run.middle, lambda table: pa.concat_tables([pq.read_table(run.first).slice(3, 1), table.slice(1)]))
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


def bit_flipped_parquet(run):
    column = pq.ParquetFile(run.middle).metadata.row_group(0).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(run.middle.read_bytes())
    data[begin + column.total_compressed_size - 1] ^= 1
    run.middle.write_bytes(data)


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
    (bit_flipped_parquet, "unreadable_file", "00001.parquet"),
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
    (no_summary, "not_finished", "summary.json"),
    (wrong_manifest, "wrong_manifest", "manifest.parquet"),
    (manifest_with_other_counts, "wrong_manifest", "manifest.parquet"),
    (no_manifest, "wrong_manifest", "manifest.parquet"),
    (lost_listing_page, "incomplete_listing", "_run/shards"),
    (edited_listing_page, "wrong_listing", "00000-end.parquet"),
    (damaged_listing_page, "unreadable_listing", "00000-end.parquet"),
]


@pytest.mark.parametrize("plant, what, where", FAULTS, ids=[f"{plant.__name__}-{what}" for plant, what, _ in FAULTS])
def test_a_planted_fault_is_found_and_named(run, plant, what, where):
    plant(run)
    report = verify(str(run.out))
    assert not report.ok
    assert any(fault.what == what and where in fault.where for fault in report.faults), report.faults
    assert all("\n" not in fault.detail for fault in report.faults)


@pytest.mark.parametrize("plant", [doubled_row, dropped_row, row_of_another_unit], ids=lambda plant: plant.__name__)
def test_the_places_alone_give_away_a_row_whose_footer_and_summary_agree(run, plant):
    plant(run)
    assert codes(verify(str(run.out))) <= {"repeated_row", "missing_row"}


def test_every_flipped_byte_of_a_page_is_found(run):
    """One byte in each column's pages, data and dictionary alike."""
    data, group = run.middle.read_bytes(), pq.ParquetFile(run.middle).metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        begin = column.dictionary_page_offset or column.data_page_offset
        damaged = bytearray(data)
        damaged[begin + column.total_compressed_size - 1] ^= 0x10
        run.middle.write_bytes(damaged)
        assert "unreadable_file" in codes(verify(str(run.out))), column.path_in_schema


# ---- the source -------------------------------------------------------------------------------------------------------------


def test_a_reader_that_drops_every_tenth_sample_is_caught_by_the_recount_and_by_nothing_else(tmp_path):
    write_tar(tmp_path / "in" / "a.tar", pictures(40))
    lossy = build(
        tmp_path / "out", tmp_path / "in", reader=lambda shard: [r for i, r in enumerate(read_rows(shard)) if i % 10 != 9]
    )
    assert verify(str(lossy)).ok, "the folder alone is consistent: only the input tells"
    report = verify(str(lossy), source=True)
    (fault,) = report.faults
    assert (fault.what, report.rows, report.recounted) == ("missing_sample", 36, 40)
    assert fault.where.endswith("a.tar")
    assert "'d/009' has no row (4 such here)" in fault.detail


def swapped(rows):
    return [rows[1], rows[0], *rows[2:]]


def renamed(rows):
    return [{**rows[0], "key": "other"}, *rows[1:]]


def doubled(rows):
    return [rows[0], *rows]


def resized(rows):
    return [{**rows[0], "size": rows[0]["size"] - 1}, *rows[1:]]


def moved(rows):
    return [{**rows[0], "offset": rows[1]["offset"]}, *rows[1:]]


def falsely_without_image(rows):
    return [{**rows[0], "error": "missing_image"}, *rows[1:]]


def falsely_cut(rows):
    return [*rows, {**rows[0], "key": None, "error": "shard_truncated"}]


@pytest.mark.parametrize(
    "change, what",
    [
        (swapped, "wrong_key"),
        (renamed, "wrong_key"),
        (doubled, "extra_row"),
        (resized, "wrong_place"),
        (moved, "wrong_place"),
        (falsely_without_image, "wrong_error"),
        (falsely_cut, "extra_row"),
    ],
)
def test_rows_that_are_not_the_sources_samples_are_found_by_the_recount_and_by_nothing_else(tmp_path, shards, change, what):
    out = build(tmp_path / "out", shards, reader=lambda shard: change(read_rows(shard)))
    assert verify(str(out)).ok
    report = verify(str(out), source=True)
    assert codes(report) == {what}
    assert len(report.faults) == 2, "one a shard"


def test_a_source_that_changed_or_vanished_is_named(run):
    write_tar(run.source / "a.tar", pictures(12))
    (run.source / "b.tar").unlink()
    assert verify(str(run.out)).ok
    faults = verify(str(run.out), source=True).faults
    assert [(fault.what, Path(fault.where).name) for fault in faults] == [("source_changed", "a.tar"), ("source_changed", "b.tar")]


def test_a_store_that_answers_short_is_not_a_cut_tar(run):
    size = (run.source / "a.tar").stat().st_size
    with open(run.source / "a.tar", "rb") as file, pytest.raises(OSError, match="512 bytes early"):
        _tar_samples(_Whole(file, size + 512), list(KEYS))


# ---- cut and damaged tars ---------------------------------------------------------------------------------------------------


def cut_tar(tmp_path: Path, keep: int) -> Path:
    path = write_tar(tmp_path / "in" / "a.tar", pictures(6))
    os.truncate(path, keep)
    return path


def test_a_cut_tar_verifies_with_its_truncated_row_and_not_without(tmp_path):
    cut_tar(tmp_path, 5 * 2048 + 700)
    whole = build(tmp_path / "out", tmp_path / "in")
    report = verify(str(whole), source=True)
    assert report.faults == []
    assert report.errors == {"shard_truncated": 1}
    assert report.rows == report.recounted + 1

    silent = build(tmp_path / "silent", tmp_path / "in", reader=lambda shard: read_rows(shard)[:-1])
    assert verify(str(silent)).ok, "a cut that nobody noted is invisible in the folder"
    (fault,) = verify(str(silent), source=True).faults
    assert (fault.what, fault.detail) == ("missing_sample", "the mark that the tar is cut has no row")

    twice = build(tmp_path / "twice", tmp_path / "in", reader=lambda shard: [*read_rows(shard), read_rows(shard)[-1]])
    assert codes(verify(str(twice), source=True)) == {"extra_row"}


def recounted(data: bytes) -> list[tuple]:
    return [tuple(sample) for sample in _tar_samples(_Whole(io.BytesIO(data), len(data)), list(KEYS))]


def as_read(path: Path) -> list[tuple]:
    rows = read_rows(next(iter(find_shards([str(path)], "tar", KEYS).shards)))
    return [(row["key"], row["offset"] if row["key"] else None, row["size"], row["error"]) for row in rows]


def awkward() -> list[tuple[str, bytes]]:
    long = "deep/" * 40
    return [
        ("a.jpg", b"1" * 512),
        ("a.txt", b""),
        ("lone.txt", b"2" * 513),
        ("__meta__/x.jpg", b"3"),
        ("b.JPG", b"4" * 100),
        ("b.jpg", b"repeated: a new sample"),
        ("b.v1.2.png", b"5"),
        (f"{long}c.d/e.cls", b"6"),
        (f"{long}c.d/e.Png", b"7" * 1500),
        ("ünï\udcff.jpg", b"8"),
    ]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_reader_and_recount_agree_wherever_a_tar_is_cut(tmp_path, format):
    path = write_tar(tmp_path / "a.tar", awkward(), format)
    data = path.read_bytes()
    assert len(recounted(data)) == 6 and not any(error == "shard_truncated" for *_, error in recounted(data))
    edges = range(0, len(data) - 8192, 512)
    for keep in sorted({*edges, *(edge + 1 for edge in edges), *(edge + 511 for edge in edges)}):
        path.write_bytes(data[:keep])
        assert recounted(data[:keep]) == as_read(path), keep


def test_reader_and_recount_agree_on_damage_and_on_tars_end_to_end(tmp_path):
    one, other = (write_tar(tmp_path / f"{n}.tar", pictures(3, n)).read_bytes() for n in (0, 50))
    content = len(one.rstrip(b"\0")) + -len(one.rstrip(b"\0")) % 512
    damaged = bytearray(one)
    damaged[4 * 512] ^= 1  # in the second sample's first header
    cases = {
        "end to end": one + other,
        "an end to end cut": one + other[:3000],
        "a bad header, good ones behind it": bytes(damaged),
        "no end blocks": one[:content],
        "one end block": one[: content + 512],
        "two end blocks": one[: content + 1024],
        "an odd number of zeros": one[: content + 1030],
        "one end block between tars": one[: content + 512] + other,
        "no end block between tars": one[:content] + other,
        "something behind the end": one + b"x" * 512,
        "a bit of something behind the end": one + b"x",
        "nothing": b"",
        "no tar": b"x" * 5000,
        "only end blocks": bytes(1024),
    }
    path = tmp_path / "case.tar"
    for name, data in cases.items():
        path.write_bytes(data)
        assert recounted(data) == as_read(path), name
    cut = {name for name, data in cases.items() if recounted(data)[-1:] == [(None, None, None, "shard_truncated")]}
    assert cases.keys() - cut == {
        "end to end",
        "two end blocks",
        "an odd number of zeros",
        "no end block between tars",
        "only end blocks",
    }


def test_the_recount_skips_the_members_that_the_reader_skips():
    parts = (
        "a.jpg",
        ".a.jpg",
        "._a.jpg",
        "README",
        "__x__",
        "__x__.jpg",
        "____",
        "__MACOSX",
        "PaxHeader",
        "PaxHeaders.12",
        "x__y__",
    )
    names = [*parts, *("/".join((one, two)) for one in parts for two in parts)]
    names += ["/".join((one, two, three)) for one in parts for two in parts for three in ("a.jpg", ".b.jpg", "")]
    assert [name for name in names if _is_part(name) == tar.is_skipped(name)] == []


# ---- loose images -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def loose(tmp_path):
    for number, name in enumerate(("a.jpg", "b/c.PNG", "b-d.jpeg", "b/._c.png", "notes.txt", "z.v1.jpg")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10 + number))
    return tmp_path / "images"


def test_loose_images_verify_over_several_pages(tmp_path, loose, monkeypatch):
    monkeypatch.setattr("pipeline.source.PAGE", 3)
    report = verify(str(build(tmp_path / "out", loose)), source=True)
    assert report.faults == []
    assert (report.rows, report.shards, report.recounted) == (4, 2, 4)


def test_loose_images_that_are_dropped_replaced_removed_or_overlooked_are_named(tmp_path, loose):
    out = build(tmp_path / "out", loose, reader=lambda shard: read_rows(shard)[1:])
    assert verify(str(out)).ok
    (fault,) = verify(str(out), source=True).faults
    assert (fault.what, fault.detail) == ("missing_sample", "key 'a.jpg' has no row")

    out = build(tmp_path / "whole", loose)
    (loose / "new.jpg").write_bytes(b"new")
    (fault,) = verify(str(out), source=True).faults
    assert fault.what == "source_changed" and "'new.jpg' is not part of this run" in fault.detail
    (loose / "new.jpg").rename(loose / "a.jpg")
    (loose / "b" / "c.PNG").unlink()
    (fault,) = verify(str(out), source=True).faults
    assert fault.what == "source_changed" and "2 of 4 images were replaced or removed since, first 'a.jpg'" in fault.detail


def test_images_beside_those_that_a_glob_took_are_no_fault(tmp_path, loose):
    out = build(tmp_path / "out", loose / "*.jpg")
    report = verify(str(out), source=True)
    assert report.faults == []
    assert report.recounted == 2
