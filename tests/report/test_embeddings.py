"""The map of embeddings and the images that are nearly the same."""

import numpy as np
import pytest

from wordsworth.pipeline.report import duplicates
from wordsworth.pipeline.report.duplicates import find_duplicates
from wordsworth.pipeline.report.embedding_map import pca, projections


def made(rows: int = 80, width: int = 24, seed: int = 0) -> np.ndarray:
    scales = np.linspace(4, 0.2, width)
    return (np.random.default_rng(seed).normal(size=(rows, width)) * scales + 50).astype(np.float32)


def test_pca_is_that_of_the_singular_values():
    centred = made().astype(np.float64) - made().mean(0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    places, explained = pca(made())
    expected = left * singular
    for axis in range(2):
        assert abs(abs(np.corrcoef(places[:, axis], expected[:, axis])[0, 1]) - 1) < 1e-5
        assert places[:, axis].std() == pytest.approx(expected[:, axis].std(), rel=1e-4)
    assert explained == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum(), rel=1e-4)


@pytest.mark.parametrize("embeddings", [made(1), made(2), np.ones((5, 3), np.float32), made(9, 1)])
def test_few_or_equal_embeddings_lie_within_the_map(embeddings: np.ndarray):
    for projection in projections(embeddings, seed=0):
        assert projection.places.shape == (len(embeddings), 2)
        assert ((projection.places >= 0) & (projection.places <= 1)).all()


def test_one_far_point_does_not_press_the_others_together():
    embeddings = made(600)
    embeddings[0] += 10_000
    places = projections(embeddings, seed=0)[0].places
    assert places[1:].std(0).max() > 0.1


def test_copies_are_found_and_others_are_not():
    embeddings = made(200)
    embeddings[[20, 90]] = embeddings[7]
    embeddings[150] = embeddings[31] + 0.05
    found = find_duplicates(embeddings)
    assert [group.members for group in found.groups] == [[7, 20, 90], [31, 150]]
    assert found.groups[0].similarity == pytest.approx(1, abs=1e-5)
    assert (found.num_pairs, found.num_compared, found.is_cut) == (4, 200, False)


def test_the_part_that_all_embeddings_share_makes_no_duplicates():
    embeddings = made(200) + 10_000  # the cosine of any two is above 0.9999
    assert find_duplicates(embeddings).groups == []


def test_rows_that_are_all_the_same_are_duplicates():
    found = find_duplicates(np.full((4, 8), 0.1, np.float32))
    assert [group.members for group in found.groups] == [[0, 1, 2, 3]]


def test_blocks_change_nothing(monkeypatch):
    embeddings = made(90)
    embeddings[60:] = embeddings[:30]
    whole = find_duplicates(embeddings)
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    found = find_duplicates(embeddings)
    assert sorted(group.members for group in found.groups) == sorted(group.members for group in whole.groups)
    assert len(whole.groups) == 30


def test_more_pairs_than_are_kept_are_counted_and_said(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 10)
    embeddings = made(60)
    embeddings[10:30] = embeddings[0]
    found = find_duplicates(embeddings)
    assert found.num_pairs == 21 * 20 // 2
    assert found.is_cut
