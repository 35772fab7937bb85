"""Compare a run's listing with its source as it is now, and add to the listing what is new."""

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.label_run import LabelRun, refuse_changes
from wordsworth.pipeline.labeling.settings import list_settings
from wordsworth.pipeline.output.source_changes import change_notes, find_changes, freeze_update
from wordsworth.pipeline.storage.filesystem import without_credentials


def update_listing(run: LabelRun) -> None:
    """Add to the listing what is new in the source, and with --replace-changed what changed.

    Raises:
        UserError: the first listing of the run is not complete, or another job updates the run.
    """
    _close_interrupted_update(run)
    if not run.frozen.complete:
        raise UserError(
            "the first listing of this run is not complete: run the same command without --update first"
        )
    found = find_changes(run.frozen, list_settings(run.request).finder(), run.request.replace_changed)
    for note in change_notes(found, updating=True):
        run.progress.note(note)
    if found.shards:
        refuse_changes(run.folder, run.request)  # checked again: listing the source took its time
        freeze_update(run.frozen, found)


def compare_with_source(run: LabelRun) -> None:
    """Tell the user what is new in the source.

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
