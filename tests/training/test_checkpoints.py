"""Check what a training continues with: as many workers at their places, others with unfinished shards."""

from dataclasses import replace

import pytest
import torch

from tests.support.trainings import request
from tests.training.test_step import CLASSED, CPU, batch
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.batches import ShardCursor
from wordsworth.pipeline.training.checkpoints import EpochPlan, EpochPlanner, TrainingProgress, TrainingState
from wordsworth.pipeline.training.optimizer import build_optimizer
from wordsworth.pipeline.training.request import build_objective
from wordsworth.pipeline.training.step import Step, WeightAverage

SHARDS = [Shard(kind="tar", uri=f"/{n}.tar", size=1, version="") for n in range(12)]
ROWS = {shard.name: 10 for shard in SHARDS}


def go_on(progress: TrainingProgress, workers: int) -> tuple[TrainingProgress, EpochPlan]:
    planner = EpochPlanner(shards=tuple(SHARDS), rows=ROWS, num_workers=workers, local_batch=5, seed=0)
    return planner.resume(progress)


def names(plan: EpochPlan) -> list[str]:
    return sorted(shard.name for part in plan.parts for shard in part)


def test_a_training_begins_with_all_shards_in_equal_parts():
    progress, plan = go_on(TrainingProgress(), 3)
    assert progress == TrainingProgress(places=(ShardCursor(),) * 3)
    assert names(plan) == sorted(ROWS) and [len(part) for part in plan.parts] == [4, 4, 4] and plan.steps == 8


def test_as_many_workers_go_on_where_they_were():
    places = (ShardCursor(1, (2, 1), (0, 0), 3, 2), ShardCursor(0, (1, 0)))
    at = TrainingProgress(3, 77, 5, places=places, sums={"loss": 1.5}, count=5, best=(0.5, 2))
    progress, plan = go_on(at, 2)
    assert progress == at and plan == go_on(replace(at, step=0), 2)[1]
    assert TrainingProgress.from_json(at.to_json()) == at


@pytest.mark.parametrize("workers", [1, 3, 6])
def test_more_or_fewer_share_what_nobody_has_finished(workers):
    _, before = go_on(TrainingProgress(epoch=2), 2)
    places = (ShardCursor(at=(4, 1)), ShardCursor(at=(2, 0)))
    at = TrainingProgress(2, 30, 9, places=places, sums={"loss": 3.0}, count=9)
    progress, plan = go_on(at, workers)
    finished = {shard.name for part, turn in zip(before.parts, (4, 2), strict=True) for shard in part[:turn]}
    assert set(progress.finished) == finished and names(plan) == sorted(set(ROWS) - finished)
    assert (progress.step, progress.number, progress.sums) == (0, 30, at.sums) and progress.places == (
        ShardCursor(),
    ) * workers
    assert plan.steps == 60 // workers // 5

    again, third = go_on(replace(progress, step=1, places=(ShardCursor(at=(1, 0)),) * workers), 2)
    assert set(again.finished) == finished | {part[0].name for part in plan.parts}
    assert names(third) == sorted(set(ROWS) - set(again.finished))


def test_where_too_few_shards_are_left_for_all_the_epoch_is_over():
    at = TrainingProgress(0, 30, 9, places=(ShardCursor(at=(6, 0)), ShardCursor(at=(5, 0))))
    _, plan = go_on(at, 3)
    assert plan.steps == 0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_from_a_checkpoint_the_next_steps_are_the_same_to_the_bit(tmp_path, monkeypatch, optimizer):
    monkeypatch.chdir(tmp_path)  # where checkpoints are begun
    asked = request(tmp_path, config=CLASSED, dropout=0.1, ema=0.9, optimizer=optimizer)

    def parts():
        objective = build_objective(asked)
        step = Step(objective, build_optimizer(objective, asked), asked, CPU)
        return TrainingState(objective, step.optimizer, WeightAverage(objective, 0.9)), step

    def steps(step, average, numbers):
        for number in numbers:
            step([batch(number)], 0.01, number)
            average.update()

    progress = TrainingProgress(epoch=0, number=3, step=3, best=(0.25, 1))
    one, step = parts()
    steps(step, one.average, range(3))
    folder = one.save(progress, 0)
    steps(step, one.average, range(3, 6))

    other, other_step = parts()
    steps(other_step, other.average, range(7, 9))  # as far from there as can be
    assert other.load(folder) == progress
    steps(other_step, other.average, range(3, 6))
    weights, other_weights = one.objective.state_dict(), other.objective.state_dict()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    pairs = zip(one.average.averages, other.average.averages, strict=True)
    assert all(torch.equal(mean, other_mean) for mean, other_mean in pairs)
