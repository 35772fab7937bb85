"""Show that images that are named one by one are read in pages, and have the rows that each has alone."""

import hashlib
import os
import pickle
import random
from pathlib import Path

import pytest

from tests.support.runs import build, codes
from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.frozen_listing import split_into_pages
from wordsworth.pipeline.sources import finder as finder_module
from wordsworth.pipeline.sources import source_names
from wordsworth.pipeline.sources.finder import Finder, find_shards
from wordsworth.pipeline.sources.listing_cursor import ListingCursor
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.source_lists import expand_sources
from wordsworth.pipeline.sources.source_names import NameSet, SourceNames
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


# ---- lists -------------------------------------------------------------------------------------------------


def in_list(tmp_path: Path, *lines: str, encoding: str = "utf-8") -> SourceNames:
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding=encoding)
    return expand_sources([f"@{tmp_path}/list.txt"])


def errors_of(shards: list[Shard]) -> dict[str, str | None]:
    units = [unit for shard in shards for unit in read_units(shard, ReadSettings(unit_rows=3))]
    assert not any(unit.fault for unit in units), units[0].fault
    return {row["key"]: row["error"] for unit in units for row in unit.samples.to_pylist()}


def test_what_a_list_names_and_is_not_there_is_a_row(tmp_path):
    paths = fill(tmp_path, "a/1.jpg", "b/2.jpg", "b/x[1].jpg")
    os.symlink("/nowhere", tmp_path / "b" / "link.jpg")
    lost = ["a/gone.jpg", "gone/3.jpg", "a/y[1].jpg", "a/1.jpg/4.jpg", "b/link.jpg"]
    sources = in_list(tmp_path, *paths, *(f"{tmp_path}/{name}" for name in lost), f"{tmp_path}/b/x*.jpg")
    shards = find_shards(sources).shards
    assert errors_of(shards) == {
        **dict.fromkeys(("1.jpg", "2.jpg", "x[1].jpg"), None),
        **dict.fromkeys(("gone.jpg", "3.jpg", "y[1].jpg", "4.jpg", "link.jpg"), "not_found"),
    }


def test_what_the_command_line_names_and_is_not_there_is_refused(tmp_path):
    paths = fill(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(UserError, match=r"nothing found at .*/typo.jpg: no such file"):
        find_shards([paths[0], f"{tmp_path}/typo.jpg", paths[1]])


def test_a_list_of_which_nothing_is_there_is_refused(tmp_path):
    names = [f"{tmp_path}/{number}.jpg" for number in range(3)]
    with pytest.raises(
        UserError, match=r"none of 3 images that a list names is there, first .*/0.jpg: mount the"
    ):
        find_shards(in_list(tmp_path, *names))


def test_a_list_that_loses_its_disk_while_it_is_looked_up_gives_no_rows_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(finder_module, "PAGE", 2)
    paths = fill(tmp_path, *(f"d/{number}.jpg" for number in range(6)))
    shards = Finder(in_list(tmp_path, *paths)).shards()
    assert len(next(shards).members) == 2
    (tmp_path / "d").rename(tmp_path / "unmounted")
    with pytest.raises(UserError, match="none of 2 images that a list names is there"):
        next(shards)


def test_objects_that_a_store_does_not_have_or_does_not_give_are_rows(tmp_path):
    with s3_bucket() as bucket:
        bucket.objects.update({f"b/p{number}/{number}.jpg": b"x" for number in range(3)})
        names = [f"s3://b/p{number}/{number}.jpg" for number in range(5)]
        shards = find_shards(in_list(tmp_path, *names)).shards
        assert errors_of(shards) == {
            **dict.fromkeys(("0.jpg", "1.jpg", "2.jpg"), None),
            **dict.fromkeys(("3.jpg", "4.jpg"), "not_found"),
        }


def test_an_image_that_comes_after_the_listing_is_labelled_and_verified(tmp_path):
    paths = fill(tmp_path / "in", "a/1.jpg", "b/2.jpg")
    os.remove(paths[1])
    sources = in_list(tmp_path, *paths)
    listing = find_shards(sources)
    fill(tmp_path / "in", "b/2.jpg")
    assert [f"{folder}/{key}" for folder, key in places(listing.shards)] == paths


def test_verify_agrees_with_the_rows_of_a_list_and_finds_a_reader_that_leaves_lost_names_out(tmp_path):
    paths = fill(tmp_path / "in", "a/1.jpg", "b/2.jpg", "b/3.jpg")
    os.remove(paths[1])
    sources = in_list(tmp_path, *paths)
    report = verify(str(build(tmp_path / "out", sources)), source=True)
    assert (report.findings, report.rows, dict(report.errors)) == ([], 3, {"not_found": 1})

    def without_lost(shard: Shard) -> list[dict]:
        return [row for row in read_all(shard) if row["error"] is None]

    out = build(tmp_path / "old", sources, reader=without_lost)
    assert "missing_sample" in codes(verify(str(out), source=True))
    Path(paths[1]).write_bytes(b"back again")
    assert codes(verify(str(tmp_path / "out"), source=True)) == {"wrong_error"}


def test_a_line_that_is_no_utf8_is_left_out_by_name_and_stops_no_other(tmp_path):
    (path,) = fill(tmp_path, "1.jpg")
    (tmp_path / "list.txt").write_bytes(os.fsencode(tmp_path) + b"/caf\xe9.jpg\n" + path.encode())
    listing = find_shards(expand_sources([f"@{tmp_path}/list.txt"]))
    assert [f"{folder}/{key}" for folder, key in places(listing.shards)] == [path]
    assert listing.passed_over.left_out == {f"name: {tmp_path}/caf\\xe9.jpg": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_as_windows_writes_it_is_read(tmp_path, encoding):
    paths = fill(tmp_path, "é\u2028x/1.jpg", "b\x85/2.jpg")
    listing = find_shards(in_list(tmp_path, *paths, encoding=encoding))
    assert [f"{folder}/{key}" for folder, key in places(listing.shards)] == paths


# ---- many names --------------------------------------------------------------------------------------------


def test_many_names_are_held_in_few_bytes_and_come_back(monkeypatch):
    names = [f"/data/train/{number // 1000:05d}/image_{number}.jpg" for number in range(30_000)]
    names[5] = "odd \udcff\n\u2028"
    held = SourceNames(names[:10])
    for name in names[10:]:
        held.append(name, is_listed=name.endswith("7.jpg") or len(held) > 20_000)
    assert list(held) == names and len(held) == 30_000
    assert [held[number] for number in (0, 5, 4095, 4096, 12_345, 29_999, -1)] == [
        names[number] for number in (0, 5, 4095, 4096, 12_345, 29_999, -1)
    ]
    assert held.is_listed(17) and held.is_listed(29_999) and not held.is_listed(18) and not held.is_listed(7)
    assert len(pickle.dumps(held)) < 12 * len(names)


def test_a_set_of_many_names_knows_each_of_them(monkeypatch):
    monkeypatch.setattr(source_names, "HASHES_UNSORTED", 50)
    random.seed(0)
    known = NameSet()
    seen: set[str] = set()
    for _ in range(200):
        batch = [str(random.randrange(3000)) for _ in range(20)]
        expected = []
        for name in batch:
            expected.append(name in seen)
            seen.add(name)
        assert known.add(batch) == expected
    assert all((str(number) in known) == (str(number) in seen) for number in range(3000))


def test_the_hash_of_many_names_is_that_of_their_sorted_lines(monkeypatch):
    monkeypatch.setattr(source_names, "NAMES_IN_RUN", 7)
    names = [f"{number * 7919 % 1000} é" for number in range(100)]
    expected = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    assert source_names.sorted_names_hash(iter(names)) == expected
