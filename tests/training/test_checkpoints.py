"""What a training goes on with: the same workers where they were, more or fewer with what nobody has finished."""

from dataclasses import replace

import pytest
import torch

from tests.support.trainings import request
from tests.training.test_step import CLASSED, CPU, batch
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.checkpoints import Leg, Progress, going_on, load, save
from wordsworth.pipeline.training.request import objective_of, optimizer_of
from wordsworth.pipeline.training.step import Average, Step
from wordsworth.pipeline.training.stream import Place

SHARDS = [Shard("tar", f"/{n}.tar", 1, "") for n in range(12)]
ROWS = {shard.name: 10 for shard in SHARDS}


def go_on(progress: Progress, workers: int, epoch_seed: int = 0):
    return going_on(progress, SHARDS, ROWS, workers, 5, epoch_seed)


def names(leg: Leg) -> list[str]:
    return sorted(shard.name for part in leg.parts for shard in part)


def test_a_training_begins_with_all_shards_in_equal_parts():
    progress, leg = go_on(Progress(), 3)
    assert progress == Progress(places=(Place(),) * 3)
    assert names(leg) == sorted(ROWS) and [len(part) for part in leg.parts] == [4, 4, 4] and leg.steps == 8


def test_as_many_workers_go_on_where_they_were():
    places = (Place(1, (2, 1), (0, 0), 3, 2), Place(0, (1, 0)))
    at = Progress(3, 77, 5, places=places, sums={"loss": 1.5}, count=5, best=(0.5, 2))
    progress, leg = go_on(at, 2)
    assert progress == at and leg == go_on(replace(at, step=0), 2)[1]
    assert Progress.from_json(at.to_json()) == at


@pytest.mark.parametrize("workers", [1, 3, 6])
def test_more_or_fewer_share_what_nobody_has_finished(workers):
    _, before = go_on(Progress(epoch=2), 2)
    places = (Place(at=(4, 1)), Place(at=(2, 0)))
    at = Progress(2, 30, 9, places=places, sums={"loss": 3.0}, count=9)
    progress, leg = go_on(at, workers)
    finished = {shard.name for part, turn in zip(before.parts, (4, 2), strict=True) for shard in part[:turn]}
    assert set(progress.finished) == finished and names(leg) == sorted(set(ROWS) - finished)
    assert (progress.step, progress.number, progress.sums) == (0, 30, at.sums) and progress.places == (
        Place(),
    ) * workers
    assert leg.steps == 60 // workers // 5

    again, third = go_on(replace(progress, step=1, places=(Place(at=(1, 0)),) * workers), 2)
    assert set(again.finished) == finished | {part[0].name for part in leg.parts}
    assert names(third) == sorted(set(ROWS) - set(again.finished))


def test_where_too_few_shards_are_left_for_all_the_epoch_is_over():
    at = Progress(0, 30, 9, places=(Place(at=(6, 0)), Place(at=(5, 0))))
    _, leg = go_on(at, 3)
    assert leg.steps == 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_from_a_checkpoint_the_next_steps_are_the_same_to_the_bit(tmp_path, monkeypatch, optimizer):
    monkeypatch.chdir(tmp_path)  # where checkpoints are begun
    asked = request(tmp_path, config=CLASSED, dropout=0.1, ema=0.9, optimizer=optimizer)

    def parts():
        objective = objective_of(asked)
        step = Step(objective, optimizer_of(objective, asked), asked, CPU)
        return objective, step.optimizer, Average(objective, 0.9), step

    def steps(step, average, numbers):
        for number in numbers:
            step([batch(number)], 0.01, number)
            average.update()

    objective, sgd, average, step = parts()
    steps(step, average, range(3))
    folder = save(objective, sgd, average, Progress(0, 3, 3, best=(0.25, 1)), 0)
    steps(step, average, range(3, 6))

    other, sgd, other_average, other_step = parts()
    steps(other_step, other_average, range(7, 9))  # as far from there as can be
    assert load(other, sgd, other_average, folder) == Progress(0, 3, 3, best=(0.25, 1))
    steps(other_step, other_average, range(3, 6))
    assert all(
        torch.equal(one, two)
        for one, two in zip(objective.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert all(
        torch.equal(one, two) for one, two in zip(average.averages, other_average.averages, strict=True)
    )
