"""Decide which columns of a row come from the model's head."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.records import RunPlan
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.head import Head


@dataclass(frozen=True, kw_only=True)
class HeadColumns:
    """Say which columns the head gives.

    Attributes:
        top_k: classes in `topk`; 0 leaves out all columns of the best classes.
        threshold: score from which on a class stands in `labels`; None leaves the column out.
        value: whether there is the column `value`.
    """

    top_k: int
    threshold: float | None = None
    value: bool = False


def head_columns(request: LabelRequest, checkpoint: BaseCheckpoint) -> HeadColumns:
    """Return the columns of a command with a model.

    Raises:
        UserError: the command asks the head for what it does not have.
    """
    num_classes = checkpoint.config.num_classes
    head = checkpoint.head
    if request.command != "label":
        return HeadColumns(top_k=min(request.top_k, num_classes))
    if not num_classes and request.top_k and not request.embedding:
        raise UserError(
            f'{request.model} has no classes to label with: --classes "cat,dog" gives classes to a model of '
            "images and texts (CLIP, OpenCLIP, SigLIP), and wordsworth embed gives the vectors of any model",
            exit_code=2,
        )
    _check_threshold(request.threshold, num_classes)
    if not num_classes and not request.embedding:
        raise UserError(
            "this model has no head, and a row would say nothing: wordsworth embed gives its vectors",
            exit_code=2,
        )
    if head.kind == "value":
        _check_value(request, num_classes)
        return HeadColumns(top_k=0, value=True)
    threshold = request.threshold
    if threshold is None and head.kind == "sigmoid":
        threshold = head.threshold
    return HeadColumns(top_k=min(request.top_k, num_classes), threshold=threshold)


def _check_threshold(threshold: float | None, num_classes: int) -> None:
    if threshold is None:
        return
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold}: a score is from 0 to 1", exit_code=2)
    if not num_classes:
        raise UserError(
            f"--threshold {threshold}: this model has no classes; wordsworth embed gives its vectors",
            exit_code=2,
        )


def _check_value(request: LabelRequest, num_classes: int) -> None:
    if num_classes > 1:
        raise UserError(
            f"this model gives {num_classes} numbers an image and no classes, and a row has a place for one: "
            "wordsworth embed gives the vector from which it computes them; if they are classes, "
            "--head softmax or --head sigmoid says so",
            exit_code=2,
        )
    if request.threshold is not None:
        raise UserError(
            f"--threshold {request.threshold} is a score of classes, and this model gives a number: "
            "leave it out, or --head sigmoid if the number is a class",
            exit_code=2,
        )


def as_begun(
    plan: RunPlan, checkpoint: BaseCheckpoint, request: LabelRequest, note: Callable[[str], None]
) -> BaseCheckpoint:
    """Return the model as its run knows it. A run of an earlier version took every head for a softmax.

    Such a run goes on as it began, so that its scores are of one kind; the scores of a head with one output
    were all 1, and its run does not go on.

    Args:
        plan: of the run.
        checkpoint: the model as it is read today.
        request: what the command asks for.
        note: gets what the user should know.
    """
    if checkpoint.head == Head() or "head" in plan.asked:
        return checkpoint
    older = replace(checkpoint)
    older.head = Head()
    if older.fingerprint()[:16] != plan.asked.get("model fingerprint"):
        return checkpoint
    if request.command == "label":
        if checkpoint.config.num_classes == 1:
            return checkpoint
        note(
            "this run was begun when every head was taken for a softmax, and goes on so: label into a new "
            f"--output for what its head means ({checkpoint.head.kind})"
        )
    return older
