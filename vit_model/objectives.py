"""What an encoder is trained for: classes, masked patch prediction (B.1.2 of the paper), masked autoencoding (MAE).

Each objective is a module around a VisionTransformer, its `encoder`; the model knows none of them. All are called alike:

    loss, metrics = objective(patches, pixels=pixels, classes=classes, generator=generator)

    patches    (B, N, P*P*3) normalised floats: what the encoder sees
    pixels     (B, N, P*P*3) the same patches before the normalisation, uint8 or floats in [0, 1]; for MaskedPatchPrediction
    classes    (B,) class ids, or (B, K) targets in [0, 1] such as mixup's; for Supervised
    generator  the source of the masks: the same seed gives the same masks, and a CPU generator the same on every device

so a training loop passes what it has and an objective takes what it needs. The loss is a scalar, the metrics are detached
scalars on the same device. `objective.encoder.state_dict()` fits a VisionTransformer with any other head.
Whatever wraps a model for training (DDP, fully_shard) wraps the objective: its forward uses the encoder's parts.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.encoder import Block
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.position import sincos_2d

Outcome = tuple[torch.Tensor, dict[str, torch.Tensor]]  # the loss and the metrics

LOSSES = ("softmax", "sigmoid")
COLOURS = 512  # 3 bits for each of red, green and blue
CELLS = {
    "mean_colour": 1,
    "colours_4x4": 4,
}  # parts of a patch, along one side, whose mean colours are predicted
TARGETS = (*CELLS, "pixels")
ALONE = {"num_classes": (0,), "representation_size": (0,), "pool": ("token", "avg"), "pool_norm": (False,)}


class Supervised(nn.Module):
    """Cross-entropy of the head's logits.

    Softmax, or sigmoid as in the paper's pre-training on ImageNet-21k: K binary cross-entropies, summed over the classes
    as big_vision does (timm's is their mean). Label smoothing s turns a target t into (1 - s) t + s / K in both.

    Raises:
        ModelError: an encoder without a head, or an unknown loss.
    """

    def __init__(self, encoder: VisionTransformer, loss: str = "softmax", label_smoothing: float = 0.0):
        super().__init__()
        _check_choice("loss", loss, LOSSES)
        if not 0 <= label_smoothing < 1:
            raise ModelError(f"label_smoothing is {label_smoothing!r}; it must be at least 0 and below 1")
        if not encoder.config.num_classes:
            raise ModelError("supervised training needs a head: build the encoder with num_classes above 0")
        self.encoder, self.loss, self.label_smoothing = encoder, loss, label_smoothing

    def forward(self, patches, *, classes, pixels=None, generator=None) -> Outcome:
        """(B, N, P*P*3) or images (B, 3, H, W), and classes (B,) or (B, K) -> the loss; metrics: accuracy."""
        logits = self.encoder(patches)  # (B, K)
        best = classes if classes.ndim == 1 else classes.argmax(-1)  # (B,)
        return self.cross_entropy(logits, classes), {"accuracy": _accuracy(logits, best)}

    def cross_entropy(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(B, K), and (B,) or (B, K) -> the mean over the images."""
        if self.loss == "softmax":
            return F.cross_entropy(logits, classes, label_smoothing=self.label_smoothing)
        K = logits.shape[-1]
        targets = F.one_hot(classes, K).to(logits.dtype) if classes.ndim == 1 else classes  # (B, K)
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / K
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1).mean()


class MaskedPatchPrediction(nn.Module):
    """The paper's self-supervision (4.6 and B.1.2): corrupt patch embeddings, predict what the patches looked like.

    Half of the patch embeddings of every image are corrupted: 80% become a learned [mask] embedding, 10% the embedding of
    another patch of the same image, 10% stay. All three are exact counts, rounded: round(share N) patches of an image, of
    which round(80%) and round(10%). From the output token of every corrupted patch, kept ones too, a linear layer predicts

        mean_colour   the 3-bit mean colour, 512-way cross-entropy: what the paper reports
        colours_4x4   the 3-bit colours of the patch downsized to 4 x 4: 16 of them in parallel
        pixels        every pixel in [0, 1], mean squared error

    The paper does not say whether E_pos is added before or after the corruption. We read: after, so that a [mask] token
    knows where it is. Its 15% (BERT's) was slightly worse than 50%.

    Raises:
        ModelError: an encoder, a target or a share that does not fit.
    """

    def __init__(self, encoder: VisionTransformer, target: str = "mean_colour", share: float = 0.5):
        super().__init__()
        _check_choice("target", target, TARGETS)
        _check_maskable(encoder, "masked patch prediction")
        config = encoder.config
        if config.patch_size % CELLS.get(target, 1):
            raise ModelError(
                f"target {target!r} needs a patch_size that 4 divides; it is {config.patch_size}"
            )
        self.encoder, self.target = encoder, target
        self.count = _count(round(share * config.num_patches), share, config.num_patches)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        outputs = CELLS[target] ** 2 * COLOURS if target in CELLS else config.patch_dim
        self.predict = nn.Linear(config.width, outputs)
        if not self.mask_token.is_meta:
            self.init_weights()

    def init_weights(self) -> None:
        """What is not the encoder's; the prediction starts at zero as the model's own head does."""
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def forward(self, patches, *, pixels, classes=None, generator=None) -> Outcome:
        """(B, N, P*P*3), both -> the loss; metrics: accuracy (of the colours) or explained (of the pixels' variance)."""
        embedded = self.encoder.patch_embed(patches)  # (B, N, D)
        corrupted = random_order(embedded, generator)[:, : self.count]  # (B, M)
        z = self.encoder.prepend(self.corrupt(embedded, corrupted, generator))  # (B, T, D)
        tokens = self.encoder.encode(z)[:, self.encoder.num_prefix :]  # (B, N, D)
        predicted = self.predict(take(tokens, corrupted))  # (B, M, outputs)
        return self.score(predicted, take(pixels, corrupted))

    def corrupt(self, embedded: torch.Tensor, corrupted: torch.Tensor, generator=None) -> torch.Tensor:
        """The first 80% of the places become [mask], the next 10% another patch: (B, N, D), (B, M) -> (B, N, D)."""
        B, N, D = embedded.shape
        masks, others = round(0.8 * self.count), round(0.1 * self.count)
        places = corrupted[:, : masks + others]
        where = generator.device if generator else embedded.device
        steps = torch.randint(1, max(N, 2), (B, others), generator=generator, device=where)  # never 0
        steps = _brought(steps, embedded.device)
        donors = take(embedded, (places[:, masks:] + steps) % N)  # (B, others, D)
        masked = self.mask_token.to(embedded.dtype).expand(B, masks, D)
        return embedded.scatter(1, places[..., None].expand(-1, -1, D), torch.cat([masked, donors], dim=1))

    def score(self, predicted: torch.Tensor, pixels: torch.Tensor) -> Outcome:
        """(B, M, outputs), (B, M, P*P*3) -> the loss and the metrics."""
        if self.target == "pixels":
            return _regression(predicted, pixels if pixels.is_floating_point() else pixels / 255)
        labels = colour_classes(pixels, CELLS[self.target]).flatten()  # (B*M*cells*cells,)
        logits = predicted.reshape(-1, COLOURS)
        return F.cross_entropy(logits, labels), {"accuracy": _accuracy(logits, labels)}


class MaskedAutoencoder(nn.Module):
    """MAE (arXiv 2111.06377): encode a quarter of the patches, let a light decoder paint the others.

    The encoder gets the visible patches only, taken after E_pos is added. The target of a masked patch is the patch as the
    encoder would see it, less its own mean and divided by its own standard deviation; the loss is the mean squared error
    over the masked patches. As in the published code, which this follows draw for draw.

    Raises:
        ModelError: an encoder, a share or a decoder that does not fit.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        share: float = 0.75,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
    ):
        super().__init__()
        _check_maskable(encoder, "a masked autoencoder")
        config = encoder.config
        if config.position_at != "stem":
            raise ModelError(
                f"a masked autoencoder encodes a part of the tokens: position_at must be 'stem', it is {config.position_at!r}"
            )
        N, size = config.num_patches, (config.image_size, config.patch_size)
        masked = N - math.floor(N * (1 - share) + 1e-9)  # 1e-9: 10 * (1 - 0.9) is 0.99...98
        self.visible = N - _count(masked, share, most=N - 1)
        self.encoder = encoder
        decoder = ViTConfig(*size, width, depth, heads, 4 * width, 0, config.gelu, config.norm_eps)
        self.decoder = Decoder(decoder, config.width, encoder.num_prefix)

    def forward(self, patches, *, pixels=None, classes=None, generator=None) -> Outcome:
        """(B, N, P*P*3) -> the loss; metrics: explained (share of the targets' variance)."""
        order = random_order(patches, generator)  # (B, N): the visible patches, then the masked ones
        visible, masked = order.tensor_split([self.visible], dim=1)  # (B, V), (B, M)
        painted = self.decoder(
            self.encode_visible(patches, visible), restore=order.argsort(dim=1)
        )  # (B, N, P*P*3)
        return self.score(painted, patches, masked)

    def encode_visible(self, patches: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Latents of the prefix and of the visible patches, in the order asked: (B, N, P*P*3), (B, V) -> (B, prefix+V, D)."""
        prefix = self.encoder.num_prefix
        z = self.encoder.embed(patches)  # (B, prefix+N, D), with positions
        return self.encoder.encode(torch.cat([z[:, :prefix], take(z[:, prefix:], visible)], dim=1))

    def score(self, painted: torch.Tensor, patches: torch.Tensor, masked: torch.Tensor) -> Outcome:
        """(B, N, P*P*3), both, and (B, M) -> the loss over the masked patches and the metrics."""
        return _regression(take(painted, masked), standardised(take(patches, masked)))


class Decoder(nn.Module):
    """MAE's decoder: a [mask] token in every hole, fixed positions, a few blocks, a linear layer to pixels."""

    def __init__(self, config: ViTConfig, latent_width: int, prefix: int):
        super().__init__()
        if config.width % 4:
            raise ModelError(
                f"the decoder's width is {config.width}; sines and cosines of x and y need a multiple of 4"
            )
        self.config, self.prefix = config, prefix
        self.embed = nn.Linear(latent_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("positions", torch.empty(1, prefix + config.num_patches, config.width))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.predict = nn.Linear(config.width, config.patch_dim)
        if not self.mask_token.is_meta:
            self.init_weights()

    def init_weights(self) -> None:
        """As in the MAE code: linear layers xavier_uniform with zero biases, the token normal."""
        for linear in (self.embed, self.predict):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        for block in self.blocks:
            block.init_weights()
        self.norm.reset_parameters()
        positions = sincos_2d(self.config.grid, self.config.width, mae=True)  # (1, N, width)
        self.positions.copy_(
            F.pad(positions, (0, 0, self.prefix, 0))
        )  # zero rows for [class] and the registers

    def forward(self, latent: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        """(B, prefix+V, D), and for each place its number among visible and masked, (B, N) -> (B, N, P*P*3)."""
        x = self.embed(latent)
        holes = restore.shape[1] + self.prefix - x.shape[1]
        masks = self.mask_token.to(x.dtype).expand(len(x), holes, -1)
        patches = take(
            torch.cat([x[:, self.prefix :], masks], dim=1), restore
        )  # (B, N, width), in raster order
        x = torch.cat([x[:, : self.prefix], patches], dim=1) + self.positions
        return self.predict(self.norm(self.blocks(x))[:, self.prefix :])


# ---- formulas -------------------------------------------------------------------------------------------------------------


def random_order(tokens: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """A permutation of 0..N-1 for each sample: (B, N, ...) -> (B, N) on the tokens' device."""
    where = generator.device if generator else tokens.device
    noise = torch.rand(tokens.shape[:2], generator=generator, device=where)
    return _brought(noise.argsort(dim=1), tokens.device)


def _brought(drawn: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy what was drawn on the CPU to the device. From pageable memory the copy would wait for all that the device has to do."""
    return drawn if drawn.device == device else drawn.pin_memory().to(device, non_blocking=True)


def take(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Each sample's tokens at its own places: (B, T, D), (B, M) -> (B, M, D)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def colour_classes(pixels: torch.Tensor, cells: int = 1) -> torch.Tensor:
    """The 3-bit mean colours of a patch's cells x cells parts (B.1.2): 64 r + 8 g + b, each floor(8 mean), at most 7.

    Args:
        pixels: (..., P*P*3), uint8 (computed in whole numbers, so exact) or floats in [0, 1].

    Returns:
        (..., cells * cells) int64 in 0..511, parts in raster order.
    """
    side = math.isqrt(pixels.shape[-1] // 3) // cells
    parts = pixels.reshape(*pixels.shape[:-1], cells, side, cells, side, 3)
    white = side * side * (1 if pixels.is_floating_point() else 255)
    levels = (
        (8 * parts.sum((-4, -2))).div(white, rounding_mode="floor").clamp(0, 7).long()
    )  # (..., cells, cells, 3)
    red, green, blue = levels.unbind(-1)
    return (64 * red + 8 * green + blue).flatten(-2)


def standardised(patches: torch.Tensor) -> torch.Tensor:
    """MAE's target: each patch less its mean, divided by its deviation (unbiased variance plus 1e-6): (..., P*P*3), same."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def _regression(predicted: torch.Tensor, target: torch.Tensor) -> Outcome:
    """Mean squared error, and the share of the target's variance that is explained: 0 for its mean, 1 for a perfect answer."""
    loss = F.mse_loss(predicted, target)
    return loss, {"explained": 1 - loss.detach() / target.var(correction=0).clamp(min=1e-12)}


def _accuracy(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(-1) == classes).float().mean()


# ---- what does not fit ----------------------------------------------------------------------------------------------------


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f"{what} is {value!r}; it must be one of {', '.join(known)}")


def _count(count: int, share: float, most: int) -> int:
    if not 1 <= count <= most:
        raise ModelError(
            f"share is {share!r}, which masks {count} patches of an image; it must be 1 to {most}"
        )
    return count


def _check_maskable(encoder: VisionTransformer, what: str) -> None:
    """Nothing behind the tokens: it would get no gradient, and a data-parallel trainer waits for every parameter's."""
    for name, fitting in ALONE.items():
        if (value := getattr(encoder.config, name)) not in fitting:
            one_of = " or ".join(map(repr, fitting))
            raise ModelError(
                f"{what} trains the encoder alone: {name} must be {one_of} in its config, it is {value!r}"
            )
    if encoder.config.resnet is not None:
        raise ModelError(
            f"{what} needs patches that are embedded one by one: a hybrid's ResNet looks into the masked ones"
        )
