"""Label a part of a source first: `--limit`. The same command without it labels the rest."""

from dataclasses import replace

import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.label_run import LabelRun
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.manifest import ManifestTotals, summary_of
from wordsworth.pipeline.output.records import MANIFEST, LastCommand, Summary
from wordsworth.pipeline.output.run_folder import RunFolder

FOOTERS = 64  # footers that are read before their rows are added up
NOTHING_DONE = LastCommand(images=0, seconds=0.0, images_per_second=0.0)


def refuse_mixed_options(request: LabelRequest) -> None:
    """Check that a command which labels a part asks for nothing that needs the whole run.

    Raises:
        UserError: it does.
    """
    asked = {
        "--update": request.update,
        "--replace-changed": request.replace_changed,
        "--drop-missing": request.drop_missing,
        "--retry-errors": request.retry_errors,
    }
    for name, is_asked in asked.items():
        if request.limit and is_asked:
            raise UserError(
                f"{name} changes a complete run: label the rest without --limit first, then give {name}",
                exit_code=2,
            )


def rows_done(folder: RunFolder, most: int) -> int:
    """Return the rows of a run, counted no further than `most`. Reads the footers of as many files."""
    units = folder.units()
    total = int(pc.sum(units.recorded()["rows"]).as_py() or 0)
    names = units.unrecorded()
    for begin in range(0, len(names), FOOTERS):
        if total >= most:
            break
        total += int(pc.sum(units.manifest(names[begin : begin + FOOTERS])["rows"]).as_py() or 0)
    return total


def partial_summary(run: LabelRun, last_command: LastCommand = NOTHING_DONE) -> Summary:
    """Return the totals of what a limited run has so far, and say how to go on. Nothing is written.

    A summary in the folder would say that the run is complete.
    """
    limit = run.request.limit
    units = run.folder.units()
    totals = ManifestTotals()
    totals.add(units.recorded().select(MANIFEST.names))
    names = units.unrecorded()
    shards = set()
    for begin in range(0, len(names), FOOTERS):
        manifest = totals.add(units.manifest(names[begin : begin + FOOTERS]))
        shards.update(manifest["shard"].to_pylist())
    summary = summary_of(run.frozen, run.plan, totals, last_command)
    rounded = f" ({limit:,} rounded up to whole units)" if limit and summary.rows > limit else ""
    run.progress.note(
        f"--limit {limit}: {summary.rows:,} images are labelled{rounded}; "
        "the same command without --limit labels the rest"
    )
    return replace(summary, limit=limit, shards=max(summary.shards, len(shards)))
