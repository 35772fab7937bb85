"""Evaluate a model on images whose class is known: label each image once, and count its row."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.accuracy import AccuracyCounter, EmbeddingProbes
from wordsworth.pipeline.labeling.labeler import label
from wordsworth.pipeline.labeling.progress import Progress
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.few_shot import SHOTS

TOP_K = 5  # best classes among which the right one is looked for

MakeProgress = Callable[[str], AbstractContextManager[Progress]]  # "train" or "test" -> a display


def evaluate(
    request: LabelRequest,
    checkpoint: Checkpoint,
    where: str,
    make_progress: MakeProgress,
    train: tuple[str, ...] = (),
    shots: tuple[int, ...] = SHOTS,
) -> dict[str, Any]:
    """Label the sources into the output folder, and return how often the model is right.

    Args:
        request: the sources, and the output folder with a run for "test" and one for "train".
        checkpoint: the model.
        where: where the class of an image stands, as in `Target`.
        make_progress: makes the display of each of the two runs.
        train: sources of training images. With them the embeddings are evaluated too, by linear probes on a
            few images of each class, and by the nearest neighbours.
        shots: training images of each class, for one set of probes each.

    Returns:
        The figures of AccuracyCounter, and of EmbeddingProbes.

    Raises:
        UserError: an image has no class, the model has no head, or no image could be decoded.
    """
    num_classes = checkpoint.config.num_classes
    if not num_classes:
        raise UserError(
            "this model has no classification head: there is nothing to evaluate; "
            "wordsworth embed gives its vectors"
        )
    numbered = any(label.isdecimal() for label in checkpoint.labels or ())
    target = Target(where, checkpoint.labels, num_classes, digits_are_names=numbered and where != "cls")
    embedding = "float32" if train else None
    request = replace(
        request, target=target, keep=target.sidecars, top_k=min(TOP_K, num_classes), embedding=embedding
    )
    runs = _EvaluationRuns(request=request, checkpoint=checkpoint, make_progress=make_progress)
    with ray_session(request.address):  # one session for both runs
        probes = _fit_probes(runs, train, shots, target) if train else None
        accuracy = _count_test(runs, request.sources, target, probes)
    figures = accuracy.figures(target.labels)
    return figures | probes.figures() if probes else figures


def _fit_probes(
    runs: "_EvaluationRuns", train: tuple[str, ...], shots: tuple[int, ...], target: Target
) -> EmbeddingProbes:
    embeddings = []
    classes = []
    for rows, _ in runs.label("train", train):
        if rows.num_rows:
            embeddings.append(_embeddings(rows))
            classes.append(target.of(rows))
    if not classes:
        raise UserError("no image of --train could be decoded: wordsworth lint says why")
    return EmbeddingProbes(np.concatenate(embeddings), np.concatenate(classes), shots, target.classes)


def _count_test(
    runs: "_EvaluationRuns", sources: tuple[str, ...], target: Target, probes: EmbeddingProbes | None
) -> AccuracyCounter:
    accuracy = AccuracyCounter()
    for rows, num_errors in runs.label("test", sources):
        accuracy.num_errors += num_errors
        if not rows.num_rows:
            continue
        classes = target.of(rows)
        accuracy.add(classes, _best_classes(rows), rows["score"].to_numpy().astype(np.float64))
        if probes:
            probes.add(_embeddings(rows), classes)
    if not accuracy.num_images:
        raise UserError("no image of the source could be decoded: wordsworth lint says why")
    return accuracy


@dataclass(frozen=True, kw_only=True)
class _EvaluationRuns:
    """Label the sources of an evaluation, each set into a folder of its own below the output folder."""

    request: LabelRequest
    checkpoint: Checkpoint
    make_progress: MakeProgress

    def label(self, name: str, sources: tuple[str, ...]) -> Iterator[tuple[pa.Table, int]]:
        """Label sources into the folder `name`, and yield the rows of its files.

        Yields:
            Of each file the rows without an error, and the number of rows with one.
        """
        output = f"{self.request.output.rstrip('/')}/{name}"
        request = replace(self.request, sources=sources, output=output)
        with self.make_progress(name) as progress:
            label(request, self.checkpoint, progress)
        columns = ["shard", "key", "error", "topk", "score", *request.keep]
        if request.embedding:
            columns.append("embedding")
        run = RunFolder(output, request.storage_options)
        for path in run.prediction_files():
            with run.fs.open(path, "rb") as file:
                rows = pq.read_table(file, columns=columns)
            good = rows.filter(pc.is_null(rows["error"]))
            yield good, rows.num_rows - good.num_rows


def _best_classes(rows: pa.Table) -> np.ndarray:
    """Return class ids (M, k), the best one first."""
    lists = rows["topk"].combine_chunks()
    return lists.flatten().field("label_id").to_numpy(zero_copy_only=False).reshape(len(rows), -1)


def _embeddings(rows: pa.Table) -> np.ndarray:
    """Return embeddings (M, D)."""
    values = rows["embedding"].combine_chunks().flatten()
    # A copy, because torch warns of arrays that nobody may write to.
    return values.to_numpy(zero_copy_only=False).reshape(len(rows), -1).copy()
