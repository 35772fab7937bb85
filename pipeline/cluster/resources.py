"""Divide a cluster among the stages of a run, so that every stage can always run.

Actors keep what they claim for the whole run, and so does a read task that waits for room. A plan is safe
when, wherever Ray puts them, one node is left on which a task of every kind finds its claim: then units go on
to be decoded and written, and everything that waits is served in turn. Two jobs that plan so, each with what
the other leaves, are safe together.
"""

from dataclasses import dataclass

from wordsworth.pipeline.cluster.actors import Actors, Placement, cpu_actors, gpu_actors, safe_readers
from wordsworth.pipeline.cluster.claims import (
    DECODE_CPUS,
    LIST_CPUS,
    MAX_READ_TASKS,
    READ_CPUS,
    READ_SHARE,
    TASK_START,
    WRITE_CPUS,
    Claim,
    MiB,
    ModelNeeds,
    WorkEstimate,
    useful_workers,
)
from wordsworth.pipeline.cluster.nodes import Room


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
        listing: claim of a listing task.
    """

    predictors: int
    predict: Claim
    read_tasks: int
    read: Claim
    decode_tasks: int
    decode: Claim
    write: Claim
    listing: Claim


def plan_resources(room: Room, needs: ModelNeeds, work: WorkEstimate | None = None) -> StageResources:
    """Divide a cluster among the stages so that every stage can always run.

    Claims differ from stage to stage, so Ray fuses no two stages, on a laptop as on a GPU cluster.

    Args:
        room: as `see_room()` returns it.
        needs: what the model needs.
        work: how much there is to do; None is more than enough.

    Raises:
        NoRoom: no node has the labels, there is no GPU, or the actors would leave nothing for reading and
            decoding.
    """
    work = work or WorkEstimate()
    on = Placement(room, needs)
    actors = gpu_actors(on) if needs.device == "cuda" else cpu_actors(on, work)
    free_cpus = on.left(actors)
    num_decode_tasks = _decode_tasks(on, work, free_cpus)
    where = {"label_selector": dict(room.cluster.decode_on)} if room.cluster.decode_on else {}
    model_where = {"label_selector": dict(room.cluster.predict_on)} if room.cluster.predict_on else {}
    return StageResources(
        predictors=actors.count,
        predict={**actors.claim, "memory": needs.actor_memory, **model_where},
        read_tasks=_read_tasks(on, actors, num_decode_tasks, free_cpus),
        read={"num_cpus": READ_CPUS, "memory": needs.read_memory, **where},
        decode_tasks=num_decode_tasks,
        decode={"num_cpus": DECODE_CPUS, "memory": needs.decode_memory, **where},
        write={"num_cpus": WRITE_CPUS, "memory": 256 * MiB, **where},
        listing={"num_cpus": LIST_CPUS, **where},
    )


# ---- tasks ------------------------------------------------------------------------------------------------


def _decode_tasks(on: Placement, work: WorkEstimate, free_cpus: float) -> int:
    """Return how many decode tasks run at a time.

    On CPUs the model takes most of the cores, and each further process that decodes takes seconds of a core
    to start: half as many tasks as cores are enough.
    """
    share = on.cluster.share
    if on.needs.device == "cuda":
        most = max(1, int(free_cpus * share))
    else:
        cores = sum(min(node.cpus, node.cores) for node in on.workshops)
        most = max(2, int(cores / 2 * share))
    return min(most, useful_workers(work.decode, TASK_START))


def _read_tasks(on: Placement, actors: Actors, num_decode_tasks: int, free_cpus: float) -> int:
    """Return how many read tasks run at a time.

    A read task that waits for room keeps its claim, so all read tasks together must leave most CPUs to other
    stages. On CPUs half as many read tasks as decode tasks stay ahead of decoding, even on a store.
    """
    by_decoding = num_decode_tasks if on.needs.device == "cuda" else num_decode_tasks // 2
    by_cpus = free_cpus * on.cluster.share * READ_SHARE / READ_CPUS
    free_memory = on.left_memory(actors) * on.cluster.share
    by_memory = (free_memory - on.needs.decode_memory) / 2 / on.needs.read_memory
    most = max(1, int(min(MAX_READ_TASKS, by_decoding, by_cpus, by_memory)))
    return max(1, min(most, safe_readers(on, actors, most)))
