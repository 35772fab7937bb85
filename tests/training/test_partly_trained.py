"""Fine-tuning of a part of a model: what is frozen stays as it was, to the bit; the rest learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.trainings import SIZE, request
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.training.checkpoints import TrainingProgress, TrainingState
from wordsworth.pipeline.training.optimizer import build_optimizer
from wordsworth.pipeline.training.request import build_objective
from wordsworth.pipeline.training.step import Step
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing

CONFIG = replace(SIZE, num_classes=3)
HEAD = {"head.weight", "head.bias"}


def changed_by_steps(tmp_path, **changes) -> set[str]:
    """Return the names of the tensors that three steps change; the optimizer has decay and momentum."""
    config = replace(CONFIG, **changes.pop("config", {}))
    start = random_checkpoint(config, Preprocessing(), 3)
    asked = request(
        tmp_path, start=start, config=config, weight_decay=0.1, lr=0.1, layer_decay=0.9, **changes
    )
    objective = build_objective(asked)
    before = {name: tensor.clone() for name, tensor in objective.encoder.state_dict().items()}
    step = Step(objective, build_optimizer(objective, asked), asked, torch.device("cpu"))
    rng = np.random.default_rng(0)
    for number in range(3):  # the head of zeros gives the encoder a gradient from the second step on
        step([(rng.integers(0, 256, (8, 16, 192), dtype=np.uint8), rng.integers(0, 3, 8))], 0.1, number)
    after = objective.encoder.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_linear_probe_changes_the_head_alone(tmp_path, optimizer):
    assert changed_by_steps(tmp_path, unfreeze_last=0, optimizer=optimizer) == HEAD


def test_the_last_blocks_the_norm_and_the_head_are_trained_and_nothing_before(tmp_path):
    changed = changed_by_steps(tmp_path, unfreeze_last=1)
    assert {name.split(".")[0] for name in changed} == {"blocks", "norm", "head"}
    assert {name.split(".")[1] for name in changed if name.startswith("blocks")} == {"1"}
    every_block = changed_by_steps(tmp_path, unfreeze_last=2)
    assert not {name for name in every_block if name.startswith(("patch_embed", "pos_embed", "cls_token"))}
    assert {name.split(".")[1] for name in every_block if name.startswith("blocks")} == {"0", "1"}
    assert {"patch_embed.proj.weight", "pos_embed"} <= changed_by_steps(tmp_path)


def test_a_pool_that_has_weights_is_trained_with_the_blocks_and_frozen_with_the_encoder(tmp_path):
    pooled = {"pool": "map", "class_token": False}
    assert changed_by_steps(tmp_path, unfreeze_last=0, config=pooled) == HEAD
    changed = changed_by_steps(tmp_path, unfreeze_last=1, config=pooled)
    assert any(name.startswith("attn_pool") for name in changed)


def test_more_unfrozen_blocks_than_there_are_are_one_line(tmp_path):
    with pytest.raises(UserError, match="--unfreeze-last 3: the model has 2 blocks"):
        build_objective(request(tmp_path, config=CONFIG, unfreeze_last=3))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_training_goes_on_from_a_checkpoint_to_the_bit(tmp_path, monkeypatch, optimizer):
    monkeypatch.chdir(tmp_path)  # where a worker's checkpoint is written
    asked = request(tmp_path, config=CONFIG, unfreeze_last=1, optimizer=optimizer)

    def parts() -> tuple[TrainingState, Step]:
        objective = build_objective(asked)
        step = Step(objective, build_optimizer(objective, asked), asked, torch.device("cpu"))
        return TrainingState(objective, step.optimizer, None), step

    def make_steps(step: Step, numbers: range) -> None:
        for number in numbers:
            rng = np.random.default_rng(number)
            patches = rng.integers(0, 256, (8, 16, 192), dtype=np.uint8)
            step([(patches, rng.integers(0, 3, 8))], 0.01, number)

    whole, step = parts()
    make_steps(step, range(3))
    folder = whole.save(TrainingProgress(number=3), 0)
    make_steps(step, range(3, 6))
    again, other_step = parts()
    make_steps(other_step, range(7, 9))
    assert again.load(folder).number == 3
    make_steps(other_step, range(3, 6))
    weights, others = whole.objective.state_dict(), again.objective.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
