"""Compute the losses of training: classes, and masked patch prediction (B.1.2 of the paper).

masked_autoencoder.py holds the third objective. Each objective is a module around a VisionTransformer, its
`encoder`; the model knows no objective. All are called alike:

    loss, metrics = objective(patches, pixels=pixels, classes=classes, generator=generator)

    patches    (B, N, P*P*3) normalised floats: the input of the encoder
    pixels     (B, N, P*P*3) the same patches before the normalisation, uint8 or floats in [0, 1]
    classes    (B,) class ids, or (B, K) targets in [0, 1] such as mixup's
    generator  the source of the masks: the same seed gives the same masks, with a CPU generator on every
    device

A training loop passes all four, and an objective takes what it needs: Supervised needs classes,
MaskedPatchPrediction needs pixels. The loss is a scalar; the metrics are detached scalars on the same device.
`objective.encoder.state_dict()` fits a VisionTransformer with any other head. A wrapper for training (DDP,
fully_shard) wraps the objective, because the forward of an objective uses the parts of the encoder.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ModelError, check_choice
from wordsworth.vit_model.model import VisionTransformer

Outcome = tuple[torch.Tensor, dict[str, torch.Tensor]]  # the loss and the metrics

LOSSES = ("softmax", "sigmoid")
COLOURS = 512  # 3 bits for each of red, green and blue
# target: parts of a patch, along one side, whose mean colours are predicted.
CELLS = {"mean_colour": 1, "colours_4x4": 4}
TARGETS = (*CELLS, "pixels")
# The configs without a parameter behind the tokens: field: allowed values.
BARE_ENCODER: dict[str, tuple[Any, ...]] = {
    "num_classes": (0,),
    "representation_size": (0,),
    "pool": ("token", "avg"),
    "pool_norm": (False,),
}


class Supervised(nn.Module):
    """Compute the cross-entropy of the head's logits.

    Args:
        encoder: a model with a head.
        loss: "softmax", or "sigmoid" as in the paper's pre-training on ImageNet-21k: K binary
            cross-entropies, summed over the classes as in big_vision (timm takes the mean).
        label_smoothing: s turns a target t into (1 - s) t + s / K.

    Raises:
        ModelError: an encoder without a head, or an unknown loss.
    """

    def __init__(self, encoder: VisionTransformer, loss: str = "softmax", label_smoothing: float = 0.0):
        super().__init__()
        check_choice("loss", loss, LOSSES)
        if not 0 <= label_smoothing < 1:
            raise ModelError(f"label_smoothing is {label_smoothing!r}; it must be at least 0 and below 1")
        if not encoder.config.num_classes:
            raise ModelError("supervised training needs a head: build the encoder with num_classes above 0")
        self.encoder = encoder
        self.loss = loss
        self.label_smoothing = label_smoothing

    def forward(
        self,
        patches: torch.Tensor,
        *,
        classes: torch.Tensor,
        pixels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        weights: torch.Tensor | None = None,
    ) -> Outcome:
        """Return the loss, and the metric accuracy. Images (B, 3, H, W) do as well as patches.

        Outside of training there is the metric `right` too: which images are right, (B,) bool.

        Args:
            patches: as above.
            classes: as above.
            pixels: not used.
            generator: not used.
            weights: (B,) factor of the loss of each image; None for 1. The loss is the mean of the products.
        """
        logits = self.encoder(patches)  # (B, K)
        best = classes if classes.ndim == 1 else classes.argmax(-1)  # (B,)
        right = logits.detach().argmax(-1) == best  # (B,)
        metrics = {"accuracy": right.float().mean()}
        if not self.training:
            metrics["right"] = right
        return self.cross_entropy(logits, classes, weights), metrics

    def cross_entropy(
        self, logits: torch.Tensor, classes: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the mean over the images, for logits (B, K), classes (B,) or (B, K) and weights (B,)."""
        smoothing = self.label_smoothing
        if self.loss == "softmax":
            if weights is None:
                return F.cross_entropy(logits, classes, label_smoothing=smoothing)
            losses = F.cross_entropy(logits, classes, label_smoothing=smoothing, reduction="none")  # (B,)
        else:
            K = logits.shape[-1]
            targets = F.one_hot(classes, K).to(logits.dtype) if classes.ndim == 1 else classes  # (B, K)
            targets = (1 - smoothing) * targets + smoothing / K
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)
        return (losses if weights is None else losses * weights).mean()


class MaskedPatchPrediction(nn.Module):
    """Corrupt patch embeddings and predict the look of the patches: the paper's self-supervision (B.1.2).

    A share of the patch embeddings of every image is corrupted: 80% become a learned [mask] embedding, 10%
    the embedding of another patch of the same image, 10% stay. All counts are exact and rounded: round(share
    N) patches of an image, of which round(80%) and round(10%). A linear layer predicts the target from the
    output token of every corrupted patch, also where the embedding stayed.

    The paper does not say whether E_pos is added before or after the corruption. Here E_pos is added after,
    so that a [mask] token knows its place.

    Args:
        encoder: a model without a head.
        target: "mean_colour": the 3-bit mean colour, 512-way cross-entropy (the paper reports this target).
            "colours_4x4": the 3-bit colours of the patch downsized to 4 x 4, 16 predictions in parallel.
            "pixels": every pixel in [0, 1], mean squared error.
        share: corrupted share of the patches. In the paper 15%, as in BERT, was slightly worse than 50%.

    Raises:
        ModelError: an encoder, a target or a share that does not fit.
    """

    def __init__(self, encoder: VisionTransformer, target: str = "mean_colour", share: float = 0.5):
        super().__init__()
        check_choice("target", target, TARGETS)
        check_maskable(encoder, "masked patch prediction")
        config = encoder.config
        if config.patch_size % CELLS.get(target, 1):
            raise ModelError(
                f"target {target!r} needs a patch_size that 4 divides; it is {config.patch_size}"
            )
        self.encoder = encoder
        self.target = target
        self.count = round(share * config.num_patches)  # corrupted patches of an image
        check_count(self.count, share, most=config.num_patches)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        outputs = CELLS[target] ** 2 * COLOURS if target in CELLS else config.patch_dim
        self.predict = nn.Linear(config.width, outputs)
        if not self.mask_token.is_meta:
            self.init_weights()

    def init_weights(self) -> None:
        """Fill the parameters outside of the encoder. The prediction starts at zero, as a head does."""
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def forward(
        self,
        patches: torch.Tensor,
        *,
        pixels: torch.Tensor,
        classes: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Return the loss, and the metric accuracy (of colours) or explained (share of the variance)."""
        embedded = self.encoder.patch_embed(patches)  # (B, N, D)
        corrupted = random_order(embedded, generator)[:, : self.count]  # (B, M)
        z = self.encoder.prepend(self.corrupt(embedded, corrupted, generator))  # (B, T, D)
        tokens = self.encoder.encode(z)[:, self.encoder.num_prefix :]  # (B, N, D)
        predicted = self.predict(take(tokens, corrupted))  # (B, M, outputs)
        return self.score(predicted, take(pixels, corrupted))

    def embedding(self, patches: torch.Tensor) -> torch.Tensor:
        """Return what the encoder alone makes of whole images: (B, N, P*P*3) -> (B, D)."""
        return self.encoder.embedding(patches)

    def corrupt(
        self, embedded: torch.Tensor, corrupted: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Put [mask] at the first 80% of the places, and another patch of the image at the next 10%.

        Args:
            embedded: (B, N, D)
            corrupted: (B, M), the places.
            generator: the source of the other patches.

        Returns:
            (B, N, D)
        """
        B, N, D = embedded.shape
        masks = round(0.8 * self.count)
        others = round(0.1 * self.count)
        places = corrupted[:, : masks + others]
        where = generator.device if generator else embedded.device
        steps = torch.randint(1, max(N, 2), (B, others), generator=generator, device=where)  # never 0
        steps = _to_device(steps, embedded.device)
        donors = take(embedded, (places[:, masks:] + steps) % N)  # (B, others, D)
        masked = self.mask_token.to(embedded.dtype).expand(B, masks, D)
        return embedded.scatter(1, places[..., None].expand(-1, -1, D), torch.cat([masked, donors], dim=1))

    def score(self, predicted: torch.Tensor, pixels: torch.Tensor) -> Outcome:
        """Return the loss and the metrics, for predictions (B, M, outputs) and pixels (B, M, P*P*3)."""
        if self.target == "pixels":
            return regression_loss(predicted, pixels if pixels.is_floating_point() else pixels / 255)
        labels = colour_classes(pixels, CELLS[self.target]).flatten()  # (B*M*cells*cells,)
        logits = predicted.reshape(-1, COLOURS)
        return F.cross_entropy(logits, labels), {"accuracy": _accuracy(logits, labels)}


# ---- formulas --------------------------------------------------------------------------------------------


def random_order(tokens: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return a permutation of 0..N-1 for each image: (B, N, ...) -> (B, N) on the tokens' device."""
    where = generator.device if generator else tokens.device
    noise = torch.rand(tokens.shape[:2], generator=generator, device=where)
    return _to_device(noise.argsort(dim=1), tokens.device)


def _to_device(drawn: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy random numbers from the CPU to the device.

    The memory is pinned: from pageable memory the copy would wait for all work that the device has queued.
    """
    if drawn.device == device:
        return drawn
    return drawn.pin_memory().to(device, non_blocking=True)


def take(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the tokens of each image at the places of the image: (B, T, D), (B, M) -> (B, M, D)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def colour_classes(pixels: torch.Tensor, cells: int = 1) -> torch.Tensor:
    """Return the 3-bit mean colours of parts of patches (B.1.2): 64 r + 8 g + b, each min(7, floor(8 mean)).

    Args:
        pixels: (..., P*P*3), uint8 (computed in whole numbers, so exact) or floats in [0, 1].
        cells: parts of a patch along one side.

    Returns:
        (..., cells * cells) int64 in 0..511, parts in raster order.
    """
    side = math.isqrt(pixels.shape[-1] // 3) // cells
    parts = pixels.reshape(*pixels.shape[:-1], cells, side, cells, side, 3)
    brightest = 1 if pixels.is_floating_point() else 255
    eighths = 8 * parts.sum((-4, -2))  # (..., cells, cells, 3)
    levels = eighths.div(side * side * brightest, rounding_mode="floor").clamp(0, 7).long()
    red, green, blue = levels.unbind(-1)
    return (64 * red + 8 * green + blue).flatten(-2)


def regression_loss(predicted: torch.Tensor, target: torch.Tensor) -> Outcome:
    """Return the mean squared error, and the explained share of the target's variance: at most 1."""
    loss = F.mse_loss(predicted, target)
    return loss, {"explained": 1 - loss.detach() / target.var(correction=0).clamp(min=1e-12)}


def _accuracy(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(-1) == classes).float().mean()


# ---- checks ----------------------------------------------------------------------------------------------


def check_count(count: int, share: float, most: int) -> None:
    if not 1 <= count <= most:
        raise ModelError(
            f"share is {share!r}, which masks {count} patches of an image; it must be 1 to {most}"
        )


def check_maskable(encoder: VisionTransformer, what: str) -> None:
    """Check that no parameter stands behind the tokens, and that each patch is embedded by itself.

    A parameter behind the tokens would get no gradient, and a data-parallel trainer waits for every gradient.
    """
    for name, allowed in BARE_ENCODER.items():
        value = getattr(encoder.config, name)
        if value not in allowed:
            one_of = " or ".join(map(repr, allowed))
            needed = f"{name} must be {one_of} in its config, it is {value!r}"
            raise ModelError(f"{what} trains the encoder alone: {needed}")
    if encoder.config.resnet is not None:
        reason = "a hybrid's ResNet looks into the masked ones"
        raise ModelError(f"{what} needs patches that are embedded one by one: {reason}")
