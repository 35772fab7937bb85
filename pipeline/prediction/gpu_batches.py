"""Run a unit's patches through the model, a batch at a time: one batch after the other, or on a GPU with several under way.

Which of these ways a GPU takes is decided by pipeline/prediction/gpu_modes.py.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import numpy as np
import torch

Answer = Callable[
    [torch.Tensor], dict[str, torch.Tensor]
]  # (B, N, P*P*3) uint8 on the device -> what is asked for, row by row

UNITS = 2  # that a GPU's actor has under way: while one is taken in or given out, batches of the other are computed
AHEAD = 2  # batches of a unit that are copied or computed at a time


class Plain:
    """Run one batch after the other. On a CPU each is a view of the unit, of which nothing is copied."""

    mode = "plain"

    def __init__(self, answer: Answer, shape: tuple[int, int], device: torch.device, size: int):
        """
        Args:
            answer: the model and what is asked of it.
            shape: (N, P*P*3) of an image.
            device: where `answer` computes.
            size: images in a batch.
        """
        self.answer, self.shape, self.device, self.batch_size = answer, shape, device, size

    def __call__(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (M, N, P*P*3) -> the answer's arrays of M rows; nothing for M = 0."""
        return _joined([self._one(part) for part in _parts(patches, self.batch_size)])

    def _one(self, part: np.ndarray) -> dict[str, np.ndarray]:
        answer = self.answer(torch.from_numpy(part).to(self.device))
        return {name: values.cpu().numpy() for name, values in answer.items()}

    def rate(self, times: int = 4) -> float:
        """Measure images/s, copies included."""
        batch = np.zeros((self.batch_size, *self.shape), np.uint8)
        self(batch)  # warm
        begin = time.perf_counter()
        for _ in range(times):
            self(batch)
        return times * self.batch_size / (time.perf_counter() - begin)

    def close(self) -> None:
        """Nothing is held."""


class Lanes:
    """Run a unit with AHEAD batches under way: while one is computed, the next is copied.

    Every batch has the same size, and every lane buffers of its own. With graphs, the lanes' graphs share the memory of their
    intermediate results: all are launched on one stream, one after the other.
    """

    def __init__(self, answer: Answer, shape: tuple[int, int], device: torch.device, size: int, graphs: bool):
        self.mode = "graphs" if graphs else "overlap"
        self.batch_size, self.backend = size, torch.get_device_module(device)
        self.copies, self.launching = self.backend.Stream(), threading.Lock()
        # Of their own: cuBLAS keeps a workspace for a stream, and torch 2.11 to 2.14 may free it with any graph that was captured
        # there.
        captures = self.backend.Stream() if graphs else None
        self.free: SimpleQueue[Lane] = SimpleQueue()
        self.lanes: list[Lane] = []
        for _ in range(UNITS * AHEAD):  # or a thread could wait for lanes that another one waits with
            pool = self.lanes[0].pool if self.lanes else None
            self.lanes.append(Lane(answer, (size, *shape), device, captures, pool))
            self.free.put(self.lanes[-1])
        self.backend.synchronize()  # the buffers are filled; a copy on another stream could come before that

    def __call__(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (M, N, P*P*3) -> the answer's arrays of M rows; nothing for M = 0."""
        answers, under_way = [], deque()
        for part in _parts(patches, self.batch_size):
            if len(under_way) == AHEAD:
                answers.append(self._taken(under_way.popleft()))
            lane = self.free.get()
            under_way.append(lane)
            lane.fill(part)
            with self.launching:
                lane.start(self.copies)
        answers += [self._taken(lane) for lane in under_way]
        return _joined(answers)

    def _taken(self, lane: "Lane") -> dict[str, np.ndarray]:
        answer = lane.take()
        self.free.put(lane)
        return answer

    def rate(self, times: int = 4) -> float:
        """Measure images/s of the model alone."""
        lane = self.free.get()
        for count in (1, times):
            begin = time.perf_counter()
            for _ in range(count):
                lane.compute()
            self.backend.synchronize()
        self.free.put(lane)
        return times * self.batch_size / (time.perf_counter() - begin)

    def close(self) -> None:
        """Give up the buffers, once nothing on the device uses them."""
        with contextlib.suppress(Exception):  # a device that is lost says so at the next call
            self.backend.synchronize()
        for lane in self.lanes:
            lane.close()
        self.lanes.clear()


class Lane:
    """Carry one batch at a time: through pinned memory, the device's memory, the model, and pinned memory for what comes back."""

    def __init__(
        self,
        answer: Answer,
        shape: tuple[int, int, int],
        device: torch.device,
        captures: "torch.Stream | None",
        pool: object,
    ):
        """
        Args:
            answer: the model and what is asked of it.
            shape: (B, N, P*P*3) of a batch.
            device: where `answer` computes.
            captures: the stream on which a graph is captured; None launches every kernel by itself.
            pool: the memory of an earlier lane's graph.
        """
        self.backend, self.answer = torch.get_device_module(device), answer
        self.pins = device.type != "cpu"  # only memory that is pinned is copied while something else goes on
        self.host = self._pinned(torch.zeros(shape, dtype=torch.uint8))
        self.input = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.copied = self.backend.Event()
        self.done = (
            self.backend.Event(blocking=True) if self.pins else self.backend.Event()
        )  # a wait takes no core from decoders
        self.graph, self.pool, self.rows = None, None, 0
        self.output = answer(self.input) if captures is None else self._captured(captures, pool)
        self.results = {
            name: self._pinned(torch.empty(one.shape, dtype=one.dtype)) for name, one in self.output.items()
        }

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self.pins else tensor

    def _captured(self, captures: "torch.Stream", pool: object) -> dict[str, torch.Tensor]:
        current = self.backend.current_stream()
        captures.wait_stream(current)
        with self.backend.stream(captures):
            for _ in range(
                3
            ):  # libraries make their workspaces and choose their kernels before a graph may be recorded
                self.answer(self.input)
        current.wait_stream(captures)
        self.graph = self.backend.CUDAGraph()
        recording = self.backend.graph(
            self.graph, pool=pool, stream=captures, capture_error_mode="thread_local"
        )
        with (
            self.backend.stream(current),
            recording,
        ):  # a capture that fails may leave its stream behind: this takes it back
            output = self.answer(self.input)
        self.pool = (
            self.graph.pool()
        )  # the next lane's graph uses this one's memory: they run one after the other
        return output

    def fill(self, patches: np.ndarray) -> None:
        """Take a batch in; rows behind those of the patches are whatever was there before."""
        self.rows = len(patches)
        self.host[: self.rows].copy_(torch.from_numpy(patches))

    def start(self, copies: "torch.Stream") -> None:
        """Begin to copy and to compute, and return."""
        with self.backend.stream(copies):
            self.input[: self.rows].copy_(self.host[: self.rows], non_blocking=True)
            self.copied.record()
        self.copied.wait()
        self.compute()
        for (
            name,
            values,
        ) in self.output.items():  # on the stream of the model, so that no other replay comes between
            self.results[name].copy_(values, non_blocking=True)
        self.done.record()

    def compute(self) -> None:
        if self.graph is None:
            self.output = self.answer(self.input)
        else:
            self.graph.replay()

    def take(self) -> dict[str, np.ndarray]:
        """Wait for it; the arrays are the caller's."""
        self.done.synchronize()
        return {name: values[: self.rows].numpy().copy() for name, values in self.results.items()}

    def close(self) -> None:
        """Give up the buffers and the graph."""
        self.host = self.input = self.graph = self.pool = None
        self.output, self.results = {}, {}


def _parts(patches: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (patches[at : at + size] for at in range(0, len(patches), size))


def _joined(answers: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return (
        {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]} if answers else {}
    )
