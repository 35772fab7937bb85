"""Hold everything that depends on Ray's private names: a list of entries, each with what Ray does without it.

No other file of the program imports or touches what Ray marks as internal. An entry that changes or reads
Ray's insides does so only where `ray_is_known()`: the running Ray is a version that the entries were tried
with. With any other version the program runs on stock Ray, by Ray's public interface alone: starts are
slower, the driver keeps more, and some messages say less.

Importing this file imports neither Ray nor Ray Data: a session imports Ray Data while Ray's processes start.
"""

import contextlib
import functools
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

if TYPE_CHECKING:
    from ray.data import DataContext, ExecutionResources
    from ray.train.torch import TorchTrainer

TRIED_VERSIONS = ("2.60.0",)  # versions of Ray that every entry below was tried with
STOCK = "WORDSWORTH_STOCK_RAY"  # environment variable: 1 makes every version an unknown one

MAX_WAITING_BLOCKS = 256  # blocks of one stage that wait in the driver for the next stage
KEPT_BLOCK_STATS = 100  # blocks of one stage whose statistics stay in the driver
REPEAT_AFTER_S = 30.0  # seconds for which a message of Ray's is not printed again
MESSAGE_LENGTH = 240  # characters of a message of Ray's that are printed

JOB_KEY = b"wordsworth:"  # and the id of a job: a key in the cluster's own store for every job that labels


def ray_is_known() -> bool:
    """Tell whether the running Ray is a version that the entries of this file were tried with."""
    import ray

    return ray.__version__ in TRIED_VERSIONS and os.environ.get(STOCK) != "1"


@contextlib.contextmanager
def _replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Give attributes of a module or class other values for the length of a block.

    Raises:
        KeyError: the owner has no attribute of that name.
    """
    before = {name: vars(owner)[name] for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


# ---- the start and the end of Ray -------------------------------------------------------------------------


@contextlib.contextmanager
def without_services() -> Iterator[None]:
    """Start a local Ray without three processes: around `ray.init`.

    Saves 4 CPU-seconds of a start: one process asks for more machines, one brings the workers' logs to a
    driver that does not print them, and one serves the dashboard. Fails with AttributeError where Ray has
    renamed what is replaced. Stock Ray starts the three processes.
    """
    if not ray_is_known():
        yield
        return
    from ray._private import node, parameter

    few = functools.partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    with (
        _replaced(parameter, RayParams=few),
        _replaced(node.Node, start_api_server=lambda *_, **__: None),
    ):
        yield


def import_ray_data() -> None:
    """Import Ray Data and what `without_cluster_actors` replaces: in a thread, while Ray starts processes.

    Saves 2 seconds of a start. Stock Ray is imported without its private modules.
    """
    import ray.data

    if ray_is_known():
        import ray.data._internal.execution.operators.actor_pool_map_operator
        import ray.data._internal.execution.streaming_executor
        import ray.data._internal.stats  # noqa: F401 (Python keeps the modules)


@contextlib.contextmanager
def without_cluster_actors() -> Iterator[None]:
    """Run Ray Data without three actors that a Ray of one machine has no use for.

    Saves up to 9 CPU-seconds of a start: one actor asks for more machines, one keeps figures for a dashboard,
    and one knows on which machine an actor is. Fails with AttributeError where Ray has renamed what is
    replaced. Stock Ray starts the three actors.
    """
    if not ray_is_known():
        yield
        return
    from ray.data._internal import stats
    from ray.data._internal.execution import streaming_executor
    from ray.data._internal.execution.operators import actor_pool_map_operator

    silent: dict[str, Any] = {}
    for name in vars(stats._StatsManager):
        if name.startswith(("update_", "register_")):
            silent[name] = staticmethod(lambda *_, **__: None)
    silent["gen_dataset_id_from_stats_actor"] = staticmethod(lambda: uuid4().hex)
    with (
        _replaced(stats._StatsManager, **silent),
        _replaced(streaming_executor, create_cluster_autoscaler=lambda *_, **__: FixedSizeCluster()),
        _replaced(
            actor_pool_map_operator,
            get_or_create_actor_location_tracker=NoActorLocations,
            get_actor_locations=lambda _: {},
        ),
    ):
        yield


class FixedSizeCluster:
    """Stand for Ray Data's autoscaler of a cluster that cannot grow."""

    def __init__(self) -> None:
        import ray
        from ray.data import ExecutionResources

        self._all = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        """Ask for nothing."""

    def on_executor_shutdown(self) -> None:
        """Give nothing back."""

    def get_total_resources(self) -> "ExecutionResources":
        """Return all that the cluster has."""
        return self._all


class NoActorLocations:
    """Stand for Ray Data's actor that is told where other actors are; on one machine that is no news."""

    class update_actor_location:
        remote = staticmethod(lambda *_: None)


@contextlib.contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Print what Ray says of dead nodes and workers in one line on stderr, and not again for half a minute.

    Gives a stdout that holds results alone. Fails with AttributeError where Ray has renamed what is replaced.
    Stock Ray prints every message in full on stdout.
    """
    if not ray_is_known():
        yield
        return
    from ray._private import worker

    with _replaced(worker, print_to_stdstream=_print_on_stderr):
        yield


_printed: dict[str, float] = {}  # when a message was printed last, by the first characters of the message


def _print_on_stderr(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    message = " ".join(" ".join(data["lines"]).split())
    if "worker processes have been started" in message:
        return  # a run has more stages than cores on purpose
    now = time.monotonic()
    beginning = message[:40]
    if now - _printed.get(beginning, -math.inf) <= REPEAT_AFTER_S:
        return
    _printed[beginning] = now
    if len(message) > MESSAGE_LENGTH:
        message = f"{message[: MESSAGE_LENGTH - 3]}..."
    print(f"ray: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def without_automatic_start() -> Iterator[None]:
    """Keep a thread that still asks Ray something from starting another Ray when this one ends.

    Gives a shutdown that stays one. Fails without a word where Ray has renamed the switch. Stock Ray may
    start a second local Ray for such a thread.
    """
    if not ray_is_known():
        yield
        return
    from ray._private import auto_init_hook

    with _replaced(auto_init_hook, enable_auto_connect=False):
        yield


# ---- the driver of Ray Data -------------------------------------------------------------------------------


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
    def stop(cls) -> None:
        """End the execution, if one is under way."""
        if cls.executor is not None:
            cls.executor.shutdown(force=True)


def _describe_stage(op: Any, state: Any) -> str:
    name = re.sub(r"^MapBatches\((.*?)(_stage)?\)$", r"\1", op.name).lower()
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


# ---- the cluster's own store ------------------------------------------------------------------------------


def count_labelling_jobs() -> int:
    """Count the living jobs of Wordsworth on this cluster, this job included, and make this job known.

    Gives every job its share of a cluster. Fails with AttributeError where Ray has renamed what is asked.
    Stock Ray says 1: every job plans with the whole cluster, and a job that finds no free CPU ends after
    --stall-timeout.
    """
    if not ray_is_known():
        return 1
    import ray
    from ray._private.state import state
    from ray.experimental import internal_kv

    own = ray.get_runtime_context().get_job_id()
    internal_kv._internal_kv_put(JOB_KEY + own.encode(), b"")
    alive = {job["JobID"] for job in state.job_table() if not job["IsDead"]}
    known = {key.removeprefix(JOB_KEY).decode() for key in internal_kv._internal_kv_list(JOB_KEY)}
    return len(alive & known | {own})


def leave_note(key: bytes, text: str) -> None:
    """Leave a short text in the cluster's own store, for other processes of the job.

    Gives the reason why an actor was started again to its next process and to the driver. Fails with
    AttributeError where Ray has renamed what is called. Stock Ray has no such store: nobody finds the note.
    """
    if ray_is_known():
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(key, text.encode())


def find_notes(prefix: bytes) -> dict[bytes, str]:
    """Return the texts that `leave_note` left under keys with a prefix. Stock Ray has none."""
    if not ray_is_known():
        return {}
    from ray.experimental import internal_kv

    return {key: internal_kv._internal_kv_get(key).decode() for key in internal_kv._internal_kv_list(prefix)}


# ---- Ray Train --------------------------------------------------------------------------------------------


def make_trainer(
    train_loop: Callable[..., Any],
    is_final: Callable[[Exception], bool],
    is_local: bool = False,
    **options: Any,
) -> "TorchTrainer":
    """Make Ray Train's trainer, which does not start workers again after a final error.

    Gives an end at the first error that would come again; saves an actor that hands out data sets, which the
    workers make themselves; saves on a local Ray an actor that tidies up after a controller that died, since
    that Ray ends with the command; and lets Ctrl-C end the command as everywhere else. Fails with
    AttributeError or ImportError where Ray has renamed what is extended. Stock Ray starts the workers again
    after every error, as often as `max_failures` says, and handles Ctrl-C itself.

    Args:
        train_loop: function that every worker runs.
        is_final: tells whether an error would come again; a function of a module, because another process
            calls it.
        is_local: whether Ray is one that this command started.
        options: further arguments of TorchTrainer.
    """
    from ray.train.torch import TorchTrainer

    if not ray_is_known():
        return TorchTrainer(train_loop, **options)
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

    class FailurePolicy(DefaultFailurePolicy):
        """Start workers again, but not after a final error."""

        def make_decision(self, training_failed_error: Exception) -> FailureDecision:
            if is_final(training_failed_error):
                return FailureDecision.RAISE
            return super().make_decision(training_failed_error)

    class Trainer(TorchTrainer):
        """Give Ray Train this program's failure policy, without the actor for data sets and without Ray's own
        Ctrl-C."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            needless = (DatasetsCallback, PlacementGroupCleanerCallback) if is_local else DatasetsCallback
            return [one for one in callbacks if not isinstance(one, needless)]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            settings["failure_policy"] = FailurePolicy(self.run_config.failure_config)
            return super()._initialize_and_run_controller(**settings)

        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave Ctrl-C as it is: the last checkpoint is what remains."""

    return Trainer(train_loop, **options)


def error_of_worker(error: BaseException) -> BaseException:
    """Return what a training worker raised, out of the wrapper in which Ray Train keeps the error.

    Gives the error itself, whose message is for the user. Fails by returning the wrapper, which is what stock
    Ray gives.
    """
    return getattr(error, "_base_exc", error)
