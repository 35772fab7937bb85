import numpy as np
import pytest
import torch

from wordsworth.vit_model.few_shot import L2S, best_l2, draw, dual, fit_probe, primal, ridge

D, K = 12, 4


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes whose features have means and scales of their own, as float32."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(K), 40))
    x = rng.normal(size=(K, D))[labels] + rng.normal(size=(len(labels), D)) * 1.5
    return (x * rng.uniform(0.1, 10, D) + rng.normal(size=D) * 20).astype(np.float32), labels


def accuracies(x, labels, x_test, labels_test, shots: int, seeds: tuple[int, ...] = (0, 1, 2)) -> list[float]:
    """Return the accuracy on the test set for each seed, from the calls that `wordsworth evaluate` makes."""
    found = []
    for seed in seeds:
        rows = draw(labels, shots, seed)
        probe = fit_probe(x[rows], torch.as_tensor(labels)[rows])
        right = probe.predict(x_test) == torch.as_tensor(labels_test)
        found.append(right.double().mean().item())
    return found


def by_lstsq(x: np.ndarray, labels: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """The scores from |x w - y|^2 + 1024 |w|^2 as an ordinary least-squares problem with D + 1 more rows."""
    x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-5
    x, x_test = ((np.c_[(v - mean) / std, np.full(len(v), 100.0)]) for v in (x, x_test))
    y = np.where(labels[:, None] == np.unique(labels), 1.0, -1.0)
    penalty = np.sqrt(1024.0) * np.eye(x.shape[1])
    w, *_ = np.linalg.lstsq(np.r_[x, penalty], np.r_[y, np.zeros((x.shape[1], y.shape[1]))], rcond=None)
    return x_test @ w


@pytest.mark.parametrize("shots", [1, 3, 25])  # 4 and 12 rows: the dual form; 100 rows: the primal
def test_scores_are_those_of_an_independent_least_squares(features, shots):
    x, labels = features
    rows = draw(labels, shots, seed=1)
    found = fit_probe(x[rows], labels[rows]).scores(x).numpy()
    np.testing.assert_allclose(found, by_lstsq(x[rows], labels[rows], x), atol=1e-9)
    other = fit_probe(x[rows], labels[rows], l2=2.0**11).scores(x).numpy()  # the tolerance can tell
    assert np.abs(other - found).max() > 1e-4


@pytest.mark.parametrize("n", [5, 13, 40])
def test_primal_and_dual_agree_and_the_smaller_is_taken(n, monkeypatch):
    x = torch.cat(
        [torch.randn(n, D, dtype=torch.float64), torch.full((n, 1), 100.0, dtype=torch.float64)], dim=1
    )
    y = torch.randn(n, K, dtype=torch.float64)
    assert (primal(x, y, 1024.0) - dual(x, y, 1024.0)).abs().max() < 1e-8
    monkeypatch.setattr("wordsworth.vit_model.few_shot.primal", lambda *_: "primal")
    monkeypatch.setattr("wordsworth.vit_model.few_shot.dual", lambda *_: "dual")
    assert ridge(x, y, 1024.0) == ("primal" if n >= D + 1 else "dual")


def test_draw_takes_k_of_every_class_at_random_and_fewer_shots_are_a_part_of_more(features):
    _, labels = features
    rows = draw(labels, 5, seed=0)
    assert len(set(rows)) == 5 * K
    assert np.bincount(labels[rows]).tolist() == [5] * K
    assert set(draw(labels, 1, seed=0)) < set(rows)
    assert set(rows) != set(draw(labels, 5, seed=1))
    assert np.array_equal(rows, draw(torch.as_tensor(labels), 5, seed=0))


def test_accuracy_is_the_share_of_right_answers_for_every_seed(features):
    x, labels = features
    found = {k: accuracies(x[:100], labels[:100], x[100:], labels[100:], k, seeds=(0, 7)) for k in (1, 10)}
    for k, of_seeds in found.items():
        rows = [draw(labels[:100], k, seed) for seed in (0, 7)]
        scores = [by_lstsq(x[:100][r], labels[:100][r], x[100:]) for r in rows]
        assert of_seeds == [(s.argmax(1) == labels[100:]).mean() for s in scores]
    assert 1 / K < np.mean(found[1]) < np.mean(found[10]) < 1


def test_labels_need_not_be_consecutive_and_tensors_do_as_well(features):
    x, labels = features
    names = np.array([3, 12, 70, 500])
    expected = accuracies(x, labels, x, labels, shots=5)
    assert accuracies(x, names[labels], x, names[labels], shots=5) == expected
    tensor = torch.from_numpy(x).requires_grad_()
    assert accuracies(tensor, labels.tolist(), tensor, torch.as_tensor(labels), shots=5) == expected
    assert accuracies(x, labels, x, labels + K, shots=5) == [0.0] * 3


def test_what_cannot_be_evaluated_is_refused(features):
    x, labels = features
    with pytest.raises(ValueError, match="class 0 has 40 examples; 41 shots"):
        draw(labels, 41, seed=0)
    with pytest.raises(ValueError, match="0 shots"):
        draw(labels, 0, seed=0)
    with pytest.raises(ValueError, match=r"\(N, D\) and \(N,\)"):
        fit_probe(x, labels[1:])
    x[7, 3] = np.nan
    with pytest.raises(ValueError, match="row 7 are not finite"):
        fit_probe(x, labels)


@pytest.mark.parametrize("shots", [2, 3, 12])  # fewer rows than columns, and more
def test_the_best_regularisation_is_right_most_often_when_each_example_is_left_out(features, shots):
    """Against as many fits as there are examples. They are whitened by all examples, as `best_l2` does it."""
    x, labels = features
    rows = draw(labels, shots, seed=2)
    x, y = torch.from_numpy(x[rows]).double(), torch.from_numpy(labels[rows])
    x = (x - x.mean(0)) / (x.std(0, correction=0) + 1e-5)
    x = torch.cat([x, torch.full((len(x), 1), 100.0, dtype=torch.float64)], dim=1)
    targets = 2 * torch.nn.functional.one_hot(y, K).double() - 1
    right = dict.fromkeys(L2S, 0)
    for l2 in L2S:
        for row in range(len(x)):
            others = torch.arange(len(x)) != row
            weights = ridge(x[others], targets[others], l2)
            right[l2] += int((x[row] @ weights).argmax() == y[row])
    assert len(set(right.values())) > 1 and list(L2S) == sorted(L2S, reverse=True)
    assert best_l2(features[0][rows], labels[rows]) == max(L2S, key=lambda l2: (right[l2], l2))
