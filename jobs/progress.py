"""Show a person how a labelling or a compaction goes, on stderr.

On a terminal: a live bar. Elsewhere: a plain line every ten seconds, with the time of day, or JSON.
"""

import contextlib
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from wordsworth.jobs.terminal import Terminal, own_stderr
from wordsworth.pipeline.storage.patience import Trouble, hearing_trouble

if TYPE_CHECKING:
    from wordsworth.pipeline.labeling.pace import RunFigures
    from wordsworth.pipeline.output.records import Receipt

LINE_EVERY = 10.0  # seconds between two plain lines
WAIT_EVERY = 60.0  # seconds between two plain lines while something is waited for
WAIT_TOLD_AFTER = 2.0  # seconds that something is waited for before a plain line says so
STORES_TOLD_AFTER = 8.0  # likewise, while stores are asked for the first time: a refusal is one line
FRAME_S = 0.1  # seconds between two pictures of the bar
BAR_AFTER_S = 0.3  # seconds before a bar is drawn: a command that is refused at once draws none
TROUBLE_AFTER_S = 6.0  # seconds that this process waits for a store before the user hears of it
TROUBLE_EVERY_S = 10.0  # seconds between two lines on one store


STORES = "asking the stores"  # what every command does first


class RunProgress:
    """Follow a run by its receipts and figures. Use as a context; of several, the inner one is shown."""

    open: ClassVar[list["RunProgress"]] = []

    def __init__(self, verb: str):
        self.verb = verb
        self.file = own_stderr()
        self.console = Terminal(stderr=True, dated=True, file=self.file)
        self.doing = STORES  # what is waited for, until the first image is worked on
        self.since = time.monotonic()  # when that began
        self.figures: RunFigures | None = None
        self.errors: Counter[str] = Counter()
        self._told: str | None = None  # what a plain line said is waited for
        self._troubles: dict[str, float] = {}  # when the user was told of a store, by its address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._hearing = contextlib.ExitStack()

    def __enter__(self) -> "RunProgress":
        self._hearing.enter_context(hearing_trouble(self._trouble))
        RunProgress.open.append(self)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hearing.close()
        self._stop.set()
        self._thread.join()
        RunProgress.open.remove(self)
        if self.file:
            self.console.file = None  # type: ignore[assignment]  # rich's own default: what sys.stderr is
            self.file.close()

    # ---- what the labeler calls ----

    def note(self, message: str, **fields: Any) -> None:
        """Print a line that the user should know, and its fields where the log is JSON."""
        self.console.say(message, **fields)

    def waiting(self, what: str) -> None:
        """Show what is waited for, until the first image is worked on."""
        if what != self.doing:
            self.doing = what
            self.since = time.monotonic()
        self.figures = None

    def planned(
        self, *, shards: int, shards_done: int, bytes_total: int, bytes_done: int, listed: bool = True
    ) -> None:
        """Say how large the run is."""
        done = f", {shards_done:,} of them done before" if shards_done else ""
        more = "" if listed else ", and what else the listing finds"
        count = "1 shard" if shards == 1 else f"{shards:,} shards"
        self.note(
            f"{self.verb} {count} ({decimal(bytes_total)}){done}{more}",
            event="plan",
            shards=shards,
            shards_done=shards_done,
            bytes_total=bytes_total,
            bytes_done=bytes_done,
        )

    def listed(self, *, shards: int, bytes_total: int) -> None:
        """Do nothing: the figures have the size of the run."""

    def working(self, figures: "RunFigures") -> None:
        """Show how far the run is."""
        self.figures = figures

    def receipt(self, receipt: "Receipt") -> None:
        """Tell of a unit that the store did not give."""
        if receipt.fault:
            self.note(
                f"{receipt.shard} could not be read on: {receipt.fault}",
                level="warning",
                event="fault",
                shard=receipt.shard,
            )

    # ---- what is shown ----

    @property
    def is_shown(self) -> bool:
        """Tell whether this is the inner one of the displays that are open."""
        return RunProgress.open[-1:] == [self]

    @property
    def share(self) -> float | None:
        """Return how much of the run is done, from 0 to 1; None while nobody knows."""
        return self.figures.share if self.figures else None

    def line(self) -> str:
        """Return one line of figures, or what is waited for."""
        figures = self.figures
        if figures is None:
            return f"{self.doing} ({time.monotonic() - self.since:.0f} s)"
        if figures.images_per_second is None and not figures.written:
            decoded = "1 image is" if figures.decoded == 1 else f"{figures.decoded:,} images are"
            return f"{decoded} decoded, the model begins"
        parts = [f"{figures.images:,} images"]
        if figures.images_per_second is not None:
            parts.append(f"{figures.images_per_second:,.{_digits(figures.images_per_second)}f} images/s")
        parts.append(f"{sum(figures.errors.values()):,} errors")
        if figures.seconds_left is not None:
            parts.append(f"{duration(figures.seconds_left)} left")
        return ", ".join(parts)

    def _watch(self) -> None:
        if self.console.is_terminal:
            self._show_bar()
        else:
            self._write_lines()

    def _write_lines(self) -> None:
        printed = time.monotonic()
        while not self._stop.wait(FRAME_S):
            now = time.monotonic()
            if not self.is_shown:
                continue
            figures = self.figures
            if figures is not None and now - printed >= LINE_EVERY:
                printed = now
                self._write_line(figures)
            elif figures is None and self._told != self.doing and now - self.since >= self._told_after:
                printed = now
                self._told = self.doing
                self.console.say(f"{self.doing} ...", event="wait")
            elif figures is None and self._told == self.doing and now - printed >= WAIT_EVERY:
                printed = now
                self.console.say(self.line(), event="wait", seconds=round(now - self.since))

    @property
    def _told_after(self) -> float:
        return STORES_TOLD_AFTER if self.doing == STORES else WAIT_TOLD_AFTER

    def _write_line(self, figures: "RunFigures") -> None:
        percent = "" if figures.share is None else f"{int(100 * figures.share)}%  "
        self.console.say(
            f"{percent}{self.line()}",
            event="progress",
            percent=None if figures.share is None else round(100 * figures.share, 2),
            images=figures.images,
            images_written=figures.written,
            units=figures.units,
            images_per_second=_rounded(figures.images_per_second),
            errors=figures.errors,
            seconds_left=_rounded(figures.seconds_left),
            bytes_read=figures.bytes_read,
            stage_seconds={stage: round(seconds, 1) for stage, seconds in figures.stage_seconds.items()},
        )

    def _show_bar(self) -> None:
        columns = (
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.fields[percent]:>4}"),
            TextColumn("{task.description}", markup=False),
        )
        while not self._stop.wait(BAR_AFTER_S):
            if not self.is_shown:
                continue
            with Progress(*columns, console=self.console, transient=True) as bar:
                task = bar.add_task("", total=1.0, percent="")
                while self.is_shown:
                    share = self.share
                    percent = "" if share is None else f"{int(100 * share)}%"
                    bar.update(task, completed=share or 0.0, description=self.line(), percent=percent)
                    if self._stop.wait(FRAME_S):
                        return

    def _trouble(self, trouble: Trouble) -> None:
        """Tell of a store that this process itself has to ask again."""
        now = time.monotonic()
        is_told = now - self._troubles.get(trouble.address, -TROUBLE_EVERY_S) < TROUBLE_EVERY_S
        if trouble.waited_s < TROUBLE_AFTER_S or is_told:
            return
        self._troubles[trouble.address] = now
        self.note(
            f"{trouble.address} does not answer: {trouble.said}. "
            f"It is asked again, for {trouble.waited_s:,.0f} s now",
            level="warning",
            event="store",
            store=trouble.address,
            seconds=round(trouble.waited_s),
        )


def _digits(rate: float) -> int:
    return 0 if rate >= 10 else 1


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def duration(seconds: float) -> str:
    """Return a time as a person says it, such as "3 min 20 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
