"""Run `wordsworth lint SOURCE...`: say what is wrong with shards, without a model."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from wordsworth.jobs.options import JsonFlag, RunOptions, SourceOptions, Sources
from wordsworth.jobs.terminal import Terminal, data_text
from wordsworth.pipeline.errors import plural, shown

if TYPE_CHECKING:
    from wordsworth.pipeline.sources.lint_report import LintFinding, LintReport

SHOWN = 50  # rows of the printed table
SHOWN_PLACES = 2  # places in one row


def lint(
    sources: Sources,
    /,
    *,
    keep: Annotated[
        str, Parameter(help="Sidecar fields that every sample must have, such as json,txt,cls.")
    ] = "",
    source: SourceOptions | None = None,
    json_: JsonFlag = False,
) -> int:
    """Say what is wrong with shards, without a model. No image is decoded.

    Exits with 0 if nothing is wrong (samples in no order and skipped members do not count), and with 3 if
    something is.
    """
    source = source or SourceOptions()
    source.check(*sources)
    from wordsworth.pipeline.sources.kept_columns import source_name
    from wordsworth.pipeline.sources.lint import lint as run
    from wordsworth.pipeline.sources.lint_report import MOST_PLACES
    from wordsworth.pipeline.sources.passed_over import ListingRules
    from wordsworth.pipeline.sources.samples import ReadSettings
    from wordsworth.pipeline.sources.source_lists import expand_sources, take_queries

    kept = RunOptions(keep=keep).kept
    names, storage = take_queries(expand_sources(sources, source.storage), source.storage)
    settings = ReadSettings(
        unit_rows=1,
        image_keys=source.image_keys,
        keep=tuple(map(source_name, kept)),
        storage_options=storage,
        image_column=source.image_column,
        key=source.key,
        key_rule=source.key_rule,
        include_hidden=source.include_hidden,
    )
    errors = Terminal(stderr=True)
    with errors.status("listing") as status:

        def begun(number: int, shards: int, name: str) -> None:
            status.update(Text(f"{number:,} of {shards:,}: {shown(name)}"))

        report = run(
            list(names),
            settings,
            format=source.format,
            rules=ListingRules(include_hidden=source.include_hidden, follow_links=source.follow_links),
            most_places=MOST_PLACES if json_ else SHOWN_PLACES,
            on_shard=begun,
        )
    if json_:
        print(json.dumps(_as_json(report), indent=1))
    else:
        _print(report)
    for shard, error in report.unreadable.items():
        errors.print(f"[red]not read[/] {data_text(f'{shard}: {error}')}")
    if report.unreadable:
        return 1
    return 0 if report.clean else 3


def _as_json(report: "LintReport") -> dict[str, Any]:
    findings = [
        {
            "code": finding.code,
            "shard": finding.shard,
            "count": finding.count,
            **({"kinds": dict(finding.kinds)} if finding.kinds else {}),
            "places": [place._asdict() for place in finding.places],
        }
        for finding in report.findings
    ]
    totals = {"clean": report.clean, "shards": report.shards, "samples": report.samples}
    passed_over = {
        "ignored": dict(report.passed_over.ignored),
        "skipped_names": dict(report.passed_over.skipped),
        "left_out": dict(report.passed_over.left_out),
    }
    return {**totals, "findings": findings, **passed_over, "unreadable": report.unreadable}


def _print(report: "LintReport") -> None:
    # In a file or a pipe a finding is one line, whatever its length.
    console = Terminal(width=None if sys.stdout.isatty() else 10_000)
    table = Table("shard", "finding", "count", "first places", box=None, header_style="bold", pad_edge=False)
    before = None
    # Faults first, so that notes on many shards do not hide them.
    for finding in sorted(report.findings, key=_is_harmless)[:SHOWN]:
        shard = "" if finding.shard == before else data_text(finding.shard)
        table.add_row(
            shard,
            f"[{'dim' if _is_harmless(finding) else 'red'}]{finding.code}[/]",
            f"{finding.count:,}",
            data_text(_places(finding)),
        )
        before = finding.shard
    if report.findings:
        console.print(table)
    if len(report.findings) > SHOWN:
        console.print(f"... and {len(report.findings) - SHOWN:,} more (--json lists all)")
    if report.passed_over.ignored:
        console.say(f"other files: {_counts(report.passed_over.ignored)}")
    for note in report.passed_over.serious_notes():
        console.say(note)
    console.print(_last_line(report))


def _is_harmless(finding: "LintFinding") -> bool:
    from wordsworth.pipeline.sources.lint_report import HARMLESS

    return finding.code in HARMLESS


def _places(finding: "LintFinding") -> str:
    told = []
    for place in finding.places:
        key = "" if place.key is None else f"{_short(place.key)} "
        at = "" if place.offset is None else f"at byte {place.offset}: "
        told.append(f"{key}{at}{_short(place.detail, 160)}")
    more = ["..."] if finding.count > len(finding.places) else []
    kinds = [f"{_counts(finding.kinds)} in all"] if len(finding.kinds) > 1 else []
    return "; ".join([*told, *more, *kinds])


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _last_line(report: "LintReport") -> str:
    faults = [finding for finding in report.findings if not _is_harmless(finding)]
    read = f"{plural(report.samples, 'sample')} in {plural(report.shards, 'shard')}"
    if report.clean:
        return f"[green]clean[/]: {read}"
    count = sum(finding.count for finding in faults)
    faulty_shards = {finding.shard for finding in faults}
    found = f"{plural(count, 'finding')} in {len(faulty_shards):,} of them"
    unread = f", {len(report.unreadable):,} not read" if report.unreadable else ""
    return f"[red]not clean[/]: {read}, {found}{unread}"
