"""Count how far labels, scores and embeddings of the same images moved between two runs."""

from typing import Self

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.report.selection import Selection

NUM_BINS = 10  # of the scores, of equal width between 0 and 1
SMOOTHING = 0.5  # rows that are added to each bin
LEAST_ROWS = 50  # rows of a label in each run from which on its shift is told
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75)  # of the cosines


class ScoreTally:
    """Count the scores of one run by label.

    Attributes:
        bins: (L, NUM_BINS) rows by label and score.
        sums: (L,) sums of the scores.
    """

    def __init__(self) -> None:
        self.bins = np.zeros((0, NUM_BINS), np.int64)
        self.sums = np.zeros(0)

    def add(self, labels: np.ndarray, scores: np.ndarray, num_labels: int) -> None:
        """Count rows.

        Args:
            labels: (M,) numbers of labels.
            scores: (M,) float64, of which none is NaN; those outside [0, 1] count in the outer bins.
            num_labels: labels that are known by now.
        """
        more = num_labels - len(self.sums)
        if more > 0:
            self.bins = np.concatenate([self.bins, np.zeros((more, NUM_BINS), np.int64)])
            self.sums = np.concatenate([self.sums, np.zeros(more)])
        of_bin = np.clip((scores * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
        flat = np.bincount(labels * NUM_BINS + of_bin, minlength=self.bins.size)
        self.bins += flat.reshape(self.bins.shape)
        self.sums += np.bincount(labels, scores, minlength=len(self.sums))

    def padded(self, num_labels: int) -> Self:
        """Return this tally, with a place for each of so many labels."""
        self.add(np.empty(0, np.int64), np.empty(0), num_labels)
        return self


def stability_index(before: np.ndarray, after: np.ndarray) -> float:
    """Return the population stability index (PSI) of two distributions of scores.

    It is the sum over bins of (q - p) * ln(q / p), where p and q are the shares of a bin before and after
    (N. Siddiqi, Credit Risk Scorecards, 2006): the sum of both Kullback-Leibler divergences. The bins are
    NUM_BINS of equal width between 0 and 1. SMOOTHING rows are added to each bin, so that an empty bin has a
    share too. By Siddiqi's rule of thumb less than 0.1 is no change, and more than 0.25 is a large one. Of n
    and m rows, chance alone makes about (NUM_BINS - 1) * (1 / n + 1 / m).

    Args:
        before, after: (NUM_BINS,) rows by score.
    """
    p = (before + SMOOTHING) / (before.sum() + SMOOTHING * len(before))
    q = (after + SMOOTHING) / (after.sum() + SMOOTHING * len(after))
    return float(((q - p) * np.log(q / p)).sum())


class EmbeddingDrift:
    """Collect the cosines between the embeddings of the same images in two runs. A row takes 4 bytes.

    Attributes:
        num_undefined: rows in which an embedding is zero or is not finite, so that there is no angle.
        farthest: rows with the least cosines; their ranks are the cosines times -1.

    Args:
        columns: to keep of the farthest rows.
        num_farthest: rows to keep.
    """

    def __init__(self, columns: list[str], num_farthest: int):
        self.num_undefined = 0
        self.farthest = Selection(num_farthest, columns)
        self._cosines: list[np.ndarray] = []

    def add(self, rows: pa.Table, a: pa.ChunkedArray, b: pa.ChunkedArray) -> None:
        """Compare rows.

        Args:
            rows: (M,) the rows, with the columns to keep.
            a, b: (M,) their embeddings; rows in which one is null are left out.
        """
        is_there = np.asarray(a.is_valid()) & np.asarray(b.is_valid())
        if not is_there.any():
            return
        kept = pa.array(is_there)
        x, y = _vectors(a.filter(kept)), _vectors(b.filter(kept))
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            cosines = np.einsum("ij,ij->i", x, y) / lengths
        is_defined = np.isfinite(cosines)
        self.num_undefined += int((~is_defined).sum())
        cosines = np.clip(cosines[is_defined], -1, 1)
        self._cosines.append(cosines.astype(np.float32))
        rows = rows.filter(kept).filter(pa.array(is_defined))
        self.farthest.add(rows, np.zeros(len(cosines), np.int64), -cosines)

    def cosines(self) -> np.ndarray:
        """Return the cosines of all rows that have one, float32."""
        return np.concatenate(self._cosines) if self._cosines else np.empty(0, np.float32)


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Return (M, D) float64."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1).astype(np.float64)
