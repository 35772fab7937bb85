"""Show that verify --source counts zip archives again, by code of its own."""

import warnings
import zipfile

import pytest

from tests.support.runs import build, codes, read_rows
from tests.support.zips import picture, with_entry_bytes, write_zip
from wordsworth.pipeline.sources import zip_archive, zip_directory
from wordsworth.pipeline.verification.verifier import verify

NAMES = ["cat/1.jpg", "cat/2.jpg", "._3.jpg", "4.png", "cat/1.jpg", "Gr\u00fcn/5.jpg"]


@pytest.fixture
def folder(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_zip(
            tmp_path / "in" / "a.zip",
            [(name, picture(number)) for number, name in enumerate(NAMES)],
            zipfile.ZIP_DEFLATED,
        )
    path.write_bytes(with_entry_bytes(path.read_bytes(), b"cat/2.jpg", 16, b"wrong"[:4]))
    return path.parent


def test_a_run_over_archives_verifies(tmp_path, folder):
    report = verify(str(build(tmp_path / "out", folder)), source=True)
    assert report.findings == [] and report.errors == {"damaged_member": 1}
    assert (report.rows, report.recounted) == (5, 5)


def test_a_reader_that_takes_one_member_of_each_name_is_caught(tmp_path, folder):
    def by_name(shard):
        return list({row["key"]: row for row in read_rows(shard)}.values())

    out = build(tmp_path / "out", folder, reader=by_name)
    assert verify(str(out)).ok
    assert codes(verify(str(out), source=True)) & {"missing_sample", "wrong_key"}


def test_a_reader_that_leaves_out_damaged_members_is_caught(tmp_path, folder):
    def without_errors(shard):
        return [row for row in read_rows(shard) if row["error"] is None]

    out = build(tmp_path / "out", folder, reader=without_errors)
    assert verify(str(out)).ok
    assert codes(verify(str(out), source=True)) == {"missing_sample"}


def test_a_reader_that_takes_damaged_members_is_caught(tmp_path, folder):
    def unchecked(shard):
        return [{**row, "error": None} for row in read_rows(shard)]

    out = build(tmp_path / "out", folder, reader=unchecked)
    assert verify(str(out)).ok
    assert codes(verify(str(out), source=True)) == {"wrong_error"}


@pytest.mark.parametrize(
    "module, name, old",
    [
        (zip_archive, "skip_kind", lambda name: None),
        (zip_directory, "member_name", lambda name, flags, extra: name.decode("cp437")),
        (zip_archive, "kind_of", lambda base, image_keys: "images" if base.endswith(".jpg") else None),
    ],
    ids=["takes hidden members", "reads every name as cp437", "takes one extension alone"],
)
def test_a_reader_with_another_rule_is_caught(tmp_path, folder, monkeypatch, module, name, old):
    monkeypatch.setattr(module, name, old)
    out = build(tmp_path / "out", folder)
    monkeypatch.undo()
    assert verify(str(out)).ok
    assert codes(verify(str(out), source=True)) & {"missing_sample", "extra_row", "wrong_key"}
