"""Report the steps of an epoch while a worker makes them, and stop where a loss is not a number."""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.training.news import NOT_A_NUMBER, Rates, StepNews
from wordsworth.pipeline.training.speed import SpeedMeter

REPORT_EVERY_S = 2.0  # seconds between two reports

StepMetrics = dict[
    str, torch.Tensor
]  # scalars of one step, on the device: loss, gradient_norm, the objective's


class StepReporter:
    """Report the steps of one epoch every few seconds."""

    def __init__(self, speed: SpeedMeter, total_steps: int, epoch: int, send: Callable[[StepNews], None]):
        """Begin an epoch.

        Args:
            speed: makes rates of steps.
            total_steps: steps of the whole training.
            epoch: the epoch, from 0.
            send: takes the news.
        """
        self.speed = speed
        self.total_steps = total_steps
        self.epoch = epoch
        self.send = send
        self.began = time.perf_counter()
        self.num_steps = 0
        self.waited_s = 0.0
        self.reported = self.began  # when the last report was sent
        self.reported_steps = 0
        self.reported_waited_s = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the block that gets the next batch."""
        begin = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - begin

    def step(self, metrics: list[StepMetrics], number: int, lr: float) -> None:
        """Count a step, and report the means since the last report if it is time.

        Args:
            metrics: of the steps so far, one per step.
            number: steps since the beginning of the training.
            lr: learning rate of the step.

        Raises:
            UserError: a loss or a gradient is not a number.
        """
        self.num_steps += 1
        now = time.perf_counter()
        if now - self.reported < REPORT_EVERY_S:
            return
        self.check(metrics, number)
        num_recent = self.num_steps - self.reported_steps
        recent = metrics[-num_recent:]
        means = {}
        for name in recent[0]:
            means[name] = round(float(torch.stack([step[name].float() for step in recent]).mean()), 4)
        rates = self.speed.rates(num_recent, now - self.reported, self.waited_s - self.reported_waited_s)
        self.send(
            StepNews(
                step=number,
                steps=self.total_steps,
                epoch=self.epoch + 1,
                lr=lr,
                means=means,
                rates=rates,
            )
        )
        self.reported = time.perf_counter()
        self.reported_steps = self.num_steps
        self.reported_waited_s = self.waited_s

    def check(self, metrics: list[StepMetrics], number: int) -> None:
        """Check that losses and gradients are numbers.

        Args:
            metrics: one per step.
            number: steps since the beginning of the training, the last of `metrics` included.

        Raises:
            UserError: names the first step whose loss or gradient is not a number.
        """
        for name in ("loss", "gradient_norm"):
            finite = torch.stack([step[name].float() for step in metrics]).isfinite().cpu().tolist()
            if not all(finite):
                first = number - len(metrics) + finite.index(False) + 1
                raise UserError(
                    f"the {name.replace('_', ' ')} {NOT_A_NUMBER} at step {first} (epoch {self.epoch + 1}); "
                    "the last good checkpoint is kept: try a lower --lr or a longer --warmup"
                )

    def rates(self) -> Rates:
        """Return the rates of all steps so far."""
        return self.speed.rates(self.num_steps, time.perf_counter() - self.began, self.waited_s)
