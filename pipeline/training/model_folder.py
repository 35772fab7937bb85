"""Write the model folders of a training: the output itself, and beside it the model of the best epoch."""

import contextlib
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wordsworth.pipeline.cluster.package import package_version
from wordsworth.pipeline.prediction.model_files import publish
from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.training.checkpoints import Best, TrainingState
from wordsworth.pipeline.training.class_balance import NONE
from wordsworth.pipeline.training.news import EpochNews, Validation
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.worker_setup import WorkerSetup
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.model_folder import load_folder, save_folder
from wordsworth.vit_model.parallel import gathered_state_dict

BEST = "best-epoch-"  # and the number of an epoch: a model folder in the output


def score(request: TrainRequest, validation: Validation | None) -> float:
    """Return by what epochs are compared: the higher the better, and the lowest number without --val."""
    if validation is None:
        return -math.inf
    if not request.classified:
        return -validation.means["loss"]
    if request.balance or request.class_weights != NONE:
        return validation.means["balanced_accuracy"]  # accuracy would take a model that forgets rare classes
    return validation.means["accuracy"]


def best_after(
    request: TrainRequest, best: Best | None, epoch: int, validation: Validation | None
) -> Best | None:
    """Return the best score on --val and its epoch after one more epoch; None without --val.

    Args:
        request: says by what epochs are compared.
        best: before the epoch; None for none.
        epoch: its number, from 1.
        validation: what --val gave.
    """
    if validation is None:
        return None
    reached = score(request, validation)
    return best if best and reached <= best[0] else (reached, epoch)


class ModelFolders:
    """Write and remove model folders. All workers must make the same calls, to gather sharded weights."""

    def __init__(self, setup: WorkerSetup, state: TrainingState, rank: int):
        self.setup = setup
        self.state = state
        self.rank = rank

    def write_last(self, metrics: dict[str, Any], best: Best | None) -> None:
        """Write the model into the output, which makes the training complete.

        Args:
            metrics: of the last epoch.
            best: the best score on --val and its epoch; None without --val.
        """
        if self.setup.request.keep_best and best:
            self._copy_best(best[1])
        else:
            self._write(self.setup.request.output, metrics)

    def _copy_best(self, epoch: int) -> None:
        """Make the model of an epoch the one of the output, with the settings of the whole training."""
        if self.rank:
            return
        request = self.setup.request
        fs, path = open_filesystem(request.output, request.storage_options)
        best = f"{path.rstrip('/')}/{BEST}{epoch}"
        if is_local(fs):
            checkpoint = load_folder(best)
        else:
            with tempfile.TemporaryDirectory() as folder:
                for file in fs.ls(best, detail=False):
                    with_retries(partial(fs.get_file, file, f"{folder}/{file.rpartition('/')[2]}"))
                checkpoint = load_folder(folder)
        checkpoint.extra["settings"] = self.setup.settings
        self._save(request.output, checkpoint)

    def has_best(self, epoch: int) -> bool:
        """Tell whether the model of an epoch is there."""
        fs, path = open_filesystem(self.setup.request.output, self.setup.request.storage_options)
        return fs.exists(f"{path.rstrip('/')}/{BEST}{epoch}/config.json")

    def write_if_best(self, best: Best | None, news: EpochNews) -> Best | None:
        """Write the model of an epoch if it is the best so far on --val, and return the best score and epoch.

        Args:
            best: score and epoch so far; None for none.
            news: how the epoch ended.
        """
        after = best_after(self.setup.request, best, news.epoch, news.validation)
        if after and after[1] == news.epoch:
            self._write(f"{self.setup.request.output}/{BEST}{news.epoch}", news.figures())
        return after

    def remove_others(self, kept: set[int]) -> None:
        """Remove the models of all epochs but those that are kept."""
        if self.rank:
            return
        fs, path = open_filesystem(self.setup.request.output, self.setup.request.storage_options)
        for folder in fs.glob(f"{path.rstrip('/')}/{BEST}*"):
            if int(folder.rpartition("-")[2]) not in kept:
                with contextlib.suppress(FileNotFoundError):
                    fs.rm(folder, recursive=True)

    def _write(self, uri: str, metrics: dict[str, Any]) -> None:
        """Write a model folder. On a cluster the output must be storage that every node sees."""
        state = self._weights()
        if self.rank:
            return
        request = self.setup.request
        train = self.setup.train
        extra = {
            "objective": request.objective,
            "settings": self.setup.settings,
            "data": {"digest": train.digest, "samples": train.total, "shards": len(train.shards)},
            "versions": {"wordsworth": package_version(), "torch": torch.__version__},
            "metrics": metrics,
        }
        weights = {}
        for name, tensor in state.items():
            if name.startswith("encoder."):
                weights[name.removeprefix("encoder.")] = tensor.float()
        checkpoint = Checkpoint(
            config=request.config,
            preprocessing=request.preprocessing,
            labels=request.labels,
            head=request.head,
            state=weights,
            extra=extra,
        )
        self._save(uri, checkpoint)

    def _save(self, uri: str, checkpoint: Checkpoint) -> None:
        options = self.setup.request.storage_options
        fs, path = open_filesystem(uri, options)
        if is_local(fs):
            save_folder(path, checkpoint)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_folder(folder, checkpoint)
            with_retries(partial(publish, Path(folder), uri, options))

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return the weights of the whole objective, or their average. With FSDP only rank 0 gets them."""
        average = self.state.average
        if average is None:
            return gathered_state_dict(self.state.objective)
        with average.applied():
            state = gathered_state_dict(self.state.objective)
            # On a CPU these are the parameters themselves, whose values change back with the block.
            return {name: tensor.clone() for name, tensor in state.items()}
