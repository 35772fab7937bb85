"""Show that verify --source judges lost images again, by code of its own."""

import os

import pytest

from tests.support.runs import build, read_rows
from wordsworth.pipeline.verification.verifier import verify


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "in"
    made.mkdir()
    for number in range(5):
        (made / f"{number}.jpg").write_bytes(bytes(10 + number))
    (made / "2b.jpg").symlink_to("/nowhere/x.jpg")
    return made


def losing(folder, *names):
    """Return a reader before which images vanish."""

    def reader(shard):
        for name in names:
            (folder / name).unlink()
        return read_rows(shard)

    return reader


def test_images_that_vanished_before_they_were_read_verify(tmp_path, folder):
    out = build(tmp_path / "out", folder, reader=losing(folder, "1.jpg", "4.jpg"))
    report = verify(str(out), source=True)
    assert report.findings == [] and report.errors == {"not_found": 3}
    assert (report.rows, report.recounted) == (6, 6)


def test_an_image_that_vanished_after_it_was_labelled_is_named(tmp_path, folder):
    out = build(tmp_path / "out", folder)
    (folder / "1.jpg").unlink()
    (finding,) = verify(str(out), source=True).findings
    assert (
        finding.code == "source_changed" and "1 of 6 images" in finding.detail and "1.jpg" in finding.detail
    )


def test_a_reader_that_loses_images_that_are_there_is_caught(tmp_path, folder):
    def losing_two(shard):
        return [row | ({"error": "not_found"} if row["index"] in (1, 2) else {}) for row in read_rows(shard)]

    out = build(tmp_path / "out", folder, reader=losing_two)
    assert verify(str(out)).ok
    (finding,) = verify(str(out), source=True).findings
    assert finding.code == "wrong_error" and "key '1.jpg' has the error not_found" in finding.detail
    assert finding.detail.endswith("(2 such here)")


def test_a_reader_that_takes_a_dangling_link_for_an_image_is_caught(tmp_path, folder):
    out = build(
        tmp_path / "out", folder, reader=lambda shard: [row | {"error": None} for row in read_rows(shard)]
    )
    (finding,) = verify(str(out), source=True).findings
    assert finding.code == "wrong_error" and "key '2b.jpg'" in finding.detail


def test_a_reader_that_leaves_out_dangling_links_is_caught(tmp_path, folder):
    out = build(
        tmp_path / "out", folder, reader=lambda shard: [row for row in read_rows(shard) if not row["error"]]
    )
    (finding,) = verify(str(out), source=True).findings
    assert finding.code == "missing_sample" and "key '2b.jpg' has no row" in finding.detail


def test_a_mended_link_is_told_until_its_row_is_tried_again(tmp_path, folder):
    out = build(tmp_path / "out", folder)
    target = tmp_path / "target.jpg"
    target.write_bytes(b"mended")
    mtime = (folder / "2b.jpg").lstat().st_mtime_ns
    (folder / "2b.jpg").unlink()
    (folder / "2b.jpg").symlink_to(target)
    os.utime(folder / "2b.jpg", ns=(mtime, mtime), follow_symlinks=False)
    (finding,) = verify(str(out), source=True).findings
    assert finding.code == "wrong_error" and "has the error not_found" in finding.detail
