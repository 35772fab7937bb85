"""Evaluate a model on images whose class is known: label each image once, and count its row."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.errors import NAMES_THE_IMAGES, UserError, plural
from wordsworth.pipeline.labeling.class_watch import ClassWatch
from wordsworth.pipeline.labeling.head_columns import head_columns
from wordsworth.pipeline.labeling.labeler import label
from wordsworth.pipeline.labeling.listing import list_settings, with_expanded_sources
from wordsworth.pipeline.labeling.plan import own_columns
from wordsworth.pipeline.labeling.probes import EmbeddingProbes
from wordsworth.pipeline.labeling.progress import Progress
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.accuracy import AccuracyCounter
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.kept_columns import output_name, renamed
from wordsworth.pipeline.sources.model_target import NO_CLASS, ModelTarget, model_target
from wordsworth.pipeline.storage.filesystem import without_credentials
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.few_shot import SHOTS

KEPT_TARGET = "target"  # column of the classes, where that in the source is called like one of the rows' own
FIRST_PAGES = 4  # pages of loose images whose folders are looked at before Ray starts
TOP_K = 5  # best classes among which the right one is looked for

MakeProgress = Callable[[str], AbstractContextManager[Progress]]  # "train" or "test" -> a display


def evaluate(
    request: LabelRequest,
    checkpoint: BaseCheckpoint,
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
        The figures of AccuracyCounter, and of EmbeddingProbes. `no_class` counts the images without a class,
        which no figure has. `classes` and `train_classes` say by which names the images have their classes.

    Raises:
        UserError: the class of an image is none of the model's, no image has a class or could be decoded, or
            the model has no head, or one that gives a number.
    """
    num_classes = checkpoint.config.num_classes
    if not num_classes:
        raise UserError(
            "this model has no classification head: there is nothing to evaluate; --classes gives one to a "
            "model of images and texts, and wordsworth embed gives the vectors of any model"
        )
    if checkpoint.head.kind == "value":
        raise UserError("this model gives a number and no classes: there is nothing to evaluate by classes")
    target = model_target(where, checkpoint.labels, num_classes)
    embedding = "float32" if train else None
    request = replace(request, top_k=min(TOP_K, num_classes), embedding=embedding)
    request, target = _with_target(request, target, own_columns(request, head_columns(request, checkpoint)))
    if where == "folder":
        _refuse_unknown_folders(request, target)
    runs = _EvaluationRuns(request=request, checkpoint=checkpoint, make_progress=make_progress)
    sets = {"train": train, "test": request.sources} if train else {"test": request.sources}
    # One session for both runs.
    with make_progress("the session") as progress:
        progress.waiting("starting or joining Ray")
        with ray_session(request.cluster, progress.note):
            progress.waiting("labelling the images")
            for name, sources in sets.items():
                runs.label(name, sources, target)
            progress.waiting("ending Ray")
    names = {name: runs.class_names(name, target) for name in sets}
    target = target.settled(name for met in names.values() for name in met)
    probes = _fit_probes(runs, shots, target) if train else None
    figures = _count_test(runs, target, probes).figures(target.labels)
    figures["no_class"] = names["test"][None]
    figures["classes"] = target.describe(names["test"])
    if probes:
        figures |= probes.figures()
        figures["train_classes"] = target.describe(names["train"])
    return figures


def _refuse_unknown_folders(request: LabelRequest, target: ModelTarget) -> None:
    """Look at the folders of the first loose images: that takes less than to start Ray.

    Where the output holds a run, its listing is frozen, and a source may be gone.

    Raises:
        UserError: a folder is none of the model's classes, or a source cannot be listed.
    """
    if RunFolder(f"{request.output.rstrip('/')}/test", request.storage_options).plan():
        return
    for shard in islice(list_settings(with_expanded_sources(request)).finder().shards(), FIRST_PAGES):
        keys = [shard.place_in_rows(member)[1] for member in shard.members]
        samples = pa.table({"key": keys, "sidecars": pa.nulls(len(keys))})
        target.of_samples(samples, without_credentials(shard.uri))


def _with_target(
    request: LabelRequest, target: ModelTarget, taken: list[str]
) -> tuple[LabelRequest, ModelTarget]:
    """Return the request whose rows carry the classes, and the target that finds them there.

    A column that is called like one of the rows' own, such as label, gets another name.
    """
    keep = target.sidecars
    if keep and (keep[0] in taken or "=" in keep[0]):
        target = replace(target, kept_as=KEPT_TARGET)
        keep = (renamed(keep[0], KEPT_TARGET),)
    return replace(request, target=target, keep=keep), target


def _fit_probes(runs: "_EvaluationRuns", shots: tuple[int, ...], target: ModelTarget) -> EmbeddingProbes:
    embeddings = []
    classes = []
    for rows, _ in runs.rows("train"):
        rows, numbers = _with_classes(rows, target)
        if rows.num_rows:
            embeddings.append(_embeddings(rows))
            classes.append(numbers)
    return EmbeddingProbes(np.concatenate(embeddings), np.concatenate(classes), shots, target.classes)


def _count_test(
    runs: "_EvaluationRuns", target: ModelTarget, probes: EmbeddingProbes | None
) -> AccuracyCounter:
    accuracy = AccuracyCounter()
    for rows, num_errors in runs.rows("test"):
        accuracy.num_errors += num_errors
        rows, classes = _with_classes(rows, target)
        if not rows.num_rows:
            continue
        accuracy.add(classes, _best_classes(rows), rows["score"].to_numpy().astype(np.float64))
        if probes:
            probes.add(_embeddings(rows), classes)
    return accuracy


def _with_classes(rows: pa.Table, target: ModelTarget) -> tuple[pa.Table, np.ndarray]:
    """Return the rows whose image has a class, and the classes."""
    classes = target.of(rows)
    have = classes != NO_CLASS
    return (rows if have.all() else rows.filter(pa.array(have))), classes[have]


@dataclass(frozen=True, kw_only=True)
class _EvaluationRuns:
    """Label the sources of an evaluation, each set into a folder of its own below the output folder."""

    request: LabelRequest
    checkpoint: BaseCheckpoint
    make_progress: MakeProgress

    def label(self, name: str, sources: Sequence[str], target: ModelTarget) -> None:
        """Label sources into the folder `name`."""
        request = replace(self.request, sources=sources, output=self._output(name))
        if name == "train":
            request = replace(request, limit=None, sample=None)
        with self.make_progress(name) as progress:
            label(request, self.checkpoint, ClassWatch(progress, self._run(name), target))

    def class_names(self, name: str, target: ModelTarget) -> Counter[str | None]:
        """Count the images in the folder `name` by the name of their class; None counts those without.

        Raises:
            UserError: no image has a class, or none could be decoded.
        """
        met: Counter[str | None] = Counter()
        for rows in self._tables(name, ["error", target.column]):
            met.update(target.names(rows.filter(pc.is_null(rows["error"]))))
        num_images = met.total()
        of_set = "of --train" if name == "train" else "of the source"
        if not num_images:
            raise UserError(f"no image {of_set} could be decoded: {NAMES_THE_IMAGES}")
        if met[None] == num_images:
            raise UserError(
                f"none of the {plural(num_images, 'image')} {of_set} has a class: "
                f"--target {target.where} gives none or -1; folder, json:FIELD or a column may"
            )
        return met

    def rows(self, name: str) -> Iterator[tuple[pa.Table, int]]:
        """Yield the rows of the files in the folder `name`.

        Yields:
            Of each file the rows without an error, and the number of rows with one.
        """
        columns = ["shard", "key", "error", "topk", "score", *map(output_name, self.request.keep)]
        if self.request.embedding:
            columns.append("embedding")
        for rows in self._tables(name, columns):
            good = rows.filter(pc.is_null(rows["error"]))
            yield good, rows.num_rows - good.num_rows

    def _tables(self, name: str, columns: list[str]) -> Iterator[pa.Table]:
        run = self._run(name)
        for path in run.prediction_files():
            with run.fs.open(path, "rb") as file:
                yield pq.read_table(file, columns=columns)

    def _run(self, name: str) -> RunFolder:
        return RunFolder(self._output(name), self.request.storage_options)

    def _output(self, name: str) -> str:
        return f"{self.request.output.rstrip('/')}/{name}"


def _best_classes(rows: pa.Table) -> np.ndarray:
    """Return class ids (M, k), the best one first."""
    lists = rows["topk"].combine_chunks()
    return lists.flatten().field("label_id").to_numpy(zero_copy_only=False).reshape(len(rows), -1)


def _embeddings(rows: pa.Table) -> np.ndarray:
    """Return embeddings (M, D)."""
    values = rows["embedding"].combine_chunks().flatten()
    # A copy, because torch warns of arrays that nobody may write to.
    return values.to_numpy(zero_copy_only=False).reshape(len(rows), -1).copy()
