"""Count pairs of classes, such as the right one and the predicted one, in an array and not in a dict."""

from collections.abc import Iterator

import numpy as np

MERGE_AT = 1_000_000  # pairs that wait until they are counted together
LABEL_BITS = 32  # of the second class in the number of a pair


class PairCounts:
    """Count pairs of classes. Memory grows with the different pairs: 16 bytes each."""

    def __init__(self) -> None:
        self._pairs = [np.empty(0, np.int64)]
        self._counts = [np.empty(0, np.int64)]
        self._waiting = 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Count (M,) pairs: a class of each pair in `a`, the other in `b`."""
        self.add_counted(*np.unique(pair_numbers(a, b), return_counts=True))

    def add_counted(self, pairs: np.ndarray, counts: np.ndarray) -> None:
        """Count (M,) pairs by their numbers, each as often as its count says."""
        self._pairs.append(pairs)
        self._counts.append(counts)
        self._waiting += len(pairs)
        if self._waiting > MERGE_AT + len(self._pairs[0]):
            self._merge()

    def _merge(self) -> None:
        pairs, inverse = np.unique(np.concatenate(self._pairs), return_inverse=True)
        counts = np.zeros(len(pairs), np.int64)
        np.add.at(counts, inverse.reshape(-1), np.concatenate(self._counts))
        self._pairs, self._counts, self._waiting = [pairs], [counts], 0

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the different pairs by their numbers, ascending, and the count of each."""
        self._merge()
        return self._pairs[0], self._counts[0]

    def items(self) -> Iterator[tuple[tuple[int, int], int]]:
        """Yield each different pair and its count."""
        pairs, counts = self.all()
        a, b = split_pairs(pairs)
        yield from zip(zip(a.tolist(), b.tolist(), strict=True), counts.tolist(), strict=True)

    def unordered(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs as one, whichever class came first: the smaller class in front."""
        pairs, counts = self.all()
        a, b = split_pairs(pairs)
        unordered, inverse = np.unique(pair_numbers(np.minimum(a, b), np.maximum(a, b)), return_inverse=True)
        sums = np.zeros(len(unordered), np.int64)
        np.add.at(sums, inverse.reshape(-1), counts)
        return unordered, sums


def pair_numbers(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (M,) one number for each pair of classes."""
    return (a.astype(np.int64) << LABEL_BITS) | b.astype(np.int64)


def split_pairs(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of (M,) pairs."""
    return pairs >> LABEL_BITS, pairs & ((1 << LABEL_BITS) - 1)


def most_frequent(counts: np.ndarray, most: int) -> np.ndarray:
    """Return the places of the highest counts, the highest first; equal counts keep their order."""
    return np.argsort(-counts, kind="stable")[:most]
