"""Give a model the class names and the kind of head that a command asks for, and say what it has."""

from collections.abc import Callable
from dataclasses import replace

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_filesystem, without_credentials
from wordsworth.pipeline.storage.small_files import read_small_text
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.head import HEAD_FROM, LABEL_NOTE

Note = Callable[[str], None]  # gets what the user should know, a line at a time


def with_classes(
    found: BaseCheckpoint,
    labels: str | None,
    head: str | None,
    note: Note,
    storage_options: StorageOptions | None,
) -> BaseCheckpoint:
    """Return the model with the class names and the head's kind that were asked for, and say what it has.

    Raises:
        UserError: the names or the kind do not fit the model.
    """
    extra = dict(found.extra)
    label_note = extra.pop(LABEL_NOTE, None)
    if label_note and not labels:
        note(label_note)
    if labels:
        found = replace(found, labels=_read_labels(labels, found.config.num_classes, storage_options))
    found = replace(found, extra=extra)
    if head:
        found = _with_head(found, head)
    if found.head.kind == "sigmoid":
        note(f"scores are sigmoids, of each class for itself: {_reason(found)}")
    elif found.head.kind == "value":
        note(f"the head gives a number, and no classes: {_reason(found)}")
    return found


def _with_head(found: BaseCheckpoint, kind: str) -> BaseCheckpoint:
    """Return the model with another kind of head. Raises UserError where there can be no such head."""
    if not found.config.num_classes:
        raise UserError(f"--head {kind}: this model has no head", exit_code=2)
    if kind == "softmax" and found.config.num_classes == 1:
        raise UserError(
            "--head softmax: this model has one output, to which a softmax gives 1 for every image: "
            "--head sigmoid or --head value",
            exit_code=2,
        )
    if "zero_shot" in found.extra and kind not in ("softmax", found.head.kind):
        raise UserError(
            f"--head {kind}: the classes of this model are texts, and it was trained to compare them by a "
            f"{found.head.kind}: leave --head out",
            exit_code=2,
        )
    return replace(
        found, head=replace(found.head, kind=kind), extra=found.extra | {HEAD_FROM: "--head says so"}
    )


def _reason(found: BaseCheckpoint) -> str:
    """Return what told the kind of the head."""
    usual = (
        "the model has one output (--head value for a number)"
        if found.config.num_classes == 1
        else "config.json says so"
    )
    return found.extra.get(HEAD_FROM, usual)


def _read_labels(uri: str, num_classes: int, storage_options: StorageOptions | None) -> tuple[str, ...]:
    fs, path = open_filesystem(uri, storage_options)
    if not fs.isfile(path):
        raise UserError(f"--labels {without_credentials(uri)}: no such file", exit_code=2)
    labels = tuple(read_small_text(fs, path, f"--labels {without_credentials(uri)}").splitlines())
    if len(labels) != num_classes:
        names = plural(len(labels), "name")
        classes = plural(num_classes, "class", "classes")
        raise UserError(
            f"--labels {without_credentials(uri)} has {names}, the model has {classes}: give a "
            "name for each, one a line",
            exit_code=2,
        )
    return labels
