"""Supervised training, masked patch prediction, and what all objectives promise."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from tests.support.random_images import SMALL_DECODER, random_patches, seeded
from wordsworth.vit_model import objectives
from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.masked_autoencoder import MaskedAutoencoder
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.objectives import MaskedPatchPrediction, Supervised
from wordsworth.vit_model.patches import patchify

TARGETS = ["mean_colour", "colours_4x4", "pixels"]


# ---- supervised ------------------------------------------------------------------------------------------


def loop_cross_entropy(logits, targets, kind, smoothing):
    """One image and one class at a time, in Python's floats."""
    losses = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        smooth = [(1 - smoothing) * t + smoothing / len(row) for t in target]
        if kind == "softmax":
            total = math.log(sum(math.exp(v) for v in row))
            losses.append(-sum(t * (v - total) for v, t in zip(row, smooth, strict=True)))
        else:
            sigmoids = [1 / (1 + math.exp(-v)) for v in row]
            losses.append(
                -sum(
                    t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in zip(sigmoids, smooth, strict=True)
                )
            )
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_supervised_losses_are_their_formulas_for_ids_and_for_mixed_targets(
    tiny, randomised, kind, smoothing
):
    objective = Supervised(randomised(VisionTransformer(tiny)), loss=kind, label_smoothing=smoothing)
    patches, _ = random_patches(tiny, batch=4)
    logits = objective.encoder(patches).detach()
    ids = torch.tensor([3, 0, 4, 1])
    one_hot = torch.eye(5)[ids]
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    for classes, targets in ((ids, one_hot), (one_hot, one_hot), (mixed, mixed)):
        loss, metrics = objective(patches, classes=classes)
        assert loss.item() == pytest.approx(loop_cross_entropy(logits, targets, kind, smoothing), abs=1e-5)
        right = sum(int(row.argmax()) == int(id) for row, id in zip(logits, ids, strict=True))
        assert metrics["accuracy"].item() == right / 4  # of a mixed image, the class that it has most of


# ---- masked patch prediction -----------------------------------------------------------------------------


def loop_colour_classes(patch: np.ndarray, cells: int) -> list[int]:
    """(P*P*3,) pixels in [0, 1]"""
    side = math.isqrt(len(patch) // 3)
    image, step, labels = patch.reshape(side, side, 3), side // cells, []
    for top in range(0, side, step):
        for left in range(0, side, step):
            label = 0
            for channel in range(3):
                values = [
                    image[y, x, channel] for y in range(top, top + step) for x in range(left, left + step)
                ]
                label = label * 8 + min(7, math.floor(math.fsum(values) / len(values) * 8))
            labels.append(label)
    return labels


@pytest.mark.parametrize(
    ("colour", "label"),
    [
        ((0, 0, 0), 0),
        ((255, 255, 255), 511),
        ((255, 0, 0), 7 * 64),
        ((0, 255, 0), 7 * 8),
        ((0, 0, 255), 7),
        ((31, 32, 63), 0 * 64 + 1 * 8 + 1),  # 255 / 8 is 31.875
        ((64, 127, 128), 2 * 64 + 3 * 8 + 4),
    ],
)
def test_colours_have_three_bits_a_channel_red_first(colour, label):
    pixels = torch.tensor(colour, dtype=torch.uint8).repeat(64)  # one 8 x 8 patch
    for one in (pixels, pixels / 255):
        assert objectives.colour_classes(one).tolist() == [label]
        assert objectives.colour_classes(one, cells=4).tolist() == [label] * 16


def test_a_mean_on_the_border_of_two_levels_belongs_to_the_upper_one():
    pixels = (
        torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(3).repeat(32)
    )  # mean 127.5, exactly 4 of 8
    assert objectives.colour_classes(pixels).tolist() == [4 * 64 + 4 * 8 + 4]


@pytest.mark.parametrize("cells", [1, 4])
def test_colour_classes_are_a_loops_and_those_of_pillows_box_filter(cells):
    pixels = torch.randint(256, (5, 16 * 16 * 3), dtype=torch.uint8, generator=seeded())
    found = objectives.colour_classes(pixels, cells)
    assert found.tolist() == [loop_colour_classes(p.numpy() / 255, cells) for p in pixels]
    assert objectives.colour_classes(pixels / 255, cells).tolist() == found.tolist()
    for patch, labels in zip(pixels.view(-1, 16, 16, 3), found, strict=True):
        channels = [
            Image.fromarray(patch[..., c].numpy()).convert("F").resize((cells, cells), Image.BOX)
            for c in range(3)
        ]
        r, g, b = (np.minimum(np.floor(np.asarray(channel) / 255 * 8), 7) for channel in channels)
        assert (64 * r + 8 * g + b).flatten().tolist() == labels.tolist()


def kinds_of(
    objective: MaskedPatchPrediction, embedded: torch.Tensor, generator
) -> tuple[list[list[str]], torch.Tensor]:
    """What happened to the embedding at every place, found by comparing values; and the corrupted places."""
    corrupted = objectives.random_order(embedded, generator)[:, : objective.count]
    after = objective.corrupt(embedded, corrupted, generator)
    kinds = []
    for old, new in zip(embedded, after, strict=True):
        is_mask = (new == objective.mask_token[0]).all(-1)
        source = [[m for m in range(len(old)) if torch.equal(old[m], row)] for row in new]
        kinds.append(
            ["mask" if is_mask[n] else "kept" if source[n] == [n] else "other" for n in range(len(old))]
        )
        assert all(
            is_mask[n] or len(source[n]) == 1 for n in range(len(old))
        )  # nothing but [mask] and the image's own patches
    return kinds, corrupted


@pytest.mark.parametrize(("share", "counts"), [(0.5, (12, 10, 1)), (0.15, (4, 3, 0))])
def test_the_counts_of_corrupted_masked_and_exchanged_patches_are_exact(headless, share, counts):
    objective = MaskedPatchPrediction(VisionTransformer(headless), share=share)
    kinds, corrupted = kinds_of(objective, torch.randn(6, 24, 32), seeded())
    count, masks, others = counts
    for row, places in zip(kinds, corrupted.tolist(), strict=True):
        assert len(set(places)) == count
        assert row.count("mask") == masks and row.count("other") == others
        assert all(kind == "kept" for place, kind in enumerate(row) if place not in places)


@pytest.mark.slow
def test_half_of_the_patches_are_corrupted_80_10_10_and_every_place_equally_often():
    config = ViTConfig(
        image_size=80, patch_size=8, width=8, depth=1, heads=1, mlp_dim=8, num_classes=0
    )  # 100 patches
    objective = MaskedPatchPrediction(VisionTransformer(config))
    kinds, corrupted = kinds_of(objective, torch.randn(60, 100, 8), seeded())
    flat = [kind for row in kinds for kind in row]
    assert corrupted.numel() / len(flat) == 0.5
    assert flat.count("mask") / corrupted.numel() == 0.8 and flat.count("other") / corrupted.numel() == 0.1
    often = corrupted.flatten().bincount(minlength=100) / 60
    assert often.min() > 0.25 and often.max() < 0.75  # 0.5 +- 0.065: within 4 deviations
    masked_at = torch.tensor([[kind == "mask" for kind in row] for row in kinds]).float().mean(0)
    assert masked_at.min() > 0.15 and masked_at.max() < 0.66


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_is_a_loop_over_every_corrupted_patch_kept_ones_too(encoder, randomised, target):
    objective = randomised(MaskedPatchPrediction(encoder, target), seed=2)
    patches, pixels = random_patches(encoder.config)
    loss, _ = objective(patches, pixels=pixels, generator=seeded(7))
    generator = seeded(7)
    embedded = encoder.patch_embed(patches)
    corrupted = torch.rand(2, 24, generator=generator).argsort(1)[:, :12]
    tokens = encoder.encode(encoder.prepend(objective.corrupt(embedded, corrupted, generator)))
    losses = []
    for image in range(2):
        for place in corrupted[image].tolist():
            answer = objective.predict(tokens[image, 1 + place])
            colours = pixels[image, place].numpy() / 255
            if target == "pixels":
                losses.append(
                    sum((a - c) ** 2 for a, c in zip(answer.tolist(), colours.tolist(), strict=True))
                    / len(colours)
                )
                continue
            cells = 1 if target == "mean_colour" else 4
            for logits, label in zip(answer.view(-1, 512), loop_colour_classes(colours, cells), strict=True):
                losses.append(-logits.log_softmax(-1)[label].item())
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    in_unit_range, _ = objective(patches, pixels=pixels / 255, generator=seeded(7))
    assert in_unit_range.item() == pytest.approx(loss.item(), abs=1e-6)
    wrong, _ = objective(
        patches, pixels=patches, generator=seeded(7)
    )  # targets made from the normalised pixels
    assert abs(wrong.item() - loss.item()) > 1e-2


def test_a_mask_token_knows_its_place_and_nothing_of_the_patch(encoder):
    objective = MaskedPatchPrediction(encoder)
    patches, _ = random_patches(encoder.config, batch=1)
    corrupted = torch.arange(12)[None]
    other = patches.clone()
    other[:, :8] += 1  # of 12 corrupted, the first ten are [mask]; none is another's donor here
    before, after = (
        objective.corrupt(encoder.patch_embed(p), corrupted, seeded(1)) for p in (patches, other)
    )
    assert torch.equal(before[:, :8], after[:, :8])
    z = encoder.prepend(before)[0, 1:]
    assert (z[0] - z[1]).abs().max() > 1e-3  # positions are added after the corruption


# ---- all of them -----------------------------------------------------------------------------------------


def build(name: str, config: ViTConfig) -> nn.Module:
    if name == "supervised":
        return Supervised(VisionTransformer(replace(config, num_classes=2)))
    encoder = VisionTransformer(replace(config, num_classes=0))
    return (
        MaskedAutoencoder(encoder, **SMALL_DECODER) if name == "mae" else MaskedPatchPrediction(encoder, name)
    )


def waves(count: int = 16, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 patches (B, 16, 192) of smooth images in different colours, and two classes: across or down."""
    generator = seeded(9)
    colours, phase = (
        torch.rand(count, 1, 1, 3, generator=generator),
        6 * torch.rand(count, 1, 1, 1, generator=generator),
    )
    along = torch.arange(size)[:, None, None].expand(size, size, 1)  # (H, W, 1)
    classes = torch.arange(count) % 2
    along = torch.stack([along if c else along.transpose(0, 1) for c in classes.tolist()])
    images = 0.7 * colours + 0.3 * (0.5 + 0.5 * torch.sin(along / 5 + phase))
    return patchify((255 * images).to(torch.uint8), 8), classes


# what each must reach: for reference, log 2 = 0.69, log 512 = 6.24, a variance of 0.04, and 1
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("supervised", 0.69, 0.1),
        ("mean_colour", 6.2, 2.0),
        ("colours_4x4", 6.2, 3.0),
        ("pixels", 0.2, 0.03),
        ("mae", 1.0, 0.5),
    ],
)
def test_every_objective_learns(name, start, end):
    config = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64)
    objective = build(name, config)
    pixels, classes = waves()
    patches, generator = (pixels / 255 - 0.5) / 0.25, seeded()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        loss, metrics = objective(patches, pixels=pixels, classes=classes, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(name, losses[0], losses[-5:], metrics)
    assert losses[0] > start - 0.01
    assert sum(losses[-5:]) / 5 < end
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    assert all(
        parameter.grad is not None for parameter in objective.parameters()
    )  # a data-parallel trainer waits for each


@pytest.mark.parametrize("name", ["mean_colour", "mae"])
def test_the_seed_decides_the_masks(tiny, name, randomised):
    objective = randomised(build(name, tiny))
    patches, pixels = random_patches(tiny)
    losses = [objective(patches, pixels=pixels, generator=seeded(seed))[0].item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    torch.manual_seed(0)  # without a generator, torch's own is used
    first = objective(patches, pixels=pixels)[0].item()
    torch.manual_seed(0)
    assert objective(patches, pixels=pixels)[0].item() == first


@pytest.mark.parametrize("name", ["supervised", *TARGETS, "mae"])
def test_the_encoder_of_every_objective_loads_into_a_classifier_with_another_head(tiny, name, randomised):
    objective = randomised(build(name, tiny))
    buffer = io.BytesIO()
    torch.save({k: v for k, v in objective.encoder.state_dict().items() if not k.startswith("head.")}, buffer)
    buffer.seek(0)
    classifier = VisionTransformer(replace(tiny, num_classes=7))
    missing, unexpected = classifier.load_state_dict(torch.load(buffer, weights_only=True), strict=False)
    assert (sorted(missing), unexpected) == (["head.bias", "head.weight"], [])
    patches, _ = random_patches(tiny)
    assert torch.equal(classifier.forward_features(patches), objective.encoder.forward_features(patches))


@pytest.mark.parametrize("name", ["supervised", *TARGETS, "mae"])
def test_bfloat16_autocast_gives_nearly_the_same_loss(tiny, name, randomised):
    objective = randomised(build(name, tiny))
    patches, pixels = random_patches(tiny)
    given = {"pixels": pixels, "classes": torch.tensor([0, 1])}
    expected, _ = objective(patches, **given, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = objective(patches, **given, generator=seeded())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
    found.backward()


@pytest.mark.parametrize("name", ["mean_colour", "mae"])
def test_an_objective_built_without_memory_is_the_same_once_filled(tiny, name):
    with torch.device("meta"):
        objective = build(name, tiny)
    objective.to_empty(device="cpu")
    for tensor in objective.state_dict().values():
        nn.init.constant_(tensor, 7.0)
    for module in (objective.encoder, objective.decoder if name == "mae" else objective):
        module.init_weights()
    expected = build(name, tiny).state_dict()
    for key, tensor in objective.state_dict().items():
        assert tensor.std().item() == pytest.approx(expected[key].std().item(), rel=0.5, abs=1e-5), key
        assert tensor.mean().item() == pytest.approx(expected[key].mean().item(), abs=0.05), key


def hybrid(config: ViTConfig) -> ViTConfig:
    return replace(config, resnet=())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: Supervised(VisionTransformer(c)), "num_classes above 0"),
        (lambda c: Supervised(VisionTransformer(replace(c, num_classes=5)), loss="hinge"), "loss is 'hinge'"),
        (
            lambda c: Supervised(VisionTransformer(replace(c, num_classes=5)), label_smoothing=1.0),
            "label_smoothing is 1.0",
        ),
        (
            lambda c: MaskedPatchPrediction(VisionTransformer(replace(c, num_classes=5))),
            "num_classes must be 0 .* it is 5",
        ),
        (lambda c: MaskedPatchPrediction(VisionTransformer(c), "hue"), "target is 'hue'"),
        (lambda c: MaskedPatchPrediction(VisionTransformer(c), share=0.01), "masks 0 patches .* 1 to 24"),
        (lambda c: MaskedPatchPrediction(VisionTransformer(c), share=1.1), "masks 26 patches .* 1 to 24"),
        (
            lambda c: MaskedPatchPrediction(
                VisionTransformer(replace(c, image_size=28, patch_size=14)), "colours_4x4"
            ),
            "4 divides",
        ),
        (
            lambda c: MaskedAutoencoder(VisionTransformer(replace(c, num_classes=5))),
            "num_classes must be 0 .* it is 5",
        ),
        (
            lambda c: MaskedPatchPrediction(VisionTransformer(replace(c, pool="map"))),
            "pool must be 'token' or 'avg'",
        ),
        (
            lambda c: MaskedAutoencoder(VisionTransformer(replace(c, pool="avg", pool_norm=True))),
            "pool_norm must be False",
        ),
        (
            lambda c: MaskedAutoencoder(VisionTransformer(replace(c, representation_size=8))),
            "representation_size must be 0",
        ),
        (lambda c: MaskedPatchPrediction(VisionTransformer(hybrid(c))), "ResNet looks into the masked ones"),
        (lambda c: MaskedAutoencoder(VisionTransformer(hybrid(c))), "ResNet looks into the masked ones"),
        (
            lambda c: MaskedAutoencoder(VisionTransformer(replace(c, position_at="every-layer"))),
            "position_at must be 'stem'",
        ),
        (
            lambda c: MaskedAutoencoder(VisionTransformer(replace(c, position_at="every-layer-shared"))),
            "must be 'stem'",
        ),
        (lambda c: MaskedAutoencoder(VisionTransformer(c), share=1.0), "masks 24 patches .* 1 to 23"),
        (lambda c: MaskedAutoencoder(VisionTransformer(c), share=0.0), "masks 0 patches .* 1 to 23"),
        (lambda c: MaskedAutoencoder(VisionTransformer(c), width=30, heads=3), "multiple of 4"),
        (lambda c: MaskedAutoencoder(VisionTransformer(c), width=30, heads=4), "not a multiple of heads"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(headless, make, message):
    with pytest.raises(ModelError, match=message) as caught:
        make(headless)
    assert "\n" not in str(caught.value)


def test_the_share_of_visible_patches_is_not_lost_to_rounding():
    config = ViTConfig(image_size=(8, 80), patch_size=8, width=8, depth=1, heads=1, mlp_dim=8, num_classes=0)
    assert (
        MaskedAutoencoder(VisionTransformer(config), share=0.9, **SMALL_DECODER).visible == 1
    )  # int(10 * (1 - 0.9)) is 0


def test_explained_is_0_for_the_mean_and_1_for_a_perfect_answer():
    target = torch.randn(4, 5, generator=seeded())
    assert objectives.regression_loss(target.mean().expand_as(target), target)[1][
        "explained"
    ].item() == pytest.approx(0, abs=1e-6)
    loss, metrics = objectives.regression_loss(target, target)
    assert (loss.item(), metrics["explained"].item()) == (0, 1)
    assert F.mse_loss(target, torch.zeros_like(target)) > 0
