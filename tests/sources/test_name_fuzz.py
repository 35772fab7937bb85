"""Give files, members of tars and cells of tables 2,000 names of every Unicode class: each is one row."""

import os

import pytest

from tests.support import runs
from tests.support.names import longest, make_names
from tests.support.runs import build, read_rows
from tests.support.samples import rows_of, units_of, write_tar
from tests.support.tables import write_jsonl, write_parquet
from wordsworth.pipeline.sources import finder as finder_module
from wordsworth.pipeline.sources.finder import Finder, ListingCursor, find_shards
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.source_lists import expand_sources
from wordsworth.pipeline.verification.verifier import verify

NUM_NAMES = 2000
PART_BYTES = 255  # NAME_MAX of Linux
TABLES = ("t.jsonl", "t.parquet")  # tables beside the files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of files that hold their own names."""
    made = tmp_path_factory.mktemp("names")
    names = make_names(NUM_NAMES - 1, seed=1, part_bytes=PART_BYTES, name_bytes=2000)
    for name in [*names, longest(3000, PART_BYTES)]:
        path = os.path.join(made, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(name.encode())
    return made


@pytest.fixture(autouse=True)
def large_units(monkeypatch):
    monkeypatch.setattr(runs, "UNIT_ROWS", 512)  # hundreds of units would take longer than all else


def names_in(folder) -> list[str]:
    paths = [os.path.join(top, name) for top, _, files in os.walk(folder) for name in files]
    return sorted(os.path.relpath(path, folder) for path in paths if os.path.basename(path) not in TABLES)


@pytest.mark.slow
def test_every_file_is_a_row_and_shard_and_key_open_it(folder, tmp_path):
    met: list[str] = []

    def read(shard: Shard) -> list[dict]:
        rows = read_rows(shard)
        met.extend(f"{shard.uri}/{row['key']}" for row in rows)
        return rows

    report = verify(str(build(tmp_path / "out", folder, reader=read)), source=True)
    assert report.ok and report.rows == report.recounted == NUM_NAMES and not report.errors, report.findings
    assert sorted(met) == [os.path.join(folder, name) for name in names_in(folder)]
    for path in met:
        with open(path, "rb") as file:
            assert file.read() == os.path.relpath(path, folder).encode()


@pytest.mark.slow
def test_a_listing_of_them_goes_on_where_it_was_cut(folder, monkeypatch):
    monkeypatch.setattr(finder_module, "PAGE", 61)
    whole = find_shards([str(folder)]).shards
    for place in range(0, len(whole), 5):
        cursor = ListingCursor()
        cursor.advance(whole[: place + 1])
        assert list(Finder([str(folder)]).shards(cursor)) == whole[place + 1 :]


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_that_names_one_of_them_is_its_image(folder, table):
    names = [name for name in names_in(folder) if not name.startswith("data:")]  # this is an image in a cell
    if table == "t.jsonl":
        path = write_jsonl(folder / table, [{"url": name} for name in names])
    else:
        path = write_parquet(folder / table, {"url": names})
    units = units_of(path, rows=NUM_NAMES)
    assert [(row["key"], row["error"]) for row in rows_of(units)] == [(name, None) for name in names]
    assert b"".join(unit.payload.tobytes() for unit in units) == "".join(names).encode()


def test_every_file_alone_is_a_source(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in names_in(folder)[::10]:
        if name.startswith("@"):  # a list of sources
            continue
        (shard,) = find_shards(expand_sources([name])).shards
        assert shard.uri == os.path.dirname(os.path.join(folder, name))
        assert [member["key"] for member in shard.members] == [os.path.basename(name)]


@pytest.mark.slow
def test_every_member_of_a_tar_is_a_row_and_its_place_has_its_bytes(tmp_path):
    made = make_names(NUM_NAMES - 1, seed=2, part_bytes=PART_BYTES, name_bytes=9000, separators=("/", "//"))
    names = [*made, longest(30_000, PART_BYTES)]
    # Where the key ends is another rule: here no part has a dot of its own.
    stems = dict.fromkeys(os.path.splitext(name)[0].replace(".", "_") for name in names)
    path = write_tar(tmp_path / "in" / "a.tar", [(f"{stem}.jpg", stem.encode()) for stem in stems])
    report = verify(str(build(tmp_path / "out", path)), source=True)
    assert report.ok and report.rows == report.recounted == len(stems) and not report.errors, report.findings
    rows, data = rows_of(units_of(path)), path.read_bytes()
    assert [row["key"] for row in rows] == list(stems)
    for row in rows:
        assert data[row["offset"] : row["offset"] + row["size"]] == row["key"].encode()
