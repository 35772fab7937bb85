"""What keeps the driver small in a run of millions of units, beyond what Ray Data does of itself: it keeps some of every block."""

from typing import Any

from ray.data import DataContext
from ray.data._internal.execution import backpressure_policy as policies
from ray.data._internal.execution.execution_callback import ExecutionCallback

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
    context.output_backpressure_guard_release_interval_s = 1.0  # or Ray lets all through while the next stage has no worker yet
    context.set_config(policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies.ENABLED_BACKPRESSURE_POLICIES, FewWaiting])
    if FewStatistics not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(FewStatistics)
