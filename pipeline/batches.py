"""A unit's patches through the model, a batch at a time; on a GPU one batch is copied while another is computed."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import numpy as np
import torch

from pipeline.errors import UserError

Answer = Callable[[torch.Tensor], dict[str, torch.Tensor]]  # (B, N, P*P*3) uint8 on the device -> what is asked for, row by row
SIZES = (64, 128, 256, 512)  # batches among which the fastest is looked for; a unit of 224 pixels has no more images
WORTH = 1.03  # a larger batch must be so much faster, for it takes more memory
UNITS = 2  # that a GPU's actor has under way: while one is taken in or given out, batches of the other are computed
AHEAD = 2  # batches of a unit that are copied or computed at a time


class InTurn:
    """On a CPU: one batch after the other, each a view of the unit, of which nothing is copied."""

    def __init__(self, answer: Answer, shape: tuple[int, int], device: str, batch_size: int):
        self.answer, self.batch_size = answer, batch_size

    def __call__(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (M, N, P*P*3) -> the answer's arrays of M rows; nothing for M = 0."""
        parts = [self.answer(torch.from_numpy(part)) for part in _parts(patches, self.batch_size)]
        return _joined([{name: values.numpy() for name, values in part.items()} for part in parts])


class Overlapped:
    """On a GPU: every batch in one shape, copied from pinned memory on a stream of its own, computed as a CUDA graph, and copied
    back without anyone waiting for it. Units may come from UNITS threads at once.

    batch_size: None finds the fastest, once. One for which memory is too small is halved, and the unit is done again; with a
    batch of one image that raises UserError.
    """

    def __init__(self, answer: Answer, shape: tuple[int, int], device: str, batch_size: int | None):
        self.answer, self.shape, self.device = answer, shape, torch.device(device)
        self.building = threading.Lock()
        self.lanes = self._fastest() if batch_size is None else self._fitting(batch_size)

    @property
    def batch_size(self) -> int:
        return self.lanes.size

    def __call__(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (M, N, P*P*3) -> the answer's arrays of M rows; nothing for M = 0."""
        while True:
            lanes = self.lanes
            try:
                return lanes.run(patches)
            except torch.OutOfMemoryError:
                with self.building:
                    if self.lanes is lanes:  # no other thread was here before
                        self.lanes = self._fitting(lanes.size // 2)

    def _fitting(self, size: int) -> "Lanes":
        while size:
            try:
                return Lanes(self.answer, self.shape, self.device, size)
            except torch.OutOfMemoryError:
                size //= 2
        raise UserError(
            f"the model does not fit into the memory of this {self.device.type} with a batch of one image: "
            "use --precision bf16, a smaller model, or a device with more memory"
        )

    def _fastest(self) -> "Lanes":
        best, rate = self._fitting(SIZES[0]), 0.0
        for size in SIZES:
            try:
                lanes = best if best.size == size else Lanes(self.answer, self.shape, self.device, size)
                faster = lanes.rate()
            except torch.OutOfMemoryError:
                break
            if faster < WORTH * rate:
                break
            best, rate = lanes, faster
        return best


class Lanes:
    """Buffers for the batches that are under way, all of one size; and the graphs that compute them, which share their memory."""

    def __init__(self, answer: Answer, shape: tuple[int, int], device: torch.device, size: int):
        self.size, self.streams = size, torch.get_device_module(device)
        self.copies, self.launching = self.streams.Stream(), threading.Lock()
        self.free: SimpleQueue[Lane] = SimpleQueue()
        pool = None
        for _ in range(UNITS * AHEAD):  # or a thread could wait for lanes that another one waits with
            lane = Lane(answer, (size, *shape), device, pool)
            pool = lane.pool
            self.free.put(lane)

    def run(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        answers, under_way = [], deque()
        for part in _parts(patches, self.size):
            if len(under_way) == AHEAD:
                answers.append(self._taken(under_way.popleft()))
            lane = self.free.get()
            under_way.append(lane)
            with self.launching:
                lane.start(part, self.copies)
        answers += [self._taken(lane) for lane in under_way]
        return _joined(answers)

    def _taken(self, lane: "Lane") -> dict[str, np.ndarray]:
        answer = lane.take()
        self.free.put(lane)
        return answer

    def rate(self, times: int = 4) -> float:
        """Images/s of the model alone."""
        lane = self.free.get()
        for count in (1, times):
            begin = time.perf_counter()
            for _ in range(count):
                lane.compute()
            self.streams.synchronize()
        self.free.put(lane)
        return times * self.size / (time.perf_counter() - begin)


class Lane:
    """The way of one batch: pinned memory, the device's, and pinned memory for what comes back."""

    def __init__(self, answer: Answer, shape: tuple[int, int, int], device: torch.device, pool: object):
        self.streams, self.answer = torch.get_device_module(device), answer
        cuda = device.type == "cuda"
        pinned, sleeping = {"pin_memory": cuda}, {"blocking": True} if cuda else {}  # who waits takes no core from the decoders
        self.host = torch.zeros(shape, dtype=torch.uint8, **pinned)
        self.input = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.copied, self.done = self.streams.Event(), self.streams.Event(**sleeping)
        self.graph, self.pool, self.rows = None, None, 0
        self.output = self._captured(pool) if cuda else answer(self.input)
        self.results = {name: torch.empty(values.shape, dtype=values.dtype, **pinned) for name, values in self.output.items()}

    def _captured(self, pool: object) -> dict[str, torch.Tensor]:
        aside = self.streams.Stream()
        aside.wait_stream(self.streams.current_stream())
        with self.streams.stream(aside):
            for _ in range(3):  # libraries make their workspaces and choose their kernels before a graph may be recorded
                self.answer(self.input)
        self.streams.current_stream().wait_stream(aside)
        self.graph = self.streams.CUDAGraph()
        with self.streams.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            output = self.answer(self.input)
        self.pool = self.graph.pool()  # the next lane's graph uses this one's memory: they run one after the other
        return output

    def start(self, patches: np.ndarray, copies: "torch.Stream") -> None:
        """Begin to copy and to compute, and return; rows behind those of the patches are whatever was there before."""
        self.rows = len(patches)
        self.host[: self.rows].copy_(torch.from_numpy(patches))
        with self.streams.stream(copies):
            self.input[: self.rows].copy_(self.host[: self.rows], non_blocking=True)
            self.copied.record()
        self.copied.wait()
        self.compute()
        for name, values in self.output.items():
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


def _parts(patches: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (patches[at : at + size] for at in range(0, len(patches), size))


def _joined(answers: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]} if answers else {}
