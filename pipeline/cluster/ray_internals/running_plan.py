"""Change a plan of Ray Data while it runs: how many workers its stages have, and whether it takes in more."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from wordsworth.pipeline.cluster.ray_internals.driver import ExecutionCallback
from wordsworth.pipeline.cluster.ray_internals.gate import ray_is_known

if TYPE_CHECKING:
    from ray.data import DataContext


BUDGETS = "ResourceBudget"  # name of Ray Data's policy that holds each stage to its part of the cluster


class RunningPlan(ExecutionCallback):
    """Give the stages of the plan under way other numbers of workers, or close the stages that feed it.

    A pool of Ray Data's own that grows takes the CPUs that reading and decoding need, and one that shrinks
    keeps the actors whose node is gone. Here every stage has as many workers as the division of the cluster
    says. Fails with AttributeError where an attribute that is set or read is gone. Stock Ray keeps the
    numbers that the plan had when it began, and a plan that is to end is stopped with its units in flight.

    Attributes:
        executor: of the last execution in this process.
        workers: tasks or actors at a time, by the name of the stage's function.
        avoided: ids of nodes on which no further task or actor is started.
        closed: stages that take in nothing more.
        changed: whether one of these was changed and the executor has not seen it.
    """

    executor: ClassVar[Any] = None
    workers: ClassVar[dict[str, int]] = {}
    avoided: ClassVar[frozenset[str]] = frozenset()
    closed: ClassVar[frozenset[str]] = frozenset()
    changed: ClassVar[bool] = False

    @classmethod
    def register(cls, context: "DataContext") -> None:
        """Follow every execution under a context."""
        if ray_is_known() and cls not in context.custom_execution_callback_classes:
            context.custom_execution_callback_classes.append(cls)

    @classmethod
    def forget(cls) -> None:
        """Forget the plan before and what was asked of it."""
        cls.executor = None
        cls.workers = {}
        cls.avoided = frozenset()
        cls.closed = frozenset()
        cls.changed = False

    @classmethod
    def resize(cls, workers: Mapping[str, int], avoided: Collection[str] = ()) -> None:
        """Give stages other numbers of workers, by the names of their functions.

        Args:
            avoided: ids of nodes on which no further task or actor is started.
        """
        cls.workers = cls.workers | dict(workers)
        cls.avoided = frozenset(avoided)
        cls.changed = True

    @classmethod
    def close(cls, stages: Collection[str]) -> bool:
        """Let stages take in nothing more. Return whether that can be done."""
        cls.closed = frozenset(stages)
        cls.changed = True
        return cls.executor is not None

    @classmethod
    def num_actors(cls) -> int | None:
        """Count the actors that live; None where nobody can say."""
        if cls.executor is None or cls.executor._topology is None:
            return None
        return sum(op.get_actor_info().running for op in cls.executor._topology)

    @classmethod
    def units_in_flight(cls, stages: Collection[str]) -> int:
        """Count the units that the last of the stages works on, and those that have left it and are not
        written yet."""
        if cls.executor is None or cls.executor._topology is None:
            return 0
        topology = list(cls.executor._topology.items())
        names = [stage_name(op) for op, _ in topology]
        last = max((place for place, name in enumerate(names) if name in stages), default=0)
        num_units = topology[last][0].num_active_tasks()
        for op, state in topology[last + 1 :]:
            num_units += op.num_active_tasks() + state.total_enqueued_input_blocks()
        return num_units

    def before_execution_starts(self, executor: Any) -> None:
        """Remember the executor, and apply what was asked before it was there."""
        RunningPlan.executor = executor
        RunningPlan.changed = True
        _free_last_stage(executor)

    def on_execution_step(self, executor: Any) -> None:
        """Apply what was asked since the step before."""
        if not RunningPlan.changed:
            return
        RunningPlan.changed = False
        for op in executor._topology:
            name = stage_name(op)
            _avoid(op, RunningPlan.avoided)
            if name in RunningPlan.workers:
                _resize(executor, op, RunningPlan.workers[name])
            if name in RunningPlan.closed:
                op.can_add_input = lambda: False


def stage_name(op: Any) -> str:
    """Return the name of the function or class that a stage of Ray Data's runs."""
    return re.sub(r"^MapBatches\((.*?)\)$", r"\1", op.name)


def _free_last_stage(executor: Any) -> None:
    """Let no budget hold back the last stage of a plan.

    Ray Data divides the cluster into budgets, and gives the stages in front theirs first. On a cluster that
    has lost a node, too little was left for the last stage: no unit was written for minutes, while CPUs were
    free. The last stage only frees what the others hold, and the division of the cluster has room for it.
    """
    last = list(executor._topology)[-1]
    for policy in executor._backpressure_policies:
        if policy.name == BUDGETS:
            policy.can_add_input = partial(_unless_last, policy.can_add_input, last)


def _unless_last(can_add_input: Callable[[Any], bool], last: Any, op: Any) -> bool:
    return op is last or can_add_input(op)


def _resize(executor: Any, op: Any, workers: int) -> None:
    pools = op.get_autoscaling_actor_pools()
    for pool in pools:
        pool._config = replace(pool._config, min_size=workers, max_size=workers, initial_size=workers)
    if pools:
        return
    op._max_concurrency = workers
    for policy in executor._backpressure_policies:
        caps = getattr(policy, "_concurrency_caps", {})
        if op in caps:
            caps[op] = workers


def _avoid(op: Any, nodes: frozenset[str]) -> None:
    """Start no further task or actor of a stage on some nodes."""
    if not hasattr(op, "_ray_remote_args"):  # the stage that holds the plan's input has no workers
        return
    if not nodes:
        op._ray_remote_args_fn = None
        return
    asked = op._ray_remote_args.get("label_selector") or {}
    selector = asked | {"ray.io/node-id": f"!in({', '.join(sorted(nodes))})"}
    op._ray_remote_args_fn = lambda: {"label_selector": selector}
