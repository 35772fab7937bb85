"""A store is asked for each image once and for a tar once in 8 MiB, many at a time, and the units stay what
they are."""

import io
import json
import os
import tarfile
import threading
from types import SimpleNamespace

import pytest

from tests.support.counting_store import CountingStore
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.storage import read_ahead

pytestmark = pytest.mark.server
IMAGES = 100


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    waited = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def store(tmp_path):
    with CountingStore(tmp_path, latency_s=0.005).serving() as made:
        yield made


def image(number: int) -> bytes:
    return bytes([number % 251 + 1]) * (2000 + 37 * number % 501)


def write_images(folder, count: int = IMAGES):
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:04d}.jpg").write_bytes(image(number))
    return folder


def write_tar(path, sizes: list[int]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{number:04d}.jpg")
            info.size = size
            archive.addfile(info, io.BytesIO(os.urandom(size)))
    return path


def settings(store, **others) -> ReadSettings:
    options = {"key": "K", "secret": "S", "endpoint_url": store.url, "use_listings_cache": False}
    return ReadSettings(unit_rows=16, storage_options=options, **others)


def listed(store, source: str) -> list:
    found = find_shards([source], storage_options=settings(store).storage_options).shards
    store.requests.clear()
    return found


def content(units) -> list:
    return [
        (unit.number, unit.last, unit.fault, unit.next_offset, unit.samples.to_pylist(), bytes(unit.payload))
        for unit in units
    ]


def from_disk(path) -> list:
    (shard,) = find_shards([str(path)]).shards
    return content(read_units(shard, ReadSettings(unit_rows=16)))


# ---- requests ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loose_image_costs_one_request_and_images_in_flight_change_neither_order_nor_units(store, tmp_path):
    folder = write_images(tmp_path / "b" / "i")
    (shard,) = listed(store, "s3://b/i")
    assert content(read_units(shard, settings(store))) == from_disk(folder)
    assert store.counts["GET"] == IMAGES and len(store.requests) <= 1.1 * IMAGES
    assert store.most_in_flight >= 4
    half = read_units(shard, settings(store), number=3, position=48, index=48)
    assert content(half) == from_disk(folder)[3:]


@pytest.mark.slow
def test_a_lost_image_among_those_in_flight_is_a_row_of_its_own_unit(store, tmp_path):
    folder = write_images(tmp_path / "b" / "i")
    (shard,) = listed(store, "s3://b/i")
    for number in (5, 40, 41, 99):
        (folder / f"{number:04d}.jpg").unlink()
    units = list(read_units(shard, settings(store)))
    assert [len(unit.samples) for unit in units] == [16] * 6 + [4] and units[-1].last
    rows = [row for unit in units for row in unit.samples.to_pylist()]
    assert [row["index"] for row in rows if row["error"] == "not_found"] == [5, 40, 41, 99]
    assert [row["index"] for row in rows] == list(range(IMAGES))


@pytest.mark.slow
def test_a_tar_costs_one_request_for_8_mib(store, tmp_path):
    path = write_tar(tmp_path / "b" / "s.tar", [300_000] * 70)
    (shard,) = listed(store, "s3://b/s.tar")
    assert content(read_units(shard, settings(store))) == from_disk(path)
    assert store.counts == {"GET": -(-path.stat().st_size // read_ahead.RANGE_BYTES)} == {"GET": 3}


# ---- an object that is replaced ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("change", ["same size", "longer", "shorter than what was read"])
@pytest.mark.parametrize("when", ["before", "in the middle"])
def test_a_tar_that_is_replaced_is_shard_changed_and_never_mixed(
    store, tmp_path, monkeypatch, waits, change, when
):
    monkeypatch.setattr(read_ahead, "RANGE_BYTES", 50_000)
    path = write_tar(tmp_path / "b" / "s.tar", [10_000] * 80)
    old = from_disk(path)
    (shard,) = listed(store, "s3://b/s.tar")
    reading = read_units(shard, settings(store))
    units = [next(reading)] if when == "in the middle" else []
    new = {"same size": 80, "longer": 90, "shorter than what was read": 2}[change]
    write_tar(path, [10_000] * new)
    os.utime(path, (1, 1))
    *more, fault = [*units, *reading]
    assert content(more) == old[: len(more)]
    assert fault.fault.startswith("shard_changed: b/s.tar was replaced since") and len(fault.samples) == 0
    assert waits == [] and len(more) <= 2


def test_a_tar_that_is_gone_in_the_middle_is_a_fault(store, tmp_path, monkeypatch):
    monkeypatch.setattr(read_ahead, "RANGE_BYTES", 50_000)
    path = write_tar(tmp_path / "b" / "s.tar", [10_000] * 80)
    (shard,) = listed(store, "s3://b/s.tar")
    reading = read_units(shard, settings(store))
    first = next(reading)
    path.unlink()
    *_, fault = reading
    assert first.number == 0 and fault.fault == "not_found: there is no such object"


# ---- threads -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("source", ["s3://b/i", "s3://b/s.tar", "s3://b/t.jsonl"])
def test_no_thread_is_left_after_a_reading_is_closed_early(store, tmp_path, monkeypatch, source):
    monkeypatch.setattr(read_ahead, "RANGE_BYTES", 50_000)
    write_images(tmp_path / "b" / "i")
    write_tar(tmp_path / "b" / "s.tar", [10_000] * 80)
    rows = [{"image": f"i/{number:04d}.jpg", "text": "x" * 3000} for number in range(IMAGES)]
    (tmp_path / "b" / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (shard,) = listed(store, source)
    list(read_units(shard, settings(store)))  # begins the threads of the client, which stay
    before = set(threading.enumerate())
    reading = read_units(shard, settings(store))
    next(reading)
    assert set(threading.enumerate()) - before
    reading.close()
    assert set(threading.enumerate()) <= before


def test_an_image_that_a_table_names_costs_one_request(store, tmp_path):
    write_images(tmp_path / "b" / "i")
    lines = ["url", *(f"s3://b/i/{number:04d}.jpg" for number in range(IMAGES))]
    (tmp_path / "b" / "t.csv").write_text("\n".join(lines))
    (shard,) = listed(store, "s3://b/t.csv")
    units = list(read_units(shard, settings(store)))
    assert b"".join(bytes(unit.payload) for unit in units) == b"".join(map(image, range(IMAGES)))
    assert len(store.requests) <= 1.1 * IMAGES and store.most_in_flight >= 4
