"""Label the images of a source, each exactly once: decide what a command has to do, and do it.

A command meets one of four cases:

    start          the output holds no run: plan one, and label
    resume         the output holds a run that is not complete: label what is missing
    update         the output holds a run, and --update, --replace-changed or --drop-missing is given: change
                   the listing, resume
    nothing to do  the run is complete: return its summary, or with --retry-errors try again what failed

labeling/dataset.py chains the stages that do the work.
"""

import contextlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from wordsworth.pipeline.cluster.grace import grace
from wordsworth.pipeline.cluster.growth import Follower, following_nodes
from wordsworth.pipeline.cluster.metrics import RunMetrics
from wordsworth.pipeline.cluster.ray_internals import RunningPlan
from wordsworth.pipeline.cluster.session import is_local, ray_session
from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.labeling.bottleneck import BottleneckFinder
from wordsworth.pipeline.labeling.dataset import (
    BEFORE_WRITING,
    FirstRows,
    label_failed,
    label_first,
    label_shards,
)
from wordsworth.pipeline.labeling.head_columns import as_begun
from wordsworth.pipeline.labeling.label_run import LabelRun, refuse_changes
from wordsworth.pipeline.labeling.listing import list_settings, named_as_begun, with_expanded_sources
from wordsworth.pipeline.labeling.model_setup import ModelSetup, naming_lost_gpus
from wordsworth.pipeline.labeling.partial_run import (
    is_part_done,
    partial_summary,
    refuse_mixed_options,
    rows_done,
)
from wordsworth.pipeline.labeling.plan import asked_for, refuse_another_run, with_class_names
from wordsworth.pipeline.labeling.progress import ListingTotals, Progress, ReceiptCounter, note_passed_over
from wordsworth.pipeline.labeling.refused_images import RefusedImages
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.labeling.retry import failed_units
from wordsworth.pipeline.labeling.run_watch import RunWatch
from wordsworth.pipeline.labeling.sampling import draw_sample, refuse_another_sample, remove_sample
from wordsworth.pipeline.labeling.update import compare_with_source, drop_lost_shards, update_listing
from wordsworth.pipeline.output.frozen_listing import SAMPLE, FirstPage, FrozenListing, open_pages
from wordsworth.pipeline.output.limited_listing import first_limited_page
from wordsworth.pipeline.output.manifest import is_labelled, read_footers, write_manifest_and_summary
from wordsworth.pipeline.output.records import JsonObject, Receipt, Summary
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.file_kinds import begun_image_keys
from wordsworth.pipeline.sources.places import check_places, some_objects
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.zip_archive import INNER_ARCHIVE
from wordsworth.pipeline.storage.filesystem import without_credentials
from wordsworth.vit_model.checkpoint import BaseCheckpoint

IMAGE_BYTES = 100_000  # bytes of an image, to judge how much work a number of images is


def label(request: LabelRequest, checkpoint: BaseCheckpoint, progress: Progress) -> Summary:
    """Label every image of the sources into the output folder, once each, and return the run's summary.

    Raises:
        UserError: a source or the output cannot be used, or the store did not give every shard to its end.
    """
    refuse_mixed_options(request)
    request = with_expanded_sources(request)
    folder = RunFolder(request.output, request.storage_options)
    frozen = FrozenListing(folder, list_settings(request).folder)
    plan = folder.plan()
    if plan:
        begun = plan.asked.get("image-key", ())
        request = named_as_begun(request, plan)
        request = replace(request, image_keys=begun_image_keys(request.image_keys, begun))
        checkpoint = as_begun(plan, checkpoint, request, progress.note)
    asked = asked_for(request, checkpoint)
    if plan:
        refuse_another_run(folder, plan, asked, checkpoint, request.model)
        refuse_changes(folder, request)
    if request.sample:
        refuse_another_sample(folder, request)
    is_listed = frozen.complete if request.sample else frozen.files()
    if plan is None or not is_listed:  # a start may have ended between its plan and its first page
        return start(request, checkpoint, progress, asked)

    run = LabelRun(
        folder=folder, frozen=frozen, plan=plan, request=request, checkpoint=checkpoint, progress=progress
    )
    if request.update or request.replace_changed or request.drop_missing:
        update_listing(run)
    elif not request.sample:
        compare_with_source(run)
    summary = run.summary_if_complete()
    if summary is None and is_part_done(run):
        return partial_summary(run)
    if summary is None:
        return resume(run)
    if request.retry_errors and any(failed_units(folder, frozen)):
        return retry_errors(run)
    progress.note("this run is complete already: nothing to do")
    return summary


def start(
    request: LabelRequest, checkpoint: BaseCheckpoint, progress: Progress, asked: JsonObject
) -> Summary:
    """Freeze the plan of a run and the first page of its listing, then label.

    What is wrong with the sources or with the model is found before the output is touched.
    """
    if request.sample:
        return start_sample(request, checkpoint, progress, asked)
    progress.waiting("listing the sources")
    finder = list_settings(request).finder()
    first_page = first_limited_page(finder, request.limit) if request.limit else FirstPage.of(finder)
    asked = with_class_names(asked, request, first_page.shards)
    with _session(request, progress):
        model = _model_setup(request, checkpoint, lambda: first_page.shards, progress)
        folder = RunFolder(request.output, request.storage_options)
        plan = folder.plan() or folder.create(model.plan_run(asked, first_page.source_bytes))
        # Another job may have planned the run a moment before.
        refuse_another_run(folder, plan, asked, checkpoint, request.model)
        remove_sample(folder, progress)
        frozen = FrozenListing(folder)
        first_page.freeze(frozen)
        run = LabelRun(
            folder=folder, frozen=frozen, plan=plan, request=request, checkpoint=checkpoint, progress=progress
        )
        return _label_rest(run, model)


def start_sample(
    request: LabelRequest, checkpoint: BaseCheckpoint, progress: Progress, asked: JsonObject
) -> Summary:
    """Draw a sample, freeze the plan of a run and the listing of the sample, then label."""
    with _session(request, progress):
        finder = list_settings(request).finder
        model = _model_setup(request, checkpoint, lambda: [*islice(finder().shards(), 1)], progress)
        drawn = draw_sample(request, progress)
        asked = with_class_names(asked, request, drawn.shards)
        folder = RunFolder(request.output, request.storage_options)
        plan = folder.plan() or folder.create(model.plan_run(asked))
        refuse_another_run(folder, plan, asked, checkpoint, request.model)
        refuse_another_sample(folder, request)
        frozen = FrozenListing(folder, SAMPLE)
        drawn.freeze(frozen)
        run = LabelRun(
            folder=folder, frozen=frozen, plan=plan, request=request, checkpoint=checkpoint, progress=progress
        )
        return _label_rest(run, model)


def resume(run: LabelRun) -> Summary:
    """Label what is missing in a run."""
    with _session(run.request, run.progress):
        return _label_rest(run, _model_of(run))


def retry_errors(run: LabelRun) -> Summary:
    """Try again what failed in a run that is complete."""
    with _session(run.request, run.progress):
        return _label_failed(run, _model_of(run))


@contextlib.contextmanager
def _session(request: LabelRequest, progress: Progress) -> Iterator[None]:
    """Give the block a Ray, and say what is waited for before and after it works."""
    address = request.cluster.address or os.environ.get("RAY_ADDRESS")
    progress.waiting("joining the Ray cluster" if address else "starting Ray")
    with ray_session(request.cluster, progress.note):
        progress.waiting("planning the run")
        yield
        progress.waiting("ending Ray")


def _model_of(run: LabelRun) -> ModelSetup:
    return _model_setup(run.request, run.checkpoint, lambda: _first_shards(run.frozen), run.progress)


def _model_setup(
    request: LabelRequest,
    checkpoint: BaseCheckpoint,
    some_shards: Callable[[], Sequence[Shard]],
    progress: Progress,
) -> ModelSetup:
    """Return the model of a run, once every node was asked; it asks again where it has waited for nodes."""
    check = partial(_check_nodes, request, some_shards, progress)
    check()
    return ModelSetup(request, checkpoint, progress, check)


def _check_nodes(
    request: LabelRequest, some_shards: Callable[[], Sequence[Shard]], progress: Progress
) -> None:
    """Let every node of a cluster look at the run's places, before anything is written."""
    check_places(
        lambda: some_objects(some_shards()),
        request.output,
        "_run/plan.json",
        request.storage_options,
        progress.note,
    )


def _first_shards(frozen: FrozenListing) -> list[Shard]:
    """Return the first shard of a listing; none of an empty one."""
    for page in frozen.pages():
        if page.num_rows:
            return [Shard.from_row(row) for row in page.slice(0, 1).to_pylist()]
    return []


# ---- the work -------------------------------------------------------------------------------------------


def _label_rest(run: LabelRun, model: ModelSetup) -> Summary:
    """Label the shards that are not complete, write the summary, and try again what failed if asked to."""
    _remove_remains(run)
    totals = ListingTotals(run.frozen, run.folder.committed())
    totals.refresh(every_s=0)
    listed = totals.is_complete
    counter = ReceiptCounter(run.progress, began=run.request.began)
    receipts = _receipts_of_rest(run, model, totals, counter, listed)
    run.progress.planned(
        shards=totals.shards,
        shards_done=totals.shards_done,
        bytes_total=totals.bytes_total,
        bytes_done=totals.bytes_done,
        listed=listed,
    )
    if listed:
        note_passed_over(run.frozen, run.progress)
    refused = RefusedImages(run)
    watch = _watch(run, totals)
    watch.pace.base = totals.bytes_done
    watch.pace.rows_left = counter.rows_left
    with watch, contextlib.closing(receipts):
        for receipt in receipts:
            counter.add(receipt)
            watch.receipt(receipt)
            refused.look(receipt)
    counter.store_retries = dict(watch.stores.tries)
    if not listed and run.frozen.complete:
        note_passed_over(run.frozen, run.progress)
    summary = _finish(run, counter)
    return _label_failed(run, model) if run.request.retry_errors else summary


def _receipts_of_rest(
    run: LabelRun, model: ModelSetup, totals: ListingTotals, counter: ReceiptCounter, listed: bool
) -> Generator[Receipt]:
    """Return the receipts to come from the shards that are not complete; none where nothing is left to do.

    The model is tried on GPUs before this returns: that takes a while and tells the user something, so it
    happens before the progress begins.
    """
    import ray

    if listed and not any(open_pages(run.frozen, totals.committed)):
        return _nothing()
    bytes_left = totals.bytes_total - totals.bytes_done if listed else math.inf
    first = None
    if run.request.limit:
        first = FirstRows(limit=run.request.limit, rows_done=rows_done(run.folder, run.request.limit))
        counter.rows_left = first.rows_left
        bytes_left = min(bytes_left, first.rows_left * IMAGE_BYTES)
    settings = model.settings(run.folder, run.plan)
    claims = model.claims(run.plan, bytes_left)
    counter.gpu_notes += model.gpu_notes
    counter.bottleneck = BottleneckFinder(
        claims.predictors, run.plan.resolved.device, count_actors=RunningPlan.num_actors
    )
    committed = ray.put(totals.committed)
    follower = model.follower(run.plan, settings.predict, claims.predict, bytes_left)
    if first:
        return _watched(run, follower, label_first(first, committed, model.weights, settings, claims))
    return _watched(run, follower, label_shards(committed, model.weights, settings, claims))


def _nothing() -> Generator[Receipt]:
    yield from ()


def _label_failed(run: LabelRun, model: ModelSetup) -> Summary:
    """Fetch, decode and predict again the images that failed, and write the summary."""
    failed = list(failed_units(run.folder, run.frozen))
    counter = ReceiptCounter(run.progress, began=run.request.began)
    if failed:
        run.progress.note(f"trying the errors of {plural(len(failed), 'file')} again")
        settings = model.settings(run.folder, run.plan)
        claims = model.claims(run.plan)
        counter.gpu_notes += model.gpu_notes
        follower = model.follower(run.plan, settings.predict, claims.predict)
        receipts = _watched(run, follower, label_failed(failed, model.weights, settings, claims))
        with _watch(run) as watch, contextlib.closing(receipts):
            for receipt in receipts:
                counter.add(receipt)
                watch.receipt(receipt)
        counter.store_retries = dict(watch.stores.tries)
    else:
        run.progress.note("no error is worth another try")
    return _finish(run, counter)


def _watch(run: LabelRun, totals: ListingTotals | None = None) -> RunWatch:
    """Return what follows the run; a local Ray has nobody who would ask for metrics."""
    metrics = None if is_local() else RunMetrics(without_credentials(run.folder.uri), run.request.command)
    watch = RunWatch(run.progress, metrics, run.plan.resolved.batch_size, totals)
    watch.pace.command_began = run.request.began
    return watch


def _remove_remains(run: LabelRun) -> None:
    """Remove what killed writers left, and the files of shards that an update replaced."""
    run.folder.sweep()
    num_removed = run.folder.remove_shards(run.frozen.replaced())
    if num_removed:
        run.progress.note(f"removed {plural(num_removed, 'file')} of shards that were replaced or dropped")


def _watched(run: LabelRun, follower: Follower | None, receipts: Iterator[Receipt]) -> Generator[Receipt]:
    """Yield the receipts, while the plan follows the nodes of the cluster.

    A run that stalls or loses its GPUs ends with a UserError that says so. A run that is told to end finishes
    its units in flight.

    Args:
        follower: says what changes when nodes join and leave; None for a Ray of this machine alone.
    """
    from wordsworth.pipeline.cluster.stall import with_stall_timeout

    note = run.progress.note
    RunningPlan.forget()
    with (
        naming_lost_gpus(),
        following_nodes(follower) if follower else contextlib.nullcontext(),
        grace(run.request.cluster.grace, BEFORE_WRITING, note) as ending,
    ):
        yield from with_stall_timeout(receipts, run.request.stall_timeout, note, grace=ending)
        ending.finish()


def _finish(run: LabelRun, counter: ReceiptCounter) -> Summary:
    """Write the manifest and the summary. Raises UserError where a shard was not read to its end."""
    from wordsworth.pipeline.cluster.stall import with_stall_timeout

    if run.request.drop_missing:
        counter.faults = drop_lost_shards(run, counter.faults)
    counter.refuse_faults()
    if run.request.sample or (run.request.limit and not is_labelled(run.frozen, run.folder.committed())):
        return partial_summary(run, counter.to_last_command())
    run.progress.waiting("writing the manifest and the summary")
    footers = read_footers(run.folder)
    rows = with_stall_timeout(footers, run.request.stall_timeout, run.progress.note, "footer was read")
    summary = write_manifest_and_summary(run.folder, run.frozen, run.plan, rows, counter.to_last_command())
    inner = summary.skipped_members.get(INNER_ARCHIVE, 0)
    if inner:
        run.progress.note(f"did not read {inner} tars and zips inside zip archives: unpack the outer ones")
    return summary
