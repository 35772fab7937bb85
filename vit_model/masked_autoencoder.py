"""Train an encoder as a masked autoencoder, MAE (arXiv 2111.06377). See objectives.py for the call."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.encoder import Block
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.objectives import (
    Outcome,
    check_count,
    check_maskable,
    random_order,
    regression_loss,
    take,
)
from wordsworth.vit_model.position import sincos_2d


class MaskedAutoencoder(nn.Module):
    """Encode the visible patches and let a light decoder paint the masked patches: MAE (arXiv 2111.06377).

    The visible patches are taken after E_pos is added. The target of a masked patch is the patch as the
    encoder would see the patch, minus the patch's mean, divided by the patch's standard deviation. The loss
    is the mean squared error over the masked patches. All this follows the published code, random number for
    random number.

    Args:
        encoder: a model without a head.
        share: masked share of the patches.
        width: of the decoder.
        depth: blocks of the decoder.
        heads: attention heads of the decoder.

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
        check_maskable(encoder, "a masked autoencoder")
        config = encoder.config
        if config.position_at != "stem":
            needed = f"position_at must be 'stem', it is {config.position_at!r}"
            raise ModelError(f"a masked autoencoder encodes a part of the tokens: {needed}")
        N = config.num_patches
        self.visible = math.floor(N * (1 - share) + 1e-9)  # 1e-9: 10 * (1 - 0.9) is 0.99...98
        check_count(N - self.visible, share, most=N - 1)
        self.encoder = encoder
        decoder = ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=width,
            depth=depth,
            heads=heads,
            mlp_dim=4 * width,
            num_classes=0,
            gelu=config.gelu,
            norm_eps=config.norm_eps,
        )
        self.decoder = Decoder(decoder, config.width, encoder.num_prefix)

    def forward(
        self,
        patches: torch.Tensor,
        *,
        pixels: torch.Tensor | None = None,
        classes: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Return the loss, and the metric explained (share of the targets' variance)."""
        order = random_order(patches, generator)  # (B, N): the visible patches, then the masked patches
        visible, masked = order.tensor_split([self.visible], dim=1)  # (B, V), (B, M)
        latent = self.encode_visible(patches, visible)
        painted = self.decoder(latent, restore=order.argsort(dim=1))  # (B, N, P*P*3)
        return self.score(painted, patches, masked)

    def embedding(self, patches: torch.Tensor) -> torch.Tensor:
        """Return what the encoder alone makes of whole images: (B, N, P*P*3) -> (B, D)."""
        return self.encoder.embedding(patches)

    def encode_visible(self, patches: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return the latents of prefix and visible patches: (B, N, P*P*3), (B, V) -> (B, prefix+V, D)."""
        prefix = self.encoder.num_prefix
        z = self.encoder.embed(patches)  # (B, prefix+N, D), with positions
        return self.encoder.encode(torch.cat([z[:, :prefix], take(z[:, prefix:], visible)], dim=1))

    def score(self, painted: torch.Tensor, patches: torch.Tensor, masked: torch.Tensor) -> Outcome:
        """Return loss and metrics over the masked patches, for patches (B, N, P*P*3) and places (B, M)."""
        return regression_loss(take(painted, masked), standardised(take(patches, masked)))


class Decoder(nn.Module):
    """Paint patches: [mask] tokens in the holes, fixed positions, a few blocks, a linear layer to pixels."""

    def __init__(self, config: ViTConfig, latent_width: int, prefix: int):
        super().__init__()
        if config.width % 4:
            needed = "sines and cosines of x and y need a multiple of 4"
            raise ModelError(f"the decoder's width is {config.width}; {needed}")
        self.config = config
        self.prefix = prefix
        self.embed = nn.Linear(latent_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("positions", torch.empty(1, prefix + config.num_patches, config.width))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.predict = nn.Linear(config.width, config.patch_dim)
        if not self.mask_token.is_meta:
            self.init_weights()

    def init_weights(self) -> None:
        """Fill the parameters as the MAE code does."""
        for linear in (self.embed, self.predict):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        for block in self.blocks:
            block.init_weights()
        self.norm.reset_parameters()
        positions = sincos_2d(self.config.grid, self.config.width, mae=True)  # (1, N, width)
        positions = F.pad(positions, (0, 0, self.prefix, 0))  # zero rows for [class] and the registers
        self.positions.copy_(positions)

    def forward(self, latent: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        """Paint the patches of all places.

        Args:
            latent: (B, prefix+V, D)
            restore: (B, N), for each place its number among the visible patches, then the masked patches.

        Returns:
            (B, N, P*P*3)
        """
        x = self.embed(latent)
        holes = restore.shape[1] + self.prefix - x.shape[1]
        masks = self.mask_token.to(x.dtype).expand(len(x), holes, -1)
        shuffled = torch.cat([x[:, self.prefix :], masks], dim=1)  # (B, N, width)
        patches = take(shuffled, restore)  # (B, N, width), in raster order
        x = torch.cat([x[:, : self.prefix], patches], dim=1) + self.positions
        return self.predict(self.norm(self.blocks(x))[:, self.prefix :])


@torch.no_grad()
def init_as_published(encoder: VisionTransformer) -> None:
    """Fill an encoder as the MAE code does: Xavier-uniform matrices (q, k and v are one), a small [class]."""
    kernel = encoder.patch_embed.proj.weight  # (D, 3, P, P)
    nn.init.xavier_uniform_(kernel.view(len(kernel), -1))
    if encoder.cls_token is not None:
        nn.init.normal_(encoder.cls_token, std=0.02)
    for module in encoder.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def standardised(patches: torch.Tensor) -> torch.Tensor:
    """Return MAE's target, (patch - mean) / sqrt(unbiased variance + 1e-6), for patches (..., P*P*3)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
