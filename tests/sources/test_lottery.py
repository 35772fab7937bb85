"""Show that a sample has as many images as were asked for, drawn from all with the same chance for each."""

import gzip
import tarfile
import zipfile
from collections import Counter
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.runs import build, codes
from tests.support.tables import write_csv, write_parquet
from wordsworth.pipeline.output.frozen_listing import SAMPLE, FrozenListing, PageMetadata
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources import finder as finder_module
from wordsworth.pipeline.sources import lottery as lottery_module
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.lottery import Lottery, count_samples
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard, listing_table
from wordsworth.pipeline.verification.verifier import verify

READING = ReadSettings(unit_rows=3)


def images(folder: Path, count: int) -> Path:
    for number in range(count):
        path = folder / f"c{number % 3}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number + 1))
    return folder


def tar(path: Path, count: int) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            info = tarfile.TarInfo(f"{number:04d}.jpg")
            info.size = number + 1
            archive.addfile(info, BytesIO(b"x" * info.size))
    return path


def rows(shards: list[Shard]) -> list[tuple]:
    found = []
    for shard in shards:
        for unit in read_units(shard, READING):
            assert unit.fault is None
            for row in unit.samples.to_pylist():
                found.append((row.get("folder", unit.shard_uri), row["key"], row["size"], row["error"]))
    return found


def drawn(shards: list[Shard], number: int, seed: int = 0) -> list[Shard]:
    lottery = Lottery(number, seed)
    for shard in shards:
        lottery.add(shard, 0 if shard.is_page else count_samples(shard, READING))
    return list(lottery.draw())


@pytest.fixture
def sources(tmp_path) -> list[str]:
    """Return sources of every kind, of which some hold what is no image."""
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress(tar(tmp_path / "b.tar", 11).read_bytes()))
    cut = tar(tmp_path / "cut.tar", 9)
    cut.write_bytes(cut.read_bytes()[:2800])
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for number in range(12):
            archive.writestr(f"{number:04d}.jpg", b"x" * (number + 1))
    names = [f"in/c{number % 3}/{number:04d}.jpg" for number in range(20)]
    table = write_csv(tmp_path / "t.csv", [{"url": name, "n": "1"} for name in names])
    images(tmp_path / "in", 31)
    lists = [[b"a", b"bb"], [], [b"c"], None, [b"d", b"e", b"f"]]
    lists_table = write_parquet(tmp_path / "l.parquet", {"image": lists})
    made = [tmp_path / "in", tmp_path / "b.tar", packed, cut, tmp_path / "z.zip", table, lists_table]
    return list(map(str, made))


def test_every_sample_of_every_kind_of_source_is_counted(sources):
    for shard in find_shards(sources).shards:
        if not shard.is_page:
            assert count_samples(shard, READING) == len(rows([shard])), shard.uri


@pytest.mark.parametrize("number", [1, 7, 40, 90, 10_000])
def test_a_sample_is_just_as_large_as_asked_for_and_its_rows_are_those_of_the_whole(
    sources, number, monkeypatch
):
    monkeypatch.setattr(finder_module, "PAGE", 8)
    monkeypatch.setattr(lottery_module, "SPARE", 5)
    monkeypatch.setattr(lottery_module, "HASHES_AT_ONCE", 4)
    shards = find_shards(sources).shards
    every = rows(shards)
    found = rows(drawn(shards, number))
    assert len(found) == min(number, len(every))
    assert not Counter(found) - Counter(every)


def test_a_drawn_shard_survives_its_listing_and_is_read_on_from_any_unit(sources):
    shards = drawn(find_shards(sources).shards, 60)
    table = listing_table(shards)
    assert [Shard.from_row(row) for row in table.to_pylist()] == shards
    assert len({shard.id for shard in [*shards, *find_shards(sources).shards]}) == len(shards) + len(sources)
    for shard in shards:
        units = list(read_units(shard, READING))
        for before, unit in pairwise(units):
            again = next(
                read_units(
                    shard, READING, unit.number, before.next_offset, before.next_index, before.next_in_group
                )
            )
            assert again.samples.equals(unit.samples) and again.last == unit.last


def test_another_seed_draws_others_and_the_order_of_the_sources_does_not_matter(sources, monkeypatch):
    shards = find_shards(sources).shards
    first = sorted(rows(drawn(shards, 20)), key=str)
    monkeypatch.setattr(finder_module, "PAGE", 5)
    assert sorted(rows(drawn(find_shards(sources[::-1]).shards, 20)), key=str) == first
    assert sorted(rows(drawn(shards, 20, seed=1)), key=str) != first


def test_each_sample_has_the_same_chance_in_a_folder_sorted_by_class_as_in_tars(tmp_path):
    """Draw 20 of 100 samples 400 times: each comes 80 times, give or take five standard deviations of 8."""
    folder = find_shards([str(images(tmp_path / "in", 40))]).shards
    tars = find_shards([str(tar(tmp_path / "a.tar", 50)), str(tar(tmp_path / "b.tar", 10))]).shards
    times: Counter[tuple] = Counter()
    for seed in range(400):
        lottery = Lottery(20, seed)
        for shard, count in zip([*folder, *tars], (0, 50, 10), strict=True):
            lottery.add(shard, count)
        for shard in lottery.draw():
            times.update((shard.uri, pick) for pick in shard.picks)
            times.update((shard.uri, member["key"]) for member in shard.members)
    assert len(times) == 100 and times.total() == 8000
    assert min(times.values()) > 40 and max(times.values()) < 120


def test_images_of_one_prefix_and_images_named_one_by_one_are_few_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(finder_module, "PAGE", 4)
    folder = images(tmp_path / "in", 60)
    named = sorted(map(str, folder.rglob("*.jpg")))[:30]
    assert len(drawn(find_shards([str(folder)]).shards, 20)) == 1
    shards = drawn(find_shards(named).shards, 20)
    assert len(shards) == 1 and len(rows(shards)) == 20
    assert {f"{row[0]}/{row[1]}" for row in rows(shards)} <= set(named)


def test_verify_counts_the_samples_that_were_drawn_and_finds_one_that_was_not(tmp_path, sources):
    def run(out: Path, reader) -> set[str]:
        shards = drawn(find_shards(sources).shards, 50)
        build(out, *map(Path, sources), reader=reader, shards=shards)
        (out / "_run" / "shards").rename(out / "_run" / SAMPLE)
        (out / "_run" / "summary.json").unlink()
        return codes(verify(str(out), source=True))

    def of_drawn(shard: Shard) -> list[dict]:
        return [row for unit in read_units(shard, READING) for row in unit.samples.to_pylist()]

    def of_others(shard: Shard) -> list[dict]:
        if not shard.picks:
            return of_drawn(shard)
        others = [pick + 1 for pick in shard.picks]
        return [row for row in of_drawn(Shard.from_row({**shard.to_row(), "picks": others}))]

    assert run(tmp_path / "right", of_drawn) == {"sample_run"}
    assert run(tmp_path / "wrong", of_others) > {"sample_run"}


def test_the_listing_of_a_sample_is_frozen_with_what_was_drawn(tmp_path, sources):
    shards = drawn(find_shards(sources).shards, 50)
    frozen = FrozenListing(RunFolder(str(tmp_path / "out")), SAMPLE)
    assert frozen.put(0, shards, last=True, metadata=PageMetadata(sample=[50, 3]))
    assert list(frozen.shards()) == shards and frozen.metadata(frozen.files()[0]).sample == [50, 3]
