"""Run `wordsworth verify OUT [--source]`: prove that every input sample has exactly one row."""

import json
from typing import Annotated

from cyclopts import Parameter

from wordsworth.jobs.options import JsonFlag, StoreOptions
from wordsworth.jobs.terminal import Terminal, data_text
from wordsworth.pipeline.errors import plural

SHOWN = 20  # findings that are printed


def verify(
    output: Annotated[str, Parameter(help="The run folder.")],
    /,
    *,
    source: Annotated[
        bool,
        Parameter(
            help="Count the input again too, with code that shares nothing with the reader.", negative=""
        ),
    ] = False,
    storage: StoreOptions | None = None,
    json_: JsonFlag = False,
) -> int:
    """Prove that every input sample has exactly one row.

    Exits with 0 if that is so; if not, names every finding and exits with 1.
    """
    storage = storage or StoreOptions()
    storage.check(output=output)
    from wordsworth.pipeline.verification.verifier import verify as run

    report = run(output, source, storage.storage)
    if json_:
        print(json.dumps(report.to_dict(), indent=1))
        return 0 if report.ok else 1
    console = Terminal()
    for finding in report.findings[:SHOWN]:
        told = data_text(f"{finding.where}: {finding.detail}")
        console.print(f"[red]{data_text(finding.code)}[/] {told}")
    if len(report.findings) > SHOWN:
        console.print(f"... and {len(report.findings) - SHOWN} more (--json lists all)")
    for note in report.notes():
        console.say(f"note: {note}")
    recount = ""
    if report.recounted is not None:
        recount = f", {plural(report.recounted, 'sample')} counted in the source"
    errors = f" ({sum(report.errors.values()):,} with an error)" if report.errors else ""
    verdict = "[green]exact[/]" if report.ok else "[red]NOT exact[/]"
    if report.is_exact_so_far:
        verdict = "[yellow]exact so far[/]"
    place = f"{plural(report.files, 'file')} of {plural(report.shards, 'shard')}"
    found = f"{plural(report.rows, 'row')}{errors} in {place}"
    console.print(f"{verdict}: {found}{recount}")
    return 0 if report.ok else 1
