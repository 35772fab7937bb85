"""Show that a shard gives the same units at every reading, each sample once, and that a fault is no row."""

import io
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.support.samples import rows_of, shard_of, units_of, write_tar
from tests.support.stores import s3_bucket
from wordsworth.pipeline.sources import disk_pace, reader, tar_reader
from wordsworth.pipeline.sources.disk_pace import SLOW_IMAGES, SLOW_ROWS
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.unit import Unit

SETTINGS = ReadSettings(unit_rows=4)


@pytest.fixture
def waits(monkeypatch):
    waited = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))
    return waited


def image(number: int) -> bytes:
    return bytes([number % 251 + 1]) * (300 + 97 * number)  # the reader never looks into it


def members(count: int, *more: str) -> list[tuple[str, bytes]]:
    """`count` samples: an image and a sidecar for each of the extensions."""
    return [
        (f"d/{number:03d}.{extension}", image(number) if extension == "jpg" else f"{number}".encode())
        for number in range(count)
        for extension in ("jpg", *more)
    ]


def content(units: list[Unit]) -> list[tuple]:
    """All that must be equal between two readings; only the clock may differ."""
    return [
        (
            unit.number,
            unit.last,
            unit.next_offset,
            unit.next_index,
            unit.bytes_read,
            unit.samples.to_pylist(),
            unit.payload.tobytes(),
        )
        for unit in units
    ]


def broken(monkeypatch, open_, **fields):
    """The disk as a store whose `open`, and what else is named, is another function."""
    fs = LocalFileSystem(skip_instance_cache=True)
    whole = fs.open
    monkeypatch.setattr(fs, "open", lambda path, *args, **options: open_(whole(path)))
    for name, function in fields.items():
        monkeypatch.setattr(fs, name, function)
    for module in (reader, tar_reader):
        monkeypatch.setattr(module, "open_exact", lambda uri, options=None: (fs, uri))


# ---- units -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "lengths"), [(1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (11, [4, 4, 3])]
)
def test_units_have_exactly_their_rows_and_only_the_last_says_so(tmp_path, count, lengths):
    path = write_tar(tmp_path / "a.tar", members(count))
    units = units_of(path)
    assert [len(unit.samples) for unit in units] == lengths
    assert [unit.number for unit in units] == list(range(len(units)))
    assert [unit.last for unit in units] == [False] * (len(units) - 1) + [True]
    rows = rows_of(units)
    assert [(row["key"], row["index"], row["error"]) for row in rows] == [
        (f"d/{n:03d}", n, None) for n in range(count)
    ]
    assert sum(unit.bytes_read for unit in units) == path.stat().st_size


def test_every_image_can_be_fetched_again_by_its_range_and_travels_in_the_payload(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(6, "json"))
    units = units_of(path)
    assert b"".join(unit.payload.tobytes() for unit in units) == b"".join(map(image, range(6)))
    for number, row in enumerate(rows_of(units)):
        assert path.read_bytes()[row["offset"] : row["offset"] + row["size"]] == image(number)


@pytest.mark.parametrize("kind", ["tar", "images", "cut"])
def test_a_second_reading_and_one_begun_at_any_unit_make_the_same_units(tmp_path, kind):
    if kind == "images":
        for number in range(11):
            (tmp_path / f"{number:02d}.jpg").write_bytes(image(number))
        (shard,) = find_shards([str(tmp_path)]).shards
    else:
        path = write_tar(tmp_path / "a.tar", members(11, "json"))
        if kind == "cut":
            os.truncate(path, path.read_bytes().index(b"d/010.jpg") + 700)
        shard = shard_of(path)
    settings = ReadSettings(unit_rows=3, keep=("json",))
    units = content(list(read_units(shard, settings)))
    assert len(units) == 4 and content(list(read_units(shard, settings))) == units
    for place, (number, _, position, index, *_) in enumerate(units[:-1], 1):
        assert content(list(read_units(shard, settings, number + 1, position, index))) == units[place:]


def test_a_unit_ends_early_when_it_holds_its_bytes(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", b"x" * 1000) for n in range(10)])
    assert [len(unit.samples) for unit in units_of(path, 4, unit_bytes=2500)] == [3, 3, 3, 1]
    assert [len(unit.samples) for unit in units_of(path, 4, unit_bytes=1)] == [1] * 10
    assert content(units_of(path, 4, unit_bytes=4001)) == content(units_of(path, 4))


def test_an_empty_tar_is_one_empty_last_unit(tmp_path):
    (unit,) = units_of(write_tar(tmp_path / "a.tar", []))
    assert (unit.number, unit.last, len(unit.samples), unit.payload.size, unit.fault) == (0, True, 0, 0, None)
    (unit,) = units_of(write_tar(tmp_path / "b.tar", [("README", b"text"), ("__meta__/info.json", b"{}")]))
    assert (unit.last, len(unit.samples)) == (True, 0)


def test_an_object_of_no_bytes_is_a_truncated_shard(tmp_path):
    (tmp_path / "a.tar").touch()
    (unit,) = units_of(tmp_path / "a.tar")
    assert unit.last and [(row["key"], row["error"]) for row in rows_of([unit])] == [
        (None, "shard_truncated")
    ]


def test_pages_of_one_prefix_number_their_images_on(tmp_path, monkeypatch):
    monkeypatch.setattr("wordsworth.pipeline.sources.finder.PAGE", 3)
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(image(number))
    units = [
        list(read_units(shard, ReadSettings(unit_rows=2))) for shard in find_shards([str(tmp_path)]).shards
    ]
    assert [row["index"] for page in units for row in rows_of(page)] == [0, 1, 2, 3, 4]
    assert [[(unit.next_offset, unit.next_index) for unit in page] for page in units] == [
        [(2, 2), (3, 3)],
        [(2, 2)],
    ]


# ---- samples -----------------------------------------------------------------------------------------------


def test_a_sample_without_an_image_is_a_row_that_says_so(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [*members(1), ("only.json", b"{}"), ("only.txt", b"text"), ("z.jpg", b"z")]
    )
    rows = rows_of(units_of(path, keep=("json",)))
    assert [(row["key"], row["error"]) for row in rows] == [
        ("d/000", None),
        ("only", "missing_image"),
        ("z", None),
    ]
    assert (rows[1]["offset"], rows[1]["size"], rows[1]["sidecars"]) == (None, None, ["{}"])
    assert rows[1]["error_detail"] == "has only json, txt"


def test_sidecars_travel_in_the_order_they_were_asked_for(tmp_path):
    odd = [("b.jpg", b"b"), ("b.txt", b"caf\xe9"), ("b.JSON", b'{"a": 1}'), ("c.jpg", b"c"), ("c.cls", b"7")]
    rows = rows_of(units_of(write_tar(tmp_path / "a.tar", odd), keep=("txt", "json", "nothing")))
    assert [row["sidecars"] for row in rows] == [["caf\\xe9", '{"a": 1}', None], [None, None, None]]


def test_an_image_is_found_behind_other_dots_in_any_case_and_by_rank(tmp_path):
    odd = [
        ("img.v1.2.jpg", b"1"),
        ("A.JPG", b"2"),
        ("c.seg.png", b"3"),
        ("c.png", b"4"),
        ("d.webp", b"5"),
        ("d.jpeg", b"6"),
    ]
    (unit,) = units_of(write_tar(tmp_path / "a.tar", odd), rows=9)
    assert [row["key"] for row in rows_of([unit])] == [
        "img",
        "A",
        "c",
        "d",
    ] and unit.payload.tobytes() == b"1246"
    (unit,) = units_of(tmp_path / "a.tar", rows=9, image_keys=("webp", "png"))
    assert [row["error"] for row in rows_of([unit])] == ["missing_image"] * 2 + [
        None
    ] * 2 and unit.payload.tobytes() == b"45"


def test_one_key_twice_is_two_rows(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.jpg", b"4")])
    assert [row["key"] for row in rows_of(units_of(path))] == ["a", "a", "b", "a"]


def test_an_image_over_the_limit_is_a_row_and_is_never_held(tmp_path):
    path = write_tar(tmp_path / "t/a.tar", [("a.jpg", b"x" * 101), ("b.jpg", b"x" * 100)])
    (tmp_path / "i").mkdir()
    (tmp_path / "i/a.jpg").write_bytes(b"x" * 101)
    (tmp_path / "i/b.jpg").write_bytes(b"x" * 100)
    for shard in (shard_of(path), shard_of(tmp_path / "i")):
        (unit,) = read_units(shard, ReadSettings(unit_rows=4, max_bytes=100))
        rows = rows_of([unit])
        assert [(row["error"], row["size"]) for row in rows] == [("too_many_bytes", 101), (None, 100)]
        assert rows[0]["error_detail"] == "101 bytes" and unit.payload.size == 100


# ---- cut tars and faults -----------------------------------------------------------------------------------


def test_a_cut_tar_gives_its_whole_samples_and_one_row_for_the_rest(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", members(6))
    last = rows_of(units_of(path))[-1]
    os.truncate(path, last["offset"] + 100)
    readings = []
    broken(monkeypatch, lambda file: readings.append(file) or file)
    units = list(read_units(shard_of(path), SETTINGS))
    *good, rest = rows_of(units)
    assert [row["key"] for row in good] == [f"d/{n:03d}" for n in range(5)] and not any(
        row["error"] for row in good
    )
    assert (rest["key"], rest["index"], rest["error"], rest["offset"]) == (
        None,
        5,
        "shard_truncated",
        last["offset"] - 512,
    )
    assert "ends inside a member" in rest["error_detail"]
    assert units[-1].last and units[-1].next_offset == path.stat().st_size and len(readings) == 2


def test_a_sample_torn_behind_its_image_keeps_its_row(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(3, "txt"))
    os.truncate(path, path.read_bytes().index(b"d/002.txt") + 600)  # one byte of the sidecar's data is there
    *good, rest = rows_of(units_of(path, keep=("txt",)))
    assert [(row["key"], row["sidecars"]) for row in good] == [
        ("d/000", ["0"]),
        ("d/001", ["1"]),
        ("d/002", [None]),
    ]
    assert rest["error"] == "shard_truncated"


def test_a_sample_torn_before_its_image_belongs_to_the_cut(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [(f"{n}.{kind}", b"x" * 9) for n in range(2) for kind in ("cls", "jpg")]
    )
    os.truncate(path, path.read_bytes().index(b"1.jpg") + 514)
    assert [(row["key"], row["error"]) for row in rows_of(units_of(path))] == [
        ("0", None),
        (None, "shard_truncated"),
    ]


def test_a_store_gives_the_same_units_as_a_disk(tmp_path):
    write_tar(tmp_path / "a.tar", members(9, "json"))
    (tmp_path / "b.jpg").write_bytes(image(3))
    with s3_bucket() as bucket:
        for name in ("a.tar", "b.jpg"):
            bucket.objects[f"b/{name}"] = (tmp_path / name).read_bytes()
            (shard,) = find_shards([f"s3://b/{name}"]).shards
            assert content(list(read_units(shard, SETTINGS))) == content(units_of(tmp_path / name))
            bucket.refused = PermissionError
            fault = next(read_units(shard, SETTINGS)).fault
            assert fault.startswith("unreadable: " if name == "b.jpg" else "forbidden: ")
            bucket.refused = None


class Short(io.BytesIO):
    """A body that ends `missing` bytes early."""

    def __init__(self, file, missing: int):
        super().__init__(file.read()[:-missing] if missing else file.read())


def test_a_store_that_answers_short_once_makes_no_truncated_row(tmp_path, monkeypatch, waits):
    path = write_tar(tmp_path / "a.tar", members(9))
    whole = content(units_of(path))
    answers = iter([20_000 - 10_240, *[0] * 99])
    broken(monkeypatch, lambda file: Short(file, next(answers)))
    assert content(list(read_units(shard_of(path), SETTINGS))) == whole and len(waits) == 1


def test_bytes_that_differ_once_make_no_truncated_row(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", members(9))
    whole = content(units_of(path))
    readings = []

    def flip(file):
        data = bytearray(file.read())
        if not readings:
            data[data.index(b"d/005")] ^= 1  # a header whose checksum is wrong
        readings.append(1)
        return io.BytesIO(data)

    broken(monkeypatch, flip)
    assert content(list(read_units(shard_of(path), SETTINGS))) == whole and len(readings) == 2


def test_a_tar_that_breaks_elsewhere_at_every_reading_is_a_fault(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", members(12))
    places = iter(range(100))

    def flip(file):
        data = bytearray(file.read())
        data[data.index(b"d/%03d" % (next(places) % 2 + 10))] ^= 1
        return io.BytesIO(data)

    broken(monkeypatch, flip)
    *_, unit = read_units(shard_of(path), SETTINGS)
    assert "breaks off somewhere else" in unit.fault and not unit.last and next(places) < 12


@pytest.mark.parametrize(
    ("kind", "change"),
    [("tar", "size"), ("tar", "version"), ("tar", "gone"), ("images", "size"), ("images", "gone")],
)
def test_a_source_that_changed_since_it_was_listed_is_a_fault_and_no_row(tmp_path, waits, kind, change):
    path = write_tar(tmp_path / "a.tar", members(9)) if kind == "tar" else tmp_path / "a.jpg"
    if kind == "images":
        path.write_bytes(image(0))
    shard = shard_of(path)
    if change == "gone":
        path.unlink()
    elif change == "size":
        path.write_bytes(path.read_bytes() + b"more")
    else:
        os.utime(path, (1_000_000, 1_000_000))
    (unit,) = read_units(shard, SETTINGS)
    assert (unit.last, len(unit.samples), unit.payload.size) == (False, 0, 0)
    gone = "not_found: " if kind == "tar" else "unreadable: "
    assert unit.fault.startswith(gone if change == "gone" else "shard_changed: ")


def test_a_store_that_fails_for_ever_is_a_fault_behind_the_units_it_gave(tmp_path, monkeypatch, waits):
    path = write_tar(tmp_path / "a.tar", members(11))
    edge = units_of(path)[1].next_offset

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() >= edge + 1024:
                raise OSError("503 SlowDown")
            return super().read(min(size, 512))

    shard = shard_of(path)
    broken(monkeypatch, lambda file: Failing(file.read()))
    *units, fault = read_units(shard, SETTINGS)
    assert [(len(unit.samples), unit.last) for unit in units] == [
        (4, False)
    ]  # the next sample, too, was not seen to its end
    assert fault.fault == "OSError: 503 SlowDown" and not fault.last and len(fault.samples) == 0
    assert len(waits) == 4


def test_a_refused_loose_image_is_a_fault_and_no_row(tmp_path, monkeypatch, waits):
    (tmp_path / "a.jpg").write_bytes(image(0))

    def denied(path, start=None, end=None):
        raise PermissionError("403")

    broken(monkeypatch, lambda file: file, cat_file=denied)
    (unit,) = read_units(shard_of(tmp_path), SETTINGS)
    assert unit.fault.startswith("unreadable: no image here can be read, first ")
    assert not unit.last and waits == []


def test_images_of_a_slow_disk_are_read_several_at_a_time_and_those_of_a_quick_one_without_threads(
    tmp_path, monkeypatch
):
    for number in range(150):
        (tmp_path / f"{number:03d}.jpg").write_bytes(image(number))
    shard = shard_of(tmp_path)
    whole = content(list(read_units(shard, SETTINGS)))
    read = reader.read_image
    threads: list[str] = []

    def noted(fs, path, size):
        threads.append(threading.current_thread().name)
        return read(fs, path, size)

    monkeypatch.setattr(reader, "read_image", noted)
    here = threading.current_thread().name
    monkeypatch.setattr(disk_pace, "QUICK_S", 60)  # every image comes in less
    assert content(list(read_units(shard, SETTINGS))) == whole and threads == [here] * 150
    threads.clear()
    monkeypatch.setattr(disk_pace, "QUICK_S", -1)  # every image takes longer
    assert content(list(read_units(shard, SETTINGS))) == whole and len(threads) == 150
    is_here = [name == here for name in threads]
    assert is_here[:SLOW_IMAGES] == [True] * SLOW_IMAGES
    assert is_here[SLOW_IMAGES:][:SLOW_ROWS] == [False] * SLOW_ROWS
    assert is_here.count(True) == 3 * SLOW_IMAGES  # it is tried again behind each SLOW_ROWS


# ---- the imports -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reading_and_decoding_load_neither_torch_nor_ray():
    script = (
        "import sys, wordsworth.pipeline.{}; "
        "print(sorted({{'torch', 'ray', 'timm', 'torchvision'}} & set(sys.modules)))"
    )
    modules = (
        "storage.filesystem",
        "sources.shards",
        "sources.tar",
        "unit",
        "sources.reader",
        "images.decode",
        "output.prediction_rows",
        "output.run_folder",
    )
    script = script.format(", wordsworth.pipeline.".join(modules))
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_texts_that_are_kept_fill_a_unit_too(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_UNIT_TEXTS", 2500)
    members = []
    for number in range(6):
        members += [(f"{number}.jpg", b"image"), (f"{number}.txt", b"x" * 1000)]
    path = write_tar(tmp_path / "a.tar", members)
    for keep, rows in ((("txt",), [3, 3]), ((), [6])):
        units = read_units(shard_of(path), ReadSettings(unit_rows=100, keep=keep))
        assert [len(unit.samples) for unit in units] == rows
