"""Wait until a cluster has what a run needs, and ask its autoscaler for it.

What is asked for is a placement group that nobody uses: the autoscaler sees it wait and starts nodes for it,
keeps idle nodes that it needs, and Ray removes it when the job ends, however it ends. A request by
`ray.autoscaler.sdk.request_resources` would outlive a killed command, and Ray Data overwrites it.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from wordsworth.pipeline.cluster.address import address_of
from wordsworth.pipeline.cluster.claims import GiB, NoRoom
from wordsworth.pipeline.cluster.nodes import Room, see_room
from wordsworth.pipeline.cluster.ray_internals import AutoscalerState, autoscaler_state
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.errors import UserError

LINE_S = 10.0  # seconds between two lines for the user
LOOK_S = 1.0  # seconds between two looks at the cluster
DECISION_S = 20.0  # seconds in which an autoscaler must have said whether it can add what is asked for
ROUNDS = 2  # rounds after which the second autoscaler has seen what is asked for
MAX_BUNDLES = 1000  # bundles of one resource in a request

Bundles = Sequence[Mapping[str, float]]
Note = Callable[[str], None]
T = TypeVar("T")


def wait_for_shape(cluster: ClusterRequest, note: Note) -> None:
    """Wait until a cluster that was joined has what --wait-for names, and a CPU.

    A head without CPUs whose workers are still to come is waited for without --wait-for too.

    Args:
        cluster: what the command asks of the cluster.
        note: gets a line every LINE_S seconds.

    Raises:
        UserError: the cluster has too little after --wait-timeout.
    """
    wanted = dict(cluster.wait_for)
    if not _there({"CPU": 1})["CPU"]:
        wanted.setdefault("CPU", 1)
    if wanted and _lacks(wanted):
        bundles = missing_bundles(wanted, _there(wanted), _free(wanted))
        _wait(
            lambda: None if _lacks(wanted) else wanted,
            lambda: f"{_told(wanted)}: {_told_there(wanted)}",
            lambda seconds, autoscaler: UserError(
                f"the cluster has {_told_there(wanted)} after {seconds:,.0f} s (--wait-timeout)"
                f"{autoscaler}: start more nodes, look at ray status, or ask for less with --wait-for"
            ),
            [(bundles, {})],
            cluster,
            note,
        )


def wait_for_room(plan: Callable[[Room], T], cluster: ClusterRequest, note: Note) -> T:
    """Return a plan as soon as the cluster has room for it.

    Waits where waiting can help: the cluster's autoscaler can add nodes, other jobs hold what is missing, or
    the cluster has no CPU or no GPU at all yet.

    Args:
        plan: makes the plan from what the cluster has; raises NoRoom where that is too little.
        cluster: what the command asks of the cluster.
        note: gets a line every LINE_S seconds.

    Raises:
        NoRoom: waiting cannot help, or there is no room after --wait-timeout.
    """
    room = see_room(cluster)
    try:
        made = plan(room)
    except NoRoom as refusal:
        if not can_come(room, refusal):
            raise
        first = refusal
    else:
        if room.other_jobs:
            note(
                f"other jobs hold {room.taken} of this cluster: this run plans with the rest "
                "(--share 0.5 of each job divides a cluster)"
            )
        return made
    last = [(first, room)]

    def look() -> T | None:
        room = see_room(cluster)
        try:
            return plan(room)
        except NoRoom as refusal:
            last[0] = (refusal, room)
            return None

    def lacking() -> str:
        refusal, room = last[0]
        return f"{refusal.lacking}: " + (f"other jobs hold {room.taken}" if room.taken else _seen(room))

    def refuse(seconds: float, autoscaler: str) -> UserError:
        refusal, _ = last[0]
        waited = f"waited {seconds:,.0f} s, --wait-timeout{autoscaler}"
        return NoRoom(f"{refusal} ({waited})", refusal.lacking)

    return _wait(look, lacking, refuse, [(first.wanted, first.selector)], cluster, note)


def can_come(room: Room, refusal: NoRoom) -> bool:
    """Tell whether waiting can help against a refusal."""
    if not address_of(room.cluster):
        return False
    wants_gpu = any("GPU" in bundle for bundle in refusal.wanted)
    has_none = not room.total("CPU") or (wants_gpu and not room.total("GPU"))
    return bool(room.other_jobs) or has_none or autoscaler_state() is not None


def scales_to_gpus(cluster: ClusterRequest, note: Note) -> bool:
    """Tell whether the autoscaler of a cluster without GPUs adds one on request. Asks it, for some seconds.

    No cluster tells what nodes it could have. The second autoscaler says within a round that it cannot add
    what is asked for; of the first one only the nodes can be seen that it starts.
    """
    before = autoscaler_state() if address_of(cluster) else None
    if before is None:
        return False
    begun = time.monotonic()
    with asked_for([{"GPU": 1}], cluster.predict_on):
        while time.monotonic() - begun < DECISION_S:
            time.sleep(LOOK_S)  # the autoscaler thinks in rounds of seconds
            state = autoscaler_state() or before
            if _there({"GPU": 1})["GPU"]:
                return True
            if before.version and state.version >= before.version + ROUNDS:
                return not _is_refused([{"GPU": 1}], state)
            if not before.version and state.launching > before.launching:
                return True
    note("the autoscaler of this cluster adds no GPU: this run is for CPUs")
    return False


@contextlib.contextmanager
def asked_for(bundles: Bundles, selector: Mapping[str, str] | None = None) -> Iterator[None]:
    """Ask the autoscaler for bundles of resources for the length of a block.

    Args:
        bundles: each fits on one node.
        selector: labels of their nodes.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    if not bundles:
        yield
        return
    selectors = [dict(selector)] * len(bundles) if selector else None
    group = placement_group([dict(bundle) for bundle in bundles], bundle_label_selector=selectors)
    try:
        yield
    finally:
        remove_placement_group(group)


def missing_bundles(
    wanted: Mapping[str, float], there: Mapping[str, float], free: Mapping[str, float]
) -> list[dict[str, float]]:
    """Return the bundles for which an autoscaler adds as much as is missing.

    A request is met by what is free first, so that comes on top of what is missing.

    Args:
        wanted: amounts by Ray's names.
        there: what the cluster has.
        free: what nobody claims at this moment.
    """
    bundles = []
    for name, amount in wanted.items():
        if there[name] >= amount:
            continue
        asked = amount - there[name] + free[name]
        size = max(_unit(name), math.ceil(asked / _unit(name) / MAX_BUNDLES) * _unit(name))
        count, rest = divmod(asked, size)
        bundles += [{name: size}] * int(count)
        if rest:
            bundles.append({name: rest})
    return bundles


def _unit(name: str) -> float:
    """Return the amount of a resource that every node has which has the resource at all."""
    return GiB if name in ("memory", "object_store_memory") else 1.0


def _wait(
    look: Callable[[], T | None],
    lacking: Callable[[], str],
    refuse: Callable[[float, str], UserError],
    wanted: Sequence[tuple[Bundles, Mapping[str, str]]],
    cluster: ClusterRequest,
    note: Note,
) -> T:
    """Ask for bundles, and look until something is there.

    Args:
        look: returns what is waited for; None where it is not there yet.
        lacking: says what is missing.
        refuse: returns what to raise after so many seconds, with what the autoscaler does.
        wanted: bundles, and the labels of their nodes.
        cluster: its timeout counts.
        note: gets the lines.
    """
    begun = time.monotonic()
    next_line = 0.0
    with contextlib.ExitStack() as asked:
        for bundles, selector in wanted:
            asked.enter_context(asked_for(bundles, selector))
        while True:
            found = look()
            seconds = time.monotonic() - begun
            if found is not None:
                note(f"it is there after {seconds:,.0f} s")
                return found
            if seconds > cluster.wait_timeout:
                raise refuse(seconds, _autoscaler(wanted))
            if seconds >= next_line:
                next_line += LINE_S
                left = f"{seconds:,.0f} of {cluster.wait_timeout:,.0f} s"
                note(f"waiting for {lacking()}{_autoscaler(wanted)} ({left})")
            time.sleep(min(LOOK_S, cluster.wait_timeout / 4))  # nothing tells when a node is there


def _autoscaler(wanted: Sequence[tuple[Bundles, Mapping[str, str]]]) -> str:
    """Return what the autoscaler does about what is wanted, for a line."""
    state = autoscaler_state()
    if state is None:
        return ", and this cluster has no autoscaler"
    if any(_is_refused(bundles, state) for bundles, _ in wanted):
        return ", and its autoscaler says that it cannot add it"
    if state.launching:
        return f", and its autoscaler starts {state.launching} nodes"
    return ", and its autoscaler was asked"


def _is_refused(bundles: Bundles, state: AutoscalerState) -> bool:
    return any(dict(bundle) in state.refused for bundle in bundles)


# ---- what is there ----------------------------------------------------------------------------------------


def _there(wanted: Mapping[str, float]) -> dict[str, float]:
    """Return the amounts of resources that the cluster has."""
    import ray

    whole = ray.cluster_resources()
    return {name: whole.get(name, 0.0) for name in wanted}


def _free(wanted: Mapping[str, float]) -> dict[str, float]:
    import ray

    free = ray.available_resources()
    return {name: free.get(name, 0.0) for name in wanted}


def _lacks(wanted: Mapping[str, float]) -> bool:
    there = _there(wanted)
    return any(there[name] < amount for name, amount in wanted.items())


def _told(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in amounts.items())


def _told_there(wanted: Mapping[str, float]) -> str:
    there = _there(wanted)
    return " and ".join(f"{there[name]:g} of {amount:g} {name}" for name, amount in wanted.items())


def _seen(room: Room) -> str:
    """Return what a cluster has, for a line."""
    nodes = "1 node has" if len(room.nodes) == 1 else f"{len(room.nodes)} nodes have"
    return f"{nodes} {room.total('CPU'):g} CPUs and {room.total('GPU'):g} GPUs"
