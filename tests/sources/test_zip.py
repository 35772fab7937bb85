"""Show that zip archives are shards: each image a row, each fault a code, the same units at every reading."""

import io
import os
import struct
import subprocess
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.zips import link, make_zip, picture, with_entry_bytes, write_zip
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.lint import lint
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.training.survey import survey_shard
from wordsworth.pipeline.verification.recount_tables import TableFile
from wordsworth.pipeline.verification.recount_zips import Rule
from wordsworth.pipeline.verification.recount_zips import zip_samples as recounted

METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}
IMAGE_KEYS = ["jpg", "png"]


def images(count: int) -> list[tuple[str, bytes]]:
    return [(f"d/{number:03d}.jpg", picture(number)) for number in range(count)]


def read(data: bytes, folder: Path, **settings) -> list[dict]:
    """Return the rows of an archive, after the recount gave the same."""
    path = folder / "a.zip"
    path.write_bytes(data)
    rows = rows_of(units_of(path, image_keys=tuple(IMAGE_KEYS), **settings))
    too_large = [row["key"] for row in rows if row["error"] == "too_many_bytes"]
    with open(path, "rb") as file:
        rule = Rule(IMAGE_KEYS, too_large, settings.get("include_hidden", False))
        again = recounted(TableFile(file, len(data)), len(data), rule)
    assert len(again) == len(rows)
    for row, sample in zip(rows, again, strict=True):
        assert (row["key"], row["error"] if row["key"] not in too_large else None) == (
            sample.key,
            sample.error,
        )
        if row["error"] is None:
            assert (row["offset"], row["size"]) == (sample.offset, sample.size)
    return rows


def codes(rows: list[dict]) -> list[tuple]:
    return [(row["key"], row["error"]) for row in rows]


# ---- what is there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_image_of_an_archive_is_a_row_with_its_own_bytes(tmp_path, method):
    data = make_zip(images(9), METHODS[method])
    rows = read(data, tmp_path)
    assert codes(rows) == [(name, None) for name, _ in images(9)]
    units = units_of(tmp_path / "a.zip")
    assert b"".join(unit.payload.tobytes() for unit in units) == b"".join(image for _, image in images(9))
    assert sum(unit.bytes_read for unit in units) == len(data)
    for row, (_, image) in zip(rows, images(9), strict=True):
        if method == "stored":
            assert data[row["offset"] : row["offset"] + row["size"]] == image
        else:
            assert row["offset"] is None and row["size"] == len(image)


@pytest.mark.parametrize("method", METHODS)
def test_a_reading_begun_at_any_unit_makes_the_same_units(tmp_path, method):
    members = [("a.txt", b"first"), *images(11), ("z/", b""), ("z/b.txt", b"last")]
    path = write_zip(tmp_path / "a.zip", members, METHODS[method])
    shard = shard_of(path)
    settings = ReadSettings(unit_rows=3, keep=("txt",))

    def content(*begin: int) -> list[tuple]:
        found = []
        for unit in read_units(shard, settings, *begin):
            rows = unit.samples.to_pylist()
            place = (unit.number, unit.last, unit.next_offset, unit.next_index, unit.bytes_read)
            found.append((*place, rows, unit.payload.tobytes(), unit.skipped))
        return found

    units = content()
    assert [len(unit[5]) for unit in units] == [3, 3, 3, 2]
    for place, (number, _, position, index, *_) in enumerate(units[:-1], 1):
        assert content(number + 1, position, index) == units[place:]


def test_members_that_are_no_images_are_counted_by_kind(tmp_path):
    buffer = io.BytesIO(make_zip([*images(1), ("README", b"x"), ("d/", b""), ("__MACOSX/d/._000.jpg", b"x")]))
    with zipfile.ZipFile(buffer, "a") as archive:
        for name in (".hidden.jpg", "more.tar", "more.zip", "a.txt", "d/.git/a.jpg"):
            archive.writestr(name, b"x")
        archive.writestr(link("link.jpg"), b"d/000.jpg")
    assert codes(read(buffer.getvalue(), tmp_path)) == [("d/000.jpg", None)]
    hidden = read(buffer.getvalue(), tmp_path, include_hidden=True)
    assert [row["key"] for row in hidden] == [
        "d/000.jpg",
        "__MACOSX/d/._000.jpg",
        ".hidden.jpg",
        "d/.git/a.jpg",
    ]
    (unit,) = units_of(tmp_path / "a.zip")
    assert unit.skipped == ('{"other": 2, "directory": 1, "macosx": 1, "hidden": 2, "archive": 2, "link": 1}')


def test_a_text_beside_an_image_is_its_sidecar_wherever_it_stands(tmp_path):
    members = [("a.txt", b"first"), *images(2), ("e/000.txt", b"another folder"), ("d/000.TXT", b"one")]
    members += [("d/000.v1.txt", b"another image"), ("d/001.json", b"{}"), ("d/000.JSON", "ü".encode())]
    path = write_zip(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED)
    rows = rows_of(units_of(path, keep=("txt", "json")))
    assert [row["sidecars"] for row in rows] == [["one", "ü"], [None, "{}"]]
    assert [unit.skipped for unit in units_of(path, keep=("txt", "json"))] == ["{}"]


def test_names_are_those_that_zipfile_gives(tmp_path):
    names = [
        "Grün/图像.jpg",
        "e\u0301.jpg",
        "é.jpg",
        "a//b.jpg",
        "/c.jpg",
        "../d.jpg",
        "e\\f.jpg",
        " .jpg",
        "%2F?.jpg",
    ]
    assert codes(read(make_zip([(name, b"x") for name in names]), tmp_path)) == [
        (name, None) for name in names
    ]


def test_names_without_a_word_about_their_letters_are_cp437_unless_a_field_has_them_in_utf_8(tmp_path):
    data = make_zip([("a12.jpg", b"x"), ("b12.jpg", b"y"), ("c12.jpg", b"z")])
    data = data.replace(b"a12", b"a\x81\xe1").replace(b"b12", b"b\x81\xe1")
    field = struct.pack("<BL", 1, zlib.crc32(b"b\x81\xe1.jpg")) + "bü.jpg".encode()
    field = struct.pack("<HH", 0x7075, len(field)) + field
    data = with_entry_bytes(data, b"b\x81\xe1.jpg", 30, struct.pack("<H", len(field)))
    place = data.rindex(b"b\x81\xe1.jpg") + 7
    data = data[:place] + field + data[place:]
    length = struct.unpack_from("<L", data, len(data) - 10)[0] + len(field)
    data = data[:-10] + struct.pack("<L", length) + data[-6:]
    assert [row["key"] for row in read(data, tmp_path)] == ["aüß.jpg", "bü.jpg", "c12.jpg"]


def test_a_name_that_is_called_utf_8_and_is_none_has_escapes_and_costs_no_other(tmp_path):
    data = make_zip([("ü.jpg", b"x"), *images(2)]).replace("ü".encode(), b"\xff\xfe")
    assert [row["key"] for row in read(data, tmp_path)] == ["\\xff\\xfe.jpg", "d/000.jpg", "d/001.jpg"]
    with pytest.raises(UnicodeDecodeError):
        zipfile.ZipFile(tmp_path / "a.zip")


def test_two_members_of_one_name_are_two_rows(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = make_zip([("a.jpg", b"one"), ("a.jpg", b"two")])
    assert codes(read(data, tmp_path)) == [("a.jpg", None)] * 2


@pytest.mark.skipif(not os.path.exists("/usr/bin/zip"), reason="Info-ZIP is not installed")
def test_archives_of_info_zip_are_read(tmp_path):
    for name, data in images(5):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    subprocess.run(["zip", "-qr", "../plain.zip", "."], cwd=tmp_path / "in", check=True)
    subprocess.run(["zip", "-qr0", "../stored.zip", "."], cwd=tmp_path / "in", check=True)
    subprocess.run("zip -qr - . | cat > ../stream.zip", shell=True, cwd=tmp_path / "in", check=True)
    for name in ("plain", "stored", "stream"):
        rows = read((tmp_path / f"{name}.zip").read_bytes(), tmp_path)
        assert sorted(codes(rows)) == [(image, None) for image, _ in images(5)], name


# ---- large archives ----------------------------------------------------------------------------------------


def test_zip64_is_read(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in images(3):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert len(read(buffer.getvalue(), tmp_path)) == 3
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    many = make_zip(images(3))
    assert b"PK\6\6" in many
    for data in (many, b"front" * 100 + many):
        assert codes(read(data, tmp_path)) == [(name, None) for name, _ in images(3)]


@pytest.mark.parametrize("writer", ["zip64", "macOS"])
def test_members_behind_4_gib_are_found(tmp_path, writer):
    """macOS counts offsets modulo 4 GiB. The gaps are holes: the file takes a few kilobytes of disk."""
    path = tmp_path / "a.zip"
    gap = (4 << 30) + 4096
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(images(4)):
            if number in (1, 3):
                archive.fp.seek(gap, os.SEEK_CUR)
                archive.start_dir = archive.fp.tell()
            archive.writestr(name, data)
        if writer == "macOS":
            for info in archive.infolist():
                info.header_offset %= 1 << 32
    size = path.stat().st_size
    if writer == "macOS":
        with open(path, "r+b") as file:
            file.seek(size - 98)
            tail = file.read()
            start = struct.unpack_from("<Q", tail, 48)[0] % (1 << 32)
            file.seek(size - 98)
            file.write(tail[-22:-6] + struct.pack("<L", start) + tail[-2:])
            file.truncate()
    rows = rows_of(units_of(path))
    assert codes(rows) == [(name, None) for name, _ in images(4)]
    assert rows[3]["offset"] > 2 * gap
    with open(path, "rb") as file:
        size = path.stat().st_size
        again = recounted(TableFile(file, size), size, Rule(IMAGE_KEYS))
    assert [sample[:4] for sample in again] == [(r["key"], r["offset"], r["size"], None) for r in rows]


def test_bytes_in_front_of_the_archive_and_a_comment_behind_it_change_nothing(tmp_path):
    data = make_zip(images(3), comment=b"PK\5\6 is how such a record begins" * 9)
    for archive in (data, b"#!/bin/sh\n" * 100 + data):
        rows = read(archive, tmp_path)
        assert codes(rows) == [(name, None) for name, _ in images(3)]
        assert archive[rows[2]["offset"] :].startswith(images(3)[2][1])
    assert codes(read(make_zip(images(3)) + b"\n", tmp_path)) == codes(rows)


# ---- faults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_an_archive_that_is_cut_anywhere_is_one_row_that_says_so(tmp_path, method):
    inner = make_zip([("inner.jpg", b"x")])
    data = make_zip([*images(2), ("in.zip", inner), ("last.jpg", b"y")], METHODS[method])
    assert codes(read(data, tmp_path)) == [("d/000.jpg", None), ("d/001.jpg", None), ("last.jpg", None)]
    for size in range(0, len(data) - 1, 7):
        assert codes(read(data[:size], tmp_path)) == [(None, "shard_truncated")], size
    end_of_inner = data.find(inner) + len(inner)
    assert codes(read(data[:end_of_inner], tmp_path)) == [(None, "shard_truncated")]


def test_a_directory_that_breaks_costs_what_is_behind_the_break(tmp_path):
    data = with_entry_bytes(make_zip(images(4)), b"d/002.jpg", 0, b"XX")
    assert codes(read(data, tmp_path)) == [
        ("d/000.jpg", None),
        ("d/001.jpg", None),
        (None, "shard_truncated"),
    ]


def test_a_lost_beginning_costs_the_images_that_lay_there(tmp_path):
    data = make_zip(images(4))
    half = bytes(1000) + data[1000:]
    assert codes(read(half, tmp_path))[0] == ("d/000.jpg", "damaged_member")
    assert codes(read(half, tmp_path))[-1] == ("d/003.jpg", None)


def test_parts_of_a_split_archive_and_several_archives_in_one_file_are_refused(tmp_path):
    data = make_zip(images(2))
    for odd in (data[:-18] + b"\1\0\1\0" + data[-14:], data + make_zip([("b.jpg", b"x")])):
        assert codes(read(odd, tmp_path)) == [(None, "shard_truncated")]


def test_an_empty_archive_has_no_rows(tmp_path):
    assert read(make_zip([]), tmp_path) == []


def test_encrypted_members_and_unknown_methods_are_rows_with_codes(tmp_path):
    data = make_zip(images(3))
    data = with_entry_bytes(data, b"d/000.jpg", 8, b"\1\0")
    data = with_entry_bytes(data, b"d/001.jpg", 10, b"\x09\0")
    rows = read(data, tmp_path)
    assert codes(rows) == [
        ("d/000.jpg", "encrypted_member"),
        ("d/001.jpg", "unknown_method"),
        ("d/002.jpg", None),
    ]
    assert "Deflate64" in rows[1]["error_detail"]


@pytest.mark.parametrize("method", METHODS)
def test_a_flipped_bit_is_a_row_with_a_code_and_costs_no_other_image(tmp_path, method):
    data = make_zip(images(3), METHODS[method])
    place = data.find(b"d/001.jpg") + 9 + 100
    flipped = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
    rows = read(flipped, tmp_path)
    assert codes(rows) == [("d/000.jpg", None), ("d/001.jpg", "damaged_member"), ("d/002.jpg", None)]
    assert rows[1]["offset"] is None


def test_a_member_over_the_limit_is_refused_before_it_is_read(tmp_path):
    rows = read(make_zip(images(3), zipfile.ZIP_DEFLATED), tmp_path, max_bytes=470)
    assert [row["error"] for row in rows] == [None, None, "too_many_bytes"]


@pytest.mark.parametrize("method", ["deflated", "bzip2", "lzma"])
def test_a_member_that_unpacks_to_more_than_it_tells_takes_no_more_memory(tmp_path, method, monkeypatch):
    data = make_zip([("bomb.jpg", bytes(64 << 20)), *images(1)], METHODS[method])
    rows = read(data, tmp_path, max_bytes=1 << 20)
    assert codes(rows) == [("bomb.jpg", "too_many_bytes"), ("d/000.jpg", None)]
    lying = with_entry_bytes(data, b"bomb.jpg", 24, struct.pack("<L", 1000))
    import tracemalloc

    tracemalloc.start()
    rows = read(lying, tmp_path, max_bytes=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 48 << 20
    tracemalloc.stop()
    assert codes(rows) == [("bomb.jpg", "damaged_member"), ("d/000.jpg", None)]


def test_random_damage_never_stops_a_reading_and_the_recount_agrees(tmp_path):
    import random

    data = make_zip([*images(3), ("a/", b""), ("b.png", b"x" * 50)], zipfile.ZIP_DEFLATED)
    for seed in range(150):
        generator = random.Random(seed)
        damaged = bytearray(data)
        for _ in range(generator.choice([1, 2, 8])):
            damaged[generator.randrange(len(data) * 2 // 3 if seed % 2 else 0, len(data))] = (
                generator.randrange(256)
            )
        read(bytes(damaged), tmp_path)


def test_a_store_that_fails_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    path = write_zip(tmp_path / "a.zip", images(3))
    shard = shard_of(path)

    def fail(*arguments):
        raise OSError("503 Slow Down")

    monkeypatch.setattr("wordsworth.pipeline.storage.seekable.object_bytes", fail)
    (unit,) = read_units(shard, ReadSettings(unit_rows=4))
    assert unit.fault and "503" in unit.fault and not len(unit.samples)


# ---- the source --------------------------------------------------------------------------------------------


def test_the_classes_of_an_archive_are_its_folders_or_its_sidecars(tmp_path):
    members = [("in/cat/1.jpg", b"x"), ("in/dog/2.jpg", b"x"), ("in/dog/3.jpg", b"x"), ("in/._x/4.jpg", b"x")]
    members += [(f"{name[:-4]}.cls", b"7\n") for name, _ in members]
    shard = shard_of(write_zip(tmp_path / "a.zip", members))
    for where, keep, classes in (("folder", (), {"cat": 1, "dog": 2}), ("cls", ("cls",), {"7": 3})):
        assert survey_shard(shard, ReadSettings(unit_rows=1, keep=keep), where) == (3, classes)


def test_a_folder_of_archives_is_a_source(tmp_path):
    write_zip(tmp_path / "a.zip", images(1))
    write_zip(tmp_path / "b.ZIP", images(1))
    assert [shard.kind for shard in find_shards([str(tmp_path)]).shards] == ["zip", "zip"]


def test_archives_beside_images_and_tars_are_named_in_a_note_and_beside_tables_the_kind_is_asked_for(
    tmp_path,
):
    write_zip(tmp_path / "a.zip", images(1))
    (tmp_path / "c.csv").write_text("url\nx.jpg\n")
    with pytest.raises(UserError, match=r"both \.zip archives and tables: say which with --format zip or"):
        find_shards([str(tmp_path)])
    (tmp_path / "c.jpg").write_bytes(b"x")
    listing = find_shards([str(tmp_path)])
    assert [shard.kind for shard in listing.shards] == ["images"]
    assert any("passed over 1 zip archives" in note for note in listing.passed_over.serious_notes())
    assert [shard.kind for shard in find_shards([str(tmp_path)], format="zip").shards] == ["zip"]
    both = find_shards([str(tmp_path), str(tmp_path / "*.zip")])
    assert [shard.kind for shard in both.shards] == ["images", "zip"]


def test_lint_says_what_is_wrong_with_an_archive(tmp_path):
    data = make_zip([*images(2), ("../x.jpg", b""), ("y.txt", b"z"), ("e.jpg", b"e")])
    data = with_entry_bytes(data, b"e.jpg", 8, b"\1\0")
    data = with_entry_bytes(data, b"d/000.jpg", 10, b"\x09\0")
    data = with_entry_bytes(data, b"d/001.jpg", 16, b"\0\0\0\0")
    (tmp_path / "a.zip").write_bytes(data)
    report = lint([str(tmp_path)], ReadSettings(unit_rows=1, keep=("txt",)))
    found = {finding.code: finding.count for finding in report.findings}
    assert report.samples == 4
    refused = {"encrypted_member": 1, "unknown_method": 1, "damaged_member": 1}
    assert found == {"missing_sidecar": 4, "empty_file": 1, "unsafe_key": 1} | refused


@pytest.mark.parametrize("order", ["in order", "backwards"])
def test_a_store_is_asked_for_no_byte_much_more_than_once(tmp_path, monkeypatch, order):
    """Behind all images stand all texts. Backwards, the directory has the last member first."""
    texts = [(name.replace(".jpg", ".txt"), b"text") for name, _ in images(300)]
    path = write_zip(tmp_path / "a.zip", [*images(300), *texts])
    if order == "backwards":
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = b"written anew"
            archive.filelist.reverse()
    asked = []

    def count(fs, path, begin, end):
        asked.append(end - begin)
        return Path(path).read_bytes()[begin:end]

    monkeypatch.setattr("wordsworth.pipeline.storage.seekable.object_bytes", count)
    units = units_of(path, rows=100, keep=("txt",))
    assert [row["sidecars"] for row in rows_of(units)] == [["text"]] * 300
    size = path.stat().st_size
    if order == "in order":
        assert len(asked) < 20 and sum(asked) < 5 * size
    else:
        assert len(asked) < 700 and sum(asked) < 5 * size
