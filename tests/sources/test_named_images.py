"""Show that images that are named one by one are read in pages, and have the rows that each has alone."""

import os
import random
from pathlib import Path

import pytest

from tests.support.runs import build, codes
from tests.support.stores import s3_bucket
from wordsworth.pipeline.output.frozen_listing import split_into_pages
from wordsworth.pipeline.sources import finder as finder_module
from wordsworth.pipeline.sources.finder import Finder, find_shards
from wordsworth.pipeline.sources.listing_cursor import ListingCursor
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.source_lists import expand_sources
from wordsworth.pipeline.unit import FOLDER
from wordsworth.pipeline.verification.verifier import verify


def fill(root: Path, *names: str) -> list[str]:
    """Write files, each with bytes of its own; return their paths."""
    paths = []
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 3)
        paths.append(str(path))
    return paths


def rows_of(shards: list[Shard]) -> list[tuple[str, str, bytes]]:
    """Return shard, key and bytes of each sample, in the order of the reading."""
    found = []
    for shard in shards:
        for unit in read_units(shard, ReadSettings(unit_rows=3)):
            assert unit.fault is None
            begin = 0
            for sample in unit.samples.to_pylist():
                data = unit.payload[begin : begin + sample["size"]].tobytes()
                begin += sample["size"]
                found.append((sample.get(FOLDER, unit.shard_uri), sample["key"], data))
    return found


def places(shards: list[Shard]) -> list[tuple[str, str]]:
    return [(folder, key) for folder, key, _ in rows_of(shards)]


def test_images_named_one_by_one_are_one_listing_and_each_keeps_the_shard_and_the_key_that_it_has_alone(
    tmp_path,
):
    paths = fill(tmp_path, "b/1.jpg", "a/1.jpg", "a/2.png", "a/deep/er/1.jpg", "x.jpg")
    listing = find_shards(paths)
    assert len(listing.shards) == 1
    alone = [row for path in paths for row in rows_of(find_shards([path]).shards)]
    assert rows_of(listing.shards) == alone
    assert [f"{folder}/{key}" for folder, key, _ in alone] == paths
    assert all(Path(folder, key).read_bytes() == data for folder, key, data in alone)


def test_the_order_and_the_other_sources_between_them_are_kept(tmp_path):
    paths = fill(tmp_path, "c.jpg", "a.jpg", "d/1.jpg", "d/2.jpg", "b.jpg", "odd.jpg/3.jpg", "e.jpg")
    sources = [paths[0], paths[1], f"{tmp_path}/d", paths[4], f"{tmp_path}/odd.jpg", f"{tmp_path}/e.*"]
    listing = find_shards(sources)
    assert [f"{folder}/{key}" for folder, key in places(listing.shards)] == paths
    assert [len(shard.members) for shard in listing.shards] == [2, 2, 1, 1, 1]


def test_a_name_with_the_letters_of_a_glob_is_in_the_page_too(tmp_path):
    paths = fill(tmp_path, "a[1].jpg", "b*.jpg", "c?.jpg")
    assert len(find_shards(paths).shards) == 1
    assert [f"{folder}/{key}" for folder, key in places(find_shards(paths).shards)] == paths


def test_an_image_that_is_named_twice_is_said_and_comes_once(tmp_path):
    paths = fill(tmp_path, "a.jpg", "b.jpg")
    listing = find_shards([*paths, paths[0], f"file://{paths[1]}", str(tmp_path)])
    assert [f"{folder}/{key}" for folder, key in places(listing.shards)] == paths
    (note,) = listing.passed_over.notes()
    assert note == f"left out 2 names that came before: {paths[0]}, {paths[1]}; each image is labelled once"


def test_a_folder_before_gives_what_is_named_behind_it(tmp_path):
    paths = fill(tmp_path, "d/a.jpg", "d/b.jpg", "e.jpg")
    listing = find_shards([f"{tmp_path}/d", *paths])
    assert [f"{folder}/{key}" for folder, key in places(listing.shards)] == paths


def test_names_of_two_stores_in_turn_are_a_page_for_each(tmp_path):
    local = fill(tmp_path, *(f"{number}/x.jpg" for number in range(4)))
    with s3_bucket() as bucket:
        stored = [f"s3://b/{number}/x.jpg" for number in range(4)]
        bucket.objects.update({uri.removeprefix("s3://"): uri.encode() for uri in stored})
        mixed = [path for pair in zip(local, stored, strict=True) for path in pair]
        shards = find_shards(mixed).shards
        assert [f"{folder}/{key}" for folder, key in places(shards)] == [*local, *stored]
        assert [shard.uri for shard in shards] == [str(tmp_path), "s3://b"]
        # A listing goes on behind the last of them, so no page of a listing ends between the two.
        assert [len(page) for page, _ in split_into_pages(shards, seconds=-1)] == [2]


@pytest.mark.parametrize("seed", range(5))
def test_a_listing_that_begins_behind_any_page_gives_the_rest(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(finder_module, "PAGE", 3)
    random.seed(seed)
    names = [f"{random.choice('abc')}/{number}.jpg" for number in range(20)]
    paths = fill(
        tmp_path, *names, "folder.jpg/1.jpg", "folder.jpg/2.jpg", "folder.jpg/3.jpg", "folder.jpg/4.jpg"
    )
    sources = [*paths[:20], f"{tmp_path}/folder.jpg", paths[0], f"{tmp_path}/a"]
    random.shuffle(sources)
    whole = find_shards(sources)
    assert sorted(f"{folder}/{key}" for folder, key in places(whole.shards)) == sorted(paths)
    for cut in range(len(whole.shards) + 1):
        cursor = ListingCursor()
        cursor.advance(whole.shards[:cut])
        rest = list(Finder(sources).shards(cursor))
        assert [shard.id for shard in rest] == [shard.id for shard in whole.shards[cut:]]


def test_no_two_rows_of_a_folder_have_one_index(tmp_path, monkeypatch):
    monkeypatch.setattr(finder_module, "PAGE", 2)
    paths = fill(tmp_path, *(f"d/{number}.jpg" for number in range(9)))
    shards = find_shards([paths[8], paths[3], f"{tmp_path}/d/1*", paths[7], f"{tmp_path}/d", paths[5]]).shards
    indexes = [shard.first_index + place for shard in shards for place in range(len(shard.members))]
    assert len(places(shards)) == len(set(indexes)) == 9


def test_verify_asks_for_named_images_by_their_names_and_nothing_else(tmp_path):
    paths = fill(tmp_path / "in", "b/1.jpg", "a/1.jpg", "a/2.jpg", "a/never.jpg", "c/1.jpg")
    out = build(tmp_path / "out", *map(Path, (paths[0], paths[1], paths[2], paths[4])))
    report = verify(str(out), source=True)
    assert (report.findings, report.rows, report.recounted, report.repeated_keys) == ([], 4, 4, 0)
    Path(paths[1]).write_bytes(b"other bytes")
    assert codes(verify(str(out), source=True)) == {"source_changed"}
    os.remove(paths[1])
    assert codes(verify(str(out), source=True)) == {"source_changed"}


def test_a_reader_that_mixes_up_folders_or_loses_an_image_is_found(tmp_path):
    paths = fill(tmp_path / "in", "b/1.jpg", "a/1.jpg", "a/2.jpg")
    for number, wrong in enumerate((lambda rows: rows[1:], lambda rows: [rows[1], rows[0], rows[2]])):
        out = build(
            tmp_path / f"out{number}", *map(Path, paths), reader=lambda shard, w=wrong: w(read_all(shard))
        )
        assert codes(verify(str(out))) == {"wrong_shard"}
        assert codes(verify(str(out), source=True)) > {"wrong_shard"}


def read_all(shard: Shard) -> list[dict]:
    units = read_units(shard, ReadSettings(unit_rows=4))
    return [row for unit in units for row in unit.samples.to_pylist()]


def test_a_list_of_images_is_a_page_however_its_lines_are_written(tmp_path, monkeypatch):
    paths = fill(tmp_path, "a b/1.jpg", "a b/2.jpg", "é/3.jpg", "{x}/4.jpg")
    monkeypatch.chdir(tmp_path)
    lines = ["a b/1.jpg", f"  {paths[1]}  ", "# a comment", "", f"file://{paths[2]}", "./{x}/4.jpg"]
    (tmp_path / "list.txt").write_text("\r\n".join(lines))
    listing = find_shards(expand_sources(["@list.txt"]))
    assert [f"{folder}/{key}" for folder, key in places(listing.shards)] == paths
    assert len(listing.shards) == 1
