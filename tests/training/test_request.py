"""The recipe: how the learning rate goes, which parameters decay, and what a training begins with."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.support.trainings import SIZE, request
from wordsworth.pipeline.training.learning_rate import DECAYS, learning_rate
from wordsworth.pipeline.training.optimizer import build_optimizer, parameter_groups
from wordsworth.pipeline.training.request import build_objective, initial_checkpoint
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine_to_zero():
    rates = [learning_rate(step, 100, peak=2.0, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[9] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[-1] < 0.01 and all(a >= b for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize("decay", DECAYS)
def test_every_decay_rises_first_and_ends_near_zero(decay):
    rates = [learning_rate(step, 200, 1.0, 20, decay) for step in range(200)]  # 20: so many steps
    assert max(rates) == rates[19] == 1.0 and rates[0] == pytest.approx(1 / 20)
    assert all(a >= b for a, b in pairwise(rates[19:])) and 0 < rates[-1] < 0.02
    middle = {"cosine": 0.5, "linear": 0.5, "rsqrt": math.sqrt(20 / 111)}[decay]
    assert rates[110] == pytest.approx(middle, abs=1e-3)


@pytest.mark.slow
def test_matrices_decay_and_nothing_else_does():
    model = random_checkpoint(ViTConfig(num_classes=3), Preprocessing(), 0).model()
    decay, rest = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decay["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert all(
        names[id(parameter)].endswith("weight") and parameter.ndim > 1 for parameter in decay["params"]
    )
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= {
        names[id(parameter)] for parameter in rest["params"]
    }
    assert len(decay["params"]) + len(rest["params"]) == len(names)


def test_with_layer_decay_every_layer_learns_slower_than_the_one_above():
    model = random_checkpoint(
        ViTConfig(width=16, depth=3, heads=2, mlp_dim=32, num_classes=3), Preprocessing(), 0
    ).model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {
        names[id(parameter)]: group["scale"]
        for group in parameter_groups(model, 0.1, 0.5)
        for parameter in group["params"]
    }
    assert scales.keys() == set(names.values())
    for start, scale in (
        ("head.", 1),
        ("norm.", 1),
        ("blocks.2.", 1 / 2),
        ("blocks.0.", 1 / 8),
        ("patch_embed.", 1 / 16),
    ):
        assert {scales[name] for name in scales if name.startswith(start)} == {scale}, start
    assert scales["cls_token"] == scales["pos_embed"] == 1 / 16
    assert {group["scale"] for group in parameter_groups(model, 0.1)} == {1.0}


def test_what_is_fine_tuned_begins_as_it_was_under_a_head_of_zeros(tmp_path):
    config = replace(SIZE, num_classes=7, representation_size=24)
    start = random_checkpoint(config, Preprocessing(), 3)
    asked = request(
        tmp_path, start=start, config=replace(config, image_size=48, num_classes=2, representation_size=0)
    )
    encoder = build_objective(asked).encoder
    state = encoder.state_dict()
    assert encoder.config == asked.config and all(
        parameter.requires_grad for parameter in encoder.parameters()
    )
    assert (
        not state["head.weight"].any()
        and state["head.weight"].shape == (2, 32)
        and "pre_logits.fc.weight" not in state
    )
    assert state["pos_embed"].shape == (1, 37, 32), "positions for 6 x 6 patches and the [class] token"
    for name in ("patch_embed.proj.weight", "cls_token", "blocks.1.mlp.fc2.weight", "norm.bias"):
        assert torch.equal(state[name], start.state[name]), name
    sgd = build_optimizer(build_objective(asked), replace(asked, optimizer="sgd", weight_decay=0.0))
    assert isinstance(sgd, torch.optim.SGD) and {group["momentum"] for group in sgd.param_groups} == {0.9}


def test_a_head_is_new_for_as_many_classes_too(tmp_path):
    start = random_checkpoint(replace(SIZE, num_classes=2), Preprocessing(), 3)
    start.state["head.weight"] = torch.ones(2, 32)
    begun = initial_checkpoint(request(tmp_path, start=start, config=start.config))
    assert not begun.state["head.weight"].any() and torch.equal(
        begun.state["cls_token"], start.state["cls_token"]
    )
    begun.state["head.weight"] += 1
    again = build_objective(request(tmp_path, start=begun, config=start.config)).encoder
    assert torch.equal(again.head.weight, begun.state["head.weight"]), "a worker takes what it is given"


@pytest.mark.parametrize(
    "change",
    [
        {"representation_size": 24, "projection": True, "head_bias": False},
        {"pool": "distilled", "registers": 1},
    ],
)
def test_every_kind_of_head_gives_way_to_a_linear_one(change):
    start = random_checkpoint(replace(SIZE, num_classes=5, **change), Preprocessing(), 3).with_head(2)
    assert start.model()(torch.zeros(1, 3, 32, 32)).tolist() == [[0.0, 0.0]]


def test_from_scratch_the_head_and_small_patches_let_the_encoder_learn(tmp_path):
    asked = request(tmp_path, config=replace(SIZE, num_classes=4))
    begun, jax = initial_checkpoint(asked), random_checkpoint(asked.config, asked.preprocessing, asked.seed)
    assert (
        begun.state["head.weight"].std().item() == pytest.approx(0.02, rel=0.3)
        and not begun.state["head.bias"].any()
    )
    assert begun.state["patch_embed.proj.weight"].std().item() == pytest.approx((3 * 192) ** -0.5, rel=0.05)
    others = begun.state.keys() - {"head.weight", "patch_embed.proj.weight"}
    assert all(torch.equal(begun.state[name], jax.state[name]) for name in others)
    rare = initial_checkpoint(replace(asked, loss="sigmoid")).state["head.bias"]
    assert rare.tolist() == pytest.approx([-math.log(4)] * 4), "each class as likely as it is"


@pytest.mark.parametrize("objective", ["masked-patch", "mae"])
def test_without_classes_an_encoder_begins_with_the_matrices_of_maes_code(tmp_path, objective):
    config = replace(SIZE, width=96, heads=3, mlp_dim=384)
    asked = request(tmp_path, objective=objective, config=config)
    found = initial_checkpoint(asked).state
    again = initial_checkpoint(asked).state
    assert all(torch.equal(found[name], again[name]) for name in found), "the seed decides"
    for name, shape in (("patch_embed.proj", (96, 192)), ("blocks.1.attn.qkv", (288, 96))):
        bound = math.sqrt(6 / sum(shape))  # of Xavier's uniform numbers
        matrix = found[f"{name}.weight"].reshape(shape)
        assert 0.98 * bound < matrix.abs().max() <= bound, name
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
        assert not found[f"{name}.bias"].any()
    assert found["cls_token"].std().item() == pytest.approx(0.02, rel=0.3)
    other = initial_checkpoint(replace(asked, seed=1)).state
    assert not torch.equal(found["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])


def test_a_hybrids_stem_is_the_lowest_layer_and_no_table_of_positions_decays():
    config = ViTConfig(
        image_size=32,
        patch_size=16,
        width=16,
        depth=2,
        heads=2,
        mlp_dim=32,
        num_classes=3,
        resnet=(2, 2, 2),
        position="learned-2d",
    )
    model = random_checkpoint(config, Preprocessing(), 0).model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(one)]: (group["scale"], group["weight_decay"])
        for group in parameter_groups(model, 0.1, 0.5)
        for one in group["params"]
    }
    assert {scale for name, (scale, _) in found.items() if name.startswith("patch_embed")} == {1 / 8}
    assert {decay for name, (_, decay) in found.items() if name.startswith("pos_embed")} == {0.0}


@pytest.mark.parametrize("name", ["masked-patch", "mae"])
def test_of_an_objective_without_classes_the_tokens_decay_as_little(tmp_path, name):
    objective = build_objective(request(tmp_path, objective=name, decoder=(24, 1, 2)))
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    _, rest = parameter_groups(objective, 0.1)
    kept = {names[id(parameter)] for parameter in rest["params"]}
    assert {
        "encoder.cls_token",
        "encoder.pos_embed",
        "mask_token" if name == "masked-patch" else "decoder.mask_token",
    } <= kept
    assert not any(one.endswith("fc1.weight") for one in kept)


def test_what_is_dropped_in_training_is_no_part_of_the_model(tmp_path):
    asked = request(tmp_path, config=replace(SIZE, num_classes=2), dropout=0.1, drop_path=0.4)
    assert build_objective(asked).encoder.config.drop_path == 0.4 and asked.config.drop_path == 0.0


@pytest.mark.parametrize(
    ("objective", "loss", "kind"),
    [
        ("supervised", "softmax", "softmax"),
        ("supervised", "sigmoid", "sigmoid"),
        ("masked-patch", "sigmoid", "softmax"),
    ],
)
def test_the_head_of_the_trained_model_is_what_the_loss_was(objective, loss, kind, tmp_path):
    asked = request(tmp_path, objective=objective, loss=loss)
    assert asked.head.kind == kind
