"""Say for how long a fault of a store is waited out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from wordsworth.pipeline.errors import without_secrets

PATIENCE_S = 120.0  # a store that restarts, or asks for fewer requests, costs no shard
FIRST_PATIENCE_S = 5.0  # of a command, for a store that never answered it: the address may be wrong
FIRST_WAIT_S = 0.2  # upper bound of the random wait before the second try; doubles with each try
LONGEST_WAIT_S = 8.0  # upper bound of every wait: a store that is well again is asked soon


class StoreFailure(OSError):
    """Report that a store failed until the patience was over. It is not asked again."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Say that a store is asked again.

    Attributes:
        address: of the store's server.
        waited_s: seconds since the first try of this call.
        said: what the last try failed of.
    """

    address: str
    waited_s: float
    said: str


HearTrouble = Callable[[Trouble], None]

_asked: ContextVar[float | None] = ContextVar("patience_s", default=None)
_answered: set[str] = set()  # addresses of stores that answered this process
_silent: set[str] = set()  # addresses of stores that were waited for in vain
_is_command = False
_listeners: list[HearTrouble] = []  # called before a store is asked again


@contextmanager
def hearing_trouble(listener: HearTrouble) -> Iterator[None]:
    """Let a function hear inside the block, in whatever thread, that a store is asked again.

    The function must be quick: the thread that waits for the store calls it.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell_trouble(address: str, waited_s: float, error: BaseException | None) -> None:
    """Tell who wants to hear it that the store at an address is asked again."""
    if not _listeners:
        return
    said = " ".join(str(error).split()) or type(error).__name__
    trouble = Trouble(address=without_secrets(address), waited_s=waited_s, said=without_secrets(said))
    for listener in list(_listeners):
        listener(trouble)


def expect_a_person() -> None:
    """Let this process give up on a store that never answered after FIRST_PATIENCE_S: a person waits."""
    global _is_command
    _is_command = True


def note_answer(address: str) -> None:
    """Remember that the store at an address answered, if only by a refusal."""
    _answered.add(address)


def note_silence(address: str) -> None:
    """Remember that the store at an address did not answer while it was waited for."""
    _silent.add(address)


def patience_for(address: str) -> float:
    """Return for how many seconds a fault of the store at an address is waited out."""
    asked = _asked.get()
    if asked is not None:
        return asked
    if not _is_command or address in _answered:
        return PATIENCE_S
    return 0.0 if address in _silent else FIRST_PATIENCE_S


@contextmanager
def patience_of(seconds: float | None) -> Iterator[None]:
    """Wait faults out for this long inside the block; None changes nothing."""
    if seconds is None:
        yield
        return
    token = _asked.set(seconds)
    try:
        yield
    finally:
        _asked.reset(token)
