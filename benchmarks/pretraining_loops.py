"""Pre-train without classes and fine-tune in plain loops over pixels in memory: ours, and timm's.

Of the trainer they use the groups of parameters and the learning rate's curve alone, which have tests of
their own. benchmarks/pretraining.py and benchmarks/learning.py have the loops' arms.
"""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from benchmarks.learning_data import LearningSet, read
from wordsworth.pipeline.training.learning_rate import learning_rate
from wordsworth.pipeline.training.optimizer import parameter_groups
from wordsworth.vit_model.config import ViTConfig
from wordsworth.vit_model.few_shot import draw, fit_probe
from wordsworth.vit_model.masked_autoencoder import MaskedAutoencoder, init_as_published
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.objectives import MaskedPatchPrediction, Outcome, regression_loss, take
from wordsworth.vit_model.patches import patchify
from wordsworth.vit_model.position import sincos_2d

State = dict[str, torch.Tensor]

MIRRORED = {"clothing", "shapes"}  # sets in which a mirrored image has the same class
DECODER = (64, 2, 4)  # width, depth and heads
WARMUP = 0.1
CLIP = 1.0
PROBE_L2 = 30.0
NEIGHBOURS = 10
PROBED = 3000  # images of a set that probe and knn use, at most


@dataclass(frozen=True, kw_only=True)
class Size:
    """Hold a model's size. The paper's head and MLP follow from it."""

    image_size: int
    patch_size: int
    width: int = 96
    depth: int = 3
    heads: int = 3


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Hold the settings of a pre-training.

    Attributes:
        model: "ours", or "timm" for the independent masked autoencoder.
        start: initial weights of our encoder: "jax", "patches" (as "jax", but patches smaller by sqrt(3), as
            timm's), "mae" (MAE's own), "timm" (matrices of 0.02).
        target: of masked-patch, one of objectives.TARGETS.
        share: masked share of the patches.
        standardised: MAE's target is each patch less its mean, by its deviation; else the normalised pixels.
        crop_scale: smallest share of the area that a random crop has.
    """

    objective: str = "mae"
    model: str = "ours"
    start: str = "jax"
    position: str = "learned-1d"
    target: str = "mean_colour"
    share: float = 0.75
    standardised: bool = True
    steps: int = 1500
    batch_size: int = 64
    lr: float = 1e-3
    beta2: float = 0.95
    weight_decay: float = 0.05
    crop_scale: float = 0.4


@dataclass(frozen=True, kw_only=True)
class Fine:
    """Hold the settings of a fine-tuning.

    Attributes:
        pool: "token", "avg" of the normalised patches, or "avg-norm" for the norm behind the mean (fc_norm).
        new_norm: the final norm begins anew.
        head: deviation of the new head; 0 for zeros.
    """

    pool: str = "token"
    new_norm: bool = False
    head: float = 0.0
    layer_decay: float = 1.0
    lr: float = 1e-3
    steps: int = 300
    batch_size: int = 40
    weight_decay: float = 0.05
    warmup: float = WARMUP
    label_smoothing: float = 0.1
    crop_scale: float = 0.7


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Hold one way to a model.

    Attributes:
        pre: the pre-training; None for random weights.
        fine: the fine-tuning.
        position: of random weights.
    """

    pre: Masked | None
    fine: Fine = Fine()
    position: str = "learned-1d"


# ---- pixels ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Hold a set in memory: images uint8 (M, 3, H, W), classes int64 (M,)."""

    images: torch.Tensor
    classes: torch.Tensor
    val_images: torch.Tensor
    val_classes: torch.Tensor
    size: Size
    mirrored: bool


def load(found: LearningSet) -> Pixels:
    """Read a set from its shards."""
    images, classes = read(found.train)
    val_images, val_classes = read(found.val, found.image_size)
    return Pixels(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        classes=torch.from_numpy(classes),
        val_images=torch.from_numpy(val_images).permute(0, 3, 1, 2).contiguous(),
        val_classes=torch.from_numpy(val_classes),
        size=Size(image_size=found.image_size, patch_size=found.patch_size),
        mirrored=found.name in MIRRORED,
    )


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Return floats from -1 to 1."""
    return (images.float() / 255 - 0.5) / 0.5


def crops(images: torch.Tensor, pixels: Pixels, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Return a random crop of each image, mirrored or not: (B, 3, H, W) -> (B, 3, S, S), 0 to 255."""
    B, side = len(images), pixels.size.image_size
    area = torch.empty(B).uniform_(scale, 1, generator=generator)
    ratio = torch.empty(B).uniform_(-math.log(4 / 3), math.log(4 / 3), generator=generator).exp()
    across, down = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 2] = (2 * torch.rand(B, generator=generator) - 1) * (1 - across)
    theta[:, 1, 2] = (2 * torch.rand(B, generator=generator) - 1) * (1 - down)
    turned = torch.ones(B)
    if pixels.mirrored:
        turned[torch.rand(B, generator=generator) < 0.5] = -1
    theta[:, 0, 0], theta[:, 1, 1] = across * turned, down
    grid = F.affine_grid(theta, [B, 3, side, side], align_corners=False)
    found = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return found.round().clamp(0, 255)


def batches(count: int, batch_size: int, generator: torch.Generator, drops: bool) -> Iterator[list[int]]:
    """Return places of batches for ever.

    Args:
        drops: leave out what does not fill a last batch, or take it into the next epoch.
    """
    order: list[int] = []
    while True:
        if len(order) < batch_size:
            order = ([] if drops else order) + torch.randperm(count, generator=generator).tolist()
        yield order[:batch_size]
        order = order[batch_size:]


# ---- models ------------------------------------------------------------------------------------------------


def our_config(size: Size, position: str = "learned-1d", **changes: Any) -> ViTConfig:
    config = ViTConfig(
        image_size=size.image_size,
        patch_size=size.patch_size,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        mlp_dim=4 * size.width,
        num_classes=0,
        position=position,
    )
    return replace(config, **changes)


def timm_model(size: Size, position: str, classes: int = 0, pool: str = "token") -> nn.Module:
    model = TimmVisionTransformer(
        img_size=size.image_size,
        patch_size=size.patch_size,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=classes,
        global_pool=pool,  # "avg" has a new norm behind the mean
    )
    if position == "sincos-2d-mae":
        grid = sincos_2d(model.patch_embed.grid_size, size.width, mae=True)
        model.pos_embed = nn.Parameter(F.pad(grid, (0, 0, 1, 0)), requires_grad=False)
    return model


@torch.no_grad()
def begin(model: VisionTransformer, start: str) -> None:
    """Change the initial weights of a model of ours from the JAX code's to another's."""
    if start == "mae":
        init_as_published(model)
    if start in ("patches", "timm"):
        model.patch_embed.proj.weight.div_(math.sqrt(3))
    for linear in model.blocks.modules():
        if isinstance(linear, nn.Linear) and start == "timm":
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)


class IndependentMAE(nn.Module):
    """Hold a masked autoencoder around timm's ViT that shares no module with ours."""

    def __init__(self, model: nn.Module, share: float):
        super().__init__()
        self.encoder = model
        self.visible = int(model.patch_embed.num_patches * (1 - share))
        width, depth, heads = DECODER
        self.embed = nn.Linear(model.embed_dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        table = sincos_2d(model.patch_embed.grid_size, width, mae=True)
        self.register_buffer("positions", F.pad(table, (0, 0, 1, 0)))
        self.blocks = nn.Sequential(*(TimmBlock(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.paint = nn.Linear(width, 3 * model.patch_embed.patch_size[0] ** 2)
        for linear in self.modules():
            if isinstance(linear, nn.Linear) and linear not in set(model.modules()):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)

    def forward(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the loss for normalised images (B, 3, S, S)."""
        model = self.encoder
        x = model.patch_embed(images) + model.pos_embed[:, 1:]
        B, N, D = x.shape
        order = torch.rand(B, N, generator=generator).argsort(1)
        seen = order[:, : self.visible]
        x = torch.gather(x, 1, seen[..., None].expand(-1, -1, D))
        first = (model.cls_token + model.pos_embed[:, :1]).expand(B, -1, -1)
        y = self.embed(model.norm(model.blocks(torch.cat([first, x], 1))))
        full = torch.cat([y[:, 1:], self.mask_token.expand(B, N - self.visible, -1)], 1)
        full = torch.gather(full, 1, order.argsort(1)[..., None].expand(-1, -1, y.shape[-1]))
        painted = self.paint(self.norm(self.blocks(torch.cat([y[:, :1], full], 1) + self.positions)))[:, 1:]
        target = patchify(images.permute(0, 2, 3, 1), model.patch_embed.patch_size[0])
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        masked = torch.ones(B, N).scatter_(1, seen, 0)
        return (((painted - target) ** 2).mean(-1) * masked).sum() / masked.sum()


# ---- loops -------------------------------------------------------------------------------------------------


class Loop:
    """Make steps of AdamW with warm-up, a cosine and a clip."""

    def __init__(self, model: nn.Module, asked: Masked | Fine):
        layer_decay = asked.layer_decay if isinstance(asked, Fine) else 1.0
        beta2 = asked.beta2 if isinstance(asked, Masked) else 0.999
        groups = parameter_groups(model, asked.weight_decay, layer_decay)
        self.model = model
        self.asked = asked
        self.optimizer = torch.optim.AdamW(groups, asked.lr, betas=(0.9, beta2), fused=True)
        self.number = 0

    def step(self, loss: torch.Tensor) -> None:
        rate = learning_rate(self.number, self.asked.steps, self.asked.lr, WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.number += 1


def pretrained(asked: Masked, pixels: Pixels) -> tuple[State, dict[str, Any]]:
    """Pre-train on all images, and return the encoder's tensors and what is known of them."""
    torch.manual_seed(0)
    objective = build(asked, pixels.size).train()
    generator = torch.Generator().manual_seed(0)
    loop, learned, losses, start = Loop(objective, asked), [], [], time.perf_counter()
    places = batches(len(pixels.images), asked.batch_size, generator, drops=True)
    for _ in range(asked.steps):
        images = crops(pixels.images[next(places)], pixels, asked.crop_scale, generator)
        if asked.model == "timm":
            loss = objective(normalised(images), generator)
            known = 1 - loss.item()
        else:
            patches = patchify(images.permute(0, 2, 3, 1), pixels.size.patch_size)
            loss, metrics = objective(normalised(patches), pixels=patches.byte(), generator=generator)
            known = next(iter(metrics.values())).item()
        loop.step(loss)
        learned.append(known)
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    explained = statistics.mean(learned[-asked.steps // 6 :])
    found = {"explained": explained, "pre_seconds": seconds, **probes(objective.encoder, pixels)}
    return objective.encoder.state_dict(), found | curve(losses)


def curve(losses: list[float]) -> dict[str, float]:
    """Return the loss at a tenth, a half and the end of a training: means of a twentieth of the steps."""
    span = max(1, len(losses) // 20)
    ends = {"loss_10": len(losses) // 10, "loss_50": len(losses) // 2, "loss_100": len(losses)}
    return {name: statistics.mean(losses[max(0, end - span) : end]) for name, end in ends.items()}


def build(asked: Masked, size: Size) -> nn.Module:
    if asked.model == "timm":
        return IndependentMAE(timm_model(size, asked.position), asked.share)
    encoder = VisionTransformer(our_config(size, asked.position))
    begin(encoder, asked.start)
    if asked.objective == "masked-patch":
        return MaskedPatchPrediction(encoder, asked.target, asked.share)
    kind = MaskedAutoencoder if asked.standardised else RawPixels
    return kind(encoder, asked.share, *DECODER)


class RawPixels(MaskedAutoencoder):
    """Paint the normalised pixels, not each patch less its mean by its deviation."""

    def score(self, painted: torch.Tensor, patches: torch.Tensor, masked: torch.Tensor) -> Outcome:
        """Return loss and metrics over the masked patches."""
        return regression_loss(take(painted, masked), take(patches, masked))


@torch.inference_mode()
def features(encoder: nn.Module, images: torch.Tensor, size: Size) -> torch.Tensor:
    """Return the mean of the patches of each image: (M, 3, H, W) -> (M, D)."""
    found = []
    for part in images.split(250):
        resized = F.interpolate(part.float(), [size.image_size] * 2, mode="bicubic", antialias=True)
        found.append(encoder.forward_features(normalised(resized.clamp(0, 255)))[:, 1:].mean(1))
    return torch.cat(found)


def probes(encoder: nn.Module, pixels: Pixels) -> dict[str, float]:
    """Return what linear probe and nearest neighbours make of frozen features, in percent."""
    encoder.eval()
    train = features(encoder, pixels.images[:PROBED], pixels.size)
    val = features(encoder, pixels.val_images[:PROBED], pixels.size)
    classes, val_classes = pixels.classes[:PROBED], pixels.val_classes[:PROBED]
    right = []
    for seed in range(5):
        few = draw(classes, 10, seed)
        said = fit_probe(train[few], classes[few], PROBE_L2).predict(val)
        right.append((said == val_classes).float().mean())
    mean, std = train.mean(0), train.std(0) + 1e-5
    like = F.normalize((val - mean) / std, dim=1) @ F.normalize((train - mean) / std, dim=1).T
    near = classes[like.topk(NEIGHBOURS, 1).indices].mode(1).values
    return {
        "probe": 100 * torch.stack(right).mean().item(),
        "knn": 100 * (near == val_classes).float().mean().item(),
    }


def fine_tuned(arm: Arm, state: State | None, pixels: Pixels, shots: int, seed: int) -> float:
    """Fine-tune on a few images of each class, and return the accuracy on the held-out images in percent."""
    torch.manual_seed(1000 + seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    fine, few = arm.fine, torch.from_numpy(draw(pixels.classes, shots, seed))
    model = classifier(arm, state, pixels).train()
    loop = Loop(model, fine)
    places = batches(len(few), fine.batch_size, generator, drops=False)
    for _ in range(fine.steps):
        at = few[next(places)]
        logits = model(normalised(crops(pixels.images[at], pixels, fine.crop_scale, generator)))
        loop.step(F.cross_entropy(logits, pixels.classes[at], label_smoothing=fine.label_smoothing))
    model.eval()
    with torch.inference_mode():
        said = torch.cat([model(normalised(part)).argmax(-1) for part in pixels.val_images.split(250)])
    return 100 * (said == pixels.val_classes).float().mean().item()


def classifier(arm: Arm, state: State | None, pixels: Pixels) -> nn.Module:
    """Return the encoder under a new head."""
    classes, fine, pre = int(pixels.classes.max()) + 1, arm.fine, arm.pre
    if pre and pre.model == "timm":
        model = timm_model(pixels.size, pre.position, classes, "token" if fine.pool == "token" else "avg")
    else:
        pooling = {"pool": "token" if fine.pool == "token" else "avg", "pool_norm": fine.pool == "avg-norm"}
        position = pre.position if pre else arm.position
        model = VisionTransformer(our_config(pixels.size, position, num_classes=classes, **pooling))
        if pre is None:
            begin(model, "patches")
    nn.init.zeros_(model.head.bias)
    if fine.head:
        nn.init.normal_(model.head.weight, std=fine.head)
    else:
        nn.init.zeros_(model.head.weight)
    if state is None:
        return model
    kept = dict(state)
    for name in ("weight", "bias"):
        tensor = kept.pop(f"norm.{name}") if fine.new_norm or fine.pool == "avg-norm" else None
        if fine.pool == "avg-norm" and not fine.new_norm:
            kept[f"fc_norm.{name}"] = tensor
    _, unexpected = model.load_state_dict(kept, strict=False)
    if not set(unexpected) <= {"norm.weight", "norm.bias"}:
        raise ValueError(f"no place for {', '.join(unexpected)}")
    return model
