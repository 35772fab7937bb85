"""Bound the bytes of images that are fetched at once, and never let the first one wait for later ones."""

import threading


class ByteBudget:
    """Share a number of bytes among fetches that have numbers in the order in which they are taken.

    The first fetch that was not taken yet gets whatever it asks for. So it can never wait for bytes that a
    later one holds.

    Args:
        limit: bytes that all fetches may hold, unless the first one alone needs more
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._first = 0  # number of the first fetch that was not taken
        self._held: dict[int, int] = {}  # bytes by the number of the fetch
        self._changed = threading.Condition()

    def claim(self, number: int, num_bytes: int) -> bool:
        """Return whether a fetch may hold so many bytes in all now. Then they are its own."""
        with self._changed:
            return self._claim(number, num_bytes)

    def wait(self, number: int, num_bytes: int) -> None:
        """Claim bytes for a fetch, as soon as there is room for them."""
        with self._changed:
            self._changed.wait_for(lambda: self._claim(number, num_bytes))

    def settle(self, number: int, num_bytes: int) -> None:
        """Give back what a fetch claimed and does not need; `num_bytes` are what it needs."""
        with self._changed:
            if number in self._held:
                self._held[number] = min(self._held[number], num_bytes)
                self._changed.notify_all()

    def take(self, number: int) -> None:
        """Give back all that a fetch claimed; the fetch with the next number is the first one now."""
        with self._changed:
            self._held.pop(number, None)
            self._first = number + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let no fetch wait any more."""
        with self._changed:
            self.limit = 1 << 62
            self._changed.notify_all()

    def _claim(self, number: int, num_bytes: int) -> bool:
        before = self._held.get(number, 0)
        more = max(0, num_bytes - before)
        if more and number > self._first and sum(self._held.values()) + more > self.limit:
            return False
        self._held[number] = before + more
        return True
