"""Fit a linear classifier to a few frozen features: regularised least squares onto {-1, 1}^K (section 4.1).

The recipe is that of big_vision's evaluators/fewshot_lsr.py, in closed form, in float64 on the CPU:
deterministic, without a training loop. The paper's features are the pre-logits of images resized to 256 x
256, cropped to 224 x 224 and scaled to [-1, 1]; the paper reports the 5-shot accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

BIAS = 100.0  # the constant feature, so large that the bias is almost unregularised
EPS = 1e-5  # added to the standard deviation of a feature
L2 = 2.0**10  # weight of the regularisation
# Weights among which `best_l2` chooses, the largest first.
L2S = (2.0**12, 2.0**10, 2.0**8, 2.0**6, 2.0**4, 2.0**2, 2.0**0, 2.0**-2, 2.0**-4)
SHOTS = (1, 5, 10, 25)  # training images of each class
SEEDS = (0, 1, 2)  # of the draws of training images

Features: TypeAlias = torch.Tensor | np.ndarray  # (N, D) floats
Labels: TypeAlias = torch.Tensor | np.ndarray | Sequence[int]  # (N,)


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Hold a linear classifier that `fit_probe` found.

    Attributes:
        classes: (K,) the labels, ascending.
        mean: (D,) of the training features.
        std: (D,) of the training features, with EPS added.
        weights: (D + 1, K); the last row belongs to the constant feature.
    """

    classes: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    weights: torch.Tensor

    def scores(self, features: Features) -> torch.Tensor:
        """Map (N, D) to scores (N, K), near 1 for the right class and near -1 for every other class."""
        return _with_bias((_matrix(features) - self.mean) / self.std) @ self.weights

    def predict(self, features: Features) -> torch.Tensor:
        """Map (N, D) to labels (N,)."""
        return self.classes[self.scores(features).argmax(1)]


def fit_probe(features: Features, labels: Labels, l2: float = L2) -> LinearProbe:
    """Whiten each feature, append the constant, and solve for targets of 1 (right) and -1 (other classes).

    Args:
        features: (N, D)
        labels: (N,)
        l2: weight of the regularisation.

    Raises:
        ValueError: the features are no matrix, a number is not finite, or there is not one label for each
            row.
    """
    x, y = _check_examples(features, labels)
    mean = x.mean(0)
    std = x.std(0, correction=0) + EPS
    classes, targets, _ = _targets(y, x)
    weights = ridge(_with_bias((x - mean) / std), targets, l2)
    return LinearProbe(classes=classes, mean=mean, std=std, weights=weights)


def best_l2(features: Features, labels: Labels) -> float:
    """Return the weight of the regularisation that is right on the most examples, each left out in turn.

    The paper's L2 is for a few examples of each class. With more of them it hides what the features hold.
    Leaving out needs no second fit: without example i its scores are y_i - (y_i - s_i) / (1 - h_ii), where s
    are the scores of the fit to all and h is its hat matrix.

    Args:
        features: (N, D)
        labels: (N,)

    Returns:
        One of L2S; of equals the largest.

    Raises:
        ValueError: as for `fit_probe`.
    """
    x, y = _check_examples(features, labels)
    x = _with_bias((x - x.mean(0)) / (x.std(0, correction=0) + EPS))
    _, targets, index = _targets(y, x)
    eigenvalues, vectors = torch.linalg.eigh(x.T @ x)
    turned = x @ vectors  # (N, D + 1)
    of_targets = turned.T @ targets  # (D + 1, K)
    num_right = []
    for l2 in L2S:
        shrunk = turned / (eigenvalues.clamp(min=0) + l2)
        hat = (shrunk * turned).sum(1, keepdim=True)  # (N, 1)
        scores = targets - (targets - shrunk @ of_targets) / (1 - hat)
        num_right.append(int((scores.argmax(1) == index).sum()))
    return L2S[num_right.index(max(num_right))]


def _targets(labels: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the K classes, targets (N, K) of 1 and -1, and the places (N,) of the labels' classes."""
    classes, index = labels.unique(return_inverse=True)
    targets = 2 * torch.nn.functional.one_hot(index, len(classes)).to(like) - 1
    return classes, targets, index


def ridge(x: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    """Return argmin_w |x w - y|^2 + l2 |w|^2, by the smaller linear system: (N, D), (N, K) -> (D, K)."""
    return primal(x, y, l2) if len(x) >= x.shape[1] else dual(x, y, l2)


def primal(x: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    """Return w = (x^T x + l2 I)^-1 x^T y: a system of D equations."""
    return _solve(x.T @ x, x.T @ y, l2)


def dual(x: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    """Return w = x^T (x x^T + l2 I)^-1 y: a system of N equations."""
    return x.T @ _solve(x @ x.T, y, l2)


def _solve(gram: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    gram.diagonal().add_(l2)
    return torch.cholesky_solve(y, torch.linalg.cholesky(gram))


def draw(labels: Labels, shots: int, seed: int) -> np.ndarray:
    """Return the rows of random examples of every class, class after class.

    Args:
        labels: (N,)
        shots: examples of each class.
        seed: of the draw. The examples of fewer shots are a part of the examples of more shots.

    Returns:
        (shots * K,) numbers of rows.

    Raises:
        ValueError: a class has fewer examples than `shots`.
    """
    names = np.asarray(labels)
    rng = np.random.default_rng(seed)
    rows = []
    for label in np.unique(names):
        of_class = rng.permutation(np.flatnonzero(names == label))
        if not 1 <= shots <= len(of_class):
            raise ValueError(f"class {label} has {len(of_class)} examples; {shots} shots cannot be drawn")
        rows.append(of_class[:shots])
    return np.concatenate(rows)


def _matrix(features: Features) -> torch.Tensor:
    return torch.as_tensor(features).detach().to("cpu", torch.float64)


def _check_examples(features: Features, labels: Labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, D) as float64 and labels (N,), both on the CPU."""
    x = _matrix(features)
    y = torch.as_tensor(labels).detach().cpu()
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        wanted = "they must be (N, D) and (N,), N above 0"
        raise ValueError(f"features {tuple(x.shape)} and labels {tuple(y.shape)}; {wanted}")
    bad = (~x.isfinite()).any(1).nonzero()
    if len(bad):
        raise ValueError(f"features of row {bad[0].item()} are not finite")
    return x, y


def _with_bias(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, 1), value=BIAS)
