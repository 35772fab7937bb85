"""A run that gets no receipt any more: what every stage is doing, and an end. A hang would cost a night."""

import contextlib
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ray._common.network_utils import parse_address
from ray.data._internal.execution.execution_callback import ExecutionCallback

from wordsworth.pipeline.errors import ClusterGone, UserError

PATIENCE = 10.0  # seconds for a cluster that may be gone
LOOK, HEAD_PATIENCE = 5.0, 25.0  # seconds between two looks at the head, and until it is given up


class Stages(ExecutionCallback):
    """Ray Data makes one for every execution; what it learns here is asked for when a run stalls.

    The class is the only place that looks into Ray Data's executor, of which no public interface says how the stages are.
    """

    executor: Any = None  # of the last execution in this process

    def before_execution_starts(self, executor: Any) -> None:
        Stages.executor = executor

    @classmethod
    def describe(cls) -> list[str]:
        """A line a stage: what it does, what waits for it, and how its actors are."""
        topology = getattr(cls.executor, "_topology", None) or {}
        return [_describe(op, state) for op, state in topology.items() if op.name != "Input"]

    @classmethod
    def stop(cls) -> None:
        """End the execution, if one goes on."""
        cls.executor.shutdown(force=True)


def _describe(op: Any, state: Any) -> str:
    name = re.sub(r"^MapBatches\((.*?)(_stage)?\)$", r"\1", op.name).lower()
    if op.has_completed():
        return f"{name}: done, {op.metrics.num_tasks_finished} tasks"
    done, failed, running = op.metrics.num_tasks_finished, op.metrics.num_tasks_failed, op.num_active_tasks()
    said = [f"{running} running", f"{state.total_enqueued_input_blocks()} waiting", f"{done} done"]
    said += [f"{failed} failed"] if failed else []
    actors = op.get_actor_info()
    if actors.running + actors.pending + actors.restarting:
        said.append(
            f"actors: {actors.running} alive, {actors.pending} starting, {actors.restarting} restarting"
        )
    return f"{name}: {', '.join(said)}"


def _cluster() -> str:
    """How many nodes live and what is free, or that nobody answers."""
    return next(iter(_in_time(_ask_cluster)), "cluster: does not answer")


def _ask_cluster() -> str:
    import ray

    nodes, free, whole = ray.nodes(), ray.available_resources(), ray.cluster_resources()
    shares = [
        f"{free.get(name, 0):g} of {whole[name]:g} {name}" for name in ("CPU", "GPU") if whole.get(name)
    ]
    memory = f"{free.get('memory', 0) / 2**30:.1f} of {whole.get('memory', 0) / 2**30:.1f} GiB"
    alive = sum(node["Alive"] for node in nodes)
    return f"cluster: {alive} of {len(nodes)} nodes alive; free: {', '.join([*shares, memory])}"


def _in_time(call: Callable[[], Any]) -> list[Any]:
    """What `call` gives, in a list that stays empty if it fails or takes too long: a cluster that is gone never answers."""
    given: list[Any] = []

    def attempt() -> None:
        with contextlib.suppress(Exception):
            given.append(call())

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return given


def _wait_for(*threads: Any) -> None:
    """Until they are over, for a while."""
    deadline = time.monotonic() + PATIENCE / 2
    for thread in threads:
        if isinstance(thread, threading.Thread):
            thread.join(max(0.0, deadline - time.monotonic()))


def watched(
    receipts: Iterator[Any], seconds: float, note: Callable[[str], None], what: str = "unit was written"
) -> Iterator[Any]:
    """The receipts, as long as one comes every `seconds`.

    They are drawn in a thread of their own: so the caller waits where an interrupt reaches it at once, whatever Ray does.

    Raises UserError after `seconds` without a receipt, with what every stage was doing told to `note`; and ClusterGone soon after
    the cluster's head is gone.
    """
    arrived: queue.Queue = queue.Queue(maxsize=1024)
    drawing = threading.Thread(target=_draw, args=(receipts, arrived), daemon=True, name="receipts")
    drawing.start()
    head, ended, last = _Head(), False, time.monotonic()
    try:
        while not ended:
            try:
                receipt, error = arrived.get(timeout=min(seconds, LOOK))
            except queue.Empty:
                head.check()
                if time.monotonic() - last < seconds:
                    continue
                note(f"no {what} for {seconds:,.0f} s. What every stage is doing:")
                for line in [*Stages.describe(), _cluster()]:
                    note(f"  {line}")
                raise UserError(
                    f"stalled: no {what} for {seconds:,.0f} s (--stall-timeout). What is done is kept: run the same command again"
                ) from None
            ended, last = receipt is None, time.monotonic()
            if error is not None:
                raise error
            if receipt is not None:
                yield receipt
    except ClusterGone:
        ended = True  # there is nothing to stop
        raise
    finally:
        if not ended:
            _in_time(Stages.stop)
            _wait_for(drawing, Stages.executor)


class _Head:
    """Whether the cluster's head is there. A minute after it is not, Ray ends this process from within, without a word."""

    def __init__(self):
        import ray

        address = ray.get_runtime_context().gcs_address if ray.is_initialized() else None
        self.place = parse_address(address) if address else None
        self.silent_since: float | None = None

    def check(self) -> None:
        """Raises ClusterGone when look after look, for HEAD_PATIENCE, found nobody there."""
        try:
            if self.place:
                socket.create_connection(self.place, timeout=LOOK).close()
            self.silent_since = None
            return
        except OSError:
            self.silent_since = self.silent_since or time.monotonic()
        if time.monotonic() - self.silent_since > HEAD_PATIENCE:
            raise ClusterGone(
                f"Ray's head at {self.place[0]}:{self.place[1]} is gone, and with it the cluster. What is done is kept: "
                "start Ray again, and run the same command again"
            )


def _draw(receipts: Iterator[dict[str, Any]], arrived: queue.Queue) -> None:
    try:
        for receipt in receipts:
            arrived.put((receipt, None))
        arrived.put((None, None))
    except BaseException as error:  # it is raised where the receipts are used
        arrived.put((None, error))
