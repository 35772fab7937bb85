"""Show on a real server that an object is one row, whatever its name is, and that shard/key opens it."""

import asyncio
import os
from urllib.request import urlopen

import pytest
import s3fs
from fsspec.asyn import sync

from tests.faults.servers import BUCKET, KEY, SECRET, moto, served
from tests.support import runs
from tests.support.builders import photo
from tests.support.labelling import rows, run
from tests.support.names import longest, make_names
from tests.support.runs import KEYS, build, codes, read_rows
from tests.support.samples import rows_of, units_of, write_tar
from tests.support.tables import write_parquet
from wordsworth.pipeline.labeling import retry
from wordsworth.pipeline.output.frozen_listing import FrozenListing
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.output.source_changes import find_changes
from wordsworth.pipeline.sources import finder as finder_module
from wordsworth.pipeline.sources import name_lookup
from wordsworth.pipeline.sources.finder import Finder, ListingCursor, find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.source_lists import expand_sources
from wordsworth.pipeline.storage.filesystem import ALLOW_URIS
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.model_folder import load_folder

TWINS = {"imgs//b.jpg": b"red!", "imgs/b.jpg": b"blue", "imgs/c.jpg": b"green"}
ODD = {
    "odd//deep///b.jpg": b"1",
    "odd/deep/b.jpg": b"2",
    "odd/x?versionId=abc.jpg": b"3",
    "odd/x": b"no image",
    "odd/a%2Fb.jpg": b"4",
    "odd/a/b.jpg": b"5",
    "odd/a::b.jpg": b"6",
    "odd/2024-01-02T13:51:14+00:00.jpg": b"7",
    "odd/a**b/[x]{1,2}.jpg": b"8",
    "odd/trailing .jpg": b"9",
    "odd/ends-in-a-slash.jpg/": b"10",
    "odd/caf\u00e9.jpg": b"11",
    "odd/cafe\u0301.jpg": b"12",
    "odd/../up.jpg": b"13",
    "odd/empty-mark/": b"",
}


@pytest.fixture(scope="module")
def store():
    """The client of an empty store, which the environment names for every file system of this module."""
    with pytest.MonkeyPatch.context() as patch:
        for backend in served(moto):
            patch.setenv("AWS_ENDPOINT_URL", backend.options["endpoint_url"])
            patch.setenv("AWS_ACCESS_KEY_ID", backend.options["key"])
            patch.setenv("AWS_SECRET_ACCESS_KEY", backend.options["secret"])
            s3fs.S3FileSystem.clear_instance_cache()
            yield s3fs.S3FileSystem()
            s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def put(store):
    """Put objects by their exact keys; afterwards the bucket is empty again."""

    async def put_many(objects: dict[str, bytes]) -> None:
        several = asyncio.Semaphore(16)

        async def put_one(key: str, data: bytes) -> None:
            async with several:
                await store._call_s3("put_object", Bucket=BUCKET, Key=key, Body=data)

        await asyncio.gather(*(put_one(key, data) for key, data in objects.items()))

    yield lambda objects: sync(store.loop, put_many, objects)
    urlopen(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset", data=b"").close()
    store.call_s3("create_bucket", Bucket=BUCKET)


def images(source: str) -> dict[str, bytes]:
    """Return what the reader gives for a source, by `shard/key`."""
    found: dict[str, bytes] = {}
    for shard in find_shards([source]).shards:
        for unit in read_units(shard, ReadSettings(unit_rows=1)):
            (row,) = unit.samples.to_pylist()
            name = f"{shard.uri}/{row['key']}"
            assert row["error"] is None and name not in found
            found[name] = unit.payload.tobytes()
    return found


def at(objects: dict[str, bytes], *without: str) -> dict[str, bytes]:
    return {f"s3://{BUCKET}/{key}": data for key, data in objects.items() if key not in without}


@pytest.mark.parametrize("without", [(), ("imgs/b.jpg",)], ids=["beside its twin", "alone"])
def test_a_key_with_two_slashes_is_an_image_of_its_own(tmp_path, put, without):
    put({key: data for key, data in TWINS.items() if key not in without})
    assert images(f"s3://{BUCKET}/imgs") == at(TWINS, *without)
    report = verify(str(build(tmp_path / "out", f"s3://{BUCKET}/imgs")), source=True)
    assert report.ok and report.recounted == report.rows == 3 - len(without), report.findings


def test_a_key_that_begins_with_a_slash_is_found_at_the_buckets_top(tmp_path, put):
    put({"/x.jpg": b"top", "x.jpg": b"plain"})
    assert images(f"s3://{BUCKET}") == {f"s3://{BUCKET}//x.jpg": b"top", f"s3://{BUCKET}/x.jpg": b"plain"}
    assert images(f"s3://{BUCKET}//x.jpg") == {f"s3://{BUCKET}//x.jpg": b"top"}
    assert verify(str(build(tmp_path / "out", f"s3://{BUCKET}")), source=True).recounted == 2


def test_every_odd_key_is_a_row_and_is_exact(tmp_path, put):
    put(ODD)
    assert images(f"s3://{BUCKET}/odd") == at(ODD, "odd/x", "odd/empty-mark/")
    report = verify(str(build(tmp_path / "out", f"s3://{BUCKET}/odd")), source=True)
    assert report.ok and report.recounted == len(ODD) - 2, report.findings


def test_a_list_of_objects_is_looked_up_by_few_requests_whatever_their_keys_are(tmp_path, put, monkeypatch):
    dense = {f"dense/{number:03d}.jpg": bytes([number]) for number in range(60)}
    put(dense | ODD | {"dense/999.jpg": b"not in the list"})
    not_listed = ("odd/x", "odd/empty-mark/", "odd/ends-in-a-slash.jpg/", "odd/a**b/[x]{1,2}.jpg")
    given = at(dense) | at(ODD, *not_listed)
    missing = [f"s3://{BUCKET}/{folder}/gone.jpg" for folder in ("dense", "odd", "nowhere")]
    lines = [*missing, *sorted(given, key=lambda uri: uri[::-1])]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    asked = []
    real = name_lookup.object_info
    monkeypatch.setattr(name_lookup, "object_info", lambda fs, path: asked.append(path) or real(fs, path))
    names = expand_sources([f"@{tmp_path}/list.txt"])
    (shard,) = find_shards(names).shards
    assert len(asked) < len(ODD) + len(missing)
    found = {
        f"{row['folder']}/{row['key']}": row["error"]
        for row in rows_of(read_units(shard, ReadSettings(unit_rows=99)))
    }
    assert found == dict.fromkeys(given) | dict.fromkeys(missing, "not_found")
    data = b"".join(unit.payload.tobytes() for unit in read_units(shard, ReadSettings(unit_rows=99)))
    assert data == b"".join(given[uri] for uri in lines if uri in given)
    report = verify(str(build(tmp_path / "out", names)), source=True)
    assert report.ok and report.recounted == len(lines), report.findings


def test_a_listing_of_odd_keys_goes_on_behind_any_of_them(put, monkeypatch):
    put(ODD)
    monkeypatch.setattr(finder_module, "PAGE", 1)
    whole = find_shards([f"s3://{BUCKET}/odd"]).shards
    for place in range(len(whole)):
        cursor = ListingCursor()
        cursor.advance(whole[: place + 1])
        assert list(Finder([f"s3://{BUCKET}/odd"]).shards(cursor)) == whole[place + 1 :]


def test_tars_under_odd_names_are_read_from_any_place_and_images_fetched_again(tmp_path, put):
    names = ["t//a.tar", "t/a.tar", "t/b::1.tar", "t/b?versionId=1.tar"]
    for number, name in enumerate(names):
        members = [(f"{image}.jpg", b"%d%d" % (number, image)) for image in range(9)]
        put({name: write_tar(tmp_path / "a.tar", members).read_bytes()})
    report = verify(str(build(tmp_path / "out", f"s3://{BUCKET}/t")), source=True)
    assert report.ok and report.rows == report.recounted == 36, report.findings
    settings = ReadSettings(unit_rows=4)
    for number, shard in enumerate(find_shards([f"s3://{BUCKET}/t"]).shards):
        assert shard.uri == f"s3://{BUCKET}/{names[number]}"
        _, before, last = read_units(shard, settings)
        (again,) = read_units(shard, settings, 2, before.next_offset, before.next_index)
        assert again.payload.tobytes() == last.payload.tobytes() == b"%d8" % number
        (row,) = again.samples.to_pylist()
        place = {name: row[name] for name in ("key", "index", "offset", "size")}
        failed = [retry.FailedSample(**place, error="truncated")]
        assert retry._fetch_ranges(shard, failed, settings) == {8: b"%d8" % number}


def test_a_table_under_an_odd_name_names_its_own_neighbours(tmp_path, put):
    cells = ["a.jpg", "./a.jpg", "../a.jpg", f"s3://{BUCKET}/p/a.jpg", f"s3://{BUCKET}/p//a.jpg", "no.jpg"]
    write_parquet(tmp_path / "t.parquet", {"url": cells})
    table = (tmp_path / "t.parquet").read_bytes()
    put({"p//t?versionId=1.parquet": table, "p//a.jpg": b"two ", "p/a.jpg": b"one ", "a.jpg": b"none"})
    (shard,) = find_shards([f"s3://{BUCKET}/p//t?versionId=1.parquet"]).shards
    (unit,) = read_units(shard, ReadSettings(unit_rows=9))
    assert [row["error"] for row in rows_of([unit])] == [None] * 5 + ["not_found"]
    assert unit.payload.tobytes() == b"two two one one two "
    assert verify(str(build(tmp_path / "out", shard.uri)), source=True).recounted == len(cells)


def test_an_update_adds_the_twin_and_nothing_else(tmp_path, put):
    put(TWINS)
    out = build(tmp_path / "out", f"s3://{BUCKET}/imgs")
    put({"imgs//c.jpg": b"a new twin", "imgs/c.jpg": b"changed"})
    found = find_changes(FrozenListing(RunFolder(str(out))), Finder([f"s3://{BUCKET}/imgs"], image_keys=KEYS))
    assert [member["key"] for shard in found.shards for member in shard.members] == ["/c.jpg"]
    assert found.changed == [f"s3://{BUCKET}/imgs/c.jpg"]


def test_a_failed_image_is_fetched_again_from_its_own_key(put):
    put(TWINS)
    (shard,) = find_shards([f"s3://{BUCKET}/imgs"]).shards
    failed = [
        retry.FailedSample(key=key, index=index, offset=0, size=4, error="decode_error")
        for index, key in enumerate(["/b.jpg", "b.jpg"])
    ]
    assert retry._fetch_objects(shard, failed, ReadSettings(unit_rows=9)) == {0: b"red!", 1: b"blue"}


@pytest.mark.long  # the rows of such keys: the tests above; a labelled run of odd names: test_trials
def test_a_labelled_run_has_the_pixels_of_each_key_and_an_update_adds_its_twin(
    tmp_path, put, store, local_ray, small_model
):
    model = load_folder(small_model)
    options = {"key": KEY, "secret": SECRET, "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    widths = {"imgs//b.jpg": 21, "imgs/b.jpg": 22, "imgs/c.jpg": 23, "imgs/x?versionId=1.jpg": 24}
    put({name: photo(width, size=(width, 16)) for name, width in widths.items()})
    source = f"s3://{BUCKET}/imgs"
    run(tmp_path, model, source, storage_options=options)
    put({"imgs//c.jpg": photo(25, size=(25, 16))})
    summary, _ = run(tmp_path, model, source, storage_options=options, update=True)
    assert summary.rows == 5 and not summary.errors
    found = {f"{row['shard']}/{row['key']}": row["width"] for row in rows(tmp_path)}
    assert found == at(widths | {"imgs//c.jpg": 25})
    report = verify(str(tmp_path / "out"), source=True, storage_options=options)
    assert report.ok and report.recounted == 5, report.findings


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.long)])
def test_keys_of_every_unicode_class_are_a_row_each(tmp_path, put, monkeypatch, count):
    monkeypatch.setattr(runs, "UNIT_ROWS", 512)
    separators = ("/", "/", "//", "///", "/../", "/./")
    made = make_names(count - 1, seed=3, part_bytes=900, name_bytes=1000, without="\n", separators=separators)
    keys = [f"fuzz/{name}" for name in made] + [f"fuzz/{longest(1019, part_bytes=1024)}"]
    put({key: key.encode() for key in keys})
    met: dict[str, bytes] = {}

    def read(shard):
        units = list(read_units(shard, ReadSettings(unit_rows=1, image_keys=KEYS)))
        rows = [unit.samples.to_pylist()[0] for unit in units]
        for row, unit in zip(rows, units, strict=True):
            met[f"{shard.uri}/{row['key']}"] = unit.payload.tobytes()
        return rows

    report = verify(str(build(tmp_path / "out", f"s3://{BUCKET}/fuzz", reader=read)), source=True)
    assert report.ok and report.rows == report.recounted == count and not report.errors, report.findings
    assert met == at({key: key.encode() for key in keys})
    some = list(met)[::10]
    allowed = {ALLOW_URIS: [f"s3://{BUCKET}"]}
    table = write_parquet(tmp_path / "t.parquet", {"url": some})
    units = units_of(table, rows=count, storage_options=allowed)
    assert [(row["key"], row["error"]) for row in rows_of(units)] == [(uri, None) for uri in some]
    assert b"".join(unit.payload.tobytes() for unit in units) == b"".join(met[uri] for uri in some)


def test_verify_catches_a_reader_that_cuts_slashes_from_keys(tmp_path, put):
    put(TWINS)

    def cut(shard):
        return [{**row, "key": row["key"].lstrip("/")} for row in read_rows(shard)]

    out = build(tmp_path / "out", f"s3://{BUCKET}/imgs", reader=cut)
    assert codes(verify(str(out), source=True)) & {"missing_sample", "wrong_key", "extra_row"}
