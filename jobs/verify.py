"""wordsworth verify OUT [--source]: prove that every input sample has exactly one row."""

import json
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from wordsworth.jobs.options import SourceOptions

SHOWN = 20


def verify(
    output: Annotated[str, Parameter(help="The run folder.")],
    /,
    *,
    source: Annotated[
        bool, Parameter(help="Recount the input too, by code of its own.", negative="", show_default=False)
    ] = False,
    storage: SourceOptions | None = None,
    json_: Annotated[
        bool, Parameter(name="--json", help="Print JSON.", negative="", show_default=False)
    ] = False,
) -> int:
    """Prove that every input sample has exactly one row. Exit 0 when it is so, 1 with every fault named when not."""
    from wordsworth.pipeline.verification.verifier import verify as run

    report = run(output, source, (storage or SourceOptions()).storage)
    if json_:
        print(json.dumps({**asdict(report), "ok": report.ok}, indent=1))
        return 0 if report.ok else 1
    console = Console(soft_wrap=True, highlight=False)
    for fault in report.faults[:SHOWN]:
        console.print(f"[red]{fault.what}[/] {escape(f'{fault.where}: {fault.detail}')}")
    if len(report.faults) > SHOWN:
        console.print(f"... and {len(report.faults) - SHOWN} more (--json lists all)")
    recount = "" if report.recounted is None else f", {report.recounted:,} samples counted in the source"
    errors = f" ({sum(report.errors.values()):,} with an error)" if report.errors else ""
    verdict = "[green]exact[/]" if report.ok else "[red]NOT exact[/]"
    console.print(
        f"{verdict}: {report.rows:,} rows{errors} in {report.files:,} files of {report.shards:,} shards{recount}"
    )
    return 0 if report.ok else 1


if __name__ == "__main__":
    from wordsworth.jobs.cli import main_of

    main_of("verify")
