"""What a training is made of between two steps: weights, the optimiser's moments, the average, and the place in the data.

A checkpoint is a folder in the form of torch.distributed.checkpoint, which other numbers of workers can read too, and
`progress.json` beside it. Ray Train puts it into the output, and tells of it when it is whole.
"""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict, set_state_dict

from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.step import Average
from wordsworth.pipeline.training.stream import Place, ordered
from wordsworth.pipeline.training.survey import assign

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a training has come. epoch: the one that is under way, from 0. number: steps since the beginning. step: those of them
    that this number of workers has done in this epoch; finished: shards that others had finished in it before; places: of every
    worker. sums, count: of what an epoch's steps said. best: the best score on --val, and its epoch."""

    epoch: int = 0
    number: int = 0
    step: int = 0
    finished: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    best: tuple[float, int] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        values = json.loads(text)
        places = tuple(
            Place(**{name: tuple(v) if isinstance(v, list) else v for name, v in one.items()})
            for one in values["places"]
        )
        best = tuple(values["best"]) if values["best"] else None
        return cls(**(values | {"finished": tuple(values["finished"]), "places": places, "best": best}))


@dataclass(frozen=True)
class Leg:
    """An epoch, or the rest of one, as so many workers divide it: the shards of each in the order of the epoch, and the steps."""

    parts: tuple[tuple[Shard, ...], ...]
    steps: int

    @classmethod
    def of(
        cls,
        shards: Iterable[Shard],
        rows: dict[str, int],
        workers: int,
        local_batch: int,
        epoch: int,
        seed: int,
    ) -> "Leg":
        """No steps where there is not enough for one."""
        shards = list(shards)
        if len(shards) < workers:
            return cls((), 0)
        parts = assign(shards, rows, workers)
        steps = min(sum(rows[shard.name] for shard in part) for part in parts) // local_batch
        return cls(tuple(tuple(ordered(part, epoch, seed)) for part in parts), steps)

    def finished(self, places: Iterable[Place]) -> set[str]:
        """The shards of which every sample has been drawn, but for what a group left over for the next."""
        return {
            shard.name
            for part, place in zip(self.parts, places, strict=True)
            for shard in part[: place.at[0]]
        }


def going_on(
    progress: Progress, shards: list[Shard], rows: dict[str, int], workers: int, local_batch: int, seed: int
):
    """The progress and the leg with which `workers` go on: where they left off, or, if they are more or fewer than those who did,
    with the shards of the epoch that nobody has finished. -> (Progress, Leg)"""
    before = len(progress.places) or workers
    leg = Leg.of(_left(shards, progress.finished), rows, before, local_batch, progress.epoch, seed)
    if before != workers:
        finished = tuple(sorted({*progress.finished, *leg.finished(progress.places)}))
        progress = replace(progress, finished=finished, step=0, places=())
        leg = Leg.of(_left(shards, finished), rows, workers, local_batch, progress.epoch, seed)
    return replace(progress, places=progress.places or (Place(),) * workers), leg


def _left(shards: list[Shard], finished: tuple[str, ...]) -> list[Shard]:
    gone = set(finished)
    return [shard for shard in shards if shard.name not in gone]


# ---- checkpoints ----------------------------------------------------------------------------------------------------------


def save(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    progress: Progress,
    rank: int,
) -> Path:
    """Write this worker's part of a checkpoint into a new folder on its own disk; all workers must call this."""
    folder = Path(
        tempfile.mkdtemp(prefix="checkpoint-", dir=Path.cwd())
    )  # Ray's folder for this worker, which goes with its session
    dcp.save(_state(objective, optimizer, average), checkpoint_id=folder)
    if rank == 0:
        (folder / PROGRESS).write_text(progress.to_json())
    return folder


def load(
    objective: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None, folder: str | Path
) -> Progress:
    """Bring everything back to where it was when the checkpoint was written."""
    state = _state(objective, optimizer, average)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(objective, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    progress = Progress.from_json((Path(folder) / PROGRESS).read_text())
    if average:
        average.load(objective, state["average"], progress.number)
    return progress


def _state(objective: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> dict:
    model, moments = get_state_dict(objective, optimizer)
    state = {"model": model, "optimizer": moments}
    if average:
        with average.applied():
            state["average"] = {
                name: value.clone() for name, value in get_model_state_dict(objective).items()
            }
    return state
