"""Compute the Vision Transformer: Eq. 1 and 4 of "An Image is Worth 16x16 Words" (arXiv 2010.11929).

The letters of the shapes: B images, N patches of P x P pixels, T tokens ([class], registers, patches), width
D, K classes. Parameter names and shapes are timm's, so the state dict of a timm ViT fits as it is.
"""

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ViTConfig
from wordsworth.vit_model.encoder import AttentionPool, Block, lecun_normal_
from wordsworth.vit_model.hybrid import HybridEmbed
from wordsworth.vit_model.patches import patchify
from wordsworth.vit_model.position import learned_tables, positions


class PatchEmbed(nn.Module):
    """Compute x_p E of Eq. 1: a matrix product over patches.

    `proj` is a convolution for its parameter names and shapes only; the forward of the convolution is never
    called.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch_size = config.patch_size
        P = config.patch_size
        self.proj = nn.Conv2d(3, config.width, P, P, bias=config.patch_bias)  # (D, 3, P, P)

    def init_weights(self) -> None:
        """Fill the parameters as the JAX code does."""
        lecun_normal_(self.proj.weight)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised floats, images (B, 3, H, W) or patches (B, N, P*P*3), to (B, N, D)."""
        if x.ndim == 4:
            x = patchify(x.permute(0, 2, 3, 1), self.patch_size)  # (B, N, P*P*3)
        # (D, P*P*3), channels fastest as in the patches
        kernel = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(x, kernel, self.proj.bias)


class PreLogits(nn.Linear):
    """Compute the hidden layer of the pre-training head: with tanh (appendix D.3), or CLIP's bare matrix."""

    def __init__(self, config: ViTConfig):
        super().__init__(config.width, config.representation_size, bias=not config.projection)
        self.act = nn.Identity() if config.projection else nn.Tanh()

    def init_weights(self) -> None:
        """Fill the parameters as the JAX code does."""
        lecun_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Map (B, D) to (B, representation_size)."""
        return self.act(super().forward(y))


class VisionTransformer(nn.Module):
    """Map images to logits: patches to tokens, tokens through the encoder, the pooled state to class scores.

    The model runs on the device and in the type of its parameters, and has no branch for speed: see
    inference.py. A part that the config does not ask for is an Identity, or None, and has no parameters.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config) if config.resnet is None else HybridEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width)) if config.class_token else None
        registers = config.registers
        self.reg_token = nn.Parameter(torch.empty(1, registers, config.width)) if registers else None
        self.pos_embed = learned_tables(config)
        self.pos_drop = nn.Dropout(config.dropout)
        self.norm_pre = self._norm(config.norm_pre)
        self.blocks = nn.Sequential(*(Block(config, layer) for layer in range(config.depth)))
        self.norm = self._norm(not config.pool_norm)
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.fc_norm = self._norm(config.pool_norm)
        self.pre_logits = PreLogits(config) if config.representation_size else nn.Identity()
        self.head = nn.Identity()
        if config.num_classes:
            self.head = nn.Linear(config.embedding_dim, config.num_classes, config.head_bias)
        # On the meta device there is nothing to fill, and a normal_ there imports 900 modules, which takes
        # seconds.
        if not self.patch_embed.proj.weight.is_meta:
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

    @property
    def num_prefix(self) -> int:
        """Return the number of tokens before the patches: [class] and the registers."""
        return self.config.num_prefix

    def prepend(self, patches: torch.Tensor) -> torch.Tensor:
        """Return z_0 = [x_class; registers; patches] + E_pos (Eq. 1): (B, N, D) -> (B, T, D)."""
        B = len(patches)
        prefix = [t.expand(B, -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        z = torch.cat([*prefix, patches], dim=1) + positions(self.config, self.pos_embed, like=patches)
        return self.norm_pre(self.pos_drop(z))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return z_0 of Eq. 1: (B, 3, H, W) or (B, N, P*P*3) -> (B, T, D)."""
        return self.prepend(self.patch_embed(x))

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        """Apply Eq. 2 and 3, and the final norm unless it follows pooling: z_0 (B, T, D) -> (B, T, D)."""
        for layer, block in enumerate(self.blocks):
            if layer and self.config.position_at != "stem":
                z = z + positions(self.config, self.pos_embed, z, layer)
            z = block(z)
        return self.norm(z)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return all tokens after the encoder: (B, 3, H, W) or (B, N, P*P*3) -> (B, T, D)."""
        return self.encode(self.embed(x))

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return y of Eq. 4, the one state of an image: (B, T, D) -> (B, D), or (B, 2D) from two tokens."""
        if self.config.pool == "token":
            y = tokens[:, 0]
        elif self.config.pool == "distilled":
            y = tokens[:, :2].flatten(1)
        elif self.attn_pool is not None:
            y = self.attn_pool(tokens[:, self.num_prefix :])
        else:
            y = tokens[:, self.num_prefix :].mean(1)
        return self.fc_norm(y)

    def forward_head(self, tokens: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map (B, T, D) to logits (B, K), or with `pre_logits` to the input of the last layer, (B, D)."""
        y = self.pre_logits(self.pool(tokens))  # (B, D)
        if self.config.normalize:
            y = F.normalize(y, dim=-1)
        return y if pre_logits else self.head(y)

    def embedding(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) or patches (B, N, P*P*3) to the input of the last layer, (B, D)."""
        return self.forward_head(self.forward_features(x), pre_logits=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) or patches (B, N, P*P*3) to logits (B, K), without a head to (B, D)."""
        return self.forward_head(self.forward_features(x))
