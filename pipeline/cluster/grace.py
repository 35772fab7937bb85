"""End a run that is told to end (Ctrl-C, SIGTERM) when its units in flight are written, or after a while."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

from wordsworth.pipeline.cluster.ray_internals import RunningPlan

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Grace:
    """Take the first signal as a wish: nothing more is begun. The second signal ends the run at once.

    A handler that raises where a signal happens to come can be lost: Python drops what is raised while it
    tidies up an object. This handler only notes the wish.
    """

    def __init__(self, seconds: float, stages: Collection[str], note: Callable[[str], None]):
        """Keep the arguments.

        Args:
            seconds: in which units in flight are finished.
            stages: names of the stages that begin nothing more, of which the last runs the model.
            note: gets what the user should know.
        """
        self.seconds = seconds
        self.stages = stages
        self.note = note
        self.handlers: dict[int, Any] = {}  # of the signals, before this
        self.signal: int | None = None  # the first one that came
        self.deadline = 0.0  # by the clock of `time.monotonic`
        self.user_was_told = False

    def take_signals(self) -> None:
        """Take the signals that end this process by an exception. Only the main thread can."""
        if self.seconds <= 0 or threading.current_thread() is not threading.main_thread():
            return
        for one in SIGNALS:
            if callable(signal.getsignal(one)):  # what is ignored stays ignored, what kills at once kills
                self.handlers[one] = signal.signal(one, self._on_signal)

    def give_back(self) -> None:
        """Put the handlers back that were there."""
        for one, handler in self.handlers.items():
            signal.signal(one, handler)
        self.handlers = {}

    def check(self) -> None:
        """End the run where that was asked for, and nothing is in flight any more or the time is over.

        Raises:
            KeyboardInterrupt: by the handler that was there before.
        """
        if self.signal is None:
            return
        num_units = RunningPlan.units_in_flight(self.stages)
        if num_units == 0 or time.monotonic() > self.deadline:
            self._end(self.signal)
        if not self.user_was_told:
            self.user_was_told = True
            units = "1 unit" if num_units == 1 else f"{num_units} units"
            self.note(
                f"told to end: finishes {units} in flight, for {self.seconds:g} s at most "
                "(--grace); a second signal ends at once"
            )

    def finish(self) -> None:
        """End the run where that was asked for: what follows the last unit is left to the next command.

        Raises:
            KeyboardInterrupt: by the handler that was there before.
        """
        if self.signal is not None:
            self._end(self.signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None or not RunningPlan.close(self.stages):
            self._end(number)
        self.signal = number
        self.deadline = time.monotonic() + self.seconds

    def _end(self, number: int) -> None:
        handler = self.handlers[number]
        self.give_back()
        handler(number, None)
        raise KeyboardInterrupt


@contextlib.contextmanager
def grace(seconds: float, stages: Collection[str], note: Callable[[str], None]) -> Iterator[Grace]:
    """Give a block a Grace whose `check` ends the block. The arguments are those of Grace."""
    made = Grace(seconds, stages, note)
    made.take_signals()
    try:
        yield made
    finally:
        made.give_back()
