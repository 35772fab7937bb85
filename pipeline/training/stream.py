"""Stream a worker's shards through Ray Data, epoch after epoch in a seeded order, as units of patches."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.cluster.claims import DECODE_CPUS, LIST_CPUS, READ_CPUS, RETRIES
from wordsworth.pipeline.cluster.data_context import configure_ray_data
from wordsworth.pipeline.cluster.signs import hear_store
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings, decode_unit
from wordsworth.pipeline.sources.lost_objects import LOSSES
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings, ShardChanged
from wordsworth.pipeline.sources.shards import LISTING, PICKS, Shard, listing_table
from wordsworth.pipeline.storage.patience import hearing_trouble
from wordsworth.pipeline.training.augment import Augmentation, augment
from wordsworth.pipeline.training.batches import ShardCursor, shuffled_shards
from wordsworth.pipeline.training.class_balance import Balance
from wordsworth.pipeline.training.indexed import NOTHING_INDEXED, ContentCheck
from wordsworth.pipeline.unit import Unit

if TYPE_CHECKING:
    from ray.data import Dataset

UNIT_ROWS = 512  # samples in a unit, at most
UNIT_BYTES = 64 << 20  # bytes of their patches, at most
STREAM_PROCESSES = 2  # processes that are started ahead: one reads, and one decodes
READERS = 4  # shards that a worker of a GPU reads at the same time
PREFETCHED_UNITS = 2  # units that Ray brings to the worker before they are asked for
# A shard to read, of an epoch.
STREAM = pa.schema([*LISTING, PICKS, ("epoch", pa.int32()), ("skip", pa.int32())])


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Hold how shards become units of patches.

    Attributes:
        seed: decides the order of the shards and the augmentation.
        decode: how images become patches.
        reading: how shards are read.
        augmentation: random changes of the images; None shows a model the images as the labeler does.
        check: what indexes said of shards, which reading confirms.
        balance: draws samples of rare classes several times; None draws each once.
    """

    seed: int
    decode: DecodeSettings
    reading: ReadSettings
    augmentation: Augmentation | None
    check: ContentCheck = NOTHING_INDEXED
    balance: Balance | None = None


class TaskLimits(NamedTuple):
    """Hold how many Ray tasks of a worker's stream run at the same time.

    Attributes:
        readers: tasks that read, at most.
        decoders: tasks that decode, at most; None for as many as Ray has CPUs for.
    """

    readers: int
    decoders: int | None


def start_stream_processes() -> None:
    """Start the processes that read and decode for this worker, while it still builds its model.

    A process of a local Ray takes two seconds to import what it needs. Ray gives it the stream's tasks, and
    starts others where it gives it something else.
    """
    import ray

    task = ray.remote(num_cpus=0)(_import_ray_data)
    for _ in range(STREAM_PROCESSES):
        task.remote()


def _import_ray_data() -> None:
    """Import what a task of the stream imports; this module is imported to find this function."""
    import ray.data  # noqa: F401 (Python keeps the module)


def unit_rows(decode: DecodeSettings) -> int:
    """Return how many samples a unit of patches has."""
    return max(1, min(UNIT_ROWS, UNIT_BYTES // math.prod(decode.patches_shape)))


def stream_units(
    first: pa.Table,
    part: list[Shard],
    epochs: range,
    settings: StreamSettings,
    num_workers: int,
    device_type: str,
) -> Iterator[Unit]:
    """Yield one worker's units in order, from one execution of Ray Data: an epoch costs no new start.

    Args:
        first: rows of STREAM that are read before `epochs`, as `remaining_rows` gives them.
        part: all shards of the worker.
        epochs: the epochs that read all shards.
        settings: how shards become units.
        num_workers: workers that share the CPUs and Ray's object store.
        device_type: device of the model, such as "cpu".
    """
    import ray
    from ray.data import DataContext

    available = ray.cluster_resources()
    cpus = available["CPU"]
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True  # the seed decides the order, not the speed of tasks
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        cpu=max(2.0, (cpus - num_workers) / num_workers),
        object_store_memory=available["object_store_memory"] / 2 / num_workers,
    )
    limits = TaskLimits(READERS, None)
    if device_type == "cpu":
        # The model needs the CPUs, and every process that reads or decodes takes seconds of one to start.
        limits = TaskLimits(1, max(2, int(cpus / 2 / num_workers)))
    with DataContext.current(context):
        dataset = training_dataset(first, part, epochs, settings, limits)
    tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCHED_UNITS)
    return map(Unit.from_arrow, tables)


def remaining_rows(shards: list[Shard], epoch: int, cursor: ShardCursor) -> pa.Table:
    """Return what is left of an epoch, as rows of STREAM.

    Args:
        shards: a worker's shards in the order of the epoch.
        epoch: number of the epoch, from 0.
        cursor: where the worker is in the epoch.
    """
    turn, unit = cursor.begin
    left = listing_table(shards[turn:])
    skip = np.zeros(left.num_rows, np.int32)
    skip[:1] = unit
    if PICKS.name not in left.column_names:
        left = left.append_column(PICKS, pa.nulls(left.num_rows, PICKS.type))
    left = left.append_column("epoch", pa.array([epoch] * left.num_rows, pa.int32()))
    return left.append_column("skip", pa.array(skip))


def training_dataset(
    first: pa.Table, part: list[Shard], epochs: range, settings: StreamSettings, limits: TaskLimits
) -> "Dataset":
    """Return the plan of one worker's stream: list, read, decode and augment."""
    from ray.data import TaskPoolStrategy, from_blocks

    configure_ray_data()
    one_row: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", **RETRIES}
    return (
        from_blocks([listing_table(part)])
        .map_batches(
            _epochs_stage,
            fn_kwargs={"first": first, "epochs": epochs, "seed": settings.seed},
            num_cpus=LIST_CPUS,
            **one_row,
        )
        .map_batches(
            _read_stage,
            fn_kwargs={
                "settings": settings.reading,
                "check": settings.check,
                "balance": settings.balance,
            },
            num_cpus=READ_CPUS,
            compute=TaskPoolStrategy(limits.readers),
            **one_row,
        )
        .map_batches(
            _decode_stage,
            fn_kwargs={
                "settings": settings.decode,
                "augmentation": settings.augmentation,
                "seed": settings.seed,
            },
            num_cpus=DECODE_CPUS,
            compute=TaskPoolStrategy(limits.decoders),
            **one_row,
        )
    )


def _epochs_stage(table: pa.Table, first: pa.Table, epochs: range, seed: int) -> Iterator[pa.Table]:
    """Yield the rows of `first`, and then every shard of the listing once per epoch, a shard per table."""
    yield from _single_rows(first)
    part = [Shard.from_row(row) for row in table.to_pylist()]
    for epoch in epochs:
        yield from _single_rows(remaining_rows(shuffled_shards(part, epoch, seed), epoch, ShardCursor()))


def _single_rows(table: pa.Table) -> Iterator[pa.Table]:
    for row in range(table.num_rows):
        yield table.slice(row, 1).cast(STREAM)


def _read_stage(
    table: pa.Table,
    settings: ReadSettings,
    check: ContentCheck = NOTHING_INDEXED,
    balance: Balance | None = None,
) -> Iterator[pa.Table]:
    """Yield the units of a shard, without those that the row of STREAM skips.

    Raises:
        UserError: the shard was replaced since it was counted, it is gone or forbidden, or it holds other
            samples than an index says.
        OSError: the store failed. Ray Train then starts the workers again.
    """
    (row,) = table.to_pylist()
    with hearing_trouble(hear_store):
        units = _units_of(Shard.from_row(row), settings, check)
        if balance:
            units = balance.drawn(units, row["epoch"])
        for unit in units:
            if unit.number >= row["skip"]:
                yield unit.to_arrow().append_column("epoch", table["epoch"])


def _units_of(shard: Shard, settings: ReadSettings, check: ContentCheck) -> Iterator[Unit]:
    counter = check.of(shard)
    for unit in read_units(shard, settings):
        if unit.fault:
            message = f"{unit.shard_uri} could not be read: {unit.fault}"
            if unit.fault.startswith(ShardChanged.CODE):
                message = message.removesuffix(ShardChanged.HINT)
                raise UserError(f"{message}: start again with another --output")
            if unit.fault.partition(":")[0] in LOSSES:
                raise UserError(f"{message}: run the same command again when it can be read")
            raise OSError(message)
        if counter:
            counter.add(unit)
        yield unit


def _decode_stage(
    table: pa.Table, settings: DecodeSettings, augmentation: Augmentation | None, seed: int
) -> pa.Table:
    """Return a unit of patches. A retried task makes the same crops: their seed is what is decoded."""
    unit = Unit.from_arrow(table)
    if augmentation is None:
        return decode_unit(unit, settings).to_arrow()
    epoch = table["epoch"][0].as_py()
    name = f"{seed}|{epoch}|{unit.shard_name}|{unit.number}"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))

    def crop(image: np.ndarray) -> np.ndarray:
        return augment(image, settings, augmentation, rng)

    return decode_unit(unit, settings, crop).to_arrow()
