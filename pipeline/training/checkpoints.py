"""Save and load a training between two steps: weights, moments, the average, and the place in the data.

A checkpoint is a folder in the form of torch.distributed.checkpoint, which another number of workers can read
too, with `progress.json` beside. Ray Train copies the folder into the output and registers it when it is
whole.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule

from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.batches import ShardCursor, shuffled_shards
from wordsworth.pipeline.training.settings import PROGRESS
from wordsworth.pipeline.training.step import WeightAverage
from wordsworth.pipeline.training.survey import assign

Best = tuple[float, int]  # the best score on --val, and the number of its epoch, from 1


@dataclass(frozen=True)
class TrainingProgress:
    """Say how far a training has come.

    Attributes:
        epoch: the epoch under way, from 0.
        number: optimizer steps since the beginning of the training.
        step: optimizer steps done in this epoch by the current set of workers.
        finished: names of the shards that workers before the current set finished in this epoch.
        places: the cursor of every worker.
        sums: sums over the steps of this epoch, by the name of the figure.
        count: number of steps in `sums`.
        best: the best score on --val and its epoch; None before the first.
    """

    epoch: int = 0
    number: int = 0
    step: int = 0
    finished: tuple[str, ...] = ()
    places: tuple[ShardCursor, ...] = ()
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    best: Best | None = None

    def to_json(self) -> str:
        """Return the text of progress.json."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` wrote."""
        values = json.loads(text)
        values["finished"] = tuple(values["finished"])
        values["places"] = tuple(_cursor(place) for place in values["places"])
        if values["best"]:
            score, epoch = values["best"]
            values["best"] = (score, epoch)
        else:
            values["best"] = None
        return cls(**values)


def _cursor(values: dict[str, Any]) -> ShardCursor:
    places = {name: tuple(values[name]) for name in ("at", "before")}
    return ShardCursor(**(values | places))


# ---- the shards of an epoch ----


@dataclass(frozen=True)
class EpochPlan:
    """Say how workers divide an epoch, or the rest of one.

    Attributes:
        parts: the shards of each worker, in the order of the epoch; empty where there is not enough for one
            step.
        steps: optimizer steps; as many as the worker with the fewest samples can make.
    """

    parts: tuple[tuple[Shard, ...], ...]
    steps: int

    def finished(self, places: Iterable[ShardCursor]) -> set[str]:
        """Return the shards whose samples are drawn, but for those that a group left over for the next."""
        names: set[str] = set()
        for part, place in zip(self.parts, places, strict=True):
            names.update(shard.name for shard in part[: place.at[0]])
        return names


@dataclass(frozen=True, kw_only=True)
class EpochPlanner:
    """Divide the shards of an epoch among workers.

    Attributes:
        shards: all shards.
        rows: samples by the shard's name.
        num_workers: number of the current workers.
        local_batch: samples of one worker in one step.
        seed: decides the order of the shards.
    """

    shards: tuple[Shard, ...]
    rows: dict[str, int]
    num_workers: int
    local_batch: int
    seed: int

    def whole_epoch(self) -> EpochPlan:
        """Return the plan of an epoch from its beginning. The number of steps is the same for every epoch."""
        return self._plan(0, (), self.num_workers)

    def resume(self, progress: TrainingProgress) -> tuple[TrainingProgress, EpochPlan]:
        """Return the progress and the plan with which the current workers continue.

        As many workers as before continue at their places. More or fewer workers divide the shards of the
        epoch that nobody has finished.
        """
        before = len(progress.places) or self.num_workers
        plan = self._plan(progress.epoch, progress.finished, before)
        if before != self.num_workers:
            finished = tuple(sorted(plan.finished(progress.places).union(progress.finished)))
            progress = replace(progress, finished=finished, step=0, places=())
            plan = self._plan(progress.epoch, finished, self.num_workers)
        if not progress.places:
            progress = replace(progress, places=(ShardCursor(),) * self.num_workers)
        return progress, plan

    def _plan(self, epoch: int, finished: tuple[str, ...], num_workers: int) -> EpochPlan:
        gone = set(finished)
        left = [shard for shard in self.shards if shard.name not in gone]
        if len(left) < num_workers:
            return EpochPlan((), 0)
        parts = assign(left, self.rows, num_workers)
        fewest = min(sum(self.rows[shard.name] for shard in part) for part in parts)
        in_order = [tuple(shuffled_shards(part, epoch, self.seed)) for part in parts]
        return EpochPlan(tuple(in_order), fewest // self.local_batch)


# ---- what a checkpoint holds ----


@dataclass
class TrainingState:
    """Hold all that steps change on a worker.

    Attributes:
        objective: the model and what is around it, wrapped for several workers.
        optimizer: of the objective's parameters.
        average: average of the weights; None without --ema.
    """

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the objective the average as parameters, if there is one, for the length of a block."""
        with self.average.applied() if self.average else contextlib.nullcontext():
            yield
            if isinstance(self.objective, FSDPModule):
                # FSDP's root keeps its weights after a forward pass: here those of the average.
                self.objective.reshard()

    def save(self, progress: TrainingProgress, rank: int) -> Path:
        """Write this worker's part of a checkpoint into a new folder on its disk. All workers must call this.

        Args:
            progress: the same on all workers; the worker of rank 0 writes it.
            rank: number of this worker.
        """
        # Ray's folder for this worker, which is removed with Ray's session.
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=Path.cwd()))
        dcp.save(self._tensors(), checkpoint_id=folder)
        if rank == 0:
            (folder / PROGRESS).write_text(progress.to_json())
        return folder

    def load(self, folder: str | Path) -> TrainingProgress:
        """Bring everything back to where it was when a checkpoint was written, and return its progress."""
        tensors = self._tensors()
        dcp.load(tensors, checkpoint_id=folder)
        set_state_dict(
            self.objective,
            self.optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
        )
        progress = TrainingProgress.from_json((Path(folder) / PROGRESS).read_text())
        if self.average:
            self.average.load(self.objective, tensors["average"], progress.number)
        return progress

    def _tensors(self) -> dict[str, Any]:
        """Return the state by the names in a checkpoint."""
        model, moments = get_state_dict(self.objective, self.optimizer)
        tensors: dict[str, Any] = {"model": model, "optimizer": moments}
        if self.average:
            with self.average.applied():
                averaged = get_model_state_dict(self.objective)
                # On a CPU these are the parameters themselves, whose values change back with the block.
                tensors["average"] = {name: value.clone() for name, value in averaged.items()}
        return tensors
