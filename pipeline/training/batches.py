"""Cut a worker's units into shuffled batches, and continue with the batch that was due after an interruption.

Which batch comes next is a function of the seed, the shards and the cursor alone. A training that was cut off
therefore continues with the batch that was due, and reads at most two groups of units again.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, Queue
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow.compute as pc

from wordsworth.pipeline.errors import NAMES_THE_IMAGES, UserError
from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import join, without_credentials
from wordsworth.pipeline.unit import Unit

GROUP_ROWS = 8192  # samples that are shuffled among themselves, at most
GROUP_BYTES = 512 << 20  # bytes of their patches, at most
BATCHES_AHEAD = 4  # batches that wait for the model
MOST_NAMED = 3  # samples that could not be decoded, and that a message names
STALL_S = 1800.0  # seconds without a batch after which a training gives up

Item = TypeVar("Item")
Place = tuple[int, int]  # the shard, by its turn in the epoch, and the number of the unit
_Sample = tuple[np.ndarray, int]  # patches (N, P*P*3) and the class


@dataclass(frozen=True)
class ShardCursor:
    """Say where a worker is in its shards of an epoch. Samples are shuffled in groups of units.

    Attributes:
        group: number of the current group.
        at: place where the current group begins.
        before: place where the group before begins.
        carried: samples of the group before that come first in this group's batches.
        drawn: batches drawn from the current group.
        rows: samples met in this epoch before the current group.
        errors: samples among `rows` that could not be decoded.
    """

    group: int = 0
    at: Place = (0, 0)
    before: Place = (0, 0)
    carried: int = 0
    drawn: int = 0
    rows: int = 0
    errors: int = 0

    @property
    def begin(self) -> Place:
        """Return the place from which a worker that continues must read."""
        return self.before if self.carried else self.at

    def next_group(self, begin: Place, carried: int) -> "ShardCursor":
        """Return the cursor of the group that begins where this group ends."""
        return replace(self, group=self.group + 1, before=self.at, at=begin, carried=carried, drawn=0)


@dataclass
class ErrorTally:
    """Count the samples that an epoch has met and that could not be decoded, and name the first ones.

    The tally is complete when the iterator of the batches has ended. A cursor knows nothing of its own group.

    Attributes:
        count: number of samples.
        first: shard, key and error of the first ones.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, lost: list[str]) -> None:
        """Add samples by shard, key and error."""
        self.count += len(lost)
        self.first += lost[: MOST_NAMED - len(self.first)]


class Batch(NamedTuple):
    """Hold one batch, and the cursor behind it.

    Attributes:
        patches: uint8 (B, N, P*P*3).
        classes: int64 (B,).
        cursor: where the next batch comes from.
    """

    patches: np.ndarray
    classes: np.ndarray
    cursor: ShardCursor


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Hold how batches are cut from units.

    Attributes:
        decode: gives the shape of an image's patches.
        target: finds the class of a sample; None gives class 0 to all.
        batch_size: samples in a batch.
        seed: numbers that decide the order.
        max_errors: samples of an epoch that may be impossible to decode.
    """

    decode: DecodeSettings
    target: Target | None
    batch_size: int
    seed: tuple[int, ...]
    max_errors: float = float("inf")

    @property
    def group_rows(self) -> int:
        """Return how many samples are shuffled among themselves; at least two batches."""
        fitting = GROUP_BYTES // math.prod(self.decode.patches_shape)
        return max(min(GROUP_ROWS, fitting), 2 * self.batch_size)


def shuffled_shards(part: list[Shard], epoch: int, seed: int) -> list[Shard]:
    """Return a worker's shards in the order of an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(part))
    return [part[number] for number in order]


def decoded(unit: Unit, decode: DecodeSettings, target: Target | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples of a unit that could be decoded.

    Returns:
        Patches uint8 (M, N, P*P*3), and classes int64 (M,), which are zeros without a target.
    """
    samples = unit.samples.filter(pc.is_null(unit.samples["error"]))
    patches = unit.payload.reshape(len(samples), *decode.patches_shape)
    if target is None:
        return patches, np.zeros(len(samples), np.int64)
    return patches, target.of_samples(samples, without_credentials(unit.shard_uri))


# ---- batches of an epoch ----


def epoch_batches(
    units: Iterator[Unit],
    num_shards: int,
    num_batches: int,
    settings: BatchSettings,
    cursor: ShardCursor,
    errors: ErrorTally,
) -> Iterator[Batch]:
    """Yield shuffled batches of what is left of an epoch.

    A group of units is shuffled in itself. The samples that are left over from its last batch come first in
    the next group. Every sample that can be decoded is drawn at most once, unless there are so many errors
    that batches of the last group must be repeated.

    Args:
        units: the units of the worker's shards from `cursor.begin` on, and then those of the next epochs.
        num_shards: shards of the worker in this epoch.
        num_batches: batches to yield.
        settings: how batches are cut.
        cursor: where the epoch begins or continues.
        errors: gets the epoch's samples that could not be decoded.

    Raises:
        UserError: an epoch gives no batch, or has more errors than the settings allow.
    """
    reader = _GroupReader(units, num_shards, settings)
    errors.count = cursor.errors
    left_over = reader.left_over(cursor)
    num_drawn = 0
    last: _ShuffledGroup | None = None
    while num_drawn < num_batches and cursor.at[0] < num_shards:
        group = reader.read(cursor.at)
        shuffled = _ShuffledGroup(
            left_over + _shuffled(group, cursor.group, settings), cursor, settings.batch_size
        )
        errors.add(group.lost)
        cursor = replace(cursor, rows=cursor.rows + group.rows, errors=errors.count)
        _check_errors(cursor, settings, errors)
        if shuffled.num_batches:
            last = shuffled
        end = min(shuffled.num_batches, shuffled.cursor.drawn + num_batches - num_drawn)
        for number in range(shuffled.cursor.drawn, end):
            yield shuffled.batch(number)
            num_drawn += 1
        left_over = shuffled.left_over()
        cursor = cursor.next_group(group.end, len(left_over))
    errors.add(reader.skip_rest(cursor.at))
    if num_drawn == num_batches:
        return
    if last is None:
        raise UserError(f"fewer images than one batch could be decoded: {NAMES_THE_IMAGES}")
    first = max(last.num_batches, last.cursor.drawn)
    for number in range(first, first + num_batches - num_drawn):
        yield last.batch(number)


def _check_errors(cursor: ShardCursor, settings: BatchSettings, errors: ErrorTally) -> None:
    if cursor.errors > settings.max_errors:
        raise UserError(
            f"{cursor.errors:,} of {cursor.rows:,} images could not be decoded, more than --max-error-rate "
            f"allows, such as {', '.join(errors.first)}: {NAMES_THE_IMAGES}"
        )


@dataclass
class _Group:
    """Hold consecutive units in the order of the shards.

    Attributes:
        samples: those that could be decoded.
        end: place where the next group begins.
        rows: number of all samples.
        lost: those that could not be decoded, by shard, key and error.
    """

    samples: list[_Sample]
    end: Place
    rows: int
    lost: list[str]


class _GroupReader:
    """Read units of an epoch group by group."""

    def __init__(self, units: Iterator[Unit], num_shards: int, settings: BatchSettings):
        self.units = units
        self.num_shards = num_shards
        self.settings = settings

    def left_over(self, cursor: ShardCursor) -> list[_Sample]:
        """Return the samples that the group before the cursor left over; that group is read again."""
        if not cursor.carried:
            return []
        before = self.read(cursor.before)
        return _shuffled(before, cursor.group - 1, self.settings)[-cursor.carried :]

    def read(self, begin: Place) -> _Group:
        """Read units from a place on, until a group is full or no shard is left."""
        samples: list[_Sample] = []
        turn, number = begin
        rows = 0
        lost: list[str] = []
        while rows < self.settings.group_rows and turn < self.num_shards:
            unit = next(self.units)
            if unit.number != number:
                raise RuntimeError(f"unit {unit.number} of {unit.shard_uri} came where unit {number} was due")
            patches, classes = decoded(unit, self.settings.decode, self.settings.target)
            # A copy, so that Ray's store has room for the units that come next.
            samples.extend(zip(patches.copy(), classes.tolist(), strict=True))
            rows += len(unit.samples)
            lost += _lost(unit)
            if unit.last:
                turn += 1
                number = 0
            else:
                number += 1
        return _Group(samples, (turn, number), rows, lost)

    def skip_rest(self, begin: Place) -> list[str]:
        """Skip the units that are left of the epoch, and return their samples that could not be decoded.

        The next epoch follows in the same stream.
        """
        turn = begin[0]
        lost: list[str] = []
        while turn < self.num_shards:
            unit = next(self.units)
            lost += _lost(unit)
            if unit.last:
                turn += 1
        return lost


def _lost(unit: Unit) -> list[str]:
    """Return the samples of a unit that could not be decoded, by shard, key and error."""
    samples = unit.samples.filter(pc.is_valid(unit.samples["error"]))
    keys = samples["key"].to_pylist()
    shard = without_credentials(unit.shard_uri)
    return [
        f"{join(shard, key or '')} ({error})"
        for key, error in zip(keys, samples["error"].to_pylist(), strict=True)
    ]


def _shuffled(group: _Group, number: int, settings: BatchSettings) -> list[_Sample]:
    order = np.random.default_rng([*settings.seed, number]).permutation(len(group.samples))
    return [group.samples[place] for place in order]


class _ShuffledGroup:
    """Cut a shuffled group, behind what was left over before, into batches."""

    def __init__(self, samples: list[_Sample], cursor: ShardCursor, batch_size: int):
        self.samples = samples
        self.cursor = cursor  # at the begin of the group
        self.batch_size = batch_size
        self.num_batches = len(samples) // batch_size

    def batch(self, number: int) -> Batch:
        """Return a batch by its number; numbers from `num_batches` on repeat the batches."""
        begin = (number % self.num_batches) * self.batch_size
        patches, classes = zip(*self.samples[begin : begin + self.batch_size], strict=True)
        behind = replace(self.cursor, drawn=number + 1)
        return Batch(np.stack(patches), np.array(classes, np.int64), behind)

    def left_over(self) -> list[_Sample]:
        """Return the samples behind the last whole batch."""
        return self.samples[self.num_batches * self.batch_size :]


# ---- batches ahead of the model ----


def prefetched(batches: Iterator[Item], max_waiting: int = BATCHES_AHEAD) -> Iterator[Item]:
    """Yield the same batches, which a thread draws while the model uses the batches before.

    Raises:
        UserError: no batch came for STALL_S. An error of `batches` is raised where it happened.
    """
    queue: Queue[Item | Exception | None] = Queue(max_waiting)

    def draw() -> None:
        try:
            for batch in batches:
                queue.put(batch)
            queue.put(None)
        except Exception as error:
            queue.put(error)

    threading.Thread(target=draw, daemon=True).start()
    while True:
        drawn = _next(queue)
        if drawn is None:
            return
        if isinstance(drawn, Exception):
            raise drawn
        yield drawn


def _next(queue: Queue[Item]) -> Item:
    try:
        return queue.get(timeout=STALL_S)
    except Empty:
        minutes = f"{STALL_S / 60:.0f} minutes"
        raise UserError(
            f"no batch came for {minutes}: has Ray CPUs and memory left to read and decode, "
            "does the store answer?"
        ) from None
