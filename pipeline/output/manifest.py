"""Write the end of a run: the manifest and the summary, from what lies in the folder."""

import json
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.cluster.claims import RETRIES
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.commit import parquet_bytes_of
from wordsworth.pipeline.output.committed import CommittedUnits
from wordsworth.pipeline.output.frozen_listing import FrozenListing, open_pages
from wordsworth.pipeline.output.records import MANIFEST, JsonObject, LastCommand, RunPlan, Summary
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.unit import TIMED

FOOTER_CPUS = 0.2  # CPUs that a task claims that reads footers: it waits for the store nearly always
FILES_PER_TASK = 256  # footers that a task reads
MOST_TASKS = 1000  # tasks that are submitted before their results are taken; a result is some 60 kB


def write_manifest_and_summary(
    run: RunFolder, frozen: FrozenListing, plan: RunPlan, rows: Iterator[pa.Table], last_command: LastCommand
) -> Summary:
    """Write manifest and summary.

    They are made from the footers of the files, because receipts of a killed command are lost.

    Args:
        run: the run folder.
        frozen: the listing of the run.
        plan: the plan of the run.
        rows: tables of MANIFEST, as `read_footers` gives them.
        last_command: what this command did.

    Raises:
        UserError: a shard of the run is not complete.
    """
    if not is_labelled(frozen, run.committed()):
        raise UserError(
            f"{run.uri} is not complete although every shard was read: run `wordsworth verify {run.uri}`"
        )
    totals = ManifestTotals()
    manifest = parquet_bytes_of(map(totals.add, rows), MANIFEST)
    estimate = run.estimate()
    summary = summary_of(frozen, plan, totals, last_command)
    if estimate:
        summary = replace(summary, estimate=compare_estimate(estimate, totals, last_command))
    run.finish(manifest, summary)
    return summary


def is_labelled(frozen: FrozenListing, committed: CommittedUnits) -> bool:
    """Return whether the listing has come to its end, and every shard of it is complete."""
    return frozen.complete and not any(open_pages(frozen, committed))


def summary_of(
    frozen: FrozenListing, plan: RunPlan, totals: "ManifestTotals", last_command: LastCommand
) -> Summary:
    """Return the summary of the units that are there."""
    passed_over = frozen.passed_over()
    return Summary(
        run_id=plan.run_id,
        model=plan.model,
        fingerprint=plan.fingerprint,
        shards=totals.sums["last"],
        files=totals.files,
        rows=totals.sums["rows"],
        errors=dict(totals.errors.most_common()),
        skipped_members=dict(totals.skipped.most_common()),
        ignored=dict(passed_over.ignored.most_common()),
        skipped_names=dict(passed_over.skipped.most_common()),
        left_out=dict(passed_over.left_out),
        bytes_read=totals.sums["bytes_read"],
        bytes_written=totals.sums["bytes"],
        stage_seconds={stage: round(totals.sums[stage], 3) for stage in TIMED},
        last_command=last_command,
    )


def summary_if_complete(run: RunFolder, frozen: FrozenListing) -> Summary | None:
    """Return the summary of a run that is complete; None where something is left to do.

    A summary alone does not make a run complete: an update may have been killed before it wrote its own.
    """
    summary = run.summary()
    if summary is None or not frozen.complete:
        return None
    committed = run.committed()
    if summary.files != committed.units or not is_labelled(frozen, committed):
        return None
    return summary


@dataclass
class ManifestTotals:
    """Add up the rows of the manifest as they come.

    Attributes:
        files: units.
        sums: total of each numeric column.
        errors: rows with an error, by code.
        skipped: members of tars that are no part of a sample, by kind.
    """

    files: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, rows: pa.Table) -> pa.Table:
        """Count rows of the manifest, and return the rows."""
        self.files += rows.num_rows
        for name in ("last", "rows", "bytes_read", "bytes", *TIMED):
            self.sums[name] += pc.sum(rows[name]).as_py() or 0
        _add_counts(self.errors, rows["errors"])
        _add_counts(self.skipped, rows["skipped"])
        return rows


def _add_counts(total: Counter[str], column: pa.ChunkedArray) -> None:
    """Add a column of JSON objects, of which most are {} and are read once."""
    for entry in column.value_counts().to_pylist():
        for name, count in json.loads(entry["values"]).items():
            total[name] += count * entry["counts"]


def compare_estimate(
    estimate: JsonObject, totals: ManifestTotals, last_command: LastCommand
) -> dict[str, list[Any]]:
    """Return what `wordsworth plan` foretold beside what was found: [foretold, found] by figure."""
    forecast = estimate["forecast"]
    stages = last_command.stages
    found_rate = stages.steady_images_per_second if stages else None
    return {
        "images": [estimate["measured"]["images"], totals.sums["rows"]],
        "images_per_second": [round(forecast["images_per_second"], 1), found_rate],
        "bytes_written": [round(forecast["output_bytes"]), totals.sums["bytes"]],
    }


def read_footers(run: RunFolder, files_per_task: int = FILES_PER_TASK) -> Iterator[pa.Table]:
    """Yield the rows of the manifest: of the units that records describe, then of the others in order.

    Ray tasks read the footers; few tasks are ahead of what is taken.
    """
    import ray

    units = run.units()
    yield units.recorded().select(MANIFEST.names)
    names = units.unrecorded()
    task = ray.remote(num_cpus=FOOTER_CPUS, **RETRIES)(_manifest_rows)
    ahead_at_most = min(MOST_TASKS, 8 + int(ray.cluster_resources()["CPU"] / FOOTER_CPUS))
    ahead: deque[Any] = deque()
    for begin in range(0, len(names), files_per_task):
        if len(ahead) == ahead_at_most:
            yield ray.get(ahead.popleft())
        ahead.append(task.remote(run, names[begin : begin + files_per_task]))
    while ahead:
        yield ray.get(ahead.popleft())


def _manifest_rows(run: RunFolder, names: list[str]) -> pa.Table:
    return run.units().manifest(names)
