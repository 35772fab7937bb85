"""Show that tables of Delta and Iceberg are never read as plain files, and that a refusal helps."""

import pytest

from tests.support.stores import s3_bucket
from tests.support.tables import write_parquet
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.source_lists import expand_sources

REFUSAL = (
    "{source} holds a table of {name}, where removed files lie beside live ones: "
    'list the live ones with python -c "{code}" > live.txt, and use @live.txt as the source'
)


DELTA_FILES = (
    "_delta_log/00000000000000000000.json",
    "_delta_log/00000000000000000010.checkpoint.parquet",
    "label=cat/part-0.parquet",
    "label=dog/part-1.parquet",
)
ICEBERG_FILES = (
    "data/00000-0-a.parquet",
    "data/00000-0-b.parquet",
    "metadata/v9.metadata.json",
    "metadata/v10.metadata.json",
    "metadata/snap-1.avro",
)


def place(folder, names):
    for name in names:
        if name.endswith(".parquet"):
            write_parquet(folder / name, {"url": ["a.jpg"]})
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
    return folder


def delta(source, table) -> str:
    code = f"from deltalake import DeltaTable as T; print(*T('{table}').file_uris(), sep='\\n')"
    return REFUSAL.format(source=source, name="Delta", code=code)


def iceberg(source, table) -> str:
    files = (
        f"f.file.file_path for f in T.from_metadata('{table}/metadata/v10.metadata.json').scan().plan_files()"
    )
    code = f"from pyiceberg.table import StaticTable as T; print(*({files}), sep='\\n')"
    return REFUSAL.format(source=source, name="Iceberg", code=code)


def refusal(source) -> str:
    with pytest.raises(UserError) as refused:
        find_shards([str(source)])
    return str(refused.value)


@pytest.mark.parametrize("part", ["", "/label=cat", "/*/*.parquet", "/label=dog/*.parquet"])
def test_a_table_of_delta_is_refused_in_a_line_that_says_what_to_run(tmp_path, part):
    table = place(tmp_path / "t", DELTA_FILES)
    assert refusal(f"{table}{part}") == delta(f"{table}{part}", table)


@pytest.mark.parametrize("part", ["", "/data", "/data/*.parquet"])
def test_a_table_of_iceberg_is_refused_in_a_line_that_names_its_newest_state(tmp_path, part):
    table = place(tmp_path / "t", ICEBERG_FILES)
    assert refusal(f"{table}{part}") == iceberg(f"{table}{part}", table)


def test_a_folder_of_tables_and_a_table_in_a_bucket_are_refused_too(tmp_path):
    place(tmp_path / "lake" / "first", ["0.parquet"])
    table = place(tmp_path / "lake" / "second", DELTA_FILES)
    assert refusal(tmp_path / "lake") == delta(tmp_path / "lake", table)
    with s3_bucket() as bucket:
        for name in (*DELTA_FILES, "plain/0.parquet", "plain/data/0.parquet", "plain/metadata/0.json"):
            bucket.objects[name if name.startswith("plain") else f"lake/t/{name}"] = b"{}"
        assert refusal("s3://lake/t") == delta("s3://lake/t", "s3://lake/t")
        assert len(find_shards(["s3://plain"]).shards) == 2


def test_the_live_files_of_a_table_are_read_where_they_are_listed(tmp_path):
    table = place(tmp_path / "t", DELTA_FILES)
    (tmp_path / "live.txt").write_text(f"{table}/label=cat/part-0.parquet\n")
    listing = find_shards(expand_sources([f"@{tmp_path}/live.txt"]))
    assert [shard.uri for shard in listing.shards] == [f"{table}/label=cat/part-0.parquet"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("data-00000-of-00002.arrow", "datasets.load_from_disk('FOLDER').to_parquet"),
        ("t.tfrecord", "wds.ShardWriter"),
        ("t.tfrecord-00000-of-00010", "wds.ShardWriter"),
        ("shard.00000.mds", "wds.ShardWriter"),
        ("a.tar.bz2", "bunzip2"),
        ("a.tar.xz", "unxz"),
        ("a.json", "where it is named itself"),
    ],
)
def test_a_refusal_of_other_files_says_what_makes_something_of_them(tmp_path, name, advice):
    for number in range(3):
        (tmp_path / f"{number}{name}").write_bytes(b"x")
    (tmp_path / "README.md").write_text("x")
    message = refusal(tmp_path)
    assert "(it holds 3 ." in message and advice in message and "\n" not in message


def test_the_output_of_img2dataset_is_its_tars(tmp_path):
    for number in range(3):
        (tmp_path / f"{number:05d}.tar").write_bytes(bytes(10240))
        (tmp_path / f"{number:05d}_stats.json").write_text("{}")
        write_parquet(tmp_path / f"{number:05d}.parquet", {"url": ["http://a/b.jpg"], "key": ["000000000"]})
    listing = find_shards([str(tmp_path)])
    assert [shard.uri[-9:] for shard in listing.shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert listing.ignored == {".parquet": 3, ".json": 3} and not listing.skipped
