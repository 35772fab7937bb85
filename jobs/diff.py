"""Run `wordsworth diff A B`: compare what two runs found in the same images."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from wordsworth.jobs.options import JsonFlag, StoreOptions, check_page_name
from wordsworth.jobs.terminal import Terminal, data_text
from wordsworth.pipeline.errors import plural

if TYPE_CHECKING:
    from wordsworth.pipeline.report.difference import Difference, Flip, LabelShift

LINES_SHOWN = 10  # lines of each table that is printed
OVER_LIMIT = 3  # exit code


def diff(
    before: Annotated[str, Parameter(name="A", help="The run folder of the run before.")],
    after: Annotated[str, Parameter(name="B", help="The run folder of the run after.")],
    /,
    *,
    output: Annotated[
        str | None,
        Parameter(
            alias="-o", help="FILE.html: write a page with the images that changed.", show_default=False
        ),
    ] = None,
    truth: Annotated[
        str | None,
        Parameter(
            help="Where an image's class stands: cls or another column that --keep kept, json:FIELD, or "
            "folder, the last one of the key: which run is right, and which changes are for the better.",
            show_default=False,
        ),
    ] = None,
    fail_if_accuracy_drops: Annotated[
        float | None,
        Parameter(
            help="Exit with code 3 when the accuracy of B, by --truth, is lower by more, such as 0.01.",
            validator=validators.Number(gte=0, lte=1),
            show_default=False,
        ),
    ] = None,
    fail_if_flips_over: Annotated[
        float | None,
        Parameter(
            help="Exit with code 3 when the share of images with another label is greater, such as 0.02.",
            validator=validators.Number(gte=0, lte=1),
            show_default=False,
        ),
    ] = None,
    storage: StoreOptions | None = None,
    json_: JsonFlag = False,
) -> int:
    """Compare two runs over the same images: labels that changed, scores that shifted, embeddings that moved.

    Rows are joined by shard and key. Temporary files of about the size of the rows are written to TMPDIR.
    """
    from wordsworth.pipeline.errors import UserError

    storage = storage or StoreOptions()
    if output is not None:
        check_page_name(output)
    if fail_if_accuracy_drops is not None and truth is None:
        raise UserError(
            "--fail-if-accuracy-drops needs --truth, which says where the classes stand", exit_code=2
        )
    storage.check(before, after, output=output)
    from wordsworth.pipeline.report.diff import compare_runs
    from wordsworth.pipeline.report.rows import RunRows

    errors = Terminal(stderr=True)
    with errors.status("joining the rows"):
        a, b = (RunRows.open(run, storage.storage) for run in (before, after))
        found = compare_runs(a, b, truth)
        written = None
        if output is not None:
            from wordsworth.pipeline.report.diff_page import write_diff_page

            written = write_diff_page(a, found, output, storage.storage)
    if json_:
        print(json.dumps(asdict(found), indent=1))
    else:
        _print(found)
    if output is not None and written is not None:
        from wordsworth.pipeline.storage.schemes import without_credentials

        for reason, count in written:
            errors.say(
                f"{plural(count, 'image is', 'images are')} not on the page: {reason}", level="warning"
            )
        errors.say(f"{without_credentials(output)}: the page")
    codes = [0]
    if fail_if_flips_over is not None:
        codes.append(_judge(found, fail_if_flips_over, errors))
    if found.truth and fail_if_accuracy_drops is not None and -found.truth.change > fail_if_accuracy_drops:
        told = f"the accuracy dropped from {found.truth.a.accuracy:.4%} to {found.truth.b.accuracy:.4%}: "
        errors.say(
            f"{told}{-found.truth.change:.4%} is over --fail-if-accuracy-drops {fail_if_accuracy_drops:g}",
            level="error",
        )
        codes.append(OVER_LIMIT)
    return max(codes)


def _judge(found: "Difference", limit: float, terminal: Terminal) -> int:
    """Return the exit code, and say on stderr when the limit is passed.

    Raises:
        UserError: no image has a label in both runs, so that there is no share.
    """
    from wordsworth.pipeline.errors import UserError

    if found.flip_share is None:
        raise UserError(
            "--fail-if-flips-over cannot be told: no image has a label in both runs: `wordsworth show RUN "
            "--errors` says what went wrong"
        )
    if found.flip_share <= limit:
        return 0
    told = f"{found.num_flips:,} of {found.num_labelled:,} labels changed: {found.flip_share:.4%} is over"
    terminal.say(f"{told} --fail-if-flips-over {limit:g}", level="error")
    return OVER_LIMIT


def _print(found: "Difference") -> None:
    """Print the figures and the most frequent changes as tables."""
    from wordsworth.pipeline.report.diff_facts import embedding_facts, overview_facts

    _table((), [(name, value) for name, value in overview_facts(found)])
    if found.flips:
        heads = ("label in A", "label in B", "images", "share", *(("better", "worse") if found.truth else ()))
        _table(heads, [_flip_cells(flip) for flip in found.flips[:LINES_SHOWN]], found.num_flip_kinds)
        _table(
            ("changed the label", "A", "score", "B", "score"),
            [
                (e.key, flip.label_a, _score(e.score_a), flip.label_b, _score(e.score_b))
                for flip in found.flips[:LINES_SHOWN]
                for e in flip.examples[:1]
            ],
        )
        _table(
            ("confused", "with", "images", "forth", "back"),
            [
                (*pair.labels, f"{pair.num:,}", f"{pair.num_forth:,}", f"{pair.num_back:,}")
                for pair in found.confused[:LINES_SHOWN]
            ],
        )
    if found.scores and found.scores.labels:
        _table(
            ("scores of", "in A", "mean", "in B", "mean", "PSI"),
            [_shift_cells(shift) for shift in found.scores.labels[:LINES_SHOWN]],
            found.scores.num_labels,
        )
    if found.drift:
        _table(("embeddings", ""), list(embedding_facts(found.drift)))
        _table(
            ("moved most", "cosine"), [(e.key, _score(e.cosine)) for e in found.drift.farthest[:LINES_SHOWN]]
        )


def _flip_cells(flip: "Flip") -> tuple[str, ...]:
    cells = (flip.label_a, flip.label_b, f"{flip.num:,}", f"{flip.share:.2%}")
    if flip.num_better is None or flip.num_worse is None:
        return cells
    return *cells, f"{flip.num_better:,}", f"{flip.num_worse:,}"


def _shift_cells(shift: "LabelShift") -> tuple[str, ...]:
    means = f"{shift.mean_a:.3f}", f"{shift.mean_b:.3f}"
    return shift.label, f"{shift.num_a:,}", means[0], f"{shift.num_b:,}", means[1], f"{shift.psi:.3f}"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], total: int = 0) -> None:
    """Print rows as a table; where there are more in all, say how many."""
    from rich.table import Table

    if not rows:
        return
    table = Table(*heads, box=None, pad_edge=False, show_header=bool(heads))
    for row in rows:
        table.add_row(*map(data_text, row))
    terminal = Terminal(width=None if Terminal().is_terminal else 10_000)
    if heads:
        terminal.print()
    terminal.print(table)
    if total > len(rows):
        terminal.print(f"and {total - len(rows):,} more")
