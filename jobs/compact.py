"""wordsworth compact OUT: merge the small files of a finished run into large ones."""

import json
import re
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from wordsworth.jobs.options import SourceOptions
from wordsworth.pipeline.errors import UserError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def compact(
    output: Annotated[str, Parameter(help="The run folder; the same command again continues it.")],
    /,
    *,
    target_size: Annotated[
        str, Parameter(help="Size of a compacted file, at most: such as 256MB or 1GiB.")
    ] = "256MB",
    delete_small: Annotated[
        bool,
        Parameter(
            help="Remove the small files once what they hold is in compacted ones.",
            negative="",
            show_default=False,
        ),
    ] = False,
    address: Annotated[
        str | None, Parameter(help="Join the Ray cluster at this address (or RAY_ADDRESS).")
    ] = None,
    storage: SourceOptions | None = None,
    json_: Annotated[
        bool, Parameter(name="--json", help="Print JSON.", negative="", show_default=False)
    ] = False,
) -> int:
    """Merge the small files of a finished run into large ones, in OUT/compacted."""
    from wordsworth.jobs.progress import RunProgress
    from wordsworth.pipeline.compaction.compactor import CompactRequest
    from wordsworth.pipeline.compaction.compactor import compact as run

    request = CompactRequest(
        output, _bytes(target_size), delete_small, address, (storage or SourceOptions()).storage
    )
    with RunProgress("compacting") as progress:
        summary = run(request, progress)
    _print(summary, output, json_)
    return 0


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]I?B|)B?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise UserError(f"--target-size {text}: give a size such as 256MB or 1GiB", exit_code=2)
    return size


def _print(summary: dict[str, Any], output: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    table, did, small = Table(show_header=False, box=None), summary["last_command"], summary["small_files"]
    files = "1 file" if summary["files"] == 1 else f"{summary['files']:,} files"
    rows = {
        "rows": f"{summary['rows']:,} of {summary['units']:,} units, in {files} ({decimal(summary['bytes'])})"
    }
    if did["units"]:
        rows["merged"] = f"{did['units']:,} files into {did['files']:,} in {did['seconds']:,} s"
    if did["removed"]:
        rows["removed"] = f"{did['removed']:,} files of {output.rstrip('/')}/predictions"
    rows["compacted"] = f"{output.rstrip('/')}/compacted/*.parquet"
    if small:
        rows["predictions"] = (
            f"{small:,} small files are still there, with the same rows: --delete-small removes them"
        )
    rows["next"] = f"wordsworth verify {output}"
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True, highlight=False).print(table)


if __name__ == "__main__":
    from wordsworth.jobs.cli import main_of

    main_of("compact")
