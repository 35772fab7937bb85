"""Count how often a model is right, from its predictions as they come."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wordsworth.pipeline.output.intervals import wilson_interval
from wordsworth.pipeline.output.pair_counts import PairCounts, split_pairs
from wordsworth.vit_model.recall import ClassRecall

NUM_BINS = 15  # bins of the calibration error, as in Guo et al. 2017 (arXiv:1706.04599)
NUM_WORST = 10  # classes that are named as the worst
NUM_CONFUSED = 4  # classes that are named as taken for one of the worst, at most


@dataclass
class AccuracyCounter:
    """Count right and wrong predictions. Memory grows with the pairs of classes that are confused.

    Attributes:
        num_images: images that could be decoded.
        num_errors: images that could not be decoded.
        num_right: images whose best class is right.
        num_in_top: images whose class is one of the best.
        bins: (NUM_BINS, 3): images, sum of their confidences, and right ones, by bin of confidences.
        confused: images by (class, predicted class).
    """

    num_images: int = 0
    num_errors: int = 0
    num_right: int = 0
    num_in_top: int = 0
    bins: np.ndarray = field(default_factory=lambda: np.zeros((NUM_BINS, 3)))
    confused: PairCounts = field(default_factory=PairCounts)

    def add(self, classes: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> None:
        """Count predictions.

        Args:
            classes: (M,) the right classes.
            ids: (M, k) the best predicted classes, the best one first.
            scores: (M,) confidence in the best predicted class.
        """
        is_right = ids[:, 0] == classes
        self.num_images += len(classes)
        self.num_right += int(is_right.sum())
        self.num_in_top += int((ids == classes[:, None]).any(1).sum())
        bin_of = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
        for column, values in enumerate((np.ones(len(scores)), scores, is_right)):
            self.bins[:, column] += np.bincount(bin_of, values, NUM_BINS)
        self.confused.add(classes, ids[:, 0])

    def figures(self, labels: tuple[str, ...] | None) -> dict[str, Any]:
        """Return what `wordsworth evaluate` prints; shares are of the images that could be decoded.

        Args:
            labels: class names by number, or None.

        Returns:
            `recall` has a row for each class that has an image, in the order of the classes; their mean is
            `balanced_accuracy`.
        """
        images, confidences, right = self.bins.T
        calibration_error = np.abs(confidences - right).sum() / max(1, images.sum())
        return {
            "images": self.num_images,
            "errors": self.num_errors,
            "top1": self.num_right / self.num_images,
            "top1_interval": wilson_interval(self.num_right, self.num_images),
            "top5": self.num_in_top / self.num_images,
            "balanced_accuracy": self.recall.balanced_accuracy,
            "calibration_error": float(calibration_error),
            "worst": self._worst_classes(labels),
            "recall": self._recall_rows(labels),
        }

    @property
    def recall(self) -> ClassRecall:
        """Return how often each class is found, up to the highest number of a class that has an image."""
        pairs, counts = self.confused.all()
        true, said = split_pairs(pairs)
        num_classes = 1 + int(true.max(initial=-1))
        is_right = true == said
        images = np.zeros(num_classes, np.int64)
        right = np.zeros(num_classes, np.int64)
        np.add.at(images, true, counts)
        np.add.at(right, true[is_right], counts[is_right])
        return ClassRecall(images, right)

    def _recall_rows(self, labels: tuple[str, ...] | None) -> list[dict[str, Any]]:
        recall = self.recall
        rows = []
        for number in recall.met.tolist():
            rows.append(
                {
                    "class": _class_name(number, labels),
                    "images": int(recall.images[number]),
                    "recall": float(recall.recall[number]),
                }
            )
        return rows

    def _worst_classes(self, labels: tuple[str, ...] | None) -> list[dict[str, Any]]:
        """Return the classes with the smallest share of right predictions, and what they are taken for."""
        predicted: dict[int, Counter[int]] = {}
        for (right, said), count in self.confused.items():
            predicted.setdefault(right, Counter())[said] += count

        def badness(number: int) -> tuple[float, int, int]:
            images = predicted[number].total()
            return predicted[number][number] / images, -images, number

        worst = sorted(predicted, key=badness)[:NUM_WORST]
        return [_describe_class(number, predicted[number], labels) for number in worst]


def _describe_class(number: int, predicted: Counter[int], labels: tuple[str, ...] | None) -> dict[str, Any]:
    taken_for = {}
    for other, count in predicted.most_common(NUM_CONFUSED):
        if other != number:
            taken_for[_class_name(other, labels)] = count
    return {
        "class": _class_name(number, labels),
        "images": predicted.total(),
        "accuracy": predicted[number] / predicted.total(),
        "taken_for": taken_for,
    }


def _class_name(number: int, labels: tuple[str, ...] | None) -> str:
    return labels[number] if labels else str(number)
