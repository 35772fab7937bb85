"""Compare two runs over the same images: which labels, scores and embeddings changed."""

import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.report.diff_tally import DiffTally
from wordsworth.pipeline.report.diff_truth import DiffTruth
from wordsworth.pipeline.report.difference import ComparedRun, Difference
from wordsworth.pipeline.report.joined_rows import SharedNames, join_runs
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.storage.filesystem import is_local
from wordsworth.pipeline.storage.schemes import without_credentials


def compare_runs(a: RunRows, b: RunRows, truth: str | None = None) -> Difference:
    """Return what two runs differ in.

    Rows are joined by shard and key, through temporary files (`join_runs`). Memory grows with the labels, the
    different flips and 4 bytes a row with embeddings, and not with the rows themselves.

    Args:
        a: the run before.
        b: the run after.
        truth: where the class of an image stands, as in `TruthNames`, in the rows of A or else of B; None
            compares with no classes.

    Raises:
        UserError: the runs cannot be compared, no row could be joined, a file of a run is damaged, there is
            no room for the temporary files, or no row has a class where `truth` says.
    """
    begin = time.monotonic()
    with_embeddings = _check(a, b)
    names = SharedNames()
    classes = DiffTruth((a, b), truth) if truth is not None else None
    if classes:
        names.truth[classes.side] = classes.names
    with tempfile.TemporaryDirectory(prefix="wordsworth-diff-") as folder:
        tally = DiffTally(names, Path(folder) / "flips.arrow", with_embeddings, classes)
        with tally.flips_file:
            for part in join_runs(a, b, Path(folder), names, with_embeddings):
                tally.add(part)
        if not tally.num_joined:
            raise UserError(_nothing_joined(a, b, tally))
        flips = tally.flips()
    return Difference(
        a=_compared(a),
        b=_compared(b),
        has_labels=a.has("label") and b.has("label"),
        has_same_classes=_have_same_classes(a, b, names),
        flips=flips,
        seconds=round(time.monotonic() - begin, 1),
        **tally.figures(),
    )


def _check(a: RunRows, b: RunRows) -> bool:
    """Return whether both runs have embeddings.

    Raises:
        UserError: the runs cannot be compared.
    """
    if _place(a) == _place(b):
        raise UserError(f"{a.output} and {b.output} are one run: name two runs to compare", exit_code=2)
    if not (a.has("embedding") and b.has("embedding")):
        for run in (a, b):
            if not run.has("label"):
                raise UserError(
                    f"the rows of {run.output} have no labels to compare, and not both runs have embeddings: "
                    "diff compares the labels of `wordsworth label` whose model has classes, and embeddings"
                )
        return False
    widths = []
    for run in (a, b):
        kind = run.schema.field("embedding").type
        if not pa.types.is_fixed_size_list(kind):
            raise UserError(f"the column embedding of {run.output} is {kind} and no list of one length")
        widths.append(kind.list_size)
    if widths[0] != widths[1]:
        raise UserError(
            f"the embeddings cannot be compared: those of {a.output} have {widths[0]} numbers and those of "
            f"{b.output} have {widths[1]}: compare runs of models of one width, or a run without --embedding"
        )
    return True


def _place(run: RunRows) -> str:
    return os.path.realpath(run.folder.root) if is_local(run.fs) else run.folder.uri.rstrip("/")


def _nothing_joined(a: RunRows, b: RunRows, tally: DiffTally) -> str:
    examples = [kept.examples[:1] for kept in (tally.only[0].told(), tally.only[1].told())]
    for run, found in zip((a, b), examples, strict=True):
        if not found:
            return f"{run.output} has no rows: there is nothing to compare"
    of_a, of_b = examples[0][0], examples[1][0]
    return (
        f"no row of {a.output} is in {b.output}: rows are joined by shard and key, which are {of_a.shard} "
        f"{of_a.key} in the first and {of_b.shard} {of_b.key} in the second: compare runs over one source"
    )


def _compared(run: RunRows) -> ComparedRun:
    return ComparedRun(
        path=without_credentials(run.output),
        model=run.plan.model,
        run_id=run.plan.run_id,
        num_rows=run.num_rows,
        is_complete=run.summary is not None,
    )


def _have_same_classes(a: RunRows, b: RunRows, names: SharedNames) -> bool:
    """Return whether the plans name one list of classes, and the rows do not disprove it."""
    lists = [run.plan.asked.get("labels") for run in (a, b)]
    if all(lists) and lists[0] != lists[1]:
        return False
    return not names.have_conflict()
