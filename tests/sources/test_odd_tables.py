"""Show what becomes of tables that nobody means: a column twice, numbers for bytes, fields left out."""

import json

import pyarrow as pa
import pytest

from tests.support.runs import build, codes, read_rows
from tests.support.samples import rows_of, units_of
from tests.support.tables import write_files, write_parquet
from wordsworth.pipeline.verification.verifier import verify


@pytest.fixture
def folder(tmp_path):
    write_files(tmp_path / "in", 3)
    return tmp_path / "in"


def lines(folder, *records):
    path = folder / "t.jsonl"
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in records))
    return path


def told(path, **options) -> list[tuple]:
    return [(row["key"], row["error"]) for row in rows_of(units_of(path, **options))]


def assert_recounted(path, num_rows: int) -> None:
    report = verify(str(build(path.parent.parent / "out", path)), source=True)
    assert report.ok and report.recounted == num_rows, report.findings


@pytest.mark.parametrize("asked", [{}, {"key": "n"}, {"keep": ("n",)}, {"keep": ("N",)}])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_column_that_comes_twice_is_refused_where_it_is_asked_for(folder, form, asked):
    path = folder / f"t.{form}"
    names = ["n", "n", "url"] if asked else ["url", "n", "url"]
    if form == "csv":
        path.write_text(f"{','.join(names)}\n000.jpg,1,000.jpg\n")
    else:
        write_parquet(path, pa.Table.from_arrays([pa.array(["000.jpg"])] * 3, names=names))
    (unit,) = units_of(path, **asked)
    repeated = "n" if asked else "url"
    assert unit.fault == f"unfit_table: {path} has 2 columns {repeated}: give each a name of its own"
    if asked:
        assert told(path) == [("000.jpg", None)], "the other columns are no hindrance"


def test_a_run_that_took_one_of_two_columns_is_found(folder, monkeypatch):
    path = folder / "t.csv"
    path.write_text("url,url\n000.jpg,001.jpg\n")
    monkeypatch.setattr("wordsworth.pipeline.sources.table.refuse_repeated", lambda *rest: None)
    report = verify(str(build(folder.parent / "out", path)), source=True)
    assert codes(report) == {"unreadable_source"}


@pytest.mark.parametrize(
    "cell",
    [[255, 216, 255, 224], [[0, 1.5], [2, 3]], {"bytes": [255, 216]}, [True], [7]],
    ids=["bytes", "pixels", "a struct", "a bool", "one number"],
)
def test_a_list_of_numbers_is_one_row_that_says_so(folder, cell):
    path = lines(folder, {"image": cell}, {"image": "000.jpg"}, {"image": ["001.jpg", 5]})
    rows = rows_of(units_of(path))
    assert [(row["key"], row["error"]) for row in rows] == [
        ("0", "bad_record"),
        ("000.jpg", None),
        ("2#0", None),
        ("2#1", "not_found"),
    ]
    assert rows[0]["error_detail"] == "a list of numbers is no image: write bytes as base64"
    assert_recounted(path, 4)


def test_a_reader_that_takes_each_number_for_an_image_is_caught(folder):
    path = lines(folder, {"image": [255, 216]}, {"image": "000.jpg"})

    def one_by_one(shard):
        first, second = read_rows(shard)
        return [{**first, "key": f"0#{n}", "error": "not_found"} for n in range(2)] + [second]

    report = verify(str(build(folder.parent / "out", path, reader=one_by_one)), source=True)
    assert "wrong_key" in codes(report) or "extra_row" in codes(report)


def test_an_object_without_an_image_names_its_fields(folder):
    images = [{"file_name": f"00{number}.jpg", "id": number} for number in range(3)]
    path = lines(folder, {"images": images})
    details = [row["error_detail"] for row in rows_of(units_of(path))]
    detail = "holds neither bytes nor path, url, uri but file_name, id: name a field, as COLUMN.FIELD"
    assert details == [f"column images {detail}"] * 3
    found = told(path, image_column="images.file_name", key="images.id")
    assert found == [("0#0", None), ("1#1", None), ("2#2", None)]


def test_the_first_records_of_json_may_lack_the_columns_that_are_asked_for(folder):
    path = lines(folder, "bad", {"x": 1}, "bad", {"x": 2, "url": "000.jpg"}, {"url": "001.jpg", "id": 9})
    first = [("0", "bad_record"), ("1", "missing_image"), ("2", "bad_record")]
    by_url = [*first, ("000.jpg", None), ("001.jpg", None)]
    assert told(path) == told(path, image_column="url") == by_url
    assert told(path, key="id") == [*first, ("3", None), ("9", None)]
    assert_recounted(path, 5)
    array = folder / "t.json"
    array.write_text(json.dumps([{"x": 1}, {"url": "002.jpg"}]))
    assert told(array) == [("0", "missing_image"), ("002.jpg", None)]
    (unit,) = units_of(path, image_column="uri")
    assert "has no column uri, which --image-column names (it has x)" in unit.fault
    many = lines(folder, *[{"x": 1}] * 101, {"url": "000.jpg"})
    (unit,) = units_of(many)
    assert "has no column that says where its images are (it has x)" in unit.fault


def test_a_reader_that_begins_with_the_first_record_that_has_an_image_is_caught(folder):
    path = lines(folder, {"x": 1}, {"url": "000.jpg"})
    out = build(folder.parent / "out", path, reader=lambda shard: read_rows(shard)[1:])
    assert codes(verify(str(out), source=True)) == {"missing_sample"}
