"""End a run that is told to end (Ctrl-C, SIGTERM) when its units in flight are written, or after a while.

`pipeline/training/ending.py` ends a training.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

from wordsworth.pipeline.cluster.ray_internals import RunningPlan

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class EndingSignals:
    """Take the first signal as a wish to end. The second signal ends the command at once.

    A handler that raises where a signal happens to come can be lost: Python drops what is raised while it
    tidies up an object. This handler only notes the wish.

    Attributes:
        seconds: that may pass between the wish and the end.
        signal: the first one that came; None before.
        deadline: when these seconds are over, by the clock of `time.monotonic`.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.handlers: dict[int, Any] = {}  # of the signals, before this
        self.signal: int | None = None
        self.deadline = 0.0

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

    def begin(self) -> bool:
        """Begin to end. Return False where nothing is worth waiting for."""
        raise NotImplementedError

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None or not self.begin():
            self.end(number)
        self.signal = number
        self.deadline = time.monotonic() + self.seconds

    def end(self, number: int) -> None:
        """End the command by the handler of a signal that was there before.

        Raises:
            KeyboardInterrupt: always.
        """
        handler = self.handlers[number]
        self.give_back()
        handler(number, None)
        raise KeyboardInterrupt


class Grace(EndingSignals):
    """End a run that is told to end: nothing more is begun, and units in flight are finished."""

    def __init__(self, seconds: float, stages: Collection[str], note: Callable[..., None]):
        """Keep the arguments.

        Args:
            seconds: in which units in flight are finished.
            stages: names of the stages that begin nothing more, of which the last runs the model.
            note: gets what the user should know; of the end also the event and the seconds, as a log has it.
        """
        super().__init__(seconds)
        self.stages = stages
        self.note = note
        self.user_was_told = False

    def begin(self) -> bool:
        """Let the stages begin nothing more. Return False where no plan runs."""
        return RunningPlan.close(self.stages)

    def check(self) -> None:
        """End the run where that was asked for, and nothing is in flight any more or the time is over.

        Raises:
            KeyboardInterrupt: by the handler that was there before.
        """
        if self.signal is None:
            return
        num_units = RunningPlan.units_in_flight(self.stages)
        if num_units == 0 or time.monotonic() > self.deadline:
            self.end(self.signal)
        if not self.user_was_told:
            self.user_was_told = True
            files = "the file" if num_units == 1 else f"the {num_units} files"
            self.note(
                f"told to end: finishes {files} under way, for {self.seconds:g} s at most "
                "(--grace); Ctrl-C again ends at once",
                event="ending",
                seconds=self.deadline - time.monotonic(),
            )

    def finish(self) -> None:
        """End the run where that was asked for: what follows the last unit is left to the next command.

        Raises:
            KeyboardInterrupt: by the handler that was there before.
        """
        if self.signal is not None:
            self.end(self.signal)


@contextlib.contextmanager
def grace(seconds: float, stages: Collection[str], note: Callable[..., None]) -> Iterator[Grace]:
    """Give a block a Grace whose `check` ends the block. The arguments are those of Grace."""
    made = Grace(seconds, stages, note)
    made.take_signals()
    try:
        yield made
    finally:
        made.give_back()
