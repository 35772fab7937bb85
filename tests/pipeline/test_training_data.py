"""training data: every sample once an epoch, in an order that seed and epoch decide, and always the same number of steps."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import loops, training_data
from pipeline.decode import DecodeSettings
from pipeline.errors import UserError
from pipeline.reader import ReadSettings
from pipeline.source import Shard, find_shards, listing_table
from pipeline.training_data import (
    Augmentation,
    _decode_stage,
    _epochs_stage,
    _read_stage,
    _survey_shard,
    assign,
    batches,
    class_names,
    random_crop,
    survey,
)
from pipeline.unit import Unit
from tests.pipeline.samples import encoded, photo, rows_of, units_of, write_tar
from vit_model.config import Preprocessing

DECODE = DecodeSettings(Preprocessing(), (16, 16), 8)
PLAIN = Augmentation()


def picture(number: int) -> bytes:
    """Its colour says which one it is."""
    return encoded(Image.new("RGB", (20, 18), (number, 99, 77)), "PNG")


def write_shards(folder: Path, sizes: list[int], broken: tuple[int, ...] = ()) -> list[Shard]:
    """Shards whose samples have their own number as class; the broken ones are no image."""
    number = 0
    for place, size in enumerate(sizes):
        members = []
        for sample in range(number, number + size):
            members += [(f"{sample}.png", b"broken" if sample in broken else picture(sample)), (f"{sample}.cls", b"%d\n" % sample)]
        write_tar(folder / f"{place}.tar", members)
        number += size
    return find_shards([str(folder)]).shards


def stream(shards: list[Shard], epochs: int, seed: int = 0, augmentation: Augmentation = PLAIN):
    """The stages as Ray Data calls them, one table at a time."""
    for shard in _epochs_stage(listing_table(shards), epochs, seed):
        for table in _read_stage(shard, ReadSettings(training_data.UNIT_ROWS, keep=("cls",))):
            yield Unit.from_arrow(_decode_stage(table, DECODE, augmentation, seed))


def epochs_of(shards: list[Shard], steps: int, batch_size: int, epochs: int = 2, seed: int = 0) -> list[list[int]]:
    """The classes of every epoch in their order; the patches are checked to be theirs."""
    rows = sum(_survey_shard(shard, {})[0] for shard in shards)
    drawn = list(batches(stream(shards, epochs, seed), DECODE, epochs, rows, steps, batch_size, seed))
    assert len(drawn) == epochs * steps
    for patches, classes in drawn:
        assert patches.shape == (batch_size, 4, 192) and patches.dtype == np.uint8 and classes.dtype == np.int64
        assert np.array_equal(patches[:, 0, 0], classes)
    orders = [[int(number) for _, classes in drawn[i * steps : (i + 1) * steps] for number in classes] for i in range(epochs)]
    return orders


@pytest.fixture(params=[8192, 10], ids=["one buffer", "many buffers"])
def buffer(request, monkeypatch):
    monkeypatch.setattr(training_data, "BUFFER_ROWS", request.param)
    monkeypatch.setattr(training_data, "UNIT_ROWS", 4)
    return request.param


# ---- the stream -----------------------------------------------------------------------------------------------------------


def test_an_epoch_draws_every_sample_once(tmp_path, buffer):
    shards = write_shards(tmp_path, [7, 12, 5, 16])
    for order in epochs_of(shards, steps=10, batch_size=4):
        assert sorted(order) == list(range(40))
        assert order != sorted(order)


def test_an_epoch_that_is_no_multiple_of_the_batch_draws_none_twice(tmp_path, buffer):
    for order in epochs_of(write_shards(tmp_path, [9, 10, 4]), steps=5, batch_size=4):
        assert len(set(order)) == 20


def test_the_order_is_that_of_the_seed_and_another_in_every_epoch(tmp_path, buffer):
    shards = write_shards(tmp_path, [8, 8, 8])
    first = epochs_of(shards, steps=6, batch_size=4, epochs=3)
    assert epochs_of(shards, steps=6, batch_size=4, epochs=3) == first
    assert len({tuple(order) for order in first}) == 3
    other = epochs_of(shards, steps=6, batch_size=4, epochs=3, seed=1)
    assert not {tuple(order) for order in first} & {tuple(order) for order in other}


@pytest.mark.parametrize("broken", [range(0, 30, 3), range(20, 30), range(0, 27)], ids=["every third", "the last", "nearly all"])
def test_the_steps_are_the_same_when_images_cannot_be_decoded(tmp_path, buffer, broken):
    shards = write_shards(tmp_path, [10, 10, 10], tuple(broken))
    good = set(range(30)) - set(broken)
    for order in epochs_of(shards, steps=10, batch_size=3):
        assert set(order) <= good and len(order) == 30
        assert len(set(order)) >= len(good) - 2  # the rest of a last batch


def test_an_epoch_of_nothing_that_can_be_decoded_is_one_line(tmp_path):
    shards = write_shards(tmp_path, [5], tuple(range(5)))
    with pytest.raises(UserError, match="fewer images than one batch could be decoded"):
        epochs_of(shards, steps=2, batch_size=2)


def test_shards_come_once_an_epoch_in_another_order_each(tmp_path):
    table = listing_table(write_shards(tmp_path, [1] * 9))
    order = [(row["epoch"][0].as_py(), row["uri"][0].as_py()) for row in _epochs_stage(table, 4, 0)]
    by_epoch = [[uri for at, uri in order if at == epoch] for epoch in range(4)]
    assert all(sorted(uris) == sorted(table["uri"].to_pylist()) for uris in by_epoch)
    assert len({tuple(uris) for uris in by_epoch}) == 4


def test_a_retried_task_makes_the_same_crops_and_another_epoch_makes_others(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.png", encoded(photo(0), "PNG")), ("0.cls", b"0")])
    shards = find_shards([str(path)]).shards
    crops = Augmentation(crop_scale=0.2, flip=True)
    first, second = (unit.payload for unit in stream(shards, 2, 0, crops))
    again, _ = (unit.payload for unit in stream(shards, 2, 0, crops))
    (other,) = (unit.payload for unit in stream(shards, 1, 5, crops))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second) and not np.array_equal(first, other)


def test_a_shard_that_cannot_be_read_stops_the_training_and_is_named(tmp_path):
    (shard,) = write_shards(tmp_path, [3])
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"0.tar could not be read: .*replaced since"):
        list(stream([shard], 1))


# ---- crops ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1, 1), (1, 4000), (3000, 2), (100, 100)])
@pytest.mark.parametrize(
    "augmentation", [PLAIN, Augmentation(0.05, 4 / 3), Augmentation(0.05, 2.0, flip=True), Augmentation(1.0, 1.0)]
)
def test_a_crop_lies_inside_the_picture_and_has_the_area_and_aspect_allowed(size, augmentation, monkeypatch):
    boxes, rng, (width, height) = [], np.random.default_rng(0), size
    resized = loops.region
    monkeypatch.setattr(loops, "region", lambda pixels, box, *rest: boxes.append(box) or resized(pixels, box, *rest))
    picture = np.zeros((height, width, 3), np.uint8)
    for _ in range(300):
        assert random_crop(picture, DECODE, augmentation, rng).shape == (16, 16, 3)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width * (1 + 1e-9) and 0 <= top < bottom <= height * (1 + 1e-9)
        share = (right - left) * (bottom - top) / (width * height)
        cut = right - left > width * 0.999 or bottom - top > height * 0.999  # a side that would have stuck out was cut off
        assert share <= 1 + 1e-9 and (cut or share >= augmentation.crop_scale - 1e-9)
        assert cut or abs(np.log((right - left) / (bottom - top))) <= np.log(augmentation.aspect) + 1e-9
    if augmentation == Augmentation(1.0, 1.0) and width == height:
        assert set(boxes) == {(0, 0, width, height)}


def test_crops_differ_in_size_shape_and_place_and_half_are_mirrored():
    gradient = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    rng = np.random.default_rng(0)
    crops = [random_crop(gradient, DECODE, Augmentation(0.3, 4 / 3, flip=True), rng).astype(int) for _ in range(400)]
    mirrored = sum(crop[0, 0, 0] > crop[0, -1, 0] for crop in crops)
    assert 150 < mirrored < 250
    assert not any(
        crop[0, 0, 0] > crop[0, -1, 0] for crop in (random_crop(gradient, DECODE, PLAIN, rng).astype(int) for _ in range(99))
    )
    assert len({crop.tobytes() for crop in crops}) > 300


def test_every_small_picture_can_be_cropped():
    rng = np.random.default_rng(0)
    for width in range(1, 30):
        for height in (*range(1, 30), 997):
            crop = random_crop(np.full((height, width, 3), (1, 2, 3), np.uint8), DECODE, Augmentation(0.05, 2.0), rng)
            assert (crop == (1, 2, 3)).all()


# ---- before training ------------------------------------------------------------------------------------------------------


def test_a_survey_counts_rows_and_classes_as_training_will_meet_them(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [(f"{n}.{kind}", data) for n in range(5) for kind, data in (("jpg", b"x"), ("cls", b"%d" % (n % 2)))]
    )
    (shard,) = find_shards([str(path)]).shards
    assert _survey_shard(shard, {}) == (5, Counter({0: 3, 1: 2}))


def test_a_survey_of_a_cut_shard_agrees_with_the_reader_or_names_the_sample(tmp_path):
    """Where a cut leaves an image without its class, training would have nothing to learn it from."""
    whole = [(f"{n}.{kind}", data) for n in range(3) for kind, data in (("jpg", bytes([n + 1]) * 100), ("cls", b"1"))]
    path = write_tar(tmp_path / "a.tar", whole)
    data, named = path.read_bytes(), 0
    for cut in range(0, 7 * 1024, 128):
        path.write_bytes(data[:cut])
        (shard,) = find_shards([str(path)]).shards
        rows = rows_of(units_of(path, keep=("cls",)))
        unnamed = [row["key"] for row in rows if row["error"] is None and row["sidecars"] == [None]]
        if unnamed:
            named += 1
            with pytest.raises(UserError, match=f"sample {unnamed[0]} has no class"):
                _survey_shard(shard, {})
        else:
            assert _survey_shard(shard, {})[0] == len(rows)
    assert named > 5


@pytest.mark.parametrize(("text", "shown"), [(None, "None"), (b"", "''"), (b"cat", "'cat'"), (b"-1", "'-1'"), (b"1.5", "'1.5'")])
def test_a_sample_without_a_class_is_refused_and_named(tmp_path, text, shown):
    members = [("good.jpg", b"x"), ("good.cls", b"3"), ("d/bad.jpg", b"x")] + ([("d/bad.cls", text)] if text is not None else [])
    (shard,) = find_shards([str(write_tar(tmp_path / "a.tar", members))]).shards
    with pytest.raises(UserError, match=f"a.tar: sample d/bad has no class: .cls is {shown}, a number from 0 on is needed"):
        _survey_shard(shard, {})


def test_loose_images_are_refused_before_anything_is_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is no tar: training reads WebDataset shards"):
        survey(find_shards([str(tmp_path)]).shards, {})


def test_shards_are_divided_so_that_no_worker_has_much_more_than_another():
    rng = np.random.default_rng(0)
    for workers in (1, 2, 3, 7):
        shards = [Shard("tar", f"/{n}.tar", 1, "") for n in range(31)]
        rows = {shard.name: int(rng.integers(1, 1000)) for shard in shards}
        parts = assign(shards, rows, workers)
        assert sorted(shard.uri for part in parts for shard in part) == sorted(shard.uri for shard in shards)
        loads = [sum(rows[shard.name] for shard in part) for part in parts]
        assert max(loads) - min(loads) <= max(rows.values()) and all(parts)
        assert assign(shards[::-1], rows, workers) == parts  # whatever the order of the listing
    with pytest.raises(UserError, match="3 workers need at least 3 shards, there are 2: pack smaller ones"):
        assign(shards[:2], rows, 3)


def test_class_names_come_from_the_option_or_from_beside_the_shards(tmp_path):
    write_shards(tmp_path / "in", [1])
    source = str(tmp_path / "in")
    assert class_names(None, [source], {}) is None
    (tmp_path / "in" / "labels.txt").write_text("ant\nbee\n")
    (tmp_path / "other.txt").write_text("cat\ndog\n")
    for given in (source, f"{source}/", f"{source}/0.tar", f"{source}/*.tar"):
        assert class_names(None, [given], {}) == ("ant", "bee")
    assert class_names(str(tmp_path / "other.txt"), [source], {}) == ("cat", "dog")
    with pytest.raises(UserError, match=r"--labels .*/missing.txt: no such file") as refusal:
        class_names(f"{tmp_path}/missing.txt", [source], {})
    assert refusal.value.exit_code == 2
