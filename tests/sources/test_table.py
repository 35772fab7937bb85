"""Show that every record is one row, whatever is wrong with it or its image, and no record shifts another."""

import os
import random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.stores import s3_bucket
from tests.support.tables import image_bytes, write_csv, write_files, write_jsonl, write_parquet
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources import text_lines
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))


def told(units) -> list[tuple]:
    return [(row["key"], row["size"], row["error"]) for row in rows_of(units)]


def payload(units) -> bytes:
    return b"".join(unit.payload.tobytes() for unit in units)


def content(units) -> list[tuple]:
    return [
        (u.number, u.last, u.next_offset, u.next_index, u.bytes_read, u.samples, u.payload.tobytes())
        for u in units
    ]


# ---- where the image is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"n": range(9), "photo": pa.array(map(image_bytes, range(9)), pa.binary())},
        {"n": range(9), "photo": pa.array(map(image_bytes, range(9)), pa.large_binary())},
    ],
    ids=["the only binary column", "large"],
)
def test_bytes_are_found_without_a_name_and_keyed_by_their_row(tmp_path, columns):
    table = pa.table(
        {name: column if isinstance(column, pa.Array) else list(column) for name, column in columns.items()}
    )
    units = units_of(write_parquet(tmp_path / "t.parquet", table), keep=("n",))
    assert told(units) == [(str(n), len(image_bytes(n)), None) for n in range(9)]
    assert payload(units) == b"".join(map(image_bytes, range(9)))
    assert all(row["offset"] is None and row["sidecars"] == [row["key"]] for row in rows_of(units))


def write(folder, form: str, rows: list[dict]):
    path = folder / f"t.{form}"
    if form == "parquet":
        return write_parquet(path, pa.Table.from_pylist(rows))
    return (
        write_jsonl(path, rows)
        if form in ("jsonl", "ndjson")
        else write_csv(path, rows, "\t" if form == "tsv" else ",")
    )


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl", "ndjson"])
def test_a_column_of_names_is_found_and_its_files_are_fetched_in_order(tmp_path, form):
    names = write_files(tmp_path / "images", 70)
    rows = [
        {"id": f"k{n}", "caption": f'a "photo",\n{n}', "file_name": name, "path": "no"}
        for n, name in enumerate(names)
    ]
    path = write(tmp_path, form, rows)
    units = units_of(path, rows=16, keep=("caption",))
    assert told(units) == [(name, len(image_bytes(n)), None) for n, name in enumerate(names)], (
        "the first column of such a name"
    )
    assert payload(units) == b"".join(map(image_bytes, range(70)))
    assert [row["sidecars"] for row in rows_of(units)] == [[f'a "photo",\n{n}'] for n in range(70)]
    assert told(units_of(path, key="id", rows=99))[7] == ("k7", len(image_bytes(7)), None)
    assert {row["error"] for row in rows_of(units_of(path, image_column="path"))} == {"not_found"}


def test_two_columns_of_bytes_are_told_apart_by_name(tmp_path):
    columns = {"mask": [b"m"] * 3, "image": [b"i"] * 3, "depth": [b"d"] * 3}
    path = write_parquet(tmp_path / "t.parquet", columns)
    assert payload(units_of(path)) == b"iii" and payload(units_of(path, image_column="mask")) == b"mmm"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"a": ["x"], "b": [1]},
            {},
            "has no column that says where its images are (it has a, b): name it with --image-column",
        ),
        (
            {"url": ["x"]},
            {"image_column": "img"},
            "has no column img, which --image-column names (it has url)",
        ),
        ({"url": ["x"]}, {"key": "id"}, "has no column id, which --key names (it has url)"),
        ({"url": ["x"]}, {"keep": ("capt",)}, "has no column capt, which --keep names (it has url)"),
        ({"url": [7]}, {}, "column url is int64, neither bytes nor URIs: give --image-column"),
    ],
)
def test_a_column_that_is_not_there_is_a_fault_that_names_those_that_are(tmp_path, columns, options, message):
    (unit,) = units_of(write_parquet(tmp_path / "t.parquet", columns), **options)
    assert message in unit.fault and len(unit.samples) == 0 and not unit.last


def test_kept_columns_are_text_as_it_is_and_json_otherwise(tmp_path):
    columns = {
        "image": [b"1"] * 2,
        "Text": ["ü", None],
        "n": [3, None],
        "list": [[1, 2], []],
        "ok": [True, False],
    }
    rows = rows_of(units_of(write_parquet(tmp_path / "t.parquet", columns), keep=("text", "n", "list", "ok")))
    assert [row["sidecars"] for row in rows] == [["ü", "3", "[1, 2]", "true"], [None, None, "[]", "false"]]


def test_half_a_surrogate_pair_in_a_json_reaches_the_row(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", ['{"url": "\\ud800.jpg", "t": "\\udfff"}'])
    (row,) = rows_of(units_of(path, keep=("t",)))
    assert (row["key"], row["error"], row["sidecars"]) == ("\\ud800.jpg", "refused_uri", ["\\udfff"])


# ---- units -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_reading_begun_at_any_unit_makes_the_same_units_and_counts_every_byte_once(tmp_path, form):
    rows = [{"url": name, "t": "x" * n} for n, name in enumerate(write_files(tmp_path / "p", 23))]
    path = write(tmp_path, form, rows)
    if form == "parquet":
        write_parquet(path, pa.Table.from_pylist(rows), rows_in_group=5)
    shard, settings = shard_of(path), ReadSettings(unit_rows=4, keep=("t",))
    units = content(list(read_units(shard, settings)))
    assert [len(unit[5]) for unit in units] == [4, 4, 4, 4, 4, 3] and [unit[3] for unit in units] == [
        4,
        8,
        12,
        16,
        20,
        23,
    ]
    assert sum(unit[4] for unit in units) == shard.size and min(unit[4] for unit in units) > 0
    for at, (number, _, position, index, *_) in enumerate(units[:-1], 1):
        assert content(list(read_units(shard, settings, number + 1, position, index))) == units[at:]


@pytest.mark.parametrize(("form", "text"), [("csv", ""), ("csv", "url\n"), ("jsonl", ""), ("jsonl", "\n \n")])
def test_a_table_without_records_is_one_empty_last_unit(tmp_path, form, text):
    (tmp_path / f"t.{form}").write_text(text)
    (unit,) = units_of(tmp_path / f"t.{form}")
    assert (unit.last, len(unit.samples), unit.fault, unit.bytes_read) == (True, 0, None, len(text))


# ---- records that are wrong --------------------------------------------------------------------------------


def test_a_malformed_line_of_json_is_a_row_and_shifts_nothing(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"abc")
    good = b'{"url": "a.jpg", "id": "good"}'
    lines = [
        good,
        b'{"url": "a.jpg"',
        b"[1]",
        b"",
        good,
        b'{"url": "\xff"}',
        b"null",
        b'{"url": null}',
        b"{}",
        b"[" * 99999,
        good,
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    assert told(units_of(tmp_path / "t.jsonl", key="id")) == [
        ("good", 3, None),
        ("1", None, "bad_record"),
        ("2", None, "bad_record"),
        ("good", 3, None),
        ("4", None, "bad_record"),
        ("5", None, "bad_record"),
        ("6", None, "missing_image"),
        ("7", None, "missing_image"),
        ("8", None, "bad_record"),
        ("good", 3, None),
    ]


@pytest.mark.parametrize(
    "bad",
    [b"a.jpg", b"a.jpg,1,2", b'"a.jpg', b'"a.jpg"x,1', b"\xff,1", b'"a.jpg,1', b'a.jpg,"', b'"\xff\n'],
    ids=[
        "few fields",
        "many fields",
        "open quote",
        "text behind a quote",
        "no UTF-8",
        "open quote 2",
        "open quote 3",
        "both",
    ],
)
@pytest.mark.parametrize("quoted_later", [False, True])
def test_a_malformed_line_of_csv_costs_itself_and_no_other(tmp_path, bad, quoted_later):
    """An open quote would swallow all lines up to the next quote: these rows must be there all the same."""
    (tmp_path / "a.jpg").write_bytes(b"abc")
    good = [b"a.jpg,%d" % n for n in range(8)]
    later = b'a.jpg,"two\nlines"' if quoted_later else b"a.jpg,9"
    lines = [b"url,id", *good[:4], bad.rstrip(b"\n"), *good[4:], later, b"", b"a.jpg,10"]
    (tmp_path / "t.csv").write_bytes(b"\r\n".join(lines) + b"\r\n")
    rows = told(units_of(tmp_path / "t.csv", key="id"))
    wanted = [("two\nlines" if quoted_later else "9", 3, None), ("10", 3, None)]
    assert (
        rows
        == [(str(n), 3, None) for n in range(4)]
        + [("4", None, "bad_record")]
        + [(str(n), 3, None) for n in range(4, 8)]
        + wanted
    )


def test_a_line_over_the_limit_is_a_bad_record_and_is_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "MAX_LINE", 1000)
    (tmp_path / "a.jpg").write_bytes(b"abc")
    lines = ['{"url": "a.jpg"}', '{"url": "%s"}' % ("x" * 5000), '{"url": "a.jpg"}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    units = units_of(tmp_path / "t.jsonl")
    assert told(units) == [("a.jpg", 3, None), ("1", None, "bad_record"), ("a.jpg", 3, None)]
    assert sum(unit.bytes_read for unit in units) == (tmp_path / "t.jsonl").stat().st_size


def test_an_empty_cell_is_a_missing_image_and_too_large_a_one_is_not_held(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", {"image": [b"12345", None, b"123456", b""]})
    units = units_of(path, max_bytes=5)
    assert told(units) == [
        ("0", 5, None),
        ("1", None, "missing_image"),
        ("2", 6, "too_many_bytes"),
        ("3", 0, None),
    ]
    assert payload(units) == b"12345"
    (tmp_path / "a.jpg").write_bytes(b"123456")
    path = write_csv(tmp_path / "t.csv", [{"url": "a.jpg", "id": 1}, {"url": "", "id": 2}])
    assert told(units_of(path, max_bytes=5)) == [("a.jpg", 6, "too_many_bytes"), ("1", None, "missing_image")]


# ---- damaged Parquet ---------------------------------------------------------------------------------------


def noisy(count: int) -> dict:
    generator = random.Random(0)
    return {"image": [generator.randbytes(3000) for _ in range(count)]}


def test_a_parquet_file_with_a_damaged_page_gives_the_rows_before_it_and_one_that_says_so(tmp_path):
    options = {
        "write_page_checksum": True,
        "data_page_size": 10_000,
        "use_dictionary": False,
        "write_batch_size": 4,
    }
    path = write_parquet(tmp_path / "t.parquet", noisy(40), rows_in_group=20, compression="NONE", **options)
    whole = told(units_of(path))
    data = bytearray(path.read_bytes())
    at = data.index(noisy(40)["image"][31]) + 100
    data[at] ^= 1
    path.write_bytes(data)
    shard, settings = shard_of(path), ReadSettings(unit_rows=4)
    units = content(list(read_units(shard, settings)))
    *good, rest = told(list(read_units(shard, settings)))
    assert rest == (None, None, "shard_truncated") and good == whole[: len(good)] and 24 <= len(good) <= 31
    assert sum(unit[4] for unit in units) == shard.size and units[-1][1]
    for place, (number, _, position, index, *_) in enumerate(units[:-1], 1):
        assert content(list(read_units(shard, settings, number + 1, position, index))) == units[place:]


@pytest.mark.parametrize("keep", [0, 3, 1000, -1, -200])
def test_a_cut_parquet_file_is_one_row_that_says_so(tmp_path, keep):
    path = write_parquet(tmp_path / "t.parquet", noisy(3))
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    units = units_of(path)
    assert told(units) == [(None, None, "shard_truncated")] and units[-1].last
    assert "row 0 of the table" in rows_of(units)[0]["error_detail"]


def test_a_store_that_fails_under_a_parquet_file_is_a_fault_and_never_a_cut(tmp_path):
    with s3_bucket() as bucket:
        path = write_parquet(tmp_path / "t.parquet", noisy(200), rows_in_group=50)
        bucket.objects["b/t.parquet"] = path.read_bytes()
        (shard,) = find_shards(["s3://b/t.parquet"]).shards
        read, left = bucket.cat_file, [1000]

        def failing(self, path, start=None, end=None, **options):
            left[0] -= 1
            if left[0] < 0:
                raise OSError("503 SlowDown")
            return read(self, path, start, end)

        bucket.cat_file = failing
        assert told(list(read_units(shard, ReadSettings(unit_rows=40)))) == told(units_of(path))
        left[0] = (1000 - left[0]) * 3 // 4  # of the readings that it takes
        *units, fault = read_units(shard, ReadSettings(unit_rows=40))
        assert (
            "503" in fault.fault
            and not fault.last
            and units
            and all(unit.samples["error"].null_count == 40 for unit in units)
        )


# ---- listing and memory ------------------------------------------------------------------------------------


def test_tables_are_found_by_name_and_mixtures_are_refused_until_the_format_is_said(tmp_path):
    for name in ("a.parquet", "b.CSV", "c.tsv", "d.jsonl", "e.ndjson", "f.txt"):
        (tmp_path / name).write_bytes(b"x")
    listing = find_shards([str(tmp_path)])
    assert [shard.uri.rpartition("/")[2] for shard in listing.shards] == [
        "a.parquet",
        "b.CSV",
        "c.tsv",
        "d.jsonl",
        "e.ndjson",
    ]
    assert {shard.kind for shard in listing.shards} == {"table"} and listing.ignored == {".txt": 1}
    (tmp_path / "g.tar").write_bytes(b"x")
    (tmp_path / "h.jpg").write_bytes(b"x")
    message = "holds both .tar shards and images: say which with --format tar or --format images"
    with pytest.raises(UserError, match=message):
        find_shards([str(tmp_path)])
    assert (
        len(find_shards([str(tmp_path)], format="table").shards) == 5
        and len(find_shards([str(tmp_path)], format="tar").shards) == 1
    )


@pytest.mark.slow
def test_a_parquet_file_is_read_in_a_small_part_of_its_size(tmp_path):
    path, generator = tmp_path / "t.parquet", random.Random(0)
    schema = pa.schema([("image", pa.binary()), ("unneeded", pa.binary())])
    with pq.ParquetWriter(
        path, schema, compression="NONE", write_batch_size=8
    ) as writer:  # or a page would hold 1,024 images
        writer.write_table(
            pa.table(
                {
                    "image": [generator.randbytes(100_000) for _ in range(1500)],
                    "unneeded": [bytes(1000)] * 1500,
                },
                schema,
            )
        )
    before = pa.total_allocated_bytes()
    rows = peak = 0
    for unit in units_iterated(path):
        rows += len(unit.samples)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert rows == 1500 and peak < 50 << 20, peak


def units_iterated(path):
    yield from read_units(
        shard_of(path), ReadSettings(unit_rows=64, image_column="image", unit_bytes=4 << 20)
    )
