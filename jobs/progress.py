"""Show a person how a command goes, on stderr.

On a terminal: a live bar. Elsewhere: a plain line every ten seconds.
"""

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from wordsworth.pipeline.training.news import (
    BeginNews,
    DataNews,
    EpochNews,
    Means,
    NoteNews,
    Rates,
    StepNews,
    TrainNews,
    quality,
)

if TYPE_CHECKING:
    from wordsworth.pipeline.output.records import Receipt

LINE_EVERY = 10.0  # seconds between two plain lines


class RunProgress:
    """Follow a run by its receipts. Use as a context."""

    def __init__(self, verb: str):
        self.verb = verb
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.images = 0
        self.errors: Counter[str] = Counter()
        self.bytes = 0  # bytes of shards that this command read
        self.base = 0  # bytes of shards that were complete before
        self.total = 0  # bytes of all shards
        self.started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._bar: Progress | None = None

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    # ---- what the labeler calls ----

    def note(self, message: str) -> None:
        """Print a line that the user should know."""
        self.console.print(escape(message))

    def planned(
        self, *, shards: int, shards_done: int, bytes_total: int, bytes_done: int, listed: bool = True
    ) -> None:
        """Begin: say how large the run is."""
        done = f", {shards_done:,} of them done before" if shards_done else ""
        more = "" if listed else ", and what else the listing finds"
        count = "1 shard" if shards == 1 else f"{shards:,} shards"
        self.note(f"{self.verb} {count} ({decimal(bytes_total)}){done}{more}")
        self.total = bytes_total
        self.base = bytes_done
        self.started = time.monotonic()
        self._thread.start()

    def listed(self, *, shards: int, bytes_total: int) -> None:
        """Show the size of the run after more shards were listed."""
        self.total = bytes_total

    def receipt(self, receipt: "Receipt") -> None:
        """Count a unit that is done, or one that the store did not give."""
        self.images += receipt.rows
        self.bytes += receipt.bytes_read
        self.errors.update(receipt.errors)
        if receipt.fault:
            self.note(f"{receipt.shard} could not be read on: {receipt.fault}")

    # ---- what is shown ----

    @property
    def share(self) -> float:
        """Return how much of the run is done, from 0 to 1."""
        return min(1.0, (self.base + self.bytes) / self.total) if self.total else 1.0

    def line(self) -> str:
        """Return one line of figures. The time left follows from the bytes that this command has read."""
        seconds = time.monotonic() - self.started
        if not self.bytes:
            return f"the first unit is under way ({seconds:.0f} s)"
        left = seconds * max(0, self.total - self.base - self.bytes) / self.bytes
        rate = f"{self.images / seconds:,.0f} images/s"
        return f"{self.images:,} images, {rate}, {sum(self.errors.values()):,} errors, {duration(left)} left"

    def _watch(self) -> None:
        if not self.console.is_terminal:
            while not self._stop.wait(LINE_EVERY):
                self.console.print(f"{100 * self.share:.0f}%  {self.line()}")
            return
        columns = (
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=1.0)
            while not self._stop.wait(0.2):
                bar.update(task, completed=self.share, description=self.line())


def duration(seconds: float) -> str:
    """Return a time as a person says it, such as "3 min 20 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class TrainProgress:
    """Show a training by its news: a live line, or a line every ten seconds, and a line for each epoch.

    Use as a context.
    """

    def __init__(self, title: str, epochs: int):
        self.title = title
        self.epochs = epochs
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.first_step = 0  # steps that were done when the workers started
        self.started = time.monotonic()  # when the workers started
        self.steps = 0  # of the whole training; 0 before the workers start
        self.printed = 0.0  # when a line was printed last
        self.lock = threading.Lock()
        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
        )
        self.bar = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self.task = self.bar.add_task("the workers start", total=1.0)

    def __enter__(self) -> "TrainProgress":
        self.console.print(self.title, markup=False)
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def on_news(self, news: TrainNews) -> None:
        """Show one record."""
        with self.lock:
            match news:
                case DataNews():
                    self._show_data(news)
                case BeginNews():
                    self._show_begin(news)
                case NoteNews():
                    self.console.print(news.message, markup=False)
                case StepNews():
                    self._show_step(news)
                case EpochNews():
                    self._show_epoch(news)

    def _show_data(self, news: DataNews) -> None:
        classes = f" of {news.classes:,} classes" if news.classes else ""
        tried = f", tried on {news.val_samples:,}" if news.val_samples else ""
        shards = "1 shard" if news.shards == 1 else f"{news.shards:,} shards"
        self.console.print(f"{news.samples:,} images{classes} in {shards}{tried}")

    def _show_begin(self, news: BeginNews) -> None:
        is_first = not self.steps
        if is_first:
            workers = "1 worker" if news.workers == 1 else f"{news.workers} workers"
            batch = f"batches of {news.batch:,}: {news.images:,} images an epoch"
            self.console.print(f"{workers} on {news.device.upper()}, {batch}")
        if news.step or not is_first:
            where = f" from step {news.step:,} (epoch {news.epoch + 1})" if news.step else ""
            workers = "worker goes" if news.workers == 1 else "workers go"
            self.console.print(f"{news.workers} {workers} on{where}")
        self.started = time.monotonic()
        self.first_step = news.step
        self.steps = news.steps

    def _show_step(self, news: StepNews) -> None:
        line = self._line(news)
        if not self.console.is_terminal and time.monotonic() - self.printed >= LINE_EVERY:
            self.printed = time.monotonic()
            self.console.print(f"{news.step / self.steps:4.0%}  {line}")

    def _show_epoch(self, news: EpochNews) -> None:
        self.printed = time.monotonic()
        self._line(news)
        tried = ""
        if news.validation:
            means = news.validation.means
            tried = f"  validation loss {means['loss']:.3f} {_quality(means)}"
        errors = f"  {news.errors:,} images could not be decoded" if news.errors else ""
        self.console.print(f"epoch {news.epoch:>3}/{self.epochs}  {_figures(news)}{tried}{errors}")

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


def _rates(rates: Rates) -> str:
    return f"{rates.images_per_second:,.0f} images/s  MFU {rates.mfu:.0%}  data wait {rates.data_wait:.0%}"


def _quality(means: Means) -> str:
    name, value = quality(means)
    return f"{name} {value:.3f}"
