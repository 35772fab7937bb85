"""The images of --probe: which ones are chosen, who is held out, and what is refused before workers start."""

from collections import Counter

import numpy as np
import pytest

from tests.support.builders import photo, write_tar
from tests.support.tables import write_parquet
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.training.probe_images import ProbeImages, choose_images
from wordsworth.pipeline.training.survey import cut_pages

READING = ReadSettings(unit_rows=8)


def write(folder, classes: list[list[str]], target: str = "cls") -> str:
    """Write a tar for each list of classes."""
    for shard, of_shard in enumerate(classes):
        members = {}
        for number, name in enumerate(of_shard):
            key = f"{name}/{shard}-{number}" if target == "folder" else f"{shard}-{number}"
            members[f"{key}.jpg"] = b"%d-%d" % (shard, number)
            if target == "cls":
                members[f"{key}.cls"] = name.encode()
        write_tar(folder / f"{shard}.tar", members)
    return str(folder)


def choose(source: str, where: str = "cls", limit: int = 10_000) -> ProbeImages:
    shards = cut_pages(find_shards([source], image_keys=READING.image_keys).shards)
    return choose_images(shards, READING, where, limit)


def names_of_rows(chosen: ProbeImages) -> list[str]:
    """Return the key of every row, as the workers meet it: by the index in its shard."""
    names = [""] * len(chosen.classes)
    for shard, first in zip(chosen.survey.shards, chosen.first_rows, strict=True):
        for unit in read_units(shard, READING):
            assert unit.shard_name == shard.name and not unit.fault
            for key, index in zip(
                *(unit.samples[name].to_pylist() for name in ("key", "index")), strict=True
            ):
                names[first + index - shard.first_index] = key
    assert all(names) and len(set(names)) == len(names)
    return names


SHARDS = [["b", "a", "b", "c"] * 12, ["a", "c", "c", "c"] * 10, ["d"] * 5]


def test_every_image_of_a_small_source_is_there_and_a_fifth_of_each_class_is_held_out(tmp_path):
    chosen = choose(write(tmp_path, SHARDS))
    assert chosen.num_found == len(chosen.classes) == 93
    assert chosen.survey.classes == {"a": 22, "b": 24, "c": 42, "d": 5}
    held_out = Counter(chosen.classes[chosen.held_out].tolist())
    assert held_out == {0: 4, 1: 5, 2: 8, 3: 1}
    assert chosen.describe() == (
        "--probe: 93 images of 4 classes; the probes learn from 75 and are tried on 18"
    )
    again = choose(str(tmp_path))
    assert again.digest == chosen.digest and np.array_equal(again.held_out, chosen.held_out)


@pytest.mark.parametrize("target", ["cls", "folder"])
def test_of_a_large_source_each_class_has_its_share_and_no_fewer_than_two(tmp_path, target):
    chosen = choose(write(tmp_path, SHARDS, target), target, limit=40)
    assert len(chosen.classes) <= 40 < chosen.num_found == 93
    assert chosen.survey.classes == {"a": 9, "b": 10, "c": 18, "d": 2}
    assert "--probe: 39 of 93 images of 4 classes" in chosen.describe()
    right = [SHARDS[int(shard)][int(number)] for shard, number in keys_of(chosen)]
    assert [("a", "b", "c", "d")[number] for number in chosen.classes] == right
    for number in range(4):
        assert 0 < chosen.held_out[chosen.classes == number].sum() < (chosen.classes == number).sum()


def keys_of(chosen: ProbeImages) -> list[list[str]]:
    return [key.rpartition("/")[2].split("-") for key in names_of_rows(chosen)]


def test_of_shuffled_shards_only_as_many_are_read_as_the_images_need(tmp_path):
    chosen = choose(write(tmp_path, [["a", "b"] * 20] * 5), limit=60)
    assert len(chosen.survey.shards) == 2 and chosen.survey.classes == {"a": 30, "b": 30}
    assert len(choose(str(tmp_path), limit=1000).survey.shards) == 5


def test_loose_images_are_chosen_one_by_one(tmp_path):
    for number in range(60):
        path = tmp_path / ("cat" if number % 3 else "dog") / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % number)
    chosen = choose(str(tmp_path), "folder", limit=30)
    assert chosen.survey.classes == {"cat": 20, "dog": 10}
    assert sum(len(shard.members) for shard in chosen.survey.shards) == 30, "the others are never read"
    assert [key.partition("/")[0] for key in names_of_rows(chosen)] == [
        ("cat", "dog")[number] for number in chosen.classes
    ]


def test_rows_of_a_table_are_chosen_by_their_column(tmp_path):
    image = photo(1)
    columns = {"image": [image] * 50, "kind": [number % 2 for number in range(50)]}
    columns["id"] = [f"row-{number}" for number in range(50)]
    write_parquet(tmp_path / "t.parquet", columns)
    reading = ReadSettings(unit_rows=8, image_column="image", key="id")
    shards = find_shards([str(tmp_path / "t.parquet")]).shards
    chosen = choose_images(shards, reading, "kind", limit=30)
    (shard,) = chosen.survey.shards
    keys = [key for unit in read_units(shard, reading) for key in unit.samples["key"].to_pylist()]
    assert [int(key.removeprefix("row-")) % 2 for key in keys] == chosen.classes.tolist()
    assert len(keys) == 30 and keys != [f"row-{number}" for number in range(30)]


def test_an_image_that_cannot_be_read_from_its_shard_is_not_chosen(tmp_path):
    path = tmp_path / "0.tar"
    write(tmp_path, [["a", "b"] * 20])
    path.write_bytes(path.read_bytes()[:-12_000])
    chosen = choose(str(tmp_path))
    assert 25 <= len(chosen.classes) < 40
    assert chosen.num_found == len(chosen.classes) + 1, "the image that is cut"


@pytest.mark.parametrize(
    ("classes", "limit", "message"),
    [
        ([["a", "b"] * 12], 10_000, "--probe has 24 images that can be read: a probe needs 25 at least"),
        ([["a"] * 40], 10_000, "--probe has one class only, a: a probe tells classes apart"),
        ([["a", "b"] * 20, ["z"]], 10_000, "class z of --probe has 1 image: a probe needs two of each class"),
        (
            [["a", "b", "c"] * 10],
            5,
            "--probe has 3 classes: with two images of each they are more than the 5",
        ),
        (
            [["a", "", "c"] * 10],
            10_000,
            r"--probe .*0\.tar: sample 0-1 has no class: --target cls gives None",
        ),
        ([["1", "-1"] * 20], 10_000, r"--probe .*0\.tar: sample 0-1 has no class: --target cls gives '-1'"),
    ],
)
def test_a_source_that_cannot_be_a_probe_is_one_line(tmp_path, classes, limit, message):
    with pytest.raises(UserError, match=message) as refused:
        choose(write(tmp_path, classes), limit=limit)
    assert "\n" not in str(refused.value)


def test_an_empty_source_is_too_few_images(tmp_path):
    with pytest.raises(UserError, match="--probe has 0 images"):
        choose_images([], READING, "cls")
