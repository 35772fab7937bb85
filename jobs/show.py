"""Run `wordsworth show OUT [--label L] [--errors] [--key K] [--nearest KEY] [--sql "..."]`: look at rows."""

import json
import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from wordsworth.jobs.options import JsonFlag, StoreOptions
from wordsworth.jobs.terminal import Terminal, data_text
from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.storage.outputs import refuse_no_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from wordsworth.pipeline.report.query import Query
    from wordsworth.pipeline.report.rows import RunRows
    from wordsworth.pipeline.report.sheet import Shown

PRINTED = ("key", "label", "score", "value", "error")  # columns of whole rows that are printed
NO_IMAGES = 5  # reasons for missing images that are told, the most frequent first


def show(
    run: Annotated[str, Parameter(help="The run folder.")],
    /,
    *,
    label: Annotated[str | None, Parameter(help="Rows with this best class.", show_default=False)] = None,
    errors: Annotated[bool, Parameter(help="Rows with an error.", negative="", show_default=False)] = False,
    key: Annotated[str | None, Parameter(help="Rows with this key.", show_default=False)] = None,
    nearest: Annotated[
        str | None,
        Parameter(
            help="Rows whose embeddings are nearest to that of the image with this key, by the cosine.",
            show_default=False,
        ),
    ] = None,
    sql: Annotated[
        str | None,
        Parameter(
            help="""A condition, such as "score < 0.5 and width > 1000", or a SELECT over the view rows. It is
            DuckDB's SQL, in which offset is written "offset".""",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, Parameter(help="Rows, at most.", validator=validators.Number(gte=1))] = 20,
    seed: Annotated[
        int | None,
        Parameter(
            help="Draw the rows at random, the same ones for a seed. Without it the first rows come.",
            validator=validators.Number(gte=0),
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        Parameter(
            alias="-o",
            help="""sheet.png (or .jpg, .webp): one contact sheet. Any other name: a new folder for the images
            as they are in the source, with an index.parquet. Without it the rows are printed.""",
            show_default=False,
        ),
    ] = None,
    storage: StoreOptions | None = None,
    json_: JsonFlag = False,
) -> int:
    """Show the rows and the images of a finished run that you ask for.

    What is given must all hold. Of shards in a store only the byte ranges of the images are fetched.
    """
    storage = storage or StoreOptions()
    from wordsworth.pipeline.report.query import Query

    query = Query(label=label, errors=errors, key=key, nearest=nearest, sql=sql, limit=limit, seed=seed)
    query.check()
    storage.check(output, output=run)
    from wordsworth.pipeline.report.sheet import is_sheet

    if output is not None and not is_sheet(output):
        refuse_no_folder(output, storage.storage)
    from wordsworth.pipeline.report.rows import RunRows

    rows_of_run = RunRows.open(run, storage.storage)
    rows, more = _choose(rows_of_run, query)
    if not rows.num_rows:
        return _tell_nothing(rows_of_run, query, is_for_output=output is not None)
    result = None
    if output is not None:
        result = _write(rows_of_run, rows, query, output)
    if json_:
        _print_json(rows, result)
    elif result is None:
        _print_table(rows, set(rows_of_run.schema.names))
    _tell(rows, result, output, more)
    return 0


def _choose(run: "RunRows", query: "Query") -> tuple["pa.Table", str | None]:
    """Return the rows that are asked for, and a line that says that the limit left some out."""
    from wordsworth.pipeline.report.query import choose_rows

    if query.seed is not None or query.nearest is not None:
        return choose_rows(run, query), None
    # One row beyond the limit tells that there are more, without a pass over all rows.
    rows = choose_rows(run, replace(query, limit=query.limit + 1))
    if rows.num_rows <= query.limit:
        return rows, None
    first = plural(query.limit, "row")
    told = (
        f"the first {first}" if query.has_condition else f"{query.limit:,} of {plural(run.num_rows, 'row')}"
    )
    return rows.slice(0, query.limit), f"{told}; --limit N shows more"


def _tell_nothing(run: "RunRows", query: "Query", *, is_for_output: bool) -> int:
    """Say that no row is asked for, and return the exit code: 0 for a condition that no row meets.

    Raises:
        UserError: the named row is not there, or there is nothing to write.
    """
    if not run.files and run.summary is None:
        nothing = f"{run.output} has no rows yet: the same command again continues it"
    elif query.is_key_alone:
        nothing = f"{run.output} has no row with the key {query.key}"
    else:
        nothing = f"no row of {run.output} matches: {query}"
    if query.is_key_alone or is_for_output:
        raise UserError(nothing)
    Terminal(stderr=True).say(nothing)
    return 0


def _write(run: "RunRows", rows: "pa.Table", query: "Query", output: str) -> "Shown":
    """Write a sheet or a folder.

    Raises:
        UserError: a SELECT left out where the images lie.
    """
    from wordsworth.pipeline.report.listed_images import WANTED
    from wordsworth.pipeline.report.sheet import is_sheet, write_files, write_sheet

    missing = [name for name in WANTED if name not in rows.column_names]
    if missing:
        raise UserError(
            f"--output needs the columns {', '.join(WANTED)}: SELECT {', '.join(missing)} too, or *",
            exit_code=2,
        )
    if is_sheet(output):
        return write_sheet(run, rows, f"{run.output}: {query}", output)
    return write_files(run, rows, output)


def _print_json(rows: "pa.Table", result: "Shown | None") -> None:
    """Print a line for each row, with its file and why it has no image where images were asked for."""
    from wordsworth.jobs.json_rows import json_rows

    for number, row in enumerate(json_rows(rows)):
        if result is not None:
            row |= {"file": result.files.get(number), "reason": result.reasons.get(number)}
        print(json.dumps(row, default=str))


def _print_table(rows: "pa.Table", of_run: set[str]) -> None:
    """Print the rows as a table.

    Args:
        rows: the rows.
        of_run: names of the columns that every row of the run has.
    """
    from rich.table import Table

    names = _shown_names(rows.column_names, of_run)
    table = Table(*map(data_text, names), box=None, pad_edge=False)
    for row in rows.to_pylist():
        table.add_row(*(data_text(_cell(row, name)) for name in names))
    # In a file or a pipe a row is one line, whatever its length.
    Terminal(width=None if sys.stdout.isatty() else 10_000).print(table)


def _shown_names(columns: list[str], of_run: set[str]) -> list[str]:
    """Return the columns for a person: of whole rows a few and those that a SELECT made, else all."""
    if not {"key", "shard", "index"} <= set(columns):
        return columns
    return [name for name in columns if name in PRINTED or name not in of_run]


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if name == "label" and value is None and row.get("label_id") is not None:
        return f"class {row['label_id']}"
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tell(rows: "pa.Table", result: "Shown | None", output: str | None, more: str | None) -> None:
    """Say on stderr what was written, and what could not be shown and why.

    Args:
        more: a line that says that there are more rows; None where there are none.
    """
    terminal = Terminal(stderr=True)
    if more:
        terminal.say(more)
    if result is None:
        return
    terminal.say(f"{output}: {result.num_images} of {plural(rows.num_rows, 'image')}")
    reasons = Counter(reason.partition(":")[0] for reason in result.reasons.values())
    for reason, count in reasons.most_common(NO_IMAGES):
        terminal.say(f"{count} without an image: {reason}", level="warning")
    others = sum(count for _, count in reasons.most_common()[NO_IMAGES:])
    if others:
        terminal.say(f"{others} without an image for other reasons", level="warning")
