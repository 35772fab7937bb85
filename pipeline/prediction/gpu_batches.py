"""Run a unit's patches through the model: one batch after the other, or on a GPU with several under way.

pipeline/prediction/gpu_modes.py decides which of the two a GPU gets.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

# The model and what is asked of the model: uint8 patches (B, N, P*P*3) on the device -> tensors of B rows, by
# name.
Forward = Callable[[torch.Tensor], dict[str, torch.Tensor]]

UNITS_IN_FLIGHT = 2  # units that a GPU's actor has: while one is taken in or given out, the other is computed
BATCHES_IN_FLIGHT = 2  # batches of a unit that are copied or computed at a time
WARM_UPS = 3  # forward passes before a capture, in which libraries make workspaces and choose kernels


class SequentialBatches:
    """Run one batch after the other. On a CPU each batch is a view of the unit, of which nothing is
    copied."""

    mode = "plain"

    def __init__(self, forward: Forward, shape: tuple[int, int], device: torch.device, size: int):
        """Keep the arguments.

        Args:
            forward: the model and what is asked of the model.
            shape: (N, P*P*3) of an image.
            device: where `forward` computes.
            size: images in a batch.
        """
        self.forward = forward
        self.shape = shape
        self.device = device
        self.batch_size = size
        self.done: Callable[[int], None] = lambda num_images: None  # called after each batch

    def __call__(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of M rows for uint8 patches (M, N, P*P*3); nothing for M = 0."""
        outputs = []
        for part in _parts(patches, self.batch_size):
            outputs.append(self._run(part))
            self.done(len(part))
        return joined(outputs)

    def _run(self, part: np.ndarray) -> dict[str, np.ndarray]:
        output = self.forward(torch.from_numpy(part).to(self.device))
        return {name: values.cpu().numpy() for name, values in output.items()}

    def rate(self, times: int = 4) -> float:
        """Measure images/s, copies included."""
        batch = np.zeros((self.batch_size, *self.shape), np.uint8)
        self(batch)  # warm
        begin = time.perf_counter()
        for _ in range(times):
            self(batch)
        return times * self.batch_size / (time.perf_counter() - begin)

    def close(self) -> None:
        """Do nothing: nothing is held."""


class OverlappedBatches:
    """Run a unit with BATCHES_IN_FLIGHT batches under way: while one is computed, the next is copied.

    Every batch has the same size, and every slot has buffers of its own. With graphs, the slots' graphs share
    the memory of their intermediate results: all graphs are launched on one stream, one after the other.
    """

    def __init__(
        self, forward: Forward, shape: tuple[int, int], device: torch.device, size: int, graphs: bool
    ):
        """Make the buffers, and compute a batch in each.

        Args:
            forward: the model and what is asked of the model.
            shape: (N, P*P*3) of an image.
            device: where `forward` computes.
            size: images in a batch.
            graphs: launch each forward pass as a CUDA graph.
        """
        self.mode = "graphs" if graphs else "overlap"
        self.batch_size = size
        self.backend = torch.get_device_module(device)
        self.copies = self.backend.Stream()
        self.launching = threading.Lock()
        # Captures have a stream of their own: cuBLAS keeps a workspace for a stream, and torch 2.11 to 2.14
        # may free that workspace with any graph that was captured on the stream.
        captures = self.backend.Stream() if graphs else None
        self.free: SimpleQueue[BatchSlot] = SimpleQueue()
        self.slots: list[BatchSlot] = []
        # With fewer slots a thread could wait for slots that another thread waits with.
        for _ in range(UNITS_IN_FLIGHT * BATCHES_IN_FLIGHT):
            pool = self.slots[0].pool if self.slots else None
            slot = BatchSlot(forward, (size, *shape), device, captures, pool)
            self.slots.append(slot)
            self.free.put(slot)
        self.backend.synchronize()  # the buffers are filled; a copy on another stream could come before that

    def __call__(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of M rows for uint8 patches (M, N, P*P*3); nothing for M = 0."""
        outputs = []
        under_way: deque[BatchSlot] = deque()
        for part in _parts(patches, self.batch_size):
            if len(under_way) == BATCHES_IN_FLIGHT:
                outputs.append(self._take(under_way.popleft()))
            slot = self.free.get()
            under_way.append(slot)
            slot.fill(part)
            with self.launching:
                slot.start(self.copies)
        for slot in under_way:
            outputs.append(self._take(slot))
        return joined(outputs)

    def _take(self, slot: "BatchSlot") -> dict[str, np.ndarray]:
        output = slot.take()
        self.free.put(slot)
        return output

    def rate(self, times: int = 4) -> float:
        """Measure images/s of the model alone."""
        slot = self.free.get()
        for count in (1, times):  # the first one is warm
            begin = time.perf_counter()
            for _ in range(count):
                slot.compute()
            self.backend.synchronize()
        self.free.put(slot)
        return times * self.batch_size / (time.perf_counter() - begin)

    def close(self) -> None:
        """Give up the buffers, once nothing on the device uses them."""
        with contextlib.suppress(Exception):  # a device that is lost says so at the next call
            self.backend.synchronize()
        for slot in self.slots:
            slot.close()
        self.slots.clear()


class BatchSlot:
    """Carry one batch at a time: through pinned memory, the device's memory, the model, and pinned memory.

    Attributes:
        host: uint8 (B, N, P*P*3), pinned: the batch that comes.
        input: the same on the device.
        output: what the model gives, on the device.
        results: the same in pinned memory: the batch that goes.
        rows: images of the batch.
        graph: the captured forward pass; None launches every kernel by itself.
        pool: the memory of the graph's intermediate results.
    """

    def __init__(
        self,
        forward: Forward,
        shape: tuple[int, int, int],
        device: torch.device,
        captures: "torch.Stream | None",
        pool: object,
    ):
        """Make the buffers, and compute a batch.

        Args:
            forward: the model and what is asked of the model.
            shape: (B, N, P*P*3) of a batch.
            device: where `forward` computes.
            captures: the stream on which a graph is captured; None launches every kernel by itself.
            pool: the memory of an earlier slot's graph.
        """
        self.backend = torch.get_device_module(device)
        self.forward = forward
        self.pins = device.type != "cpu"  # only pinned memory is copied while something else goes on
        self.host = self._pinned(torch.zeros(shape, dtype=torch.uint8))
        self.input = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.copied = self.backend.Event()
        # A blocking wait takes no core from decoding.
        self.done = self.backend.Event(blocking=True) if self.pins else self.backend.Event()
        self.graph: Any = None
        self.pool: object = None
        self.rows = 0
        self.output = forward(self.input) if captures is None else self._capture(captures, pool)
        self.results: dict[str, torch.Tensor] = {}
        for name, values in self.output.items():
            self.results[name] = self._pinned(torch.empty(values.shape, dtype=values.dtype))

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self.pins else tensor

    def _capture(self, captures: "torch.Stream", pool: object) -> dict[str, torch.Tensor]:
        """Record a forward pass as a graph, and return its outputs."""
        current = self.backend.current_stream()
        captures.wait_stream(current)
        with self.backend.stream(captures):
            for _ in range(WARM_UPS):
                self.forward(self.input)
        current.wait_stream(captures)
        self.graph = self.backend.CUDAGraph()
        recording = self.backend.graph(
            self.graph, pool=pool, stream=captures, capture_error_mode="thread_local"
        )
        # A capture that fails may leave its stream behind as the current one: the outer block takes it back.
        with self.backend.stream(current), recording:
            output = self.forward(self.input)
        self.pool = self.graph.pool()  # the next slot's graph uses this memory too: the graphs run in turn
        return output

    def fill(self, patches: np.ndarray) -> None:
        """Take a batch in; rows behind those of the patches are whatever was there before."""
        self.rows = len(patches)
        self.host[: self.rows].copy_(torch.from_numpy(patches))

    def start(self, copies: "torch.Stream") -> None:
        """Begin to copy and to compute, and return.

        Args:
            copies: the stream of copies to the device.
        """
        with self.backend.stream(copies):
            self.input[: self.rows].copy_(self.host[: self.rows], non_blocking=True)
            self.copied.record()
        self.copied.wait()
        self.compute()
        # The results are copied on the stream of the model, so that no other replay comes between.
        for name, values in self.output.items():
            self.results[name].copy_(values, non_blocking=True)
        self.done.record()

    def compute(self) -> None:
        """Begin a forward pass of what lies in the device's memory."""
        if self.graph is None:
            self.output = self.forward(self.input)
        else:
            self.graph.replay()

    def take(self) -> dict[str, np.ndarray]:
        """Wait for the batch, and return arrays that are the caller's own."""
        self.done.synchronize()
        return {name: values[: self.rows].numpy().copy() for name, values in self.results.items()}

    def close(self) -> None:
        """Give up the buffers and the graph."""
        self.host = torch.empty(0)
        self.input = torch.empty(0)
        self.graph = None
        self.pool = None
        self.output = {}
        self.results = {}


def _parts(patches: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (patches[begin : begin + size] for begin in range(0, len(patches), size))


def joined(outputs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return arrays of all rows for arrays of some rows each, by name; nothing for nothing."""
    if not outputs:
        return {}
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
