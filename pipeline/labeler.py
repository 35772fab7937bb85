"""The Ray Data plan: shards -> units -> patches -> predictions -> Parquet -> receipts.

Read it from `_receipts` down: list, read, decode, predict, write. Everything else decides what has to be done and says what was.
"""

import math
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline.balance import Balance
from pipeline.batches import UNITS
from pipeline.cluster import ACTOR_RETRIES, RETRIES, StageResources, Work, data_context, plan_resources, ray_session, resources
from pipeline.decode import DECODER, FAST_DECODER, DecodeSettings, decode_stage
from pipeline.errors import UserError
from pipeline.finish import finish, footers
from pipeline.listing import (
    FrozenListing,
    Head,
    ListSettings,
    changes,
    freeze_update,
    list_stage,
    open_pages,
)
from pipeline.output import RunFolder, write_stage
from pipeline.plan import LabelRequest, asked_for, change_notes, make_plan, refuse_another_run
from pipeline.predictor import Predictor, PredictSettings
from pipeline.reader import ReadSettings, read_stage
from pipeline.retry import failed_units, fetch_stage, merge_stage
from pipeline.rows import WriteSettings
from pipeline.source import Finder, expand_sources
from pipeline.storage import public
from pipeline.watch import Progress, Totals, Watch, note_ignored
from vit_model.checkpoint import Checkpoint
from vit_model.config import macs

# To know whether there is work for more than one worker of a stage.
SMALL_IMAGE = 10_000  # bytes: a photograph is larger
MACS_PER_SECOND = 20e9  # a core is faster
DECODE_SECONDS = 4e-8  # for a byte of JPEG


def label(request: LabelRequest, checkpoint: Checkpoint, progress: Progress) -> dict[str, Any]:
    """Label every image of the sources into the output folder, once each; start, continue or find finished. Returns the summary.

    Raises UserError for a source or an output that cannot be used, and at the end for shards that the store did not give.
    """
    run = RunFolder(request.output, request.storage_options)
    frozen = FrozenListing(run)
    request = replace(request, sources=tuple(expand_sources(request.sources, request.storage_options)))
    asked = asked_for(request, checkpoint)
    plan = run.plan()
    if plan:
        refuse_another_run(run, plan, asked)
        _refuse_compacted(run, request)
    head = None if plan and frozen.files() else Head.of(_finder(request))
    if plan and head is None:
        _catch_up(frozen, request, progress)
        if _is_finished(run, frozen):
            if request.retry_errors and any(failed_units(run, frozen)):
                with ray_session(request.address):
                    return _retry(run, frozen, plan, request, checkpoint, progress)
            progress.note("this run is complete already: nothing to do")
            return run.summary()

    with ray_session(request.address):
        import ray

        plan = plan or run.create(make_plan(asked, request, checkpoint, ray.cluster_resources()))
        refuse_another_run(run, plan, asked)
        if head:
            head.freeze(frozen)
        return _execute(run, frozen, plan, request, checkpoint, progress)


def _refuse_compacted(run: RunFolder, request: LabelRequest) -> None:
    for option, given in (("--retry-errors", request.retry_errors), ("--replace-changed", request.replace_changed)):
        if given:
            run.refuse_compacted(option)


def _finder(request: LabelRequest) -> Finder:
    return Finder(list(request.sources), request.format, request.image_keys, request.storage_options)


def _catch_up(frozen: FrozenListing, request: LabelRequest, progress: Progress) -> None:
    """Hold a frozen listing against the source as it is now, where that was asked for or costs little; update it if asked for."""
    if frozen.close_update():
        progress.note("an earlier --update was interrupted while it was listing: run --update again for the rest of what is new")
    updating = request.update or request.replace_changed
    if not frozen.complete:
        if updating:
            raise UserError("the first listing of this run is not complete: run the same command without --update first")
        return
    if not updating and not frozen.is_short():
        return  # a long listing takes long again; a shard that was replaced is met when it is read
    found = changes(frozen, _finder(request), request.replace_changed)
    for note in change_notes(found, updating):
        progress.note(note)
    if found.changed and not updating:
        raise UserError(
            f"shard_changed: {public(found.changed[0])} was replaced since {frozen.run.uri} was planned "
            f"({len(found.changed)} such in all): "
            "--replace-changed labels it again, or label into a new --output, or put the old object back"
        )
    if updating and found.shards:
        _refuse_compacted(frozen.run, request)  # again: listing the source took its time
        freeze_update(frozen, found)


def _is_finished(run: RunFolder, frozen: FrozenListing) -> bool:
    """Every shard is there, and the summary is of what is there: an update may have been killed before it wrote its own."""
    summary = run.summary()
    if summary is None:
        return False
    done = run.committed()
    return summary["files"] == done.units and not any(open_pages(frozen, done))


# ---- the pipeline ----------------------------------------------------------------------------------------------------------


ONE = {"batch_size": None, "batch_format": "pyarrow"}  # a row is a unit, a block is a row, a call gets a block


def _receipts(done: Any, weights: Any, stages: StageResources, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The whole pipeline as a stream of receipts: list, read, decode, predict, write."""
    from ray.data import TaskPoolStrategy, from_blocks

    data_context()
    units = (
        from_blocks([pa.table({"begin": [True]})])
        .map_batches(list_stage, fn_kwargs={"settings": settings["listing"], "done": {"ref": done}}, num_cpus=0.1, **ONE, **RETRIES)
        .map_batches(
            read_stage,
            fn_kwargs={"settings": settings["read"], "output": settings["write"].output},
            compute=TaskPoolStrategy(stages.read_tasks),
            **stages.read,
            **ONE,
            **RETRIES,
        )
    )
    written = _predicted(units, weights, stages, settings).map_batches(
        write_stage, fn_kwargs={"settings": settings["write"]}, **stages.write, **ONE, **RETRIES
    )
    yield from _rows(written)


def _retried(failed: list[pa.Table], weights: Any, stages: StageResources, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same for images that failed: fetch, decode, predict, merge into the files that they are in."""
    from ray.data import TaskPoolStrategy, from_blocks

    data_context()
    units = from_blocks(failed).map_batches(
        fetch_stage,
        fn_kwargs={"settings": settings["read"], "output": settings["write"].output},
        compute=TaskPoolStrategy(stages.read_tasks),
        **stages.read,
        **ONE,
        **RETRIES,
    )
    merged = _predicted(units, weights, stages, settings).map_batches(
        merge_stage, fn_kwargs={"settings": settings["write"]}, **stages.write, **ONE, **RETRIES
    )
    yield from _rows(merged)


def _predicted(units: Any, weights: Any, stages: StageResources, settings: dict[str, Any]) -> Any:
    """Units of encoded images -> units of predictions."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    together = UNITS if settings["predict"].device == "cuda" else 1
    return units.map_batches(
        decode_stage,
        fn_kwargs={"settings": settings["decode"]},
        compute=TaskPoolStrategy(stages.decode_tasks),
        **stages.decode,
        **ONE,
        **RETRIES,
    ).map_batches(
        Predictor,
        fn_constructor_kwargs={"weights": {"ref": weights}, "settings": settings["predict"]},
        compute=ActorPoolStrategy(
            size=stages.predictors, max_concurrent_calls_per_actor=together, enable_true_multi_threading=True
        ),
        **stages.predict,
        **ONE,
        **ACTOR_RETRIES,
    )


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


# ---- the run --------------------------------------------------------------------------------------------------------------


def _execute(
    run: RunFolder, frozen: FrozenListing, plan: dict, request: LabelRequest, checkpoint: Checkpoint, progress: Progress
) -> dict[str, Any]:
    import ray

    from pipeline.stall import watched

    run.sweep()
    if removed := run.remove_shards(frozen.replaced()):
        progress.note(f"removed {removed} files of shards that were replaced; they are labelled again")
    done = run.committed()
    totals = Totals(frozen, done)
    progress.planned(**(counts := totals.look(every=0)), listed=frozen.complete)
    if frozen.complete:
        note_ignored(frozen, progress)
    watch = Watch(progress)
    if not frozen.complete or any(open_pages(frozen, done)):
        left = counts["bytes_total"] - counts["bytes_done"] if frozen.complete else math.inf
        weights, stages, settings = _ready(run, plan, request, checkpoint, left)
        watch.balance = Balance(stages.predictors, plan["resolved"]["device"])
        receipts = _receipts(ray.put(done), weights, stages, settings)
        for receipt in watched(receipts, request.stall_timeout, progress.note):
            watch.receipt(receipt)
            if now := totals.look():
                progress.listed(now["shards"], now["bytes_total"])
    watch.refuse_faults()
    rows = watched(footers(run), request.stall_timeout, progress.note, "footer was read")
    summary = finish(run, frozen, plan, rows, watch.figures())
    return _retry(run, frozen, plan, request, checkpoint, progress) if request.retry_errors else summary


def _retry(
    run: RunFolder, frozen: FrozenListing, plan: dict, request: LabelRequest, checkpoint: Checkpoint, progress: Progress
) -> dict[str, Any]:
    """Try again what failed; the summary afterwards."""
    from pipeline.stall import watched

    failed = list(failed_units(run, frozen))
    watch = Watch(progress)
    progress.note(f"trying the errors of {len(failed)} files again" if failed else "no error is worth another try")
    if failed:
        receipts = _retried(failed, *_ready(run, plan, request, checkpoint))
        for receipt in watched(receipts, request.stall_timeout, progress.note):
            watch.receipt(receipt)
    watch.refuse_faults()
    rows = watched(footers(run), request.stall_timeout, progress.note, "footer was read")
    return finish(run, frozen, plan, rows, watch.figures())


def _ready(
    run: RunFolder, plan: dict, request: LabelRequest, checkpoint: Checkpoint, left: float = math.inf
) -> tuple[Any, StageResources, dict[str, Any]]:
    """The weights in Ray's store, what each stage may take of the cluster, and each stage's settings. left: bytes of shards."""
    import ray

    weights, settings = checkpoint.to_bytes(), stage_settings(run, plan, request, checkpoint)
    unit_bytes = settings["read"].unit_rows * checkpoint.config.num_patches * checkpoint.config.patch_dim
    work = Work(left / SMALL_IMAGE * macs(checkpoint.config) / MACS_PER_SECOND, left * DECODE_SECONDS)
    stages = plan_resources(resources(), plan["resolved"]["device"], len(weights), unit_bytes, work)
    return ray.put(weights), stages, settings


def stage_settings(run: RunFolder, plan: dict, request: LabelRequest, checkpoint: Checkpoint) -> dict[str, Any]:
    """What each stage is told."""
    config, resolved, options = checkpoint.config, plan["resolved"], request.storage_options
    provenance = {name: plan[name] for name in ("run_id", "fingerprint", "model", "package_version", "schema_version")}
    provenance |= {
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "decoder": FAST_DECODER if request.fast_decode else DECODER,
        "dtype": resolved["precision"],
    }
    top_k = min(request.top_k, config.num_classes)
    return {
        "listing": ListSettings(run.uri, request.sources, request.format, request.image_keys, options),
        "read": ReadSettings(
            resolved["unit_rows"],
            image_keys=request.image_keys,
            keep=request.keep,
            storage_options=options,
            max_bytes=request.max_image_bytes,
            image_column=request.image_column,
            key=request.key,
            target=request.target,
        ),
        "decode": DecodeSettings(
            checkpoint.preprocessing,
            config.image_size,
            config.patch_size,
            max_pixels=request.max_pixels,
            max_side=request.max_side,
            timeout=request.decode_timeout,
            fast=request.fast_decode,
        ),
        "predict": PredictSettings(
            resolved["precision"],
            resolved["device"],
            None if resolved["device"] == "cuda" and not request.batch_size else resolved["batch_size"],
            top_k,
            request.embedding,
            request.normalize,
        ),
        "write": WriteSettings(
            run.uri,
            provenance,
            checkpoint.labels,
            top_k,
            request.embedding,
            config.embedding_dim,
            request.keep,
            request.on_error,
            options,
            secrets.token_hex(8),
        ),
    }
