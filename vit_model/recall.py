"""Measure how often each class is found, and the mean over the classes, in which rare ones count like others.

Imports no torch.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassRecall:
    """Hold how many images each class has, and how many of them were found.

    Attributes:
        images: (K,) images of each class.
        right: (K,) those of them whose best predicted class is the right one.
    """

    images: np.ndarray
    right: np.ndarray

    def add(self, classes: np.ndarray, is_right: np.ndarray) -> None:
        """Count images.

        Args:
            classes: (M,) the right classes.
            is_right: (M,) whether the best predicted class is the right one.
        """
        num_classes = len(self.images)
        self.images[:] += np.bincount(classes, minlength=num_classes)
        self.right[:] += np.bincount(classes[is_right], minlength=num_classes)

    @property
    def met(self) -> np.ndarray:
        """Return the numbers of the classes that have an image, in order: (M,) int64."""
        return np.flatnonzero(self.images)

    @property
    def recall(self) -> np.ndarray:
        """Return the share of the images of each class that was found: (K,), 0 where a class has none."""
        return self.right / np.maximum(self.images, 1)

    @property
    def shares(self) -> tuple[float | None, ...]:
        """Return `recall` with four digits, for a file; None where a class has no image."""
        rounded = self.recall.round(4).tolist()
        return tuple(share if count else None for share, count in zip(rounded, self.images, strict=True))

    @property
    def balanced_accuracy(self) -> float:
        """Return the mean recall of the classes that have an image; 0 where none has.

        A model that always says the most frequent of two classes gets 0.5, however rare the other one is.
        """
        met = self.met
        return float(self.recall[met].mean()) if len(met) else 0.0
