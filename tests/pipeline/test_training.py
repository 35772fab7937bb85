"""Training: the schedule, the step, and Ray Train workers that end in a model folder which the labeler loads."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import UserError
from pipeline.recipe import OBJECTIVES, TrainRequest, learning_rate, objective_of, optimizer_of, parameter_groups
from pipeline.training import Step, train
from pipeline.training_data import Augmentation
from tests.builders import photo, write_tar
from vit_model.checkpoint import load_folder, random
from vit_model.config import Preprocessing, ViTConfig
from vit_model.objectives import Supervised

SIZE = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64, num_classes=0)


def request(tmp_path, **changes) -> TrainRequest:
    given = {
        "sources": (str(tmp_path / "shards"),),
        "output": str(tmp_path / "model"),
        "config": SIZE,
        "preprocessing": Preprocessing(crop_pct=1.0),
        "epochs": 3,
        "batch_size": 16,
        "precision": "fp32",
        "device": "cpu",
        "augmentation": Augmentation(0.8),
    }
    return TrainRequest(**(given | changes))


def write_classes(folder, shards: int, images: int, classes: int = 2) -> None:
    """Pictures whose class is how bright they are."""
    from io import BytesIO

    from PIL import Image

    rng = np.random.default_rng(0)
    for shard in range(shards):
        members = {}
        for number in range(images):
            label = (shard + number) % classes
            buffer = BytesIO()
            pixels = rng.integers(0, 100, (24, 24, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            members[f"{shard}-{number}.png"] = buffer.getvalue()
            members[f"{shard}-{number}.cls"] = str(label).encode()
        write_tar(folder / f"{shard}.tar", members)


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine_to_zero():
    rates = [learning_rate(step, 100, peak=2.0, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[9] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[-1] < 0.01 and all(a >= b for a, b in pairwise(rates[10:]))


def test_matrices_decay_and_nothing_else_does():
    model = random(ViTConfig(num_classes=3), Preprocessing(), 0).model()
    decay, rest = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decay["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert all(names[id(parameter)].endswith("weight") and parameter.ndim > 1 for parameter in decay["params"])
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= {names[id(parameter)] for parameter in rest["params"]}
    assert len(decay["params"]) + len(rest["params"]) == len(names)


def test_with_layer_decay_every_layer_learns_slower_than_the_one_above():
    model = random(ViTConfig(width=16, depth=3, heads=2, mlp_dim=32, num_classes=3), Preprocessing(), 0).model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(parameter)]: group["scale"] for group in parameter_groups(model, 0.1, 0.5) for parameter in group["params"]}
    assert scales.keys() == set(names.values())
    for start, scale in (("head.", 1), ("norm.", 1), ("blocks.2.", 1 / 2), ("blocks.0.", 1 / 8), ("patch_embed.", 1 / 16)):
        assert {scales[name] for name in scales if name.startswith(start)} == {scale}, start
    assert scales["cls_token"] == scales["pos_embed"] == 1 / 16
    assert {group["scale"] for group in parameter_groups(model, 0.1)} == {1.0}


def test_what_is_fine_tuned_begins_as_it_was_under_a_head_of_zeros(tmp_path):
    config = replace(SIZE, num_classes=7, representation_size=24)
    start = random(config, Preprocessing(), 3)
    asked = request(tmp_path, start=start, config=replace(config, image_size=48, num_classes=2, representation_size=0))
    encoder = objective_of(asked).encoder
    state = encoder.state_dict()
    assert encoder.config == asked.config and all(parameter.requires_grad for parameter in encoder.parameters())
    assert not state["head.weight"].any() and state["head.weight"].shape == (2, 32) and "pre_logits.fc.weight" not in state
    assert state["pos_embed"].shape == (1, 37, 32), "positions for 6 x 6 patches and the [class] token"
    for name in ("patch_embed.proj.weight", "cls_token", "blocks.1.mlp.fc2.weight", "norm.bias"):
        assert torch.equal(state[name], start.state[name]), name
    sgd = optimizer_of(objective_of(asked), replace(asked, optimizer="sgd", weight_decay=0.0))
    assert isinstance(sgd, torch.optim.SGD) and {group["momentum"] for group in sgd.param_groups} == {0.9}


@pytest.mark.parametrize("name", ["masked-patch", "mae"])
def test_of_an_objective_without_classes_the_tokens_decay_as_little(tmp_path, name):
    objective = objective_of(request(tmp_path, objective=name, decoder=(24, 1, 2)))
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    _, rest = parameter_groups(objective, 0.1)
    kept = {names[id(parameter)] for parameter in rest["params"]}
    assert {"encoder.cls_token", "encoder.pos_embed", "mask_token" if name == "masked-patch" else "decoder.mask_token"} <= kept
    assert not any(one.endswith("fc1.weight") for one in kept)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_the_seeds_and_so_are_the_masks_of_a_step(tmp_path, name):
    config = replace(SIZE, num_classes=3 if name == "supervised" else 0)
    asked = request(tmp_path, objective=name, config=config, decoder=(24, 1, 2), seed=4)
    patches, classes = np.random.default_rng(0).integers(0, 256, (6, 16, 192), dtype=np.uint8), np.zeros(6, np.int64)

    def losses(rank: int, numbers: list[int]) -> list[float]:
        objective = objective_of(asked)
        step = Step(objective, optimizer_of(objective, asked), asked, torch.device("cpu"), rank)
        return [float(step(patches, classes, 0.0, number)[0]) for number in numbers]

    one = losses(0, [0, 1, 0])
    assert one == losses(0, [0, 1, 0]) and one[0] == one[2]
    if name == "mae":  # the others begin with a prediction of zeros, whatever is masked
        assert len({*one, *losses(1, [0])}) == 3, "another step and another worker have other masks"


def test_three_steps_equal_a_plain_loop_on_normalised_images(tmp_path):
    """uint8 patches through the trainer's step, against float images through textbook PyTorch."""
    from vit_model.patches import patchify

    config = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64, num_classes=3)
    asked = request(
        tmp_path, config=config, preprocessing=Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)), label_smoothing=0.1
    )
    ours, plain = (random(config, asked.preprocessing, 0).model().train() for _ in range(2))
    objective = Supervised(ours, label_smoothing=0.1)
    step = Step(objective, optimizer_of(objective, replace(asked, weight_decay=0.1)), asked, torch.device("cpu"))
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.1), lr=1e-3)
    rng = np.random.default_rng(0)
    for number in range(3):
        images, classes = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), rng.integers(0, 3, 8)
        lr = 1e-3 / (number + 1)
        loss, _ = step(patchify(images, 8), classes, lr, number)
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
        # Adam divides by the root of a squared gradient: where that is zero up to rounding (the key's bias), so is the meaning.
        if "qkv.bias" not in name:
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.usefixtures("local_ray")
def test_two_workers_train_a_model_that_the_labeler_loads(tmp_path):
    write_classes(tmp_path / "shards", shards=3, images=64)
    seen = []
    last = train(request(tmp_path, workers=2, epochs=6, lr=3e-3, labels=("dark", "bright")), seen.append)
    assert [metrics["epoch"] for metrics in seen] == [1, 2, 3, 4, 5, 6]
    assert last["accuracy"] > 0.95 and last["loss"] < seen[0]["loss"]
    checkpoint = load_folder(tmp_path / "model")
    assert checkpoint.labels == ("dark", "bright") and checkpoint.config.num_classes == 2
    assert checkpoint.extra["objective"] == "supervised" and checkpoint.extra["recipe"]["seed"] == 0
    assert checkpoint.preprocessing == Preprocessing(crop_pct=1.0)
    with pytest.raises(UserError, match="holds a model already"):
        train(request(tmp_path), seen.append)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("changes", "members", "message"),
    [
        ({}, {"a.jpg": photo(1)}, "sample a has no class"),
        ({}, {"a.jpg": photo(1), "a.cls": b"cat"}, "sample a has no class"),
        ({"labels": ("one",)}, {"a.jpg": photo(1), "a.cls": b"1"}, "class 1 occurs, but there are only 1 labels"),
        ({}, {"a.jpg": photo(1), "a.cls": b"1"}, "1 of 2 classes have no sample, first class 0"),
        ({"workers": 2}, {"a.jpg": photo(1), "a.cls": b"0"}, "2 workers need at least 2 shards"),
        ({}, {"a.jpg": photo(1), "a.cls": b"0"}, "needs at least 16 samples, there are 1"),
        ({"device": "cuda", "batch_size": 1}, {"a.jpg": photo(1), "a.cls": b"0"}, "need 1 GPUs, Ray has 0"),
        ({"workers": 9, "batch_size": 9}, {"a.jpg": photo(1), "a.cls": b"0"}, "9 workers need at least 9 shards"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_before_training(tmp_path, changes, members, message):
    write_tar(tmp_path / "shards" / "x.tar", members)
    with pytest.raises(UserError, match=message):
        train(request(tmp_path, **changes), lambda metrics: None)
    assert not (tmp_path / "model").exists()


def test_a_loss_that_is_not_a_number_stops_with_its_epoch(tmp_path):
    from pipeline.training import _run_epoch

    config = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64, num_classes=3)
    model = random(config, Preprocessing(), 0).model().train()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    asked = request(tmp_path, config=config)
    step = Step(Supervised(model), optimizer_of(model, asked), asked, torch.device("cpu"))
    data = iter([(np.zeros((2, 16, 192), np.uint8), np.zeros(2, np.int64))])
    with pytest.raises(UserError, match="the loss is not a number in epoch 1"):
        _run_epoch(step, data, 0, 1, 1)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.long  # the hybrid itself: tests/vit_model; the stream: the test above
def test_a_hybrid_trains_from_the_same_stream_of_patches(tmp_path):
    write_classes(tmp_path / "shards", shards=2, images=16)
    train(request(tmp_path, config=replace(SIZE, resnet=()), epochs=2), lambda metrics: None)
    saved = load_folder(tmp_path / "model")
    assert saved.config.resnet == () and saved.config.num_classes == 2
    assert "patch_embed.backbone.conv.weight" in saved.state and saved.state["head.weight"].abs().max() > 0


@pytest.mark.usefixtures("local_ray")
@pytest.mark.long  # two trainings; their parts, above, are not
def test_a_model_that_was_trained_without_classes_is_fine_tuned_on_some(tmp_path):
    """By masked patches; a masked autoencoder goes the same way."""
    write_tar(tmp_path / "shards" / "a.tar", {f"{n}.jpg": photo(n) for n in range(64)})
    seen = []
    asked = request(tmp_path, objective="masked-patch", epochs=8, lr=3e-3, labels=("no", "matter"))
    last = train(asked, seen.append)
    assert last["loss"] < seen[0]["loss"], seen
    saved = load_folder(tmp_path / "model")
    assert saved.config.num_classes == 0 and saved.labels is None and saved.extra["objective"] == "masked-patch"
    assert not [name for name in saved.state if name.startswith(("head", "mask", "predict", "encoder"))]

    write_classes(tmp_path / "classes", shards=2, images=48)
    mine = {"sources": (str(tmp_path / "classes"),), "output": str(tmp_path / "mine"), "labels": ("dark", "bright"), "epochs": 4}
    last = train(request(tmp_path, **mine, start=saved, optimizer="sgd", lr=0.05, weight_decay=0.0), seen.append)
    tuned = load_folder(tmp_path / "mine")
    assert last["accuracy"] > 0.9, seen
    assert tuned.labels == ("dark", "bright") and tuned.extra["recipe"]["optimizer"] == "sgd"
    near = torch.nn.functional.cosine_similarity(saved.state["pos_embed"].flatten(), tuned.state["pos_embed"].flatten(), dim=0)
    assert near > 0.9, "it began as the other ended"
