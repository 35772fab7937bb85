"""Show that tables of text are read as people write them: delimiters, byte order marks, UTF-16."""

import codecs

import pytest

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.tables import image_bytes, write_csv, write_files, write_jsonl
from wordsworth.pipeline.sources import text_lines
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
