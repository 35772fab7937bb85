"""chosen_classes: all classes from a threshold on, for every image, by plain loops."""

import numpy as np
import pytest

from wordsworth.pipeline.prediction.chosen_classes import SCORE_BYTES, chosen_classes, rows_at_a_time


def by_loops(scores: np.ndarray, threshold: float) -> list[list[tuple[int, float]]]:
    rows = []
    for row in scores.tolist():
        chosen = [(number, score) for number, score in enumerate(row) if score >= np.float32(threshold)]
        rows.append(sorted(chosen, key=lambda entry: (-entry[1], entry[0])))
    return rows


def as_lists(found: dict[str, np.ndarray]) -> list[list[tuple[int, float]]]:
    ends = np.cumsum(found["label_counts"])
    entries = list(zip(found["label_ids"].tolist(), found["label_scores"].tolist(), strict=True))
    return [entries[end - count : end] for end, count in zip(ends, found["label_counts"], strict=True)]


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 0.9, 1])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 100), (0, 5)])
def test_the_classes_are_those_that_plain_loops_choose(shape, threshold):
    scores = np.random.default_rng(0).random(shape).astype(np.float32).round(2)  # with equal scores
    found = chosen_classes(scores, threshold)
    assert as_lists(found) == by_loops(scores, threshold)
    assert [found[name].dtype for name in ("label_counts", "label_ids", "label_scores")] == [
        np.int32,
        np.int32,
        np.float32,
    ]


def test_a_score_of_the_threshold_itself_is_chosen():
    scores = np.array([[0.3, 0.29999998, 1.0, np.nan]], np.float32)
    assert as_lists(chosen_classes(scores, 0.3)) == [[(2, 1.0), (0, np.float32(0.3))]]


@pytest.mark.parametrize(
    ("num_classes", "batch"), [(1000, 8), (20_000, 64), (20_000, 512), (1 << 23, 8), (0, 8)]
)
def test_scores_are_held_for_whole_batches_of_bounded_size(num_classes, batch):
    rows = rows_at_a_time(num_classes, batch)
    assert rows >= batch and rows % batch == 0
    assert rows == batch or rows * num_classes * 4 <= SCORE_BYTES
