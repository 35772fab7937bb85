"""Show on stderr what a command does: a live bar on a terminal, plain lines or JSON elsewhere.

What is waited for, with its seconds, until there are figures; then the figures.
"""

import contextlib
import threading
import time
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from wordsworth.jobs.terminal import Terminal, own_stderr
from wordsworth.pipeline.storage.patience import Trouble, hearing_trouble

LINE_EVERY = 10.0  # seconds between two plain lines
WAIT_EVERY = 60.0  # seconds between two plain lines while something is waited for
WAIT_TOLD_AFTER = 2.0  # seconds that something is waited for before a plain line says so
STORES_TOLD_AFTER = 8.0  # likewise, while stores are asked for the first time: a refusal is one line
FRAME_S = 0.1  # seconds between two pictures of the bar
BAR_COLUMNS = 18  # characters of the spinner, the shortest bar, the percentage and the spaces between
BAR_AFTER_S = 0.3  # seconds before a bar is drawn: a command that is refused at once draws none
TROUBLE_AFTER_S = 6.0  # seconds that this process waits for a store before the user hears of it
TROUBLE_EVERY_S = 10.0  # seconds between two lines on one store

STORES = "asking the stores"  # what every command does first
ON_DISK = "looking at the images"  # likewise, where all places are on this disk


def first_wait(places: Iterable[str]) -> str:
    """Return what a command does first with the places that it reads and writes."""
    return STORES if any("://" in place for place in places) else ON_DISK


class LiveDisplay:
    """Show how a command goes. Use as a context; of several, the inner one is shown.

    A subclass says what there is to show: `has_figures`, `share`, `line` and `write_line`.
    """

    open: ClassVar[list["LiveDisplay"]] = []
    bar_width: ClassVar[int] = 40  # characters

    def __init__(self) -> None:
        self.file = own_stderr()
        self.console = Terminal(stderr=True, dated=True, file=self.file)
        self.doing = STORES  # what is waited for, while there are no figures
        self.since = time.monotonic()  # when that began
        self._told: str | None = None  # what a plain line said is waited for
        self._troubles: dict[str, float] = {}  # when the user was told of a store, by its address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._hearing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._hearing.enter_context(hearing_trouble(self._trouble))
        LiveDisplay.open.append(self)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hearing.close()
        self._stop.set()
        self._thread.join()
        LiveDisplay.open.remove(self)
        for outer in LiveDisplay.open[-1:]:  # its seconds are those in which it is shown
            outer.since = time.monotonic()
        if self.file:
            self.console.file = None  # type: ignore[assignment]  # rich's own default: what sys.stderr is
            self.file.close()

    # ---- what is shown ----

    def note(self, message: str, **fields: Any) -> None:
        """Print a line that the user should know, and its fields where the log is JSON."""
        self.console.say(message, **fields)

    def wait_for(self, what: str) -> None:
        """Show what is waited for, until there are figures."""
        if what != self.doing:
            self.doing = what
            self.since = time.monotonic()

    @property
    def waited(self) -> str:
        """Return what is waited for, and for how long."""
        return f"{self.doing} ({time.monotonic() - self.since:.0f} s)"

    @property
    def has_figures(self) -> bool:
        """Tell whether there is more to show than what is waited for."""
        return False

    @property
    def share(self) -> float | None:
        """Return how much is done, from 0 to 1; None while nobody knows."""
        return None

    def line(self) -> str:
        """Return one line: the figures, or what is waited for."""
        return self.waited

    def line_beside_bar(self, columns: int) -> str:
        """Return the line in a form that has room beside the bar, where there is one."""
        return self.line()

    def write_line(self) -> None:
        """Print the figures as a plain line."""

    @property
    def is_shown(self) -> bool:
        """Tell whether this is the inner one of the displays that are open."""
        return LiveDisplay.open[-1:] == [self]

    # ---- the thread ----

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
            if self.has_figures:
                if now - printed >= LINE_EVERY:
                    printed = now
                    self.write_line()
            elif self._told != self.doing and now - self.since >= self._told_after:
                printed = now
                self._told = self.doing
                self.console.say(f"{self.doing} ...", event="wait")
            elif self._told == self.doing and now - printed >= WAIT_EVERY:
                printed = now
                self.console.say(self.waited, event="wait", seconds=round(now - self.since))

    @property
    def _told_after(self) -> float:
        return STORES_TOLD_AFTER if self.doing == STORES else WAIT_TOLD_AFTER

    def _show_bar(self) -> None:
        columns = (
            SpinnerColumn(),
            BarColumn(self.bar_width),
            TextColumn("{task.fields[percent]:>4}"),
            TextColumn("{task.description}", markup=False),
        )
        while not self._stop.wait(BAR_AFTER_S):
            if not self.is_shown:
                continue
            with Progress(*columns, console=self.console, transient=True) as bar:
                task = bar.add_task("", total=None, percent="")
                while self.is_shown:
                    share = self.share
                    percent = "" if share is None else f"{int(100 * share)}%"
                    told = self.line_beside_bar(self.console.width - BAR_COLUMNS)
                    total = None if share is None else 1.0  # None: the bar swings to and fro
                    bar.update(task, total=total, completed=share or 0.0, description=told, percent=percent)
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


def duration(seconds: float) -> str:
    """Return a time as a person says it, such as "3 min 20 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
