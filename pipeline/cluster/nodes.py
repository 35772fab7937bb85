"""See what a cluster has for a run: its living nodes, without what other jobs hold for good."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from wordsworth.pipeline.cluster.address import address_of
from wordsworth.pipeline.cluster.ray_internals import Holding, holdings
from wordsworth.pipeline.cluster.request import ClusterRequest

# Name of a resource of Ray's: the cores of a local Ray, which counts more CPUs than there are cores.
CORES = "wordsworth_cores"
NAMES = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}  # Ray's name of a resource, and a Node's


class Node(NamedTuple):
    """Describe a living node.

    Attributes:
        node_id: Ray's name of the node.
        cpus: CPUs that Ray counts there, without those that other jobs hold for good.
        gpus: GPUs, likewise.
        memory: bytes, likewise.
        cores: cores behind the CPUs; infinite where Ray counts the cores.
        labels: the node's labels.
    """

    node_id: str
    cpus: float
    gpus: float = 0.0
    memory: float = math.inf
    cores: float = math.inf
    labels: Mapping[str, str] = {}

    def has(self, selector: Mapping[str, str]) -> bool:
        """Tell whether the node has the labels that a selector asks for, as Ray understands it."""
        return all(_matches(self.labels.get(key), wanted) for key, wanted in selector.items())


def _matches(label: str | None, wanted: str) -> bool:
    """Tell whether a label is what is wanted: a value, in(value, value), or one of these behind a "!"."""
    negated = wanted.startswith("!")
    wanted = wanted.removeprefix("!")
    listed = re.fullmatch(r"in\((.*)\)", wanted)
    values = [value.strip() for value in listed[1].split(",")] if listed else [wanted]
    return (label in values) is not negated


@dataclass(frozen=True, kw_only=True)
class Room:
    """Hold what a run plans with.

    Attributes:
        nodes: the living nodes.
        cluster: what the command asks of the cluster: its share, its labels, its most actors.
        other_jobs: number of other jobs that hold something for good.
        held: what they hold, by Ray's names.
    """

    nodes: tuple[Node, ...]
    cluster: ClusterRequest = field(default_factory=ClusterRequest)
    other_jobs: int = 0
    held: Mapping[str, float] = field(default_factory=dict)

    def total(self, name: str) -> float:
        """Return the amount of a resource on all nodes together, with what other jobs hold."""
        return sum(getattr(node, NAMES[name]) for node in self.nodes) + self.held.get(name, 0)

    @property
    def amounts(self) -> dict[str, float]:
        """Return what there is for this job on all nodes together, by Ray's names."""
        return {name: sum(getattr(node, at) for node in self.nodes) for name, at in NAMES.items()}

    @property
    def taken(self) -> str:
        """Return what other jobs hold, for a message; "" where they hold nothing."""
        parts = []
        for name, unit in (("CPU", "CPUs"), ("GPU", "GPUs")):
            if self.held.get(name):
                parts.append(f"{self.held[name]:g} of {self.total(name):g} {unit}")
        return " and ".join(parts)


def see_room(cluster: ClusterRequest, without: Collection[str] = ()) -> Room:
    """Return what the nodes of this cluster have for this job at this moment.

    What other jobs hold for good, their actors and placement groups, is theirs. What their tasks claim comes
    back within seconds and counts as free. Nobody shares a local Ray, which is not asked.

    Args:
        cluster: what the command asks of the cluster.
        without: ids of nodes to leave out.
    """
    import ray

    nodes = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in without:
            nodes[node["NodeID"]] = _node(node)
    others = []
    if address_of(cluster):
        own = ray.get_runtime_context().get_job_id()
        others = [holding for holding in holdings() if holding.job != own]
    held: Counter[str] = Counter()
    for holding in others:
        node_id = holding.node_id or _roomiest(nodes, holding)
        if node_id in nodes:
            held.update(holding.resources)
            nodes[node_id] = _less(nodes[node_id], holding)
    jobs = {holding.job for holding in others}
    return Room(nodes=tuple(nodes.values()), cluster=cluster, other_jobs=len(jobs), held=dict(held))


def _node(node: Mapping[str, object]) -> Node:
    """Return one of `ray.nodes()`."""
    resources: Mapping[str, float] = node["Resources"]  # type: ignore[assignment]
    return Node(
        node_id=str(node["NodeID"]),
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory=resources.get("memory", math.inf),
        cores=resources.get(CORES, math.inf),
        labels=node.get("Labels") or {},  # type: ignore[arg-type]
    )


def _less(node: Node, holding: Holding) -> Node:
    changed = {}
    for name, amount in holding.resources.items():
        changed[NAMES[name]] = max(0.0, getattr(node, NAMES[name]) - amount)
    return node._replace(**changed)


def _roomiest(nodes: Mapping[str, Node], holding: Holding) -> str:
    """Return the node that something which waits for a place will come to, as far as can be said."""
    fitting = [node for node in nodes.values() if _fits(node, holding)]
    return max(fitting, key=lambda node: node.cpus).node_id if fitting else ""


def _fits(node: Node, holding: Holding) -> bool:
    return all(getattr(node, NAMES[name]) >= amount for name, amount in holding.resources.items())
