"""The recount has a skip rule of its own: a listing that holds what it skips is found by it."""

import io
import os

import pytest

from tests.sources.test_skipped_names import IMAGES, SKIPPED, fill
from tests.support.runs import KEYS, build, codes, image_members, two_tars, write_tar
from wordsworth.pipeline.sources import skipped_names, tar_groups
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.verification.recount_names import SkippedNames
from wordsworth.pipeline.verification.recount_tars import WholeFile, tar_samples
from wordsworth.pipeline.verification.verifier import verify


def test_the_recount_skips_the_names_that_the_listing_skips():
    parts = [
        "a",
        ".a",
        "..a",
        "_a",
        "__a__",
        "___",
        "@eaDir",
        "__MACOSX",
        "PaxHeader",
        "PaxHeaders.1",
        "#recycle",
    ]
    parts += [
        ".Trash-1",
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        "System Volume Information",
        "PaxHeaders.x",
        "PaxHeader.12",
        "paxheader",
        "_b=1",
    ]
    names = [f"{one}/{two}.{end}" for one in parts for two in parts for end in ("jpg", "csv")]
    names += [f"{one}/{two}/{three}.jpg" for one in parts for two in parts for three in ("a", "._b")]
    rule = SkippedNames(["/s"], include_hidden=False)
    for name in names:
        skipped = skipped_names.skip_kind(name) or skipped_names.is_record_of_table(name)
        assert rule.skips(f"/s/{name}") == bool(skipped), name
        assert not SkippedNames(["/s"], include_hidden=True).skips(f"/s/{name}")


@pytest.mark.parametrize(
    ("source", "uri", "skips"),
    [
        ("/s/.h", "/s/.h/a.jpg", False),
        ("/s/.h", "/s/.h/.h/a.jpg", True),
        ("/s/.h/.a.jpg", "/s/.h/.a.jpg", False),
        ("/s/*/.x/*.jpg", "/s/b/.x/a.jpg", False),
        ("/s/*/*.jpg", "/s/.x/a.jpg", True),
        ("/s/.*", "/s/.a.jpg", False),
        ("3000 sources, sha256 ab", "/s/.a.jpg", False),
    ],
)
def test_the_recount_judges_what_the_user_did_not_name(source, uri, skips):
    assert SkippedNames([source], include_hidden=False).skips(uri) == skips


def test_a_run_over_a_folder_of_hidden_names_is_exact(tmp_path):
    fill(tmp_path / "in", [*IMAGES, *SKIPPED])
    report = verify(str(build(tmp_path / "out", tmp_path / "in")), source=True)
    assert report.findings == [] and report.rows == report.recounted == len(IMAGES)


def test_a_name_that_is_no_utf8_is_no_finding(tmp_path):
    fill(tmp_path / "in", ["ok.jpg"])
    with open(os.fsencode(tmp_path / "in") + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"bytes")
    report = verify(str(build(tmp_path / "out", str(tmp_path / "in"))), source=True)
    assert report.ok and report.recounted == 1, report.findings


def test_a_listing_that_took_hidden_images_and_tables_is_found_by_the_recount_alone(tmp_path, monkeypatch):
    fill(tmp_path / "in", [*IMAGES, *SKIPPED])
    two_tars(tmp_path / "tars" / ".old")
    monkeypatch.setattr(skipped_names.NameFilter, "takes_folder", lambda names, path: True)
    monkeypatch.setattr(skipped_names.NameFilter, "takes_file", lambda names, path: True)
    for name, count in (("in", len(SKIPPED)), ("tars", 1)):
        out = build(tmp_path / f"{name}-out", tmp_path / name)
        assert verify(str(out)).ok
        report = verify(str(out), source=True)
        assert codes(report) == {"skipped_name"}
        assert count == 1 or f"({count} such here)" in report.findings[0].detail


def test_a_reader_of_tars_that_takes_members_of_hidden_folders_is_found_by_the_recount_alone(
    tmp_path, monkeypatch
):
    hidden = [(".thumbnails/a.jpg", b"x"), ("@eaDir/a.jpg", b"y")]
    write_tar(tmp_path / "in" / "a.tar", [*image_members(3), *hidden, *image_members(3, 50)])
    report = verify(str(build(tmp_path / "out", tmp_path / "in")), source=True)
    assert report.ok and report.recounted == report.rows == 6
    monkeypatch.setattr(tar_groups, "skip_reason", lambda name, hidden: None)
    out = build(tmp_path / "old", tmp_path / "in")
    assert verify(str(out)).ok
    (fault,) = verify(str(out), source=True).findings
    assert fault.code == "extra_row" and "'.thumbnails/a' has a row" in fault.detail


def test_members_with_hidden_names_are_samples_of_their_own_where_every_name_is_taken(tmp_path):
    names = [
        ".thumbnails/a.jpg",
        ".b.jpg",
        ".c.jpg",
        "d/._e.v1.jpg",
        "d/._e.v2.jpg",
        "@eaDir/f.jpg",
        "..g.jpg",
    ]
    members = [(name, name.encode()) for name in (*names, ".jpg", "README", "...")]
    path = write_tar(tmp_path / "a.tar", members)
    (shard,) = find_shards([str(path)]).shards
    data = path.read_bytes()
    for key_rule in ("auto", "first-dot", "last-dot"):
        settings = ReadSettings(unit_rows=100, key_rule=key_rule, include_hidden=True)
        (unit,) = read_units(shard, settings)
        found = [(row["key"], row["offset"], row["size"], row["error"]) for row in unit.samples.to_pylist()]
        file = WholeFile(io.BytesIO(data), len(data))
        assert found == [tuple(sample) for sample in tar_samples(file, list(KEYS), key_rule, True)], key_rule
        if key_rule != "first-dot":
            assert [data[offset : offset + size].decode() for _, offset, size, _ in found] == names
        assert found[1][0] == ".b" and found[2][0] == ".c"
