"""The Vision Transformer: Eq. 1 and 4 of "An Image is Worth 16x16 Words" (arXiv 2010.11929).

The words of the shapes: B images, N patches of P x P pixels, T tokens ([class], registers, patches), width D, K classes.
Parameter names and shapes are timm's, so the state dict of a timm ViT fits as it is.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ViTConfig
from wordsworth.vit_model.encoder import AttentionPool, Block, lecun_normal_
from wordsworth.vit_model.hybrid import HybridEmbed
from wordsworth.vit_model.patches import patchify
from wordsworth.vit_model.position import learned_tables, positions


class PatchEmbed(nn.Module):
    """x_p E of Eq. 1: a matrix product over patches. `proj` lends a convolution's names and shapes, not its forward."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Conv2d(
            3, config.width, config.patch_size, config.patch_size, bias=config.patch_bias
        )  # (D, 3, P, P)

    def init_weights(self) -> None:
        lecun_normal_(self.proj.weight)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised floats, either images (B, 3, H, W) or their patches (B, N, P*P*3) -> (B, N, D)."""
        if x.ndim == 4:
            x = patchify(x.permute(0, 2, 3, 1), self.patch_size)  # (B, N, P*P*3)
        kernel = self.proj.weight.permute(0, 2, 3, 1).flatten(
            1
        )  # (D, P*P*3), channels fastest as in the patches
        return F.linear(x, kernel, self.proj.bias)


class PreLogits(nn.Linear):
    """The hidden layer of the pre-training head (appendix D.3), a linear layer and tanh; or CLIP's projection, a bare matrix."""

    def __init__(self, config: ViTConfig):
        super().__init__(config.width, config.representation_size, bias=not config.projection)
        self.act = nn.Identity() if config.projection else nn.Tanh()

    def init_weights(self) -> None:
        lecun_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B, representation_size)"""
        return self.act(super().forward(y))


class VisionTransformer(nn.Module):
    """Patches to tokens, tokens through the encoder, the state of the [class] token, or what stands for it, to logits.

    It runs on whatever device and in whatever type its parameters are, and has no branch for speed: see inference.py.
    A part that the config does not ask for is an Identity, or None, and has no parameters.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config) if config.resnet is None else HybridEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width)) if config.class_token else None
        self.reg_token = (
            nn.Parameter(torch.empty(1, config.registers, config.width)) if config.registers else None
        )
        self.pos_embed = learned_tables(config)
        self.pos_drop = nn.Dropout(config.dropout)
        self.norm_pre = self._norm(config.norm_pre)
        self.blocks = nn.Sequential(*(Block(config, layer) for layer in range(config.depth)))
        self.norm = self._norm(not config.pool_norm)
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.fc_norm = self._norm(config.pool_norm)
        self.pre_logits = PreLogits(config) if config.representation_size else nn.Identity()
        self.head = (
            nn.Linear(config.embedding_dim, config.num_classes, config.head_bias)
            if config.num_classes
            else nn.Identity()
        )
        if (
            not self.patch_embed.proj.weight.is_meta
        ):  # there is nothing to fill, and a normal_ on meta imports 900 modules: seconds
            self.init_weights()

    def _norm(self, wanted: bool) -> nn.Module:
        return nn.LayerNorm(self.config.width, self.config.norm_eps) if wanted else nn.Identity()

    def init_weights(self) -> None:
        """Fill every parameter as the original JAX code does.

        The head starts at zero, so an untrained model gives every class the same score.
        """
        self.patch_embed.init_weights()
        for part in (*self.blocks, self.attn_pool):
            if part is not None:
                part.init_weights()
        for norm in (self.norm_pre, self.norm, self.fc_norm):
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()
        self._init_tokens()
        self._init_head()

    def _init_tokens(self) -> None:
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)
        if self.reg_token is not None:  # equal registers without positions would stay equal for ever
            nn.init.normal_(self.reg_token, std=1e-6)
        for name, parameter in self.named_parameters():
            if name.startswith("pos_embed"):
                nn.init.normal_(parameter, std=0.02)

    def _init_head(self) -> None:
        if isinstance(self.pre_logits, PreLogits):
            self.pre_logits.init_weights()
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def replace_head(self, num_classes: int) -> None:
        """For fine-tuning: the whole head goes, and one linear layer that starts at zero comes (appendix B.1.1)."""
        self.config = replace(
            self.config, num_classes=num_classes, representation_size=0, projection=False, head_bias=True
        )
        like = self.patch_embed.proj.weight
        self.pre_logits, self.head = nn.Identity(), nn.Identity()
        if num_classes:
            self.head = nn.Linear(
                self.config.embedding_dim, num_classes, device=like.device, dtype=like.dtype
            )
        self._init_head()

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: [class] and the registers."""
        return self.config.num_prefix

    def prepend(self, patches: torch.Tensor) -> torch.Tensor:
        """z_0 = [x_class; registers; patches] + E_pos (Eq. 1): (B, N, D) -> (B, T, D)."""
        prefix = [
            token.expand(len(patches), -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        z = torch.cat([*prefix, patches], dim=1) + positions(self.config, self.pos_embed, like=patches)
        return self.norm_pre(self.pos_drop(z))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """z_0 of Eq. 1: (B, 3, H, W) or (B, N, P*P*3) -> (B, T, D)."""
        return self.prepend(self.patch_embed(x))

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        """Eq. 2, 3 and the final norm: z_0 (B, T, D) -> tokens (B, T, D), not yet normalised if that is after pooling."""
        for layer, block in enumerate(self.blocks):
            if layer and self.config.position_at != "stem":
                z = z + positions(self.config, self.pos_embed, z, layer)
            z = block(z)
        return self.norm(z)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """All tokens after the final norm: (B, 3, H, W) or (B, N, P*P*3) -> (B, T, D)."""
        return self.encode(self.embed(x))

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """y of Eq. 4, the one state of an image: (B, T, D) -> (B, D), or (B, 2D) of two tokens."""
        if self.config.pool == "token":
            y = tokens[:, 0]
        elif self.config.pool == "distilled":
            y = tokens[:, :2].flatten(1)
        elif self.config.pool == "avg":
            y = tokens[:, self.num_prefix :].mean(1)
        else:
            y = self.attn_pool(tokens[:, self.num_prefix :])
        return self.fc_norm(y)

    def forward_head(self, tokens: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, T, D) -> (B, K), or what enters the final linear layer, (B, D), with `pre_logits` or without a head."""
        y = self.pre_logits(self.pool(tokens))  # (B, D)
        return y if pre_logits else self.head(y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised floats, (B, 3, H, W) or (B, N, P*P*3) -> logits (B, K), or the embedding (B, D) without a head."""
        return self.forward_head(self.forward_features(x))
