"""The frozen listing: a stream that is continued where it was killed, and what an update adds to it."""

import os
import tracemalloc
from dataclasses import replace

import pytest

from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output import frozen_listing as listings
from wordsworth.pipeline.output import source_changes
from wordsworth.pipeline.output.frozen_listing import FirstPage, FrozenListing, PageMetadata, list_pages
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.output.source_changes import find_changes, freeze_update
from wordsworth.pipeline.sources import finder as sources
from wordsworth.pipeline.sources.finder import Finder, ListingCursor, find_shards
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.source_lists import expand_sources
from wordsworth.pipeline.storage import walk


def fill(root, *names: str, data: bytes = b"bytes"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1_000_000, 1_000_000))
    return root


@pytest.fixture
def small_pages(monkeypatch):
    """Five images in a shard, four shards in a page."""
    monkeypatch.setattr(sources, "PAGE", 5)
    monkeypatch.setattr(source_changes, "PAGE", 5)
    monkeypatch.setattr(listings, "SHARDS_IN_PAGE", 4)


@pytest.fixture
def images(tmp_path):
    """113 images in folders whose order is that of their paths and not that of their names."""
    names = (
        [f"a/{n:03d}.jpg" for n in range(40)]
        + [f"a.b/{n:03d}.jpg" for n in range(31)]
        + [f"{n:02d}.png" for n in range(42)]
    )
    return fill(tmp_path / "in", *names)


def frozen(tmp_path) -> FrozenListing:
    return FrozenListing(RunFolder(str(tmp_path / "out")))


def keys(shards) -> list[str]:
    return [member["key"] for shard in shards for member in shard.members]


def killing(put, page: int):
    """A put that dies at a page's number."""
    return lambda fs, path, data: 1 / 0 if f"{page:05d}" in path else put(fs, path, data)


def freeze_all(at: FrozenListing, *given: str) -> None:
    FirstPage.of(Finder([*given])).freeze(at)
    for _ in list_pages(at, Finder([*given])):
        pass


# ---- the stream -------------------------------------------------------------------------------------------


def test_every_file_comes_once_in_the_order_of_the_paths(images, small_pages):
    found = keys(Finder([str(images)]).shards())
    assert found == sorted(found) and len(found) == 113
    assert set(found) == {str(path.relative_to(images)) for path in images.rglob("*.*g")}


@pytest.mark.slow
def test_a_listing_may_go_on_behind_any_of_its_shards(images, tmp_path, small_pages):
    fill(tmp_path / "more", *(f"{n}.tar" for n in range(7)))
    given = [f"{images}/a", str(tmp_path / "more"), str(images)]
    whole = list(Finder(given).shards())
    assert len(keys(whole)) == 113 and sum(shard.kind == "tar" for shard in whole) == 7
    for cut in range(len(whole) + 1):
        place = ListingCursor()
        place.advance(whole[:cut])
        assert list(Finder(given).shards(place)) == whole[cut:]


def test_a_killed_listing_goes_on_behind_its_last_page(images, tmp_path, small_pages, monkeypatch):
    at, whole = frozen(tmp_path), list(Finder([str(images)]).shards())
    put = listings.put_if_absent
    for page in range(1, 7):  # killed once at each of its pages
        monkeypatch.setattr(
            listings,
            "put_if_absent",
            lambda fs, path, data, n=page: 1 / 0 if f"{n:05d}" in path else put(fs, path, data),
        )
        with pytest.raises(ZeroDivisionError):
            freeze_all(at, str(images))
        assert len(at.files()) == page and not at.complete
        if page == 5:
            break
    monkeypatch.setattr(listings, "put_if_absent", put)
    freeze_all(at, str(images))
    assert at.complete and list(at.shards()) == whole


def test_what_a_killed_listing_passed_over_counts_once(images, tmp_path, small_pages, monkeypatch):
    fill(
        images, *(f"{folder}/{name}" for folder in ("a", "a.b", "b") for name in (".x/1.jpg", "n.txt", ".z"))
    )
    fill(images, *(f"{n:02d}.png.txt" for n in range(42)))
    (images / "c").symlink_to(tmp_path)
    whole = find_shards([str(images)]).passed_over
    assert whole.ignored == {".txt": 45} and whole.skipped == {"hidden_folder": 3, "hidden": 3}
    put = listings.put_if_absent
    at = frozen(tmp_path)
    for page in range(1, 6):
        monkeypatch.setattr(listings, "put_if_absent", killing(put, page))
        with pytest.raises(ZeroDivisionError):
            freeze_all(at, str(images))
    monkeypatch.setattr(listings, "put_if_absent", put)
    freeze_all(at, str(images))
    assert len(at.files()) == 6 and at.passed_over() == whole


def test_two_jobs_that_list_at_once_freeze_one_listing(images, tmp_path, small_pages):
    at, finder = frozen(tmp_path), Finder([str(images)])
    FirstPage.of(finder).freeze(at)
    jobs = [list_pages(at, Finder([str(images)])) for _ in range(2)]
    given: list[list[str]] = [[], []]
    for turn in [0, 1, 1, 0, 0, 1, 0, 1, 0, 1]:
        for page in jobs[turn]:
            given[turn] += page["id"].to_pylist()
            break
    for job, ids in zip(jobs, given, strict=True):
        for page in job:
            ids += page["id"].to_pylist()
    whole = [shard.id for shard in finder.shards()]
    assert at.complete and [shard.id for shard in at.shards()] == given[0] == given[1] == whole


def test_a_page_that_others_wrote_with_other_shards_is_kept_and_gone_on_behind(images, tmp_path, small_pages):
    at, whole = frozen(tmp_path), list(Finder([str(images)]).shards())
    assert at.put(0, whole[:3], last=False, metadata=PageMetadata())  # a job with another idea of a page
    freeze_all(at, str(images))
    assert (
        list(at.shards()) == whole
        and not at.put(0, whole[:2], last=False, metadata=PageMetadata())
        and not at.put(0, whole[:2], last=True, metadata=PageMetadata())
    )


def test_what_was_ignored_is_said_by_the_pages(images, tmp_path, small_pages):
    fill(images, "a/notes.txt", "zz.txt", "labels.txt", "a.b/readme")
    at = frozen(tmp_path)
    freeze_all(at, str(images))
    assert at.passed_over().ignored == {".txt": 2, "without an extension": 1}


@pytest.mark.slow
def test_the_memory_of_a_listing_does_not_grow_with_it(tmp_path, monkeypatch):
    """A folder of 200 names at a time, of 20,000 and of 100,000 names."""

    def folder_on_disk(path):
        if path == str(tmp_path):
            return [(f"{path}/{n:04d}/", {"type": "directory", "size": 0}) for n in range(folders)]
        return [(f"{path}/{n:04d}.jpg", {"type": "file", "size": 1, "mtime": 1.0}) for n in range(200)]

    monkeypatch.setattr(walk, "_folder_on_disk", folder_on_disk)
    peaks = []
    for folders in (100, 500):
        tracemalloc.start()
        assert sum(len(shard.members) for shard in Finder([str(tmp_path)]).shards()) == 200 * folders
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


# ---- braces and lists -------------------------------------------------------------------------------------


def test_braces_are_expanded_as_a_shell_does(tmp_path):
    fill(tmp_path, *(f"part-{n:03d}.tar" for n in range(12)), "odd{1}.tar")
    found = find_shards(
        expand_sources([f"{tmp_path}/part-{{000..009}}.tar", f"{tmp_path}/{{part-011,odd{{1}}}}.tar"][:1])
    )
    assert [shard.uri[-7:] for shard in found.shards] == [f"{n:03d}.tar" for n in range(10)]
    assert expand_sources(["s3://b/{a,b}/{1..2}.tar"]) == [
        "s3://b/a/1.tar",
        "s3://b/a/2.tar",
        "s3://b/b/1.tar",
        "s3://b/b/2.tar",
    ]
    assert expand_sources([f"{tmp_path}/odd{{1}}.tar"]) == [
        f"{tmp_path}/odd{{1}}.tar"
    ]  # a name that is there is a name
    with pytest.raises(UserError, match="its braces do not close"):
        expand_sources(["s3://b/part-{000..009.tar"])


def test_a_missing_shard_of_a_brace_pattern_is_named(tmp_path):
    fill(tmp_path, "part-0.tar", "part-2.tar")
    with pytest.raises(UserError, match=r"nothing found at .*/part-1.tar"):
        find_shards(expand_sources([f"{tmp_path}/part-{{0..2}}.tar"]))


def test_a_list_file_names_sources_one_a_line(tmp_path):
    fill(tmp_path, "a.tar", "b.tar", "c/1.tar", "c/2.tar")
    (tmp_path / "list.txt").write_text(f"# nightly\n{tmp_path}/b.tar\n\n  {tmp_path}/c/{{1,2}}.tar\n")
    found = find_shards(expand_sources([f"@{tmp_path}/list.txt", f"{tmp_path}/a.tar"]))
    assert [shard.uri.removeprefix(f"{tmp_path}/") for shard in found.shards] == [
        "b.tar",
        "c/1.tar",
        "c/2.tar",
        "a.tar",
    ]
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for name, message in (("none.txt", "no such file; @FILE is a list"), ("empty.txt", "lists no source")):
        with pytest.raises(UserError, match=message):
            expand_sources([f"@{tmp_path}/{name}"])


def test_a_list_file_may_lie_on_a_store_and_braces_of_a_store_ask_it_nothing():
    with s3_bucket() as bucket:
        bucket.objects["b/list.txt"] = b"s3://b/x.tar\ns3://b/y-{0..1}.tar\n"
        assert expand_sources(["@s3://b/list.txt"]) == ["s3://b/x.tar", "s3://b/y-0.tar", "s3://b/y-1.tar"]
        bucket.refused = PermissionError
        assert len(expand_sources(["s3://b/y-{0..99}.tar"])) == 100


# ---- updates ----------------------------------------------------------------------------------------------


def rewritten(path) -> None:
    path.write_bytes(b"other bytes")


@pytest.fixture
def complete(images, tmp_path, small_pages):
    """A complete listing of the images and of three tars."""
    fill(tmp_path / "tars", "a.tar", "b.tar", "c.tar")
    at, given = frozen(tmp_path), [str(images), str(tmp_path / "tars")]
    freeze_all(at, *given)
    return at, given


def test_an_unchanged_source_has_no_changes(complete):
    at, given = complete
    found = find_changes(at, Finder(given), replace_changed=True)
    assert (found.new, found.changed, found.shards) == (0, [], [])


@pytest.mark.slow
def test_an_update_adds_what_is_new_and_numbers_it_on(complete, images, tmp_path):
    at, given = complete
    before = list(at.shards())
    fill(images, "a/0000.jpg", "new/1.jpg", *(f"zz/{n}.jpg" for n in range(6)))
    fill(tmp_path / "tars", "aa.tar")
    found = find_changes(at, Finder(given))
    assert found.new == 9 and not found.changed
    freeze_update(at, found)
    assert at.complete
    after = list(at.shards())
    assert after[: len(before)] == before
    assert sorted(keys(after)) == sorted(keys(Finder(given).shards()))
    added = [shard for shard in after[len(before) :] if shard.kind == "images"]
    assert [shard.first_index for shard in added] == [113, 118]  # behind the 113 that were there
    assert find_changes(at, Finder(given)).new == 0


@pytest.mark.slow
def test_what_was_overwritten_is_named_and_replaced_only_when_asked(complete, images, tmp_path):
    at, given = complete
    before = {shard.id: shard for shard in at.shards()}
    rewritten(images / "a" / "007.jpg")
    rewritten(tmp_path / "tars" / "b.tar")
    found = find_changes(at, Finder(given))
    assert (
        sorted(found.changed) == sorted([f"{images}/a/007.jpg", f"{tmp_path}/tars/b.tar"])
        and not found.shards
    )
    found = find_changes(at, Finder(given), replace_changed=True)
    freeze_update(at, found)
    after = {shard.id: shard for shard in at.shards()}
    gone, come = before.keys() - after.keys(), after.keys() - before.keys()
    assert len(gone) == len(come) == 2 and at.replaced() == gone
    page = next(shard for name, shard in after.items() if name in come and shard.kind == "images")
    old = next(shard for name, shard in before.items() if name in gone and shard.kind == "images")
    assert (page.first_index, keys([page])) == (old.first_index, keys([old]))  # the same rows of the listing
    assert sum(shard.size for shard in after.values()) == sum(
        shard.size for shard in before.values()
    ) + 2 * len(b"other ")
    assert not find_changes(at, Finder(given), replace_changed=True).shards


@pytest.mark.slow
def test_an_update_that_was_killed_while_it_listed_keeps_what_it_wrote_and_the_next_finds_the_rest(
    complete, images, monkeypatch
):
    at, given = complete
    fill(images, *(f"zz/{n:02d}.jpg" for n in range(60)))
    rewritten(images / "a" / "007.jpg")
    put = listings.put_if_absent
    pages = len(at.files())
    monkeypatch.setattr(
        listings,
        "put_if_absent",
        lambda fs, path, data: 1 / 0 if f"{pages + 1:05d}" in path else put(fs, path, data),
    )
    with pytest.raises(ZeroDivisionError):
        freeze_update(at, find_changes(at, Finder(given), replace_changed=True))
    monkeypatch.setattr(listings, "put_if_absent", put)
    assert not at.complete and at.close_update() and at.complete and not at.close_update()
    assert sum(key.startswith("zz/") for key in keys(at.shards())) == 20  # a page of four shards of five
    freeze_update(at, find_changes(at, Finder(given), replace_changed=True))
    assert sorted(keys(at.shards())) == sorted(keys(Finder(given).shards()))
    assert len(at.replaced()) == 1


@pytest.mark.slow
def test_two_updates_at_once_are_one_and_a_refusal(complete, images):
    at, given = complete
    fill(images, "zz/1.jpg")
    first = find_changes(at, Finder(given))
    fill(images, "zz/2.jpg")
    second = find_changes(at, Finder(given))
    number = len(at.files())
    freeze_update(at, first)
    assert not at.put(number, second.shards, last=True, metadata=PageMetadata())
    freeze_update(at, find_changes(at, Finder(given)))  # afterwards it finds the rest
    assert [key for key in keys(at.shards()) if key.startswith("zz")] == ["zz/1.jpg", "zz/2.jpg"]


def test_the_source_number_is_no_part_of_what_a_shard_is():
    shard = Shard(kind="tar", uri="/a.tar", size=1, version="v")
    assert replace(shard, source=7).id == shard.id
