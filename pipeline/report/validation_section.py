"""Hold what the page of a training says of classes and mistakes: from its metrics and a labelled run."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.report.album import Album
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.truth import read_truth
from wordsworth.pipeline.report.truth_section import truth_section
from wordsworth.pipeline.report.truth_tally import TruthTally
from wordsworth.pipeline.storage.filesystem import StorageOptions
from wordsworth.pipeline.training.news import EpochNews
from wordsworth.vit_model.checkpoint import BaseCheckpoint

MOST_CLASSES = 50  # rows of the table


@dataclass(frozen=True, kw_only=True)
class LabelledRun:
    """Name a run over images whose class is known.

    Attributes:
        output: the run folder.
        truth: where the class of an image stands, as in `TruthNames`.
    """

    output: str
    truth: str


def mistakes_section(
    labelled: LabelledRun, checkpoint: BaseCheckpoint, options: StorageOptions
) -> dict[str, Any]:
    """Return what the template prints of a run: accuracy, calibration, worst pairs and classes, mistakes.

    Args:
        checkpoint: the model of the training.
        options: of the stores of the run and of its sources.

    Raises:
        UserError: there is no run, another model labelled it, or no row has a class where `truth` says.
    """
    run = RunRows.open(labelled.output, options)
    if run.plan.fingerprint != run.plan.resolved.fingerprint(checkpoint.fingerprint()):
        raise UserError(
            f"--labelled {labelled.output}: another model labelled this run, or the same one with other "
            "preprocessing: label the images with the model of this training"
        )
    tally = TruthTally(read_truth(run, labelled.truth))
    for batch in run.batches(tally.columns):
        tally.add(pa.table(batch))
    album = Album()
    section = truth_section(tally, tally.accuracy(), album, run.has("labels"))
    album.fetch(run)
    return section


def worst_classes(epochs: list[EpochNews], labels: list[str]) -> dict[str, Any] | None:
    """Return the classes that the last validated epoch finds least, or None where no epoch tells.

    Args:
        labels: names of the classes, in the order of their numbers.
    """
    news = next((one for one in reversed(epochs) if one.validation and one.validation.recall), None)
    if news is None or news.validation is None or news.validation.recall is None:
        return None
    found = [
        (labels[number] if number < len(labels) else f"class {number}", recall)
        for number, recall in enumerate(news.validation.recall)
        if recall is not None
    ]
    found.sort(key=lambda one: one[1])
    few = ""
    if len(found) > MOST_CLASSES:
        few = f" The {MOST_CLASSES} worst of {len(found):,} classes."
    note = f"Share of the images of each class that the model finds, after epoch {news.epoch}.{few}"
    return {"rows": found[:MOST_CLASSES], "note": note}
