"""Label a part of a source first: `--limit` and `--sample`. The same command without them labels all."""

from dataclasses import replace

import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.labeling.label_run import LabelRun
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.manifest import ManifestTotals, is_labelled, summary_of
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
    if request.limit and request.sample:
        raise UserError("--limit and --sample are two parts of a source: give one of them", exit_code=2)
    part = "--sample" if request.sample else "--limit"
    for name, is_asked in asked.items():
        if is_asked and (request.limit or request.sample):
            raise UserError(
                f"{name} changes a complete run: label the rest without {part} first, then give {name}",
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


def is_part_done(run: LabelRun) -> bool:
    """Return whether the part that the command asks for is labelled. False where it asks for all."""
    if run.request.sample:
        return is_labelled(run.frozen, run.folder.committed())
    limit = run.request.limit
    return limit is not None and rows_done(run.folder, limit) >= limit


def partial_summary(run: LabelRun, last_command: LastCommand = NOTHING_DONE) -> Summary:
    """Return the totals of the part that is labelled, and say how to go on. Nothing is written.

    A summary in the folder would say that the run is complete.
    """
    units = run.folder.units()
    totals = ManifestTotals()
    totals.add(units.recorded().select(MANIFEST.names))
    names = units.unrecorded()
    shards = set()
    for begin in range(0, len(names), FOOTERS):
        manifest = totals.add(units.manifest(names[begin : begin + FOOTERS]))
        shards.update(manifest["shard"].to_pylist())
    summary = summary_of(run.frozen, run.plan, totals, last_command)
    limit, sample = run.request.limit, run.request.sample
    images = plural(summary.rows, "image is", "images are")
    if sample:
        told = f"--sample {sample}: {images} labelled; the same command without --sample "
        run.progress.note(f"{told}labels all, those of the sample too")
    elif limit:
        rounded = f" ({limit:,} rounded up to a whole file)" if summary.rows > limit else ""
        told = f"--limit {limit}: {images} labelled{rounded}; the same command without "
        run.progress.note(f"{told}--limit labels the rest")
    return replace(summary, limit=limit, sample=sample, shards=max(summary.shards, len(shards)))
