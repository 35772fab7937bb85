"""Lay embeddings out on a plane, so that images that are alike to the model lie side by side."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

EDGE = 0.03  # share of the map that stays free on each side
TRIMMED = 0.005  # share of the points on each side that do not stretch the map
NEIGHBOURS = 15  # of UMAP


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Hold one way to lay out the points.

    Attributes:
        name: "PCA" or "UMAP".
        places: (M, 2) between 0 and 1; the second one grows downwards.
        note: how to read it, in a sentence.
    """

    name: str
    places: np.ndarray
    note: str


def projections(embeddings: np.ndarray, seed: int) -> list[Projection]:
    """Return the ways to lay out embeddings: PCA always, UMAP where umap-learn is installed.

    Args:
        embeddings: (M, D) float32, finite.
        seed: of UMAP.
    """
    places, explained = pca(embeddings)
    found = [
        Projection(
            name="PCA",
            places=_fitted(places),
            note=f"PCA: the two directions in which embeddings differ most, {explained:.0%} of the variance.",
        )
    ]
    if find_spec("umap") and len(embeddings) > NEIGHBOURS:
        found.append(
            Projection(
                name="UMAP",
                places=_fitted(_umap(embeddings, seed)),
                note="UMAP: neighbours stay neighbours; distances between groups mean little.",
            )
        )
    return found


def pca(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the first two principal components and the share of the variance that they hold.

    Args:
        embeddings: (M, D).

    Returns:
        (M, 2), with zeros where there are fewer than two directions; a share between 0 and 1.
    """
    centred = embeddings.astype(np.float64) - embeddings.mean(0, dtype=np.float64)
    spread, axes = np.linalg.eigh(centred.T @ centred)  # in ascending order
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)
    places = np.zeros((len(embeddings), 2))
    places[:, : axes.shape[1]] = centred @ axes
    total = spread.clip(0).sum()
    return places, float(spread[::-1][:2].clip(0).sum() / total) if total > 0 else 0.0


def _umap(embeddings: np.ndarray, seed: int) -> np.ndarray:
    import umap

    layout = umap.UMAP(n_neighbors=NEIGHBOURS, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(layout.fit_transform(embeddings), np.float64)


def _fitted(places: np.ndarray) -> np.ndarray:
    """Return places scaled into the map; a few far points stand at its edge."""
    low, high = np.quantile(places, [TRIMMED, 1 - TRIMMED], axis=0)
    extent = np.maximum(high - low, 1e-12)
    shares = np.clip((places - low) / extent, 0, 1)
    shares[:, high == low] = 0.5
    shares = EDGE + (1 - 2 * EDGE) * shares
    return np.c_[shares[:, 0], 1 - shares[:, 1]]
