"""Show that a folder gives the same bytes each time, and every image comes back with its key and class."""

import hashlib
import io
import os
import unicodedata

import pytest
import webdataset

from tests.support.samples import rows_of, units_of
from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.pack import pack
from wordsworth.pipeline.sources.passed_over import ListingRules
from wordsworth.pipeline.sources.shard_index import INDEX, ShardIndex
from wordsworth.pipeline.sources.tar_groups import read_samples


def fill(root, *names: str):
    """Files whose bytes say which one they are."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"bytes of {name}".encode())
    return root


@pytest.fixture
def pets(tmp_path):
    names = [f"{animal}/{n:02d}.jpg" for animal in ("dog", "cat", "ant") for n in range(7)]
    return fill(tmp_path / "pets", *names, "cat/notes.txt", "cat/.hidden.jpg")


def members(out) -> dict[str, dict[str, bytes]]:
    """By key, the fields of every sample as our reader gives them."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(out.glob("*.tar")):
        for sample in read_samples(io.BytesIO(path.read_bytes())):
            assert sample.key not in found
            found[sample.key] = {name: member.data for name, member in sample.fields.items()}
    return found


def by_webdataset(out) -> dict[str, dict[str, bytes]]:
    urls = [f"file:{path}" for path in sorted(out.glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False, handler=webdataset.handlers.reraise_exception)
    return {
        s["__key__"]: {name: data for name, data in s.items() if not name.startswith("__")} for s in samples
    }


def digests(out) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def test_the_same_folder_gives_the_same_bytes_whenever_and_wherever(pets, tmp_path):
    packed = pack(str(pets), str(tmp_path / "a"), shard_size=8)
    assert (packed.images, len(packed.shards), packed.ignored) == (21, 3, 1)
    assert packed.passed_over.skipped == {"hidden": 1}
    before = digests(tmp_path / "a")
    shards = ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    assert list(before) == ["_index.json", "labels.txt", *shards]
    pets.rename(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*"):
        os.utime(path, (0, 0))
    pack(str(tmp_path / "moved"), str(tmp_path / "b[a]"), shard_size=8)
    assert digests(tmp_path / "b[a]") == before
    pack(str(tmp_path / "moved"), str(tmp_path / "b[a]"), shard_size=8)  # once more into the same place
    assert digests(tmp_path / "b[a]") == before
    pack(str(tmp_path / "moved"), str(tmp_path / "c"), shard_size=8, seed=1)
    assert not set(digests(tmp_path / "c").items()) & {item for item in before.items() if item[0] in shards}


def test_class_folders_become_cls_and_labels_in_the_order_of_their_names(pets, tmp_path):
    packed = pack(str(pets), str(tmp_path / "out"), shard_size=5)
    assert (
        packed.classes == ["ant", "cat", "dog"]
        and (tmp_path / "out" / "labels.txt").read_text() == "ant\ncat\ndog\n"
    )
    found = members(tmp_path / "out")
    assert len(found) == 21
    for key, fields in found.items():
        assert fields == {"jpg": f"bytes of {key}.jpg".encode(), "cls": str("acd".index(key[0])).encode()}
    first = [key[0] for key in found][:10]
    assert len(set(first)) == 3  # shuffled: no shard is one class


def test_folders_in_two_unicode_forms_of_a_name_are_one_class_of_all_their_images(tmp_path):
    composed, decomposed = unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "Café")
    root = fill(tmp_path / "in", f"{composed}/a.jpg", f"{decomposed}/a.jpg", "Bar/a.jpg", "9/a.jpg")
    packed = pack(str(root), str(tmp_path / "out"))
    assert packed.classes == ["9", "Bar", composed] and packed.alike == [composed]
    found = {key: fields["cls"] for key, fields in members(tmp_path / "out").items()}
    assert found == {f"{composed}/a": b"2", f"{decomposed}/a": b"2", "Bar/a": b"1", "9/a": b"0"}


def test_images_without_class_folders_have_no_class(tmp_path):
    packed = pack(str(fill(tmp_path / "in", "b.jpg", "a.png", "c.WEBP")), str(tmp_path / "out"))
    assert packed.classes == [] and not (tmp_path / "out" / "labels.txt").exists()
    assert {key: set(fields) for key, fields in members(tmp_path / "out").items()} == {
        "a": {"png"},
        "b": {"jpg"},
        "c": {"webp"},
    }


ODD = ["a.b.jpg", "a_b.jpg", "a.b.png", "a_b-2.jpg", "a..b.jpg", "x.jpg", "x.png", "x.jpeg", "x.JPG"]
ODD += [
    "sub.v1/y.jpg",
    "sub_v1/y.jpg",
    "deep/er/y.jpg",
    "é ü/图.jpg",
    "-.jpg",
    "n" * 90 + ".jpg",
    "l" * 99 + "/" + "m" * 90 + ".jpg",
]
ODD += ["__MACOSX/a.jpg", "__x__/a.jpg", "__a__.jpg", "PaxHeader/a.jpg", ".b/.a.jpg"]


def test_every_image_comes_back_by_both_readers_under_a_key_of_its_own(tmp_path):
    root = fill(
        tmp_path / "in", *(f"class/{name}" for name in ODD), *(f"{name}" for name in ODD if "/" in name)
    )
    images = sorted(path.read_bytes() for path in root.rglob("*") if path.is_file())
    packed = pack(str(root), str(tmp_path / "out"), shard_size=7, rules=ListingRules(include_hidden=True))
    assert packed.images == len(images) > len(ODD)
    found = members(tmp_path / "out")
    assert (
        sorted(data for fields in found.values() for name, data in fields.items() if name != "cls") == images
    )
    assert by_webdataset(tmp_path / "out") == found
    rows = [row for path in packed.shards for row in rows_of(units_of(path, rows=50))]
    assert len(rows) == len(images) and not any(row["error"] for row in rows)


def test_class_folders_with_images_beside_them_are_refused(tmp_path):
    root = fill(tmp_path / "in", "cat/a.jpg", "stray.jpg")
    with pytest.raises(
        UserError, match=r"holds class folders and 1 image beside them \(stray.jpg\): move these away"
    ):
        pack(str(root), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "is not there: name a folder"),
        ("a.jpg", "is a file: name a folder"),
        ("papers", "no images"),
    ],
)
def test_a_folder_without_images_is_one_line(tmp_path, name, message):
    fill(tmp_path, "a.jpg", "papers/a.pdf")
    with pytest.raises(UserError, match=message) as refusal:
        pack(str(tmp_path / name), str(tmp_path / "out"))
    assert str(tmp_path / name) in str(refusal.value) and not (tmp_path / "out").exists()


def test_other_shards_in_the_output_are_refused_and_stay(pets, tmp_path):
    pack(str(pets), str(tmp_path / "out"), shard_size=8)
    before = digests(tmp_path / "out")
    fill(pets, "emu/00.jpg")
    with pytest.raises(
        UserError, match=r"holds other shards already \(.*shard-00000.tar differs\): choose a new --output"
    ):
        pack(str(pets), str(tmp_path / "out"), shard_size=8)
    assert digests(tmp_path / "out") == before


def test_new_shards_are_never_mixed_with_others(pets, tmp_path):
    pack(str(pets), str(tmp_path / "out"), shard_size=8)
    (tmp_path / "out" / "shard-00001.tar").unlink()  # a packing that was killed goes on
    pack(str(pets), str(tmp_path / "out"), shard_size=8)
    before = digests(tmp_path / "out")
    (tmp_path / "out" / "shard-00000.tar").unlink()
    with pytest.raises(
        UserError, match=r"holds other shards already \(.*shard-0000[12].tar\): choose a new --output"
    ):
        pack(str(pets), str(tmp_path / "out"), shard_size=1000)
    assert digests(tmp_path / "out").items() < before.items()


def test_a_store_can_be_packed_from_and_to(tmp_path, pets):
    pack(str(pets), str(tmp_path / "out"), shard_size=8)
    with s3_bucket() as bucket:
        names = {path.relative_to(pets): path for path in pets.rglob("*") if path.is_file()}
        bucket.objects.update({f"b/pets/{name}": path.read_bytes() for name, path in names.items()})
        packed = pack("s3://b/pets", "s3://b/out", shard_size=8)
        stored = {
            name.rpartition("/")[2]: data
            for name, data in bucket.objects.items()
            if name.startswith("b/out/")
        }
        index = ShardIndex.from_json(stored.pop(INDEX))
        written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert index.with_versions({}) == ShardIndex.from_json(written.pop(INDEX))
        assert stored == written
        listed = find_shards(["s3://b/out"]).shards
        assert [index.shards[shard.uri.rpartition("/")[2]].version for shard in listed] == [
            shard.version for shard in listed
        ]
        assert [shard.uri for shard in find_shards(["s3://b/out"]).shards] == [
            f"s3://{path}" for path in packed.shards
        ]
