"""Names with dots in tars: every image is a row or is counted, by each rule, at every cut and resume."""

import io
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.tars import make_tar, peak_bytes
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.plan import (
    asked_for,
    has_keys_by_path,
    key_rule_of,
    make_plan,
    refuse_another_run,
)
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources import tar_groups
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.unit import Unit
from wordsworth.pipeline.verification import recount_keys
from wordsworth.pipeline.verification.recount_tars import WholeFile, tar_samples
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig

RULES = ("auto", "first-dot", "last-dot")
KEYS = ("jpg", "png")


def data_of(name: str) -> bytes:
    """Return bytes that only a member of this name has."""
    return name.encode() * (1 + len(name) % 3)


def place(folder: Path, *names: str) -> Path:
    path = folder / "a.tar"
    path.write_bytes(make_tar([(name, data_of(name)) for name in names]))
    return path


def keys_of(path: Path, rule: str, **settings) -> list[str]:
    """Return the keys of the rows. Each row must have the bytes of a member, whose place it names."""
    tar = path.read_bytes()
    keys = []
    for unit in units_of(path, key_rule=rule, image_keys=KEYS, **settings):
        payload = unit.payload.tobytes()
        for row in unit.samples.to_pylist():
            if row["error"] is None:
                image, payload = payload[: row["size"]], payload[row["size"] :]
                assert image == tar[row["offset"] : row["offset"] + row["size"]]
                assert image.decode().startswith(row["key"])
            keys.append(row["key"] if row["error"] is None else f"{row['key']}: {row['error']}")
    return keys


def beside(units: list[Unit]) -> dict[str, int]:
    """Return what the units count beside their rows."""
    total: dict[str, int] = {}
    for unit in units:
        for kind, count in json.loads(unit.skipped).items():
            total[kind] = total.get(kind, 0) + count
    return total


# ---- the table of docs/sources.md --------------------------------------------------------------------------

NUMBERED = [f"22.{number:02}.png" for number in range(1, 11)]
TABLE = [  # names; keys by auto, first-dot and last-dot; what auto counts beside the rows
    (NUMBERED, [name[:5] for name in NUMBERED], ["22"], [name[:5] for name in NUMBERED], {"dotted_key": 10}),
    (
        ["000.left.jpg", "000.right.jpg", "000.json"],
        ["000.left", "000.right"],
        ["000"],
        ["000.left", "000.right", "000: missing_image"],
        {"dotted_key": 2},
    ),
    (["a.jpg", "a.seg.png", "a.json"], ["a"], ["a"], ["a", "a.seg", "a: missing_image"], {"other_image": 1}),
    (["a.seg.png", "a.json"], ["a"], ["a"], ["a.seg", "a: missing_image"], {}),
    (["a.v1.jpg", "a.v1.png"], ["a"], ["a"], ["a.v1"], {"other_image": 1}),
    (["a.jpg", "a.png"], ["a"], ["a"], ["a"], {"other_image": 1}),
    (["d.1/a.jpg", "d.1/b.jpg"], ["d.1/a", "d.1/b"], ["d.1/a", "d.1/b"], ["d.1/a", "d.1/b"], {}),
    (
        ["a.txt", "a.b.txt"],
        ["a: missing_image"],
        ["a: missing_image"],
        ["a: missing_image", "a.b: missing_image"],
        {},
    ),
]


@pytest.mark.parametrize("names, auto, first_dot, last_dot, counted", TABLE)
def test_names_with_dots_are_samples_as_the_table_says(tmp_path, names, auto, first_dot, last_dot, counted):
    path = place(tmp_path, *names)
    assert keys_of(path, "auto") == auto
    assert keys_of(path, "first-dot") == first_dot
    assert keys_of(path, "last-dot") == last_dot
    assert beside(units_of(path, image_keys=KEYS)) == counted


def test_images_that_are_not_labelled_are_counted_by_each_rule(tmp_path):
    path = place(tmp_path, *NUMBERED, "a.jpg", "a.png", "a.x.png")
    counted = {rule: beside(units_of(path, key_rule=rule, image_keys=KEYS)) for rule in RULES}
    assert counted == {
        "auto": {"dotted_key": 10, "other_image": 2},
        "first-dot": {"other_image": 11},
        "last-dot": {"other_image": 1},
    }


def test_an_image_has_its_own_sidecars_and_those_of_its_group(tmp_path):
    names = ["0.json", "0.left.jpg", "0.left.json", "0.left.txt", "0.right.jpg", "0.meta.txt", "0.cls"]
    path = place(tmp_path, *names)
    keep = ("json", "txt", "meta.txt", "cls")
    left, right = rows_of(units_of(path, keep=keep, image_keys=KEYS))
    told = [data_of(name).decode() for name in names]
    assert left["sidecars"] == [told[2], told[3], told[5], told[6]]
    assert right["sidecars"] == [told[0], None, told[5], told[6]]


def test_an_image_that_is_alone_in_its_group_has_the_sidecars_of_its_name(tmp_path):
    names = [
        "22.01.png",
        "22.01.json",
        "22.02.txt",
        "22.cls",
        "23.A.png",
        "23.a.json",
        "24.json",
        "24.x.json",
    ]
    path = place(tmp_path, *names)
    told = [data_of(name).decode() for name in names]
    keep = ("json", "txt", "cls")
    rows = {row["key"]: row["sidecars"] for row in rows_of(units_of(path, keep=keep, image_keys=KEYS))}
    assert rows == {"22": [told[1], None, told[3]], "23": [None] * 3, "24": [told[6], None, None]}
    rows = rows_of(units_of(path, keep=keep, image_keys=KEYS, key_rule="first-dot"))
    assert [row["sidecars"] for row in rows[:2]] == [[None, None, told[3]], [None] * 3]


def test_an_image_key_with_a_dot_is_read(tmp_path):
    path = place(tmp_path, "a.left.jpg", "a.right.jpg", "b.left.jpg")
    units = units_of(path, image_keys=("right.jpg", "left.jpg"))
    assert b"".join(unit.payload.tobytes() for unit in units) == data_of("a.right.jpg") + data_of(
        "b.left.jpg"
    )
    assert beside(units) == {"other_image": 1}


def test_a_run_goes_on_by_the_rule_that_it_began_with_and_the_default_continues_runs_of_old(tmp_path):
    size = ViTConfig(image_size=(16, 16), patch_size=8, width=8, depth=1, heads=1, mlp_dim=8)
    model = random_checkpoint(size, Preprocessing(), 0)
    folder = RunFolder(str(tmp_path / "out"))
    request = LabelRequest(command="label", sources=(str(tmp_path),), output=folder.uri, model="m")
    asked = {rule: asked_for(replace(request, key_rule=rule), model) for rule in RULES}
    plans = {rule: make_plan(asked[rule], request, model, {"CPU": 4.0}) for rule in RULES}
    assert "key-rule" not in plans["first-dot"].asked, "this is the plan of an earlier version"
    assert [key_rule_of(plans[rule]) for rule in RULES] == list(RULES)
    assert not has_keys_by_path(plans["first-dot"], request), "its tables go on with the numbers of rows"
    for rule in RULES:
        assert has_keys_by_path(plans[rule], replace(request, key_rule=rule))
    for begun, again in itertools.product(RULES, RULES):
        if again == begun or (begun, again) == ("first-dot", "auto"):
            refuse_another_run(folder, plans[begun], asked[again])
        else:
            with pytest.raises(UserError, match=f"--key-rule was {begun} and is {again}"):
                refuse_another_run(folder, plans[begun], asked[again])


# ---- long groups -------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """Make groups of more than 3 images, or of more than 4 kB, long ones."""
    for module, names in (
        (tar_groups, ("MAX_GROUP_IMAGES", "MAX_GROUP_BYTES")),
        (recount_keys, ("MOST_IMAGES", "MOST_BYTES")),
    ):
        for name, value in zip(names, (2, 4000), strict=True):
            monkeypatch.setattr(module, name, value)


def test_images_of_a_long_group_are_keyed_up_to_the_last_dot_and_have_their_own_sidecars(tmp_path, short):
    names = ["v.json", *(f"v.{n}.{kind}" for n in range(5) for kind in ("jpg", "json")), "v.jpg", "v.txt"]
    path = place(tmp_path, *names)
    assert keys_of(path, "auto") == [*(f"v.{n}" for n in range(5)), "v"]
    rows = rows_of(units_of(path, keep=("json", "txt"), image_keys=KEYS))
    told = [[data_of(f"v.{n}.json").decode(), None] for n in range(5)]
    assert [row["sidecars"] for row in rows] == [*told, [None, data_of("v.txt").decode()]]


def test_a_group_with_an_image_without_dots_is_never_long(tmp_path, short):
    path = place(tmp_path, "v.1.jpg", "v.jpg", *(f"v.{n}.jpg" for n in range(2, 9)))
    assert keys_of(path, "auto") == ["v"]
    assert beside(units_of(path, image_keys=KEYS)) == {"other_image": 8}


def test_a_shard_that_is_one_group_is_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_groups, "MAX_GROUP_BYTES", 2 << 20)
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar([(f"imagenet.val.{n:04}.jpg", bytes(200_000)) for n in range(200)]))
    count = []

    def read() -> None:
        units = read_units(shard_of(path), ReadSettings(unit_rows=8))
        count.append(sum(len(unit.samples) for unit in units))

    assert peak_bytes(read) < 12 << 20
    assert count == [200]


# ---- resume, cuts and the recount --------------------------------------------------------------------------


def content(units: list[Unit]) -> list[tuple]:
    """Return all that two readings have in common, but for the clock."""
    return [
        (
            *(unit.number, unit.last, unit.next_offset, unit.next_in_group, unit.next_index),
            *(unit.bytes_read, unit.samples.to_pylist(), unit.payload.tobytes(), unit.skipped),
        )
        for unit in units
    ]


def assert_resumes(path: Path, settings: ReadSettings) -> list[Unit]:
    """Read a shard from the beginning and behind each of its units: the units must be the same."""
    shard = shard_of(path)
    units = list(read_units(shard, settings))
    whole = content(units)
    for unit in units[:-1]:
        next_place = (unit.number + 1, unit.next_offset, unit.next_index, unit.next_in_group)
        assert content(list(read_units(shard, settings, *next_place))) == whole[unit.number + 1 :]
    assert sum(unit.bytes_read for unit in units) == shard.size
    return units


def random_names(rng: random.Random) -> list[str]:
    names = []
    for _ in range(rng.randint(1, 16)):
        folder = rng.choice(["", "", "", "", "", "", "d.x/"])
        dots = "".join(f".{rng.choice('1234')}" for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 2])))
        base = rng.choice(["a"] * 9 + ["b", "._a", "noext"])
        kind = rng.choice(["jpg", "jpg", "png", "PNG", "json", "txt"])
        names.append(f"{folder}{base}{dots}.{kind}" if base != "noext" else base)
    if rng.random() < 0.6:
        names.sort()
    return names


def random_tar(rng: random.Random) -> bytes:
    """Return a tar of such names, often one that is cut."""
    names = random_names(rng)
    tar = make_tar([(name, bytes([n]) * rng.choice([1, 600, 3000])) for n, name in enumerate(names)])
    return tar if rng.random() < 0.6 else tar[: rng.randrange(len(tar))]


@pytest.mark.parametrize("rule", RULES)
def test_the_recount_agrees_with_the_reader_on_random_names_and_cuts_and_each_unit_resumes(
    tmp_path, short, rule
):
    rng = random.Random(18)
    path = tmp_path / "a.tar"
    within = 0
    for _ in range(250):
        tar = random_tar(rng)
        path.write_bytes(tar)
        rows = rng.randint(1, 4)
        settings = ReadSettings(unit_rows=rows, key_rule=rule, image_keys=KEYS, keep=("json",))
        units = assert_resumes(path, settings)
        within += sum(unit.next_in_group > 0 for unit in units)
        found = [(row["key"], row["offset"], row["size"], row["error"]) for row in rows_of(units)]
        expected = [tuple(one) for one in tar_samples(WholeFile(io.BytesIO(tar), len(tar)), list(KEYS), rule)]
        if found and found[-1][3] == "shard_truncated":
            found[-1] = (None, None, None, "shard_truncated")
        assert found == expected, tar_names(tar)
    assert (within > 50) == (rule == "auto")


def tar_names(tar: bytes) -> list[str]:
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(tar), ignore_zeros=True) as archive:
        return [member.name for member in archive]
