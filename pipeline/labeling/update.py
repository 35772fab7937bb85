"""Compare a run's listing with its source as it is now, and change the listing: add, replace, drop."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.labeling.label_run import LabelRun, refuse_changes
from wordsworth.pipeline.labeling.listing import list_settings
from wordsworth.pipeline.labeling.progress import ShardFault
from wordsworth.pipeline.output.carried_rows import carry_rows
from wordsworth.pipeline.output.committed import shard_name_of
from wordsworth.pipeline.output.frozen_listing import PageMetadata
from wordsworth.pipeline.output.source_changes import (
    Revision,
    SourceChanges,
    change_notes,
    find_changes,
    freeze_update,
)
from wordsworth.pipeline.sources.lost_objects import LOSSES, is_readable
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import open_exact, without_credentials

CARRIERS = 8  # pages of images whose rows are carried over at once
WITNESSES = 16  # shards that are tried before a shard counts as lost


def update_listing(run: LabelRun) -> None:
    """Add to the listing what is new in the source. With --replace-changed replace what changed, with
    --drop-missing drop what is gone.

    Raises:
        UserError: the first listing of the run is not complete, nothing of the source is there, or another
            job updates the run.
    """
    _close_interrupted_update(run)
    if not run.frozen.complete:
        raise UserError(
            "the first listing of this run is not complete: run the same command without --update first"
        )
    request = run.request
    finder = list_settings(request).finder()
    found = find_changes(run.frozen, finder, request.replace_changed, request.drop_missing)
    if found.is_source_empty:
        first = without_credentials(found.first_gone or "")
        raise UserError(
            f"nothing of {run.folder.uri} is in its source any more, first {first}: "
            "mount the disk or put back the source, and run the same command again"
        )
    known = set(run.frozen.passed_over().notes())  # labelling says these
    passed_over = [note for note in finder.passed_over.serious_notes() if note not in known]
    for note in (*change_notes(found, updating=True), *passed_over):
        run.progress.note(note)
    if found.shards or found.replaces or found.drops:
        refuse_changes(run.folder, request)  # checked again: listing the source took its time
        _freeze(run, found)


def _freeze(run: LabelRun, found: SourceChanges) -> None:
    """Make what was found part of the run. Rows of images that stay are kept."""
    if not found.replaces and not found.drops:
        freeze_update(run.frozen, found)
        return
    run.folder.reopen()
    committed = run.folder.committed()

    def carry(revision: Revision) -> None:
        if revision.old and revision.new and revision.is_part:
            carry_rows(run.folder, revision.old, revision.new, committed[revision.old.name])

    with ThreadPoolExecutor(CARRIERS) as pool:
        freeze_update(run.frozen, found, lambda page: [*pool.map(carry, page)])


def compare_with_source(run: LabelRun) -> None:
    """Tell the user what is new in the source, and what is gone from it.

    A long listing is not compared, which would take as long as making it: a replaced shard is found when it
    is read.

    Raises:
        UserError: a shard was replaced since the run was planned.
    """
    _close_interrupted_update(run)
    if not run.frozen.complete or not run.frozen.is_short():
        return
    found = find_changes(run.frozen, list_settings(run.request).finder())
    for note in change_notes(found, updating=False):
        run.progress.note(note)
    if found.changed:
        raise UserError(
            f"shard_changed: {without_credentials(found.changed[0])} was replaced since {run.folder.uri} "
            f"was planned ({len(found.changed)} such in all): --replace-changed labels it again, or label "
            "into a new --output, or put the old object back"
        )


def _close_interrupted_update(run: LabelRun) -> None:
    if run.frozen.close_update():
        run.progress.note(
            "an earlier --update was interrupted while it was listing: "
            "run --update again for the rest of what is new"
        )


# ---- lost shards ------------------------------------------------------------------------------------------


def drop_lost_shards(run: LabelRun, faults: list[ShardFault]) -> list[ShardFault]:
    """Drop the tars and tables that could not be read because they are lost, and return the other faults.

    Nothing is dropped where no other shard can be read: then the store is at fault, or the credentials are.
    """
    lost: dict[str, ShardFault] = {}  # by the shard's id
    for fault in faults:
        if fault.fault.partition(":")[0] in LOSSES:
            lost[shard_name_of(fault.file)[-12:]] = fault
    dropped = [shard.id for shard in run.frozen.shards() if shard.id in lost and not shard.is_page]
    if not dropped:
        return faults
    if not _has_witness(run, set(lost)):
        run.progress.note("nothing is dropped: no other shard can be read, so the store may be at fault")
        return faults
    metadata = PageMetadata(replaces=dropped)
    if not run.frozen.put(len(run.frozen.files()), [], last=True, metadata=metadata):
        return faults
    run.folder.remove_shards(set(dropped))
    run.progress.note(
        f"dropped {plural(len(dropped), 'shard')} that cannot be read, first {lost[dropped[0]].shard}"
    )
    gone = set(dropped)
    return [fault for fault in faults if shard_name_of(fault.file)[-12:] not in gone]


def _has_witness(run: LabelRun, lost: set[str]) -> bool:
    others = (shard for shard in run.frozen.shards() if shard.id not in lost)
    return any(_is_readable(shard, run) for shard in islice(others, WITNESSES))


def _is_readable(shard: Shard, run: LabelRun) -> bool:
    fs, path = open_exact(shard.last_path, run.request.storage_options)
    try:
        return is_readable(fs, path)
    except OSError:
        return False
