"""Show a person how a training goes, on stderr: a live line, or a plain one every 10 s, and epochs."""

import threading
import time
from typing import Any, NamedTuple

from wordsworth.jobs.live import LINE_EVERY, LiveDisplay, duration
from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.training.news import (
    BeginNews,
    DataNews,
    EpochNews,
    Means,
    NoteNews,
    Probe,
    ProbeNews,
    Rates,
    StepNews,
    TrainNews,
    ValidationNews,
    WaitNews,
    quality,
)

INDENT = " " * 14  # of a second line of an epoch: below what follows its number
BESIDE_BAR = 20  # characters of a live line in front of its text: spinner, bar, percent
SHORT = {"accuracy": "acc"}  # by the name of a figure
PAUSE_COST = 1 / 3  # of what training on an image takes: trying the model on it
# What a line leaves out where a terminal is too narrow, the highest first; metrics.jsonl has all of it.
ALWAYS, RATE, DATA_WAIT, MFU, LEARNING_RATE = range(5)


class Part(NamedTuple):
    """Hold a part of a line, and when it is left out.

    Attributes:
        text: such as "loss 2.345".
        rank: one of ALWAYS to LEARNING_RATE.
    """

    text: str
    rank: int = ALWAYS


class Forecast:
    """Foretell the end from the steps behind the first report, and from the pauses behind the epochs.

    The first step has to wait for the start. A pause is what --val and --probe take. Before the first one it
    is taken for a third of what training on the images of --val would take: it has no backward pass.

    Attributes:
        steps: steps of the whole training.
        pauses: pauses that are left.
        pause_steps: steps that take as long as one pause.
        tried: time of the first report of the validation under way, and the share of its images that were
            tried.
    """

    def __init__(self, steps: int, pauses: int = 0, pause_steps: float = 0.0):
        self.steps = steps
        self.pauses = pauses
        self.pause_steps = pause_steps
        self.last: tuple[float, int] | None = None  # time of the last report, and steps that were done
        self.seconds = 0.0  # that steps took
        self.counted = 0  # these steps
        self.tried: tuple[float, float] | None = None
        self.has_paused = False

    def step(self, step: int, now: float) -> None:
        """Take a report of steps.

        Args:
            step: steps that are done.
            now: time in seconds, of a clock that never goes back.
        """
        if self.last:
            self.seconds += now - self.last[0]
            self.counted += step - self.last[1]
        self.last = now, step

    def validation(self, share: float, now: float) -> None:
        """Take a report of a validation: the share of its images that were tried."""
        if self.tried is None and share:
            self.tried = now, share

    def epoch(self, step: int, now: float) -> None:
        """Take the report of an epoch, which comes behind its pause. The arguments are those of `step`."""
        self.pauses -= 1
        if self.last:
            seconds = now - self.last[0]
            steps = step - self.last[1]
            if self.counted and self.tried and not self.has_paused:
                # The first validation has to wait for processes that start, as the first step has.
                begin, share = self.tried
                self.pause_steps = (now - begin) / max(1 - share, 0.1) / self._step_s
            elif self.counted:
                self.pause_steps = max(0.0, seconds / self._step_s - steps)
            elif steps:
                self.counted = steps
                self.seconds = seconds * steps / (steps + self.pause_steps)
        self.last = now, step
        self.has_paused = True
        self.tried = None

    def seconds_left(self, step: int) -> float | None:
        """Return how long the steps and the pauses that are left take; None while that cannot be told."""
        if not self.counted:
            return None
        return self._step_s * (self.steps - step + max(0, self.pauses) * self.pause_steps)

    @property
    def _step_s(self) -> float:
        return max(self.seconds / self.counted, 1e-9)


class TrainProgress(LiveDisplay):
    """Show a training by its news: a live line, or a line every ten seconds, and a line for each epoch.

    Use as a context.
    """

    bar_width = 12

    def __init__(self, title: str, epochs: int):
        super().__init__()
        self.title = title
        self.epochs = epochs
        self.doing = "starting"
        self.steps = 0  # of the whole training; 0 before the workers start
        self.samples = 0
        self.val_samples = 0
        self.forecast = Forecast(0)
        self.shown: tuple[float, list[Part]] | None = None  # the share that is done, and figures of the bar
        self.printed = 0.0  # when a line was printed last
        self.lock = threading.Lock()

    def __enter__(self) -> "TrainProgress":
        self.console.say(self.title, event="plan")
        return super().__enter__()

    @property
    def has_figures(self) -> bool:
        """Tell whether a step is done."""
        return self.shown is not None

    @property
    def share(self) -> float | None:
        """Return how much is done, from 0 to 1: of the training, or of the validation under way."""
        return self.shown[0] if self.shown else None

    def line(self) -> str:
        """Return the text of the live line."""
        shown = self.shown
        return _joined(self._fitting(shown[1], self.console.width - BESIDE_BAR)) if shown else self.waited

    def on_news(self, news: TrainNews) -> None:
        """Show one record."""
        with self.lock:
            match news:
                case DataNews():
                    self._show_data(news)
                case BeginNews():
                    self._show_begin(news)
                case NoteNews():
                    self.console.say(news.message)
                case WaitNews():
                    self._show_wait(news)
                case StepNews():
                    self._show_step(news)
                case ValidationNews():
                    self._show_validation(news)
                case EpochNews():
                    self._show_epoch(news)
                case ProbeNews():
                    self._show_probe(news)

    def _say(self, line: str, news: TrainNews) -> None:
        """Print a line, and beside it the figures of the news where the log is JSON."""
        fields: dict[str, Any] = dict(news.figures())
        self.console.say(line, event=news.kind, **fields)

    def _show_wait(self, news: WaitNews) -> None:
        self.shown = None
        self.wait_for(news.what)
        if not self.console.is_terminal:
            self._told = news.what
            self.console.say(f"{news.what} ...", event="wait")

    def _show_data(self, news: DataNews) -> None:
        self.samples = news.samples
        self.val_samples = news.val_samples
        classes = f" of {plural(news.classes, 'class', 'classes')}" if news.classes else ""
        tried = f", tried on {news.val_samples:,}" if news.val_samples else ""
        shards = plural(news.shards, "shard")
        self._say(f"{plural(news.samples, 'image')}{classes} in {shards}{tried}", news)

    def _show_begin(self, news: BeginNews) -> None:
        is_first = not self.steps
        if is_first:
            workers = plural(news.workers, "worker")
            batches = plural(news.images // news.batch, "batch", "batches")
            rest = ""
            if self.samples > news.images:
                left = self.samples - news.images
                rest = f"; {plural(left, 'image')} {'waits' if left == 1 else 'wait'} for another epoch"
            self._say(f"{workers} on {news.device.upper()}, {batches} of {news.batch:,} an epoch{rest}", news)
        if news.step or not is_first:
            where = f" from step {news.step:,} (epoch {news.epoch + 1})" if news.step else ""
            workers = "worker goes" if news.workers == 1 else "workers go"
            self._say(f"{news.workers} {workers} on{where}", news)
        self.steps = news.steps
        pauses = news.epochs - news.epoch
        self.forecast = Forecast(news.steps, pauses, PAUSE_COST * self.val_samples / max(1, news.batch))

    def _show_step(self, news: StepNews) -> None:
        self.forecast.step(news.step, time.monotonic())
        parts = [*self._left(news), Part(f"epoch {news.epoch}/{self.epochs}"), *_figures(news)]
        self._show(news, news.step / news.steps, parts)

    def _show_validation(self, news: ValidationNews) -> None:
        share = news.images / max(1, news.of_images)
        self.forecast.validation(share, time.monotonic())
        parts = [
            Part(f"epoch {news.epoch}/{self.epochs}"),
            Part(f"validation of {plural(news.all_images, 'image')}"),
        ]
        self._show(news, share, parts)

    def _show(self, news: StepNews | ValidationNews, share: float, parts: list[Part]) -> None:
        """Show figures in the bar; elsewhere print them, every ten seconds."""
        self.shown = (share, parts)
        if not self.console.is_terminal and time.monotonic() - self.printed >= LINE_EVERY:
            self.printed = time.monotonic()
            self._say(f"{share:4.0%}  {_joined(parts)}", news)

    def _show_probe(self, news: ProbeNews) -> None:
        self._say(f"random weights: {_probe(news.probe)} ({plural(news.probe.images, 'image')} tried)", news)

    def _show_epoch(self, news: EpochNews) -> None:
        self.printed = time.monotonic()
        self.forecast.epoch(news.step, self.printed)
        left = self._left(news)
        figures = _figures(news)
        self.shown = (
            news.step / max(1, self.steps),
            [*left, Part(f"epoch {news.epoch}/{self.epochs}"), *figures],
        )
        parts = [Part(f"epoch {news.epoch:>3}/{self.epochs}"), *figures]
        if news.validation:
            means = news.validation.means
            tried = f"val loss {means['loss']:.3f} {_quality(means)}"
            if "balanced_accuracy" in means:
                tried += f" balanced {means['balanced_accuracy']:.3f}"
            parts.append(Part(tried))
        if news.probe:
            parts.append(Part(_probe(news.probe)))
        if news.errors:
            parts.append(Part(f"{plural(news.errors, 'image')} could not be decoded"))
        if not self.console.is_terminal:
            self._say(_joined(parts), news)
            return
        width = self.console.width
        for line in _wrapped(self._fitting(parts, width), width):
            self._say(line, news)

    def _left(self, news: StepNews | EpochNews) -> list[Part]:
        """Return the time that is left, if it can be told."""
        seconds = self.forecast.seconds_left(news.step)
        return [] if seconds is None else [Part(f"{duration(seconds)} left")]

    def _fitting(self, parts: list[Part], width: int) -> list[Part]:
        """Return the parts of a line, without those that are too much for a width."""
        for rank in range(LEARNING_RATE, ALWAYS, -1):
            if len(_joined(parts)) <= width:
                break
            parts = [part for part in parts if part.rank != rank]
        return parts


def _joined(parts: list[Part]) -> str:
    return "  ".join(part.text for part in parts)


def _wrapped(parts: list[Part], width: int) -> list[str]:
    """Return parts in as many lines as a width makes necessary. The first line is not indented."""
    lines = [parts[0].text]
    for part in parts[1:]:
        longer = f"{lines[-1]}  {part.text}"
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(INDENT + part.text)
    return lines


def _figures(news: StepNews | EpochNews) -> list[Part]:
    parts = [Part(f"loss {news.means['loss']:.3f}"), Part(_quality(news.means))]
    parts.append(Part(f"lr {news.lr:.2g}", LEARNING_RATE))
    return parts + (_rates(news.rates) if news.rates else [])


def _rates(rates: Rates) -> list[Part]:
    return [
        Part(f"{rates.images_per_second:,.0f} images/s", RATE),
        Part(f"MFU {rates.mfu:.0%}", MFU),
        Part(f"data wait {rates.data_wait:.0%}", DATA_WAIT),
    ]


def _probe(probe: Probe) -> str:
    return f"probe linear {probe.linear:.3f} k-NN {probe.knn:.3f}"


def _quality(means: Means) -> str:
    name, value = quality(means)
    return f"{SHORT.get(name, name)} {value:.3f}"
