"""End a training that is told to end (Ctrl-C, SIGTERM) with a checkpoint of its workers' next step.

The command notes the signal and tells the channel of the news. The workers ask the channel now and then, all
at the same step, save a checkpoint there and return. Ray Train then copies the checkpoint and registers it,
as at the end of any training, and the command ends as the signal asks for.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from wordsworth.pipeline.cluster.grace import EndingSignals

# The command takes signals before it has loaded torch.
if TYPE_CHECKING:
    from wordsworth.pipeline.training.collectives import Collectives

LOOK_S = 1.0  # seconds between two looks of the workers


class TrainingEnd(EndingSignals):
    """Give the workers of a training the time for a last checkpoint.

    Attributes:
        has_begun: whether workers have begun their steps: before, there is nothing to save.
    """

    def __init__(self, seconds: float, note: Callable[[str], None]):
        """Keep the arguments.

        Args:
            seconds: in which the checkpoint must be whole.
            note: gets what the user should know, in a thread of its own.
        """
        super().__init__(seconds)
        self.note = note
        self.has_begun = False
        self.is_over = threading.Event()

    def begin(self) -> bool:
        """Begin to wait for the workers. Return False where they have not begun."""
        if self.has_begun:
            threading.Thread(target=self._wait, daemon=True).start()
        return self.has_begun

    def is_told(self) -> bool:
        """Tell whether the training is told to end."""
        return self.signal is not None

    def finish(self) -> None:
        """End the command where that was asked for.

        Raises:
            KeyboardInterrupt: by the handler that was there before.
        """
        if self.signal is not None:
            self.end(self.signal)

    def _wait(self) -> None:
        """Send the signal once more when the time is over: the main thread waits for Ray meanwhile."""
        self.note(
            f"told to end: the workers save a checkpoint, for {self.seconds:g} s at most (--grace); "
            "a second signal ends at once"
        )
        if not self.is_over.wait(self.seconds) and self.signal is not None:
            signal.pthread_kill(threading.main_thread().ident or 0, self.signal)


@contextlib.contextmanager
def training_end(seconds: float, note: Callable[[str], None]) -> Iterator[TrainingEnd]:
    """Give a block a TrainingEnd that takes its signals. The arguments are those of TrainingEnd."""
    made = TrainingEnd(seconds, note)
    made.take_signals()
    try:
        yield made
    finally:
        made.is_over.set()
        made.give_back()


class EndWatch:
    """Let all workers know at the same step that the training is told to end.

    A look is an exchange between the workers, so only some steps have one. How many steps lie between two
    looks follows from the seconds that steps take, and is the same for all workers.

    Attributes:
        is_told: whether the workers know.
    """

    def __init__(self, collectives: "Collectives", ask: Callable[[], bool]):
        """Keep the arguments.

        Args:
            collectives: exchange numbers between the workers.
            ask: tells whether the training is told to end; the first worker asks.
        """
        self.collectives = collectives
        self.ask = ask
        self.is_told = False
        self.steps_between = 1
        self.steps = 0  # since the last look
        self.looked = time.monotonic()

    def step(self) -> bool:
        """Count a step, and tell whether the training is to end behind it. All workers must call this."""
        self.steps += 1
        return self.steps >= self.steps_between and self.look()

    def look(self) -> bool:
        """Tell whether the training is told to end. All workers must call this."""
        now = time.monotonic()
        is_told = self.collectives.rank == 0 and self.ask()
        told, seconds = self.collectives.maxima([float(is_told), now - self.looked])
        if self.steps:
            fitting = int(LOOK_S * self.steps / max(seconds, 1e-9))
            self.steps_between = max(1, min(fitting, 2 * self.steps))
        self.steps = 0
        self.looked = now
        self.is_told = told > 0
        return self.is_told
