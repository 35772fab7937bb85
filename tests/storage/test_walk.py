"""walk: every file under a prefix once, in the order of the paths, from any path on."""

import random

import fsspec
import pytest

from tests.support.stores import s3_bucket
from wordsworth.pipeline.storage import walk
from wordsworth.pipeline.storage.walk import list_names, walk_files

NAMES = [
    "a.jpg",
    "a/b.jpg",
    "a/b/c.jpg",
    "a-1.jpg",
    "a0.jpg",
    "B.jpg",
    "b/ä.jpg",
    "b/z.jpg",
    "b/日本.jpg",
    "c/d/e/f/g.jpg",
    "z.jpg",
]


class S3:
    """What s3fs gives of a bucket: ListObjectsV2, as its API reference has it."""

    def __init__(self, keys: list[str]):
        self.keys, self.asked = sorted(keys, key=str.encode), []

    def call_s3(self, method, Bucket, Prefix, MaxKeys, StartAfter="", ContinuationToken=None):
        assert (method, Bucket) == ("list_objects_v2", "bucket") and not (StartAfter and ContinuationToken)
        self.asked.append(StartAfter or ContinuationToken)
        after = (ContinuationToken or StartAfter).encode()
        left = [key for key in self.keys if key.startswith(Prefix) and key.encode() > after]
        page = left[:MaxKeys]
        answer = {
            "Contents": [
                {"Key": key, "Size": 0 if key.endswith("/") else 3, "ETag": f'"{key}"'} for key in page
            ],
            "IsTruncated": len(left) > len(page),
        }
        return answer | ({"NextContinuationToken": page[-1]} if answer["IsTruncated"] else {})


def on_disk(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"abc")
    return fsspec.filesystem("file"), str(tmp_path)


@pytest.mark.parametrize("where", ["disk", "store", "s3"])
def test_files_come_in_the_order_of_their_paths_and_from_any_of_them_on(tmp_path, monkeypatch, where):
    monkeypatch.setattr(walk, "KEYS_PER_ANSWER", 3)
    with s3_bucket() as bucket:
        if where == "disk":
            fs, root = on_disk(tmp_path, NAMES)
        elif where == "store":
            bucket.objects.update(
                {f"bucket/in/{name}": b"abc" for name in NAMES} | {"bucket/inner/x.jpg": b"abc"}
            )
            fs, root = fsspec.filesystem("s3"), "bucket/in"
        else:
            fs, root = (
                S3([f"in/{name}" for name in [*NAMES, "empty/"]] + ["inner/x.jpg", "other"]),
                "bucket/in",
            )
        found = [(path.removeprefix(f"{root}/"), info["size"]) for path, info in walk_files(fs, root)]
        assert found == [(name, 3) for name in sorted(NAMES)]
        for after in [*NAMES, "a", "a/", "b/y", "zz"]:
            rest = [path.removeprefix(f"{root}/") for path, _ in walk_files(fs, root, f"{root}/{after}")]
            assert rest == [name for name in sorted(NAMES) if name > after], after


def test_a_resumed_listing_of_s3_asks_the_store_to_begin_there(monkeypatch):
    monkeypatch.setattr(walk, "KEYS_PER_ANSWER", 10)
    s3 = S3([f"in/{n:04d}.jpg" for n in range(100)])
    assert len(list(walk_files(s3, "bucket/in", "bucket/in/0079.jpg"))) == 20
    assert s3.asked == ["in/0079.jpg", "in/0089.jpg"]


def test_a_key_that_is_listed_twice_while_it_is_replaced_comes_once(monkeypatch):
    monkeypatch.setattr(walk, "KEYS_PER_ANSWER", 4)
    s3, whole = S3([f"in/{n}.jpg" for n in range(6)]), [f"bucket/in/{n}.jpg" for n in range(6)]
    s3.keys = [key for key in s3.keys for _ in range(2)]
    assert [path for path, _ in walk_files(s3, "bucket/in")] == whole
    assert list(list_names(s3, "bucket/in")) == [f"{n}.jpg" for n in range(6)]


def test_random_trees_are_listed_as_sorted_does(tmp_path):
    rng = random.Random(3)
    names = {
        "/".join(rng.choice(["a", "b", "a-", "a.", "ab", "~"]) for _ in range(rng.randint(1, 4)))
        + f"/{n}.jpg"
        for n in range(60)
    }
    fs, root = on_disk(tmp_path, names)
    whole = [path for path, _ in walk_files(fs, root)]
    assert whole == sorted(f"{root}/{name}" for name in names)
    for at in range(0, len(whole), 7):
        assert [path for path, _ in walk_files(fs, root, whole[at])] == whole[at + 1 :]


def test_a_disk_is_listed_with_what_fsspec_says_of_each_file(tmp_path):
    fs, root = on_disk(tmp_path, ["a.jpg", "b c.jpg"])
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("/nowhere")
    found = dict(walk_files(fs, root))
    for entry in fs.ls(root, detail=True):
        ours = found.pop(entry["name"])
        assert ours == {"name": entry["name"], "type": "file"} | {
            key: entry[key] for key in ("size", "mtime", "islink")
        }
    assert found == {}


# ---- the names in a folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["disk", "store", "s3"])
def test_the_names_in_a_folder_are_as_they_are_now(tmp_path, where):
    with s3_bucket() as bucket:
        if where == "disk":
            fs, root = on_disk(tmp_path, NAMES)
        elif where == "store":
            bucket.objects.update(
                {f"bucket/in/{name}": b"abc" for name in NAMES} | {"bucket/inner/x.jpg": b"abc"}
            )
            fs, root = fsspec.filesystem("s3"), "bucket/in"
        else:
            fs, root = S3([f"in/{name}" for name in NAMES] + ["inner/x.jpg", "in"]), "bucket/in"
        assert set(list_names(fs, root)) - {"a", "b", "c"} == {name for name in NAMES if "/" not in name}
        assert list(list_names(fs, f"{root}/nowhere")) == []


def test_the_names_in_a_folder_of_s3_come_with_the_answers_of_the_store():
    store = S3([f"in/{n:05d}.parquet" for n in range(2500)])
    found = list_names(store, "bucket/in")
    assert next(found) == "00000.parquet" and len(store.asked) == 1
    assert sum(1 for _ in found) == 2499 and len(store.asked) == 3


class Lying(S3):
    """Answer with pages that are given, whatever is asked for."""

    def __init__(self, *pages: dict):
        self.pages, self.num_asked = pages, 0

    def call_s3(self, method, **request):
        self.num_asked += 1
        assert self.num_asked < 10, "it must end"
        page = self.pages[min(self.num_asked, len(self.pages)) - 1]
        keys = [{"Key": key, "Size": 3} for key in page["keys"]]
        return {"Contents": keys, "IsTruncated": "next" in page, "NextContinuationToken": page.get("next")}


@pytest.mark.parametrize(
    ("pages", "told"),
    [
        ([{"keys": ["in/b"], "next": "1"}, {"keys": ["in/a"]}], "not the order"),
        ([{"keys": ["in/a", "in/b"], "next": "1"}, {"keys": ["in/a", "in/b"]}], "not the order"),
        ([{"keys": ["in/a"], "next": "1"}, {"keys": [], "next": "1"}], "never ends"),
        ([{"keys": ["in/a"], "next": None}], "never ends"),
        ([{"keys": ["in/a", "other/b"]}], "under 'in/'"),
    ],
)
def test_a_listing_that_would_lose_or_double_files_is_an_error(pages, told):
    with pytest.raises(OSError, match=told):
        list(walk_files(Lying(*pages), "bucket/in"))


@pytest.mark.slow
def test_a_page_that_is_no_listing_is_no_end_of_one():
    class Portal(Lying):
        def call_s3(self, method, **request):
            return super().call_s3(method, **request) if not self.num_asked else {"ResponseMetadata": {}}

    with pytest.raises(OSError, match="with something else"):
        list(walk_files(Portal({"keys": ["in/a"], "next": "1"}), "bucket/in"))
