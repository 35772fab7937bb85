"""The Ray Data plan: shards -> units -> patches -> predictions -> Parquet -> receipts.

Read it from `_receipts` down: list, read, decode, predict, write. Everything else decides what has to be done and says what was.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa

from pipeline.cluster import ACTOR_RETRIES, RETRIES, StageResources, data_context, plan_resources, ray_session
from pipeline.decode import DECODER, DecodeSettings, decode_stage
from pipeline.errors import UserError
from pipeline.output import Committed, RunFolder, write_stage
from pipeline.plan import LabelRequest, asked_for, check_sources, make_plan, notes, refuse_another_run
from pipeline.predictor import Predictor, PredictSettings
from pipeline.reader import ReadSettings, list_stage, read_stage
from pipeline.rows import WriteSettings
from pipeline.source import LISTING, Shard, find_shards
from pipeline.unit import TIMED
from vit_model.checkpoint import Checkpoint


class Progress(Protocol):
    """What watches a run. Receipts drive it and nothing else."""

    def planned(self, shards: int, shards_done: int, bytes_total: int, bytes_done: int) -> None: ...
    def note(self, message: str) -> None: ...
    def receipt(self, receipt: dict[str, Any]) -> None: ...


def label(request: LabelRequest, checkpoint: Checkpoint, progress: Progress) -> dict[str, Any]:
    """Label every image of the sources into the output folder, once each; start, continue or find finished. Returns the summary.

    Raises UserError for a source or an output that cannot be used, and at the end for shards that the store did not give.
    """
    run = RunFolder(request.output, request.storage_options)
    asked = asked_for(request, checkpoint)
    plan = run.plan()
    if plan:
        refuse_another_run(run, plan, asked)
    listing = find_shards(list(request.sources), request.format, request.image_keys, request.storage_options)
    for note in notes(listing):
        progress.note(note)
    if plan and run.listing_files():
        for note in check_sources(run, listing):
            progress.note(note)
        if run.summary() and not _open_shards(run)[0]:
            progress.note("this run is complete already: nothing to do")
            return run.summary()

    with ray_session(request.address):
        import ray

        plan = plan or run.create(make_plan(asked, request, checkpoint, ray.cluster_resources()))
        refuse_another_run(run, plan, asked)
        if not run.listing_files():
            run.freeze_listing(listing)
        return _execute(run, plan, request, checkpoint, progress)


# ---- what is left to do ---------------------------------------------------------------------------------------------------

OPEN_SHARD = pa.schema([*LISTING, ("start", pa.int32()), ("have", pa.list_(pa.int32()))])


def _open_shards(run: RunFolder) -> tuple[list[pa.Table], dict[str, int]]:
    """The shards that are not complete, page by page, with the units they have; and what progress starts from."""
    done, pages, counts = run.committed(), [], Counter(shards=0, shards_done=0, bytes_total=0, bytes_done=0)
    for page in run.frozen_pages():
        rows = []
        for row in page.to_pylist():
            have = done.get(Shard.from_row(row).name, Committed())
            counts.update(shards=1, bytes_total=row["size"])
            if have.complete:
                counts.update(shards_done=1, bytes_done=row["size"])
            else:
                rows.append({**row, "start": have.prefix, "have": sorted(have.units)})
        if rows:
            pages.append(pa.Table.from_pylist(rows, schema=OPEN_SHARD))
    return pages, dict(counts)


# ---- the pipeline ----------------------------------------------------------------------------------------------------------


def _receipts(
    pages: list[pa.Table],
    weights: Any,
    stages: StageResources,
    read: ReadSettings,
    decode: DecodeSettings,
    predict: PredictSettings,
    write: WriteSettings,
) -> Iterator[dict[str, Any]]:
    """The whole pipeline as a stream of receipts. A row is a unit, a block is a row, a call gets a block."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy, from_arrow

    data_context()
    one = {"batch_size": None, "batch_format": "pyarrow"}
    units = (
        from_arrow(pages)
        .map_batches(list_stage, num_cpus=0.1, **one, **RETRIES)
        .map_batches(
            read_stage,
            fn_kwargs={"settings": read, "output": write.output},
            compute=TaskPoolStrategy(stages.read_tasks),
            **stages.read,
            **one,
            **RETRIES,
        )
        .map_batches(decode_stage, fn_kwargs={"settings": decode}, **stages.decode, **one, **RETRIES)
        .map_batches(
            Predictor,
            fn_constructor_kwargs={"weights": {"ref": weights}, "settings": predict},
            compute=ActorPoolStrategy(size=stages.predictors),
            **stages.predict,
            **one,
            **ACTOR_RETRIES,
        )
        .map_batches(write_stage, fn_kwargs={"settings": write}, **stages.write, **one, **RETRIES)
    )
    for batch in units.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


# ---- the run --------------------------------------------------------------------------------------------------------------


def _execute(run: RunFolder, plan: dict, request: LabelRequest, checkpoint: Checkpoint, progress: Progress) -> dict[str, Any]:
    import ray

    run.sweep()
    pages, counts = _open_shards(run)
    progress.planned(**counts)
    images, faults, start = 0, [], time.perf_counter()
    if pages:
        weights = checkpoint.to_bytes()
        settings = _stage_settings(run, plan, request, checkpoint)
        unit_bytes = settings["read"].unit_rows * checkpoint.config.num_patches * checkpoint.config.patch_dim
        stages = plan_resources(ray.cluster_resources(), plan["resolved"]["device"], len(weights), unit_bytes)
        for receipt in _receipts(pages, ray.put(weights), stages, **settings):
            images += receipt["rows"]
            faults += [receipt] if receipt["fault"] else []
            progress.receipt(receipt)
    seconds = time.perf_counter() - start
    if faults:
        raise UserError(
            f"{len(faults)} shards could not be read to their end, first {faults[0]['shard']}: {faults[0]['fault']}. "
            "What is done is kept: run the same command again"
        )
    return _finish(run, plan, images, seconds)


def _stage_settings(run: RunFolder, plan: dict, request: LabelRequest, checkpoint: Checkpoint) -> dict[str, Any]:
    config, resolved, options = checkpoint.config, plan["resolved"], request.storage_options
    provenance = {name: plan[name] for name in ("run_id", "fingerprint", "model", "package_version", "schema_version")}
    provenance |= {
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "decoder": DECODER,
        "dtype": resolved["precision"],
    }
    top_k = min(request.top_k, config.num_classes)
    return {
        "read": ReadSettings(
            resolved["unit_rows"],
            image_keys=request.image_keys,
            keep=request.keep,
            storage_options=options,
            image_column=request.image_column,
            key=request.key,
        ),
        "decode": DecodeSettings(checkpoint.preprocessing, config.image_size, config.patch_size),
        "predict": PredictSettings(
            resolved["precision"],
            resolved["device"],
            resolved["batch_size"],
            top_k,
            request.embedding,
            request.normalize,
        ),
        "write": WriteSettings(
            run.uri, provenance, checkpoint.labels, top_k, request.embedding, config.embedding_dim, request.keep, options
        ),
    }


def _finish(run: RunFolder, plan: dict, images: int, seconds: float) -> dict[str, Any]:
    """Manifest and summary, from what lies in the folder: a killed attempt's receipts are lost, its footers are not."""
    if _open_shards(run)[0]:
        raise UserError(f"{run.uri} is not complete although every shard was read: run `wordsworth verify {run.uri}`")
    manifest = _manifest(run)
    totals = {name: sum(manifest[name].to_pylist()) for name in ("rows", "bytes_read", "bytes", *TIMED)}
    errors = Counter()
    for codes in manifest["errors"].to_pylist():
        errors.update(json.loads(codes))
    summary = {
        "run_id": plan["run_id"],
        "model": plan["model"],
        "fingerprint": plan["fingerprint"],
        "shards": sum(manifest["last"].to_pylist()),
        "files": manifest.num_rows,
        "rows": totals["rows"],
        "errors": dict(errors.most_common()),
        "bytes_read": totals["bytes_read"],
        "bytes_written": totals["bytes"],
        "stage_seconds": {stage: round(totals[stage], 3) for stage in TIMED},
        "last_command": {
            "images": images,
            "seconds": round(seconds, 2),
            "images_per_second": round(images / max(seconds, 1e-9), 1),
        },
    }
    run.finish(manifest, summary)
    return summary


MANIFEST = pa.schema(
    [
        ("file", pa.string()),
        ("shard", pa.string()),
        ("unit", pa.int32()),
        ("last", pa.bool_()),
        ("rows", pa.int64()),
        ("errors", pa.string()),
        ("bytes_read", pa.int64()),
        ("bytes", pa.int64()),
        ("version", pa.string()),
        *[(stage, pa.float64()) for stage in TIMED],
    ]
)


def _manifest(run: RunFolder, chunk: int = 256) -> pa.Table:
    """One row a file, read from the footers by Ray tasks."""
    import ray

    files = run.prediction_files()
    task = ray.remote(num_cpus=0.2, **RETRIES)(RunFolder.footers)
    chunks = [task.remote(run, files[i : i + chunk]) for i in range(0, len(files), chunk)]
    return pa.Table.from_pylist([row for rows in ray.get(chunks) for row in rows], schema=MANIFEST)
