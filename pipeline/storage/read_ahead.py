"""Ask a store for what comes next while what came is worked on: the next ranges of an object, or the next of
many objects. So a store's latency is waited for once, and not at every request."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

RANGE_BYTES = 8 << 20  # bytes of one range
RANGES_AHEAD = 2  # ranges that are under way or wait
OBJECTS_AHEAD = 32  # objects that are under way or wait
HELD_BYTES = 64 << 20  # bytes of these objects, unless a single one is larger


class ReadAhead:
    """Read an object front to back in ranges; the next ranges come meanwhile, in threads.

    The second read asks for more than one range: who wants only the beginning of an object gets no more.
    Memory holds the range that is read and RANGES_AHEAD more. A client may hold a range twice while it
    arrives.

    Args:
        read: asks once for the bytes from one place to before another; may give fewer
        again: calls a function, and calls it again after an error that may pass
        size: bytes of the object
        position: byte to begin at
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        again: Callable[[Callable[[], bytes]], bytes],
        size: int,
        position: int,
    ):
        self._read = read
        self._again = again
        self._size = size
        self._first = position
        self._next = position  # first byte that was not asked for
        self._held = memoryview(b"")
        self._coming: deque[tuple[int, Future[bytes]]] = deque()  # each with its first byte
        self._pool: ThreadPoolExecutor | None = None
        self._is_closed = False

    def read(self, size: int) -> memoryview:
        """Return up to `size` bytes; none at the end.

        Raises:
            Exception: what `again` raised. The next read asks for the same range anew.
        """
        if self._held:
            self._begin(RANGES_AHEAD)
        else:
            self._held = memoryview(self._take())
        data, self._held = self._held[:size], self._held[size:]
        return data

    def _take(self) -> bytes:
        """Return the next range."""
        self._begin(1)
        if not self._coming:
            return b""
        begin, coming = self._coming.popleft()
        try:
            data = coming.result()
        except Exception:
            self._forget()
            self._next = begin
            raise
        if begin > self._first:
            self._begin(RANGES_AHEAD)
        return data

    def _begin(self, count: int) -> None:
        """Ask for the next ranges, until `count` of them are under way or wait."""
        while len(self._coming) < count and self._next < self._size:
            self._pool = self._pool or ThreadPoolExecutor(RANGES_AHEAD, "read-ahead")
            begin, self._next = self._next, min(self._size, self._next + RANGE_BYTES)
            self._coming.append((begin, self._pool.submit(self._range, begin, self._next)))

    def _range(self, begin: int, end: int) -> bytes:
        parts = []
        while begin < end:
            parts.append(self._again(partial(self._ask, begin, end)))
            begin += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _ask(self, begin: int, end: int) -> bytes:
        if self._is_closed:
            raise _Closed
        data = self._read(begin, end)
        if not data:
            raise OSError(f"the store gave nothing at byte {begin} of {self._size}")
        return data

    def _forget(self) -> None:
        while self._coming:
            self._coming.pop()[1].cancel()

    def close(self) -> None:
        """End the threads. A request that is under way is waited for, and is not made again if it fails."""
        self._is_closed = True
        self._forget()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


class _Closed(Exception):
    """End the tries of a range that nobody wants any more."""


def fetched_ahead(
    items: Iterable[Item],
    fetch: Callable[[Item], Result],
    claim: Callable[[Item], int],
    is_good: Callable[[Result], bool] = lambda result: True,
) -> Generator[tuple[Item, Result]]:
    """Yield each item with what was fetched for it, in order. Threads fetch the next ones meanwhile.

    The first one is fetched alone, and with each good one more are under way, up to OBJECTS_AHEAD and
    HELD_BYTES: a store that gives nothing is asked for little.

    Args:
        items: taken from the thread of the caller, as they are needed
        fetch: called in threads
        claim: returns the bytes that the result for an item will take
        is_good: says whether a store that gave a result is well

    Raises:
        Exception: what `fetch` raised, where its item would come. The items behind are not fetched then.
    """
    pool = ThreadPoolExecutor(OBJECTS_AHEAD, "fetch-ahead")
    under_way: deque[tuple[Item, int, Future[Result]]] = deque()
    held = 0
    most = 1
    source = iter(items)
    waiting = list(islice(source, 1))
    try:
        while waiting or under_way:
            while waiting and len(under_way) < most:
                size = claim(waiting[0])
                if under_way and held + size > HELD_BYTES:
                    break
                held += size
                under_way.append((waiting[0], size, pool.submit(fetch, waiting[0])))
                waiting = list(islice(source, 1))
            item, size, coming = under_way.popleft()
            result = coming.result()
            held -= size
            most = min(OBJECTS_AHEAD, most + 1) if is_good(result) else 1
            yield item, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
