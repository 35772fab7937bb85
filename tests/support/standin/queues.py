"""Run the queues of the stand-in GPU: streams, events, memory and graphs, and their faults."""

import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch


@dataclass
class Faults:
    """Say what goes wrong and when.

    A process of its own reads the faults from the file that the variable STANDIN names. A test sets them by
    hand.

    Attributes:
        policy: "late": nothing runs before somebody waits for it; "copies": side streams run at once and the
            main stream late; or a number, the seed of a random order.
        memory: bytes that can be allocated.
        lost_at: number of the wait at which the device is lost, counted from 1.
        once: a file; the device is lost only if the file is there, and the file is removed.
    """

    present: bool = True
    to_actors: bool = True  # False: an actor of Ray's finds none
    policy: str = "late"
    memory: int = 1 << 34
    bf16: bool = True
    why_absent: str = ""  # what torch says of a device that cannot be used
    capture_fails: str = ""  # "error": it raises; "lost": it takes the device with it
    pinning_fails: bool = False
    streams_fail: bool = False
    lost_at: int = 0
    once: str = ""
    # Waits count, and take time, in other threads than the main one: in an actor's calls, not in its start.
    in_calls: bool = False
    # After how many waits memory shrinks, and how many bytes are free from then on.
    memory_after: tuple[int, int] | None = None
    pace: float = 0.0  # seconds that a wait takes
    hold: str = ""  # a file; a wait that takes time takes at least as long as the file is there
    seen: str = ""  # a folder in which every process leaves a file
    node: str = ""  # Ray's name of the node of this process


class Device:
    """Hold the whole state of the device in this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reset(Faults())

    def reset(self, faults: Faults) -> None:
        """Start anew: nothing queued, nothing captured, nothing lost."""
        self.faults = faults
        self.allocated = self.peak = 0
        self.waits = 0
        self.waiting: set[int] = set()  # threads that wait now
        self.threads: set[int] = set()  # that ever waited
        self.together = 0  # the most that waited at a time
        self.lost = False
        self.default = Stream.__new__(Stream)
        self.default.tasks, self.default.side = deque(), False
        self.streams = [self.default]
        self.chance = random.Random(int(faults.policy)) if faults.policy.isdigit() else None
        self.local = threading.local()

    # ---- streams ----

    @property
    def stream(self) -> "Stream":
        return getattr(self.local, "stream", self.default)

    @property
    def graph(self) -> "Graph | None":
        """Return the graph that this thread captures."""
        return getattr(self.local, "graph", None)

    def check(self) -> None:
        if self.lost:
            raise torch.AcceleratorError("standin error: unspecified launch failure")
        if not self.faults.present:
            raise RuntimeError(self.faults.why_absent or "no stand-in device")

    def enqueue(self, run: Callable[[], None]) -> None:
        self.put(Task(run))

    def put(self, task: "Task") -> None:
        with self.lock:
            if self.graph is not None:
                self.graph.tasks.append(task)
                return
            self.stream.tasks.append(task)
            self.run_some()

    def run_some(self) -> None:
        """Run the tasks that the policy runs by now."""
        if self.faults.policy == "copies":
            for stream in self.streams:
                while stream.side and stream.tasks and stream.tasks[0].ready:
                    stream.run_next()
        elif self.chance:
            for _ in range(self.chance.randrange(4)):
                ready = [stream for stream in self.streams if stream.tasks and stream.tasks[0].ready]
                if not ready:
                    return
                self.chance.choice(ready).run_next()

    def wait(self) -> None:
        """Account for a thread that waits: a wait is forbidden during a capture, and a lost device shows
        at a wait."""
        if self.graph is not None:
            self.graph.broken = True
            raise RuntimeError("standin error: operation not permitted when stream is capturing")
        counts = not self.faults.in_calls or threading.current_thread() is not threading.main_thread()
        self.waits += counts
        if (
            self.faults.lost_at
            and self.waits >= self.faults.lost_at
            and (not self.faults.once or _taken(self.faults.once))
        ):
            self.lost = True
        self.check()
        if self.faults.memory_after and self.waits >= self.faults.memory_after[0]:
            self.faults.memory = self.allocated + self.faults.memory_after[1]
            self.faults.memory_after = None
        self._note_thread(threading.get_ident(), counts)

    def _note_thread(self, thread: int, takes_time: bool) -> None:
        """Leave in a file of this process its node, how many threads ever waited, and how many waited at a
        time; and take time."""
        if not self.faults.seen:
            return
        with self.lock:
            self.waiting.add(thread)
            self.threads.add(thread)
            self.together = max(self.together, len(self.waiting))
            said = {"threads": len(self.threads), "together": self.together, "node": self.faults.node}
            file = Path(self.faults.seen) / f"{os.getpid()}.json"
            new = file.with_suffix(f".{thread}")
            new.write_text(json.dumps(said))
            new.replace(file)
        if takes_time:
            time.sleep(self.faults.pace)
            while self.faults.hold and Path(self.faults.hold).exists():
                time.sleep(0.05)  # a file system tells nobody
        with self.lock:
            self.waiting.discard(thread)

    def synchronize(self) -> None:
        self.wait()
        with self.lock:
            for stream in self.streams:
                stream.drain()

    # ---- memory ----

    def allocate(self, raw: torch.Tensor) -> "Block":
        with self.lock:
            self.check()
            size = raw.untyped_storage().nbytes()
            if self.allocated + size > self.faults.memory:
                raise torch.OutOfMemoryError(f"standin out of memory. Tried to allocate {size} bytes")
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
            return Block(raw, size, self.stream, self.graph)


def _taken(path: str) -> bool:
    try:
        Path(path).unlink()
    except FileNotFoundError:
        return False
    return True


class Task:
    """Hold an operation of a stream; `after` is what the operation waits for."""

    def __init__(self, run: Callable[[], None] | None = None, after: "Mark | None" = None):
        self.run, self.after = run, after

    @property
    def ready(self) -> bool:
        return self.after is None or self.after.done


class Mark:
    """Mark a place in a stream that an event stands for."""

    def __init__(self, stream: "Stream"):
        self.stream, self.done = stream, False

    def reach(self) -> None:
        while not self.done:
            self.stream.run_next()

    def set(self) -> None:
        self.done = True


class Stream:
    """Imitate torch.cuda.Stream."""

    def __init__(self, *_: Any, **__: Any):
        DEVICE.check()
        if DEVICE.faults.streams_fail:
            raise RuntimeError("standin error: no stream can be made")
        self.tasks: deque[Task] = deque()
        self.side = True
        DEVICE.streams.append(self)

    def run_next(self) -> None:
        if not self.tasks:
            raise RuntimeError("waits for something that was never begun")
        task = self.tasks[0]
        if task.after is not None:
            task.after.reach()
        self.tasks.popleft()
        if task.run is not None:
            task.run()

    def drain(self) -> None:
        while self.tasks:
            self.run_next()

    def synchronize(self) -> None:
        DEVICE.wait()
        with DEVICE.lock:
            self.drain()

    def wait_event(self, event: "Event") -> None:
        event.wait(self)

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event


class Event:
    """Imitate torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False):
        DEVICE.check()
        self.mark: Mark | None = None

    def record(self, stream: Stream | None = None) -> None:
        DEVICE.check()
        if DEVICE.graph is not None:
            return  # events within a capture order what is captured, and that is one stream here
        stream = stream or DEVICE.stream
        with DEVICE.lock, using(stream):
            self.mark = Mark(stream)
            DEVICE.enqueue(self.mark.set)

    def wait(self, stream: Stream | None = None) -> None:
        DEVICE.check()
        if self.mark is not None:  # as in CUDA, an event that was not recorded is nothing to wait for
            with DEVICE.lock, using(stream or DEVICE.stream):
                DEVICE.put(Task(after=self.mark))

    def synchronize(self) -> None:
        DEVICE.wait()
        with DEVICE.lock:
            if self.mark is not None:
                self.mark.reach()

    def query(self) -> bool:
        return self.mark is None or self.mark.done


@contextmanager
def using(stream: Stream) -> Iterator[None]:
    before = DEVICE.stream
    DEVICE.local.stream = stream
    try:
        yield
    finally:
        DEVICE.local.stream = before


# ---- memory ------------------------------------------------------------------------------------------------


class Block:
    """Hold an allocation. As long as any tensor refers to it, no other tensor gets its memory."""

    def __init__(self, raw: torch.Tensor, size: int, stream: Stream, graph: "Graph | None"):
        self.raw, self.size, self.stream, self.graph = raw, size, stream, graph
        if graph is not None:
            graph.blocks.append(raw)

    def __del__(self) -> None:
        with DEVICE.lock:
            DEVICE.allocated -= self.size
            overwrite = Task(partial(_overwrite, self.raw))
            if self.graph is not None and self.graph.capturing:
                self.graph.tasks.append(overwrite)  # what the graph allocates next may lie here
                self.graph.blocks = [raw for raw in self.graph.blocks if raw is not self.raw]
            elif self.graph is None:
                self.stream.tasks.append(overwrite)


def _overwrite(raw: torch.Tensor) -> None:
    raw.untyped_storage().fill_(0x5B)  # as a float and as an integer a number that no test expects


# ---- graphs ------------------------------------------------------------------------------------------------


class Graph:
    """Imitate torch.cuda.CUDAGraph."""

    pools: ClassVar[dict[int, list["Graph"]]] = {}  # graphs by pool, in the order of their capture

    def __init__(self) -> None:
        DEVICE.check()
        self.tasks: list[Task] = []
        self.blocks: list[torch.Tensor] = []  # memory that was not freed when the capture ended
        self.capturing = self.captured = self.broken = False
        self.number = id(self)

    def pool(self) -> int:
        return self.number

    def replay(self) -> None:
        if not self.captured:
            raise RuntimeError("a graph that was not captured cannot be replayed")
        DEVICE.check()
        mine = Graph.pools[self.number]
        for later in mine[mine.index(self) + 1 :]:
            for raw in later.blocks:
                DEVICE.enqueue(partial(_overwrite, raw))
        for task in self.tasks:
            DEVICE.enqueue(task.run)

    def reset(self) -> None:
        self.tasks, self.blocks, self.captured = [], [], False


class graph:
    """Imitate torch.cuda.graph."""

    def __init__(
        self,
        cuda_graph: Graph,
        pool: int | None = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ):
        self.graph, self.pool, self.stream = cuda_graph, pool, stream or Stream()

    def __enter__(self) -> None:
        DEVICE.synchronize()  # as torch's does
        if DEVICE.faults.capture_fails:
            DEVICE.lost = DEVICE.faults.capture_fails == "lost"
            DEVICE.check()
            raise RuntimeError("standin error: operation failed due to a previous error during capture")
        self.graph.number = self.graph.number if self.pool is None else self.pool
        Graph.pools.setdefault(self.graph.number, []).append(self.graph)
        self.graph.capturing = True
        self.before = DEVICE.stream
        DEVICE.local.stream, DEVICE.local.graph = self.stream, self.graph

    def __exit__(self, *exception: Any) -> None:
        DEVICE.local.graph = None
        self.graph.capturing = False
        if self.graph.broken:
            raise RuntimeError(
                "standin error: operation failed due to a previous error during capture"
            )  # and the stream stays
        DEVICE.local.stream = self.before
        self.graph.captured = exception[0] is None


DEVICE = Device()
DEVICE.reset(Faults(present=False))
