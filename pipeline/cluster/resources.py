"""Divide a cluster among the stages of a run, so that every stage can always run."""

import math
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

from wordsworth.pipeline.cluster import ray_internals
from wordsworth.pipeline.errors import UserError

MiB = 1 << 20  # bytes
GiB = 1 << 30  # bytes

# Options of Ray's for a task: how often Ray runs a task again that was lost.
RETRIES = {"max_retries": 3}
# Options of Ray's for an actor. `max_restarts` bounds what kills the actor again and again. A task needs more
# tries: every attempt to reach an actor that is on its way to another machine counts as one.
ACTOR_RETRIES = {"max_restarts": 6, "max_task_retries": 30}

# Name of a resource of Ray's: the cores of a local Ray, which counts more CPUs than there are cores.
CORES = "wordsworth_cores"
LATER_SHARE = 1.2  # divisor of a share beside other jobs: the first job planned as if it were alone

LIST_CPUS = 0.1  # CPUs that a listing task claims
READ_CPUS = 0.05  # CPUs that a read task claims: most of the time a read task waits for the store
DECODE_CPUS = 0.5  # CPUs that a decode task claims
WRITE_CPUS = 0.3  # CPUs that a write task claims
# CPUs that an actor on a CPU claims. The actor uses nearly a whole core; the rest is left to short tasks.
PREDICT_CPUS = 0.6
GPU_CPUS = 0.5  # CPUs that an actor on a GPU claims where there are enough: the actor copies and launches
MIN_GPU_CPUS = 0.05  # CPUs that an actor on a GPU claims at least
CPU_PARTS = 1e4  # parts of a CPU: Ray counts in ten-thousandths
# CPUs beside those of the actors, without which a run would stand still.
SPARE_CPUS = LIST_CPUS + READ_CPUS + DECODE_CPUS

ACTOR_START = 10.0  # CPU-seconds that an actor takes to start, with Ray Data, torch and the weights
TASK_START = 5.0  # CPU-seconds that a process takes to start which reads or decodes
MAX_READ_TASKS = 64  # read tasks of a run
READ_SHARE = 1 / 8  # share of the CPUs beside the actors that all read tasks may claim together
ACTOR_MEMORY_SHARE = 0.6  # share of the memory that all actors on CPUs may claim together

UNBOUNDED = 1 << 30  # a number of workers that no cluster has
ROUNDING = 1e-9  # by which a number of GPUs or actors may be off

Claim = dict[str, Any]  # what a task or an actor claims of Ray: num_cpus, num_gpus, memory (bytes)


def cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_cluster() -> dict[str, float]:
    """Return the resources of the cluster that this job may plan with, by name: "CPU", "GPU", "memory",
    "cores", ...

    "cores" are the cores behind the CPUs that Ray counts. Jobs of Wordsworth on one cluster divide the
    cluster: if each job took all of it for actors, no job would have a CPU left to read and decode, and all
    jobs would wait for ever. The first job was alone when it planned, so jobs that come later leave a sixth
    of their share free.
    """
    import ray

    whole = ray.cluster_resources()
    whole["cores"] = whole.pop(CORES, whole.get("CPU", 0))
    num_jobs = ray_internals.count_labelling_jobs()
    parts = LATER_SHARE * num_jobs if num_jobs > 1 else 1
    return {name: amount / parts for name, amount in whole.items()}


# ---- what there is, and what there is to do ---------------------------------------------------------------


class GpuNode(NamedTuple):
    """Describe a living machine of the cluster that has GPUs.

    Attributes:
        node_id: Ray's name of the machine.
        cpus: CPUs that Ray counts there.
        gpus: GPUs that Ray counts there.
    """

    node_id: str
    cpus: float
    gpus: float


def gpu_nodes() -> list[GpuNode]:
    """Return the living machines on which Ray has GPUs."""
    import ray

    found = []
    for node in ray.nodes():
        resources = node["Resources"]
        if node["Alive"] and resources.get("GPU"):
            found.append(GpuNode(node["NodeID"], resources.get("CPU", 0.0), resources["GPU"]))
    return found


class WorkEstimate(NamedTuple):
    """Hold the seconds that one core takes for the whole run; infinite where nobody knows.

    Attributes:
        model: seconds of the model.
        decode: seconds of decoding.
    """

    model: float = math.inf
    decode: float = math.inf


def useful_workers(work_s: float, start_s: float) -> int:
    """Return how many workers are useful: each works for at least as long as it takes to start.

    Args:
        work_s: core-seconds of the whole work; may be infinite.
        start_s: core-seconds that a worker takes to start.
    """
    if math.isinf(work_s):
        return UNBOUNDED
    return max(1, math.ceil(work_s / start_s))


@dataclass(frozen=True, kw_only=True)
class ModelNeeds:
    """Hold what a run's model needs of a cluster.

    Attributes:
        device: "cpu" or "cuda".
        weight_bytes: bytes of the model in fp32.
        unit_bytes: bytes of the patches of one unit.
        gpus_per_actor: GPUs that an actor takes: above 0, 1 at most.
    """

    device: str
    weight_bytes: int
    unit_bytes: int
    gpus_per_actor: float = 1.0

    @property
    def actor_memory(self) -> int:
        """Bytes that an actor claims: its process, the weights twice, and a unit that comes and one that
        goes."""
        return GiB + 2 * self.weight_bytes + 2 * self.unit_bytes

    @property
    def read_memory(self) -> int:
        """Bytes that a read task claims."""
        return 256 * MiB + self.unit_bytes

    @property
    def decode_memory(self) -> int:
        """Bytes that a decode task claims."""
        return 256 * MiB + 2 * self.unit_bytes


# ---- the plan ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StageResources:
    """Hold what one task or actor of each stage claims, and how many there are.

    Attributes:
        predictors: number of actors.
        predict: claim of an actor.
        read_tasks: number of read tasks at a time.
        read: claim of a read task.
        decode_tasks: number of decode tasks at a time.
        decode: claim of a decode task.
        write: claim of a write task.
    """

    predictors: int
    predict: Claim
    read_tasks: int
    read: Claim
    decode_tasks: int
    decode: Claim
    write: Claim


def plan_resources(
    available: dict[str, float],
    needs: ModelNeeds,
    work: WorkEstimate | None = None,
    nodes: list[GpuNode] | None = None,
) -> StageResources:
    """Divide a cluster among the stages so that every stage can always run.

    Claims differ from stage to stage, so Ray fuses no two stages, on a laptop as on a GPU cluster.

    Args:
        available: as `share_of_cluster()` returns it.
        needs: what the model needs.
        work: how much there is to do; None is more than enough.
        nodes: as `gpu_nodes()` returns them; None takes the cluster for one machine.

    Raises:
        UserError: there is no GPU, or the actors would leave nothing for reading and decoding.
    """
    work = work or WorkEstimate()
    if needs.device == "cuda":
        num_actors, claim = _gpu_actors(available, needs.gpus_per_actor, nodes)
    else:
        num_actors, claim = _cpu_actors(available, needs, work)
    free_cpus = _free_cpus(available, needs, num_actors, claim["num_cpus"])
    free_memory = _free_memory(available, needs, num_actors)
    num_decode_tasks = _decode_tasks(available, needs, work, free_cpus)
    return StageResources(
        predictors=num_actors,
        predict={**claim, "memory": needs.actor_memory},
        read_tasks=_read_tasks(needs, num_decode_tasks, free_cpus, free_memory),
        read={"num_cpus": READ_CPUS, "memory": needs.read_memory},
        decode_tasks=num_decode_tasks,
        decode={"num_cpus": DECODE_CPUS, "memory": needs.decode_memory},
        write={"num_cpus": WRITE_CPUS, "memory": 256 * MiB},
    )


def _cpu_actors(available: dict[str, float], needs: ModelNeeds, work: WorkEstimate) -> tuple[int, Claim]:
    """Return how many actors the cores take, and the CPUs that each actor claims."""
    cpus = available.get("CPU", 0)
    memory = available.get("memory", math.inf)
    by_cores = min(available.get("cores", cpus), (cpus - 1) / PREDICT_CPUS)
    by_memory = UNBOUNDED
    if math.isfinite(memory):
        by_memory = max(1, int(ACTOR_MEMORY_SHARE * memory / needs.actor_memory))
    by_work = useful_workers(work.model, ACTOR_START)
    return min(max(1, int(by_cores)), by_memory, by_work), {"num_cpus": PREDICT_CPUS}


def _gpu_actors(
    available: dict[str, float], gpus_per_actor: float, nodes: list[GpuNode] | None
) -> tuple[int, Claim]:
    """Return how many actors the GPUs take, and what each actor claims.

    The actors of a node claim at most half of the node's CPUs together. Ray never divides an actor's share
    among GPUs: with shares of 0.4 a GPU takes two actors, and two GPUs take four and not five.
    """
    cpus = available.get("CPU", 0)
    gpus = available.get("GPU", 0)
    if nodes is None:
        nodes = [GpuNode("", cpus, gpus)]
    counts = {
        node: _actors_on(node.gpus, gpus_per_actor) for node in nodes if fits_an_actor(node, gpus_per_actor)
    }
    # Beside other jobs the share of this one may hold fewer actors than the nodes do.
    num_actors = min(sum(counts.values()), _actors_on(gpus, gpus_per_actor))
    if num_actors < 1:
        raise UserError(_no_gpu(gpus, gpus_per_actor))
    claimed = min(GPU_CPUS, *(node.cpus / 2 / count for node, count in counts.items()))
    if cpus - num_actors * claimed < SPARE_CPUS:
        claimed = max(MIN_GPU_CPUS, (cpus - SPARE_CPUS) / num_actors)
    claimed = math.floor(claimed * CPU_PARTS) / CPU_PARTS
    return num_actors, {"num_gpus": gpus_per_actor, "num_cpus": claimed}


def _no_gpu(gpus: float, gpus_per_actor: float) -> str:
    seen = "no GPU"
    if gpus:
        seen = f"{gpus:g} GPUs and no node with room for an actor of {gpus_per_actor:g} GPUs and a CPU"
    return (
        f"this run is for GPUs (--device cuda, or planned where there was one) and Ray sees {seen}: "
        "start Ray where there is one, wait until other jobs are done, "
        "or label into a new --output with --device cpu"
    )


def _free_cpus(available: dict[str, float], needs: ModelNeeds, num_actors: int, claimed: float) -> float:
    """Return the CPUs that the actors leave. Raises UserError where reading and decoding would stand
    still."""
    cpus = available.get("CPU", 0)
    free = cpus - num_actors * claimed
    least = SPARE_CPUS - 1e-6 if needs.device == "cuda" else 1
    if free < least:
        raise UserError(
            f"{num_actors} model actors would take {cpus - free:g} of {cpus:g} CPUs "
            "and leave none to read and decode: "
            "start Ray with more CPUs (for example: ray start --num-cpus 4), "
            "or wait until other jobs on the cluster are done"
        )
    return free


def _free_memory(available: dict[str, float], needs: ModelNeeds, num_actors: int) -> float:
    """Return the bytes that the actors leave. Raises UserError where no unit can be read and decoded."""
    memory = available.get("memory", math.inf)
    claimed = num_actors * needs.actor_memory
    free = memory - claimed
    if free < needs.read_memory + needs.decode_memory:
        raise UserError(
            f"{num_actors} model actors would take {claimed / GiB:.1f} of {memory / GiB:.1f} GiB of memory "
            "and leave too little to read and decode: use a smaller model, or start Ray with more memory"
        )
    return free


def _decode_tasks(
    available: dict[str, float], needs: ModelNeeds, work: WorkEstimate, free_cpus: float
) -> int:
    """Return how many decode tasks run at a time.

    On CPUs the model takes most of the cores, and each further process that decodes takes seconds of a core
    to start: half as many tasks as cores are enough.
    """
    if needs.device == "cuda":
        most = max(1, int(free_cpus))
    else:
        most = max(2, int(available.get("cores", available.get("CPU", 0)) / 2))
    return min(most, useful_workers(work.decode, TASK_START))


def _read_tasks(needs: ModelNeeds, num_decode_tasks: int, free_cpus: float, free_memory: float) -> int:
    """Return how many read tasks run at a time.

    A read task that waits for room keeps its claim, so all read tasks together must leave most CPUs to other
    stages. On CPUs half as many read tasks as decode tasks stay ahead of decoding, even on a store.
    """
    by_decoding = num_decode_tasks if needs.device == "cuda" else num_decode_tasks // 2
    by_cpus = free_cpus * READ_SHARE / READ_CPUS
    by_memory = (free_memory - needs.decode_memory) / 2 / needs.read_memory
    return max(1, int(min(MAX_READ_TASKS, by_decoding, by_cpus, by_memory)))


def fits_an_actor(node: GpuNode, gpus_per_actor: float) -> bool:
    """Tell whether a node has room for an actor: a large enough part of a GPU, and of a CPU."""
    return node.cpus > 0 and _actors_on(node.gpus, gpus_per_actor) > 0


def _actors_on(gpus: float, gpus_per_actor: float) -> int:
    """Count the actors that a number of GPUs takes, when no actor is divided among GPUs."""
    whole, rest = divmod(gpus + ROUNDING, 1)
    return int(whole) * int(1 / gpus_per_actor + ROUNDING) + int(rest / gpus_per_actor)
