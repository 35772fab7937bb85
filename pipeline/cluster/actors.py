"""Count the model actors that a cluster has room for, beside tasks that must always find their claims."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from wordsworth.pipeline.cluster.claims import (
    ACTOR_MEMORY_SHARE,
    ACTOR_START,
    GPU_CPUS,
    MIN_GPU_CPUS,
    MIN_PREDICT_CPUS,
    PARTS,
    PREDICT_CPUS,
    READ_CPUS,
    READERS_OF_OTHERS,
    ROUNDING,
    TURN_CPUS,
    UNBOUNDED,
    Claim,
    GiB,
    ModelNeeds,
    NoRoom,
    WorkEstimate,
    useful_workers,
)
from wordsworth.pipeline.cluster.nodes import Node, Room


@dataclass(frozen=True, kw_only=True)
class Actors:
    """Hold the actors of a plan.

    Attributes:
        count: number of this job's.
        together: number of all jobs', where each takes its share.
        claim: what each claims: num_cpus, and num_gpus on a GPU.
        on_node: how many there are on each node, by its id; {} where Ray may put them anywhere.
    """

    count: int
    together: int
    claim: Claim
    on_node: Mapping[str, int] = field(default_factory=dict)

    @property
    def cpus(self) -> float:
        """CPUs that each claims."""
        return self.claim["num_cpus"]


class Placement:
    """Say where the actors and the tasks of a plan may be.

    Attributes:
        cluster: what the command asks of the cluster.
        needs: what the model needs.
        hosts: nodes on which the actors may be.
        workshops: nodes on which the tasks may be.
        both: ids of the nodes on which both may be.
        turn_cpus: CPUs that one node must have left, for every task in turn, beside readers that wait.
        turn_memory: bytes that one node must have left.
        least_readers: read tasks of all jobs that wait, at least.
        taken: what other jobs hold, for messages.
    """

    def __init__(self, room: Room, needs: ModelNeeds):
        """Find the nodes. Raises NoRoom where no node has the labels that are asked for."""
        self.cluster = room.cluster
        self.needs = needs
        self.hosts = _with_labels(room, "--predict-on", room.cluster.predict_on)
        self.workshops = _with_labels(room, "--decode-on", room.cluster.decode_on)
        self.both = {node.node_id for node in self.hosts} & {node.node_id for node in self.workshops}
        self.turn_cpus = TURN_CPUS
        self.turn_memory = needs.read_memory + needs.decode_memory
        self.num_jobs = math.ceil(1 / room.cluster.share - ROUNDING)
        self.readers_of_others = READERS_OF_OTHERS * room.other_jobs
        self.taken = room.taken

    def turn_beside(self, num_readers: int) -> float:
        """Return the CPUs that one node must have left, where each job has so many readers that wait."""
        return TURN_CPUS + (num_readers * self.num_jobs + self.readers_of_others) * READ_CPUS

    def usable(self, turn_cpus: float) -> list[Node]:
        """Return the nodes on which every task finds its claim, as long as there are no actors."""
        return [
            node
            for node in self.workshops
            if node.cpus >= turn_cpus - ROUNDING and node.memory >= self.turn_memory
        ]

    def left(self, actors: Actors) -> float:
        """Return the CPUs of the workshops that all actors leave, at worst."""
        shared = sum(node.cpus for node in self.workshops if node.node_id in self.both)
        whole = sum(node.cpus for node in self.workshops)
        return whole - min(shared, actors.together * actors.cpus)

    def left_memory(self, actors: Actors) -> float:
        """Return the bytes of the workshops that all actors leave, at worst."""
        shared = sum(node.memory for node in self.workshops if node.node_id in self.both)
        whole = sum(node.memory for node in self.workshops)
        return whole - min(shared, actors.together * self.needs.actor_memory)

    def own_count(self, together: int, safe: int) -> int:
        """Return how many actors this job takes, by its share of the cluster and by --max-actors.

        Args:
            together: actors of all jobs.
            safe: the most that all jobs may have.

        Raises:
            NoRoom: the share is smaller than one actor.
        """
        share = self.cluster.share
        count = min(max(1, math.floor(together * share + ROUNDING)), math.floor(safe * share + ROUNDING))
        if count < 1:
            more = ", or a smaller --gpus-per-actor" if self.needs.device == "cuda" else ""
            raise NoRoom(
                f"--share {share:g} of this cluster is less than one model actor, and it has room for "
                f"{safe}: give a larger share{more}",
                lacking="room for an actor in this share",
            )
        return min(count, self.cluster.max_actors or UNBOUNDED)


def _with_labels(room: Room, option: str, selector: Mapping[str, str]) -> tuple[Node, ...]:
    found = tuple(node for node in room.nodes if node.has(selector))
    if not found and selector:
        wanted = ",".join(f"{key}={value}" for key, value in selector.items())
        raise NoRoom(
            f"{option} {wanted}: no node of this cluster has these labels: give nodes labels (ray start "
            "--labels, or the labels of a group in the cluster's YAML), or leave the option out",
            lacking=f"a node with {wanted}",
            wanted=[{"CPU": 1}],
            selector=selector,
        )
    return found


# ---- actors on CPUs ---------------------------------------------------------------------------------------


def cpu_actors(on: Placement, work: WorkEstimate) -> Actors:
    """Return how many actors the cores take, and the CPUs that each actor claims."""
    claimed = _cpus_of_an_actor(on)
    safe = min(_capacity(on, claimed), _safe_count(on, claimed, on.turn_beside(1)))
    if safe < 1:
        raise _too_small(on, 1, claimed)
    spare = 1 if on.both else 0  # a core for the tasks
    by_cpus = (sum(node.cpus for node in on.hosts) - spare) / claimed
    by_cores = min(sum(min(node.cpus, node.cores) for node in on.hosts), by_cpus)
    by_memory = UNBOUNDED
    memory = sum(node.memory for node in on.hosts)
    if math.isfinite(memory):
        by_memory = max(1, int(ACTOR_MEMORY_SHARE * memory / on.needs.actor_memory))
    together = min(max(1, int(by_cores + ROUNDING)), by_memory, safe)
    count = min(on.own_count(together, safe), useful_workers(work.model, ACTOR_START))
    return Actors(count=count, together=max(together, count), claim={"num_cpus": claimed})


def _cpus_of_an_actor(on: Placement) -> float:
    """Return the CPUs that an actor claims: fewer where no node has room for an actor and the tasks."""
    turn = on.turn_beside(1)
    usable = on.usable(turn)
    if any(node.node_id not in on.both for node in usable):
        return PREDICT_CPUS
    largest = max((node.cpus for node in usable), default=0.0)
    claimed = math.floor((largest - turn + ROUNDING) * PARTS) / PARTS
    return max(MIN_PREDICT_CPUS, min(PREDICT_CPUS, claimed))


def _capacity(on: Placement, claimed: float) -> int:
    """Count the actors on CPUs that fit on all nodes."""
    return sum(_capacity_of(node, claimed, on.needs) for node in on.hosts)


def _capacity_of(node: Node, claimed: float, needs: ModelNeeds) -> int:
    by_memory = UNBOUNDED if math.isinf(node.memory) else int(node.memory / needs.actor_memory)
    return min(int(node.cpus / claimed + ROUNDING), by_memory)


def _safe_count(on: Placement, claimed: float, turn_cpus: float) -> int:
    """Return how many actors leave one node on which tasks find their claims, wherever Ray puts the actors.

    Ray may put them where they do most harm: on each node as many as it takes until no task fits there.
    """
    usable = on.usable(turn_cpus)
    blocking = 0
    for node in usable:
        harm = int((node.cpus - turn_cpus) / claimed + ROUNDING) + 1
        if math.isfinite(node.memory):
            harm = min(harm, int((node.memory - on.turn_memory) / on.needs.actor_memory) + 1)
        if node.node_id not in on.both or harm > _capacity_of(node, claimed, on.needs):
            return UNBOUNDED
        blocking += harm
    return max(0, blocking - 1)


# ---- actors on GPUs ---------------------------------------------------------------------------------------


def gpu_actors(on: Placement) -> Actors:
    """Return how many actors the GPUs take, and what each actor claims.

    The actors of a node claim at most half of the node's CPUs together. Where a node with GPUs has no CPU,
    as in a group that is kept for GPU work alone, no actor claims one.
    """
    share = on.needs.gpu_share
    on_node = {node.node_id: _actors_on(node, share) for node in on.hosts if _actors_on(node, share)}
    together = sum(on_node.values())
    if not together:
        raise _no_gpu(on)
    claimed = GPU_CPUS
    for node in on.hosts:
        if node.node_id in on_node:
            claimed = min(claimed, node.cpus / 2 / on_node[node.node_id])
    claimed = _rounded_down(claimed)
    turn = on.turn_beside(1)
    if not _lefts(on, on_node, claimed, turn):
        most = [(node.cpus - turn) / max(1, on_node.get(node.node_id, 0)) for node in on.usable(turn)]
        claimed = _rounded_down(max([*most, MIN_GPU_CPUS]))
    actors = Actors(
        count=on.own_count(together, together),
        together=together,
        claim={"num_gpus": share, "num_cpus": claimed},
        on_node=on_node,
    )
    if not _lefts(on, on_node, claimed, turn):
        raise _too_small(on, together, claimed)
    if on.left_memory(actors) < on.turn_memory:
        raise _too_little_memory(on, together)
    return actors


def _rounded_down(amount: float) -> float:
    return math.floor((amount + ROUNDING) * PARTS) / PARTS


def _lefts(on: Placement, on_node: Mapping[str, int], claimed: float, turn_cpus: float) -> list[float]:
    """Return the CPUs that actors leave on each node on which they leave enough for the tasks."""
    lefts = [node.cpus - on_node.get(node.node_id, 0) * claimed for node in on.usable(turn_cpus)]
    return [left for left in lefts if left >= turn_cpus - ROUNDING]


def _actors_on(node: Node, share: float) -> int:
    """Count the actors that the GPUs of a node take, when no actor is divided among GPUs."""
    whole, rest = divmod(node.gpus + ROUNDING, 1)
    return int(whole) * int(1 / share + ROUNDING) + int((rest + ROUNDING) / share)


def fits_an_actor(node: Node, claim: Claim) -> bool:
    """Tell whether a node has room for an actor on a GPU: a large enough part of a GPU, and of a CPU."""
    return node.cpus >= claim["num_cpus"] - ROUNDING and _actors_on(node, claim["num_gpus"]) > 0


# ---- readers that wait -------------------------------------------------------------------------------------


def safe_readers(on: Placement, actors: Actors, most: int) -> int:
    """Return how many read tasks may wait on nodes where they do most harm, beside the actors."""
    if actors.on_node:
        lefts = _lefts(on, actors.on_node, actors.cpus, TURN_CPUS)
        waiting = sum(int((left - TURN_CPUS) / READ_CPUS + ROUNDING) + 1 for left in lefts) - 1
        # An actor that is started again must find its CPUs although readers wait on its node.
        for node in on.hosts:
            if node.node_id in on.both and node.node_id in actors.on_node and actors.cpus:
                left = node.cpus - actors.on_node[node.node_id] * actors.cpus
                waiting = min(waiting, int(left / READ_CPUS + ROUNDING))
        return (waiting - on.readers_of_others) // on.num_jobs
    # Blocking every node takes more than all that the nodes have beyond a turn.
    beyond = sum(node.cpus - TURN_CPUS for node in on.usable(TURN_CPUS)) - actors.together * actors.cpus
    spread = (int(beyond / READ_CPUS + ROUNDING) - on.readers_of_others) // on.num_jobs
    while most > max(1, spread) and _safe_count(on, actors.cpus, on.turn_beside(most)) < actors.together:
        most -= 1
    return most


# ---- refusals ---------------------------------------------------------------------------------------------


def _no_gpu(on: Placement) -> NoRoom:
    gpus = sum(node.gpus for node in on.hosts)
    seen = "no GPU"
    if gpus:
        seen = f"{gpus:g} GPUs and no node with room for an actor of {on.needs.gpus_per_actor:g} GPUs"
    if on.taken:
        seen += f", where other jobs hold {on.taken}"
    return NoRoom(
        f"this run is for GPUs (--device cuda, or planned where there was one) and Ray sees {seen}: "
        "start Ray where there is one, wait until other jobs are done, "
        "or label into a new --output with --device cpu",
        lacking="a GPU",
        wanted=[{"GPU": on.needs.gpu_share}],
        selector=on.cluster.predict_on,
    )


def _too_small(on: Placement, num_actors: int, claimed: float) -> NoRoom:
    """Say what is missing for the tasks, beside so many actors."""
    large = [node for node in on.workshops if node.cpus >= on.turn_beside(1) + claimed - ROUNDING]
    if large and all(node.memory < on.turn_memory + on.needs.actor_memory for node in large):
        return _too_little_memory(on, num_actors)
    cpus = sum(node.cpus for node in on.workshops)
    held = f" (other jobs hold {on.taken})" if on.taken else ""
    share = on.cluster.share
    if share < 1:
        told = f"--share {share:g} of {cpus:g} CPUs{held} is less than one model actor and its tasks take: "
        help = "give a larger share, or start Ray with more CPUs"
    else:
        told = (
            f"{num_actors} model actors would take {num_actors * claimed:g} of {cpus:g} CPUs{held} "
            "and leave no node with a CPU to read and decode: "
        )
        help = (
            "start Ray with more CPUs (for example: ray start --num-cpus 4), "
            "or wait until other jobs on the cluster are done"
        )
    return NoRoom(
        told + help,
        lacking="CPUs for a model actor, reading and decoding",
        wanted=[{"CPU": 1}, {"CPU": 1}],
        selector=on.cluster.decode_on,
    )


def _too_little_memory(on: Placement, num_actors: int) -> NoRoom:
    memory = sum(node.memory for node in on.hosts)
    largest = max((node.memory for node in on.hosts), default=0.0)
    of = f"{memory / GiB:.1f} GiB of memory"
    if len(on.hosts) > 1:
        of += f" on {len(on.hosts)} nodes, of at most {largest / GiB:.1f} GiB each,"
    return NoRoom(
        f"{num_actors} model actors would take {num_actors * on.needs.actor_memory / GiB:.1f} of {of} "
        "and leave too little to read and decode: use a smaller model, or start Ray with more memory",
        lacking="memory for a model actor",
        wanted=[{"CPU": 1, "memory": on.needs.actor_memory + on.turn_memory}],
        selector=on.cluster.predict_on,
    )
