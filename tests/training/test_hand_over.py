"""The hand-over: the model folder of every objective, then finetune, then what its workers train."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.trainings import SIZE, request
from wordsworth.jobs.cli import run
from wordsworth.pipeline.training.checkpoints import TrainingState
from wordsworth.pipeline.training.class_balance import ClassUse
from wordsworth.pipeline.training.model_folder import ModelFolders
from wordsworth.pipeline.training.news import EpochNews
from wordsworth.pipeline.training.optimizer import build_optimizer
from wordsworth.pipeline.training.request import OBJECTIVES, TrainRequest, build_objective
from wordsworth.pipeline.training.survey import Survey
from wordsworth.pipeline.training.worker_setup import WorkerSetup
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing

HEAD = ("head.weight", "head.bias")


def write_trained(tmp_path: Path, objective: str, **changes) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write the model folder of a training whose every weight is random, and return the encoder's tensors."""
    config = replace(SIZE, num_classes=3 if objective == "supervised" else 0, **changes)
    asked = request(tmp_path, objective=objective, config=config, decoder=(24, 1, 2))
    module = build_objective(asked)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = TrainingState(module, build_optimizer(module, asked), average=None)
    ModelFolders(setup_of(asked), state, rank=0).write_last({}, best=None)
    kept = {name: tensor.clone() for name, tensor in module.encoder.state_dict().items() if name not in HEAD}
    return Path(asked.output), kept


def setup_of(asked: TrainRequest) -> WorkerSetup:
    nothing = Survey(shards=(), rows={}, classes=Counter())
    return WorkerSetup(
        request=asked,
        decode=None,
        reading=None,
        train=nothing,
        val=None,
        target=None,
        class_use=ClassUse(weights=None, balance=None, drawn={}),
        probe=None,
        device="cpu",
        weights=None,
        settings={},
        open_end=None,
        is_local=True,
    )


@pytest.fixture
def fine_tuned(tmp_path, monkeypatch):
    """Return a function: the request of `wordsworth finetune`, whose training is not done."""
    asked = []

    def train(request, on_news):
        asked.append(request)
        means = {"loss": 0.5, "accuracy": 1.0}
        return EpochNews(epoch=1, step=1, means=means, lr=0.0, rates=None, errors=0, validation=None)

    monkeypatch.setattr("wordsworth.pipeline.training.trainer.train", train)

    def finetune(model: Path, *options: str) -> TrainRequest:
        code = run(
            ["finetune", "SHARDS", "--model", str(model), "--output", str(tmp_path / "tuned"), *options]
        )
        assert code == 0
        return asked[-1]

    return finetune


def encoder_of(asked: TrainRequest) -> nn.Module:
    """Return the encoder that a worker begins with, once the shards told of four classes."""
    return build_objective(replace(asked, config=replace(asked.config, num_classes=4))).encoder


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("position", ["learned-1d", "sincos-2d-mae"])
def test_from_every_objective_to_fine_tuning_every_tensor_of_the_encoder_stays_bit_for_bit(
    tmp_path, fine_tuned, objective, position
):
    folder, trained = write_trained(tmp_path, objective, position=position)
    for options in ([], ["--pool", "avg"], ["--pool", "token"], ["--pool", "avg-norm"]):
        found = encoder_of(fine_tuned(folder, *options)).state_dict()
        if "avg-norm" in options or not (options or objective == "supervised"):  # the norm at its other place
            found = {name.replace("fc_norm.", "norm."): tensor for name, tensor in found.items()}
        assert set(found) == {*trained, *HEAD}
        for name, tensor in trained.items():
            assert torch.equal(found[name], tensor), (name, options)


@pytest.mark.parametrize("pool", ["token", "avg", "avg-norm"])
def test_the_head_looks_at_what_was_asked_for(tmp_path, fine_tuned, pool):
    folder, _ = write_trained(tmp_path, "mae")
    encoder = encoder_of(fine_tuned(folder, "--pool", pool)).eval()
    nn.init.eye_(encoder.head.weight)
    patches = torch.randn(2, SIZE.num_patches, SIZE.patch_dim, generator=torch.Generator().manual_seed(1))
    tokens = encoder.forward_features(patches)
    seen = tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(1)
    if pool == "avg-norm":
        seen = encoder.fc_norm(seen)
    torch.testing.assert_close(encoder(patches), seen[:, :4])


def test_a_model_with_another_pooling_keeps_it_or_is_refused(tmp_path):
    latent = random_checkpoint(replace(SIZE, pool="map"), Preprocessing(), 0)
    with pytest.raises(ModelError, match="pool is 'map'; it must be one of token, avg"):
        latent.pooled("avg")


def test_without_a_word_the_head_looks_at_what_the_model_pooled_and_after_masks_at_the_normed_mean(
    tmp_path, fine_tuned, capfd
):
    pooled = {}
    for objective in OBJECTIVES:
        config = fine_tuned(write_trained(tmp_path / objective, objective)[0]).config
        pooled[objective] = (config.pool, config.pool_norm)
    assert pooled == {"supervised": ("token", False), "masked-patch": ("avg", True), "mae": ("avg", True)}
    told = capfd.readouterr().err
    assert told.count("(--pool avg-norm)") == 2 and "--model was trained by mae: the new head" in told


def test_a_pooling_that_is_asked_for_again_gives_the_same_model(tmp_path):
    made = random_checkpoint(SIZE, Preprocessing(), 0)
    there = made.pooled("avg-norm")
    assert there.config.pool_norm and "norm.weight" not in there.state
    back = there.pooled("token")
    assert not back.config.pool_norm and back.state.keys() == made.with_head(0).state.keys()
    assert all(torch.equal(tensor, made.state[name]) for name, tensor in back.state.items())
