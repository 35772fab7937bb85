"""Classify embeddings by their nearest neighbours, with the weights that DINO gives the votes."""

import numpy as np

NEIGHBOURS = 20  # nearest training images that vote, as for DINO (arXiv:2104.14294, appendix F)
TEMPERATURE = 0.07  # of the weights of their votes, likewise
BLOCK = 1024  # images that are compared with all training images at a time
EPS = 1e-12  # length of a vector, at least, where something is divided by it


class NearestNeighbours:
    """Let the nearest training images vote for a class. Memory holds the training embeddings."""

    def __init__(self, train: np.ndarray, classes: np.ndarray, num_classes: int):
        """Keep the training images.

        Args:
            train: (N, D) embeddings of the training images.
            classes: (N,) their classes, from 0 to `num_classes` - 1.
            num_classes: classes in all.
        """
        self.train = _unit_length(train)
        self.classes = classes
        self.num_classes = num_classes

    def predict(self, test: np.ndarray) -> np.ndarray:
        """Map embeddings (M, D) to classes (M,).

        The NEIGHBOURS training images with the largest cosines vote. The weight of a vote is
        exp(cosine / TEMPERATURE).
        """
        k = min(NEIGHBOURS, len(self.train))
        winners = [np.zeros(0, np.int64)]
        for begin in range(0, len(test), BLOCK):
            cosines = _unit_length(test[begin : begin + BLOCK]) @ self.train.T
            best = np.argpartition(cosines, -k, axis=1)[:, -k:]
            weights = np.exp((np.take_along_axis(cosines, best, 1) - 1) / TEMPERATURE)
            votes = np.zeros((len(cosines), self.num_classes))
            np.add.at(votes, (np.arange(len(cosines))[:, None], self.classes[best]), weights)
            winners.append(votes.argmax(1))
        return np.concatenate(winners)


def _unit_length(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), EPS)
