"""Show that a table's URIs are followed where they may be, in order, and a store's fault is no row."""

import itertools
import os
import threading
import time
from types import SimpleNamespace

import pytest

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.stores import s3_bucket
from tests.support.tables import write_csv, write_files, write_jsonl
from wordsworth.pipeline.sources import image_fetch, table
from wordsworth.pipeline.sources import table_images as uris
from wordsworth.pipeline.sources.disk_pace import SLOW_IMAGES
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.storage.filesystem import ALLOW_URIS, open_filesystem


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))


def payload(units) -> bytes:
    return b"".join(unit.payload.tobytes() for unit in units)


def test_a_table_in_a_bucket_names_its_neighbours_and_never_this_machine(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    refused = [
        str(secret),
        f"file://{secret}",
        f"file:{secret}",
        f"local://{secret}",
        f"FILE://{secret}",
        f"simplecache::{secret}",
    ]
    refused += [
        "pipe:cat /etc/passwd",
        "http://h/a.jpg",
        "../../x.jpg",
        "../../../etc/passwd",
        "a\0b",
        "memory://x",
    ]
    reached = ["a.jpg", "./a.jpg", "../top.jpg", "s3://b/dir/a.jpg", "s3://other/o.jpg"]
    missing = ["no.jpg", "../no.jpg", "s3://b/no.jpg", "s3://nowhere/x.jpg", "sub"]
    with s3_bucket() as bucket:
        bucket.objects |= {
            "b/dir/a.jpg": b"a",
            "b/top.jpg": b"t",
            "other/o.jpg": b"o",
            "b/dir/sub/x.jpg": b"x",
        }
        write_jsonl(tmp_path / "t.jsonl", [{"url": uri} for uri in [*refused, *reached, *missing]])
        bucket.objects["b/dir/t.jsonl"] = (tmp_path / "t.jsonl").read_bytes()
        (shard,) = find_shards(["s3://b/dir/t.jsonl"]).shards
        options = {ALLOW_URIS: ["s3://other", "s3://nowhere"]}
        units = list(read_units(shard, ReadSettings(unit_rows=99, storage_options=options)))
    rows = rows_of(units)
    assert [row["key"] for row in rows] == [*refused, *reached, *missing]
    assert [row["error"] for row in rows] == ["refused_uri"] * 12 + [None] * 5 + ["not_found"] * 5
    assert payload(units) == b"aatao"


def test_a_table_on_this_disk_may_name_files_of_it_and_nothing_that_never_ends(tmp_path):
    (tmp_path / "a b.jpg").write_bytes(b"a")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    names = ["a b.jpg", f"{tmp_path}/a b.jpg", f"file://{tmp_path}/a b.jpg", "sub/../a b.jpg"]
    bad = ["/dev/zero", "pipe.jpg", "sub", "a b.jpg/x", "x" * 5000, "pipe:ls", "ftp://h/x"]
    units = units_of(write_jsonl(tmp_path / "t.jsonl", [{"url": name} for name in [*names, *bad]]), rows=99)
    errors = [row["error"] for row in rows_of(units)]
    assert errors[:4] == [None] * 4 and payload(units) == b"aaaa"
    assert errors[4:] == ["refused_uri"] * 2 + ["not_found"] * 2 + ["refused_uri"] * 3


def test_credentials_in_a_uri_do_not_reach_its_key(tmp_path):
    with s3_bucket():
        (row,) = rows_of(units_of(write_jsonl(tmp_path / "t.jsonl", [{"url": "s3://user:secret@b/no.jpg"}])))
    assert row["key"] == "s3://b/no.jpg" and "secret" not in str(row)


@pytest.mark.parametrize("error", [PermissionError, TimeoutError, OSError])
def test_a_store_that_does_not_give_an_image_leaves_the_shard_open(tmp_path, error):
    names = write_files(tmp_path / "p", 9)
    path = write_csv(tmp_path / "t.csv", [{"url": name, "n": 1} for name in [*names, "s3://b/x.jpg", *names]])
    with s3_bucket() as bucket:
        bucket.objects["b/x.jpg"] = b"x"
        bucket.refused = error
        *units, fault = units_of(path, storage_options={ALLOW_URIS: ["s3://b"]})
    assert (
        [len(unit.samples) for unit in units] == [4, 4] and error.__name__ in fault.fault and not fault.last
    )
    assert not any(row["error"] for row in rows_of(units))


def test_images_of_a_slow_disk_are_fetched_several_at_a_time_and_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(uris, "HELD_BYTES", 3000)
    names = write_files(tmp_path / "p", 60)
    together, held, most = threading.Barrier(4, timeout=20), [0], [0]
    read, claim, calls = image_fetch.whole_object, threading.Lock(), itertools.count()

    def counted(fs, path, max_bytes, has_room):
        call = next(calls)
        if call < SLOW_IMAGES:
            time.sleep(0.05)
            return read(fs, path, max_bytes, has_room)
        if call < SLOW_IMAGES + 4:
            together.wait()  # passes only when four are asked for at once
        data = read(fs, path, max_bytes, has_room)
        with claim:
            held[0] += len(data)
            most[0] = max(most[0], held[0])
        return data

    monkeypatch.setattr(image_fetch, "whole_object", counted)
    path = write_csv(tmp_path / "t.csv", [{"url": name, "n": 1} for name in names])
    settings, keys = ReadSettings(unit_rows=99), []
    for sample in uris.fetched(_pairs(path, settings), shard_of(path), settings):
        keys.append(sample.key)
        if len(keys) > SLOW_IMAGES:
            with claim:
                held[0] -= sample.size
    assert keys == names and 800 <= most[0] <= 3000 + 436  # the largest one, which was given back just now


def _pairs(path, settings):
    shard = shard_of(path)
    return table.named_samples(*open_filesystem(str(path)), shard, settings, table.Place(0))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("images\\a.jpg", ": between folders stands /, not \\"),
        ("a%20b.jpg", ": names are taken as they are written, %20 is no space"),
        ("a b.jpg", ""),
        ("100%.jpg", ""),
    ],
)
def test_a_name_in_the_writing_of_another_place_is_not_found_and_told_why(tmp_path, name, why):
    path = write_csv(tmp_path / "%20" / "t.csv", [{"url": name}])
    (row,) = rows_of(units_of(path))
    assert (row["key"], row["error"]) == (name, "not_found")
    assert row["error_detail"] == f"there is no such object{why}"
    (tmp_path / "%20" / name).write_bytes(b"abc")
    assert rows_of(units_of(path))[0]["error"] is None, "a file of just this name is read"
