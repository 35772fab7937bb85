"""Show that sources become shards, each once, in a fixed order, with names made from the shard alone."""

import hashlib
import os
import random

import pytest

from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources import finder as source
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS, NO_EXTENSION, begun_image_keys
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.shards import LISTING, Shard, listing_table


@pytest.fixture
def bucket():
    with s3_bucket() as made:
        yield made


def fill(root, *names: str, data: bytes = b"bytes"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1_000_000, 1_000_000))
    return root


def uris(listing) -> list[str]:
    return [shard.uri for shard in listing.shards]


def keys(listing) -> list[str]:
    return [member["key"] for shard in listing.shards for member in shard.members]


@pytest.fixture
def tars(tmp_path):
    return fill(tmp_path / "tars", "b.tar", "a.tar", "deep/er/c.TAR", "notes.txt", "labels.txt", "noext")


@pytest.fixture
def images(tmp_path):
    return fill(tmp_path / "images", "b.jpg", "a.JPEG", "c/d.png", "c/._d.png", "notes.txt", "e.v1.2.jpg")


# ---- what is found -----------------------------------------------------------------------------------------


def test_a_file_a_folder_and_globs_of_tars(tars, monkeypatch):
    every = [f"{tars}/a.tar", f"{tars}/b.tar", f"{tars}/deep/er/c.TAR"]
    assert uris(find_shards([f"{tars}/a.tar"])) == every[:1]
    assert (
        uris(find_shards([f"{tars}"]))
        == uris(find_shards([f"{tars}/"]))
        == uris(find_shards([f"file://{tars}"]))
        == every
    )
    assert uris(find_shards([f"{tars}/*.tar"])) == uris(find_shards([f"{tars}/[ab].tar"])) == every[:2]
    assert uris(find_shards([f"{tars}/**"])) == every
    monkeypatch.chdir(tars)
    assert uris(find_shards(["a.tar", "deep"])) == [every[0], every[2]]


def test_a_file_a_folder_and_globs_of_images_keep_their_paths_as_keys(images):
    every = ["a.JPEG", "b.jpg", "c/d.png", "e.v1.2.jpg"]
    assert keys(find_shards([str(images)])) == keys(find_shards([f"{images}/**"])) == every
    assert keys(find_shards([f"{images}/*.jpg"])) == ["b.jpg", "e.v1.2.jpg"]
    assert keys(find_shards([f"{images}/c/d.png"])) == ["d.png"]
    (shard,) = find_shards([str(images)]).shards
    assert (shard.kind, shard.uri, shard.size, shard.first_index) == ("images", str(images), 20, 0)


def test_a_name_with_the_letters_of_a_glob_is_first_of_all_a_name(tmp_path):
    fill(tmp_path, "a[1].tar", "b*/c.tar")
    assert uris(find_shards([f"{tmp_path}/a[1].tar"])) == [f"{tmp_path}/a[1].tar"]
    assert uris(find_shards([f"{tmp_path}/b*"])) == [f"{tmp_path}/b*/c.tar"]


def test_overlapping_arguments_count_once(tars, images):
    every = uris(find_shards([str(tars)]))
    assert uris(find_shards([f"{tars}/b.tar", str(tars), f"{tars}/*", f"file://{tars}/a.tar"])) == [
        every[1],
        every[0],
        every[2],
    ]
    listing = find_shards([f"{images}/c", f"{images}/*.jpg", str(images)])
    paths = [f"{shard.uri}/{member['key']}" for shard in listing.shards for member in shard.members]
    assert sorted(paths) == sorted(f"{images}/{key}" for key in keys(find_shards([str(images)])))


def test_the_order_is_that_of_the_names_whatever_the_disk_says(tmp_path):
    names = [f"{number:03d}.tar" for number in range(60)]
    shuffled = random.Random(0).sample(names, len(names))
    assert uris(find_shards([str(fill(tmp_path, *shuffled))])) == [f"{tmp_path}/{name}" for name in names]


def test_what_is_neither_is_counted_by_extension(tars, images):
    assert find_shards([str(tars)]).ignored == {
        ".txt": 1,
        NO_EXTENSION: 1,
    }  # beside shards labels.txt is ours
    listing = find_shards([str(images)])
    assert listing.ignored == {".txt": 1} and listing.skipped == {"apple_double": 1}


def test_names_without_an_extension_are_images_where_the_format_says_so(tmp_path):
    bare = ["0f/9c" + "ab" * 31, "IMG", "ends.", "x"]
    fill(tmp_path, *bare, "a.jpg", "b.txt", "c.json", "d.tar", ".hidden", "e.parquet")
    listing = find_shards([str(tmp_path)], format="images")
    assert sorted(keys(listing)) == sorted([*bare, "a.jpg"])
    assert listing.ignored == {".txt": 1, ".json": 1, ".tar": 1, ".parquet": 1}
    assert find_shards([str(tmp_path)], format="tar").ignored[NO_EXTENSION] == len(bare)
    assert keys(find_shards([f"{tmp_path}/IMG"], format="images")) == ["IMG"]


def test_photographs_of_phones_and_scanners_are_images_by_their_names(tmp_path):
    names = [f"a.{extension}" for extension in ("jfif", "jpe", "HEIC", "heif", "HIF", "jxl", "jp2", "mpo")]
    fill(tmp_path, *names)
    listing = find_shards([str(tmp_path)])
    assert sorted(keys(listing)) == sorted(names) and not listing.ignored


def test_what_was_begun_with_the_default_of_its_time_goes_on_with_it():
    earlier = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"]
    assert begun_image_keys(IMAGE_KEYS, earlier) == tuple(earlier)
    assert begun_image_keys(("jpg",), earlier) == ("jpg",), "what the command says is compared as it stands"
    assert begun_image_keys(IMAGE_KEYS, ["jpg"]) == begun_image_keys(IMAGE_KEYS, IMAGE_KEYS) == IMAGE_KEYS


def test_a_folder_of_both_kinds_is_refused_until_the_format_is_said(tmp_path):
    fill(tmp_path, "a.tar", "b.jpg", "c.jpg", "d.png")
    with pytest.raises(
        UserError, match=r"holds both .tar shards and images: say which with --format tar or --format images"
    ):
        find_shards([str(tmp_path)])
    tar, loose = find_shards([str(tmp_path)], format="tar"), find_shards([str(tmp_path)], format="images")
    assert uris(tar) == [f"{tmp_path}/a.tar"] and tar.ignored == {".jpg": 2, ".png": 1}
    assert keys(loose) == ["b.jpg", "c.jpg", "d.png"] and loose.ignored == {".tar": 1}


def test_a_table_beside_shards_tells_of_them_and_is_a_source_only_alone_or_when_said(tmp_path):
    fill(tmp_path, "00000.tar", "00000.parquet", "00000_stats.json", "only/a.csv", "only/b.jsonl")
    assert uris(find_shards([str(tmp_path / "0*")])) == [f"{tmp_path}/00000.tar"]
    assert find_shards([str(tmp_path / "0*")]).ignored == {".parquet": 1, ".json": 1}
    tables = [f"{tmp_path}/{name}" for name in ("00000.parquet", "only/a.csv", "only/b.jsonl")]
    assert uris(find_shards([str(tmp_path)], format="table")) == tables
    assert [shard.kind for shard in find_shards([f"{tmp_path}/only"]).shards] == ["table", "table"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("missing", {}, "nothing found at {root}/missing: no such file or folder"),
        (
            "*.tar",
            {},
            "nothing found at {root}/*.tar: no such file or folder, and no match as a glob",
        ),
        (
            "empty",
            {},
            "no .tar shards, .zip archives, images or tables in {root}/empty (it holds no file at all)",
        ),
        (
            "papers",
            {},
            "no .tar shards, .zip archives, images or tables in {root}/papers (it holds 2 .pdf, 1 .txt)",
        ),
        (
            "papers/a.pdf",
            {},
            "no .tar shards, .zip archives, images or tables in {root}/papers/a.pdf (it holds 1 .pdf)",
        ),
        (
            "bare",
            {},
            "(it holds 2 without an extension): --format images takes files without an extension, by their",
        ),
        ("bare", {"format": "table"}, "no tables in {root}/bare (it holds 2 without an extension)"),
        ("photos", {"format": "tar"}, "no .tar shards in {root}/photos"),
        (
            "photos",
            {"image_keys": ("png",)},
            "no .tar shards, .zip archives, images or tables in {root}/photos (it holds 1 .jpg)",
        ),
    ],
)
def test_a_source_of_nothing_is_one_line_that_says_what_and_where(tmp_path, name, options, message):
    fill(tmp_path, "papers/a.pdf", "papers/b.pdf", "papers/c.txt", "photos/a.jpg", "bare/1", "bare/2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as refusal:
        find_shards([f"{tmp_path}/{name}"], **options)
    assert message.format(root=tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_refusal_of_a_store_shows_no_credentials(bucket):
    with pytest.raises(UserError, match="nothing found at s3://bucket/x") as refusal:
        find_shards(["s3://key:canary@bucket/x"])
    assert "canary" not in str(refusal.value)


def test_a_listing_that_is_forbidden_says_so(bucket, monkeypatch):
    def forbidden(self, path, **kwargs):
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(bucket, "info", forbidden)  # as s3fs does
    with pytest.raises(
        UserError, match="not allowed to list s3://bucket/x: AccessDenied; check the credentials"
    ):
        find_shards(["s3://bucket/x"])


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"caf\xe9/1.jpg"])
def test_a_name_that_is_no_utf8_is_left_out_by_name_and_stops_no_other(tmp_path, name):
    for each in (name, b"ok.jpg"):
        path = os.path.join(os.fsencode(tmp_path), each)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"bytes")
    listing = find_shards([str(tmp_path)])
    assert [image["key"] for shard in listing.shards for image in shard.members] == ["ok.jpg"]
    (note,) = listing.passed_over.notes()
    assert f"left out 1 file whose name is not UTF-8: {tmp_path}/caf\\xe9" in note
    with pytest.raises(UserError, match=r"caf\\xe9.* not UTF-8: rename it"):
        find_shards([str(tmp_path) + "/caf\udce9" + os.fsdecode(name[4:])])


# ---- identity ----------------------------------------------------------------------------------------------


def test_an_id_changes_with_size_time_and_place_and_with_nothing_else(tars, tmp_path, monkeypatch):
    path = tars / "a.tar"
    monkeypatch.chdir(tars)
    for other in ("a.tar", f"file://{path}", str(tars), f"{tars}/a*"):
        assert find_shards([other]).shards[0].id == find_shards([str(path)]).shards[0].id
    seen = {find_shards([str(path)]).shards[0].id}
    fill(tars, "a.tar", data=b"other")  # the same size and time: the disk cannot tell
    assert find_shards([str(path)]).shards[0].id in seen
    fill(tars, "a.tar", data=b"longer")
    seen.add(find_shards([str(path)]).shards[0].id)
    os.utime(path, (1_000_001, 1_000_001))
    seen.add(find_shards([str(path)]).shards[0].id)
    path.rename(tars / "z.tar")
    seen.add(find_shards([f"{tars}/z.tar"]).shards[0].id)
    assert len(seen) == 4


def test_the_id_of_a_page_changes_with_each_of_its_images(images):
    def identity():
        (shard,) = find_shards([str(images)]).shards
        return shard.id

    seen = [identity()]
    os.utime(images / "c/d.png", (1_000_001, 1_000_001))
    seen.append(identity())
    fill(images, "b.jpg", data=b"longer")
    seen.append(identity())
    (images / "b.jpg").unlink()
    seen.append(identity())
    fill(images, "notes.txt", data=b"no image")
    assert len(set(seen)) == 4 and identity() == seen[-1]


def test_names_come_from_the_uri_and_never_from_keys():
    member = {"key": "../../etc/passwd.jpg", "size": 1, "version": ""}
    page = Shard(kind="images", uri="s3://b/pets", size=1, version="", first_index=0, members=(member,))
    assert page.name == f"pets-{page.id}"
    odd = [
        Shard(kind="tar", uri=uri, size=1, version="")
        for uri in ("/a/b/x y%2F.tar", "/a/..tar", "/a/-end.tar", "s3://b/" + "n" * 300 + ".tar", "/a/é.tar")
    ]
    for shard in odd:
        assert len(shard.name) < 100 and not set(shard.name) & set("/ %\\*") and shard.name[0] not in "._"
        assert shard.name.endswith(f"-{shard.id}") and len(shard.id) == 12
    assert odd[0].name.startswith("x_y_2F-") and odd[1].name.startswith("shard-")


def test_a_shard_survives_its_listing(images, tars):
    shards = find_shards([str(images)]).shards + find_shards([str(tars)]).shards
    table = listing_table(shards)
    assert table.schema == LISTING and [Shard.from_row(row) for row in table.to_pylist()] == shards
    assert table["id"].to_pylist() == [shard.id for shard in shards]


# ---- pages -------------------------------------------------------------------------------------------------


def test_pages_of_loose_images_number_them_without_gaps_across_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PAGE", 4)
    fill(tmp_path, *(f"{letter}{number}.jpg" for letter in "ab" for number in range(5)))
    listing = find_shards([f"{tmp_path}/a*", f"{tmp_path}/*"])
    assert [(shard.uri, shard.first_index, len(shard.members)) for shard in listing.shards] == [
        (str(tmp_path), 0, 4),
        (str(tmp_path), 4, 1),
        (str(tmp_path), 5, 4),
        (str(tmp_path), 9, 1),
    ]
    assert keys(listing) == [f"{letter}{number}.jpg" for letter in "ab" for number in range(5)]
    assert len({shard.name for shard in listing.shards}) == 4


def test_a_page_holds_4096_images(bucket):
    bucket.objects.update({f"b/p/{number:05d}.jpg": b"x" for number in range(4097)})
    listing = find_shards(["s3://b/p"])
    assert [(shard.first_index, len(shard.members)) for shard in listing.shards] == [(0, 4096), (4096, 1)]


# ---- stores ------------------------------------------------------------------------------------------------


def test_a_store_is_listed_like_a_disk_and_its_etags_are_the_versions(bucket):
    bucket.objects.update(
        {f"b/data/{name}": b"x" * 9 for name in ("b.tar", "a.tar", "deep/c.tar", "notes.txt")}
    )
    bucket.objects["b/data2/d.tar"] = b"not under the prefix"
    listing = find_shards(["s3://b/data"])
    assert uris(listing) == [
        "s3://b/data/a.tar",
        "s3://b/data/b.tar",
        "s3://b/data/deep/c.tar",
    ] and listing.ignored == {".txt": 1}
    assert uris(find_shards(["s3://b/data/*.tar"])) == uris(listing)[:2]
    assert uris(find_shards(["s3://b/data/b.tar", "s3://b/data"])) == [
        uris(listing)[1],
        uris(listing)[0],
        uris(listing)[2],
    ]
    before = listing.shards[0]
    assert (before.size, before.version) == (9, hashlib.md5(b"x" * 9).hexdigest())
    bucket.objects["b/data/a.tar"] = b"y" * 9
    assert find_shards(["s3://b/data"]).shards[0].id != before.id


def test_images_on_a_store_have_their_path_under_the_prefix_as_key(bucket):
    bucket.objects.update({"b/p/x/1.jpg": b"1", "b/p/2.png": b"22"})
    (shard,) = find_shards(["s3://b/p/"]).shards
    assert (shard.uri, shard.size) == ("s3://b/p", 3)
    assert [(member["key"], member["size"]) for member in shard.members] == [("2.png", 2), ("x/1.jpg", 1)]


@pytest.mark.parametrize("store", ["disk", "bucket"])
def test_predictions_below_a_source_of_tables_are_left_out_and_named(tmp_path, store):
    names = ("t.parquet", "out/predictions/a.parquet", "out/predictions/b.parquet", "predictions/c.parquet")
    with s3_bucket() as bucket:
        top = f"{tmp_path}/in" if store == "disk" else "s3://b/in"
        for name in (*names, "out/_run/plan.json"):
            bucket.objects[f"b/in/{name}"] = b"x"
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        listing = find_shards([top])
        assert [shard.uri for shard in listing.shards] == [f"{top}/{name}" for name in (names[3], names[0])]
        (note,) = [note for note in listing.passed_over.serious_notes() if "wrote" in note]
        assert (
            f"of Wordsworth wrote: {top.removeprefix('s3://')}/out/predictions; they hold no images" in note
        )


def test_images_behind_the_tars_that_decide_the_kind_of_a_source_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("wordsworth.pipeline.sources.finder.PEEK", 2)
    for name in ("a.tar", "b.tar", "c.jpg", "d.tar"):
        (tmp_path / name).write_bytes(b"x")
    listing = find_shards([str(tmp_path)])
    assert [shard.uri for shard in listing.shards] == [f"{tmp_path}/{name}.tar" for name in "abd"]
    (note,) = listing.passed_over.serious_notes()
    assert f"of another kind than the first of its source: {tmp_path}/c.jpg; name them" in note
    assert not [*find_shards([str(tmp_path)], format="tar").passed_over.serious_notes()]
