"""Show a person how a training goes, on stderr: a live line, or a plain one every 10 s, and epochs."""

import threading
import time
from typing import Any, NamedTuple

from wordsworth.jobs.live import LINE_EVERY, LiveDisplay, duration
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

BESIDE_BAR = 20  # characters of a live line in front of its text: spinner, bar, percent
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
    """Foretell the end from the steps behind the first report. The first step has to wait for the start."""

    def __init__(self, steps: int):
        self.steps = steps
        self.first: tuple[float, int] | None = None  # time of the first report, and steps that were done

    def seconds_left(self, step: int, now: float) -> float | None:
        """Return how long the steps that are left take; None while that cannot be told.

        Args:
            step: steps that are done.
            now: time in seconds, of a clock that never goes back.
        """
        if self.first is None:
            self.first = (now, step)
        begin, first_step = self.first
        if step <= first_step:
            return None
        return (now - begin) / (step - first_step) * (self.steps - step)


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
        return self._fitting(shown[1], self.console.width - BESIDE_BAR) if shown else self.waited

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
        classes = f" of {news.classes:,} classes" if news.classes else ""
        tried = f", tried on {news.val_samples:,}" if news.val_samples else ""
        shards = "1 shard" if news.shards == 1 else f"{news.shards:,} shards"
        self._say(f"{news.samples:,} images{classes} in {shards}{tried}", news)

    def _show_begin(self, news: BeginNews) -> None:
        is_first = not self.steps
        if is_first:
            workers = "1 worker" if news.workers == 1 else f"{news.workers} workers"
            batch = f"batches of {news.batch:,}: {news.images:,} images an epoch"
            self._say(f"{workers} on {news.device.upper()}, {batch}", news)
        if news.step or not is_first:
            where = f" from step {news.step:,} (epoch {news.epoch + 1})" if news.step else ""
            workers = "worker goes" if news.workers == 1 else "workers go"
            self._say(f"{news.workers} {workers} on{where}", news)
        self.steps = news.steps
        self.forecast = Forecast(news.steps)

    def _show_step(self, news: StepNews) -> None:
        parts = [*self._left(news), Part(f"epoch {news.epoch}/{self.epochs}"), *_figures(news)]
        self._show(news, news.step / news.steps, parts)

    def _show_validation(self, news: ValidationNews) -> None:
        share = news.images / max(1, news.of_images)
        parts = [Part(f"epoch {news.epoch}/{self.epochs}"), Part(f"validation of {news.all_images:,} images")]
        self._show(news, share, parts)

    def _show(self, news: StepNews | ValidationNews, share: float, parts: list[Part]) -> None:
        """Show figures in the bar; elsewhere print them, every ten seconds."""
        self.shown = (share, parts)
        if not self.console.is_terminal and time.monotonic() - self.printed >= LINE_EVERY:
            self.printed = time.monotonic()
            self._say(f"{share:4.0%}  {_joined(parts)}", news)

    def _show_probe(self, news: ProbeNews) -> None:
        tried = f"({news.probe.images:,} images tried)"
        self._say(f"before the first step: {_probe(news.probe)} {tried}: what random weights see", news)

    def _show_epoch(self, news: EpochNews) -> None:
        self.printed = time.monotonic()
        left = self._left(news)
        figures = _figures(news)
        self.shown = (
            news.step / max(1, self.steps),
            [*left, Part(f"epoch {news.epoch}/{self.epochs}"), *figures],
        )
        parts = [Part(f"epoch {news.epoch:>3}/{self.epochs}"), *figures]
        if news.validation:
            means = news.validation.means
            tried = f"validation loss {means['loss']:.3f} {_quality(means)}"
            if "balanced_accuracy" in means:
                tried += f" balanced {means['balanced_accuracy']:.3f}"
            parts.append(Part(tried))
        if news.probe:
            parts.append(Part(_probe(news.probe)))
        if news.errors:
            parts.append(Part(f"{news.errors:,} images could not be decoded"))
        width = self.console.width if self.console.is_terminal else None
        self._say(self._fitting(parts, width), news)

    def _left(self, news: StepNews | EpochNews) -> list[Part]:
        """Return the time that is left, if it can be told."""
        seconds = self.forecast.seconds_left(news.step, time.monotonic())
        return [] if seconds is None else [Part(f"{duration(seconds)} left")]

    def _fitting(self, parts: list[Part], width: int | None) -> str:
        """Return a line of parts, without those that are too much for a width."""
        for rank in range(LEARNING_RATE, ALWAYS, -1):
            if width is None or len(_joined(parts)) <= width:
                break
            parts = [part for part in parts if part.rank != rank]
        return _joined(parts)


def _joined(parts: list[Part]) -> str:
    return "  ".join(part.text for part in parts)


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
    return f"{name} {value:.3f}"
