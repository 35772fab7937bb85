"""Keep the driver of Ray Data small, and describe what it is doing."""

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wordsworth.pipeline.cluster.ray_internals.gate import ray_is_known

if TYPE_CHECKING:
    from ray.data import DataContext

MAX_WAITING_BLOCKS = 256  # blocks of one stage that wait in the driver for the next stage
KEPT_BLOCK_STATS = 100  # blocks of one stage whose statistics stay in the driver


def keep_driver_small(context: "DataContext") -> None:
    """Let the driver keep little of every block, in all datasets that are made under a context.

    Saves 6.3 of 7.6 kilobytes a unit in runs of a million units. Fails with AttributeError where an attribute
    that `MaxWaitingBlocks` or `TrimBlockStats` reads is gone. Stock Ray bounds the bytes of the blocks that
    wait and not their number, and keeps the statistics of all blocks.
    """
    if not ray_is_known():
        return
    from ray.data._internal.execution import backpressure_policy as policies

    # While the next stage has no worker, Ray lifts the bound again and again: at most once in so many
    # seconds.
    context.output_backpressure_guard_release_interval_s = 1.0
    context.set_config(
        policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
        [*policies.ENABLED_BACKPRESSURE_POLICIES, MaxWaitingBlocks],
    )
    if TrimBlockStats not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(TrimBlockStats)


class MaxWaitingBlocks:
    """Let few blocks of a stage wait for the next stage, however small the blocks are.

    This is a backpressure policy of Ray Data's. Ray bounds the bytes that wait, and the driver has some
    kilobytes for each block. Without a bound on the number of blocks, every shard of a long listing waits in
    the driver: shards are found faster than they are labelled.
    """

    def __init__(self, data_context: Any, topology: Any, resource_manager: Any):
        self.topology = topology

    @property
    def name(self) -> str:
        """Name of the policy in Ray's progress display."""
        return type(self).__name__

    def can_add_input(self, op: Any) -> bool:
        """Bound no stage's input."""
        return True

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """Return 0 for a stage of which enough blocks wait, else None for no bound."""
        if self.topology[op].total_enqueued_output_blocks() >= MAX_WAITING_BLOCKS:
            return 0
        return None


class ExecutionCallback:
    """Take part in an execution of Ray Data: the methods that Ray calls, each of which does nothing here."""

    def before_execution_starts(self, executor: Any) -> None:
        """Do nothing before the first task."""

    def on_execution_step(self, executor: Any) -> None:
        """Do nothing at a step of the scheduler."""

    def after_execution_succeeds(self, executor: Any) -> None:
        """Do nothing at a good end."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Do nothing at a bad end."""


class TrimBlockStats(ExecutionCallback):
    """Keep the statistics of the last few blocks of a stage.

    Ray keeps the statistics of all blocks until the end, for a summary that nobody asks for here: more than a
    kilobyte a block, and a unit has a block in every stage.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Drop the statistics of all but the last blocks."""
        for stage in executor._topology:
            del getattr(stage, "_output_blocks_stats", [])[:-KEPT_BLOCK_STATS]


class ExecutorProbe(ExecutionCallback):
    """Remember the executor of this process, so that a run that stalls can be described and ended.

    Gives a line a stage of what every stage was doing. Fails with AttributeError where an attribute that is
    read is gone. Stock Ray has no public way to ask: a stalled run ends without these lines, and its process
    ends without a shutdown of Ray.
    """

    executor: ClassVar[Any] = None  # of the last execution in this process

    @classmethod
    def register(cls, context: "DataContext") -> None:
        """Let every execution under a context be seen."""
        if ray_is_known() and cls not in context.custom_execution_callback_classes:
            context.custom_execution_callback_classes.append(cls)

    def before_execution_starts(self, executor: Any) -> None:
        """Remember the executor."""
        ExecutorProbe.executor = executor

    @classmethod
    def describe(cls) -> list[str]:
        """Return a line a stage: what it does, what waits for it, and how its actors are."""
        topology = getattr(cls.executor, "_topology", None) or {}
        return [_describe_stage(op, state) for op, state in topology.items() if op.name != "Input"]

    @classmethod
    def figures(cls) -> "list[StageFigures]":
        """Return what every stage does now, the first one first; [] where nobody knows."""
        topology = getattr(cls.executor, "_topology", None) or {}
        return [_figures_of(op, state) for op, state in list(topology.items()) if op.name != "Input"]

    @classmethod
    def stop(cls) -> None:
        """End the execution, if one is under way."""
        if cls.executor is not None:
            cls.executor.shutdown(force=True)


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """Say what one stage of an execution does.

    Attributes:
        name: of the stage, such as "decode".
        running: tasks, or calls of actors, that run.
        waiting: blocks that wait for the stage.
        failed: tasks that failed so far.
        actors: actors that are alive; 0 for a stage of tasks.
        pending: actors that start.
        restarting: actors that are started again.
    """

    name: str
    running: int
    waiting: int
    failed: int
    actors: int
    pending: int
    restarting: int


def _figures_of(op: Any, state: Any) -> StageFigures:
    actors = op.get_actor_info()
    return StageFigures(
        name=_stage_name(op).removesuffix("or"),  # Predictor is the stage `predict`
        running=op.num_active_tasks(),
        waiting=state.total_enqueued_input_blocks(),
        failed=op.metrics.num_tasks_failed,
        actors=actors.running,
        pending=actors.pending,
        restarting=actors.restarting,
    )


def _stage_name(op: Any) -> str:
    return re.sub(r"^MapBatches\((.*?)(_stage)?\)$", r"\1", op.name).lower()


def _describe_stage(op: Any, state: Any) -> str:
    name = _stage_name(op)
    num_done = op.metrics.num_tasks_finished
    if op.has_completed():
        return f"{name}: done, {num_done} tasks"
    parts = [
        f"{op.num_active_tasks()} running",
        f"{state.total_enqueued_input_blocks()} waiting",
        f"{num_done} done",
    ]
    num_failed = op.metrics.num_tasks_failed
    if num_failed:
        parts.append(f"{num_failed} failed")
    actors = op.get_actor_info()
    if actors.running + actors.pending + actors.restarting:
        parts.append(
            f"actors: {actors.running} alive, {actors.pending} starting, {actors.restarting} restarting"
        )
    return f"{name}: {', '.join(parts)}"


def executor_is_alive() -> bool:
    """Tell whether an execution of Ray Data's goes on in this process.

    Gives an end without a shutdown that would hang. Fails, and says no, where Ray has renamed its threads.
    """
    return any(thread.name.startswith("StreamingExecutor") for thread in threading.enumerate())
