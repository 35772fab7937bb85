"""Save the checkpoints of a worker into the output while it trains, and load the one to continue from."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from wordsworth.pipeline.training.checkpoints import TrainingProgress, TrainingState
from wordsworth.pipeline.training.collectives import Collectives
from wordsworth.pipeline.training.model_folder import ModelFolders
from wordsworth.pipeline.training.more_epochs import end_open_end, open_end_folder, put_open_end
from wordsworth.pipeline.training.worker_setup import WorkerSetup

SAVE_AFTER_S = 10.0  # seconds since the last checkpoint, from which on the end of an epoch makes one
UPLOAD_POLL_S = 0.05  # seconds between two looks whether a checkpoint has reached the output


class Checkpoints:
    """Save and load the checkpoints of a training. All workers must make the same calls."""

    def __init__(
        self, setup: WorkerSetup, state: TrainingState, folders: ModelFolders, collectives: Collectives
    ):
        self.setup = setup
        self.state = state
        self.folders = folders
        self.collectives = collectives
        self.saved = time.monotonic()  # when the last checkpoint was begun
        self.uploading: Path | None = None  # the checkpoint that is on its way to the output
        self.kept: set[int] = set()  # epochs whose models the last checkpoint calls the best

    def restored(self) -> TrainingProgress:
        """Load the checkpoint to continue from, if there is one, and return its progress.

        It is the last one of this training; before the first, that of the finished training with which this
        one goes on.
        """
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                return self.state.load(folder)
        if self.setup.open_end is None:
            return TrainingProgress()
        with open_end_folder(self.setup.request, self.setup.open_end) as folder:
            progress = self.state.load(folder)
        if progress.best and not self.folders.has_best(progress.best[1]):
            progress = replace(progress, best=None)  # a later epoch was better, and its model alone was kept
        return progress

    def is_late(self) -> bool:
        """Tell whether any worker saved so long ago that the end of an epoch makes a checkpoint."""
        return self.collectives.any(time.monotonic() - self.saved > SAVE_AFTER_S)

    def save(self, progress: TrainingProgress, metrics: dict[str, Any]) -> None:
        """Save a checkpoint, which Ray Train copies to the output while training continues; one at a time."""
        import ray.train
        from ray.train import Checkpoint as RayCheckpoint
        from ray.train import CheckpointUploadMode

        # Ray gives nothing to wait on: the folder disappears when the copy is whole; a failed copy ends this
        # worker.
        while self.uploading and self.uploading.exists():
            time.sleep(UPLOAD_POLL_S)
        self.saved = time.monotonic()
        self.uploading = self.state.save(progress, self.collectives.rank)
        ray.train.report(
            metrics,
            checkpoint=RayCheckpoint.from_directory(self.uploading),
            checkpoint_dir_name=f"step-{progress.number:09d}-epoch-{progress.epoch}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
        best = {progress.best[1]} if progress.best else set()
        self.folders.remove_others(self.kept | best)  # a training may continue from the checkpoint before
        self.kept = best

    def save_open_end(self, progress: TrainingProgress) -> None:
        """Save a checkpoint from which any number of epochs may follow; it stays in the output."""
        request = self.setup.request
        folder = self.state.save(progress, self.collectives.rank)
        put_open_end(request, folder, progress.number)
        self.collectives.any(True)  # waits until all workers have given their parts
        if self.collectives.rank == 0:
            end_open_end(request, folder, progress.number)
        shutil.rmtree(folder)
