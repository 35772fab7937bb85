"""Measure how well embeddings tell classes apart, without the model's head."""

from collections import Counter
from typing import Any

import numpy as np

from wordsworth.vit_model.few_shot import SEEDS, draw, fit_probe
from wordsworth.vit_model.neighbours import NearestNeighbours


class EmbeddingProbes:
    """Count how well embeddings tell the classes apart, without the model's head.

    Linear probes are fitted to a few training images of each class, as in the paper (vit_model/few_shot.py),
    and the nearest training images vote (vit_model/neighbours.py). Memory holds the training embeddings.
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
        self.num_train_images = len(classes)
        self.neighbours = NearestNeighbours(train, classes, num_classes)
        self.num_images = 0
        self.num_right_of_neighbours = 0
        self.num_right_of_probe: Counter[tuple[int, int]] = Counter()

    def add(self, test: np.ndarray, classes: np.ndarray) -> None:
        """Count predictions of test images: embeddings (M, D) and their right classes (M,)."""
        self.num_images += len(classes)
        self.num_right_of_neighbours += int((self.neighbours.predict(test) == classes).sum())
        for name, probe in self.probes.items():
            self.num_right_of_probe[name] += int((probe.predict(test).numpy() == classes).sum())

    def figures(self) -> dict[str, Any]:
        """Return what `wordsworth evaluate` prints; `few_shot` holds the accuracy of each seed, by shots."""
        few_shot: dict[str, list[float]] = {}
        for k, seed in self.probes:
            accuracy = self.num_right_of_probe[k, seed] / self.num_images
            few_shot.setdefault(str(k), []).append(accuracy)
        return {
            "few_shot": few_shot,
            "neighbours": self.num_right_of_neighbours / self.num_images,
            "train_images": self.num_train_images,
        }
