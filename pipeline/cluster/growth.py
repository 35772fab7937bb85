"""Follow the nodes of a cluster while a plan runs: what joins is used, what leaves counts no more."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from wordsworth.pipeline.cluster.node_check import living_nodes
from wordsworth.pipeline.cluster.ray_internals import RunningPlan, draining_nodes
from wordsworth.pipeline.cluster.session import NODES_THREAD
from wordsworth.pipeline.errors import UserError, root_cause

LOOK_S = 5.0  # seconds between two looks at the nodes

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Follower:
    """Say what is to happen when the nodes of a cluster change.

    Attributes:
        check: gets the id of a node that joined. Raises UserError where the run cannot use the node.
        divide: gets the ids of the nodes to leave out. Returns the workers of each stage, by the name of its
            function, or None where the nodes that are left are too small for the plan.
        model: name of the stage whose workers are the model actors.
        note: gets what the user should know.
    """

    check: Callable[[str], None]
    divide: Callable[[frozenset[str]], Mapping[str, int] | None]
    model: str
    note: Note


@contextlib.contextmanager
def following_nodes(follower: Follower) -> Iterator[None]:
    """Give the stages of the plan that runs in a block as many workers as the cluster has room for.

    Ray tells nobody that a node has joined, so a thread looks every LOOK_S seconds. A new node is checked
    before it counts. A node that is soon taken away counts no more: its actors finish what they have and get
    nothing new.
    """
    stop = threading.Event()
    nodes = _Nodes(follower)

    def look() -> None:
        user_was_told = False
        while not stop.wait(LOOK_S):
            try:
                nodes.look()
            except Exception as error:  # a cluster that does not answer now: the next look may be luckier
                if not user_was_told:
                    user_was_told = True
                    follower.note(f"cannot see which nodes join and leave: {root_cause(error)}")

    thread = threading.Thread(target=look, daemon=True, name=NODES_THREAD)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LOOK_S)


class _Nodes:
    """Hold the nodes of the last look."""

    def __init__(self, follower: Follower):
        self.follower = follower
        self.names = _living_nodes()
        self.unusable: set[str] = set()
        self.leaving: set[str] = draining_nodes() & self.names.keys()
        self.workers: Mapping[str, int] = {}

    def look(self) -> None:
        """Look at the nodes, and divide the cluster anew where they are others than before."""
        names = _living_nodes()
        joined = names.keys() - self.names.keys()
        left = self.names.keys() - names.keys()
        leaving = draining_nodes() & names.keys()
        if not joined and not left and leaving == self.leaving:
            return
        news = [f"{self.names[node]} left" for node in left]
        news += [f"{names[node]} is being taken away" for node in leaving - self.leaving]
        for node in joined:
            news += self._check(node, names[node])
        self.names = names
        self.leaving = leaving
        self.unusable &= names.keys()
        without = frozenset(self.unusable | leaving)
        workers = self.follower.divide(without)
        RunningPlan.resize(workers or {}, self.unusable)
        for line in news:
            self.follower.note(f"{line}: {_told(workers, self.follower.model)}")

    def _check(self, node: str, name: str) -> list[str]:
        """Check a node that joined. Return what to say of it."""
        try:
            self.follower.check(node)
        except UserError as error:
            self.unusable.add(node)
            self.follower.note(f"{name} joined, and is left alone: {error}")
            return []
        return [f"{name} joined"]


def _told(workers: Mapping[str, int] | None, model: str) -> str:
    if workers is None:
        return "the nodes that are left are too small for this run, which waits for more"
    count = workers[model]
    return "1 model actor now" if count == 1 else f"{count} model actors now"


def _living_nodes() -> dict[str, str]:
    """Return the living nodes that can work, by id, each with a name for messages."""
    return {node.id: f"node {node.name}" for node in living_nodes()}
