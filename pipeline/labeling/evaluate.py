"""How good a model is on images whose class is known: the labeler labels each of them once, and its rows are counted."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.labeler import label
from wordsworth.pipeline.labeling.plan import LabelRequest
from wordsworth.pipeline.labeling.progress import Progress
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.few_shot import SEEDS, SHOTS, draw, fit_probe

TOP = 5
BINS = 15  # of the calibration error, as in Guo et al. 2017 (arXiv:1706.04599)
WORST = 10  # classes that are named
NEIGHBOURS, TEMPERATURE = 20, 0.07  # as DINO weighs them (arXiv:2104.14294, appendix F)
BLOCK = 1024  # images that are compared with all training images at a time


# ---- counting rows --------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Sums over rows, as they come; memory does not grow with them but for the pairs of classes that are confused."""

    images: int = 0
    errors: int = 0
    first: int = 0
    among_top: int = 0
    bins: np.ndarray = field(
        default_factory=lambda: np.zeros((BINS, 3))
    )  # images, sum of confidences, right ones
    confused: Counter = field(default_factory=Counter)  # (class, what was said)

    def add(self, classes: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> None:
        """classes (M,), ids (M, k) of the best classes, the best first, scores (M,) of the best."""
        right = ids[:, 0] == classes
        self.images += len(classes)
        self.first += int(right.sum())
        self.among_top += int((ids == classes[:, None]).any(1).sum())
        at = np.minimum((scores * BINS).astype(int), BINS - 1)
        for column, values in enumerate((np.ones(len(at)), scores, right)):
            self.bins[:, column] += np.bincount(at, values, BINS)
        self.confused.update(zip(classes.tolist(), ids[:, 0].tolist(), strict=True))

    def figures(self, labels: tuple[str, ...] | None) -> dict[str, Any]:
        """Shares of the images that could be decoded; the interval is Wilson's, of 95%."""
        counts, confidences, right = self.bins.T
        error = np.abs(confidences - right).sum() / max(1, counts.sum())
        return {
            "images": self.images,
            "errors": self.errors,
            "top1": self.first / self.images,
            "top1_interval": wilson(self.first, self.images),
            "top5": self.among_top / self.images,
            "calibration_error": float(error),
            "worst": self._worst(labels),
        }

    def _worst(self, labels: tuple[str, ...] | None) -> list[dict[str, Any]]:
        """The classes with the fewest right answers, and what is said instead."""
        of_class: dict[int, Counter] = {}
        for (true, said), count in self.confused.items():
            of_class.setdefault(true, Counter())[said] += count

        def called(number: int) -> str:
            return labels[number] if labels else str(number)

        shares = sorted((said[true] / said.total(), -said.total(), true) for true, said in of_class.items())
        return [
            {
                "class": called(true),
                "images": -total,
                "accuracy": share,
                "taken_for": {
                    called(other): count for other, count in of_class[true].most_common(4) if other != true
                },
            }
            for share, total, true in shares[:WORST]
        ]


def wilson(right: int, images: int) -> list[float]:
    """The 95% interval of a share (Wilson 1927)."""
    z, share = 1.959964, right / images
    middle, half = (
        share + z * z / (2 * images),
        z * np.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2),
    )
    return [float((middle + sign * half) / (1 + z * z / images)) for sign in (-1, 1)]


class Probes:
    """What embeddings are worth without the head: linear probes on a few training images of each class, as the paper fits them
    (vit_model/few_shot.py), and a vote of the nearest training images. Memory holds the training embeddings."""

    def __init__(self, train: np.ndarray, classes: np.ndarray, shots: tuple[int, ...], count: int):
        """train (N, D), classes (N,) of `count`. Shots of which a class has not so many images are left out."""
        least = min(Counter(classes.tolist()).values())
        self.probes = {
            (k, seed): fit_probe(train[rows], classes[rows])
            for k in shots
            if k <= least
            for seed in SEEDS
            for rows in [draw(classes, k, seed)]
        }
        self.train, self.classes, self.count = _unit_length(train), classes, count
        self.images, self.right = 0, Counter()

    def add(self, test: np.ndarray, classes: np.ndarray) -> None:
        """test (M, D), classes (M,)."""
        self.images += len(classes)
        for name, probe in self.probes.items():
            self.right[name] += int((probe.predict(test).numpy() == classes).sum())
        self.right["neighbours"] += int((self.nearest(test) == classes).sum())

    def nearest(self, test: np.ndarray) -> np.ndarray:
        """The class (M,) by a vote of the nearest by cosine, each with the weight exp(cosine / TEMPERATURE)."""
        k, said = min(NEIGHBOURS, len(self.train)), []
        for block in (test[at : at + BLOCK] for at in range(0, len(test), BLOCK)):
            cosines = _unit_length(block) @ self.train.T
            best = np.argpartition(cosines, -k, axis=1)[:, -k:]
            weights = np.exp((np.take_along_axis(cosines, best, 1) - 1) / TEMPERATURE)
            votes = np.zeros((len(block), self.count))
            np.add.at(votes, (np.arange(len(block))[:, None], self.classes[best]), weights)
            said.append(votes.argmax(1))
        return np.concatenate(said)

    def figures(self) -> dict[str, Any]:
        """few_shot: by shots, the accuracy of each seed."""
        few_shot: dict[str, list[float]] = {}
        for k, seed in self.probes:
            few_shot.setdefault(str(k), []).append(self.right[k, seed] / self.images)
        return {
            "few_shot": few_shot,
            "neighbours": self.right["neighbours"] / self.images,
            "train_images": len(self.classes),
        }


def _unit_length(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


# ---- the whole of it ------------------------------------------------------------------------------------------------------


def evaluate(
    request: LabelRequest,
    checkpoint: Checkpoint,
    target: str,
    watch: Callable[[str], AbstractContextManager[Progress]],
    train: tuple[str, ...] = (),
    shots: tuple[int, ...] = SHOTS,
) -> dict[str, Any]:
    """Label the source into request.output and count. With `train`, sources of labelled images, their embeddings too: the accuracy
    of a linear probe on so many images of each class, and of the nearest neighbours. watch: "train" or "test" -> what watches it.

    Raises UserError for an image without a class, for a model without a head, and where nothing could be decoded.
    """
    config = checkpoint.config
    if not config.num_classes:
        raise UserError(
            "this model has no classification head: there is nothing to evaluate; wordsworth embed gives its vectors"
        )
    known = Target(target, checkpoint.labels, config.num_classes)
    rows_of = partial(
        _labelled, replace(request, target=known), checkpoint, known.kept, "float32" if train else None, watch
    )
    with ray_session(request.address):  # one for both
        return _counted(request, known, rows_of, train, shots)


def _counted(
    request: LabelRequest,
    known: Target,
    rows_of: Callable[..., Iterator],
    train: tuple[str, ...],
    shots: tuple[int, ...],
) -> dict[str, Any]:
    tally, probes = Tally(), None
    if train:
        parts = [(_embeddings(rows), known.of(rows)) for rows, _ in rows_of("train", train) if rows.num_rows]
        if not parts:
            raise UserError("no image of --train could be decoded: wordsworth lint says why")
        probes = Probes(*(np.concatenate(part) for part in zip(*parts, strict=True)), shots, known.classes)
    for rows, errors in rows_of("test", request.sources):
        tally.errors += errors
        if not rows.num_rows:
            continue
        classes = known.of(rows)
        tally.add(classes, _best(rows), rows["score"].to_numpy().astype(np.float64))
        if probes:
            probes.add(_embeddings(rows), classes)
    if not tally.images:
        raise UserError("no image of the source could be decoded: wordsworth lint says why")
    return tally.figures(known.labels) | (probes.figures() if probes else {})


def _labelled(
    request: LabelRequest,
    checkpoint: Checkpoint,
    kept: tuple[str, ...],
    embedding: str | None,
    watch: Callable[[str], AbstractContextManager[Progress]],
    name: str,
    sources: tuple[str, ...],
) -> Iterator[tuple[pa.Table, int]]:
    """Label into a folder of the output; the rows without an error, a file at a time, and how many have one."""
    output = f"{request.output.rstrip('/')}/{name}"
    top = min(TOP, checkpoint.config.num_classes)
    with watch(name) as progress:
        label(
            replace(request, sources=sources, output=output, keep=kept, top_k=top, embedding=embedding),
            checkpoint,
            progress,
        )
    run = RunFolder(output, request.storage_options)
    columns = ["shard", "key", "error", "topk", "score", *kept, *(["embedding"] if embedding else [])]
    for path in run.prediction_files():
        with run.fs.open(path, "rb") as file:
            rows = pq.read_table(file, columns=columns)
        good = rows.filter(pc.is_null(rows["error"]))
        yield good, rows.num_rows - good.num_rows


def _best(rows: pa.Table) -> np.ndarray:
    """(M, k) class ids, the best first."""
    lists = rows["topk"].combine_chunks()
    return lists.flatten().field("label_id").to_numpy(zero_copy_only=False).reshape(len(rows), -1)


def _embeddings(rows: pa.Table) -> np.ndarray:
    vectors = rows["embedding"].combine_chunks()
    return (
        vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1).copy()
    )  # torch warns of what it cannot write to
