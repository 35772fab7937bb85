"""Measure how well embeddings tell classes apart, without the model's head."""

from collections import Counter
from typing import Any

import numpy as np

from wordsworth.vit_model.few_shot import SEEDS, draw, fit_probe

NEIGHBOURS = 20  # nearest training images that vote, as for DINO (arXiv:2104.14294, appendix F)
TEMPERATURE = 0.07  # of the weights of their votes, likewise
BLOCK = 1024  # test images that are compared with all training images at a time
EPS = 1e-12  # length of a vector, at least, where something is divided by it


class EmbeddingProbes:
    """Count how well embeddings tell the classes apart, without the model's head.

    Linear probes are fitted to a few training images of each class, as in the paper (vit_model/few_shot.py),
    and the nearest training images vote. Memory holds the training embeddings.
    """

    def __init__(self, train: np.ndarray, classes: np.ndarray, shots: tuple[int, ...], num_classes: int):
        """Fit the probes.

        Args:
            train: (N, D) embeddings of the training images.
            classes: (N,) their classes.
            shots: training images of each class, for one set of probes each. A number that is larger than the
                smallest class is left out.
            num_classes: classes of the model.
        """
        smallest_class = min(Counter(classes.tolist()).values())
        self.probes = {}
        for k in shots:
            for seed in SEEDS:
                if k <= smallest_class:
                    rows = draw(classes, k, seed)
                    self.probes[k, seed] = fit_probe(train[rows], classes[rows])
        self.train = _unit_length(train)
        self.classes = classes
        self.num_classes = num_classes
        self.num_images = 0
        self.num_right_of_neighbours = 0
        self.num_right_of_probe: Counter[tuple[int, int]] = Counter()

    def add(self, test: np.ndarray, classes: np.ndarray) -> None:
        """Count predictions of test images: embeddings (M, D) and their right classes (M,)."""
        self.num_images += len(classes)
        self.num_right_of_neighbours += int((self.nearest(test) == classes).sum())
        for name, probe in self.probes.items():
            self.num_right_of_probe[name] += int((probe.predict(test).numpy() == classes).sum())

    def nearest(self, test: np.ndarray) -> np.ndarray:
        """Map embeddings (M, D) to classes (M,): the nearest training images vote.

        The weight of a vote is exp(cosine / TEMPERATURE).
        """
        k = min(NEIGHBOURS, len(self.train))
        winners = []
        for begin in range(0, len(test), BLOCK):
            cosines = _unit_length(test[begin : begin + BLOCK]) @ self.train.T
            best = np.argpartition(cosines, -k, axis=1)[:, -k:]
            weights = np.exp((np.take_along_axis(cosines, best, 1) - 1) / TEMPERATURE)
            votes = np.zeros((len(cosines), self.num_classes))
            np.add.at(votes, (np.arange(len(cosines))[:, None], self.classes[best]), weights)
            winners.append(votes.argmax(1))
        return np.concatenate(winners)

    def figures(self) -> dict[str, Any]:
        """Return what `wordsworth evaluate` prints; `few_shot` holds the accuracy of each seed, by shots."""
        few_shot: dict[str, list[float]] = {}
        for k, seed in self.probes:
            accuracy = self.num_right_of_probe[k, seed] / self.num_images
            few_shot.setdefault(str(k), []).append(accuracy)
        return {
            "few_shot": few_shot,
            "neighbours": self.num_right_of_neighbours / self.num_images,
            "train_images": len(self.classes),
        }


def _unit_length(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), EPS)
