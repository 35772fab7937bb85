"""Hold a run and the command that works on it: what travels through the labeler together."""

from dataclasses import dataclass

from wordsworth.pipeline.labeling.progress import Progress
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.frozen_listing import FrozenListing
from wordsworth.pipeline.output.manifest import summary_if_complete
from wordsworth.pipeline.output.records import RunPlan, Summary
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.vit_model.checkpoint import BaseCheckpoint


@dataclass(frozen=True, kw_only=True)
class LabelRun:
    """Hold a run that has a plan and a listing, and the command that works on it.

    Attributes:
        folder: the output.
        frozen: the listing of the sources.
        plan: the frozen settings.
        request: what this command asks for; with expanded sources.
        checkpoint: the model.
        progress: shows the user how the run goes.
    """

    folder: RunFolder
    frozen: FrozenListing
    plan: RunPlan
    request: LabelRequest
    checkpoint: BaseCheckpoint
    progress: Progress

    def summary_if_complete(self) -> Summary | None:
        """Return the summary of a complete run, else None.

        A summary alone does not make a run complete: an update may have been killed before it wrote its own.
        """
        return summary_if_complete(self.folder, self.frozen)


def refuse_changes(folder: RunFolder, request: LabelRequest) -> None:
    """Check that the units of a run may be changed, where an option asks for that.

    Raises:
        UserError: some units lie in files that are never changed.
    """
    if request.retry_errors:
        folder.units().refuse_change("--retry-errors")
    if request.replace_changed:
        folder.units().refuse_change("--replace-changed")
    if request.drop_missing:
        folder.units().refuse_change("--drop-missing")
