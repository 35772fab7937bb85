"""The training stream: a worker's shards, epoch after epoch, in a seeded order, as batches of patches and classes.

Which batch comes next is a function of the seed, the shards and the place in them alone, so a training that was cut off goes on
with the batch that was due: it reads at most two groups of units again.
"""

import hashlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from queue import Empty, Queue
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.cluster.session import READ_CPUS, RETRIES, data_context
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings, decode_unit
from wordsworth.pipeline.sources.class_target import Target, kept
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings, ShardChanged
from wordsworth.pipeline.sources.shards import LISTING, Shard, listing_table
from wordsworth.pipeline.storage.filesystem import public
from wordsworth.pipeline.training.augment import Augmentation, augment
from wordsworth.pipeline.unit import Unit

UNIT_ROWS, UNIT_BYTES = 512, 64 << 20  # samples in a unit, at most; and bytes of their patches
GROUP_ROWS, GROUP_BYTES = (
    8192,
    512 << 20,
)  # the same of a group, the samples that are shuffled among themselves
READERS = 4  # shards that a worker reads at a time
STALL = 1800.0  # seconds without a batch after which a training gives up
STREAM = pa.schema([*LISTING, ("epoch", pa.int32()), ("skip", pa.int32())])


def reading(decode: DecodeSettings, target: str | None, **settings: Any) -> ReadSettings:
    """As training reads. settings: further ones of ReadSettings."""
    rows = max(1, min(UNIT_ROWS, UNIT_BYTES // math.prod(decode.patches_shape)))
    return ReadSettings(rows, keep=kept(target) if target else (), **settings)


def group_rows(decode: DecodeSettings, batch_size: int) -> int:
    """Samples that are shuffled among themselves; at least two batches."""
    return max(min(GROUP_ROWS, GROUP_BYTES // math.prod(decode.patches_shape)), 2 * batch_size)


# ---- the stream -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a worker is in its shards of an epoch. `at`: the shard, by its turn, and the unit where the group of now begins;
    `before`: the same of the group before it, which left `carried` samples over for this one. drawn: batches of this group.
    rows, errors: samples that were met in this epoch until this group, and those that could not be decoded."""

    group: int = 0
    at: tuple[int, int] = (0, 0)
    before: tuple[int, int] = (0, 0)
    carried: int = 0
    drawn: int = 0
    rows: int = 0
    errors: int = 0

    @property
    def begin(self) -> tuple[int, int]:
        """What must be read to go on from here."""
        return self.before if self.carried else self.at


def ordered(part: list[Shard], epoch: int, seed: int) -> list[Shard]:
    """A worker's shards as they come in an epoch."""
    return [part[place] for place in np.random.default_rng([seed, epoch]).permutation(len(part))]


def resumed(shards: list[Shard], epoch: int, place: Place) -> pa.Table:
    """What is left of an epoch's ordered shards, as rows of STREAM."""
    turn, unit = place.begin
    left = listing_table(shards[turn:])
    skip = np.zeros(left.num_rows, np.int32)
    skip[:1] = unit
    return left.append_column("epoch", pa.array([epoch] * left.num_rows, pa.int32())).append_column(
        "skip", pa.array(skip)
    )


def training_dataset(
    first: pa.Table,
    part: list[Shard],
    epochs: range,
    seed: int,
    decode: DecodeSettings,
    augmentation: Augmentation | None,
    settings: ReadSettings,
    tasks: tuple[int, int | None] = (READERS, None),
):
    """One worker's stream of decoded units, as one execution: an epoch costs no new start.

    first: rows of STREAM that come before the `epochs` over all shards of the part. augmentation: None brings pictures to the model
    as the labeler does. tasks: that read and that decode, at most so many at a time.
    """
    from ray.data import TaskPoolStrategy, from_blocks

    data_context()
    readers, decoders = tasks
    one = {"batch_size": None, "batch_format": "pyarrow", **RETRIES}
    return (
        from_blocks([listing_table(part)])
        .map_batches(
            _epochs_stage, fn_kwargs={"first": first, "epochs": epochs, "seed": seed}, num_cpus=0.1, **one
        )
        .map_batches(
            _read_stage,
            fn_kwargs={"settings": settings},
            num_cpus=READ_CPUS,
            compute=TaskPoolStrategy(readers),
            **one,
        )
        .map_batches(
            _decode_stage,
            fn_kwargs={"settings": decode, "augmentation": augmentation, "seed": seed},
            compute=TaskPoolStrategy(decoders),
            num_cpus=0.5,
            **one,
        )
    )


def _epochs_stage(table: pa.Table, first: pa.Table, epochs: range, seed: int) -> Iterator[pa.Table]:
    """The listing -> a shard a block: `first`, then every shard once an epoch."""
    for row in range(first.num_rows):
        yield first.slice(row, 1).cast(STREAM)
    part = [Shard.from_row(row) for row in table.to_pylist()]
    for epoch in epochs:
        everything = resumed(ordered(part, epoch, seed), epoch, Place())
        for row in range(everything.num_rows):
            yield everything.slice(row, 1).cast(STREAM)


def _read_stage(table: pa.Table, settings: ReadSettings) -> Iterator[pa.Table]:
    (row,) = table.to_pylist()
    for unit in read_units(Shard.from_row(row), settings):
        if unit.fault:
            message = f"{unit.shard_uri} could not be read: {unit.fault}"
            if unit.fault.startswith(ShardChanged.CODE):
                raise UserError(
                    f"{message.removesuffix(ShardChanged.HINT)}: start again with another --output"
                )
            raise OSError(message)  # a store's passing fault: the workers start again
        if unit.number >= row["skip"]:
            yield unit.to_arrow().append_column("epoch", table["epoch"])


def _decode_stage(
    table: pa.Table, settings: DecodeSettings, augmentation: Augmentation | None, seed: int
) -> pa.Table:
    unit = Unit.from_arrow(table)
    if augmentation is None:
        return decode_unit(unit, settings).to_arrow()
    # A retried task makes the same crops: the seed is what is decoded, not when or where.
    name = f"{seed}|{table['epoch'][0].as_py()}|{unit.shard_name}|{unit.number}"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    return decode_unit(unit, settings, lambda image: augment(image, settings, augmentation, rng)).to_arrow()


# ---- batches --------------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """patches uint8 (B, N, P*P*3), classes int64 (B,), and the place behind it."""

    patches: np.ndarray
    classes: np.ndarray
    place: Place


@dataclass(frozen=True)
class Drawing:
    """How batches are drawn from units. target: None gives class 0 to all. most_errors: samples of an epoch that may fail."""

    decode: DecodeSettings
    target: Target | None
    batch_size: int
    seed: tuple[int, ...]
    most_errors: float = float("inf")


_Sample = tuple[np.ndarray, int]  # patches (N, P*P*3) and the class


@dataclass
class _Group:
    samples: list[_Sample]
    end: tuple[int, int]  # where the next group begins
    rows: int
    errors: int


def epoch_batches(
    units: Iterator[Unit], shards: int, count: int, drawing: Drawing, place: Place
) -> Iterator[Batch]:
    """`count` shuffled batches of what is left of an epoch from `place` on: `units` begin there (`Place.begin`).

    A group is shuffled in itself; what it leaves over of a last batch comes first in the next one. Every good sample is drawn at
    most once, unless so many could not be decoded that the last group's batches must be repeated.

    Raises UserError where a whole epoch gives no batch, and for more errors than `drawing` allows.
    """
    size, rows = drawing.batch_size, group_rows(drawing.decode, drawing.batch_size)
    carried: list[_Sample] = []
    if place.carried:
        before = _collect(units, place.before, shards, rows, drawing)
        carried = _shuffled(before, place.group - 1, drawing)[-place.carried :]
    given, last = 0, None
    while given < count and place.at[0] < shards:
        group, begun = _collect(units, place.at, shards, rows, drawing), place
        place = replace(place, rows=place.rows + group.rows, errors=place.errors + group.errors)
        if place.errors > drawing.most_errors:
            raise UserError(
                f"{place.errors:,} of {place.rows:,} images could not be decoded, more than --max-error-rate allows: "
                "wordsworth lint and label say which and why"
            )
        held = carried + _shuffled(group, place.group, drawing)
        full = len(held) // size
        last = (held, full, begun) if full else last
        for number in range(begun.drawn, min(full, begun.drawn + count - given)):
            yield _batch(held, number, size, replace(begun, drawn=number + 1))
            given += 1
        carried = held[full * size :]
        place = replace(
            place, group=place.group + 1, before=place.at, at=group.end, carried=len(carried), drawn=0
        )
    _drain(units, place.at, shards)
    if given < count and last is None:
        raise UserError("fewer images than one batch could be decoded: wordsworth lint and label say why")
    for number in range(count - given):
        held, full, begun = last
        drawn = max(full, begun.drawn) + number
        yield _batch(held, drawn % full, size, replace(begun, drawn=drawn + 1))


def _batch(held: list[_Sample], number: int, size: int, place: Place) -> Batch:
    patches, classes = zip(*held[number * size : (number + 1) * size], strict=True)
    return Batch(np.stack(patches), np.array(classes, np.int64), place)


def ahead(batches: Iterator[Batch], most: int = 4) -> Iterator[Batch]:
    """The same batches, drawn by a thread while those before are in use."""
    queue: Queue[Batch | Exception | None] = Queue(most)

    def draw() -> None:
        try:
            for batch in batches:
                queue.put(batch)
            queue.put(None)
        except Exception as error:
            queue.put(error)

    threading.Thread(target=draw, daemon=True).start()
    while (drawn := _next(queue)) is not None:
        if isinstance(drawn, Exception):
            raise drawn
        yield drawn


def _next(queue: Queue) -> Batch | Exception | None:
    try:
        return queue.get(timeout=STALL)
    except Empty:
        minutes = f"{STALL / 60:.0f} minutes"
        raise UserError(
            f"no batch came for {minutes}: has Ray CPUs and memory left to read and decode, does the store answer?"
        ) from None


def _drain(units: Iterator[Unit], begin: tuple[int, int], shards: int) -> None:
    """What is left of an epoch goes: the next one follows in the same stream."""
    turn = begin[0]
    while turn < shards:
        turn += next(units).last


def _shuffled(group: _Group, number: int, drawing: Drawing) -> list[_Sample]:
    order = np.random.default_rng([*drawing.seed, number]).permutation(len(group.samples))
    return [group.samples[place] for place in order]


def _collect(
    units: Iterator[Unit], begin: tuple[int, int], shards: int, rows: int, drawing: Drawing
) -> _Group:
    """The units from `begin` on until there are `rows` samples or no shard is left."""
    samples: list[_Sample] = []
    turn, number, seen = *begin, 0
    while seen < rows and turn < shards:
        unit = next(units)
        if unit.number != number:
            raise RuntimeError(f"unit {unit.number} of {unit.shard_uri} came where unit {number} was due")
        patches, classes = good(unit, drawing.decode, drawing.target)
        samples += zip(
            patches.copy(), classes.tolist(), strict=True
        )  # a copy: the room in Ray's store is for what comes next
        seen += len(unit.samples)
        turn, number = (turn + 1, 0) if unit.last else (turn, number + 1)
    return _Group(samples, (turn, number), seen, seen - len(samples))


def good(unit: Unit, decode: DecodeSettings, target: Target | None) -> tuple[np.ndarray, np.ndarray]:
    """The decoded samples of a unit, uint8 (M, N, P*P*3), and their classes (M,); without a target, zeros."""
    samples = unit.samples.filter(pc.is_null(unit.samples["error"]))
    patches = unit.payload.reshape(len(samples), *decode.patches_shape)
    return patches, target.of_samples(samples, public(unit.shard_uri)) if target else np.zeros(
        len(samples), np.int64
    )
