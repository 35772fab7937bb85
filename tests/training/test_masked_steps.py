"""Steps without classes: equal to a plain loop around the papers' objectives on timm's layers."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.published_objectives import PublishedMAE, PublishedMaskedPatches
from tests.support.random_images import SMALL_DECODER
from tests.support.trainings import SIZE, request
from wordsworth.pipeline.training.learning_rate import learning_rate
from wordsworth.pipeline.training.optimizer import build_optimizer
from wordsworth.pipeline.training.request import TrainRequest, build_objective
from wordsworth.pipeline.training.step import Step
from wordsworth.vit_model.patches import patchify

STEPS = 3
CLOSE = {"atol": 1e-6, "rtol": 1e-6}


def asked_of(tmp_path, objective: str) -> TrainRequest:
    return request(
        tmp_path, objective=objective, decoder=tuple(SMALL_DECODER.values()), lr=1e-3, beta2=0.95, seed=3
    )


def trained_and_published(asked: TrainRequest) -> tuple[nn.Module, nn.Module]:
    """Return our objective, every parameter random, and the paper's with the same parameters."""
    ours = build_objective(asked)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    published = PublishedMaskedPatches(SIZE)
    if asked.objective == "mae":
        published = PublishedMAE(SIZE, **SMALL_DECODER)
    state = {name.removeprefix("encoder."): value.clone() for name, value in ours.state_dict().items()}
    state.pop("decoder.positions", None)  # the paper's are the twin's own
    missing, unexpected = published.load_state_dict(state, strict=False)
    assert set(missing) <= {"decoder.positions"} and not unexpected
    return ours, published


def published_loss(published: nn.Module, asked: TrainRequest, pixels: torch.Tensor, number: int):
    """Return the loss of a step, whose masks are drawn from the seed, the worker and the step's number."""
    seed = int(np.random.SeedSequence([asked.seed, 0, number]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    images = (pixels.float() / 255 - 0.5) / 0.5
    noise = torch.rand(len(pixels), SIZE.num_patches, generator=generator)
    if asked.objective == "mae":
        return published(images, noise)
    steps = torch.randint(1, SIZE.num_patches, (len(pixels), 1), generator=generator)
    return published(images, pixels, noise.argsort(dim=1), steps)


def plain_optimizer(model: nn.Module, asked: TrainRequest) -> torch.optim.Optimizer:
    """Return AdamW as MAE's code has it: no decay for vectors, tokens and positions."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and not name.endswith(("token", "pos_embed"))
        (matrices if is_matrix else rest).append(parameter)
    groups = [{"params": matrices, "weight_decay": asked.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=asked.lr, betas=(0.9, asked.beta2))


@pytest.mark.parametrize("objective", ["mae", "masked-patch"])
def test_three_steps_without_classes_have_the_losses_and_gradients_of_a_plain_loop(tmp_path, objective):
    asked = asked_of(tmp_path, objective)
    ours, published = trained_and_published(asked)
    step = Step(ours, build_optimizer(ours, asked), asked, torch.device("cpu"))
    optimizer = plain_optimizer(published, asked)
    rng = np.random.default_rng(0)
    for number in range(STEPS):
        images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        lr = learning_rate(number, STEPS, asked.lr, warmup=2)
        loss, metrics = step([(patchify(images, 8), np.zeros(4, np.int64))], lr, number)
        optimizer.zero_grad()
        expected = published_loss(published, asked, torch.from_numpy(images).permute(0, 3, 1, 2), number)
        expected.backward()
        norm = nn.utils.clip_grad_norm_(published.parameters(), asked.clip)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach(), **CLOSE)
        torch.testing.assert_close(metrics["gradient_norm"], norm, **CLOSE)
        wanted = {name: parameter.grad for name, parameter in published.named_parameters()}
        for name, parameter in ours.named_parameters():
            gradient = wanted.pop(name.removeprefix("encoder."))
            assert gradient.abs().max() > 1e-5, f"{name}: nothing to compare"
            torch.testing.assert_close(parameter.grad, gradient, **CLOSE, msg=f"step {number}: {name}")
        assert not wanted
