"""One step: equal to textbook PyTorch, in parts, on several workers; what is random in it is the seed's."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.support.trainings import SIZE, request
from wordsworth.pipeline.training.optimizer import build_optimizer, parameter_groups
from wordsworth.pipeline.training.request import OBJECTIVES, Mixing, TrainRequest, build_objective
from wordsworth.pipeline.training.speed import count_flops
from wordsworth.pipeline.training.step import Step, WeightAverage
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.cost import macs
from wordsworth.vit_model.objectives import Supervised
from wordsworth.vit_model.parallel import gathered_state_dict, parallelize
from wordsworth.vit_model.patches import patchify

CPU = torch.device("cpu")
CLASSED = replace(SIZE, num_classes=3)
TIME_LIMIT = 120  # seconds, for both processes: a collective that waits for ever must not


def batch(seed: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return patchify(rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8), 8), rng.integers(0, 3, size)


def step_of(asked: TrainRequest, rank: int = 0, wrap=lambda objective: objective, weights=None) -> Step:
    objective = wrap(build_objective(asked))
    return Step(objective, build_optimizer(objective, asked), asked, CPU, rank, weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_the_seeds_and_so_are_the_masks_of_a_step(tmp_path, name):
    config = replace(SIZE, num_classes=3 if name == "supervised" else 0)
    asked = request(tmp_path, objective=name, config=config, decoder=(24, 1, 2), seed=4)
    patches, classes = (
        np.random.default_rng(0).integers(0, 256, (6, 16, 192), dtype=np.uint8),
        np.zeros(6, np.int64),
    )

    def losses(rank: int, numbers: list[int]) -> list[float]:
        objective = build_objective(asked)
        step = Step(objective, build_optimizer(objective, asked), asked, CPU, rank)
        return [float(step([(patches, classes)], 0.0, number)[0]) for number in numbers]

    one = losses(0, [0, 1, 0])
    assert one == losses(0, [0, 1, 0]) and one[0] == one[2]
    if name == "mae":  # the others begin with a prediction of zeros, whatever is masked
        assert len({*one, *losses(1, [0])}) == 3, "another step and another worker have other masks"


def test_three_steps_equal_a_plain_loop_on_normalised_images(tmp_path):
    """uint8 patches through the trainer's step, against float images through textbook PyTorch."""
    config = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64, num_classes=3)
    asked = request(
        tmp_path,
        config=config,
        preprocessing=Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
        label_smoothing=0.1,
    )
    ours, plain = (random_checkpoint(config, asked.preprocessing, 0).model().train() for _ in range(2))
    objective = Supervised(ours, label_smoothing=0.1)
    step = Step(objective, build_optimizer(objective, replace(asked, weight_decay=0.1)), asked, CPU)
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.1), lr=1e-3)
    rng = np.random.default_rng(0)
    for number in range(3):
        images, classes = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), rng.integers(0, 3, 8)
        lr = 1e-3 / (number + 1)
        loss, _ = step([(patchify(images, 8), classes)], lr, number)
        mean, std = torch.tensor(asked.preprocessing.mean), torch.tensor(asked.preprocessing.std)
        inputs = ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = lr
        expected = F.cross_entropy(plain(inputs), torch.from_numpy(classes), label_smoothing=0.1)
        optimizer.zero_grad()
        expected.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach(), atol=1e-6, rtol=1e-5)
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        # Adam divides by the root of a squared gradient, which means nothing where the gradient is zero up to
        # rounding: the bias of the keys.
        if "qkv.bias" not in name:
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4, msg=name)


# ---- parts and workers ----

PATHS = {
    "ddp": {},
    "ddp in parts": {"accumulate": 2},
    "fsdp": {},
    "fsdp in parts": {"accumulate": 2},
    "ddp with weights": {},
    "ddp with weights in parts": {"accumulate": 2},
    "fsdp with weights in parts": {"accumulate": 2},
    "ddp of the last block": {"unfreeze_last": 1},
    "fsdp of the last block in parts": {"unfreeze_last": 1, "accumulate": 2},
}
WEIGHTS = (0.25, 1.0, 6.0)  # of the classes: those of two halves of a batch have other sums
SGD = {
    "optimizer": "sgd",
    "lr": 0.5,
    "weight_decay": 0.0,
    "config": CLASSED,
}  # Adam makes a step of a rounding error's sign


def halves(number: int, parts: int) -> list[tuple[np.ndarray, np.ndarray]]:
    patches, classes = batch(number)
    return list(zip(np.split(patches, parts), np.split(classes, parts), strict=True))


def plain_loop(
    tmp_path, clip: float, weights: tuple[float, ...] | None = None, unfreeze_last: int | None = None
) -> dict[str, torch.Tensor]:
    """Three steps on whole batches as textbook PyTorch takes them."""
    asked = request(tmp_path, **SGD, unfreeze_last=unfreeze_last)
    model = build_objective(asked).encoder
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    by_class = None if weights is None else torch.tensor(weights)
    for number in range(3):
        patches, classes = (torch.from_numpy(values) for values in batch(number))
        optimizer.zero_grad()
        F.cross_entropy(model((patches.float() / 255 - 0.5) / 0.5), classes, by_class).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return {f"encoder.{name}": value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_makes_the_step_of_the_whole(tmp_path, parts):
    step = step_of(request(tmp_path, **SGD, clip=0.5, accumulate=parts))
    for number in range(3):
        step(halves(number, parts), 0.5, number)
    torch.testing.assert_close(step.objective.state_dict(), plain_loop(tmp_path, 0.5), atol=2e-6, rtol=1e-5)


def worker(rank: int, folder: Path) -> None:
    """Train on half of every batch along every path, in each of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        for name, changes in PATHS.items():
            asked = request(folder, **SGD, clip=0.5, **changes)
            mesh = init_device_mesh("cpu", (2,))
            sharded = name.startswith("fsdp")
            step = step_of(
                asked,
                rank,
                partial(parallelize, mesh=mesh) if sharded else DistributedDataParallel,
                WEIGHTS if "weights" in name else None,
            )
            norms = []
            for number in range(3):
                mine = halves(number, 2 * asked.accumulate)[
                    rank * asked.accumulate : (rank + 1) * asked.accumulate
                ]
                norms.append(float(step(mine, 0.5, number)[1]["gradient_norm"]))
            state = gathered_state_dict(step.objective)
            if rank == 0:
                torch.save({"state": state, "norms": norms}, folder / f"{name}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.syspath_prepend(Path(__file__).parents[2])  # the children import this module by its name
        context, end = mp.spawn(worker, (folder,), nprocs=2, join=False), time.monotonic() + TIME_LIMIT
        try:
            while not context.join(timeout=1):
                assert time.monotonic() < end, f"two processes did not finish in {TIME_LIMIT} seconds"
        finally:
            for process in context.processes:
                process.kill()
    return {name: torch.load(folder / f"{name}.pt") for name in PATHS}


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_three_steps_of_two_workers_are_those_of_one_plain_loop(workers, tmp_path, name):
    weights = WEIGHTS if "weights" in name else None
    unfreeze_last = PATHS[name].get("unfreeze_last")
    expected = plain_loop(tmp_path, 0.5, weights, unfreeze_last)
    assert max(workers[name]["norms"]) > 0.5, "a gradient was clipped"
    torch.testing.assert_close(workers[name]["state"], expected, atol=2e-6, rtol=1e-5)
    unclipped = plain_loop(tmp_path, 9.0, weights, unfreeze_last)
    assert not torch.allclose(expected["encoder.head.weight"], unclipped["encoder.head.weight"], atol=2e-6)


def test_weighted_parts_make_the_step_of_torchs_weighted_mean_over_the_whole_batch(tmp_path):
    step = step_of(request(tmp_path, **SGD, clip=0.5, accumulate=4), weights=WEIGHTS)
    for number in range(3):
        step(halves(number, 4), 0.5, number)
    expected = plain_loop(tmp_path, 0.5, WEIGHTS)
    torch.testing.assert_close(step.objective.state_dict(), expected, atol=2e-6, rtol=1e-5)
    unweighted = plain_loop(tmp_path, 0.5)
    assert not torch.allclose(expected["encoder.head.weight"], unweighted["encoder.head.weight"], atol=1e-3)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_mixed_images_weigh_as_much_as_their_shares_of_the_classes(tmp_path, loss):
    """Mixing keeps the sum of a batch's weights, so its mean weight is known before."""
    asked = request(tmp_path, config=CLASSED, mixing=Mixing(mixup=0.5, cutmix=0.5), loss=loss)
    step, seen = step_of(asked, weights=WEIGHTS), []
    step.objective.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    for number in range(5):
        loss_of_step, _ = step([batch(number)], 0.0, number)
        targets, weights = seen[-1]["classes"], seen[-1]["weights"]
        assert targets.ndim == 2 and weights.mean() == pytest.approx(1.0, abs=1e-5)
        by_class = torch.tensor(WEIGHTS)
        torch.testing.assert_close(weights, targets @ by_class / by_class[batch(number)[1]].mean())
        assert torch.isfinite(loss_of_step)


# ---- what is random ----


def test_a_step_draws_what_it_would_have_drawn_before_it_was_cut_off(tmp_path):
    """Dropout, drop path, mixing and erasing follow from seed, worker and step, whatever was drawn before."""
    mixing = Mixing(mixup=0.2, cutmix=1.0, share=0.8, erase=0.3)
    asked = request(tmp_path, config=CLASSED, dropout=0.1, drop_path=0.3, mixing=mixing, lr=0.1)

    def opinionated(
        objective: torch.nn.Module,
    ) -> torch.nn.Module:  # a head of zeros gives the same loss whatever is drawn
        torch.nn.init.normal_(objective.encoder.head.weight, generator=torch.Generator().manual_seed(0))
        return objective

    whole = [float(step_of(asked, wrap=opinionated)([batch(0)], 0.0, number)[0]) for number in range(4)]
    assert len(set(whole)) == 4
    one = step_of(asked, wrap=opinionated)
    torch.rand(99)
    assert [float(one([batch(0)], 0.0, number)[0]) for number in (3, 1)] == [whole[3], whole[1]]
    assert float(step_of(asked, rank=1, wrap=opinionated)([batch(0)], 0.0, 1)[0]) not in whole


@pytest.mark.slow
def test_mixing_gives_targets_of_two_classes_and_spares_its_share(tmp_path):
    def targets(mixing: Mixing) -> list[torch.Tensor]:
        step, seen = step_of(request(tmp_path, config=CLASSED, mixing=mixing)), []
        step.objective.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["classes"]), with_kwargs=True
        )
        for number in range(30):
            step([batch(number)], 0.0, number)
        return seen

    mixed = targets(Mixing(mixup=0.5, cutmix=0.5, share=0.5))
    soft = [one for one in mixed if one.ndim == 2]
    assert 5 < len(soft) < 25
    assert all(torch.allclose(one.sum(1), torch.ones(8)) for one in soft) and any(
        ((one > 0) & (one < 1)).any() for one in soft
    )
    assert all(one.ndim == 1 for one in targets(Mixing(erase=0.5)))


def test_the_average_follows_the_weights_and_gives_them_back(tmp_path):
    step = step_of(request(tmp_path, config=CLASSED))
    average = WeightAverage(step.objective, 0.9)
    expected = [parameter.detach().clone() for parameter in step.objective.parameters()]
    for number in range(20):
        step([batch(number)], 0.01, number)
        average.update()
        keep = min(0.9, (2 + number) / (11 + number))
        expected = [
            keep * old + (1 - keep) * new.detach()
            for old, new in zip(expected, step.objective.parameters(), strict=True)
        ]
    trained = [parameter.detach().clone() for parameter in step.objective.parameters()]
    with average.applied():
        for parameter, mean in zip(step.objective.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach(), mean, atol=1e-6, rtol=1e-5)
    assert all(
        torch.equal(one, other) for one, other in zip(step.objective.parameters(), trained, strict=True)
    )


# ---- figures ----


def test_operations_are_three_times_those_of_a_forward_pass(tmp_path):
    config = ViTConfig(image_size=64, patch_size=8, width=48, depth=3, heads=3, mlp_dim=96, num_classes=5)
    objective = build_objective(request(tmp_path, config=config))
    found = count_flops(objective, config.patch_dim, config.num_patches)
    backward = 2 * macs(config)  # the patches themselves need no gradient
    assert found == pytest.approx(
        2 * (macs(config) + backward - config.num_patches * config.patch_dim * 48), rel=1e-3
    )
    masked = build_objective(
        request(tmp_path, config=replace(config, num_classes=0), objective="mae", decoder=(24, 1, 2))
    )
    assert count_flops(masked, config.patch_dim, config.num_patches) < 0.6 * found, (
        "a quarter of the patches is encoded"
    )
