"""Measure the CPU that Ray Data takes of the driver for a unit, by the number of model actors.

A part of benchmarks.scale. The chain has the shape of the labeler's and its options, and stages that do
nothing. The seconds count little, since all actors share a few cores. The CPU of the driver's own process
counts: one Python process cannot use much more than one core.
"""

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

UNITS = 1500  # units of a measurement
SKIPPED = 300  # units before it, while actors start
CLAIM = {"num_cpus": 0.001}

Figure = dict[str, Any]


def make_shards(_: pa.Table, units: int) -> Iterator[pa.Table]:
    """Yield a table of one row for each shard."""
    for number in range(units):
        yield pa.table({"number": [number]})


def pass_on(table: pa.Table) -> pa.Table:
    """Return the table: a stage that does nothing."""
    return table


class Passing:
    """Return each table: a model that does nothing."""

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def actors(num_actors: str) -> Iterator[tuple[str, Figure]]:
    """Return the driver's CPU for units that go through this number of actors."""
    from ray.data import from_blocks

    from wordsworth.pipeline.cluster.data_context import configure_ray_data
    from wordsworth.pipeline.cluster.session import ray_session
    from wordsworth.pipeline.labeling.dataset import START, on_actors, on_tasks

    with ray_session():
        configure_ray_data()
        dataset = (
            from_blocks([START])
            .map_batches(make_shards, **on_tasks({"units": UNITS + SKIPPED}, CLAIM))
            .map_batches(pass_on, **on_tasks({}, {"num_cpus": 0.05}, 4))
            .map_batches(pass_on, **on_tasks({}, {"num_cpus": 0.1}, 4))
            .map_batches(Passing, **on_actors({}, CLAIM, int(num_actors)))
            .map_batches(pass_on, **on_tasks({}, {"num_cpus": 0.2}, 4))
        )
        begin, cpu = 0.0, 0.0
        receipts = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for done, _ in enumerate(receipts, 1):
            if done == SKIPPED:
                begin, cpu = time.perf_counter(), time.process_time()
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    each = {
        "driver_cpu_ms_a_unit": round(1000 * cpu / UNITS, 2),
        "units_per_second": round(UNITS / seconds, 1),
    }
    figure = {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": 0.0, "added_mib": 0.0, "more": each}
    yield f"driver of {num_actors} actors", figure
