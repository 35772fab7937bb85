"""Show that a limited run has just the first images, and that whoever goes on gives each other image once."""

import random
import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.runs import codes, finish, made_up_plan, predicted, provenance_of
from wordsworth.pipeline.labeling.stages import missing_units
from wordsworth.pipeline.output.commit import commit
from wordsworth.pipeline.output.frozen_listing import FirstPage, FrozenListing, list_pages, open_shards
from wordsworth.pipeline.output.limited_listing import ImagesLeft, first_limited_page, list_limited
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources import finder as finder_module
from wordsworth.pipeline.sources.finder import Finder
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.verification.verifier import verify

UNIT_ROWS = 4


def images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(b"x" * (number + 1))
    return folder


def tar(path: Path, count: int) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            info = tarfile.TarInfo(f"{number:03d}.jpg")
            info.size = number + 1
            archive.addfile(info, BytesIO(b"x" * info.size))
    return path


class Run:
    """Run the commands `label` and `label --limit` without Ray and without a model."""

    def __init__(self, out: Path, *sources: Path):
        self.sources = list(map(str, sources))
        self.folder = RunFolder(str(out))
        self.frozen = FrozenListing(self.folder)
        asked = {"source": sorted(self.sources), "image-key": ["jpg"], "format": None, "key-rule": "auto"}
        plan = self.folder.create(made_up_plan(asked))
        self.writing = WriteSettings(
            output=str(out), provenance=provenance_of(plan), labels=None, top_k=2, embedding=None, width=4
        )

    def finder(self) -> Finder:
        return Finder(self.sources)

    def rows(self) -> list[str]:
        """Return shard and key of every row, in the order of the shards and units."""
        found = []
        for path in self.folder.prediction_files():
            with self.folder.fs.open(path, "rb") as file:
                found += [f"{row['shard']}/{row['key']}" for row in pq.read_table(file).to_pylist()]
        return found

    def limited(self, limit: int) -> None:
        if not self.frozen.files():
            first_limited_page(self.finder(), limit).freeze(self.frozen)
        left = ImagesLeft(limit, limit - len(self.rows()))
        done = self.folder.committed()
        if left.count <= 0:
            return
        for page in list_limited(self.frozen, self.finder(), left):
            for shard in open_shards(page, done):
                for unit in missing_units(shard, ReadSettings(unit_rows=UNIT_ROWS), self.folder.root):
                    commit(predicted(unit), self.writing)
                    left.count -= len(unit.samples)
                    if left.count <= 0:
                        return

    def rest(self) -> None:
        if not self.frozen.files():
            FirstPage.of(self.finder()).freeze(self.frozen)
        done = self.folder.committed()
        for page in list_pages(self.frozen, self.finder()):
            for shard in open_shards(page, done):
                for unit in missing_units(shard, ReadSettings(unit_rows=UNIT_ROWS), self.folder.root):
                    commit(predicted(unit), self.writing)


def listed(*paths: Path) -> list[str]:
    """Return the rows that the sources have, in their order."""
    found = []
    for path in paths:
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                found += [f"{path}/{name.removesuffix('.jpg')}" for name in archive.getnames()]
        else:
            found += sorted(map(str, path.iterdir())) if path.is_dir() else [str(path)]
    return found


def folder_and_tars(base: Path) -> list[Path]:
    return [tar(base / "a.tar", 9), images(base / "in", 14), tar(base / "b.tar", 2), tar(base / "c.tar", 17)]


def named(base: Path) -> list[Path]:
    folders = [images(base / name, 5) for name in ("x", "y", "z")]
    paths = [path for folder in folders for path in sorted(folder.iterdir())]
    random.Random(0).shuffle(paths)
    return paths


def test_a_limit_gives_just_the_first_images_of_a_folder_and_the_rest_comes_later(tmp_path):
    run = Run(tmp_path / "out", images(tmp_path / "in", 30))
    run.limited(10)
    assert sorted(run.rows()) == [f"{tmp_path}/in/{number:03d}.jpg" for number in range(10)]
    run.rest()
    assert sorted(run.rows()) == [f"{tmp_path}/in/{number:03d}.jpg" for number in range(30)]


@pytest.mark.parametrize("make", [folder_and_tars, named])
@pytest.mark.parametrize("limit", [1, 4, 9, 10, 20, 26, 42, 1000])
def test_a_first_limit_is_kept_to_the_image_and_each_image_comes_once(tmp_path, monkeypatch, make, limit):
    monkeypatch.setattr(finder_module, "PAGE", 6)
    sources = make(tmp_path)
    run = Run(tmp_path / "out", *sources)
    every = listed(*sources)
    run.limited(limit)
    assert sorted(run.rows()) == sorted(every[:limit])
    limited = codes(verify(str(tmp_path / "out"), source=True))
    assert limited == ({"limited_run"} if limit <= len(every) else {"not_finished"})
    run.limited(limit)
    assert sorted(run.rows()) == sorted(every[:limit])
    run.rest()
    assert sorted(run.rows()) == sorted(every)
    finish(tmp_path / "out")
    report = verify(str(tmp_path / "out"), source=True)
    assert (report.findings, report.rows, report.recounted) == ([], len(every), len(every))


@pytest.mark.parametrize("seed", range(6))
def test_later_limits_are_kept_to_the_unit_and_each_image_comes_once(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(finder_module, "PAGE", 6)
    generator = random.Random(seed)
    sources = folder_and_tars(tmp_path)
    run = Run(tmp_path / "out", *sources)
    every = listed(*sources)
    for limit in sorted(generator.sample(range(1, 45), 4)):
        before = len(run.rows())
        run.limited(limit)
        found = run.rows()
        assert sorted(found) == sorted(every[: len(found)])
        assert min(limit, len(every)) <= len(found) < max(limit, before) + UNIT_ROWS
    run.rest()
    finish(tmp_path / "out")
    assert verify(str(tmp_path / "out"), source=True).findings == []
    assert sorted(run.rows()) == sorted(every)


def test_a_limit_behind_a_command_that_was_killed_takes_what_is_listed_first(tmp_path):
    run = Run(tmp_path / "out", tar(tmp_path / "a.tar", 9), tar(tmp_path / "b.tar", 9))
    FirstPage.of(run.finder()).freeze(run.frozen)
    run.limited(6)
    assert (
        sorted(run.rows()) == listed(tmp_path / "a.tar")[:8]
    )  # whole units: nobody may cut a shard that is listed
    run.rest()
    assert sorted(run.rows()) == listed(tmp_path / "a.tar", tmp_path / "b.tar")


def test_two_commands_at_once_with_two_limits_cut_a_shard_at_one_place(tmp_path):
    first, second = (Run(tmp_path / "out", tar(tmp_path / "a.tar", 9)) for _ in range(2))
    pages = [first_limited_page(run.finder(), limit) for run, limit in ((first, 3), (second, 2))]
    for page in pages:
        page.freeze(first.frozen)
    second.limited(2)
    first.limited(3)
    assert sorted(first.rows()) == listed(tmp_path / "a.tar")[:3]
    second.rest()
    assert sorted(first.rows()) == listed(tmp_path / "a.tar")


def test_what_a_limited_listing_passed_over_is_counted_once(tmp_path):
    folder = images(tmp_path / "in", 9)
    for name in ("000.txt", "004.txt", "008.txt", ".hidden.jpg", "zzz.txt"):
        (folder / name).write_bytes(b"")
    run = Run(tmp_path / "out", folder)
    run.limited(5)
    assert run.frozen.passed_over().ignored == {".txt": 1}
    run.limited(7)
    run.rest()
    assert run.frozen.passed_over().ignored == {".txt": 4}
    assert run.frozen.passed_over().skipped == {"hidden": 1}


def test_a_limited_listing_does_not_look_behind_its_last_image(tmp_path):
    folder = images(tmp_path / "in", 5)
    page = first_limited_page(Finder([str(folder), "/no such folder"]), 5)
    assert [len(shard.members) for shard in page.shards] == [5] and not page.ended


def test_a_run_that_was_limited_and_goes_on_is_limited_no_more(tmp_path):
    run = Run(tmp_path / "out", images(tmp_path / "in", 9))
    run.limited(4)
    (finding,) = verify(str(tmp_path / "out")).findings
    assert finding.detail == (
        "this run has the first 4 images of its source (--limit 4): "
        "the same command without --limit labels the rest"
    )
    run.rest()
    assert codes(verify(str(tmp_path / "out"))) == {"not_finished"}  # until its summary is written


def test_a_limited_run_that_lost_a_unit_is_found(tmp_path):
    run = Run(tmp_path / "out", tar(tmp_path / "a.tar", 20))
    run.limited(12)
    files = run.folder.prediction_files()
    Path(files[1]).unlink()
    assert codes(verify(str(tmp_path / "out"), source=True)) >= {"missing_unit", "limited_run"}
