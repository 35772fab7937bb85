"""Hold the names of sources, millions of them in little memory."""

import hashlib
import heapq
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

NAMES_IN_BLOCK = 4096  # names that are compressed together
NAMES_IN_RUN = 65536  # names that are sorted at once
HASHES_UNSORTED = 65536  # hashes that are held one by one
HASH_BYTES = 16


class SourceNames(Sequence[str]):
    """Hold the sources of a command in their order, and which of them stood in a list.

    All but the last names are held compressed: paths take some ten bytes each.
    """

    def __init__(self, names: Iterable[str] = ()):
        self._blocks: list[bytes] = []
        self._last: list[str] = []  # names of no block yet
        self._listed: list[list[int]] = []  # first and next number of the sources of each list
        self._read: tuple[int, list[str]] = (-1, [])  # number and names of the block that was read last
        for name in names:
            self.append(name)

    def append(self, name: str, is_listed: bool = False) -> None:
        """Append a source; say whether it stood in a list."""
        if is_listed:
            number = len(self)
            if self._listed and self._listed[-1][1] == number:
                self._listed[-1][1] = number + 1
            else:
                self._listed.append([number, number + 1])
        self._last.append(name)
        if len(self._last) == NAMES_IN_BLOCK:
            text = "\0".join(self._last).encode("utf-8", "surrogatepass")
            self._blocks.append(zlib.compress(text, 1))
            self._last = []

    def is_listed(self, number: int) -> bool:
        """Return whether a source stood in a list."""
        return any(first <= number < end for first, end in self._listed)

    def __len__(self) -> int:
        return len(self._blocks) * NAMES_IN_BLOCK + len(self._last)

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            yield from _names_in(block)
        yield from self._last

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        block, place = divmod(number, NAMES_IN_BLOCK)
        if block == len(self._blocks):
            return self._last[place]
        if self._read[0] != block:
            self._read = (block, _names_in(self._blocks[block]))
        return self._read[1][place]

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has the same names."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _names_in(block: bytes) -> list[str]:
    return zlib.decompress(block).decode("utf-8", "surrogatepass").split("\0")


def sorted_names_hash(names: Iterable[str]) -> str:
    """Return the sha256 of names in order, one a line. Few of them are held at once."""
    runs: list[SourceNames] = []
    run: list[str] = []
    for name in names:
        run.append(name)
        if len(run) == NAMES_IN_RUN:
            runs.append(SourceNames(sorted(run)))
            run = []
    digest = hashlib.sha256()
    separator = ""
    for name in heapq.merge(*runs, sorted(run)):
        digest.update(f"{separator}{name}".encode())
        separator = "\n"
    return digest.hexdigest()


class NameSet:
    """Hold a set of names as hashes: 16 bytes for each of many, however long the names are."""

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._sorted: list[np.ndarray] = []  # hashes in order; each array is at most half of the one before

    def add(self, names: Iterable[str]) -> list[bool]:
        """Add names in turn; return which of them were in the set already."""
        hashes = [_hash(name) for name in names]
        old = self._find(hashes)
        for number, hashed in enumerate(hashes):
            old[number] = old[number] or hashed in self._recent
            if not old[number]:
                self._recent.add(hashed)
        if len(self._recent) > HASHES_UNSORTED:
            self._sort()
        return old

    def __contains__(self, name: str) -> bool:
        hashed = _hash(name)
        return hashed in self._recent or self._find([hashed])[0]

    def __bool__(self) -> bool:
        return bool(self._recent or self._sorted)

    def _find(self, hashes: list[bytes]) -> list[bool]:
        """Return which hashes are in the sorted arrays."""
        found = np.zeros(len(hashes), bool)
        if self._sorted and hashes:
            wanted = np.array(hashes, f"V{HASH_BYTES}").view(_PAIR)
            for array in self._sorted:
                place = np.minimum(np.searchsorted(array, wanted), len(array) - 1)
                found |= array[place] == wanted
        return [bool(one) for one in found]

    def _sort(self) -> None:
        array = np.sort(np.array(list(self._recent), f"V{HASH_BYTES}").view(_PAIR))
        self._recent = set()
        while self._sorted and len(self._sorted[-1]) < 2 * len(array):
            array = np.sort(np.concatenate([self._sorted.pop(), array]))
        self._sorted.append(array)


_PAIR = np.dtype(f"S{HASH_BYTES}")


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
