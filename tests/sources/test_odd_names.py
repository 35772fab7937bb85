"""Show that a file that is there is read as a file, whatever its name looks like."""

import pytest

from tests.support.runs import build
from tests.support.samples import rows_of, units_of, write_tar
from tests.support.stores import s3_bucket
from tests.support.tables import write_csv, write_jsonl
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.source_lists import expand_sources
from wordsworth.pipeline.verification.verifier import verify

ODD = [
    "run-12:30/a.jpg",
    "s3:/bucket.jpg",
    "file:x.jpg",
    "pipe:ls.jpg",
    "batch::1/a.jpg",
    "zip::b.jpg",
    "2024-01-02T13:51:14+00:00.jpg",
    "a**b/a.jpg",
    "a[1]/[b].jpg",
    "a1/1.jpg",
    "what?.jpg",
    "{a,b}/{1..3}.jpg",
    "~root/a.jpg",
    "trailing .jpg",
    "back\\slash.jpg",
    "100%25.jpg",
    "caf\u00e9.jpg",
    "cafe\u0301.jpg",
    "x?versionId=abc.jpg",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that is the working directory, with a file of each odd name that holds its own name."""
    made = tmp_path / "in"
    for name in ODD:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(name.encode())
    monkeypatch.chdir(made)
    return made


def images(source: str) -> dict[str, bytes]:
    """Return what the reader gives for a source, by `shard/key`."""
    found = {}
    for shard in find_shards(expand_sources([source])).shards:
        for unit in read_units(shard, ReadSettings(unit_rows=1)):
            (row,) = unit.samples.to_pylist()
            assert row["error"] is None, row
            found[f"{shard.uri}/{row['key']}"] = unit.payload.tobytes()
    return found


def test_a_folder_of_odd_names_has_a_row_for_each(folder, tmp_path):
    assert images(str(folder)) == {f"{folder}/{name}": name.encode() for name in ODD}
    report = verify(str(build(tmp_path / "out", folder)), source=True)
    assert report.ok and report.rows == report.recounted == len(ODD), report.findings


@pytest.mark.parametrize("name", ODD)
def test_each_odd_name_is_a_source_by_its_file_and_by_its_folder(folder, name):
    assert images(name) == images(f"{folder}/{name}") == {f"{folder}/{name}": name.encode()}
    top = name.split("/")[0]
    below = {f"{folder}/{other}": other.encode() for other in ODD if other.split("/")[0] == top}
    assert images(top) == images(f"{folder}/{top}") == below
    if "/" in name:
        assert images(f"{top}/") == below


def test_a_glob_below_a_folder_with_an_odd_name_is_a_glob(folder):
    assert list(images("run-12:30/*.jpg")) == [f"{folder}/run-12:30/a.jpg"]
    assert list(images("batch::*/a.jpg")) == [f"{folder}/batch::1/a.jpg"]
    assert list(images("a[1]/*.jpg")) == [f"{folder}/a[1]/[b].jpg"]
    assert list(images("a[12]/*.jpg")) == [f"{folder}/a1/1.jpg"]
    assert expand_sources(["run-12:30/{a,b}.jpg"]) == ["run-12:30/a.jpg", "run-12:30/b.jpg"]


def test_a_file_whose_name_is_also_a_glob_hides_no_other_file(tmp_path):
    for name in ("a[1].tar", "a1.tar"):
        (tmp_path / name).write_bytes(b"")
    found = find_shards([f"{tmp_path}/a[1].tar", f"{tmp_path}/a1.tar"]).shards
    assert [shard.uri for shard in found] == [f"{tmp_path}/a[1].tar", f"{tmp_path}/a1.tar"]


@pytest.mark.parametrize(
    "name", ["pipe:cat x", "a::b.jpg", "run-12:31/", "batch::2/*.jpg", "file:///x::zip://y"]
)
def test_what_is_not_there_is_refused_as_before(folder, name):
    with pytest.raises(UserError, match="the scheme is not one of"):
        find_shards([name])


def test_a_glob_that_can_match_nothing_says_that_nothing_is_there(folder):
    with pytest.raises(UserError, match="nothing found at"):
        find_shards(["a**z/x"])


# ---- tars and tables ---------------------------------------------------------------------------------------


def test_a_tar_with_colons_in_its_name_is_read(tmp_path):
    units = units_of(write_tar(tmp_path / "batch::1.tar", [("a.jpg", b"bytes")]))
    assert [row["key"] for row in rows_of(units)] == ["a"]


def test_a_table_names_files_that_look_like_uris(folder):
    path = write_csv(folder / "t.csv", [{"url": name, "n": 1} for name in ODD])
    assert [row["error"] for row in rows_of(units_of(path, rows=1))] == [None] * len(ODD)
    assert [unit.payload.tobytes() for unit in units_of(path, rows=1)] == [name.encode() for name in ODD]


def test_a_table_in_a_bucket_names_objects_that_look_like_uris(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    names = [*ODD, "s3://b/in/zip::b.jpg"]
    refused = ["pipe:cat x", "zip://a.jpg", "none::b.jpg", f"simplecache::{secret}", f"file:{secret}"]
    write_jsonl(tmp_path / "t.jsonl", [{"url": name} for name in [*names, *refused]])
    with s3_bucket() as bucket:
        bucket.objects |= {f"b/in/{name}": name.encode() for name in ODD}
        bucket.objects["b/in/t.jsonl"] = (tmp_path / "t.jsonl").read_bytes()
        (shard,) = find_shards(["s3://b/in/t.jsonl"]).shards
        units = list(read_units(shard, ReadSettings(unit_rows=99)))
    assert [row["error"] for row in rows_of(units)] == [None] * len(names) + ["refused_uri"] * len(refused)
    found = b"".join(unit.payload.tobytes() for unit in units)
    assert found == "".join([*ODD, "zip::b.jpg"]).encode()


def test_a_line_of_a_list_that_begins_with_a_hash_is_a_comment_unless_it_names_a_file(folder):
    (folder / "#1.jpg").write_bytes(b"image")
    (folder / "list.txt").write_text("# images\n#1.jpg\n#2.jpg\n")
    assert [*expand_sources(["@list.txt"])] == ["#1.jpg"]
