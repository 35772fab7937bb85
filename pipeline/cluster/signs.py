"""Hear from workers while units are under way: how far each is, and which stores do not answer.

Receipts come only with whole units. A worker leaves a note in the cluster's own store, at most two a second,
and each replaces the note before. The driver reads the notes of all workers with two requests.
"""

import contextlib
import json
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Protocol

from wordsworth.pipeline.cluster.nodes import CORES
from wordsworth.pipeline.cluster.ray_internals import find_notes, leave_note, remove_notes

KEY = "wordsworth-sign:"  # and the ids of a job and a node, and a process: the key of a worker's note
LEAST_INTERVAL_S = 0.5  # seconds between two notes of a worker, at least
CPUS_PER_SECOND = (
    50  # CPUs of a cluster for a second more between two notes: the store gets 50 notes a second
)
MOST_INTERVAL_S = 60.0
TROUBLE_AFTER_S = 2.0  # seconds that a call waits for a store before anybody hears of it
TROUBLE_EVERY_S = 5.0  # seconds between two notes of a worker about stores
LOOK_TIMEOUT_S = 5.0  # seconds that the driver waits for the cluster's store


@dataclass(frozen=True, kw_only=True)
class UnitSign:
    """Say how far a worker is with a unit.

    Attributes:
        stage: "decode" or "predict".
        unit: name of the unit: the stem of its file.
        share: part of the unit's images that the stage has done, from 0 to 1.
        rows: images of the unit.
        size_bytes: bytes of the source that the unit took.
        seconds: seconds that the stage took for them so far.
    """

    stage: str
    unit: str
    share: float
    rows: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StoreTries:
    """Say how often a worker had to ask a store again.

    Attributes:
        tries: since the worker started.
        waited_s: seconds that its last call had waited.
        said: what the last try failed of.
    """

    tries: int
    waited_s: float
    said: str


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Hold the last note of one worker.

    Attributes:
        node: name of the worker's node.
        pid: id of the worker's process.
        number: how many notes the worker has left.
        unit: how far it is with a unit; None before its first one.
        stores: how often it asked a store again, by the store's address.
    """

    node: str
    pid: int
    number: int
    unit: UnitSign | None = None
    stores: dict[str, StoreTries] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of the note."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Sign":
        """Return the sign of a note."""
        told = json.loads(text)
        unit = told.pop("unit")
        stores = {address: StoreTries(**tries) for address, tries in told.pop("stores").items()}
        return cls(**told, unit=UnitSign(**unit) if unit else None, stores=stores)


# ---- in a worker ------------------------------------------------------------------------------------------


class StoreTrouble(Protocol):
    """Say that a store is asked again, as `pipeline.storage.patience.Trouble` does."""

    @property
    def address(self) -> str: ...

    @property
    def waited_s(self) -> float: ...

    @property
    def said(self) -> str: ...


class UnitUnderWay:
    """Tell the driver now and then how far this process is with a unit."""

    def __init__(self, stage: str, unit: str, rows: int, size_bytes: int):
        self.stage = stage
        self.unit = unit
        self.rows = rows
        self.size_bytes = size_bytes
        self.began = time.perf_counter()
        self.done = 0

    def reached(self, num_done: int, num_all: int) -> None:
        """Say how many images of the unit are done, of those that the stage has to do."""
        if _worker.is_due():
            seconds = time.perf_counter() - self.began
            _worker.unit = UnitSign(
                stage=self.stage,
                unit=self.unit,
                share=round(num_done / max(1, num_all), 4),
                rows=self.rows,
                size_bytes=self.size_bytes,
                seconds=round(seconds, 3),
            )
            _worker.leave()


def hear_store(trouble: StoreTrouble) -> None:
    """Let the driver hear of a store that this process has to ask again: for `patience.hearing_trouble`."""
    _worker.hear(trouble)


class _Worker:
    """Hold what this process tells the driver."""

    def __init__(self) -> None:
        self.interval_s: float | None = None
        self.last = 0.0  # when the last note was left
        self.last_of_stores = 0.0
        self.number = 0
        self.unit: UnitSign | None = None
        self.stores: dict[str, StoreTries] = {}
        self.lock = threading.Lock()

    def is_due(self) -> bool:
        """Tell whether enough time has passed for another note."""
        return time.monotonic() - self.last >= (self.interval_s or LEAST_INTERVAL_S)

    def hear(self, trouble: StoreTrouble) -> None:
        """Count a try that failed, and tell the driver of a call that has waited for a while."""
        with self.lock:
            before = self.stores.get(trouble.address)
            self.stores[trouble.address] = StoreTries(
                tries=1 + (before.tries if before else 0),
                waited_s=round(trouble.waited_s, 1),
                said=trouble.said[:300],
            )
        now = time.monotonic()
        if trouble.waited_s >= TROUBLE_AFTER_S and now - self.last_of_stores >= TROUBLE_EVERY_S:
            self.last_of_stores = now
            self.leave()

    def leave(self) -> None:
        """Leave the note. Without a cluster nobody wants to know."""
        import ray

        self.last = time.monotonic()
        if not ray.is_initialized():
            return
        with contextlib.suppress(Exception):  # a cluster that is short of breath is no reason to fail a unit
            if self.interval_s is None:
                self.interval_s = interval_s(ray.cluster_resources().get("CPU", 0))
            with self.lock:
                self.number += 1
                stores = dict(self.stores)
            sign = Sign(
                node=platform.node(), pid=os.getpid(), number=self.number, unit=self.unit, stores=stores
            )
            node_id = ray.get_runtime_context().get_node_id()
            leave_note(_prefix() + f"{node_id}:{os.getpid()}".encode(), sign.to_json())


def interval_s(num_cpus: float) -> float:
    """Return the seconds between two notes of a worker, and between two looks of the driver, on a cluster."""
    return min(MOST_INTERVAL_S, max(LEAST_INTERVAL_S, num_cpus / CPUS_PER_SECOND))


_worker = _Worker()


def place_on_cluster() -> str:
    """Return where this process is, for the end of a message; "" on a Ray of one machine alone."""
    import ray

    if not ray.is_initialized() or CORES in ray.cluster_resources():
        return ""
    return f" (node {platform.node()}, pid {os.getpid()})"


# ---- in the driver ----------------------------------------------------------------------------------------


def find_signs() -> dict[bytes, Sign]:
    """Return the last note of every worker of this job, by the worker's key."""
    return {key: Sign.from_json(text) for key, text in find_notes(_prefix(), LOOK_TIMEOUT_S).items()}


def look_every_s() -> float:
    """Return the seconds between two looks at the signs; many for a cluster that does not answer."""
    import ray

    try:
        return interval_s(ray.cluster_resources().get("CPU", 0))
    except Exception:
        return MOST_INTERVAL_S


def remove_signs() -> None:
    """Remove the notes of this job."""
    remove_notes(_prefix(), LOOK_TIMEOUT_S)


def _prefix() -> bytes:
    import ray

    return f"{KEY}{ray.get_runtime_context().get_job_id()}:".encode()
