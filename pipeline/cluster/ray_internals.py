"""What keeps the driver small in a run of millions of units, beyond what Ray Data does of itself: it keeps some of every block. And
what a Ray of one machine can do without."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import ray
from ray.data import DataContext, ExecutionResources
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import backpressure_policy as policies
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators import actor_pool_map_operator

WAITING = 256  # blocks of one stage that wait in the driver for the next
KEPT = 100  # blocks of one stage whose statistics stay


class FewWaiting(policies.BackpressurePolicy):
    """Of a stage's output few blocks wait for the next stage, however small they are.

    Ray bounds the bytes that wait, not the blocks, and the driver has some kilobytes for each of them: without a bound, for every
    shard of a long listing, which is found faster than it is labelled.
    """

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        return 0 if self._topology[op].total_enqueued_output_blocks() >= WAITING else None


class FewStatistics(ExecutionCallback):
    """Of a stage's blocks the last few keep their statistics. Ray keeps those of all until the end, to sum them up in a text that
    is not asked for here: more than a kilobyte a block, of which a unit has one in every stage."""

    def on_execution_step(self, executor: Any) -> None:
        for stage in executor._topology:
            del getattr(stage, "_output_blocks_stats", [])[:-KEPT]


def keep_small(context: DataContext) -> None:
    """For all datasets that are made under this context."""
    context.output_backpressure_guard_release_interval_s = (
        1.0  # or Ray lets all through while the next stage has no worker yet
    )
    context.set_config(
        policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
        [*policies.ENABLED_BACKPRESSURE_POLICIES, FewWaiting],
    )
    if FewStatistics not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(FewStatistics)


class OneMachine(ClusterAutoscaler):
    """A Ray that cannot grow."""

    def __init__(self) -> None:
        self._all = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        pass

    def on_executor_shutdown(self) -> None:
        pass

    def get_total_resources(self) -> ExecutionResources:
        return self._all


class Here:
    """Takes what an actor says of where it is; on one machine that is no news."""

    class update_actor_location:
        remote = staticmethod(lambda *_: None)


@contextlib.contextmanager
def on_one_machine() -> Iterator[None]:
    """Ray Data without three actors that take up to three CPU-seconds each to start: one asks for more machines, one keeps figures
    for a dashboard, one knows on which machine an actor is; a local Ray has neither the former nor another machine."""
    silent = {
        name: staticmethod(lambda *_, **__: None)
        for name in vars(stats._StatsManager)
        if name.startswith(("update_", "register_"))
    }
    silent["gen_dataset_id_from_stats_actor"] = staticmethod(lambda: uuid4().hex)
    with (
        patch.multiple(stats._StatsManager, **silent),
        patch.object(streaming_executor, "create_cluster_autoscaler", lambda *_, **__: OneMachine()),
        patch.object(actor_pool_map_operator, "get_or_create_actor_location_tracker", Here),
        patch.object(actor_pool_map_operator, "get_actor_locations", lambda _: {}),
    ):
        yield
