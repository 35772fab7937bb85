"""Show that tables of text are read as people write them: delimiters, UTF-16, compression, JSON arrays."""

import codecs
import gzip
import random

import pytest
import zstandard

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.tables import image_bytes, write_csv, write_files, write_json, write_jsonl
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources import json_array, text_lines
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings

ENCODINGS = {
    "utf-8": b"",
    "utf-8 marked": codecs.BOM_UTF8,
    "utf-16-le": b"",
    "utf-16-be": b"",
    "utf-16-le marked": codecs.BOM_UTF16_LE,
    "utf-16-be marked": codecs.BOM_UTF16_BE,
}  # encoding: byte order mark


SQUEEZE = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress}


def told(units) -> list[tuple]:
    return [(row["key"], row["size"], row["error"]) for row in rows_of(units)]


def encode_again(path, name: str) -> None:
    text = path.read_bytes().decode()
    path.write_bytes(ENCODINGS[name] + text.encode(name.split()[0]))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_the_delimiter_is_the_one_whose_header_names_the_images(tmp_path, delimiter, ending):
    names = write_files(tmp_path / "images", 9)
    rows = [{"id": n, "a,b;c": "1;2,3|4\t5", "url": name} for n, name in enumerate(names)]
    path = write_csv(tmp_path / f"t.{ending}", rows, delimiter)
    units = units_of(path, key="id", keep=("a,b;c",))
    assert told(units) == [(str(n), len(image_bytes(n)), None) for n in range(9)]
    assert {row["sidecars"][0] for row in rows_of(units)} == {"1;2,3|4\t5"}
    assert told(units_of(path, image_column="url")) == told(units_of(path))


@pytest.mark.parametrize(
    ("header", "column"), [("url,a;b;c", "url"), ("a,b;url;c,d", "url"), ("a|x,y;z", "x,y;z"), ("url", "url")]
)
def test_a_header_that_holds_several_delimiters_is_cut_by_the_one_that_helps(tmp_path, header, column):
    (tmp_path / "a.jpg").write_bytes(b"abc")
    delimiter = {"url,a;b;c": ",", "a,b;url;c,d": ";", "a|x,y;z": "|", "url": ","}[header]
    cells = ["a.jpg" if name == column else "x" for name in header.split(delimiter)]
    (tmp_path / "t.csv").write_text(f"{header}\n{delimiter.join(cells)}\n")
    assert told(units_of(tmp_path / "t.csv", image_column=column)) == [("a.jpg", 3, None)]


def test_a_header_without_images_is_shown_by_the_delimiter_that_gives_most_columns(tmp_path):
    (tmp_path / "t.csv").write_text("where, now;b;c\na.jpg;1;2\n")
    (unit,) = units_of(tmp_path / "t.csv")
    assert "(it has where, now, b, c): name it with --image-column" in unit.fault


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_text_is_utf_8_or_utf_16_as_its_first_bytes_say(tmp_path, encoding, form):
    names = write_files(tmp_path / "images", 9)
    rows = [{"id": n, "url": name, "t": "\u0a0a\u010aä\U0001f600"} for n, name in enumerate(names)]
    path = tmp_path / f"t.{form}"
    write_csv(path, rows, ";") if form == "csv" else write_jsonl(path, rows)
    encode_again(path, encoding)
    shard = shard_of(path)
    units = list(read_units(shard, ReadSettings(unit_rows=4, key="id", keep=("t",))))
    assert told(units) == [(str(n), len(image_bytes(n)), None) for n in range(9)]
    assert {row["sidecars"][0] for row in rows_of(units)} == {"\u0a0a\u010aä\U0001f600"}
    assert sum(unit.bytes_read for unit in units) == shard.size


@pytest.mark.parametrize("encoding", ["utf-16-le marked", "utf-16-be"])
def test_a_line_of_utf_16_that_is_no_text_costs_itself_alone(tmp_path, encoding, monkeypatch):
    monkeypatch.setattr(text_lines, "MAX_LINE", 200)
    monkeypatch.setattr(text_lines, "_PIECE", 16)
    (tmp_path / "a.jpg").write_bytes(b"abc")
    code = encoding.split()[0]
    half = "\ud800\n".encode(code, "surrogatepass")
    lines = ["url,id\n".encode(code), "a.jpg,1\n".encode(code), half, "a.jpg,2\n".encode(code)]
    lines += [f"{'ä' * 100},\n".encode(code), "\n".encode(code), "a.jpg,3\n".encode(code), b"a"]
    (tmp_path / "t.csv").write_bytes(ENCODINGS[encoding] + b"".join(lines))
    units = units_of(tmp_path / "t.csv", key="id")
    assert told(units) == [
        ("1", 3, None),
        ("1", None, "bad_record"),
        ("2", 3, None),
        ("3", None, "bad_record"),
        ("3", 3, None),
        ("5", None, "bad_record"),
    ]
    details = [row["error_detail"] for row in rows_of(units) if row["error"]]
    assert details[0].startswith("not UTF-16: ") and "more than 200 bytes" in details[1]


# ---- compressed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", SQUEEZE)
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "ndjson", "json"])
def test_a_compressed_table_is_read_as_what_it_holds(tmp_path, form, packing):
    names = write_files(tmp_path / "images", 23)
    rows = [{"url": name, "t": "x" * n} for n, name in enumerate(names)]
    plain = tmp_path / f"t.{form}"
    if form == "json":
        write_json(plain, rows)
    else:
        write_csv(plain, rows, "\t" if form == "tsv" else ",") if "sv" in form else write_jsonl(plain, rows)
    packed = tmp_path / f"t.{form}.{packing}"
    packed.write_bytes(SQUEEZE[packing](plain.read_bytes()))
    shard, settings = shard_of(packed), ReadSettings(unit_rows=4, keep=("t",))
    units = list(read_units(shard, settings))
    assert rows_of(units) == rows_of(units_of(plain, keep=("t",))) and len(rows_of(units)) == 23
    assert sum(unit.bytes_read for unit in units) == shard.size
    for at, unit in enumerate(units[:-1], 1):
        again = list(read_units(shard, settings, unit.number + 1, unit.next_offset, unit.next_index))
        assert rows_of(again) == rows_of(units[at:])
        assert [u.bytes_read for u in again] == [u.bytes_read for u in units[at:]]


@pytest.mark.parametrize("form", ["csv.gz", "jsonl.zst", "json.gz", "json"])
def test_a_table_of_text_that_is_cut_gives_the_rows_before_and_one_that_says_so(tmp_path, form):
    name, _, packing = form.partition(".")
    generator = random.Random(0)
    rows = [{"url": "a.jpg", "t": generator.randbytes(300).hex()} for _ in range(90)]
    path = tmp_path / f"t.{form}"
    writer = {"csv": write_csv, "jsonl": write_jsonl, "json": write_json}[name]
    writer(path, rows)
    (tmp_path / "a.jpg").write_bytes(b"abc")
    data = path.read_bytes()
    if packing:
        pieces = [data[at : at + 5000] for at in range(0, len(data), 5000)]
        data = b"".join(map(SQUEEZE[packing], pieces))  # members and frames may stand end to end
    path.write_bytes(data[: len(data) * 2 // 3])
    shard = shard_of(path)
    units = list(read_units(shard, ReadSettings(unit_rows=4)))
    *good, rest = told(units)
    assert rest == (None, None, "shard_truncated") and set(good) == {("a.jpg", 3, None)}
    assert 30 <= len(good) <= 70 and sum(unit.bytes_read for unit in units) == shard.size
    assert f"(row {len(good)} of the table)" in rows_of(units)[-1]["error_detail"]
    again = list(read_units(shard, ReadSettings(unit_rows=4), units[-2].number + 1, *place_behind(units[-2])))
    assert rows_of(again) == rows_of(units[-1:]) and again[0].bytes_read == units[-1].bytes_read


def place_behind(unit) -> tuple[int, int]:
    return unit.next_offset, unit.next_index


# ---- JSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_array_of_objects_is_read_element_by_element(tmp_path, monkeypatch, indent, chunk, encoding):
    monkeypatch.setattr(json_array, "CHUNK", chunk)
    (tmp_path / "a.jpg").write_bytes(b"abc")
    rows = [
        {"url": "a.jpg", "id": 1, "t": 'ä]},{["\\'},
        7,
        {"url": None},
        ["a.jpg"],
        {"id": {"x": [1]}, "url": "a.jpg"},
    ]
    path = write_json(tmp_path / "t.json", rows, indent=indent, ensure_ascii=False)
    encode_again(path, encoding)
    units = units_of(path, key="id", keep=("t",))
    assert told(units) == [
        ("1", 3, None),
        ("1", None, "bad_record"),
        ("2", None, "missing_image"),
        ("3", None, "bad_record"),
        ('{"x": [1]}', 3, None),
    ]
    assert rows_of(units)[0]["sidecars"] == ['ä]},{["\\']
    assert sum(unit.bytes_read for unit in units) == path.stat().st_size


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("[]", []),
        (" [ ] ", []),
        ("", []),
        ('[{"url": "a.jpg"}', [None]),
        ('[{"url": "a.jpg"}, ', ["a.jpg", None]),
        ('[{"url": "a.jpg"},]', ["a.jpg", None]),
        ('[{"url": "a.jpg"} {"url": "a.jpg"}]', [None]),
        ('[{"url": "a.jpg"}] x', ["a.jpg", None]),
        ('[{"url": "a.jpg"}, {"url": }, {"url": "a.jpg"}]', ["a.jpg", None]),
        ('{"url": "a.jpg"}\n{"url": "a.jpg"}\n', ["a.jpg", "a.jpg"]),
    ],
)
def test_a_json_file_gives_what_is_whole_and_one_row_for_a_lost_rest(tmp_path, text, keys):
    (tmp_path / "a.jpg").write_bytes(b"abc")
    (tmp_path / "t.json").write_text(text)
    assert [row["key"] for row in rows_of(units_of(tmp_path / "t.json"))] == keys


def test_a_json_object_is_refused_with_what_to_run_instead(tmp_path):
    write_json(tmp_path / "t.json", {"images": [{"file_name": "a.jpg"}]}, indent=1)
    (unit,) = units_of(tmp_path / "t.json")
    assert "neither an array of objects nor an object a line: jq -c '.images[]' makes" in unit.fault


def test_bytes_that_are_no_text_spoil_their_element_alone(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"abc")
    good = b'{"url": "a.jpg"}'
    (tmp_path / "t.json").write_bytes(b'[%s, {"url": "\xff"}, %s]' % (good, good))
    assert [row["error"] for row in rows_of(units_of(tmp_path / "t.json"))] == [None, "bad_record", None]


def test_json_files_are_tables_where_they_are_named_and_not_in_a_folder(tmp_path):
    write_json(tmp_path / "dataset_infos.json", {})
    write_json(tmp_path / "train.json", [{"url": "a.jpg"}])
    with pytest.raises(UserError, match=r"it holds 2 \.json"):
        find_shards([str(tmp_path)])
    write_csv(tmp_path / "t.csv", [{"url": "a.jpg"}])
    assert [shard.uri[-5:] for shard in find_shards([str(tmp_path)]).shards] == ["t.csv"]
    assert len(find_shards([str(tmp_path / "*.json")]).shards) == 2
    assert len(find_shards([str(tmp_path / "train.json")]).shards) == 1
