"""Run wordsworth compact: write a finished run again, in a new folder of large files."""

import json
import re
from shlex import quote
from typing import Annotated, Any

from cyclopts import Parameter
from rich.filesize import decimal

from wordsworth.jobs.cluster_options import ClusterOptions
from wordsworth.jobs.options import JsonFlag, StoreOptions
from wordsworth.jobs.terminal import Terminal
from wordsworth.pipeline.cluster.joining import reach
from wordsworth.pipeline.errors import UserError, plural

# Bytes of each unit that --target-size may have.
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def compact(
    run: Annotated[str, Parameter(help="The folder of a finished run. It is never changed.")],
    /,
    *,
    output: Annotated[
        str,
        Parameter(
            alias="-o", help="A new folder for the same run in large files. The same command again continues."
        ),
    ],
    target_size: Annotated[
        str, Parameter(help="Size of a large file, at most: such as 256MB or 1GiB.")
    ] = "256MB",
    cluster: ClusterOptions | None = None,
    storage: StoreOptions | None = None,
    json_: JsonFlag = False,
) -> int:
    """Write a finished run again, in a new folder of large files."""
    storage = storage or StoreOptions()
    storage.check(run, output=output, is_new=True)
    from wordsworth.jobs.progress import RunProgress
    from wordsworth.pipeline.compaction.compactor import CompactRequest
    from wordsworth.pipeline.compaction.compactor import compact as write_compacted

    request = CompactRequest(
        run=run,
        output=output,
        target_size=_to_bytes(target_size),
        cluster=(cluster or ClusterOptions()).request,
        storage_options=storage.storage,
    )
    with RunProgress("compacting") as progress:
        if request.cluster.address:  # without it few units need no Ray
            reach(request.cluster, progress.note)
        summary = write_compacted(request, progress)
    if json_:
        print(json.dumps(summary, indent=1))
    else:
        _print_summary(summary, run, output.rstrip("/"))
    return 0


def _to_bytes(text: str) -> int:
    """Return the bytes of a size such as 256MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]I?B|)B?", text.strip().upper())
    size_bytes = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size_bytes < 1:
        raise UserError(f"--target-size {text}: give a size such as 256MB or 1GiB", exit_code=2)
    return size_bytes


def _print_summary(summary: dict[str, Any], run: str, output: str) -> None:
    from wordsworth.pipeline.output.run_folder import ROW_FILES

    did = summary["last_command"]
    in_files = f"in {plural(summary['files'], 'file')} ({decimal(summary['bytes'])})"
    rows = {"rows": f"{summary['rows']:,} of {plural(summary['units'], 'small file')}, {in_files}"}
    if did["units"]:
        rows["merged"] = f"{plural(did['units'], 'small file')} into {did['files']:,} in {did['seconds']:,} s"
    rows["read"] = f"{output}/{ROW_FILES} from now on"
    rows["next"] = f"wordsworth verify {quote(output)}; once it is clean, {run} can be deleted"
    Terminal().print_facts(rows)
