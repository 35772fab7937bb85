"""Take the fastest way through the model that works on a GPU, and go down by itself when one fails.

From the fastest way down to the one that asks least of the device:

    graphs    batches are copied while others are computed, and a CUDA graph launches each forward pass at once
    overlap   batches are copied while others are computed, and every kernel is launched by itself
    plain     one batch after the other, from pageable memory

A way that fails makes room for the next one, with a note that says why. Memory that is too small halves the batch instead.
Precision is never changed: it is part of what a run is.
"""

import contextlib
import gc
import threading
import time

import numpy as np
import torch

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.gpu import (
    DeviceLost,
    answers,
    gpu_name,
    is_out_of_memory,
    memory_of,
    reason,
)
from wordsworth.pipeline.prediction.gpu_batches import Answer, Lanes, Plain

MODES = ("graphs", "overlap", "plain")  # from the top of the ladder down
SIZES = (
    64,
    128,
    256,
    512,
)  # images: batches among which the fastest is looked for; a unit of 224 pixels has no more
WORTH = 1.03  # times as fast a larger batch must be, since it takes more memory
SEARCH_SECONDS = 20.0  # after which no larger batch is tried: a slow device needs none


class Ladder:
    """Run units on a GPU by the first way of the ladder that works, and go down by itself when one fails.

    Attributes:
        mode: the way that is taken.
        batch_size: images in a batch.
        notes: why a way was left or a batch halved, a sentence each.
    """

    def __init__(
        self,
        answer: Answer,
        shape: tuple[int, int],
        device: torch.device,
        batch_size: int | None = None,
        modes: tuple[str, ...] = MODES,
        most: int = SIZES[-1],
    ):
        """
        Args:
            answer: the model and what is asked of it.
            shape: (N, P*P*3) of an image.
            device: where `answer` computes.
            batch_size: images in a batch; None finds the fastest.
            modes: the ways that may be taken, the first one first.
            most: images in the largest batch that is tried.

        Raises:
            UserError: the model does not fit with a batch of one image, or a way that was asked for does not work.
            DeviceLost: the device answers nothing any more.
        """
        self.answer, self.shape, self.device = answer, shape, device
        self.name = gpu_name(device)
        self.modes = modes
        self.sizes = [size for size in SIZES if size <= most] or [most]
        self.notes: list[str] = []
        self.free = threading.Condition()
        self.running = 0  # units that are in the way now
        self.generation = 0  # of ways
        self.way = self._fastest() if batch_size is None else self._fitting(self.modes[0], batch_size)

    @property
    def mode(self) -> str:
        return self.way.mode

    @property
    def batch_size(self) -> int:
        return self.way.batch_size

    def __call__(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (M, N, P*P*3) -> the answer's arrays of M rows; nothing for M = 0. Units may come from UNITS threads at once.

        A unit whose batch fails is done again from its first row, by what the ladder has then.
        """
        while True:
            with self.free:
                generation = self.generation
                self.running += 1
            try:
                return self.way(patches)
            except Exception as error:
                failure = _Failure(
                    error, self.device
                )  # not the error itself: its traceback keeps the batch's memory
            finally:
                with self.free:
                    self.running -= 1
                    self.free.notify_all()
            self._step_down(generation, failure)

    def rate(self) -> float:
        """Measure images/s of the model alone."""
        return self.way.rate()

    def _step_down(self, generation: int, failure: "_Failure") -> None:
        with self.free:
            self.free.wait_for(lambda: self.running == 0 or self.generation != generation)
            if self.generation != generation:
                return  # the other unit's thread has done it
            failure.raise_if_lost(self.name)
            old, mode, size = self.way, self.mode, self.batch_size
            self._dropped(old)
            if failure.out_of_memory and size > 1:
                self.way = self._fitting(mode, size // 2)
                self.notes.append(
                    f"{self.name}: memory became too small for batches of {size}: {self.batch_size} from then on"
                )
            elif failure.out_of_memory and mode == self.modes[-1]:
                raise UserError(_too_small(self.device, self.name))
            else:
                self.way = self._fitting(self._below(mode, failure), size)
            self.generation += 1

    def _below(self, mode: str, failure: "_Failure") -> str:
        """Return the next way down, and note why. Raises the failure again where there is none."""
        place = self.modes.index(mode)
        if place + 1 == len(self.modes):
            hint = "" if mode == "plain" else ": use --gpu-mode auto"
            raise UserError(
                f"{self.name}: the model does not run there by --gpu-mode {mode} ({failure.told}){hint}"
            )
        below = self.modes[place + 1]
        self.notes.append(
            f"{self.name}: --gpu-mode {mode} does not work here ({failure.told}): goes on with {below}"
        )
        return below

    def _fitting(self, mode: str, size: int) -> "Plain | Lanes":
        """Make a way that has computed a batch: of this size or a smaller one, of this mode or one below."""
        asked = size
        while True:
            try:
                return self._made(mode, size)
            except Exception as error:
                failure = _Failure(error, self.device)
            self._dropped(None)
            failure.raise_if_lost(self.name)
            if failure.out_of_memory and size > 1:
                size //= 2
            elif failure.out_of_memory and mode == self.modes[-1]:
                raise UserError(_too_small(self.device, self.name))
            else:
                mode, size = self._below(mode, failure), asked

    def _made(self, mode: str, size: int) -> "Plain | Lanes":
        if mode != "plain":
            return Lanes(self.answer, self.shape, self.device, size, graphs=mode == "graphs")
        way = Plain(self.answer, self.shape, self.device, size)
        way(np.zeros((size, *self.shape), np.uint8))
        return way

    def _fastest(self) -> "Plain | Lanes":
        begin = time.perf_counter()
        best = self._fitting(self.modes[0], self.sizes[0])
        rate = 0.0
        for size in self.sizes:
            larger = None
            try:
                larger = best if best.batch_size == size else self._made(best.mode, size)
                found = larger.rate()
            except Exception as error:
                failure = _Failure(error, self.device)
                self._dropped(larger if larger is not best else None)
                failure.raise_if_lost(self.name)
                if not failure.out_of_memory:
                    self.notes.append(
                        f"{self.name}: batches of {size} could not be tried ({failure.told}): {best.batch_size} stays"
                    )
                break
            if found < WORTH * rate:
                self._dropped(larger)
                break
            if larger is not best:
                self._dropped(best)
            best, rate = larger, found
            if time.perf_counter() - begin > SEARCH_SECONDS:
                break
        return best

    def _dropped(self, way: "Plain | Lanes | None") -> None:
        """Give a way's memory back to the device, and what a failed attempt left."""
        if way is not None:
            way.close()
        gc.collect()
        if self.device.type != "cpu":
            with contextlib.suppress(Exception):  # a device that is lost says so at the next call
                torch.get_device_module(self.device).empty_cache()


class _Failure:
    """Keep what an error says, and not the error: its traceback refers to the tensors of the frames that it came through."""

    def __init__(self, error: Exception, device: torch.device):
        self.out_of_memory = is_out_of_memory(error)
        self.told = reason(error)
        self.user_error = error if isinstance(error, UserError) else None
        self.lost = not self.out_of_memory and self.user_error is None and not answers(device)

    def raise_if_lost(self, name: str) -> None:
        if self.user_error is not None:
            raise self.user_error
        if self.lost:
            raise DeviceLost(f"{name} is lost: {self.told}")


def _too_small(device: torch.device, name: str) -> str:
    free, total, held = memory_of(device) if device.type != "cpu" else (0.0, 0.0, 0.0)
    others = max(0.0, total - free - held)
    whose = f", {others:.1f} GiB are held by other processes (nvidia-smi lists them)" if others > 1 else ""
    return (
        f"{name}: the model does not fit into its memory with a batch of one image ({total:.1f} GiB in all{whose}): "
        "use --precision bf16, a smaller model, a GPU with more memory, or --device cpu"
    )
