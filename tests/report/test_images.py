"""Images of rows, fetched again: the very bytes of the source, by the fewest bytes, or a reason."""

import gzip
import os
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.builders import photo, write_tar
from tests.support.counting_store import CountingStore
from tests.support.report_runs import make_run
from tests.support.tables import write_csv, write_parquet
from tests.support.zips import write_zip
from wordsworth.pipeline.report import images
from wordsworth.pipeline.report.images import fetch_images
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.storage.filesystem import ALLOW_URIS

COLUMNS = ["shard", "index", "offset", "size", "key"]
PHOTOS = [photo(number, (40 + number, 30)) for number in range(10)]
NAMES = [f"d{number % 2}/{number:02d}.jpg" for number in range(10)]


def fetched(out: Path, where=None, options: dict | None = None, **asked) -> dict[str, bytes | str]:
    """Return the image of each row, or the reason why there is none, by key."""
    run = RunRows.open(str(out), options)
    rows = pa.Table.from_batches(run.batches(COLUMNS, where))
    keys = rows["key"].to_pylist()
    found = list(fetch_images(run, rows, **asked))
    assert sorted(one.row_number for one in found) == list(range(rows.num_rows))
    assert all((one.data is None) != (one.reason is None) for one in found)
    return {keys[one.row_number]: one.data if one.reason is None else one.reason for one in found}


def tar(folder: Path, name: str = "a.tar") -> Path:
    return write_tar(folder / name, dict(zip(NAMES, PHOTOS, strict=True)))


def loose(folder: Path) -> Path:
    for name, data in zip(NAMES, PHOTOS, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def compressed_tar(folder: Path) -> Path:
    plain = tar(folder)
    packed = folder / "a.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return packed


def zipped(method: int):
    return lambda folder: write_zip(folder / "a.zip", list(zip(NAMES, PHOTOS, strict=True)), method)


def parquet(folder: Path) -> Path:
    return write_parquet(folder / "t.parquet", {"name": NAMES, "image": PHOTOS}, rows_in_group=3)


def parquet_of_lists(folder: Path) -> Path:
    pairs = [PHOTOS[place : place + 2] for place in range(0, 10, 2)]
    return write_parquet(folder / "t.parquet", {"images": pairs}, rows_in_group=2)


def named(folder: Path) -> Path:
    loose(folder / "images")
    return write_csv(folder / "t.csv", [{"image": f"images/{name}"} for name in NAMES])


SOURCES = {
    "tar": tar,
    "compressed tar": compressed_tar,
    "loose images": loose,
    "zip with stored members": zipped(zipfile.ZIP_STORED),
    "zip with deflated members": zipped(zipfile.ZIP_DEFLATED),
    "table with bytes": parquet,
    "table with lists": parquet_of_lists,
    "table with names": named,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_very_bytes_of_the_source_come_back(tmp_path, kind):
    source = SOURCES[kind](tmp_path / "in")
    out = make_run(tmp_path / "out", source)
    found = fetched(out)
    assert len(found) == 10 and set(found.values()) == set(PHOTOS)
    run = RunRows.open(str(out))
    rows = pa.Table.from_batches(run.batches(COLUMNS))
    order = {one.row_number: one.data for one in fetch_images(run, rows)}
    by_index = dict(zip(rows["index"].to_pylist(), (order[n] for n in range(10)), strict=True))
    expected = [*PHOTOS[::2], *PHOTOS[1::2]] if kind == "loose images" else PHOTOS
    assert [by_index[number] for number in range(10)] == expected


@pytest.mark.parametrize("kind", [*SOURCES][:7])
def test_an_image_of_a_source_that_changed_is_a_reason_and_no_other_image(tmp_path, kind):
    source = SOURCES[kind](tmp_path / "in")
    out = make_run(tmp_path / "out", source)
    files = [path for path in (tmp_path / "in").rglob("*") if path.is_file()]
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[::-1])  # as long as before
        os.utime(path, (1, 1))
    assert set(fetched(out).values()) == {"changed: another object is there than when the run was made"}
    for path in files:
        path.unlink()
    assert set(fetched(out).values()) == {"not_found: there is no such object"}


def test_an_image_that_a_table_names_and_that_is_gone_is_a_reason(tmp_path):
    out = make_run(tmp_path / "out", named(tmp_path / "in"))
    (tmp_path / "in" / "images" / NAMES[3]).unlink()
    found = fetched(out)
    assert found[f"images/{NAMES[3]}"] == "not_found: there is no such object"
    assert found[f"images/{NAMES[4]}"] == PHOTOS[4]


def test_a_table_names_only_what_it_may_name_now_too(tmp_path):
    loose(tmp_path / "elsewhere")
    table = write_csv(tmp_path / "in" / "t.csv", [{"image": f"{tmp_path}/elsewhere/{NAMES[0]}"}])
    allowed = {ALLOW_URIS: [f"{tmp_path}/elsewhere"]}
    out = make_run(tmp_path / "out", table, options=allowed)
    assert list(fetched(out, options=allowed).values()) == [PHOTOS[0]]
    (reason,) = fetched(out).values()
    assert reason.startswith("refused_uri: ") and "--allow-uris" in reason


def test_of_a_compressed_tar_the_front_is_read_and_the_rest_is_said(tmp_path):
    out = make_run(tmp_path / "out", compressed_tar(tmp_path / "in"))
    found = fetched(out, front_bytes=4000)
    reasons = {data for data in found.values() if isinstance(data, str)}
    assert reasons == {"too_far: it lies behind byte 4,000 of a shard that is read from its beginning"}
    assert found["d0/00"] == PHOTOS[0] and isinstance(found["d1/09"], str)


def test_a_row_without_an_image_says_so(tmp_path):
    whole = tar(tmp_path / "in")
    whole.write_bytes(whole.read_bytes()[: 3 * 2048])
    found = fetched(make_run(tmp_path / "out", tmp_path / "in"))
    assert found[None] == "the row stands for the rest of a damaged shard, and has no image"
    assert found["d0/00"] == PHOTOS[0]


def test_images_that_were_named_one_by_one_come_back(tmp_path):
    folder = loose(tmp_path / "in")
    out = make_run(tmp_path / "out", *(folder / name for name in NAMES[2:5]))
    assert set(fetched(out).values()) == set(PHOTOS[2:5])


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "loose images"])
def test_of_a_run_of_a_sample_the_drawn_images_come_back(tmp_path, kind):
    out = make_run(tmp_path / "out", SOURCES[kind](tmp_path / "in"), picks=(1, 4, 9))
    assert sorted(fetched(out).values()) == sorted(PHOTOS[number] for number in (1, 4, 9))


# ---- a store ----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    (tmp_path / "bucket").mkdir()
    with CountingStore(tmp_path).serving() as store:
        yield store


def options_of(store: CountingStore) -> dict:
    return {"key": "k", "secret": "s", "endpoint_url": store.url, "skip_instance_cache": True}


def moved_run(tmp_path: Path, store: CountingStore, source: Path) -> Path:
    """Return a run on this disk whose source is the bucket."""
    place = f"s3://bucket/{source.relative_to(tmp_path / 'bucket')}"
    return make_run(tmp_path / "out", place, options=options_of(store))


def ranges_of(store: CountingStore, ending: str) -> list[tuple[int, int]]:
    """Return first byte and number of bytes of each GET of an object, and fail at one without a range."""
    found = []
    for request in store.requests:
        if request.method == "GET" and request.path.endswith(ending):
            first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
            found.append((int(first), int(last) - int(first) + 1))
    return sorted(found)


def test_of_a_tar_in_a_store_only_the_ranges_of_the_images_are_fetched(tmp_path, store):
    out = moved_run(tmp_path, store, tar(tmp_path / "bucket" / "in"))
    run = RunRows.open(str(out), options_of(store))
    rows = pa.Table.from_batches(run.batches(COLUMNS)).take([7, 2, 5])
    store.requests.clear()
    found = {one.row_number: one.data for one in fetch_images(run, rows)}
    assert found == {0: PHOTOS[7], 1: PHOTOS[2], 2: PHOTOS[5]}
    places = zip(rows["offset"].to_pylist(), rows["size"].to_pylist(), strict=True)
    assert ranges_of(store, "a.tar") == sorted(places)
    assert store.counts == {"GET": 3}


def test_of_a_parquet_table_in_a_store_only_the_row_groups_of_the_rows_are_fetched(tmp_path, store):
    source = tmp_path / "bucket" / "in" / "t.parquet"
    source.parent.mkdir()
    large = [data + bytes(os.urandom(1 << 20)) for data in PHOTOS]
    write_parquet(source, {"image": large}, rows_in_group=2, compression="none")
    out = moved_run(tmp_path, store, source)
    run = RunRows.open(str(out), options_of(store))
    rows = pa.Table.from_batches(run.batches(COLUMNS)).take([4, 5])
    store.requests.clear()
    assert [one.data for one in fetch_images(run, rows)] == large[4:6]
    assert sum(size for _, size in ranges_of(store, "t.parquet")) < 3 << 20  # of 10


def test_of_a_zip_in_a_store_the_directory_and_the_members_are_fetched(tmp_path, store):
    source = tmp_path / "bucket" / "in" / "a.zip"
    large = [(name, data + bytes(1 << 21)) for name, data in zip(NAMES, PHOTOS, strict=True)]
    write_zip(source, large, zipfile.ZIP_DEFLATED)
    out = moved_run(tmp_path, store, source)
    run = RunRows.open(str(out), options_of(store))
    rows = pa.Table.from_batches(run.batches(COLUMNS)).take([8])
    store.requests.clear()
    assert [one.data for one in fetch_images(run, rows)] == [large[8][1]]
    assert store.counts["GET"] <= 4


def test_an_object_in_a_store_that_was_replaced_is_a_reason(tmp_path, store):
    source = loose(tmp_path / "bucket" / "in")
    out = moved_run(tmp_path, store, source)
    (source / NAMES[0]).write_bytes(PHOTOS[0][::-1])
    (source / NAMES[1]).write_bytes(PHOTOS[1] + b"more")
    (source / NAMES[2]).unlink()
    store.requests.clear()
    found = fetched(out, options=options_of(store))
    changed = "changed: another object is there than when the run was made"
    assert found[NAMES[0]] == found[NAMES[1]] == changed
    assert found[NAMES[2]] == "not_found: there is no such object"
    assert found[NAMES[3]] == PHOTOS[3]
    assert store.counts["GET"] == 10 and not store.counts["LIST"]


def test_a_store_that_does_not_answer_is_waited_for_once_and_told_without_secrets(
    tmp_path, store, monkeypatch
):
    monkeypatch.setattr(images, "PATIENCE_S", 0.3)
    for number in range(3):
        tar(tmp_path / "bucket" / "in", f"{number}.tar")
    out = moved_run(tmp_path, store, tmp_path / "bucket" / "in")
    nowhere = options_of(store) | {"secret": "CANARY", "endpoint_url": "http://CANARY:pw@127.0.0.1:1"}
    began = time.monotonic()
    (reason,) = set(fetched(out, options=nowhere).values())
    assert "CANARY" not in reason and "\n" not in reason
    assert time.monotonic() - began < 10  # of 30 images each of which would be waited for
