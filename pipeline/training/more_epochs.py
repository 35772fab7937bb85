"""Go on with a finished training, where its learning rate would have been the same with more epochs.

A training whose rate needs no end leaves a checkpoint at the last step whose rate does not depend on the
number of epochs. `--epochs` raised goes on from there, as if the training had had so many from the beginning.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem, without_credentials
from wordsworth.pipeline.storage.refusals import naming
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.training.learning_rate import CONSTANT, COOLDOWN
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.settings import (
    PROGRESS,
    RUN,
    SNAPSHOT,
    Settings,
    begun_settings,
    check_same,
    put_settings,
    written_settings,
)

OPEN_END = "open-end-"  # and the number of a step: a checkpoint from which any number of epochs may follow


def shared_steps(request: TrainRequest, steps: int) -> int:
    """Return how many of the first steps have the same learning rate in a training of more steps.

    Args:
        request: gives the curve of the learning rate.
        steps: steps of the whole training.
    """
    if 0 < request.warmup < 1:
        return 0  # the warm-up is a share of the steps
    if request.decay == CONSTANT:
        return steps
    if request.decay == "rsqrt":
        return math.floor(steps * (1 - COOLDOWN))
    return 0


# ---- the checkpoint ----


def put_open_end(request: TrainRequest, folder: Path, step: int) -> None:
    """Copy a worker's part of a checkpoint into the output, but for the progress, which makes it whole."""
    for file in folder.iterdir():
        if file.name != PROGRESS:
            _put(request, file, step)


def end_open_end(request: TrainRequest, folder: Path, step: int) -> None:
    """Make a checkpoint whole, to which all workers have given their parts, and remove earlier ones."""
    _put(request, folder / PROGRESS, step)
    fs, path = open_filesystem(request.output, request.storage_options)
    for name in _open_ends(fs, path):
        if not name.endswith(_name(step)):
            fs.rm(name, recursive=True)


def _put(request: TrainRequest, file: Path, step: int) -> None:
    fs, path = open_filesystem(request.output, request.storage_options)
    place = f"{path.rstrip('/')}/{RUN}/{_name(step)}"
    fs.makedirs(place, exist_ok=True)
    with_retries(partial(fs.put_file, str(file), f"{place}/{file.name}"))


def _name(step: int) -> str:
    return f"{OPEN_END}{step:09d}"


def _open_ends(fs: Any, path: str) -> list[str]:
    return sorted(fs.glob(f"{path.rstrip('/')}/{RUN}/{OPEN_END}*"))


@contextmanager
def open_end_folder(request: TrainRequest, name: str) -> Iterator[Path]:
    """Give a checkpoint of the output as a folder on this disk, for the length of a block."""
    fs, path = open_filesystem(request.output, request.storage_options)
    place = f"{path.rstrip('/')}/{RUN}/{name}"
    if is_local(fs):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="wordsworth-checkpoint-") as folder:
        for file in fs.ls(place, detail=False):
            with_retries(partial(fs.get_file, file, f"{folder}/{file.rpartition('/')[2]}"))
        yield Path(folder)


# ---- the finished training ----


@dataclass(frozen=True, kw_only=True)
class FinishedTraining:
    """Hold what is known of the finished training in the output.

    Attributes:
        epochs: that it was asked for.
        open_end: name of the checkpoint from which it goes on; None where it has none.
    """

    epochs: int
    open_end: str | None


def find_finished(request: TrainRequest) -> FinishedTraining | None:
    """Return the finished training of the output with which the request can go on; None in an empty output.

    Raises:
        UserError: the output holds a model, and the request does not ask for more epochs of its training; or
            it is a file.
    """
    fs, path = open_filesystem(request.output, request.storage_options)
    about = f"{path.rstrip('/')}/config.json"
    with naming(request.output):
        if fs.isfile(path):
            raise UserError(f"--output {without_credentials(request.output)} is a file: give a folder")
        if not fs.exists(about):
            return None
        settings = json.loads(fs.cat_file(about)).get("extra", {}).get("settings") or {}
        open_ends = [name for name in _open_ends(fs, path) if fs.exists(f"{name}/{PROGRESS}")]
    epochs = settings.get("epochs")
    shown = without_credentials(request.output)
    if not isinstance(epochs, int) or request.epochs <= epochs:
        raise UserError(f"{shown} holds a model already: choose a new --output")
    open_end = open_ends[-1].rpartition("/")[2] if open_ends else None
    return FinishedTraining(epochs=epochs, open_end=open_end)


def epoch_of_model(request: TrainRequest) -> int:
    """Return the number of the epoch, from 1, whose model a finished training wrote into its output."""
    fs, path = open_filesystem(request.output, request.storage_options)
    return json.loads(fs.cat_file(f"{path.rstrip('/')}/config.json"))["extra"]["metrics"]["epoch"]


def go_on(request: TrainRequest, settings: Settings, finished: FinishedTraining) -> str:
    """Prepare the output for more epochs, and return the name of the checkpoint from which they go on.

    Whenever this is cut off, the same command does it again.

    Args:
        request: what the user asked for.
        settings: of the request.
        finished: the training that the output holds.

    Raises:
        UserError: other settings than the number of epochs differ too, or the learning rate has ended.
    """
    before = written_settings(request)
    shown = without_credentials(request.output)
    if before is None:
        raise UserError(f"{shown} holds a model already, without the settings of its training")
    if before["epochs"] not in (finished.epochs, settings["epochs"]):
        check_same(request, settings, before, "an unfinished training")
    check_same(request, settings | {"epochs": before["epochs"]}, before, "a training")
    if finished.open_end is None:
        raise UserError(
            f"{shown} holds a training of {finished.epochs} epochs that cannot go on ({_why_not(request)}): "
            f"train its model further with wordsworth finetune --model {shown} --output NEW"
        )
    if before["epochs"] == settings["epochs"]:
        return finished.open_end
    fs, path = open_filesystem(request.output, request.storage_options)
    folder = f"{path.rstrip('/')}/{RUN}"
    # Ray Train would go on from the last checkpoint of its list.
    if begun_settings(request) is not None:
        fs.rm_file(f"{folder}/{SNAPSHOT}")
    for checkpoint in fs.glob(f"{folder}/step-*"):
        fs.rm(checkpoint, recursive=True)
    put_settings(request, settings)
    return finished.open_end


def _why_not(request: TrainRequest) -> str:
    if shared_steps(request, 100):
        return "it stopped early, or an earlier version made it"
    if request.decay not in (CONSTANT, "rsqrt"):
        return f"the learning rate of --decay {request.decay} has come to its end; --decay constant has none"
    return f"--warmup {request.warmup:g} is a share of the steps; 0 or a number of steps would let it go on"
