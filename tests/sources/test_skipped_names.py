"""One rule says which names are skipped, in folders and in buckets, and every name that is skipped counts."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.frozen_listing import FirstPage, FrozenListing
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.output.source_changes import find_changes
from wordsworth.pipeline.sources.finder import Finder, find_shards
from wordsworth.pipeline.sources.passed_over import ListingRules
from wordsworth.pipeline.sources.skipped_names import NameFilter, part_below_pattern, skip_kind
from wordsworth.pipeline.storage import walk

IMAGES = ["cat/1.jpg", "dog/1.jpg", "_2.jpg", "_a/3.jpg", "a.b/4.jpg", "x/__b__/5.jpg", "$a/6.jpg"]
SKIPPED = {
    ".thumbnails/t.jpg": "thumbnails",
    "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg": "thumbnails",
    ".ipynb_checkpoints/1-checkpoint.jpg": "checkpoints",
    ".Trash-1000/files/x.jpg": "trash",
    "$RECYCLE.BIN/S-1-5/x.jpg": "trash",
    "System Volume Information/x.jpg": "system",
    "__MACOSX/cat/._1.jpg": "macosx",
    "cat/._1.jpg": "apple_double",
    "dog/.2.jpg": "hidden",
    "dog/.git/3.jpg": "hidden",
    "PaxHeaders.12/a.jpg": "pax_header",
    "__meta__/a.jpg": "meta",
}
ALL = ListingRules(include_hidden=True)
COUNTS = {
    "thumbnails_folder": 2,
    "checkpoints_folder": 1,
    "trash_folder": 2,
    "system_folder": 1,
    "macosx_folder": 1,
    "apple_double": 1,
    "hidden": 1,
    "hidden_folder": 1,
    "pax_header_folder": 1,
    "meta_folder": 1,
}


def fill(root: Path, names, data: bytes = b"bytes") -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def keys(listing) -> list[str]:
    return [member["key"] for shard in listing.shards for member in shard.members]


def test_every_kind_of_name_is_skipped_and_its_neighbours_are_not():
    assert {name: skip_kind(name) for name in SKIPPED} == SKIPPED
    assert [name for name in IMAGES if skip_kind(name)] == []
    assert skip_kind("./a.jpg") is None and skip_kind("../b/./a.jpg") is None  # as tars have them


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_folder_and_a_bucket_skip_the_same_names_with_the_same_counts(tmp_path, where):
    if where == "disk":
        listing = find_shards([str(fill(tmp_path, [*IMAGES, *SKIPPED]))])
    else:
        with s3_bucket() as bucket:
            bucket.objects.update({f"b/p/{name}": b"bytes" for name in [*IMAGES, *SKIPPED]})
            listing = find_shards(["s3://b/p"])
    assert keys(listing) == sorted(IMAGES)
    assert listing.skipped == COUNTS and listing.ignored == {}


def test_a_listing_without_folders_gives_the_counts_of_one_by_folders():
    more = [name.replace(".jpg", ".png") for name in SKIPPED if "/" in name]  # each folder holds several
    skipped: Counter[str] = Counter()
    names = NameFilter(skipped)
    taken = [name for name in sorted([*IMAGES, *SKIPPED, *more]) if names.takes_file(name)]
    assert taken == sorted(IMAGES)
    assert skipped == COUNTS | {"apple_double": 2, "hidden": 2}


def test_nobody_looks_into_a_folder_that_is_skipped(tmp_path, monkeypatch):
    fill(tmp_path, [*IMAGES, *SKIPPED])
    asked: list[str] = []
    real = walk._folder_on_disk
    monkeypatch.setattr(walk, "_folder_on_disk", lambda folder: asked.append(folder) or real(folder))
    find_shards([str(tmp_path)])
    names = ["", "/$a", "/_a", "/a.b", "/cat", "/dog", "/x", "/x/__b__"]
    assert asked == [f"{tmp_path}{name}" for name in names]


def test_include_hidden_takes_every_name(tmp_path):
    listing = find_shards([str(fill(tmp_path, [*IMAGES, *SKIPPED]))], rules=ALL)
    assert keys(listing) == sorted([*IMAGES, *SKIPPED]) and listing.skipped == {}


def test_what_the_user_names_is_never_skipped(tmp_path):
    fill(tmp_path / ".data" / ".hidden", ["a.jpg", ".b.jpg", "._c.jpg", ".git/d.jpg"])
    folder = f"{tmp_path}/.data/.hidden"
    assert keys(find_shards([folder])) == ["a.jpg"]
    assert keys(find_shards([f"{folder}/.b.jpg", f"{folder}/._c.jpg"])) == [".b.jpg", "._c.jpg"]
    assert keys(find_shards([f"{folder}/.git"])) == ["d.jpg"]
    listing = find_shards([f"{folder}/*.jpg", f"{folder}/.g*/*"])
    assert keys(listing) == ["a.jpg", ".git/d.jpg"]
    assert listing.skipped == {"hidden": 1, "apple_double": 1}


@pytest.mark.parametrize(
    ("pattern", "path", "part"),
    [
        ("/d/*", "/d/.a.jpg", ".a.jpg"),
        ("/d/.*", "/d/.a.jpg", ""),
        ("/d/.x/*", "/d/.x/a.jpg", "a.jpg"),
        ("/d/*/.x/*", "/d/e/.x/a.jpg", "e/a.jpg"),
        ("/d/**", "/d/.x/.y/a.jpg", ".x/.y/a.jpg"),
        ("/d/**/.y/*.jpg", "/d/.x/z/.y/a.jpg", ".x/z/a.jpg"),
        ("/d/[.]x/?.jpg", "/d/.x/a.jpg", ".x/a.jpg"),
    ],
)
def test_of_a_glob_only_what_its_wildcards_stand_for_is_judged(pattern, path, part):
    assert part_below_pattern(pattern, path) == part


def test_records_of_a_table_are_no_tables_and_its_partitions_are(tmp_path):
    tables = ["a.parquet", "_year=2024/b.parquet", "c_d/e.csv"]
    fill(tmp_path, [*tables, "_log/00.checkpoint.parquet", "_tmp/f.csv", "_g.jsonl", "_SUCCESS"])
    listing = find_shards([str(tmp_path)])
    assert [shard.uri for shard in listing.shards] == sorted(f"{tmp_path}/{name}" for name in tables)
    assert listing.skipped == {"underscore": 3} and listing.ignored == {"without an extension": 1}
    assert len(find_shards([str(tmp_path)], rules=ALL).shards) == 6


def test_shards_in_hidden_folders_are_no_shards(tmp_path):
    fill(tmp_path, ["a.tar", "._a.tar", ".old/b.tar"])
    listing = find_shards([str(tmp_path)])
    assert [shard.uri for shard in listing.shards] == [f"{tmp_path}/a.tar"]
    assert listing.skipped == {"apple_double": 1, "hidden_folder": 1}


def test_two_sources_count_their_own_skipped_folders(tmp_path):
    fill(tmp_path, ["a/1.jpg", "a/.t/1.jpg", "b/1.jpg", "b/.t/1.jpg"])
    assert find_shards([f"{tmp_path}/a", f"{tmp_path}/b"]).skipped == {"hidden_folder": 2}


def test_a_source_of_skipped_names_alone_says_so(tmp_path):
    fill(tmp_path, [".a.jpg", ".b/c.jpg"])
    with pytest.raises(UserError, match=r"skipped by their names: 1 hidden.*; --include-hidden takes them"):
        find_shards([str(tmp_path)])


def test_hidden_images_of_an_earlier_version_can_be_dropped_from_a_run(tmp_path):
    frozen = FrozenListing(RunFolder(str(tmp_path / "out")))
    source = str(fill(tmp_path / "in", ["a.jpg", ".b.jpg", ".c/d.jpg"]))
    FirstPage.of(Finder([source], rules=ALL)).freeze(frozen)
    found = find_changes(frozen, Finder([source]), drop_missing=True)
    assert (found.new, found.changed, found.gone) == (0, [], 2)


def test_a_page_of_the_listing_says_what_was_skipped_and_is_that_of_old_where_nothing_was(tmp_path):
    frozen = FrozenListing(RunFolder(str(tmp_path / "out")))
    fill(tmp_path / "in", ["a.jpg", ".b.jpg"])
    FirstPage.of(Finder([str(tmp_path / "in")])).freeze(frozen)
    assert frozen.passed_over().skipped == {"hidden": 1}
    other = FrozenListing(RunFolder(str(tmp_path / "other")))
    FirstPage.of(Finder([str(tmp_path / "in" / "a.jpg")])).freeze(other)
    assert other.passed_over().skipped == {} and "skipped" not in other.metadata(other.files()[0]).to_json()
