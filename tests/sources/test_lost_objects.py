"""Show that a lost image is a row with a code, and that what a store fails to give is none."""

import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.support.runs import build
from tests.support.samples import rows_of
from tests.support.stores import s3_bucket
from tests.support.tables import write_jsonl
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources import lost_objects
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.storage.filesystem import ALLOW_URIS
from wordsworth.pipeline.verification.verifier import verify

SETTINGS = ReadSettings(unit_rows=4)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    waited = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))
    return waited


def image(number: int) -> bytes:
    return bytes([number + 1]) * (300 + number)


def folder_of(path, count: int):
    path.mkdir()
    for number in range(count):
        (path / f"{number}.jpg").write_bytes(image(number))
    return path


def read(source, settings=SETTINGS):
    (shard,) = find_shards([str(source)]).shards
    return list(read_units(shard, settings))


def errors(units) -> dict[str, str]:
    assert units[-1].fault is None and units[-1].last
    return {row["key"]: row["error"] for row in rows_of(units) if row["error"]}


def s3_error(kind: type[OSError], code: str) -> OSError:
    """Return an error as s3fs raises it."""
    cause = Exception(f"An error occurred ({code})")
    cause.response = {"Error": {"Code": code}}
    error = kind(code)
    error.__cause__ = cause
    return error


@pytest.fixture
def bucket(monkeypatch):
    """Yield a store of five images, of which those in `lost` raise what stands there."""
    with s3_bucket() as made:
        for number in range(5):
            made.objects[f"b/i/{number}.jpg"] = image(number)
        made.lost = {}
        whole = made.cat_file

        def cat_file(self, path, start=None, end=None, **kwargs):
            key = self._strip_protocol(path)
            if key in made.lost:
                raise made.lost[key]
            return whole(self, path, start, end)

        monkeypatch.setattr(made, "cat_file", cat_file)
        yield made


# ---- rows --------------------------------------------------------------------------------------------------


def test_dangling_links_and_files_that_vanished_are_rows_and_all_else_is_read(tmp_path, waits):
    folder = folder_of(tmp_path / "in", 5)
    (folder / "2b.jpg").symlink_to("/nowhere/x.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (shard,) = find_shards([str(folder)]).shards
    (folder / "0.jpg").unlink()
    (folder / "3.jpg").unlink()
    (folder / "3.jpg").mkdir()
    units = list(read_units(shard, SETTINGS))
    assert errors(units) == dict.fromkeys(("0.jpg", "2b.jpg", "3.jpg", "loop.jpg"), "not_found")
    rows = rows_of(units)
    assert [row["key"] for row in rows] == [f"{n}.jpg" for n in (0, 1, 2, "2b", 3, 4, "loop")]
    assert [row["size"] for row in rows] == [300, 301, 302, 0, 303, 304, 0]
    assert "link leads nowhere" in rows[3]["error_detail"] and waits == []
    assert b"".join(unit.payload.tobytes() for unit in units) == image(1) + image(2) + image(4)
    assert sum(unit.bytes_read for unit in units) == 301 + 302 + 304


def test_a_pipe_a_socket_or_a_device_in_an_images_place_is_a_row_and_is_never_read(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "in", 6)
    (shard,) = find_shards([str(folder)]).shards
    for number in (1, 2, 3):
        (folder / f"{number}.jpg").unlink()
    os.mkfifo(folder / "1.jpg")
    (folder / "2.jpg").symlink_to("/dev/zero")
    monkeypatch.chdir(folder)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("3.jpg")
        units = list(read_units(shard, SETTINGS))
    assert errors(units) == dict.fromkeys(("1.jpg", "2.jpg", "3.jpg"), "not_found")
    assert "a pipe, a socket or a device" in rows_of(units)[1]["error_detail"]
    assert b"".join(unit.payload.tobytes() for unit in units) == image(0) + image(4) + image(5)


@pytest.mark.parametrize(
    ("code", "error"),
    [("AccessDenied", "forbidden"), ("403", "forbidden"), ("InvalidObjectState", "archived")],
)
def test_forbidden_and_archived_objects_are_rows_and_all_else_is_read(bucket, code, error):
    for number in (0, 1, 3):
        bucket.lost[f"b/i/{number}.jpg"] = s3_error(PermissionError, code)
    units = read("s3://b/i")
    assert errors(units) == {f"{number}.jpg": error for number in (0, 1, 3)}
    assert b"".join(unit.payload.tobytes() for unit in units) == image(2) + image(4)


def test_a_page_that_is_archived_whole_is_rows(bucket):
    bucket.lost = {name: s3_error(PermissionError, "InvalidObjectState") for name in bucket.objects}
    assert errors(read("s3://b/i")) == dict.fromkeys([f"{number}.jpg" for number in range(5)], "archived")


def test_a_page_of_vanished_images_beside_others_is_rows(bucket, monkeypatch):
    monkeypatch.setattr("wordsworth.pipeline.sources.finder.PAGE", 2)
    pages = find_shards(["s3://b/i"]).shards
    for number in range(4):
        del bucket.objects[f"b/i/{number}.jpg"]
    assert [list(errors(list(read_units(page, SETTINGS)))) for page in pages] == [
        ["0.jpg", "1.jpg"],
        ["2.jpg", "3.jpg"],
        [],
    ]


def test_units_end_at_the_same_image_whether_or_not_one_vanished(tmp_path):
    folder = folder_of(tmp_path / "in", 9)
    (shard,) = find_shards([str(folder)]).shards
    settings = ReadSettings(unit_rows=100, unit_bytes=900)
    ends = [unit.next_index for unit in read_units(shard, settings)]
    (folder / "1.jpg").unlink()
    (folder / "5.jpg").unlink()
    units = list(read_units(shard, settings))
    assert len(ends) > 2 and [unit.next_index for unit in units] == ends and len(errors(units)) == 2


# ---- images that a table names -----------------------------------------------------------------------------


def table_of(path, bucket, code: str | None, *lost: int):
    """Write a table of the five images of which some are lost, and return its units."""
    for number in lost:
        bucket.lost[f"b/i/{number}.jpg"] = s3_error(PermissionError, code)
    write_jsonl(path / "t.jsonl", [{"url": f"s3://b/i/{number}.jpg"} for number in range(5)])
    return read(path / "t.jsonl", replace(SETTINGS, storage_options={ALLOW_URIS: ["s3://b/i"]}))


@pytest.mark.parametrize(
    ("code", "error"), [("AccessDenied", "forbidden"), ("InvalidObjectState", "archived")]
)
def test_forbidden_and_archived_images_of_a_table_are_rows(tmp_path, bucket, code, error):
    units = table_of(tmp_path, bucket, code, 0, 3, 4)
    assert errors(units) == {f"s3://b/i/{number}.jpg": error for number in (0, 3, 4)}
    assert b"".join(unit.payload.tobytes() for unit in units) == image(1) + image(2)


def test_a_table_of_which_no_image_may_be_read_is_a_fault(tmp_path, bucket):
    (unit,) = table_of(tmp_path, bucket, "AccessDenied", *range(5))
    assert unit.fault.startswith("StoreFault: b/i/0.jpg: PermissionError") and not unit.last


def test_a_table_behind_credentials_that_ended_is_a_fault(tmp_path, bucket):
    (unit,) = table_of(tmp_path, bucket, "ExpiredToken", 2)
    assert "PermissionError: ExpiredToken" in unit.fault and len(unit.samples) == 0


# ---- folders -----------------------------------------------------------------------------------------------


def test_a_folder_that_may_not_be_listed_is_named_and_the_others_are_read(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "in", 3)
    for name in ("cats", "lost+found", "went"):
        folder_of(folder / name, 2)
    given = os.scandir

    def scandir(path="."):
        for name, error in (("lost+found", PermissionError), ("went", FileNotFoundError)):
            if str(path).endswith(name):
                raise error(13, "no", str(path))
        return given(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for source in (folder, f"{folder}/**"):
        listing = find_shards([str(source)])
        (page,) = listing.shards
        assert [member["key"] for member in page.members] == [
            "0.jpg",
            "1.jpg",
            "2.jpg",
            "cats/0.jpg",
            "cats/1.jpg",
        ]
        (note,) = listing.passed_over.serious_notes()
        assert note.startswith(f"left out 1 folder that may not be listed: {folder}/lost+found; ")
    assert verify(str(build(tmp_path / "out", folder)), source=True).findings == []
    monkeypatch.setattr(os, "scandir", lambda path: scandir("lost+found"))
    with pytest.raises(UserError, match="not allowed to list"):
        find_shards([str(folder)])


def test_a_link_that_leads_nowhere_and_has_no_name_of_an_image_is_named(tmp_path):
    folder = folder_of(tmp_path / "in", 2)
    (folder / "dogs").symlink_to("/nowhere/dogs")
    listing = find_shards([str(folder)])
    (note,) = listing.passed_over.serious_notes()
    assert note.startswith(f"left out 1 link that leads nowhere: {folder}/dogs -> /nowhere/dogs; mount")
    assert not listing.ignored


# ---- faults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"]
)
def test_a_refusal_that_speaks_of_the_credentials_is_a_fault_and_no_row(bucket, code):
    bucket.lost["b/i/2.jpg"] = s3_error(PermissionError, code)
    (unit,) = read("s3://b/i")
    assert unit.fault.startswith("PermissionError") and len(unit.samples) == 0


@pytest.mark.parametrize("error", [TimeoutError("timed out"), s3_error(OSError, "503")])
def test_a_fault_that_may_pass_is_no_row(bucket, waits, error):
    bucket.lost["b/i/2.jpg"] = error
    (unit,) = read("s3://b/i")
    assert unit.fault.startswith(type(error).__name__) and len(waits) == 4


def test_a_page_of_which_nothing_can_be_read_is_one_fault_and_asks_for_few_images(bucket, monkeypatch):
    for number in range(200):
        bucket.objects[f"b/i/{number:03d}.jpg"] = image(1)
    asked = []
    whole = bucket.cat_file
    monkeypatch.setattr(
        bucket, "cat_file", lambda self, path, **kw: asked.append(path) or whole(self, path, **kw)
    )
    for name in bucket.objects:
        bucket.lost[name] = s3_error(PermissionError, "AccessDenied")
    (unit,) = read("s3://b/i")
    assert unit.fault.startswith("unreadable: no image here can be read, first b/i/0.jpg: reading it is")
    assert len(unit.samples) == 0 and len(asked) <= 1 + 2 * lost_objects.WITNESSES


def test_rights_that_end_between_two_images_make_no_rows(bucket, monkeypatch):
    reads = []
    whole = bucket.cat_file

    def cat_file(self, path, **kwargs):
        reads.append(path)
        if len(reads) > 2:
            raise s3_error(PermissionError, "AccessDenied")  # as an old signature is refused
        return whole(self, path, **kwargs)

    monkeypatch.setattr(bucket, "cat_file", cat_file)
    (unit,) = read("s3://b/i")
    assert (
        unit.fault.startswith("unreadable: no image here can be read, first b/i/2.jpg")
        and len(unit.samples) == 0
    )


def test_a_disk_that_is_unmounted_between_two_images_makes_no_rows(tmp_path):
    folder = folder_of(tmp_path / "in", 9)
    (shard,) = find_shards([str(folder)]).shards
    units = read_units(shard, SETTINGS)
    assert len(next(units).samples) == 4
    for path in folder.iterdir():
        os.unlink(path)
    (fault,) = units
    assert fault.fault.startswith("unreadable: ") and len(fault.samples) == 0


def test_links_into_a_disk_that_is_not_there_make_no_rows(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "README.md").write_text("links")
    for number in range(5):
        (folder / f"{number}.jpg").symlink_to(f"/nowhere/{number}.jpg")
    (unit,) = read(folder)
    assert unit.fault.startswith("unreadable: ") and "link leads nowhere" in unit.fault
