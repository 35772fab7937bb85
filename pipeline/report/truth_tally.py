"""Count how often a run is right, and choose the mistakes that a page shows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.output.accuracy import AccuracyCounter
from wordsworth.pipeline.output.intervals import wilson_interval
from wordsworth.pipeline.output.pair_counts import pair_numbers, split_pairs
from wordsworth.pipeline.report.selection import Selection
from wordsworth.pipeline.report.statistics import PLACE
from wordsworth.pipeline.report.truth import RunTruth, left_out_told, unknown_told
from wordsworth.pipeline.sources.model_target import NO_CLASS

NUM_PAIRS = 20  # pairs of a right and a predicted class that are told, the most frequent first
PER_PAIR = 6  # images of each
NUM_MISTAKES = 24  # images of the most sure mistakes
SHOWN = (*PLACE, "label_id", "label", "score")  # columns of an image that is shown


@dataclass(frozen=True, kw_only=True)
class WorstPair:
    """Count the images of one class that got another label.

    Attributes:
        truth, label: names of the right class and of the predicted one.
        num: images.
        share: of the images of the right class.
    """

    truth: str
    label: str
    num: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Say how often the labels of a run are right.

    Attributes:
        where: where the class of an image stands.
        reading: by which names, for people.
        num_images: images with a label and a class.
        num_right: those whose label is their class.
        accuracy: their share.
        interval: its 95% interval (Wilson 1927).
        top_k: best classes of a row.
        num_in_top: images whose class is one of the best.
        in_top, in_top_interval: their share and its interval.
        calibration_error: the expected calibration error (Guo et al. 2017), over bins of equal width.
        bins: of the score: images, sum of their scores and right ones.
        num_left_out: labelled images that have no class to compare with.
        num_unknown: images that count as mistakes because their class stands in no row.
        notes: what of the images is left out and what is not known, for people.
        pairs: the most frequent mistakes.
        num_pairs: different pairs of a right and another predicted class.
        worst: the classes with the smallest share of right labels, as `wordsworth evaluate` has them.
    """

    where: str
    reading: str
    num_images: int
    num_right: int
    accuracy: float
    interval: list[float]
    top_k: int
    num_in_top: int
    in_top: float
    in_top_interval: list[float]
    calibration_error: float
    bins: list[list[float]]
    num_left_out: int
    num_unknown: int
    notes: list[str]
    pairs: list[WorstPair]
    num_pairs: int
    worst: list[dict[str, Any]]


class TruthTally:
    """Count labelled rows against their classes.

    Attributes:
        truth: what a first pass over the same rows found.
        counter: the code of `wordsworth evaluate`.
        mistakes: the mistakes of which the model is most sure, in one group 0.
        examples: of each of the worst pairs the images of which the model is most sure; the groups are the
            places of the pairs.
    """

    def __init__(self, truth: RunTruth):
        self.truth = truth
        self.counter = AccuracyCounter()
        self.top_k = 0
        self.pairs, self.pair_counts = truth.worst_pairs(NUM_PAIRS)
        self._order = np.argsort(self.pairs)
        self.mistakes = Selection(NUM_MISTAKES, [*SHOWN, "truth"])
        self.examples = Selection(PER_PAIR, [*SHOWN, "truth"])

    @property
    def columns(self) -> list[str]:
        """Return the columns that are read."""
        return [*PLACE, "label_id", "label", "score", "topk", "error", self.truth.names.column]

    def add(self, rows: pa.Table) -> None:
        """Count rows with the columns `columns`."""
        is_labelled = rows["error"].is_null().to_numpy() & rows["label_id"].is_valid().to_numpy()
        rows = rows.filter(pa.array(is_labelled))
        right = self.truth.classes.numbers[self.truth.names.of(rows)] if rows.num_rows else np.empty(0, int)
        has_class = right != NO_CLASS
        rows, right = rows.filter(pa.array(has_class)), right[has_class]
        if not rows.num_rows:
            return
        ids = best_classes(rows)
        scores = np.clip(np.nan_to_num(rows["score"].to_numpy().astype(np.float64)), 0, 1)
        self.top_k = ids.shape[1]
        self.counter.add(right, ids, scores)
        is_wrong = ids[:, 0] != right
        rows = rows.select(SHOWN).append_column("truth", pa.array(right, pa.int64()))
        rows = rows.filter(pa.array(is_wrong))
        right, said, scores = right[is_wrong], ids[is_wrong, 0], scores[is_wrong]
        self.mistakes.add(rows, np.zeros(len(right), np.int64), scores)
        if len(self.pairs):
            self._add_examples(rows, pair_numbers(right, said), scores)

    def _add_examples(self, rows: pa.Table, numbers: np.ndarray, scores: np.ndarray) -> None:
        found = np.searchsorted(self.pairs[self._order], numbers)
        places = self._order[np.clip(found, 0, len(self.pairs) - 1)]
        is_asked = self.pairs[places] == numbers
        self.examples.add(rows.filter(pa.array(is_asked)), places[is_asked], scores[is_asked])

    def accuracy(self) -> Accuracy:
        """Return the figures."""
        counter, classes = self.counter, self.truth.classes
        names, counts = self.truth.names.names, self.truth.counts
        found = counter.figures(classes.labels)
        unknown = unknown_told(names, counts, classes)
        notes = [*left_out_told(names, counts, classes), *([unknown] if unknown else [])]
        return Accuracy(
            where=self.truth.names.where,
            reading=classes.reading,
            num_images=counter.num_images,
            num_right=counter.num_right,
            accuracy=found["top1"],
            interval=found["top1_interval"],
            top_k=self.top_k,
            num_in_top=counter.num_in_top,
            in_top=counter.num_in_top / counter.num_images,
            in_top_interval=wilson_interval(counter.num_in_top, counter.num_images),
            calibration_error=found["calibration_error"],
            bins=counter.bins.tolist(),
            num_left_out=self.truth.num_rows - counter.num_images,
            num_unknown=int(counts[classes.numbers >= classes.num_known].sum()),
            notes=notes,
            pairs=self._worst_pairs(),
            num_pairs=len(self.truth.worst_pairs(1 << 62)[0]),
            worst=found["worst"],
        )

    def _worst_pairs(self) -> list[WorstPair]:
        all_pairs, all_counts = self.truth.pairs.all()
        images = np.bincount(split_pairs(all_pairs)[0], all_counts)
        labels = self.truth.classes.labels
        told = []
        for right, said, num in zip(*split_pairs(self.pairs), self.pair_counts, strict=True):
            share = float(num / images[right])
            told.append(WorstPair(truth=labels[right], label=labels[said], num=int(num), share=share))
        return told


def best_classes(rows: pa.Table) -> np.ndarray:
    """Return the numbers of the best classes (M, k) of labelled rows, the best one first."""
    lists = rows["topk"].combine_chunks()
    return lists.flatten().field("label_id").to_numpy(zero_copy_only=False).reshape(len(rows), -1)
