"""Ray itself: a local one that lives as long as the command, or a cluster that is joined; and what each stage may take of it."""

import contextlib
import functools
import importlib
import logging
import math
import os
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

from wordsworth.pipeline.errors import ClusterGone, UserError

MiB, GiB = 1 << 20, 1 << 30
RETRIES = {"max_retries": 3}
LOGICAL = 4  # CPUs of a local Ray, at least
_logical = 1.0  # CPUs for a core
abandoned = False  # Ray could not be shut down: a program that ends does so at once, by os._exit
PREDICT_CPUS = (
    0.6  # of a core that a model has to itself nearly always: what it claims leaves the rest to short tasks
)
ACTOR_START = 10.0  # CPU-seconds: an interpreter, Ray Data, torch and the weights
TASK_START = 5.0  # the same for a process that reads or decodes
READ_CPUS = 0.05  # it waits for the store, most of the time
DECODE_CPUS = 0.5  # of a core that a task claims while it decodes
LIST_CPUS = 0.1
GPU_CPUS = 0.5  # that the actor of a GPU claims where there are enough: it copies and launches
LEAST_LEFT = (
    LIST_CPUS + READ_CPUS + DECODE_CPUS
)  # CPUs without which a run beside its actors would stand still
# What kills its actor is bounded by the restarts. A task has more tries: each attempt to reach an actor that is on its way to
# another machine takes one.
ACTOR_RETRIES = {"max_restarts": 6, "max_task_retries": 30}


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Ray for the length of a block: what runs already, the cluster at `address` or RAY_ADDRESS, else a local one of our own.

    A local Ray gets a token that lives in this process's environment and in no file. It counts at least LOGICAL CPUs, because the
    stages of a plan must run side by side even on one core.
    """
    if os.environ.get("RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION"):
        raise UserError(
            "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION is set, which lets a shard run code: unset it"
        )
    import ray
    from ray._private import auto_init_hook, worker

    if ray.is_initialized():
        yield
        return
    global _logical, abandoned
    address = address or os.environ.get("RAY_ADDRESS")
    quiet, starting, alone = (
        {"log_to_driver": False, "logging_level": logging.ERROR},
        nullcontext(),
        nullcontext(),
    )
    if not address:
        starting = without_services()
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        quiet |= {"num_cpus": max(LOGICAL, cores()), "include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    worker.print_to_stdstream = _tell_on_stderr
    importing = threading.Thread(
        target=importlib.import_module, args=("wordsworth.pipeline.cluster.ray_internals",)
    )
    importing.start()  # Ray Data takes two seconds to import, and ray.init waits for processes
    try:
        with _mute_native_stderr(), starting:
            ray.init(address=address or "local", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"join the Ray cluster at {address}" if address else "start a local Ray"
        hint = " (is it the right address, and its token in RAY_AUTH_TOKEN?)" if address else ""
        raise UserError(f"cannot {where}: {str(error).splitlines()[0]}{hint}") from error
    finally:
        importing.join()
    if not address:
        from wordsworth.pipeline.cluster.ray_internals import on_one_machine

        alone = on_one_machine()
    if threading.current_thread() is threading.main_thread():
        signal.signal(
            signal.SIGTERM, handler
        )  # Ray puts its own there, which exits before anyone can say how to resume
    gone, _logical = False, 1.0 if address else max(1.0, LOGICAL / cores())
    try:
        with alone:
            yield
    except ClusterGone:
        gone = True
        raise
    finally:
        auto_init_hook.enable_auto_connect = (
            False  # a thread that still asks Ray something must not start another
        )
        # A shutdown would wait for a cluster that is gone; and where a thread asks Ray something after one, Ray ends this process
        # from within, without a word.
        if gone or _ray_is_asked():
            abandoned = True
        else:
            ray.shutdown()


@contextlib.contextmanager
def without_services() -> Iterator[None]:
    """`ray.init` of a local Ray without three processes that take four CPU-seconds to start: one asks for more machines, one brings
    the workers' logs to a driver that does not print them, and one serves the dashboard."""
    from ray._private import node, parameter

    few = functools.partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    with (
        patch.object(parameter, "RayParams", few),
        patch.object(node.Node, "start_api_server", lambda *_, **__: None),
    ):
        yield


def _ray_is_asked() -> bool:
    """Whether a thread of Ray Data's, or one that draws from it, did not come to its end: it waits for what does not answer."""
    return any(
        thread.name == "receipts" or thread.name.startswith("StreamingExecutor")
        for thread in threading.enumerate()
    )


_told: dict[str, float] = {}  # when a message was told last, by its beginning


def _tell_on_stderr(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    """What Ray has to say of dead nodes and workers, in one line and not again for half a minute. Ray itself prints all of it, on
    stdout, which is for results."""
    message, now = " ".join(" ".join(data["lines"]).split()), time.monotonic()
    if "worker processes have been started" in message:
        return  # more stages than cores is how it is meant
    if now - _told.get(message[:40], -math.inf) > 30:
        _told[message[:40]] = now
        print(
            f"ray: {message if len(message) <= 240 else f'{message[:237]}...'}", file=sys.stderr, flush=True
        )


@contextlib.contextmanager
def _mute_native_stderr() -> Iterator[None]:
    """Ray's C++ side announces on stderr that its log level was set; what goes wrong comes as an exception."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def data_context() -> None:
    """Ray Data as the plans here need it; taken over by every dataset made afterwards."""
    from ray.data import DataContext

    from wordsworth.pipeline.cluster.ray_internals import keep_small
    from wordsworth.pipeline.cluster.stall import Stages

    warnings.filterwarnings(
        "ignore", message=r"`ray_remote_args` is deprecated"
    )  # there is no other way to say max_retries
    warnings.filterwarnings(
        "ignore", message=r"The (maximum|minimum) number of concurrent"
    )  # fewer shards than workers
    context = DataContext.get_current()
    context.enable_fallback_to_arrow_object_ext_type = False  # never a pickled column
    context.target_max_block_size = 1  # every unit stays a block of its own; None would merge a whole shard
    context.target_min_block_size = 1
    context.max_consecutive_actor_init_deaths = 3
    context.raise_original_map_exception = (
        True  # Ray's wrapper loses it on the way, and with it what to tell the user
    )
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # wordsworth.pipeline.cluster.stall watches, and says more
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    keep_small(context)
    if Stages not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Stages)
    for name in ("ray.data", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what ends a run is raised, and told in one line


def resources() -> dict[str, float]:
    """As `ray.cluster_resources()`, with the "cores" that are behind its CPUs; and of them this job's share: jobs of ours on one
    cluster divide it.

    If each took all for its actors, none would have a CPU left to read and decode, and all would wait for ever. The first of them
    was alone when it took its share, so those that come later leave a sixth of theirs free.
    """
    import ray
    from ray._private.state import state
    from ray.experimental import internal_kv

    me = ray.get_runtime_context().get_job_id()
    internal_kv._internal_kv_put(OURS + me.encode(), b"")
    alive = {job["JobID"] for job in state.job_table() if not job["IsDead"]}
    jobs = alive & {key.removeprefix(OURS).decode() for key in internal_kv._internal_kv_list(OURS)} | {me}
    parts = 1.2 * len(jobs) if len(jobs) > 1 else 1
    whole = ray.cluster_resources()
    whole["cores"] = whole.get("CPU", 0) / _logical
    return {name: value / parts for name, value in whole.items()}


OURS = b"wordsworth:"  # and a job's id: a key in the cluster's own store for every job that labels


@dataclass(frozen=True)
class StageResources:
    """What one task or actor of each stage claims: Ray's CPUs (logical), bytes of memory, and how many actors there are."""

    predictors: int
    predict: dict[str, Any]
    read_tasks: int
    read: dict[str, Any]
    decode_tasks: int
    decode: dict[str, Any]
    write: dict[str, Any]


class Work(NamedTuple):
    """Seconds that one core takes for all there is to do; infinite where nobody knows."""

    model: float = math.inf
    decode: float = math.inf

    def worth(self, stage: str, start: float) -> int:
        """So many workers, none of which works for less than it takes to start."""
        return max(1, math.ceil(min(getattr(self, stage), 1e9) / start))


class GpuNode(NamedTuple):
    """A living machine of the cluster with GPUs. node_id: Ray's."""

    node_id: str
    cpus: float
    gpus: float


def gpu_nodes() -> list[GpuNode]:
    """Return the living nodes that Ray has GPUs on."""
    import ray

    nodes = ((node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"])
    return [GpuNode(name, have.get("CPU", 0.0), have["GPU"]) for name, have in nodes if have.get("GPU")]


def plan_resources(
    available: dict[str, float],
    device: str,
    weight_bytes: int,
    unit_bytes: int,
    work: Work | None = None,
    gpus_per_actor: float = 1.0,
    nodes: list[GpuNode] | None = None,
) -> StageResources:
    """Divide a cluster among the stages so that every one of them can always run.

    Claims differ from stage to stage, so Ray fuses no two of them, on a laptop as on a GPU cluster.

    Args:
        available: as `resources()`.
        device: "cpu" or "cuda".
        weight_bytes: the model in fp32.
        unit_bytes: the patches of one unit.
        work: how much there is to do; None: more than enough.
        gpus_per_actor: above 0, 1 at most.
        nodes: as `gpu_nodes()`; None takes the cluster for one machine.

    Raises:
        UserError: there is no GPU, or the actors would leave nothing for reading and decoding.
    """
    work = work or Work()
    cpus, memory = available.get("CPU", 0), available.get("memory", math.inf)
    predict_memory = GiB + 2 * weight_bytes + 2 * unit_bytes
    if device == "cuda":
        predictors, claim = _gpu_actors(available, gpus_per_actor, nodes)
        predict = {"num_gpus": gpus_per_actor, "num_cpus": claim}
    else:
        fits = max(1, int(0.6 * memory / predict_memory)) if math.isfinite(memory) else 1 << 30
        most = int(min(available.get("cores", cpus), (cpus - 1) / PREDICT_CPUS))
        predictors, predict = (
            min(max(1, most), fits, work.worth("model", ACTOR_START)),
            {"num_cpus": PREDICT_CPUS},
        )
    left = cpus - predictors * predict["num_cpus"]
    if left < (LEAST_LEFT - 1e-6 if device == "cuda" else 1):
        raise UserError(
            f"{predictors} model actors would take {cpus - left:g} of {cpus:g} CPUs and leave none to read and decode: "
            "start Ray with more CPUs (for example: ray start --num-cpus 4), or wait until other jobs on the cluster are done"
        )
    read_memory, decode_memory = 256 * MiB + unit_bytes, 256 * MiB + 2 * unit_bytes
    free = memory - predictors * predict_memory
    if free < read_memory + decode_memory:
        raise UserError(
            f"{predictors} model actors would take {predictors * predict_memory / GiB:.1f} of {memory / GiB:.1f} GiB of memory and "
            "leave too little to read and decode: use a smaller model, or start Ray with more memory"
        )
    # On CPUs the model is what takes them, and every process that decodes too takes seconds of one to start; half as many readers
    # are ahead of them even on a store.
    decoders = max(1, int(left)) if device == "cuda" else max(2, int(available.get("cores", cpus) / 2))
    decoders = min(decoders, work.worth("decode", TASK_START))
    # A reader that waits for room keeps its claim: all of them together must leave most CPUs to the others.
    most = decoders if device == "cuda" else decoders // 2
    readers = max(1, int(min(64, most, left / 8 / READ_CPUS, (free - decode_memory) / 2 / read_memory)))
    return StageResources(
        predictors=predictors,
        predict={**predict, "memory": predict_memory},
        read_tasks=readers,
        read={"num_cpus": READ_CPUS, "memory": read_memory},
        decode_tasks=decoders,
        decode={"num_cpus": DECODE_CPUS, "memory": decode_memory},
        write={"num_cpus": 0.3, "memory": 256 * MiB},
    )


def _gpu_actors(
    available: dict[str, float], gpus_per_actor: float, nodes: list[GpuNode] | None
) -> tuple[int, float]:
    """Return how many actors the GPUs take, and the CPUs that each claims: of a node with few, at most half of them in all.

    Ray never divides an actor's share among GPUs: of 0.4 a GPU takes two actors, and two GPUs take four and not five.
    """
    cpus, gpus = available.get("CPU", 0), available.get("GPU", 0)
    nodes = [GpuNode("", cpus, gpus)] if nodes is None else nodes
    counts = {
        node: _actors_on(node.gpus, gpus_per_actor) for node in nodes if fits_an_actor(node, gpus_per_actor)
    }
    predictors = min(
        sum(counts.values()), _actors_on(gpus, gpus_per_actor)
    )  # of several jobs each has its share
    if predictors < 1:
        seen = (
            f"{gpus:g} GPUs and no node with room for an actor of {gpus_per_actor:g} GPUs and a CPU"
            if gpus
            else "no GPU"
        )
        raise UserError(
            f"this run is for GPUs (--device cuda, or planned where there was one) and Ray sees {seen}: "
            "start Ray where there is one, wait until other jobs are done, or label into a new --output with --device cpu"
        )
    claim = min(GPU_CPUS, *(node.cpus / 2 / count for node, count in counts.items()))
    if cpus - predictors * claim < LEAST_LEFT:
        claim = max(0.05, (cpus - LEAST_LEFT) / predictors)
    return predictors, math.floor(claim * 1e4) / 1e4  # Ray counts in ten-thousandths


def fits_an_actor(node: GpuNode, gpus_per_actor: float) -> bool:
    """Whether a node has room for an actor: a part of a GPU that is large enough, and of a CPU."""
    return node.cpus > 0 and _actors_on(node.gpus, gpus_per_actor) > 0


def _actors_on(gpus: float, gpus_per_actor: float) -> int:
    whole, rest = divmod(gpus + 1e-9, 1)
    return int(whole) * int(1 / gpus_per_actor + 1e-9) + int(rest / gpus_per_actor)
