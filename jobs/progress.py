"""What a person sees while a run goes: a live bar on a terminal, a plain line every ten seconds elsewhere. All on stderr."""

import json
import threading
import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

LINE_EVERY = 10.0  # seconds


class RunProgress:
    """Follows a run by its receipts. Use as a context."""

    def __init__(self, verb: str):
        self.verb = verb
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.images, self.errors, self.bytes, self.base = 0, Counter(), 0, 0
        self.total = 0
        self.started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._bar: Progress | None = None

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    # ---- what the labeler calls ----

    def note(self, message: str) -> None:
        self.console.print(escape(message))

    def planned(
        self, shards: int, shards_done: int, bytes_total: int, bytes_done: int, listed: bool = True
    ) -> None:
        done = f", {shards_done:,} of them done before" if shards_done else ""
        more = "" if listed else ", and what else the listing finds"
        self.note(
            f"{self.verb} {shards:,} {'shard' if shards == 1 else 'shards'} ({decimal(bytes_total)}){done}{more}"
        )
        self.total, self.base, self.started = bytes_total, bytes_done, time.monotonic()
        self._thread.start()

    def listed(self, shards: int, bytes_total: int) -> None:
        """The listing has come further."""
        self.total = bytes_total

    def receipt(self, receipt: dict[str, Any]) -> None:
        self.images += receipt["rows"]
        self.bytes += receipt["bytes_read"]
        self.errors.update(json.loads(receipt["errors"]))
        if receipt["fault"]:
            self.note(f"{receipt['shard']} could not be read on: {receipt['fault']}")

    # ---- what is shown ----

    @property
    def share(self) -> float:
        return min(1.0, (self.base + self.bytes) / self.total) if self.total else 1.0

    def line(self) -> str:
        """One line of figures; the time left follows from the bytes read since this command began."""
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
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
