"""A photographer's disk: every line of the table in docs/sources.md is what happens."""

import re
from pathlib import Path

import pytest

from tests.images.test_decode import refusal
from tests.support.photographer import LINES, expected, make_disk
from tests.support.runs import KEYS, build, codes, write_tar
from tests.support.samples import encoded, photo
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources import finder
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS, kind_of
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.verification.verifier import verify

DOCS = Path(__file__).parents[2] / "docs" / "sources.md"


def outcome(shards) -> dict[str, str | None]:
    """Return the error of each image by its key: the reader's, else the decoder's."""
    found = {}
    for shard in shards:
        for unit in read_units(shard, ReadSettings(unit_rows=7)):
            data = unit.payload.tobytes()
            for row in unit.samples.to_pylist():
                size = 0 if row["error"] else row["size"]
                found[row["key"]] = row["error"] or refusal(data[:size])
                data = data[size:]
            assert not data
    return found


def assert_as_expected(root: Path, lines) -> list[str]:
    """Compare a disk with what its lines say, and return the notes."""
    disk = make_disk(root, lines)
    listing = find_shards([str(disk)])
    want = expected(lines)
    keys = [member["key"] for shard in listing.shards for member in shard.members]
    assert sorted(keys) == want.keys
    assert {key: code for key, code in outcome(listing.shards).items() if code} == want.codes
    passed = listing.passed_over
    assert passed.ignored == want.ignored and passed.skipped == want.skipped
    names = [name.replace(f"{disk}/", "").replace(str(disk), ".") for name in passed.left_out]
    assert sorted(name.replace(f"{root}/", "") for name in names) == want.left_out
    return list(passed.notes())


@pytest.mark.parametrize("cell", LINES)
def test_each_line_of_the_table_is_what_happens(tmp_path, cell):
    notes = assert_as_expected(tmp_path, [LINES[cell]])
    note = LINES[cell].note
    if note is None:
        assert notes == []
    else:
        assert any(note in said for said in notes), notes
    assert all("\n" not in said for said in notes)


def test_the_table_in_the_docs_has_these_lines():
    section = DOCS.read_text().partition("## A photographer's disk\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (.*?) \| ", section, re.MULTILINE)
    assert cells[0] == "what you have" and cells[1:] == list(LINES)


def test_the_whole_disk_is_read_and_recounted_and_a_reader_that_knows_fewer_names_is_caught(
    tmp_path, monkeypatch
):
    notes = assert_as_expected(tmp_path, LINES.values())
    assert notes[0].startswith("ignored 11 files of other kinds: 2 .xmp"), "what shows nothing"
    disk = tmp_path / "disk"
    whole = verify(str(build(tmp_path / "whole", disk, image_keys=IMAGE_KEYS)), source=True)
    keys = expected(LINES.values()).keys
    assert whole.findings == [] and whole.rows == whole.recounted == len(keys)

    monkeypatch.setattr(finder, "kind_of", lambda base, image_keys, format: kind_of(base, KEYS, format))
    lossy = verify(str(build(tmp_path / "lossy", disk, image_keys=IMAGE_KEYS)), source=True)
    missed = [key for key in keys if key.rpartition(".")[2].lower() not in KEYS]
    assert codes(lossy) == {"source_changed"}
    assert f"({len(missed)} such here)" in lossy.findings[0].detail


def test_a_disk_of_raw_files_alone_says_what_to_run(tmp_path):
    raw = LINES["raw files: `.dng` `.cr2` `.cr3` `.nef` `.arw` `.raf` `.orf` `.rw2` `.gpr` and others"]
    disk = make_disk(tmp_path, [raw])
    (disk / "own.jpg").unlink()
    with pytest.raises(UserError, match=r"10 raw files of cameras \(.*exiftool -b -PreviewImage"):
        find_shards([str(disk)])


def test_a_tar_of_a_phone_and_a_scanner_has_a_row_for_each_and_names_a_raw_file_without_a_jpeg(tmp_path):
    kinds = {"IMG_1.HEIC": "HEIF", "a.jfif": "JPEG", "b.jp2": "JPEG2000"}
    members = [(name, encoded(photo(0), kind)) for name, kind in kinds.items()]
    members += [
        ("c.jxl", b"\xff\x0a" + bytes(9)),
        ("d.CR2", b"raw"),
        ("e.CR2", b"raw"),
        ("e.JPG", members[1][1]),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    assert outcome(find_shards([str(path)]).shards) == {
        "IMG_1": None,
        "a": None,
        "b": None,
        "c": "unsupported_format",
        "d": "missing_image",
        "e": None,
    }
