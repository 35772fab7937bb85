"""Links to folders are followed where they lead to files of their own, named where not, and always end."""

import os
from pathlib import Path

import pytest

from tests.sources.test_skipped_names import fill, keys
from tests.support.runs import build, codes
from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.frozen_listing import FirstPage, FrozenListing, list_pages
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources import finder as finders
from wordsworth.pipeline.sources import folder_links
from wordsworth.pipeline.sources.finder import Finder, ListingCursor, find_shards
from wordsworth.pipeline.sources.passed_over import MAX_LEFT_OUT_NAMED, ListingRules, PassedOver
from wordsworth.pipeline.verification.recount_disk import files_on_disk
from wordsworth.pipeline.verification.verifier import verify

OUTSIDE = ListingRules(follow_links="outside")


@pytest.fixture
def tree(tmp_path) -> Path:
    """A source whose links lead out of it, into it, above themselves and into a folder that is skipped."""
    fill(tmp_path / "elsewhere" / "dogs", ["1.jpg", "puppies/2.jpg"])
    root = fill(tmp_path / "in", ["cats/a.jpg", "cats/wild/b.jpg", ".store/birds/c.jpg", "z.jpg"])
    (root / "dogs").symlink_to(tmp_path / "elsewhere" / "dogs")
    (root / "cats" / "loop").symlink_to("..")
    (root / "felines").symlink_to(root / "cats")
    (root / "birds").symlink_to(".store/birds")
    (root / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "dogs" / "1.jpg")
    (tmp_path / "elsewhere" / "dogs" / "back").symlink_to(root)
    (tmp_path / "elsewhere" / "dogs" / "young").symlink_to("puppies")
    return root


OWN = ["birds/c.jpg", "cats/a.jpg", "cats/wild/b.jpg", "linked.jpg", "z.jpg"]
WITH_DOGS = sorted([*OWN, "dogs/1.jpg", "dogs/puppies/2.jpg"])


def test_links_out_of_the_source_are_named_and_those_within_give_no_image_twice(tree, tmp_path):
    listing = find_shards([str(tree)])
    assert keys(listing) == OWN
    notes = list(listing.passed_over.serious_notes())
    assert notes == [
        "skipped by their names: 1 hidden_folder; --include-hidden takes them",
        f"left out 1 link to a folder outside the source: {tree}/dogs -> {tmp_path}/elsewhere/dogs; "
        "--follow-links outside takes their files",
        f"left out 1 link to a folder inside the source: {tree}/felines -> {tree}/cats; "
        "their files come under the folders' own names",
        f"left out 1 link to a folder above itself: {tree}/cats/loop -> {tree}; their files come once",
    ]


def test_links_out_of_the_source_are_followed_when_asked_for(tree):
    listing = find_shards([str(tree)], rules=OUTSIDE)
    assert keys(listing) == WITH_DOGS
    kinds = sorted(name.split(":")[0] for name in listing.passed_over.left_out)
    assert kinds == ["inside", "inside", "loop", "loop"]  # felines, dogs/young; cats/loop, dogs/back


def test_with_every_name_taken_a_link_to_a_hidden_folder_gives_no_image_twice(tree):
    found = keys(find_shards([str(tree)], rules=ListingRules(include_hidden=True)))
    assert found == sorted([".store/birds/c.jpg", *OWN[1:]])


def test_a_link_to_a_folder_above_the_source_ends(tree):
    (tree / "up").symlink_to("..")
    found = keys(find_shards([str(tree)], rules=OUTSIDE))
    assert found == sorted([*WITH_DOGS, "up/elsewhere/dogs/1.jpg", "up/elsewhere/dogs/puppies/2.jpg"])


def test_two_links_that_lead_to_each_other_end(tmp_path):
    fill(tmp_path, ["in/a.jpg", "x/b.jpg", "y/c.jpg"])
    (tmp_path / "in" / "x").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "y").symlink_to(tmp_path / "y")
    (tmp_path / "y" / "x").symlink_to(tmp_path / "x")
    assert keys(find_shards([str(tmp_path / "in")], rules=OUTSIDE)) == ["a.jpg", "x/b.jpg", "x/y/c.jpg"]


def test_the_source_itself_may_be_a_link(tree, tmp_path):
    (tmp_path / "alias").symlink_to(tree)
    assert keys(find_shards([str(tmp_path / "alias")])) == OWN
    assert keys(find_shards([str(tree / "dogs")])) == ["1.jpg", "puppies/2.jpg"]


def test_a_glob_looks_into_the_links_that_it_names(tree):
    assert keys(find_shards([f"{tree}/dogs/*.jpg"])) == ["1.jpg"]
    assert keys(find_shards([f"{tree.parent}/*/dogs/*.jpg"])) == ["elsewhere/dogs/1.jpg", "in/dogs/1.jpg"]
    listing = find_shards([f"{tree}/*/*.jpg"])
    assert keys(listing) == ["birds/c.jpg", "cats/a.jpg"]
    assert sorted(name.split(":")[0] for name in listing.passed_over.left_out) == ["inside", "outside"]
    assert keys(find_shards([f"{tree}/*/*.jpg"], rules=OUTSIDE))[2:] == ["dogs/1.jpg"]


def test_a_listing_that_goes_on_inside_a_link_gives_the_rest(tree, monkeypatch):
    monkeypatch.setattr(finders, "PAGE", 1)
    whole = list(Finder([str(tree)], rules=OUTSIDE).shards())
    assert len(whole) == len(WITH_DOGS)
    for cut in range(len(whole) + 1):
        place = ListingCursor()
        place.advance(whole[:cut])
        assert list(Finder([str(tree)], rules=OUTSIDE).shards(place)) == whole[cut:]


def test_the_frozen_listing_names_what_was_left_out(tree, tmp_path):
    frozen = FrozenListing(RunFolder(str(tmp_path / "out")))
    FirstPage.of(Finder([str(tree)])).freeze(frozen)
    assert len(list(list_pages(frozen, Finder([str(tree)])))) == 1
    assert frozen.passed_over() == find_shards([str(tree)]).passed_over


def test_a_source_of_links_alone_is_refused_by_their_names(tmp_path):
    fill(tmp_path / "elsewhere", ["1.jpg"])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "dogs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"left out 1 link .*in/dogs -> .*; --follow-links outside takes"):
        find_shards([str(tmp_path / "in")])


def test_a_pipe_is_left_out_and_a_link_that_leads_nowhere_is_a_file(tmp_path):
    fill(tmp_path, ["a.jpg"])
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("/nowhere")
    listing = find_shards([str(tmp_path)])
    assert keys(listing) == ["a.jpg", "nowhere.jpg"]
    assert list(listing.passed_over.left_out) == [f"special: {tmp_path}/pipe.jpg"]


def test_a_listing_names_a_bounded_number_of_links():
    passed_over = PassedOver()
    for number in range(MAX_LEFT_OUT_NAMED + 50):
        passed_over.leave_out("outside", f"/in/{number} -> /x")
    (note,) = passed_over.serious_notes()
    assert "left out 150 links" in note and "/in/99 -> /x and 50 more; --follow-links" in note


def test_a_source_that_an_earlier_one_leaves_out_is_given_by_itself(tree):
    dogs = f"{tree}/dogs"
    Path(dogs, "back").unlink()  # from dogs on, it would lead out of the source
    assert len(keys(find_shards([str(tree), dogs]))) == len(OWN) + 2
    assert len(keys(find_shards([f"{tree}/*/*.jpg", f"{dogs}/*.jpg"]))) == 3
    assert len(keys(find_shards([f"{tree}/**", f"{tree}/.store"]))) == len(OWN) + 1
    assert len(keys(find_shards([str(tree), dogs, f"{tree}/birds"], rules=OUTSIDE))) == len(WITH_DOGS)
    assert len(keys(find_shards([f"{tree}/*/*.jpg", f"{dogs}/*.jpg"], rules=OUTSIDE))) == 3
    assert len(keys(find_shards([f"{tree}/dogs/*.jpg", f"{tree}/dog*/*.jpg"], rules=OUTSIDE))) == 1


# ---- the recount -------------------------------------------------------------------------------------------


def test_the_recount_follows_the_links_that_the_listing_follows(tree):
    (tree / "up").symlink_to("..")
    for asked in ({}, {"follow-links": "outside"}, {"include-hidden": True}):
        rules = ListingRules(
            include_hidden=asked.get("include-hidden", False),
            follow_links=asked.get("follow-links", "inside"),
        )
        images = [key for key in files_on_disk(str(tree), asked) if key.endswith(".jpg")]
        visible = [key for key in images if rules.include_hidden or "/." not in f"/{key}"]
        assert sorted(visible) == keys(find_shards([str(tree)], rules=rules)), asked


def test_a_run_over_links_is_exact_and_one_that_lost_their_images_or_took_others_is_not(
    tree, tmp_path, monkeypatch
):
    report = verify(str(build(tmp_path / "out", tree)), source=True)
    assert report.findings == [] and report.rows == len(OWN)
    glob = verify(str(build(tmp_path / "glob", tree / "*" / "*.jpg", tree / "dogs" / "*.jpg")), source=True)
    assert glob.findings == [] and glob.rows == 3

    links = folder_links.FolderLinks
    monkeypatch.setattr(links, "takes_folder", lambda self, path, is_link, is_named=False: not is_link)
    report = verify(str(build(tmp_path / "lost", tree)), source=True)
    assert codes(report) == {"source_changed"} and "'birds/c.jpg' is not part" in report.findings[0].detail
    monkeypatch.setattr(links, "takes_folder", lambda self, path, is_link, is_named=False: "loop" not in path)
    (tmp_path / "elsewhere" / "dogs" / "back").unlink()
    report = verify(str(build(tmp_path / "all", tree)), source=True)
    assert codes(report) == {"source_changed"}


@pytest.mark.parametrize("store", ["disk", "bucket"])
def test_folders_that_a_glob_matches_are_named(tmp_path, store):
    names = ("a.jpg", "b/1.jpg", "c.jpg/2.jpg", ".git/3.jpg", "d.jpg")
    with s3_bucket() as bucket:
        top = f"{tmp_path}/in" if store == "disk" else "s3://b/in"
        for name in names:
            bucket.objects[f"b/in/{name}"] = b"image"
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"image")
        listing = find_shards([f"{top}/*"])
        (page,) = listing.shards
        assert [member["key"] for member in page.members] == ["a.jpg", "d.jpg"]
        (note,) = [note for note in listing.passed_over.serious_notes() if "glob" in note]
        folder = top.removeprefix("s3://")
        assert (
            f"left out 2 folders that a glob matches: {folder}/b, {folder}/c.jpg; add /** to the glob" in note
        )
        assert not [*find_shards([f"{top}/[ad].jpg"]).passed_over.serious_notes()]
        assert len(find_shards([f"{top}/**"]).shards[0].members) == 4
        assert "glob" not in " ".join(find_shards([f"{top}/**"]).passed_over.serious_notes())
        with pytest.raises(UserError, match=r"b\* matches folders alone: add /\*\* for the files in them"):
            find_shards([f"{top}/b*"])
