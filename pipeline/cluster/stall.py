"""End a run that gets no receipt any more, and say what every stage was doing. A hang would cost a night."""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from wordsworth.pipeline.cluster.grace import Grace
from wordsworth.pipeline.cluster.life import last_sign_of_life
from wordsworth.pipeline.cluster.ray_internals import ExecutorProbe
from wordsworth.pipeline.cluster.session import RECEIPTS_THREAD
from wordsworth.pipeline.errors import ClusterGone, UserError

PATIENCE = 10.0  # seconds to wait for an answer of a cluster that may be gone
LOOK = 5.0  # seconds between two looks at the head, and seconds that a look may take
SIGNAL_LOOK = 0.25  # seconds between two looks whether the run was told to end
HEAD_PATIENCE = 25.0  # seconds without the head until the cluster is given up
QUEUE_LENGTH = 1024  # receipts that wait for the caller

T = TypeVar("T")


def with_stall_timeout(
    receipts: Iterator[T],
    timeout_s: float,
    note: Callable[[str], None],
    what: str = "file was written",
    grace: Grace | None = None,
) -> Iterator[T]:
    """Give the receipts on, as long as one comes within `timeout_s` seconds of the one before.

    A sign of life of a worker counts like a receipt: a unit of slow images takes long, and has an end.

    The receipts are drawn in a thread of their own, so the caller waits where an interrupt reaches the caller
    at once, whatever Ray does.

    Args:
        receipts: an iterator over what a run of Ray Data gives.
        timeout_s: seconds without a receipt after which the run is ended.
        note: gets what every stage was doing, a line at a time.
        what: completes the sentence "no ... for 60 s".
        grace: is asked again and again whether the run is to end.

    Raises:
        UserError: there was no receipt for `timeout_s` seconds.
        ClusterGone: the cluster's head is gone.
    """
    drawn: queue.Queue[T | _End] = queue.Queue(maxsize=QUEUE_LENGTH)
    drawing = threading.Thread(target=_draw, args=(receipts, drawn), daemon=True, name=RECEIPTS_THREAD)
    drawing.start()
    silence = _Silence(timeout_s, note, what)
    must_stop = True
    try:
        while True:
            if grace:
                grace.check()
            try:
                one = drawn.get(timeout=min(timeout_s, SIGNAL_LOOK if grace else LOOK))
            except queue.Empty:
                silence.check()
                continue
            silence.end()
            if isinstance(one, _End):
                must_stop = False
                if one.error is not None:
                    raise one.error
                return
            yield one
    except ClusterGone:
        must_stop = False  # nothing is left that could be stopped
        raise
    finally:
        if must_stop:
            _in_time(ExecutorProbe.stop)
            _join_threads(drawing, ExecutorProbe.executor)


@dataclass
class _End:
    """Mark the end of the receipts, and hold the error that ended them."""

    error: BaseException | None = None


def _draw(receipts: Iterator[T], drawn: "queue.Queue[T | _End]") -> None:
    try:
        for receipt in receipts:
            drawn.put(receipt)
        drawn.put(_End())
    except BaseException as error:  # it is raised where the receipts are used
        drawn.put(_End(error))


def _stalled(what: str, timeout_s: float, note: Callable[[str], None]) -> UserError:
    """Tell `note` what every stage was doing, and return the error that ends the run."""
    note(f"no {what} for {timeout_s:,.0f} s. What every stage is doing:")
    for line in [*ExecutorProbe.describe(), _cluster()]:
        note(f"  {line}")
    return UserError(
        f"stalled: no {what} for {timeout_s:,.0f} s (--stall-timeout). "
        "What is done is kept: run the same command again"
    )


def _cluster() -> str:
    """Say how many nodes live and what is free, or that nobody answers."""
    answers = _in_time(_describe_cluster)
    return answers[0] if answers else "cluster: does not answer"


def _describe_cluster() -> str:
    import ray

    nodes = ray.nodes()
    free = ray.available_resources()
    whole = ray.cluster_resources()
    parts = []
    for name in ("CPU", "GPU"):
        if whole.get(name):
            parts.append(f"{free.get(name, 0):g} of {whole[name]:g} {name}")
    parts.append(f"{free.get('memory', 0) / 2**30:.1f} of {whole.get('memory', 0) / 2**30:.1f} GiB")
    num_alive = sum(node["Alive"] for node in nodes)
    return f"cluster: {num_alive} of {len(nodes)} nodes alive; free: {', '.join(parts)}"


def _in_time(call: Callable[[], T]) -> list[T]:
    """Return what `call` gives, in a list that stays empty if the call fails or takes longer than PATIENCE.

    A cluster that is gone never answers.
    """
    answers: list[T] = []

    def attempt() -> None:
        with contextlib.suppress(Exception):
            answers.append(call())

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers


def _join_threads(*threads: Any) -> None:
    """Wait for threads to end, for a while in all. What is no thread is passed over."""
    deadline = time.monotonic() + PATIENCE / 2
    for thread in threads:
        if isinstance(thread, threading.Thread):
            thread.join(max(0.0, deadline - time.monotonic()))


class _Silence:
    """Watch the time since the last receipt."""

    def __init__(self, timeout_s: float, note: Callable[[str], None], what: str):
        self.timeout_s = timeout_s
        self.note = note
        self.what = what
        self.head = _Head()
        self.life = _Life(every_s=max(LOOK, timeout_s / 20))
        self.last_receipt = self.last_look = time.monotonic()

    def end(self) -> None:
        """Begin anew: a receipt has come."""
        self.last_receipt = time.monotonic()

    def check(self) -> None:
        """Look at the head and the workers, unless the last look was a moment ago.

        Raises:
            UserError: the silence is too long.
            ClusterGone: the cluster's head is gone.
        """
        if time.monotonic() - self.last_look < min(self.timeout_s, LOOK):
            return
        self.last_look = time.monotonic()
        self.head.check()
        if self.life.has_shown():
            self.last_receipt = time.monotonic()
        if time.monotonic() - self.last_receipt >= self.timeout_s:
            raise _stalled(self.what, self.timeout_s, self.note)


class _Life:
    """Look whether workers have given a sign of life since the look before."""

    def __init__(self, every_s: float):
        self.every_s = every_s
        self.last_look = time.monotonic()
        self.last_sign: str | None = None

    def has_shown(self) -> bool:
        """Look, unless the last look was a moment ago."""
        if time.monotonic() - self.last_look < self.every_s:
            return False
        self.last_look = time.monotonic()
        answers = _in_time(last_sign_of_life)
        if not answers or answers[0] in (None, self.last_sign):
            return False
        self.last_sign = answers[0]
        return True


class _Head:
    """Look for the cluster's head. A minute after the head is gone, Ray ends this process from within,
    without a word.

    Attributes:
        place: host and port of the head; None where there is no Ray.
        silent_since: when the first look of a row of looks found nobody, by the clock of `time.monotonic`.
    """

    def __init__(self) -> None:
        import ray

        self.place: tuple[str, int] | None = None
        if ray.is_initialized():
            host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
            self.place = host.strip("[]"), int(port)  # an IPv6 address stands in brackets
        self.silent_since: float | None = None

    def check(self) -> None:
        """Look once.

        Raises:
            ClusterGone: look after look found nobody, for HEAD_PATIENCE seconds.
        """
        if self.place is None:
            return
        try:
            socket.create_connection(self.place, timeout=LOOK).close()
            self.silent_since = None
            return
        except OSError:
            self.silent_since = self.silent_since or time.monotonic()
        if time.monotonic() - self.silent_since > HEAD_PATIENCE:
            raise ClusterGone(
                f"Ray's head at {self.place[0]}:{self.place[1]} is gone, and with it the cluster. "
                "What is done is kept: start Ray again, and run the same command again"
            )
