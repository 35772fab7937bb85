"""Count which of two runs is right about the same images."""

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.accuracy import AccuracyCounter
from wordsworth.pipeline.output.intervals import mcnemar_p_value, paired_interval
from wordsworth.pipeline.output.pair_counts import PairCounts, pair_numbers
from wordsworth.pipeline.report.difference import SideAccuracy, TruthDifference
from wordsworth.pipeline.report.joined_rows import SharedNames
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.selection import Selection
from wordsworth.pipeline.report.truth import (
    TruthNames,
    check_truth,
    keeps_truth,
    left_out_told,
    read_classes,
    read_truth,
    refuse_column,
    unknown_told,
)
from wordsworth.pipeline.report.truth_classes import TruthClasses, resolve
from wordsworth.pipeline.sources.model_target import NO_CLASS

NUM_CHANGED = 18  # images that became wrong, and as many that became right


class DiffTruth:
    """Hold the classes of the images of two runs.

    Attributes:
        side: 0 where the classes stand in the rows of the first run, 1 for the second.
        names: numbers the names of the classes.
        classes: the classes of the names, for each run.
    """

    def __init__(self, runs: tuple[RunRows, RunRows], where: str):
        """Find the classes, in a first pass over the rows of both runs.

        Raises:
            UserError: no run keeps such a column, no row has a class, or no class is one of a run's.
        """
        sides = [side for side, run in enumerate(runs) if keeps_truth(run, where)]
        if not sides:
            raise refuse_column(runs, where)
        self.side = sides[0]
        found = read_truth(runs[self.side], where)
        self.names: TruthNames = found.names
        other = runs[1 - self.side]
        of_other = resolve(where, found.names.names, read_classes(other))
        check_truth(other, found.names, of_other, found.counts)
        both = (found.classes, of_other)
        self.classes = both if self.side == 0 else both[::-1]

    def codes(self, side: int, names: SharedNames) -> np.ndarray:
        """Return the class of each name as a number of `SharedNames.labels`; NO_CLASS for none.

        A class that stands in no row of the run gets a number of its own.
        """
        classes: TruthClasses = self.classes[side]
        codes = np.full(len(classes.numbers), NO_CLASS, np.int64)
        for place, number in enumerate(classes.numbers.tolist()):
            if number >= classes.num_known:
                codes[place] = names.add_label(classes.labels[number])
            elif number != NO_CLASS:
                codes[place] = names.code(classes.labels[number])
        return codes


class DiffTruthTally:
    """Count joined rows with a label in both runs against their classes.

    Args:
        truth: the classes.
        names: the numbers of the labels, of all rows of both runs.
        columns: of a joined row, which are kept of the images that are shown.
    """

    def __init__(self, truth: DiffTruth, names: SharedNames, columns: list[str]):
        self.truth = truth
        self.names = names
        self.codes = (truth.codes(0, names), truth.codes(1, names))
        self.counters = (AccuracyCounter(), AccuracyCounter())
        self.counts = np.zeros(len(self.codes[0]), np.int64)
        self.num_right = np.zeros((2, 2), np.int64)  # by whether A and whether B is right
        self.num_labelled = 0
        self.worse, self.better = PairCounts(), PairCounts()
        self.became_wrong, self.became_right = (Selection(NUM_CHANGED, columns) for _ in range(2))

    def add(self, pairs: pa.Table) -> None:
        """Count joined rows with the columns of `diff_tally.PAIR`; each has a label in both runs."""
        named = pairs["truth"].to_numpy().astype(np.int64)
        self.num_labelled += len(named)
        self.counts += np.bincount(named, minlength=len(self.counts))
        has_class = (self.codes[0][named] != NO_CLASS) & (self.codes[1][named] != NO_CLASS)
        pairs, named = pairs.filter(pa.array(has_class)), named[has_class]
        if not len(named):
            return
        labels = [pairs[name].to_numpy().astype(np.int64) for name in ("label_a", "label_b")]
        scores = [_scores(pairs[name]) for name in ("score_a", "score_b")]
        right = []
        for counter, codes, said, sure in zip(self.counters, self.codes, labels, scores, strict=True):
            counter.add(codes[named], said[:, None], sure)
            right.append(codes[named] == said)
        for a in (0, 1):
            for b in (0, 1):
                self.num_right[a, b] += int(((right[0] == a) & (right[1] == b)).sum())
        is_worse, is_better = right[0] & ~right[1], ~right[0] & right[1]
        for is_meant, counts, kept in (
            (is_worse, self.worse, self.became_wrong),
            (is_better, self.better, self.became_right),
        ):
            counts.add(labels[0][is_meant], labels[1][is_meant])
            zeros = np.zeros(int(is_meant.sum()), np.int64)
            kept.add(pairs.filter(pa.array(is_meant)), zeros, scores[1][is_meant])

    def of_flip(self, label_a: int, label_b: int) -> tuple[int, int]:
        """Return how many images a change of labels made right, and how many it made wrong."""
        pair = pair_numbers(np.array([label_a]), np.array([label_b]))[0]
        return _count_of(self.better, pair), _count_of(self.worse, pair)

    def class_of(self, name: int | None) -> str | None:
        """Return the class of the number of a name, as the first run has it; None without one."""
        if name is None or self.codes[0][name] == NO_CLASS:
            return None
        return self.names.labels[self.codes[0][name]]

    def figures(self) -> TruthDifference:
        """Return the counts and shares; the images that changed are added later.

        Raises:
            UserError: no image that has a label in both runs has a class.
        """
        num_images = int(self.num_right.sum())
        where = self.truth.names.where
        if not num_images:
            raise UserError(f"no image with a label in both runs has a class: --truth {where} gives none")
        only_a, only_b = int(self.num_right[1, 0]), int(self.num_right[0, 1])
        a, b = (_side(counter) for counter in self.counters)
        return TruthDifference(
            where=where,
            read_from="AB"[self.truth.side],
            reading=self.truth.classes[self.truth.side].reading,
            num_images=num_images,
            num_left_out=self.num_labelled - num_images,
            notes=self._notes(),
            a=a,
            b=b,
            num_both_right=int(self.num_right[1, 1]),
            num_only_a_right=only_a,
            num_only_b_right=only_b,
            num_both_wrong=int(self.num_right[0, 0]),
            change=b.accuracy - a.accuracy,
            change_interval=paired_interval(only_a, only_b, num_images),
            p_value=mcnemar_p_value(only_a, only_b),
        )

    def _notes(self) -> list[str]:
        """Say what is left out and what is not known, of the images that are compared."""
        names = self.truth.names.names
        notes = left_out_told(names, self.counts, self.truth.classes[self.truth.side])
        of_a, of_b = (unknown_told(names, self.counts, classes) for classes in self.truth.classes)
        if of_a == of_b:
            return notes + ([of_a] if of_a else [])
        return notes + [f"in {name}, {told}" for name, told in (("A", of_a), ("B", of_b)) if told]


def _side(counter: AccuracyCounter) -> SideAccuracy:
    found = counter.figures(None)
    return SideAccuracy(
        num_right=counter.num_right,
        accuracy=found["top1"],
        interval=found["top1_interval"],
        calibration_error=found["calibration_error"],
        bins=counter.bins.tolist(),
    )


def _count_of(counts: PairCounts, pair: int) -> int:
    pairs, nums = counts.all()
    at = int(np.searchsorted(pairs, pair))
    return int(nums[at]) if at < len(pairs) and pairs[at] == pair else 0


def _scores(column: pa.ChunkedArray) -> np.ndarray:
    """Return (M,) float64 between 0 and 1; 0 for null."""
    return np.clip(np.nan_to_num(column.to_numpy().astype(np.float64)), 0, 1)
