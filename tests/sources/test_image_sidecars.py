"""Show what is found beside loose images: rows of metadata files, and files of the images' names."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.tables import write_csv, write_jsonl
from wordsworth.pipeline.sources import image_sidecars
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.training.survey import survey_shard


def fill(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def texts_of(*sources: Path, keep: tuple[str, ...], **settings) -> dict[str, list]:
    """Return the kept texts by the image's key."""
    found = {}
    for shard in find_shards(list(map(str, sources))).shards:
        for unit in read_units(shard, ReadSettings(unit_rows=3, keep=keep, **settings)):
            assert unit.fault is None, unit.fault
            found |= {row["key"]: row["sidecars"] for row in unit.samples.to_pylist()}
    return found


ROWS = [
    {"file_name": "0001.png", "text": "a red ball", "n": 1},
    {"file_name": "b/0002.png", "text": 'naïve, "quoted"', "n": None},
    {"file_name": "./0003.png", "text": "", "n": 3},
    {"file_name": "0001.png", "text": "again", "n": 9},
    {"file_name": "gone.png", "text": "no such image", "n": 4},
]


def write_metadata(folder: Path, form: str) -> None:
    if form == "csv":
        write_csv(folder / "metadata.csv", ROWS)
    elif form == "jsonl":
        write_jsonl(folder / "metadata.jsonl", ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "metadata.parquet")


@pytest.mark.parametrize("whole_bytes", [1 << 20, 0], ids=["held", "read for each page"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_columns_of_a_metadata_file_are_kept_by_the_names_of_images(tmp_path, form, whole_bytes, monkeypatch):
    monkeypatch.setattr(image_sidecars, "WHOLE_BYTES", whole_bytes)
    folder = fill(
        tmp_path / "in", {name: b"x" for name in ("0001.png", "0003.png", "0004.png", "b/0002.png")}
    )
    write_metadata(folder, form)
    assert texts_of(folder, keep=("text", "n")) == {
        "0001.png": ["a red ball", "1"],
        "0003.png": ["" if form != "csv" else None, "3"],
        "0004.png": [None, None],
        "b/0002.png": ['naïve, "quoted"', None],
    }


def test_the_nearest_metadata_file_counts_and_fields_may_be_nested(tmp_path):
    folder = fill(tmp_path / "in", {name: b"x" for name in ("a.jpg", "t/a.jpg", "t/u/b.jpg", "v/c.jpg")})
    (folder / "metadata.csv").write_text("file_name;Label\na.jpg;top\nt/a.jpg;not read\nv/c.jpg;below\n")
    write_jsonl(
        folder / "t" / "metadata.jsonl",
        [{"file_name": "a.jpg", "label": "near"}, {"file_name": "u/b.jpg", "label": "deep", "o": {"id": 7}}],
    )
    assert texts_of(folder, keep=("label", "o.id")) == {
        "a.jpg": ["top", None],
        "t/a.jpg": ["near", None],
        "t/u/b.jpg": ["deep", "7"],
        "v/c.jpg": ["below", None],
    }


def test_a_text_of_the_images_name_is_its_sidecar(tmp_path):
    folder = fill(
        tmp_path / "in",
        {
            "a.jpg": b"x",
            "a.txt": "a caption",
            "a.json": json.dumps({"id": 1}),
            "b.v1.jpg": b"x",
            "b.v1.txt": "of v1",
            "b.txt": "of another",
            "c/IMG.JPG": b"x",
            "c/IMG.TXT": b"caf\xe9",
            "d.e/f.jpg": b"x",
            "d.txt": "of a folder",
        },
    )
    assert texts_of(folder, keep=("txt", "json")) == {
        "a.jpg": ["a caption", '{"id": 1}'],
        "b.v1.jpg": ["of v1", None],
        "c/IMG.JPG": ["caf\\xe9", None],
        "d.e/f.jpg": [None, None],
    }


def test_a_field_that_the_metadata_does_not_have_is_looked_for_beside_the_image(tmp_path):
    folder = fill(tmp_path / "in", {"a.jpg": b"x", "a.txt": "beside", "b.jpg": b"x"})
    (folder / "metadata.csv").write_text("file_name,text\na.jpg,in the table\n")
    assert texts_of(folder, keep=("text", "txt")) == {
        "a.jpg": ["in the table", "beside"],
        "b.jpg": [None, None],
    }


def test_images_that_are_named_one_by_one_have_the_same_texts(tmp_path):
    folder = fill(tmp_path / "in", {"t/a.jpg": b"x", "t/a.txt": "one", "u/b.jpg": b"x", "u/b.txt": "two"})
    (folder / "metadata.csv").write_text("file_name,label\nt/a.jpg,above\n")
    (folder / "t" / "metadata.csv").write_text("file_name,label\na.jpg,beside\n")
    named = texts_of(folder / "t" / "a.jpg", folder / "u" / "b.jpg", keep=("label", "txt"))
    assert named == {"a.jpg": ["beside", "one"], "b.jpg": [None, "two"]}
    assert texts_of(folder / "t" / "a.jpg", keep=("label", "txt")) == {"a.jpg": ["beside", "one"]}


def test_a_metadata_file_about_something_else_says_nothing(tmp_path):
    folder = fill(
        tmp_path / "in", {"a.jpg": b"x", "metadata.csv": "camera,label\nX,1\n", "a.label": "beside"}
    )
    assert texts_of(folder, keep=("label",)) == {"a.jpg": ["beside"]}
    (folder / "metadata.csv").write_bytes(b"")
    assert texts_of(folder, keep=("label",)) == {"a.jpg": ["beside"]}


def test_a_bad_line_costs_its_image_its_texts_and_a_damaged_file_is_named(tmp_path):
    folder = fill(tmp_path / "in", {"a.jpg": b"x", "b.jpg": b"x"})
    lines = ['{"file_name": "a.jpg", "label": broken', '{"file_name": "b.jpg", "label": "dog"}']
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert texts_of(folder, keep=("label",)) == {"a.jpg": [None], "b.jpg": ["dog"]}
    (folder / "metadata.jsonl").unlink()
    write_metadata(folder, "parquet")
    data = (folder / "metadata.parquet").read_bytes()
    (folder / "metadata.parquet").write_bytes(data[:-9])
    (shard,) = find_shards([str(folder)]).shards
    (unit,) = read_units(shard, ReadSettings(unit_rows=3, keep=("label",)))
    assert "metadata.parquet is damaged" in unit.fault
    assert len(next(read_units(shard, ReadSettings(unit_rows=3))).samples) == 2, (
        "without --keep nobody reads it"
    )


def test_nothing_is_asked_for_that_nobody_keeps(tmp_path, monkeypatch):
    folder = fill(
        tmp_path / "in", {"a.jpg": b"x", "a.txt": "one", "metadata.csv": "file_name,label\na.jpg,x\n"}
    )
    monkeypatch.setattr(image_sidecars, "object_bytes", None)
    monkeypatch.setattr(image_sidecars, "object_info", None)
    assert texts_of(folder, keep=()) == {"a.jpg": []}


def test_a_metadata_file_is_read_once_for_its_pages(tmp_path, monkeypatch):
    monkeypatch.setattr("wordsworth.pipeline.sources.finder.PAGE", 5)
    folder = fill(tmp_path / "in", {f"t/{number:02d}.jpg": b"x" for number in range(20)})
    write_csv(folder / "metadata.csv", [{"file_name": f"t/{n:02d}.jpg", "n": n} for n in range(20)])
    read = []
    whole = image_sidecars.csv_records
    monkeypatch.setattr(image_sidecars, "csv_records", lambda *args: read.append(1) or whole(*args))
    assert texts_of(folder, keep=("n",)) == {f"t/{n:02d}.jpg": [str(n)] for n in range(20)}
    assert len(read) == 1


def test_training_finds_the_classes(tmp_path):
    folder = fill(tmp_path / "in", {"a.jpg": b"x", "b.jpg": b"x", "a.cls": "cat", "b.cls": "dog"})
    (folder / "metadata.csv").write_text("file_name,label\na.jpg,bird\nb.jpg,fish\n")
    (shard,) = find_shards([str(folder)]).shards
    for where, classes in (("cls", {"cat": 1, "dog": 1}), ("label", {"bird": 1, "fish": 1})):
        reading = ReadSettings(unit_rows=3, keep=(where,))
        assert survey_shard(shard, reading, where) == (2, classes)
