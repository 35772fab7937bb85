"""Training data: every sample once an epoch, in the order of seed and epoch, in the same number of steps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.samples import encoded, photo, write_tar
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard, listing_table
from wordsworth.pipeline.training import batches as training_batches
from wordsworth.pipeline.training import stream as training_stream
from wordsworth.pipeline.training.augment import Augmentation
from wordsworth.pipeline.training.batches import (
    BatchSettings,
    ErrorTally,
    ShardCursor,
    epoch_batches,
    prefetched,
    shuffled_shards,
)
from wordsworth.pipeline.training.stream import _decode_stage, _epochs_stage, _read_stage, remaining_rows
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.config import Preprocessing

DECODE = DecodeSettings(preprocessing=Preprocessing(), image_size=(16, 16), patch_size=8)
PLAIN = Augmentation()
TARGET = Target(where="cls", labels=None, classes=256)
START = ShardCursor()


def numbered_image(number: int) -> bytes:
    """Return an image whose colour says its number."""
    return encoded(Image.new("RGB", (20, 18), (number, 99, 77)), "PNG")


def write_shards(folder: Path, sizes: list[int], broken: tuple[int, ...] = ()) -> list[Shard]:
    """Write shards whose samples have their own number as class; the broken ones are no image."""
    number = 0
    for place, size in enumerate(sizes):
        members = []
        for sample in range(number, number + size):
            members += [
                (f"{sample}.png", b"broken" if sample in broken else numbered_image(sample)),
                (f"{sample}.cls", b"%d\n" % sample),
            ]
        write_tar(folder / f"{place}.tar", members)
        number += size
    return find_shards([str(folder)]).shards


def stream(
    shards: list[Shard],
    epochs: range,
    seed: int = 0,
    augmentation: Augmentation = PLAIN,
    cursor: ShardCursor = START,
):
    """Call the stages as Ray Data does, a table at a time. cursor: of a worker that continues an epoch."""
    first = remaining_rows(shuffled_shards(shards, epochs[0], seed), epochs[0], cursor)
    for shard in _epochs_stage(listing_table(shards), first, epochs[1:], seed):
        for table in _read_stage(shard, ReadSettings(unit_rows=training_stream.UNIT_ROWS, keep=("cls",))):
            yield Unit.from_arrow(_decode_stage(table, DECODE, augmentation, seed))


def batches_of(
    shards: list[Shard],
    steps: int,
    batch_size: int,
    epochs: range,
    seed: int = 0,
    cursor: ShardCursor = START,
    max_errors: float = float("inf"),
    done: int = 0,
    errors: ErrorTally | None = None,
):
    """Draw batch after batch; `done` of the first epoch were drawn before `cursor`."""
    errors = errors or ErrorTally()
    units = stream(shards, epochs, seed, cursor=cursor)
    for epoch in epochs:
        settings = BatchSettings(
            decode=DECODE,
            target=TARGET,
            batch_size=batch_size,
            seed=(seed, epoch, 1),
            max_errors=max_errors,
        )
        num_batches, begin = (steps - done, cursor) if epoch == epochs[0] else (steps, START)
        yield from epoch_batches(units, len(shards), num_batches, settings, begin, errors)


def epochs_of(
    shards: list[Shard], steps: int, batch_size: int, epochs: int = 2, seed: int = 0
) -> list[list[int]]:
    """Return the classes of every epoch in their order; the patches are checked to be theirs."""
    drawn = list(batches_of(shards, steps, batch_size, range(epochs), seed))
    assert len(drawn) == epochs * steps
    for patches, classes, _ in drawn:
        assert (
            patches.shape == (batch_size, 4, 192) and patches.dtype == np.uint8 and classes.dtype == np.int64
        )
        assert np.array_equal(patches[:, 0, 0], classes)
    return [
        [int(number) for _, classes, _ in drawn[i * steps : (i + 1) * steps] for number in classes]
        for i in range(epochs)
    ]


@pytest.fixture(params=[8192, 10], ids=["one group", "many groups"])
def group(request, monkeypatch):
    monkeypatch.setattr(training_batches, "GROUP_ROWS", request.param)
    monkeypatch.setattr(training_stream, "UNIT_ROWS", 4)
    return request.param


# ---- the stream ----


def test_an_epoch_draws_every_sample_once(tmp_path, group):
    shards = write_shards(tmp_path, [7, 12, 5, 16])
    for order in epochs_of(shards, steps=10, batch_size=4):
        assert sorted(order) == list(range(40))
        assert order != sorted(order)


def test_an_epoch_that_is_no_multiple_of_the_batch_draws_none_twice(tmp_path, group):
    for order in epochs_of(write_shards(tmp_path, [9, 10, 4]), steps=5, batch_size=4):
        assert len(set(order)) == 20


@pytest.mark.slow
def test_the_order_is_that_of_the_seed_and_another_in_every_epoch(tmp_path, group):
    shards = write_shards(tmp_path, [8, 8, 8])
    first = epochs_of(shards, steps=6, batch_size=4, epochs=3)
    assert epochs_of(shards, steps=6, batch_size=4, epochs=3) == first
    assert len({tuple(order) for order in first}) == 3
    other = epochs_of(shards, steps=6, batch_size=4, epochs=3, seed=1)
    assert not {tuple(order) for order in first} & {tuple(order) for order in other}


@pytest.mark.parametrize(
    "broken", [range(0, 30, 3), range(20, 30), range(0, 27)], ids=["every third", "the last", "nearly all"]
)
def test_the_steps_are_the_same_when_images_cannot_be_decoded(tmp_path, group, broken):
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
    nothing = remaining_rows([], 0, START)
    order = [
        (row["epoch"][0].as_py(), row["uri"][0].as_py()) for row in _epochs_stage(table, nothing, range(4), 0)
    ]
    by_epoch = [[uri for at, uri in order if at == epoch] for epoch in range(4)]
    assert all(sorted(uris) == sorted(table["uri"].to_pylist()) for uris in by_epoch)
    assert len({tuple(uris) for uris in by_epoch}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("broken", [(), tuple(range(3, 60, 7))], ids=["all good", "some broken"])
def test_from_every_place_an_epoch_goes_on_with_the_batch_that_was_due(tmp_path, group, broken):
    shards = write_shards(tmp_path, [11, 3, 17, 8, 14, 7], broken)
    steps, epochs = 15, range(2)
    whole = list(batches_of(shards, steps, 4, epochs))
    read = []
    for at in range(steps):
        cursor = whole[at].cursor
        rest = list(batches_of(shards, steps, 4, epochs, cursor=cursor, done=at + 1))
        assert len(rest) == 2 * steps - at - 1
        if group == 10 and not broken:
            read.append(sum(len(unit.samples) for unit in stream(shards, range(1), cursor=cursor)))
        for one, other in zip(rest, whole[at + 1 :], strict=True):
            assert np.array_equal(one.patches, other.patches) and np.array_equal(one.classes, other.classes)
            assert one.cursor == other.cursor
    if read:
        assert read[0] == 60 and max(read[-3:]) <= 32, "what lies more than two groups back is not read again"


def test_an_epoch_that_ends_before_its_shards_leaves_the_stream_where_the_next_begins(tmp_path, group):
    """As for a worker that has more samples than the others."""
    shards = write_shards(tmp_path, [9, 10, 21])
    few = list(batches_of(shards, 2, 4, range(3)))
    assert len(few) == 6
    drawn = [{int(number) for batch in few[i : i + 2] for number in batch.classes} for i in (0, 2, 4)]
    assert all(len(numbers) == 8 for numbers in drawn) and drawn[0] != drawn[1] != drawn[2]


def test_a_thread_draws_ahead_and_raises_where_it_failed():
    def failing():
        yield from range(5)
        raise UserError("after five")

    drawn = []
    with pytest.raises(UserError, match="after five"):
        for number in prefetched(failing()):
            drawn.append(number)
    assert drawn == list(range(5)) and list(prefetched(iter(range(9)))) == list(range(9))


def test_more_errors_than_are_allowed_stop_the_epoch_as_soon_as_they_are_met(tmp_path, group):
    shards = write_shards(tmp_path, [10, 10, 10], (4, 15, 22))
    assert len(list(batches_of(shards, 9, 3, range(1), max_errors=3))) == 9
    with pytest.raises(
        UserError,
        match=r"3 of \d+ images could not be decoded, more than --max-error-rate .*such as \S+tar/",
    ):
        list(batches_of(shards, 9, 3, range(1), max_errors=2))


@pytest.mark.parametrize("steps", [8, 3], ids=["to the end", "fewer than another worker"])
def test_an_epoch_counts_every_image_that_could_not_be_decoded(tmp_path, group, steps):
    shards = write_shards(tmp_path, [10, 10, 10], (4, 15, 22, 29))
    errors = ErrorTally()
    for epochs in (1, 2):
        assert len(list(batches_of(shards, steps, 3, range(epochs), errors=errors))) == epochs * steps
        assert errors.count == 4, "also of the last group, and of units behind the last batch"
    lost = {f"{tmp_path}/{number // 10}.tar/{number} (not_an_image)" for number in (4, 15, 22, 29)}
    assert len(errors.first) == 3 and set(errors.first) <= lost


def test_an_epoch_that_continues_counts_what_was_met_before_too(tmp_path, group):
    shards = write_shards(tmp_path, [10, 10, 10], (4, 15, 22, 29))
    cursor = list(batches_of(shards, 8, 3, range(1)))[5].cursor
    errors = ErrorTally()
    list(batches_of(shards, 8, 3, range(1), cursor=cursor, done=6, errors=errors))
    assert errors.count == 4


def test_a_retried_task_makes_the_same_crops_and_another_epoch_makes_others(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.png", encoded(photo(0), "PNG")), ("0.cls", b"0")])
    shards = find_shards([str(path)]).shards
    crops = Augmentation(crop_scale=0.2, flip=True)
    first, second = (unit.payload for unit in stream(shards, range(2), 0, crops))
    again, _ = (unit.payload for unit in stream(shards, range(2), 0, crops))
    (other,) = (unit.payload for unit in stream(shards, range(1), 5, crops))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second) and not np.array_equal(first, other)


def test_a_shard_that_cannot_be_read_stops_the_training_and_is_named(tmp_path):
    (shard,) = write_shards(tmp_path, [3])
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"0.tar could not be read: shard_changed: .*replaced since.*another --output"
    ):
        list(stream([shard], range(1)))
