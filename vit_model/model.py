"""The Vision Transformer: Eq. 1 and 4 of "An Image is Worth 16x16 Words" (arXiv 2010.11929).

The words of the shapes: B images, N patches of P x P pixels, T = 1 + N tokens, width D, K classes.
Parameter names and shapes are timm's, so the state dict of a plain timm ViT fits as it is.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from vit_model.config import ViTConfig
from vit_model.encoder import Block
from vit_model.patches import patchify
from vit_model.position import learned_table

TRUNCATED_STD = 0.87962566  # of a unit normal cut at +-2; JAX's truncated initialisers divide by it


class PatchEmbed(nn.Module):
    """x_p E of Eq. 1: a matrix product over patches. `proj` lends a convolution's names and shapes, not its forward."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)  # weight (D, 3, P, P)

    def init_weights(self) -> None:
        """flax's lecun_normal: variance 1 / fan_in after the cut."""
        std = math.sqrt(1 / self.proj.weight[0].numel()) / TRUNCATED_STD
        nn.init.trunc_normal_(self.proj.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised floats, either images (B, 3, H, W) or their patches (B, N, P*P*3) -> (B, N, D)."""
        if x.ndim == 4:
            x = patchify(x.permute(0, 2, 3, 1), self.patch_size)  # (B, N, P*P*3)
        kernel = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P*P*3), channels fastest as in the patches
        return F.linear(x, kernel, self.proj.bias)


class VisionTransformer(nn.Module):
    """Patches to tokens, tokens through the encoder, the [class] token's state to logits.

    It runs on whatever device and in whatever type its parameters are, and has no branch for speed: see inference.py.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = learned_table(config)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.num_classes) if config.num_classes else nn.Identity()
        if not self.cls_token.is_meta:  # there is nothing to fill, and a normal_ on meta imports 900 modules: seconds
            self.init_weights()

    def init_weights(self) -> None:
        """Fill every parameter as the original JAX code does.

        The head starts at zero, so an untrained model gives every class the same score.
        """
        self.patch_embed.init_weights()
        nn.init.zeros_(self.cls_token)
        nn.init.normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            block.init_weights()
        self.norm.reset_parameters()
        if self.config.num_classes:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """z_0 = [x_class; x_p E] + E_pos (Eq. 1): (B, 3, H, W) or (B, N, P*P*3) -> (B, T, D)."""
        patches = self.patch_embed(x)  # (B, N, D)
        cls_token = self.cls_token.expand(len(patches), -1, -1)  # (B, 1, D)
        if self.config.class_position:
            return torch.cat([cls_token, patches], dim=1) + self.pos_embed
        return torch.cat([cls_token, patches + self.pos_embed], dim=1)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """All tokens after the final norm: (B, 3, H, W) or (B, N, P*P*3) -> (B, T, D)."""
        return self.norm(self.blocks(self.embed(x)))

    def forward_head(self, tokens: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, T, D) -> (B, K), or (B, D), the [class] state y of Eq. 4, with `pre_logits` or without a head."""
        y = tokens[:, 0]  # (B, D)
        return y if pre_logits else self.head(y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised floats, (B, 3, H, W) or (B, N, P*P*3) -> logits (B, K), or the [class] state (B, D) without a head."""
        return self.forward_head(self.forward_features(x))
