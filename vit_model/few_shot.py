"""Few-shot linear evaluation: frozen features, regularised least squares onto {-1, 1}^K, in closed form (section 4.1).

The recipe is that of big_vision's evaluators/fewshot_lsr.py, in float64 on the CPU: deterministic, without a training loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

BIAS = 100.0  # the constant feature; so large that the bias is almost unregularised
EPS = 1e-5  # added to the standard deviation
L2 = 2.0**10
SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)

Features = torch.Tensor | np.ndarray  # (N, D) floats
Labels = torch.Tensor | np.ndarray | Sequence[int]  # (N,)


@dataclass(frozen=True)
class LinearProbe:
    """What `fit_probe` found."""

    classes: torch.Tensor  # (K,) the labels, ascending
    mean: torch.Tensor  # (D,) of the training features
    std: torch.Tensor  # (D,), `EPS` included
    weights: torch.Tensor  # (D + 1, K), the last row belongs to the constant

    def scores(self, features: Features) -> torch.Tensor:
        """(N, D) -> (N, K), near 1 for the right class and near -1 for the others."""
        return _with_bias((_matrix(features) - self.mean) / self.std) @ self.weights

    def predict(self, features: Features) -> torch.Tensor:
        """(N, D) -> (N,) labels"""
        return self.classes[self.scores(features).argmax(1)]


def fit_probe(features: Features, labels: Labels, l2: float = L2) -> LinearProbe:
    """Whiten each feature, append the constant, solve for targets of 1 (the class) and -1 (the others).

    Raises:
        ValueError: not a matrix, a number that is not finite, or not one label a row.
    """
    x, labels = _checked(features, labels)
    mean, std = x.mean(0), x.std(0, correction=0) + EPS
    classes, index = labels.unique(return_inverse=True)
    targets = 2 * torch.nn.functional.one_hot(index, len(classes)).to(x) - 1  # (N, K)
    return LinearProbe(classes, mean, std, ridge(_with_bias((x - mean) / std), targets, l2))


def ridge(x: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    """argmin_w |x w - y|^2 + l2 |w|^2 by the smaller of two linear systems: (N, D), (N, K) -> (D, K)."""
    return primal(x, y, l2) if len(x) >= x.shape[1] else dual(x, y, l2)


def primal(x: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    """w = (x^T x + l2 I)^-1 x^T y: a system of D equations."""
    return _solve(x.T @ x, x.T @ y, l2)


def dual(x: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    """w = x^T (x x^T + l2 I)^-1 y: a system of N equations."""
    return x.T @ _solve(x @ x.T, y, l2)


def _solve(gram: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    gram.diagonal().add_(l2)
    return torch.cholesky_solve(y, torch.linalg.cholesky(gram))


def draw(labels: Labels, shots: int, seed: int) -> np.ndarray:
    """Rows of `shots` random examples of every class, class after class; fewer shots of a seed are a part of more.

    Raises:
        ValueError: a class has fewer examples than that.
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    rows = []
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        if not 1 <= shots <= len(of_class):
            raise ValueError(f"class {label} has {len(of_class)} examples; {shots} shots cannot be drawn")
        rows.append(of_class[:shots])
    return np.concatenate(rows)


def few_shot_accuracy(
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    l2: float = L2,
) -> dict[int, list[float]]:
    """Accuracy on the test set of a probe fitted to k random training examples of every class.

    The paper's features are the pre-logits of images resized to 256 x 256, cropped to 224 x 224 and scaled to [-1, 1].
    A test image of a class that was not trained counts as wrong.

    Returns:
        {k: [accuracy in [0, 1] a seed]}. The paper reports the 5-shot number.

    Raises:
        ValueError: as `fit_probe` for either set, or a class with fewer than k training examples.
    """
    x, labels = _checked(train_features, train_labels)
    x_test, labels_test = _checked(test_features, test_labels)
    return {
        k: [_accuracy(x, labels, x_test, labels_test, draw(labels, k, seed), l2) for seed in seeds]
        for k in shots
    }


def _accuracy(
    x: torch.Tensor,
    labels: torch.Tensor,
    x_test: torch.Tensor,
    labels_test: torch.Tensor,
    rows: np.ndarray,
    l2: float,
) -> float:
    probe = fit_probe(x[rows], labels[rows], l2)
    return (probe.predict(x_test) == labels_test).double().mean().item()


def _matrix(features: Features) -> torch.Tensor:
    return torch.as_tensor(features).detach().to("cpu", torch.float64)


def _checked(features: Features, labels: Labels) -> tuple[torch.Tensor, torch.Tensor]:
    x, labels = _matrix(features), torch.as_tensor(labels).detach().cpu()
    if x.ndim != 2 or labels.shape != x.shape[:1] or not len(x):
        raise ValueError(
            f"features {tuple(x.shape)} and labels {tuple(labels.shape)}; they must be (N, D) and (N,), N above 0"
        )
    bad = (~x.isfinite()).any(1).nonzero()
    if len(bad):
        raise ValueError(f"features of row {bad[0].item()} are not finite")
    return x, labels


def _with_bias(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, 1), value=BIAS)
