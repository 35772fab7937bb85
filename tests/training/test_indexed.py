"""An index beside packed shards: what it saves, when it counts, and that it never makes a count wrong."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from tests.support.counting_store import CountingStore
from tests.support.samples import encoded, photo
from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources import shard_index
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.pack import pack
from wordsworth.pipeline.sources.passed_over import ListingRules
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shard_index import INDEX, BadIndex, ShardIndex
from wordsworth.pipeline.sources.shards import Shard, listing_table
from wordsworth.pipeline.sources.tar_keys import KeyRule
from wordsworth.pipeline.training import survey as training_survey
from wordsworth.pipeline.training.batches import ShardCursor
from wordsworth.pipeline.training.indexed import ContentCheck, counts_of_indexes
from wordsworth.pipeline.training.stream import _read_stage, remaining_rows
from wordsworth.pipeline.training.survey import count_quickly, survey, survey_shard

READING = ReadSettings(unit_rows=4, keep=("cls",))
ODD = ("a.b.jpg", "a_b.jpg", "x.jpg", "x.png", "sub.v1/y.jpg", "é ü/图.jpg", "__x__/a.jpg", ".b/.a.webp")


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """Return a folder of three packed shards: 20 images of two classes, one of them empty."""
    folder = tmp_path_factory.mktemp("packed")
    for number in range(12):
        _write(folder / "in" / "cat" / f"{number}.jpg", b"" if number == 3 else encoded(photo(number)))
    for name in ODD:
        _write(folder / "in" / "dog" / name, encoded(photo(7), "PNG"))
    rules = ListingRules(include_hidden=True)
    assert pack(str(folder / "in"), str(folder / "out"), shard_size=8, rules=rules).is_indexed
    return folder / "out"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def copied(packed, tmp_path) -> Path:
    """Return a copy of the folder, which a test may change."""
    for path in packed.iterdir():
        _write(tmp_path / "copy" / path.name, path.read_bytes())
    return tmp_path / "copy"


def counts(source, target: str | None = "cls", reading: ReadSettings = READING):
    """Return the survey of a folder, the notes, and the shards that were read for it."""
    notes: list[str] = []
    shards = find_shards([str(source)], storage_options=reading.storage_options).shards
    known = counts_of_indexes(shards, reading, target, notes.append)
    found = survey(shards, reading, target, count_quickly(shards, reading, target, lambda line: None))
    return found, notes, [shard.uri.rpartition("/")[2] for shard in shards if shard.name not in known]


def truth(source, target: str | None = "cls") -> tuple[dict[str, int], Counter[str]]:
    """Return samples by shard, and classes, as reading the shards counts them."""
    rows: dict[str, int] = {}
    classes: Counter[str] = Counter()
    for shard in find_shards([str(source)]).shards:
        rows[shard.name], met = survey_shard(shard, READING, target)
        classes.update(met)
    return rows, classes


def change(folder: Path, **fields) -> None:
    """Change fields of the first shard in an index."""
    told = json.loads((folder / INDEX).read_bytes())
    told["shards"][0] |= fields
    (folder / INDEX).write_text(json.dumps(told))


@pytest.mark.parametrize("target", ["cls", None])
@pytest.mark.parametrize("rule", get_args(KeyRule))
def test_an_index_says_what_a_count_of_the_shards_finds_by_every_key_rule(packed, rule, target):
    reading = ReadSettings(unit_rows=4, keep=("cls",) if target else (), key_rule=rule)
    shards = find_shards([str(packed)]).shards
    known = counts_of_indexes(shards, reading, target, pytest.fail)
    assert len(known) == 3
    for shard in shards:
        count = known[shard.name]
        assert (count.samples, count.classes) == survey_shard(shard, reading, target)


def test_a_survey_of_packed_shards_in_a_store_is_their_listing_and_one_get(packed, monkeypatch):
    monkeypatch.setattr(training_survey, "survey_shard", lambda *shard: pytest.fail("a shard was read"))
    with CountingStore(packed.parent.parent).serving() as store:
        options = {"key": "K", "secret": "S", "endpoint_url": store.url, "use_listings_cache": False}
        reading = ReadSettings(unit_rows=4, keep=("cls",), storage_options=options)
        source = f"s3://{packed.parent.name}/out"
        shards = find_shards([source], storage_options=options).shards
        listed = store.counts
        store.requests.clear()
        found = survey(shards, reading, "cls", count_quickly(shards, reading, "cls", pytest.fail))
        assert store.counts == {"GET": 1} and "GET" not in listed
        assert store.requests[0].path.endswith(f"out/{INDEX}")
        assert found.total == 20 and found.classes == {"0": 12, "1": 8}


def test_a_shard_that_changed_is_read_and_the_others_are_not(copied):
    extra = (copied / "shard-00001.tar").read_bytes()
    (copied / "shard-00001.tar").write_bytes((copied / "shard-00002.tar").read_bytes())
    (copied / "more.tar").write_bytes(extra)
    found, notes, read = counts(copied)
    assert (found.rows, found.classes) == truth(copied)
    assert read == ["more.tar", "shard-00001.tar"]
    assert notes == [f"{copied}/{INDEX} does not know 2 of 4 shards as they are now: these are read"]
    assert len(found.indexed) == 2


def test_in_a_store_a_shard_of_the_same_size_and_another_etag_is_read(packed):
    with s3_bucket() as bucket:
        files = {path.relative_to(packed.parent): path for path in packed.parent.rglob("*") if path.is_file()}
        bucket.objects.update({f"b/{name}": path.read_bytes() for name, path in files.items()})
        pack("s3://b/in", "s3://b/new", shard_size=8, rules=ListingRules(include_hidden=True))
        assert counts("s3://b/new")[1:] == ([], [])
        changed = bytearray(bucket.objects["b/new/shard-00000.tar"])
        changed[-1024 * 9] ^= 1
        bucket.objects["b/new/shard-00000.tar"] = bytes(changed)
        assert counts("s3://b/new")[2] == ["shard-00000.tar"]


BROKEN = {
    "no JSON": b"{",
    "deep": b"[" * 100_000,
    "empty": b"",
    "a list": b"[]",
    "another file": b'{"shards": []}',
    "another version": b'{"form": "wordsworth shards", "version": 2}',
    "no shards": b'{"form": "wordsworth shards", "version": 1, "labels": [], "extensions": []}',
    "labels": b'{"form": "wordsworth shards", "version": 1, "labels": [1], "extensions": [], "shards": []}',
    "not UTF-8": b'{"form": "\xff"}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_index_is_one_line_and_all_shards_are_read(copied, content):
    (copied / INDEX).write_bytes(content)
    found, notes, read = counts(copied)
    assert (found.rows, found.classes) == truth(copied) and len(read) == 3 and not found.indexed
    (note,) = notes
    assert note.startswith(f"{copied}/{INDEX} is not used, all shards beside it are read: ")
    assert "\n" not in note and len(note) < 300


IMPOSSIBLE = {
    "samples": {"samples": 10**9},
    "negative": {"samples": -1},
    "truth": {"samples": True},
    "float": {"samples": 8.0},
    "classes": {"classes": {"0": 9}},
    "class without a label": {"classes": {"2": 1}},
    "class": {"classes": {"-1": 1}},
    "zeros": {"classes": {"00": 1}},
    "other digits": {"classes": {"١": 1}},
    "long": {"classes": {"1" * 5000: 1}},
    "list": {"classes": [4, 4]},
    "name": {"name": ["shard-00000.tar"]},
    "twice": {"name": "shard-00001.tar"},
    "a field more": {"more": 1},
}


@pytest.mark.parametrize("fields", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_index_that_says_what_cannot_be_is_not_used(copied, fields):
    change(copied, **fields)
    found, notes, read = counts(copied)
    assert (found.rows, found.classes) == truth(copied) and len(notes) == 1 and len(read) == 3


def test_an_index_larger_than_any_is_not_read_whole(copied, monkeypatch):
    monkeypatch.setattr(shard_index, "MAX_BYTES", 100)
    found, notes, _ = counts(copied)
    assert found.rows == truth(copied)[0] and "it has more than 100 bytes" in notes[0]


def test_an_index_that_cannot_be_read_is_one_line_and_all_shards_are_read(copied):
    (copied / INDEX).unlink()
    os.mkfifo(copied / INDEX)
    found, notes, read = counts(copied)
    assert found.rows == truth(copied)[0] and len(read) == 3
    assert "all shards beside it are read: it cannot be read (" in notes[0] and "\n" not in notes[0]


def test_an_index_counts_for_no_other_target_and_no_fewer_images(copied):
    _, notes, read = counts(copied, "folder", ReadSettings(unit_rows=4))
    assert notes[0].endswith("it counts cls, not --target folder") and len(read) == 3
    _, notes, read = counts(
        copied, "cls", ReadSettings(unit_rows=4, keep=("cls",), image_keys=("jpg", "png"))
    )
    assert notes[0].endswith("--image-key leaves out some of the images that it counts") and len(read) == 3


def test_shards_without_classes_have_an_index_for_objectives_without_classes(tmp_path):
    for number in range(3):
        _write(tmp_path / "in" / f"{number}.png", encoded(photo(number), "PNG"))
    pack(str(tmp_path / "in"), str(tmp_path / "out"))
    found, notes, read = counts(tmp_path / "out", None, ReadSettings(unit_rows=4))
    assert (found.total, notes, read) == (3, [], [])
    (shard,) = find_shards([str(tmp_path / "out")]).shards
    with pytest.raises(UserError, match="has no class: --target cls gives None"):
        count_quickly([shard], READING, "cls", lambda line: None)


def test_an_index_is_written_last_and_what_it_says_comes_back(packed, tmp_path, monkeypatch):
    index = ShardIndex.from_json((packed / INDEX).read_bytes())
    assert ShardIndex.from_json(index.to_json()) == index
    assert index.labels == ("cat", "dog") and index.extensions == ("jpg", "png", "webp")

    def overwrite(fs, path, data):
        assert {path.name for path in tmp_path.iterdir()} >= {f"shard-0000{n}.tar" for n in range(3)}
        raise KeyboardInterrupt

    monkeypatch.setattr("wordsworth.pipeline.sources.pack.overwrite", overwrite)
    with pytest.raises(KeyboardInterrupt):
        pack(str(packed.parent / "in"), str(tmp_path), 8, rules=ListingRules(include_hidden=True))
    assert not (tmp_path / INDEX).exists()
    with pytest.raises(BadIndex):
        ShardIndex.from_json(index.to_json()[:-10])


# ---- while the shards are read ----


def read(folder: Path, check: ContentCheck) -> int:
    """Read the first shard as training does, and return the number of its units."""
    shard = Shard.from_row(listing_table(find_shards([str(folder)]).shards).to_pylist()[0])
    return len(list(_read_stage(remaining_rows([shard], 0, ShardCursor()), READING, check)))


def test_what_an_index_says_is_confirmed_when_the_shard_is_read(copied):
    found, _, _ = counts(copied)
    assert read(copied, ContentCheck(target="cls", digests=found.indexed)) == 2


@pytest.mark.parametrize("fields", [{"samples": 9}, {"samples": 7}, {"classes": {"0": 6, "1": 2}}])
def test_an_index_that_lies_ends_in_one_line_before_the_shards_last_unit(copied, fields):
    told = json.loads((copied / INDEX).read_bytes())["shards"][0]
    assert told["samples"] == 8 and told["classes"] != {"0": 6, "1": 2}
    change(copied, **({"classes": {}} | fields))
    found, notes, _ = counts(copied)
    assert not notes and len(found.indexed) == 3
    units = []
    with pytest.raises(UserError, match=r"shard-00000.tar holds 8 images, and not what _index.json beside"):
        shard = find_shards([str(copied)]).shards[0]
        rows = remaining_rows([shard], 0, ShardCursor())
        for unit in _read_stage(rows, READING, ContentCheck(target="cls", digests=found.indexed)):
            units.append(unit)
    assert len(units) == 1
