"""The Ray Data plan: shards -> units -> patches -> predictions -> Parquet -> receipts.

Read it from `_receipts` down: list, read, decode, predict, write. Everything else decides what has to be done and says what was.
"""

import contextlib
import math
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wordsworth.pipeline.cluster.session import (
    ACTOR_RETRIES,
    RETRIES,
    StageResources,
    Work,
    data_context,
    gpu_nodes,
    plan_resources,
    ray_session,
    resources,
)
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DECODER, FAST_DECODER, DecodeSettings, decode_stage
from wordsworth.pipeline.labeling.bottleneck import Balance
from wordsworth.pipeline.labeling.plan import (
    LabelRequest,
    asked_for,
    change_notes,
    choose_device,
    make_plan,
    most_rows,
    refuse_another_run,
    unit_budget,
)
from wordsworth.pipeline.labeling.progress import Progress, Totals, Watch, note_ignored
from wordsworth.pipeline.labeling.retry import failed_units, fetch_stage, merge_stage
from wordsworth.pipeline.output.frozen_listing import (
    FrozenListing,
    Head,
    ListSettings,
    changes,
    freeze_update,
    list_stage,
    open_pages,
)
from wordsworth.pipeline.output.manifest import finish, footers
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.run_folder import RunFolder, write_stage
from wordsworth.pipeline.prediction.actor import Predictor, PredictSettings, lost_gpus
from wordsworth.pipeline.prediction.gpu_batches import UNITS
from wordsworth.pipeline.sources.reader import ReadSettings, read_stage
from wordsworth.pipeline.sources.shards import Finder, expand_sources
from wordsworth.pipeline.storage.filesystem import public
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import macs

if TYPE_CHECKING:
    from wordsworth.pipeline.prediction.gpu_trial import GpuWay

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
                    return _retry(run, frozen, plan, _Model(request, checkpoint, progress))
            progress.note("this run is complete already: nothing to do")
            return run.summary()

    with ray_session(request.address):
        model = _Model(request, checkpoint, progress)
        plan = plan or run.create(model.first_plan(asked))
        refuse_another_run(run, plan, asked)
        if head:
            head.freeze(frozen)
        return _execute(run, frozen, plan, model)


def _refuse_compacted(run: RunFolder, request: LabelRequest) -> None:
    for option, given in (
        ("--retry-errors", request.retry_errors),
        ("--replace-changed", request.replace_changed),
    ):
        if given:
            run.refuse_compacted(option)


def _finder(request: LabelRequest) -> Finder:
    return Finder(list(request.sources), request.format, request.image_keys, request.storage_options)


def _catch_up(frozen: FrozenListing, request: LabelRequest, progress: Progress) -> None:
    """Hold a frozen listing against the source as it is now, where that was asked for or costs little; update it if asked for."""
    if frozen.close_update():
        progress.note(
            "an earlier --update was interrupted while it was listing: run --update again for the rest of what is new"
        )
    updating = request.update or request.replace_changed
    if not frozen.complete:
        if updating:
            raise UserError(
                "the first listing of this run is not complete: run the same command without --update first"
            )
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


ONE = {
    "batch_size": None,
    "batch_format": "pyarrow",
}  # a row is a unit, a block is a row, a call gets a block
ONE_ON_GPU = {
    "batch_size": 1,
    "batch_format": "pyarrow",
}  # the same, in the words that Ray asks for beside num_gpus


def _receipts(
    done: Any, weights: Any, stages: StageResources, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The whole pipeline as a stream of receipts: list, read, decode, predict, write."""
    from ray.data import TaskPoolStrategy, from_blocks

    data_context()
    units = (
        from_blocks([pa.table({"begin": [True]})])
        .map_batches(
            list_stage,
            fn_kwargs={"settings": settings["listing"], "done": {"ref": done}},
            num_cpus=0.1,
            **ONE,
            **RETRIES,
        )
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


def _retried(
    failed: list[pa.Table], weights: Any, stages: StageResources, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
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

    on_gpu = settings["predict"].device == "cuda"
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
            size=stages.predictors,
            max_concurrent_calls_per_actor=UNITS if on_gpu else 1,
            enable_true_multi_threading=True,
        ),
        **stages.predict,
        **(ONE_ON_GPU if on_gpu else ONE),
        **ACTOR_RETRIES,
    )


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


# ---- the run --------------------------------------------------------------------------------------------------------------


def _execute(run: RunFolder, frozen: FrozenListing, plan: dict, model: "_Model") -> dict[str, Any]:
    import ray

    from wordsworth.pipeline.cluster.stall import watched

    request, progress = model.request, model.progress
    run.sweep()
    if removed := run.remove_shards(frozen.replaced()):
        progress.note(f"removed {removed} files of shards that were replaced; they are labelled again")
    done = run.committed()
    totals = Totals(frozen, done)
    counts = totals.look(every=0)
    watch = Watch(progress)
    open_work = not frozen.complete or any(open_pages(frozen, done))
    if open_work:  # before the first bar: the model is tried on GPUs, which says something
        left = counts["bytes_total"] - counts["bytes_done"] if frozen.complete else math.inf
        weights, stages, settings = model.ready(run, plan, watch, left)
    progress.planned(**counts, listed=frozen.complete)
    if frozen.complete:
        note_ignored(frozen, progress)
    if open_work:
        watch.balance = Balance(stages.predictors, plan["resolved"]["device"])
        receipts = _receipts(ray.put(done), weights, stages, settings)
        with _lost_gpus_told():
            for receipt in watched(receipts, request.stall_timeout, progress.note):
                watch.receipt(receipt)
                if now := totals.look():
                    progress.listed(now["shards"], now["bytes_total"])
    watch.refuse_faults()
    rows = watched(footers(run), request.stall_timeout, progress.note, "footer was read")
    summary = finish(run, frozen, plan, rows, watch.figures())
    return _retry(run, frozen, plan, model) if request.retry_errors else summary


def _retry(run: RunFolder, frozen: FrozenListing, plan: dict, model: "_Model") -> dict[str, Any]:
    """Try again what failed; the summary afterwards."""
    from wordsworth.pipeline.cluster.stall import watched

    request, progress = model.request, model.progress
    failed = list(failed_units(run, frozen))
    watch = Watch(progress)
    progress.note(
        f"trying the errors of {len(failed)} files again" if failed else "no error is worth another try"
    )
    if failed:
        receipts = _retried(failed, *model.ready(run, plan, watch))
        with _lost_gpus_told():
            for receipt in watched(receipts, request.stall_timeout, progress.note):
                watch.receipt(receipt)
    watch.refuse_faults()
    rows = watched(footers(run), request.stall_timeout, progress.note, "footer was read")
    return finish(run, frozen, plan, rows, watch.figures())


@contextlib.contextmanager
def _lost_gpus_told() -> Iterator[None]:
    """Say why a run ends whose actors lost their GPUs again and again: Ray knows only that they died."""
    from ray.exceptions import RayActorError

    before = lost_gpus().keys()
    try:
        yield
    except RayActorError as error:
        lost = [told for actor, told in lost_gpus().items() if actor not in before]
        if not lost:
            raise
        raise UserError(
            f"{lost[0]}, and again after its actor was started {ACTOR_RETRIES['max_restarts']} times: look at that GPU "
            "(nvidia-smi, dmesg), or leave its node out. What is done is kept: run the same command again"
        ) from error


class _Model:
    """The model on its way to the actors: its weights in Ray's store, and how GPUs run it once that was tried."""

    def __init__(self, request: LabelRequest, checkpoint: Checkpoint, progress: Progress):
        import ray

        weights = checkpoint.to_bytes()
        self.request, self.checkpoint, self.progress = request, checkpoint, progress
        self.weights, self.num_bytes = ray.put(weights), len(weights)
        self.gpu: GpuWay | None = None

    def first_plan(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the plan of a new run, once its actors can run.

        Raises:
            UserError: the cluster has no GPU that can be used, or too little for a run.
        """
        import ray

        cluster = ray.cluster_resources()
        device = choose_device(self.request, cluster)
        if device == "cuda":
            self._try_gpus(self.request.precision, self.request.batch_size or None)
        else:
            self._stages(device, unit_budget(cluster))
        return make_plan(asked, self.request, self.checkpoint, cluster, self.gpu)

    def ready(
        self, run: RunFolder, plan: dict, watch: Watch, left: float = math.inf
    ) -> tuple[Any, StageResources, dict[str, Any]]:
        """Return the weights, what each stage may take of the cluster, and each stage's settings. left: bytes of shards."""
        resolved = plan["resolved"]
        settings = stage_settings(run, plan, self.request, self.checkpoint)
        if resolved["device"] == "cuda":
            gpu = self.gpu or self._try_gpus(resolved["precision"], resolved["batch_size"])
            settings["predict"] = replace(settings["predict"], batch_size=gpu.batch_size, gpu_modes=gpu.modes)
            watch.gpu_notes += gpu.notes
        else:
            self._note_idle_gpus()
        unit_bytes = (
            resolved["unit_rows"] * self.checkpoint.config.num_patches * self.checkpoint.config.patch_dim
        )
        work = Work(
            left / SMALL_IMAGE * macs(self.checkpoint.config) / MACS_PER_SECOND, left * DECODE_SECONDS
        )
        return self.weights, self._stages(resolved["device"], unit_bytes, work), settings

    def _stages(self, device: str, unit_bytes: int, work: Work | None = None) -> StageResources:
        nodes = gpu_nodes() if device == "cuda" else None
        return plan_resources(
            resources(), device, self.num_bytes, unit_bytes, work, self.request.gpus_per_actor, nodes
        )

    def _try_gpus(self, precision: str, batch_size: int | None) -> "GpuWay":
        import ray

        from wordsworth.pipeline.prediction.gpu_trial import modes_of, try_gpus

        budget = unit_budget(ray.cluster_resources())
        settings = replace(
            predict_settings(self.request, self.checkpoint, "cuda", precision, batch_size),
            gpu_modes=modes_of(self.request.gpu_mode),
            largest_batch=most_rows(self.checkpoint, budget),
        )
        claim = self._stages("cuda", budget).predict
        patience = self.request.stall_timeout
        self.gpu = try_gpus(self.weights, settings, claim, gpu_nodes(), self.progress.note, patience)
        for told in (self.gpu.told, *self.gpu.notes):
            self.progress.note(told)
        return self.gpu

    def _note_idle_gpus(self) -> None:
        """A run that was begun on CPUs stays there."""
        import ray

        gpus = ray.cluster_resources().get("GPU", 0)
        if gpus and self.request.device == "auto":
            self.progress.note(
                f"this run was begun on CPUs and goes on there, {gpus:g} GPUs of this cluster stay idle: a GPU's scores differ in "
                "their last digits, so its rows have another fingerprint and cannot join; label into a new --output to use the GPUs"
            )


def stage_settings(
    run: RunFolder, plan: dict, request: LabelRequest, checkpoint: Checkpoint
) -> dict[str, Any]:
    """What each stage is told."""
    config, resolved, options = checkpoint.config, plan["resolved"], request.storage_options
    provenance = {
        name: plan[name] for name in ("run_id", "fingerprint", "model", "package_version", "schema_version")
    }
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
        "predict": predict_settings(
            request, checkpoint, resolved["device"], resolved["precision"], resolved["batch_size"]
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


def predict_settings(
    request: LabelRequest, checkpoint: Checkpoint, device: str, precision: str, batch_size: int | None
) -> PredictSettings:
    """Return what an actor is told."""
    return PredictSettings(
        precision=precision,
        device=device,
        batch_size=batch_size,
        top_k=min(request.top_k, checkpoint.config.num_classes),
        embedding=request.embedding,
        normalize=request.normalize,
    )
