"""Show a person how a training goes, on stderr: a live line, or a plain one every 10 s, and epochs."""

import threading
import time
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from wordsworth.jobs.progress import LINE_EVERY, duration
from wordsworth.jobs.terminal import Terminal, own_stderr
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
    WaitNews,
    quality,
)


class TrainProgress:
    """Show a training by its news: a live line, or a line every ten seconds, and a line for each epoch.

    Use as a context.
    """

    def __init__(self, title: str, epochs: int):
        self.title = title
        self.epochs = epochs
        self.file = own_stderr()
        self.console = Terminal(stderr=True, dated=True, file=self.file)
        self.first_step = 0  # steps that were done when the workers started
        self.started = time.monotonic()  # when the workers started
        self.steps = 0  # of the whole training; 0 before the workers start
        self.printed = 0.0  # when a line was printed last
        self.lock = threading.Lock()
        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}", markup=False),
        )
        self.bar = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self.task = self.bar.add_task("starting", total=1.0)

    def __enter__(self) -> "TrainProgress":
        self.console.say(self.title, event="plan")
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
        if self.file:
            self.console.file = None  # type: ignore[assignment]  # rich's own default: what sys.stderr is
            self.file.close()

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
                case EpochNews():
                    self._show_epoch(news)
                case ProbeNews():
                    self._show_probe(news)

    def _say(self, line: str, news: TrainNews) -> None:
        """Print a line, and beside it the figures of the news where the log is JSON."""
        fields: dict[str, Any] = dict(news.figures())
        self.console.say(line, event=news.kind, **fields)

    def _show_wait(self, news: WaitNews) -> None:
        self.bar.update(self.task, description=news.what)
        if not self.console.is_terminal:
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
        self.started = time.monotonic()
        self.first_step = news.step
        self.steps = news.steps

    def _show_step(self, news: StepNews) -> None:
        line = self._line(news)
        if not self.console.is_terminal and time.monotonic() - self.printed >= LINE_EVERY:
            self.printed = time.monotonic()
            self._say(f"{news.step / self.steps:4.0%}  {line}", news)

    def _show_probe(self, news: ProbeNews) -> None:
        tried = f"({news.probe.images:,} images tried)"
        self._say(f"before the first step: {_probe(news.probe)} {tried}: what random weights see", news)
        self.started = time.monotonic()

    def _show_epoch(self, news: EpochNews) -> None:
        self.printed = time.monotonic()
        self._line(news)
        tried = ""
        if news.validation:
            means = news.validation.means
            tried = f"  validation loss {means['loss']:.3f} {_quality(means)}"
            if "balanced_accuracy" in means:
                tried += f" balanced {means['balanced_accuracy']:.3f}"
        if news.probe:
            tried += f"  {_probe(news.probe)}"
        errors = f"  {news.errors:,} images could not be decoded" if news.errors else ""
        self._say(f"epoch {news.epoch:>3}/{self.epochs}  {_figures(news)}{tried}{errors}", news)

    def _line(self, news: StepNews | EpochNews) -> str:
        """Return one line of figures with the time left, and show it in the bar."""
        seconds_per_step = (time.monotonic() - self.started) / max(1, news.step - self.first_step)
        left = duration(seconds_per_step * (self.steps - news.step))
        line = f"{left} left  epoch {news.epoch}/{self.epochs}  {_figures(news)}"
        self.bar.update(self.task, completed=news.step / self.steps, description=line)
        return line


def _figures(news: StepNews | EpochNews) -> str:
    parts = [f"loss {news.means['loss']:.3f}", _quality(news.means), f"lr {news.lr:.2g}"]
    if news.rates:
        parts.append(_rates(news.rates))
    return "  ".join(parts)


def _probe(probe: Probe) -> str:
    return f"probe linear {probe.linear:.3f} k-NN {probe.knn:.3f}"


def _rates(rates: Rates) -> str:
    return f"{rates.images_per_second:,.0f} images/s  MFU {rates.mfu:.0%}  data wait {rates.data_wait:.0%}"


def _quality(means: Means) -> str:
    name, value = quality(means)
    return f"{name} {value:.3f}"
