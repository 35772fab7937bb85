"""The end of a run: the manifest and the summary, from what lies in the folder."""

import json
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.cluster.session import RETRIES
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.frozen_listing import FrozenListing, open_pages
from wordsworth.pipeline.output.run_folder import MANIFEST, RunFolder, parquet_of
from wordsworth.pipeline.unit import TIMED

FOOTER_CPUS = 0.2  # of a task that reads footers, which mostly waits


def finish(
    run: RunFolder, frozen: FrozenListing, plan: dict, rows: Iterator[pa.Table], last_command: dict[str, Any]
) -> dict[str, Any]:
    """Write manifest and summary from what lies in the folder: a killed attempt's receipts are lost, its footers are not.

    rows: those of the manifest, as `footers` gives them. last_command: what `Watch` says of it.
    """
    if not frozen.complete or any(open_pages(frozen, run.committed())):
        raise UserError(
            f"{run.uri} is not complete although every shard was read: run `wordsworth verify {run.uri}`"
        )
    tally = Tally()
    manifest = parquet_of(map(tally.add, rows), MANIFEST)
    summary = {
        "run_id": plan["run_id"],
        "model": plan["model"],
        "fingerprint": plan["fingerprint"],
        "shards": tally.sums["last"],
        "files": tally.files,
        "rows": tally.sums["rows"],
        "errors": dict(tally.errors.most_common()),
        "skipped_members": dict(tally.skipped.most_common()),
        "ignored": dict(frozen.ignored().most_common()),
        "bytes_read": tally.sums["bytes_read"],
        "bytes_written": tally.sums["bytes"],
        "stage_seconds": {stage: round(tally.sums[stage], 3) for stage in TIMED},
        "last_command": last_command,
    }
    if estimate := run.estimate():
        summary["estimate"] = against(estimate, summary)
    run.finish(manifest, summary)
    return summary


def against(estimate: dict[str, Any], summary: dict[str, Any]) -> dict[str, list]:
    """What `wordsworth plan` foretold of a run beside what became of it: [foretold, found]."""
    measured, forecast = estimate["measured"], estimate["forecast"]
    return {
        "images": [measured["images"], summary["rows"]],
        "images_per_second": [
            round(forecast["images_per_second"], 1),
            summary["last_command"].get("steady_images_per_second"),
        ],
        "bytes_written": [round(forecast["output_bytes"]), summary["bytes_written"]],
    }


@dataclass
class Tally:
    """What the rows of the manifest add up to, as they come."""

    files: int = 0
    sums: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)

    def add(self, rows: pa.Table) -> pa.Table:
        """Count the rows, and give them on."""
        self.files += rows.num_rows
        for name in ("last", "rows", "bytes_read", "bytes", *TIMED):
            self.sums[name] += pc.sum(rows[name]).as_py() or 0
        for counts, column in ((self.errors, rows["errors"]), (self.skipped, rows["skipped"])):
            for same in column.value_counts().to_pylist():  # most rows say {}
                counts.update(
                    {code: count * same["counts"] for code, count in json.loads(same["values"]).items()}
                )
        return rows


def footers(run: RunFolder, chunk: int = 256) -> Iterator[pa.Table]:
    """The rows of the manifest: of compacted units as the compaction has them, of the others in the order of their files, read from
    the footers by Ray tasks of which few are ahead."""
    import ray

    yield run.compacted(MANIFEST.names)
    files, ahead = run.uncompacted(), deque()
    task = ray.remote(num_cpus=FOOTER_CPUS, **RETRIES)(RunFolder.manifest)
    most = min(1000, 8 + int(ray.cluster_resources()["CPU"] / FOOTER_CPUS))  # a result is some 60 kB
    for begin in range(0, len(files), chunk):
        if len(ahead) == most:
            yield ray.get(ahead.popleft())
        ahead.append(task.remote(run, files[begin : begin + chunk]))
    while ahead:
        yield ray.get(ahead.popleft())
