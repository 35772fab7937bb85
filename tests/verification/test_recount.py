"""The recount: only it sees what the reader never gave, and it agrees with the reader on every cut and
damaged tar."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.support.runs import KEYS, build, codes, image_members, read_rows, two_tars, whole_run, write_tar
from wordsworth.pipeline.sources import finder, tar_keys
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS, kind_of
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.verification.recount_tars import WholeFile, _is_part, tar_samples
from wordsworth.pipeline.verification.verifier import verify


def test_a_reader_that_drops_every_tenth_sample_is_caught_by_the_recount_and_by_nothing_else(tmp_path):
    write_tar(tmp_path / "in" / "a.tar", image_members(40))
    lossy = build(
        tmp_path / "out",
        tmp_path / "in",
        reader=lambda shard: [r for i, r in enumerate(read_rows(shard)) if i % 10 != 9],
    )
    assert verify(str(lossy)).ok, "the folder alone is consistent: only the input tells"
    report = verify(str(lossy), source=True)
    (fault,) = report.findings
    assert (fault.code, report.rows, report.recounted) == ("missing_sample", 36, 40)
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
def test_rows_that_are_not_the_sources_samples_are_found_by_the_recount_and_by_nothing_else(
    tmp_path, change, what
):
    out = build(tmp_path / "out", two_tars(tmp_path / "in"), reader=lambda shard: change(read_rows(shard)))
    assert verify(str(out)).ok
    report = verify(str(out), source=True)
    assert codes(report) == {what}
    assert len(report.findings) == 2, "one a shard"


def test_a_reader_that_takes_one_image_of_those_that_only_dots_tell_apart_is_found_by_the_recount(tmp_path):
    names = ["22.1.jpg", "22.2.jpg", "22.3.jpg", "000.left.jpg", "000.right.jpg", "000.json"]
    write_tar(tmp_path / "in" / "a.tar", [(name, name.encode()) for name in names])
    report = verify(str(build(tmp_path / "out", tmp_path / "in")), source=True)
    assert report.ok and report.rows == report.recounted == 5

    def of_old(shard):
        units = read_units(shard, ReadSettings(unit_rows=4, image_keys=KEYS, key_rule="first-dot"))
        return [row for unit in units for row in unit.samples.to_pylist()]

    old = build(tmp_path / "old", tmp_path / "in", reader=of_old)
    assert verify(str(old)).ok, "the folder alone is consistent: only the input tells"
    report = verify(str(old), source=True)
    assert {"missing_sample", "wrong_key"} & codes(report) and (report.rows, report.recounted) == (2, 5)


def test_a_source_that_changed_or_vanished_is_named(tmp_path):
    run = whole_run(tmp_path)
    write_tar(run.source / "a.tar", image_members(12))
    (run.source / "b.tar").unlink()
    assert verify(str(run.out)).ok
    faults = verify(str(run.out), source=True).findings
    assert [(fault.code, Path(fault.where).name) for fault in faults] == [
        ("source_changed", "a.tar"),
        ("source_changed", "b.tar"),
    ]


def test_a_store_that_answers_short_is_not_a_cut_tar(tmp_path):
    path = write_tar(tmp_path / "a.tar", image_members(3))
    with open(path, "rb") as file, pytest.raises(OSError, match="512 bytes early"):
        tar_samples(WholeFile(file, path.stat().st_size + 512), list(KEYS), "auto")


# ---- cut and damaged tars ----------------------------------------------------------------------------------


def cut_tar(tmp_path: Path, keep: int) -> Path:
    path = write_tar(tmp_path / "in" / "a.tar", image_members(6))
    os.truncate(path, keep)
    return path


def test_a_cut_tar_verifies_with_its_truncated_row_and_not_without(tmp_path):
    cut_tar(tmp_path, 5 * 2048 + 700)
    whole = build(tmp_path / "out", tmp_path / "in")
    report = verify(str(whole), source=True)
    assert report.findings == []
    assert report.errors == {"shard_truncated": 1}
    assert report.rows == report.recounted + 1

    silent = build(tmp_path / "silent", tmp_path / "in", reader=lambda shard: read_rows(shard)[:-1])
    assert verify(str(silent)).ok, "a cut that nobody noted is invisible in the folder"
    (fault,) = verify(str(silent), source=True).findings
    assert (fault.code, fault.detail) == ("missing_sample", "the mark that the shard is cut has no row")

    twice = build(
        tmp_path / "twice", tmp_path / "in", reader=lambda shard: [*read_rows(shard), read_rows(shard)[-1]]
    )
    assert codes(verify(str(twice), source=True)) == {"extra_row"}


def recounted(data: bytes) -> list[tuple]:
    return [
        tuple(sample) for sample in tar_samples(WholeFile(io.BytesIO(data), len(data)), list(KEYS), "auto")
    ]


def as_read(path: Path) -> list[tuple]:
    rows = read_rows(next(iter(find_shards([str(path)], format="tar", image_keys=KEYS).shards)))
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
    one, other = (write_tar(tmp_path / f"{n}.tar", image_members(3, n)).read_bytes() for n in (0, 50))
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
    cut = {
        name
        for name, data in cases.items()
        if recounted(data)[-1:] == [(None, None, None, "shard_truncated")]
    }
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
        "@eaDir",
        ".Trash-1",
        "$RECYCLE.BIN",
        "System Volume Information",
        "..",
        "_delta_log",
        "x__y__",
    )
    names = [*parts, *("/".join((one, two)) for one in parts for two in parts)]
    names += [
        "/".join((one, two, three)) for one in parts for two in parts for three in ("a.jpg", ".b.jpg", "")
    ]
    for hidden in (False, True):
        wrong = [name for name in names if _is_part(name, hidden) == tar_keys.is_skipped(name, hidden)]
        assert wrong == []


# ---- loose images ------------------------------------------------------------------------------------------


@pytest.fixture
def loose(tmp_path):
    for number, name in enumerate(("a.jpg", "b/c.PNG", "b-d.jpeg", "b/._c.png", "notes.txt", "z.v1.jpg")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10 + number))
    return tmp_path / "images"


def test_loose_images_verify_over_several_pages(tmp_path, loose, monkeypatch):
    monkeypatch.setattr("wordsworth.pipeline.sources.finder.PAGE", 3)
    report = verify(str(build(tmp_path / "out", loose)), source=True)
    assert report.findings == []
    assert (report.rows, report.shards, report.recounted) == (4, 2, 4)


def test_loose_images_that_are_dropped_replaced_removed_or_overlooked_are_named(tmp_path, loose):
    out = build(tmp_path / "out", loose, reader=lambda shard: read_rows(shard)[1:])
    assert verify(str(out)).ok
    (fault,) = verify(str(out), source=True).findings
    assert (fault.code, fault.detail) == ("missing_sample", "key 'a.jpg' has no row")

    out = build(tmp_path / "whole", loose)
    (loose / "new.jpg").write_bytes(b"new")
    (fault,) = verify(str(out), source=True).findings
    assert fault.code == "source_changed" and "'new.jpg' is not part of this run" in fault.detail
    (loose / "new.jpg").rename(loose / "a.jpg")
    (loose / "b" / "c.PNG").unlink()
    (fault,) = verify(str(out), source=True).findings
    assert (
        fault.code == "source_changed"
        and "2 of 4 images were replaced or removed since, first 'a.jpg'" in fault.detail
    )


def test_images_beside_those_that_a_glob_took_are_no_fault(tmp_path, loose):
    out = build(tmp_path / "out", loose / "*.jpg")
    report = verify(str(out), source=True)
    assert report.findings == []
    assert report.recounted == 2


def test_an_image_without_an_extension_that_the_listing_passed_over_is_missed_by_the_recount_alone(
    tmp_path, loose, monkeypatch
):
    for name in ("b/" + "0f" * 32, "IMG", "dot."):
        (loose / name).write_bytes(b"bytes")
    whole = verify(str(build(tmp_path / "whole", loose, format="images")), source=True)
    assert whole.findings == [] and whole.rows == whole.recounted == 7
    undecided = verify(str(build(tmp_path / "undecided", loose)), source=True)
    assert undecided.findings == [] and undecided.rows == undecided.recounted == 4

    monkeypatch.setattr(finder, "kind_of", lambda base, image_keys, format: kind_of(base, image_keys))
    lossy = build(tmp_path / "lossy", loose, format="images")
    assert verify(str(lossy)).ok
    report = verify(str(lossy), source=True)
    assert codes(report) == {"source_changed"} and "(3 such here)" in report.findings[0].detail


def test_a_photograph_of_a_phone_that_the_listing_passed_over_is_missed_by_the_recount_alone(
    tmp_path, loose, monkeypatch
):
    for name in ("b/IMG_1.HEIC", "b/IMG_2.heif", "IMG_3.JFIF"):
        (loose / name).write_bytes(b"bytes")
    whole = verify(str(build(tmp_path / "whole", loose, image_keys=IMAGE_KEYS)), source=True)
    assert whole.findings == [] and whole.rows == whole.recounted == 7

    monkeypatch.setattr(finder, "kind_of", lambda base, image_keys, format: kind_of(base, KEYS, format))
    lossy = build(tmp_path / "lossy", loose, image_keys=IMAGE_KEYS)
    assert verify(str(lossy)).ok
    report = verify(str(lossy), source=True)
    assert codes(report) == {"source_changed"} and "(3 such here)" in report.findings[0].detail
