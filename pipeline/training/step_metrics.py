"""What a worker says of its steps while it makes them: losses, rates, and whether they are numbers at all."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from wordsworth.pipeline.errors import UserError

SAID_EVERY = 2.0  # seconds

Said = list[dict[str, torch.Tensor]]  # what every step said, on the device


@dataclass(frozen=True)
class Speed:
    """images: of one worker in a step; workers; flops: of an image, forward and backward; peak: the most operations a second that a
    worker's device could do."""

    images: int
    workers: int
    flops: float
    peak: float

    def rates(self, steps: int, seconds: float, waited: float) -> dict[str, Any]:
        """Images/s of all workers; MFU of one; the share of the time in which it had no batch."""
        mine = steps * self.images / seconds if seconds else 0.0
        rates = {
            "images_per_second": round(mine * self.workers, 1),
            "mfu": round(mine * self.flops / self.peak, 3),
        }
        return rates | {"data_wait": round(waited / seconds, 3) if seconds else 0.0}


class StepWatch:
    """Of the steps of an epoch. steps: of the whole training; say: where news go."""

    def __init__(self, speed: Speed, steps: int, epoch: int, say: Callable[..., None]):
        self.speed, self.steps, self.epoch, self.say = speed, steps, epoch, say
        self.began = self.last = time.perf_counter()
        self.waited = self.waited_last = 0.0
        self.done = self.done_last = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what gets the next batch."""
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self.waited, self.waited_last = self.waited + seconds, self.waited_last + seconds

    def step(self, said: Said, number: int, lr: float) -> None:
        """After a step: every few seconds the means of those since the last time are said."""
        self.done, self.done_last = self.done + 1, self.done_last + 1
        now = time.perf_counter()
        if now - self.last < SAID_EVERY:
            return
        self.check(said, number)
        recent = said[-self.done_last :]
        means = {
            name: round(float(torch.stack([one[name].float() for one in recent]).mean()), 4)
            for name in recent[0]
        }
        rates = self.speed.rates(self.done_last, now - self.last, self.waited_last)
        self.say("step", step=number, steps=self.steps, epoch=self.epoch + 1, lr=lr, **means, **rates)
        self.last, self.done_last, self.waited_last = time.perf_counter(), 0, 0.0

    def check(self, said: Said, number: int) -> None:
        """Raises UserError for the first step whose loss or gradient is not a number. number: of the last of them."""
        for name in ("loss", "gradient_norm"):
            finite = torch.stack([one[name].float() for one in said]).isfinite().cpu().tolist()
            if not all(finite):
                step = number - len(said) + finite.index(False) + 1
                what = f"the {name.replace('_', ' ')} is not a number at step {step} (epoch {self.epoch + 1})"
                raise UserError(
                    f"{what}; the last good checkpoint is kept: try a lower --lr or a longer --warmup"
                )

    def rates(self) -> dict[str, Any]:
        """Of all steps so far."""
        return self.speed.rates(self.done, time.perf_counter() - self.began, self.waited)
