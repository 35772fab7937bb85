"""Find images that are nearly the same, by their embeddings."""

from dataclasses import dataclass

import numpy as np

ALIKE = 0.97  # cosine of the angle between two embeddings, from which on their images count as alike
BLOCK = 512  # rows that are compared with all others at a time
MOST_PAIRS = 200_000  # pairs that are kept while groups are made


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Hold images that are alike, each one to at least one other of the group.

    Attributes:
        members: their rows.
        similarity: the largest cosine within the group.
    """

    members: list[int]
    similarity: float


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Hold what was found among the rows that were compared.

    Attributes:
        groups: groups of images that are alike, the most alike first.
        num_pairs: pairs that are alike.
        num_compared: rows that were compared, each with each.
        is_cut: whether there were more pairs than are kept: then groups may be larger than they are here.
    """

    groups: list[DuplicateGroup]
    num_pairs: int
    num_compared: int
    is_cut: bool


def find_duplicates(embeddings: np.ndarray, alike: float = ALIKE) -> Duplicates:
    """Return the groups of rows whose embeddings are alike.

    The mean of all rows is taken off first: embeddings of one model share a large part, and without this
    step all images look alike. Rows that equal the mean have no direction, and are alike to each other alone.

    Args:
        embeddings: (M, D) float32, finite.
        alike: cosine from which on two rows are alike.
    """
    mean = embeddings.mean(0, dtype=np.float64)
    centred = embeddings - mean
    length = np.linalg.norm(centred, axis=1)
    is_mean = length <= 1e-6 * np.linalg.norm(mean)
    unit = centred / np.maximum(length, 1e-12)[:, None]
    unit[is_mean] = 0
    pairs, cosines, num_pairs = _pairs(np.c_[unit, is_mean].astype(np.float32), alike)
    return Duplicates(
        groups=_groups(pairs, cosines),
        num_pairs=num_pairs,
        num_compared=len(embeddings),
        is_cut=num_pairs > len(pairs),
    )


def _pairs(unit: np.ndarray, alike: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (P, 2) pairs of rows, their cosines, and how many pairs there are in all."""
    kept, cosines, num_pairs, num_kept = [], [], 0, 0
    for begin in range(0, len(unit), BLOCK):
        found = unit[begin : begin + BLOCK] @ unit[begin:].T
        left, right = np.nonzero(np.triu(found >= alike, 1))
        num_pairs += len(left)
        room = MOST_PAIRS - num_kept
        kept.append(np.c_[left[:room], right[:room]] + begin)
        cosines.append(found[left[:room], right[:room]])
        num_kept += len(cosines[-1])
    if not kept:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32), 0
    return np.concatenate(kept), np.concatenate(cosines), num_pairs


def _groups(pairs: np.ndarray, cosines: np.ndarray) -> list[DuplicateGroup]:
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for left, right in pairs.tolist():
        parent[root(right)] = root(left)
    best: dict[int, float] = {}
    members: dict[int, list[int]] = {}
    for (left, _), cosine in zip(pairs.tolist(), cosines.tolist(), strict=True):
        best[root(left)] = max(best.get(root(left), -1.0), cosine)
    for row in sorted(parent):
        members.setdefault(root(row), []).append(row)
    groups = [DuplicateGroup(members=rows, similarity=min(1.0, best[top])) for top, rows in members.items()]
    return sorted(groups, key=lambda group: (-group.similarity, group.members))
