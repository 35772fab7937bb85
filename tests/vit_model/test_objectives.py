import io
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import PatchEmbed as TimmPatchEmbed
from torch import nn

from vit_model import objectives
from vit_model.config import ModelError, ViTConfig
from vit_model.model import VisionTransformer
from vit_model.objectives import MaskedAutoencoder, MaskedPatchPrediction, Supervised
from vit_model.patches import patchify, unpatchify

SMALL_DECODER = {"width": 24, "depth": 2, "heads": 2}
TARGETS = ["mean_colour", "colours_4x4", "pixels"]


@pytest.fixture
def headless(tiny) -> ViTConfig:
    return replace(tiny, num_classes=0)  # 24 patches of 8 x 8 pixels, 4 down and 6 across


@pytest.fixture
def encoder(headless, randomised) -> VisionTransformer:
    return randomised(VisionTransformer(headless))


@pytest.fixture
def mae(encoder, randomised) -> MaskedAutoencoder:
    return randomised(MaskedAutoencoder(encoder, **SMALL_DECODER), seed=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture_patches(config: ViTConfig, batch: int = 2, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised floats and the uint8 patches that they come from."""
    pixels = torch.randint(256, (batch, config.num_patches, config.patch_dim), dtype=torch.uint8, generator=seeded(seed))
    return (pixels / 255 - 0.5) / 0.25, pixels


# ---- supervised -----------------------------------------------------------------------------------------------------------


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
            losses.append(-sum(t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in zip(sigmoids, smooth, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_supervised_losses_are_their_formulas_for_ids_and_for_mixed_targets(tiny, randomised, kind, smoothing):
    objective = Supervised(randomised(VisionTransformer(tiny)), loss=kind, label_smoothing=smoothing)
    patches, _ = picture_patches(tiny, batch=4)
    logits = objective.encoder(patches).detach()
    ids = torch.tensor([3, 0, 4, 1])
    one_hot = torch.eye(5)[ids]
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    for classes, targets in ((ids, one_hot), (one_hot, one_hot), (mixed, mixed)):
        loss, metrics = objective(patches, classes=classes)
        assert loss.item() == pytest.approx(loop_cross_entropy(logits, targets, kind, smoothing), abs=1e-5)
        right = sum(int(row.argmax()) == int(id) for row, id in zip(logits, ids, strict=True))
        assert metrics["accuracy"].item() == right / 4  # of a mixed image, the class that it has most of


# ---- masked patch prediction ----------------------------------------------------------------------------------------------


def loop_colour_classes(patch: np.ndarray, cells: int) -> list[int]:
    """(P*P*3,) pixels in [0, 1]"""
    side = math.isqrt(len(patch) // 3)
    image, step, labels = patch.reshape(side, side, 3), side // cells, []
    for top in range(0, side, step):
        for left in range(0, side, step):
            label = 0
            for channel in range(3):
                values = [image[y, x, channel] for y in range(top, top + step) for x in range(left, left + step)]
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
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(3).repeat(32)  # mean 127.5, exactly 4 of 8
    assert objectives.colour_classes(pixels).tolist() == [4 * 64 + 4 * 8 + 4]


@pytest.mark.parametrize("cells", [1, 4])
def test_colour_classes_are_a_loops_and_those_of_pillows_box_filter(cells):
    pixels = torch.randint(256, (5, 16 * 16 * 3), dtype=torch.uint8, generator=seeded())
    found = objectives.colour_classes(pixels, cells)
    assert found.tolist() == [loop_colour_classes(p.numpy() / 255, cells) for p in pixels]
    assert objectives.colour_classes(pixels / 255, cells).tolist() == found.tolist()
    for patch, labels in zip(pixels.view(-1, 16, 16, 3), found, strict=True):
        channels = [Image.fromarray(patch[..., c].numpy()).convert("F").resize((cells, cells), Image.BOX) for c in range(3)]
        r, g, b = (np.minimum(np.floor(np.asarray(channel) / 255 * 8), 7) for channel in channels)
        assert (64 * r + 8 * g + b).flatten().tolist() == labels.tolist()


def kinds_of(objective: MaskedPatchPrediction, embedded: torch.Tensor, generator) -> tuple[list[list[str]], torch.Tensor]:
    """What happened to the embedding at every place, found by comparing values; and the corrupted places."""
    corrupted = objectives.random_order(embedded, generator)[:, : objective.count]
    after = objective.corrupt(embedded, corrupted, generator)
    kinds = []
    for old, new in zip(embedded, after, strict=True):
        is_mask = (new == objective.mask_token[0]).all(-1)
        source = [[m for m in range(len(old)) if torch.equal(old[m], row)] for row in new]
        kinds.append(["mask" if is_mask[n] else "kept" if source[n] == [n] else "other" for n in range(len(old))])
        assert all(is_mask[n] or len(source[n]) == 1 for n in range(len(old)))  # nothing but [mask] and the image's own patches
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


def test_half_of_the_patches_are_corrupted_80_10_10_and_every_place_equally_often():
    config = ViTConfig(image_size=80, patch_size=8, width=8, depth=1, heads=1, mlp_dim=8, num_classes=0)  # 100 patches
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
    patches, pixels = picture_patches(encoder.config)
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
                losses.append(sum((a - c) ** 2 for a, c in zip(answer.tolist(), colours.tolist(), strict=True)) / len(colours))
                continue
            cells = 1 if target == "mean_colour" else 4
            for logits, label in zip(answer.view(-1, 512), loop_colour_classes(colours, cells), strict=True):
                losses.append(-logits.log_softmax(-1)[label].item())
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    in_unit_range, _ = objective(patches, pixels=pixels / 255, generator=seeded(7))
    assert in_unit_range.item() == pytest.approx(loss.item(), abs=1e-6)
    wrong, _ = objective(patches, pixels=patches, generator=seeded(7))  # targets made from the normalised pixels
    assert abs(wrong.item() - loss.item()) > 1e-2


def test_a_mask_token_knows_its_place_and_nothing_of_the_patch(encoder):
    objective = MaskedPatchPrediction(encoder)
    patches, _ = picture_patches(encoder.config, batch=1)
    corrupted = torch.arange(12)[None]
    other = patches.clone()
    other[:, :8] += 1  # of 12 corrupted, the first ten are [mask]; none is another's donor here
    before, after = (objective.corrupt(encoder.patch_embed(p), corrupted, seeded(1)) for p in (patches, other))
    assert torch.equal(before[:, :8], after[:, :8])
    z = encoder.prepend(before)[0, 1:]
    assert (z[0] - z[1]).abs().max() > 1e-3  # positions are added after the corruption


# ---- masked autoencoder ---------------------------------------------------------------------------------------------------


class PublishedMAE(nn.Module):
    """Masked autoencoder written from the published algorithm on timm's layers, images in, noise given."""

    def __init__(self, config: ViTConfig, width: int, depth: int, heads: int):
        super().__init__()
        self.config, D = config, config.width
        self.patch_embed = TimmPatchEmbed(config.image_size, config.patch_size, 3, D)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, D)), nn.Parameter(torch.zeros(1, 25, D))
        self.blocks = nn.ModuleList(self.block(D, config.heads, config.mlp_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.decoder = nn.Module()
        self.decoder.embed, self.decoder.predict = nn.Linear(D, width), nn.Linear(width, config.patch_dim)
        self.decoder.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder.blocks = nn.ModuleList(self.block(width, heads, 4 * width) for _ in range(depth))
        self.decoder.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder.register_buffer("positions", torch.tensor(self.sincos(width), dtype=torch.float32)[None])

    def block(self, width, heads, mlp_dim):
        return TimmBlock(width, heads, mlp_ratio=mlp_dim / width, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))

    def sincos(self, width):
        table = [[0.0] * width]
        for y in range(self.config.grid[0]):
            for x in range(self.config.grid[1]):
                angles = [[at / 10000 ** (i / (width / 4)) for i in range(width // 4)] for at in (x, y)]
                table.append([f(a) for side in angles for f in (math.sin, math.cos) for a in side])
        return table

    def forward(self, images, noise):
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        B, N, _ = x.shape
        keep = int(N * 0.25)
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        x = torch.stack([x[b, shuffle[b, :keep]] for b in range(B)])
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).repeat(B, 1, 1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder.embed(self.norm(x))
        tokens = torch.cat([x[:, 1:], self.decoder.mask_token.repeat(B, N - keep, 1)], dim=1)
        tokens = torch.stack([tokens[b, restore[b]] for b in range(B)])
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder.positions
        for block in self.decoder.blocks:
            x = block(x)
        predicted = self.decoder.predict(self.decoder.norm(x))[:, 1:]
        return self.loss(images, predicted, shuffle[:, keep:])

    def loss(self, images, predicted, masked):
        p, columns, total, count = self.config.patch_size, self.config.grid[1], 0.0, 0
        for b in range(len(images)):
            for n in masked[b].tolist():
                top, left = n // columns * p, n % columns * p
                target = images[b, :, top : top + p, left : left + p].permute(1, 2, 0).flatten()
                mean = target.sum() / len(target)
                variance = ((target - mean) ** 2).sum() / (len(target) - 1)
                total = total + ((predicted[b, n] - (target - mean) / (variance + 1e-6) ** 0.5) ** 2).sum() / len(target)
                count += 1
        return total / count


def published_twin(mae: MaskedAutoencoder) -> PublishedMAE:
    twin = PublishedMAE(mae.encoder.config, **SMALL_DECODER)
    state = {key.removeprefix("encoder."): value.clone() for key, value in mae.state_dict().items()}
    assert (state.pop("decoder.positions") - twin.decoder.positions).abs().max() < 1e-6
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["decoder.positions"], [])
    return twin


def both_losses(mae: MaskedAutoencoder) -> tuple[torch.Tensor, torch.Tensor, PublishedMAE]:
    """Ours and the published algorithm's, from the same random numbers."""
    config, twin = mae.encoder.config, published_twin(mae)
    patches, _ = picture_patches(config, batch=3)
    images = unpatchify(patches, config.grid, config.patch_size).permute(0, 3, 1, 2)
    ours, _ = mae(patches, generator=seeded(3))
    return ours, twin(images, torch.rand(3, 24, generator=seeded(3))), twin


def test_loss_and_every_gradient_are_the_published_algorithms(mae):
    ours, published, twin = both_losses(mae)
    assert ours.item() == pytest.approx(published.item(), abs=1e-6)
    ours.backward()
    published.backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()}
    for name, parameter in mae.named_parameters():
        gradient = expected.pop(name.removeprefix("encoder."))
        assert gradient.abs().max() > (1e-4 if "qkv.bias" not in name else 0), name  # there is something to compare
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5, msg=name)
    assert not expected


def positions_after_masking(self, patches, visible):
    z = objectives.take(self.encoder.patch_embed(patches), visible)
    places = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.arange(self.visible)])
    cls = self.encoder.cls_token.expand(len(z), -1, -1)
    return self.encoder.encode(torch.cat([cls, z], dim=1) + self.encoder.pos_embed[:, places])


def loss_over_all_patches(self, painted, patches, masked):
    return objectives._regression(painted, objectives.standardised(patches))


def restored_in_the_wrong_order(self, latent, restore, forward=objectives.Decoder.forward):
    return forward(self, latent, restore.argsort(dim=1))


def biased_variance(patches):
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    return (patches - mean) / (variance + 1e-6).sqrt()


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (MaskedAutoencoder, "encode_visible", positions_after_masking),
        (MaskedAutoencoder, "score", loss_over_all_patches),
        (objectives.Decoder, "forward", restored_in_the_wrong_order),
        (objectives, "standardised", biased_variance),
        (objectives, "standardised", lambda patches: patches),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_wrong_variant_is_caught_by_the_tolerance(mae, monkeypatch, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    ours, published, _ = both_losses(mae)
    assert abs(ours.item() - published.item()) > 1e-4


def test_the_decoders_positions_are_maes_and_not_mocos_with_zero_rows_for_the_prefix(headless):
    config = replace(headless, width=24, heads=2)
    table = objectives.Decoder(config, latent_width=32, prefix=3).positions
    assert table.shape == (1, 27, 24) and not table[:, :3].any() and table[:, 3:].any(-1).all()
    x, y, i, quarter = 5, 1, 3, 6
    row = table[0, 3 + 6 * y + x]
    assert row[i].item() == pytest.approx(math.sin(x / 10000 ** (i / quarter)))
    assert row[i].item() != pytest.approx(math.sin(x / 10000 ** (i / (quarter - 1))), abs=1e-3)
    assert row[3 * quarter + i].item() == pytest.approx(math.cos(y / 10000 ** (i / quarter)))


def test_the_encoder_sees_the_visible_patches_only(mae):
    patches, _ = picture_patches(mae.encoder.config)
    visible = torch.tensor([[4, 17, 2, 9, 23, 0]] * 2)
    latent = mae.encode_visible(patches, visible)
    assert latent.shape == (2, 1 + 6, 32)
    for place in range(24):
        changed = patches.clone()
        changed[:, place] += 1
        same = torch.equal(mae.encode_visible(changed, visible), latent)
        assert same == (place not in visible[0].tolist())


def test_the_decoder_puts_every_token_back_in_its_place(mae, monkeypatch):
    """With positions of zero and no blocks, what is painted at a place is a function of the token that belongs there."""
    mae.decoder.positions.zero_()
    mae.decoder.blocks = nn.Sequential()
    patches, _ = picture_patches(mae.encoder.config)
    order = objectives.random_order(patches, seeded(4))
    latent = mae.encode_visible(patches, order[:, :6])
    painted = mae.decoder(latent, order.argsort(dim=1))
    rest = mae.decoder.predict(mae.decoder.norm(mae.decoder.mask_token))[0, 0]
    for image in range(2):
        alone = mae.decoder.predict(mae.decoder.norm(mae.decoder.embed(latent[image, 1:])))
        for place in range(24):
            at = order[image].tolist().index(place)
            torch.testing.assert_close(painted[image, place], alone[at] if at < 6 else rest)


def test_what_is_painted_in_a_hole_depends_on_where_the_hole_is(mae):
    patches, _ = picture_patches(mae.encoder.config)
    order = objectives.random_order(patches, seeded(4))
    latent, holes = mae.encode_visible(patches, order[:, :6]), order[0, 6:]
    painted = mae.decoder(latent, order.argsort(dim=1))[0, holes]
    mae.decoder.positions.zero_()
    everywhere_the_same = mae.decoder(latent, order.argsort(dim=1))[0, holes]
    assert (painted[0] - painted[1:]).abs().amax(-1).min() > 1e-3
    assert (everywhere_the_same[0] - everywhere_the_same[1:]).abs().max() < 1e-6


# ---- all of them ----------------------------------------------------------------------------------------------------------


def build(name: str, config: ViTConfig) -> nn.Module:
    if name == "supervised":
        return Supervised(VisionTransformer(replace(config, num_classes=2)))
    encoder = VisionTransformer(replace(config, num_classes=0))
    return MaskedAutoencoder(encoder, **SMALL_DECODER) if name == "mae" else MaskedPatchPrediction(encoder, name)


def waves(count: int = 16, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 patches (B, 16, 192) of smooth pictures in different colours, and two classes: across or down."""
    generator = seeded(9)
    colours, phase = torch.rand(count, 1, 1, 3, generator=generator), 6 * torch.rand(count, 1, 1, 1, generator=generator)
    along = torch.arange(size)[:, None, None].expand(size, size, 1)  # (H, W, 1)
    classes = torch.arange(count) % 2
    along = torch.stack([along if c else along.transpose(0, 1) for c in classes.tolist()])
    pictures = 0.7 * colours + 0.3 * (0.5 + 0.5 * torch.sin(along / 5 + phase))
    return patchify((255 * pictures).to(torch.uint8), 8), classes


# what each must reach: for reference, log 2 = 0.69, log 512 = 6.24, a variance of 0.04, and 1
@pytest.mark.parametrize(
    ("name", "start", "end"),
    [("supervised", 0.69, 0.1), ("mean_colour", 6.2, 2.0), ("colours_4x4", 6.2, 3.0), ("pixels", 0.2, 0.03), ("mae", 1.0, 0.5)],
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
    assert all(parameter.grad is not None for parameter in objective.parameters())  # a data-parallel trainer waits for each


@pytest.mark.parametrize("name", ["mean_colour", "mae"])
def test_the_seed_decides_the_masks(tiny, name, randomised):
    objective = randomised(build(name, tiny))
    patches, pixels = picture_patches(tiny)
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
    patches, _ = picture_patches(tiny)
    assert torch.equal(classifier.forward_features(patches), objective.encoder.forward_features(patches))


@pytest.mark.parametrize("name", ["supervised", *TARGETS, "mae"])
def test_bfloat16_autocast_gives_nearly_the_same_loss(tiny, name, randomised):
    objective = randomised(build(name, tiny))
    patches, pixels = picture_patches(tiny)
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
        (lambda c: Supervised(VisionTransformer(replace(c, num_classes=5)), label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda c: MaskedPatchPrediction(VisionTransformer(replace(c, num_classes=5))), "num_classes must be 0 .* it is 5"),
        (lambda c: MaskedPatchPrediction(VisionTransformer(c), "hue"), "target is 'hue'"),
        (lambda c: MaskedPatchPrediction(VisionTransformer(c), share=0.01), "masks 0 patches .* 1 to 24"),
        (lambda c: MaskedPatchPrediction(VisionTransformer(c), share=1.1), "masks 26 patches .* 1 to 24"),
        (lambda c: MaskedPatchPrediction(VisionTransformer(replace(c, image_size=28, patch_size=14)), "colours_4x4"), "4 divides"),
        (lambda c: MaskedAutoencoder(VisionTransformer(replace(c, num_classes=5))), "num_classes must be 0 .* it is 5"),
        (lambda c: MaskedPatchPrediction(VisionTransformer(replace(c, pool="map"))), "pool must be 'token' or 'avg'"),
        (lambda c: MaskedAutoencoder(VisionTransformer(replace(c, pool="avg", pool_norm=True))), "pool_norm must be False"),
        (lambda c: MaskedAutoencoder(VisionTransformer(replace(c, representation_size=8))), "representation_size must be 0"),
        (lambda c: MaskedPatchPrediction(VisionTransformer(hybrid(c))), "ResNet looks into the masked ones"),
        (lambda c: MaskedAutoencoder(VisionTransformer(hybrid(c))), "ResNet looks into the masked ones"),
        (lambda c: MaskedAutoencoder(VisionTransformer(replace(c, position_at="every-layer"))), "position_at must be 'stem'"),
        (lambda c: MaskedAutoencoder(VisionTransformer(replace(c, position_at="every-layer-shared"))), "must be 'stem'"),
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
    assert MaskedAutoencoder(VisionTransformer(config), share=0.9, **SMALL_DECODER).visible == 1  # int(10 * (1 - 0.9)) is 0


def test_explained_is_0_for_the_mean_and_1_for_a_perfect_answer():
    target = torch.randn(4, 5, generator=seeded())
    assert objectives._regression(target.mean().expand_as(target), target)[1]["explained"].item() == pytest.approx(0, abs=1e-6)
    loss, metrics = objectives._regression(target, target)
    assert (loss.item(), metrics["explained"].item()) == (0, 1)
    assert F.mse_loss(target, torch.zeros_like(target)) > 0
