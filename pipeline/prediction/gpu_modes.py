"""Take the fastest mode in which the model works on a GPU, and fall back when a mode fails.

The modes, from the fastest one to the one that asks least of the device:

    graphs    a batch is copied while another is computed, and a CUDA graph launches each forward pass at once
    overlap   a batch is copied while another is computed, and every kernel is launched by itself
    plain     one batch after the other, from pageable memory

A mode that fails makes room for the next mode, with a note that says why. Memory that is too small halves the
batch instead. Precision is never changed: it is part of what a run is.
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
from wordsworth.pipeline.prediction.gpu_batches import Forward, OverlappedBatches, SequentialBatches

MODES = ("graphs", "overlap", "plain")  # from the fastest one down
BATCH_SIZES = (64, 128, 256, 512)  # images: the batches that are tried; a unit of 224 pixels has no more
MIN_SPEEDUP = 1.03  # times as fast a larger batch must be, since it takes more memory
SEARCH_SECONDS = 20.0  # seconds after which no larger batch is tried: a slow device needs none

Batches = SequentialBatches | OverlappedBatches


class GpuBatches:
    """Run units on a GPU in the first mode that works, and fall back by itself when a mode fails.

    Attributes:
        current: what runs batches now.
        mode: the mode of `current`.
        batch_size: images in a batch of `current`.
        notes: why a mode was left or a batch halved, a sentence each.
    """

    def __init__(
        self,
        forward: Forward,
        shape: tuple[int, int],
        device: torch.device,
        batch_size: int | None = None,
        modes: tuple[str, ...] = MODES,
        largest_batch: int = BATCH_SIZES[-1],
    ):
        """Find the mode and the batch size, and compute a batch.

        Args:
            forward: the model and what is asked of the model.
            shape: (N, P*P*3) of an image.
            device: where `forward` computes.
            batch_size: images in a batch; None finds the fastest.
            modes: the modes that may be taken, the first one first.
            largest_batch: images in the largest batch that is tried.

        Raises:
            UserError: the model does not fit with a batch of one image, or works in none of the modes.
            DeviceLost: the device answers nothing any more.
        """
        self.forward = forward
        self.shape = shape
        self.device = device
        self.name = gpu_name(device)
        self.modes = modes
        self.sizes = [size for size in BATCH_SIZES if size <= largest_batch] or [largest_batch]
        self.notes: list[str] = []
        self.idle = threading.Condition()
        self.num_running = 0  # units that `current` works on
        self.generation = 0  # number of times that `current` was replaced
        if batch_size is None:
            self.current = self._fastest()
        else:
            self.current = self._fitting(modes[0], batch_size)

    @property
    def mode(self) -> str:
        return self.current.mode

    @property
    def batch_size(self) -> int:
        return self.current.batch_size

    def __call__(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of M rows for uint8 patches (M, N, P*P*3); nothing for M = 0.

        Units may come from UNITS_IN_FLIGHT threads at once. A unit whose batch fails is done again from its
        first row, by what `current` is then.
        """
        while True:
            with self.idle:
                generation = self.generation
                self.num_running += 1
            try:
                return self.current(patches)
            except Exception as error:
                # The error itself is not kept: its traceback keeps the batch's memory.
                failure = _Failure(error, self.device)
            finally:
                with self.idle:
                    self.num_running -= 1
                    self.idle.notify_all()
            self._fall_back(generation, failure)

    def rate(self) -> float:
        """Measure images/s of the model alone."""
        return self.current.rate()

    # ---- after a failure --------------------------------------------------------------------------------

    def _fall_back(self, generation: int, failure: "_Failure") -> None:
        """Replace `current`, once no unit runs. Of several threads whose units fail, the first one does
        so."""
        with self.idle:
            self.idle.wait_for(lambda: self.num_running == 0 or self.generation != generation)
            if self.generation != generation:
                return
            failure.raise_if_lost(self.name)
            mode = self.mode
            size = self.batch_size
            self._give_up(self.current)
            if failure.out_of_memory and size > 1:
                self.current = self._fitting(mode, size // 2)
                self.notes.append(
                    f"{self.name}: memory became too small for batches of {size}: "
                    f"{self.batch_size} from then on"
                )
            elif failure.out_of_memory and mode == self.modes[-1]:
                raise UserError(_too_small(self.device, self.name))
            else:
                self.current = self._fitting(self._mode_below(mode, failure), size)
            self.generation += 1

    def _mode_below(self, mode: str, failure: "_Failure") -> str:
        """Return the next mode, and note why it is taken. Raises UserError where there is none."""
        place = self.modes.index(mode)
        if place + 1 == len(self.modes):
            hint = "" if mode == "plain" else ": use --gpu-mode auto"
            raise UserError(
                f"{self.name}: the model does not run there by --gpu-mode {mode} ({failure.reason}){hint}"
            )
        below = self.modes[place + 1]
        self.notes.append(
            f"{self.name}: --gpu-mode {mode} does not work here ({failure.reason}): goes on with {below}"
        )
        return below

    # ---- batches that work ------------------------------------------------------------------------------

    def _fitting(self, mode: str, size: int) -> Batches:
        """Return what has computed a batch: of this size or a smaller one, in this mode or one below."""
        asked = size
        while True:
            try:
                return self._make(mode, size)
            except Exception as error:
                failure = _Failure(error, self.device)
            self._give_up(None)
            failure.raise_if_lost(self.name)
            if failure.out_of_memory and size > 1:
                size //= 2
            elif failure.out_of_memory and mode == self.modes[-1]:
                raise UserError(_too_small(self.device, self.name))
            else:
                mode = self._mode_below(mode, failure)
                size = asked

    def _make(self, mode: str, size: int) -> Batches:
        """Return batches of a mode and size that have computed one batch."""
        if mode != "plain":
            return OverlappedBatches(self.forward, self.shape, self.device, size, graphs=mode == "graphs")
        batches = SequentialBatches(self.forward, self.shape, self.device, size)
        batches(np.zeros((size, *self.shape), np.uint8))
        return batches

    def _fastest(self) -> Batches:
        """Return batches of the smallest size beyond which little is won."""
        begin = time.perf_counter()
        best = self._fitting(self.modes[0], self.sizes[0])
        best_rate = 0.0
        for size in self.sizes:
            larger = None
            try:
                larger = best if best.batch_size == size else self._make(best.mode, size)
                rate = larger.rate()
            except Exception as error:
                failure = _Failure(error, self.device)
                self._give_up(larger if larger is not best else None)
                failure.raise_if_lost(self.name)
                if not failure.out_of_memory:
                    self.notes.append(
                        f"{self.name}: batches of {size} could not be tried ({failure.reason}): "
                        f"{best.batch_size} stays"
                    )
                break
            if rate < MIN_SPEEDUP * best_rate:
                self._give_up(larger)
                break
            if larger is not best:
                self._give_up(best)
            best = larger
            best_rate = rate
            if time.perf_counter() - begin > SEARCH_SECONDS:
                break
        return best

    def _give_up(self, batches: Batches | None) -> None:
        """Give the memory of batches back to the device, and what a failed attempt left."""
        if batches is not None:
            batches.close()
        gc.collect()
        if self.device.type != "cpu":
            with contextlib.suppress(Exception):  # a device that is lost says so at the next call
                torch.get_device_module(self.device).empty_cache()


class _Failure:
    """Keep what an error says, and not the error.

    The traceback of an error refers to the tensors of the frames that the error came through.

    Attributes:
        out_of_memory: memory was too small.
        reason: the error in a few words.
        user_error: the error itself, where it is meant for the user.
        is_lost: the device answers nothing any more.
    """

    def __init__(self, error: Exception, device: torch.device):
        self.out_of_memory = is_out_of_memory(error)
        self.reason = reason(error)
        self.user_error = error if isinstance(error, UserError) else None
        self.is_lost = not self.out_of_memory and self.user_error is None and not answers(device)

    def raise_if_lost(self, name: str) -> None:
        """Raise an error that no other mode could help.

        Raises:
            UserError: the error is meant for the user.
            DeviceLost: the device answers nothing any more.
        """
        if self.user_error is not None:
            raise self.user_error
        if self.is_lost:
            raise DeviceLost(f"{name} is lost: {self.reason}")


def _too_small(device: torch.device, name: str) -> str:
    """Return the message for a model that does not fit into a device's memory."""
    free, total, held = 0.0, 0.0, 0.0
    if device.type != "cpu":
        free, total, held = memory_of(device)
    others = max(0.0, total - free - held)
    whose = ""
    if others > 1:
        whose = f", {others:.1f} GiB are held by other processes (nvidia-smi lists them)"
    return (
        f"{name}: the model does not fit into its memory with a batch of one image "
        f"({total:.1f} GiB in all{whose}): "
        "use --precision bf16, a smaller model, a GPU with more memory, or --device cpu"
    )
