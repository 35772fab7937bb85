"""Chain the stages in Ray Data: the whole labeler, and its retry, from the first block to the receipts.

A block is a table of one row: one shard from list to read, one unit from there on. Every stage gets one block
at a time. So nothing is merged or split on the way, and no stage waits for more than it works on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from wordsworth.pipeline.cluster.claims import ACTOR_RETRIES, RETRIES, Claim
from wordsworth.pipeline.cluster.data_context import configure_ray_data
from wordsworth.pipeline.cluster.resources import StageResources
from wordsworth.pipeline.labeling.settings import StageSettings
from wordsworth.pipeline.labeling.stages import (
    decode_stage,
    fetch_stage,
    limited_stage,
    list_stage,
    merge_stage,
    read_stage,
    write_stage,
)
from wordsworth.pipeline.output.records import Receipt
from wordsworth.pipeline.prediction.actor import Predictor
from wordsworth.pipeline.prediction.gpu_batches import UNITS_IN_FLIGHT

START = pa.table({"begin": [True]})  # the one block that the first stage gets
MODEL = Predictor.__name__  # name of the stage of the model actors
# Names of the stages that begin nothing more when a run is told to end. What the last of them works on is
# finished: a unit that was only read or decoded cost little.
BEFORE_WRITING = (
    list_stage.__name__,
    limited_stage.__name__,
    read_stage.__name__,
    fetch_stage.__name__,
    decode_stage.__name__,
    MODEL,
)


@dataclass(frozen=True, kw_only=True)
class FirstRows:
    """Say how many rows a run is to have, and how many it had when the command began."""

    limit: int
    rows_done: int

    @property
    def rows_left(self) -> int:
        return self.limit - self.rows_done


def label_shards(
    committed: Any, weights: Any, settings: StageSettings, claims: StageResources
) -> Iterator[Receipt]:
    """Label every image of the shards that are not complete, and yield a receipt for each unit.

    Args:
        committed: ObjectRef of the run's `CommittedUnits`.
        weights: ObjectRef of the model, as `Checkpoint.to_bytes` gives it.
        settings: of the stages.
        claims: CPUs, GPUs and memory of the stages.
    """
    from ray.data import from_blocks

    configure_ray_data()
    output = settings.write.output
    listing = {"settings": settings.listing, "output": output, "committed": {"ref": committed}}
    reading = {"settings": settings.read, "output": output}
    decoding = {"settings": settings.decode}
    predicting = {"settings": settings.predict, "weights": {"ref": weights}}
    writing = {"settings": settings.write}
    receipts = (
        from_blocks([START])
        .map_batches(list_stage, **on_tasks(listing, claims.listing))
        .map_batches(read_stage, **on_tasks(reading, claims.read, claims.read_tasks))
        .map_batches(decode_stage, **on_tasks(decoding, claims.decode, claims.decode_tasks))
        .map_batches(Predictor, **on_actors(predicting, claims.predict, claims.predictors))
        .map_batches(write_stage, **on_tasks(writing, claims.write))
    )
    yield from _receipts(receipts)


def label_first(
    first: FirstRows, committed: Any, weights: Any, settings: StageSettings, claims: StageResources
) -> Iterator[Receipt]:
    """Label the first images of the sources, and yield a receipt for each unit.

    Args:
        first: how many images.
        committed, weights, settings, claims: as in `label_shards`.
    """
    from ray.data import from_blocks

    configure_ray_data()
    output = settings.write.output
    reading = {"settings": settings.listing, "output": output, "committed": {"ref": committed}}
    reading |= {"reading": settings.read, "limit": first.limit, "rows_done": first.rows_done}
    decoding = {"settings": settings.decode}
    predicting = {"settings": settings.predict, "weights": {"ref": weights}}
    writing = {"settings": settings.write}
    receipts = (
        from_blocks([START])
        .map_batches(limited_stage, **on_tasks(reading, claims.read, 1))
        .map_batches(decode_stage, **on_tasks(decoding, claims.decode, claims.decode_tasks))
        .map_batches(Predictor, **on_actors(predicting, claims.predict, claims.predictors))
        .map_batches(write_stage, **on_tasks(writing, claims.write))
    )
    yield from _receipts(receipts)


def label_failed(
    files: list[pa.Table], weights: Any, settings: StageSettings, claims: StageResources
) -> Iterator[Receipt]:
    """Label again the images that failed, and yield a receipt for each file.

    Args:
        files: as `failed_units` gives them.
        weights, settings, claims: as in `label_shards`.
    """
    from ray.data import from_blocks

    configure_ray_data()
    fetching = {"settings": settings.read, "output": settings.write.output}
    decoding = {"settings": settings.decode}
    predicting = {"settings": settings.predict, "weights": {"ref": weights}}
    merging = {"settings": settings.write}
    receipts = (
        from_blocks(files)
        .map_batches(fetch_stage, **on_tasks(fetching, claims.read, claims.read_tasks))
        .map_batches(decode_stage, **on_tasks(decoding, claims.decode, claims.decode_tasks))
        .map_batches(Predictor, **on_actors(predicting, claims.predict, claims.predictors))
        .map_batches(merge_stage, **on_tasks(merging, claims.write))
    )
    yield from _receipts(receipts)


def workers_of(claims: StageResources) -> dict[str, int]:
    """Return the number of workers of each stage that grows and shrinks with the cluster, by its name."""
    return {
        read_stage.__name__: claims.read_tasks,
        fetch_stage.__name__: claims.read_tasks,
        decode_stage.__name__: claims.decode_tasks,
        MODEL: claims.predictors,
    }


def _receipts(dataset: Any) -> Iterator[Receipt]:
    """Run the chain, and yield the rows of its last stage."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from map(Receipt.from_row, batch.to_pylist())


# ---- what a stage claims --------------------------------------------------------------------------------


def on_tasks(arguments: dict[str, Any], claim: Claim, num_tasks: int | None = None) -> dict[str, Any]:
    """Return the options of `map_batches` for a stage that runs as tasks.

    Args:
        arguments: of the stage's function, beside its block.
        claim: CPUs and memory of one task.
        num_tasks: tasks at a time; None leaves the number to Ray Data.
    """
    from ray.data import TaskPoolStrategy

    options = {"fn_kwargs": arguments, "batch_size": None, "batch_format": "pyarrow", **claim, **RETRIES}
    if num_tasks is not None:
        options["compute"] = TaskPoolStrategy(num_tasks)
    return options


def on_actors(arguments: dict[str, Any], claim: Claim, num_actors: int) -> dict[str, Any]:
    """Return the options of `map_batches` for a stage that runs as actors.

    Args:
        arguments: of the actor's constructor.
        claim: CPUs, GPUs and memory of one actor.
        num_actors: actors, all for the whole run.
    """
    from ray.data import ActorPoolStrategy

    on_gpu = "num_gpus" in claim
    pool = ActorPoolStrategy(
        size=num_actors,
        max_concurrent_calls_per_actor=UNITS_IN_FLIGHT if on_gpu else 1,
        enable_true_multi_threading=True,
    )
    # A call gets one block either way: beside num_gpus Ray Data asks for a number, and a block has one row.
    batch_size = 1 if on_gpu else None
    return {
        "fn_constructor_kwargs": arguments,
        "compute": pool,
        "batch_size": batch_size,
        "batch_format": "pyarrow",
        **claim,
        **ACTOR_RETRIES,
    }
