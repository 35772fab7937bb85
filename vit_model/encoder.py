"""Compute the Transformer encoder: Eq. 2 and 3 of the paper. Parameter names are timm's."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ViTConfig


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """Compute OpenAI CLIP's approximation of the GELU."""
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    """Compute the GELU as flax's `nn.gelu` does by default, hence all of Google's ViTs."""
    return F.gelu(x, approximate="tanh")


# One function for each of config.GELUS.
GELU_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exact": F.gelu,
    "tanh": tanh_gelu,
    "quick": quick_gelu,
}

# Deviation of a unit normal cut at +-2. JAX's truncated initialisers divide by this number.
TRUNCATED_STD = 0.87962566


def lecun_normal_(weight: torch.Tensor) -> None:
    """Fill a kernel as flax does by default: variance 1 / fan_in after the cut."""
    std = math.sqrt(1 / weight[0].numel()) / TRUNCATED_STD
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def init_projection(linear: nn.Linear, parts: int = 1) -> None:
    """Fill each of the fused matrices by itself, Xavier-uniform.

    The shape of q, k and v together would give values that are sqrt(2) too small.
    """
    for matrix in linear.weight.chunk(parts):
        nn.init.xavier_uniform_(matrix)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class LayerScale(nn.Module):
    """Scale every channel of a residual branch by a learned number (CaiT, arXiv 2103.17239)."""

    def __init__(self, width: int, start: float):
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.empty(width))

    def init_weights(self) -> None:
        """Fill the scale with its start value."""
        nn.init.constant_(self.gamma, self.start)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return x * self.gamma


class DropPath(nn.Module):
    """Leave a residual branch out of some images, and scale the branch up in the other images.

    This is stochastic depth (arXiv 1603.09382); it acts in training only.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D) to (B, T, D)."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate)  # (B, 1, 1)
        return x * kept / (1 - self.rate)


class Attention(nn.Module):
    """Compute multi-head self-attention, Eq. 5 to 8: softmax(q k^T / sqrt(D_h)) v, D_h = D / heads."""

    attend = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        # U_qkv of all heads: [q; k; v] x heads x D_h rows
        self.qkv = nn.Linear(config.width, 3 * config.width, config.qkv_bias)
        d_h = config.width // config.heads
        self.q_norm = nn.LayerNorm(d_h, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(d_h, config.norm_eps) if config.qk_norm else nn.Identity()
        self.proj = nn.Linear(config.width, config.width)  # U_msa
        self.drop = nn.Dropout(config.dropout)

    def init_weights(self) -> None:
        """Fill the parameters as the JAX code does."""
        init_projection(self.qkv, parts=3)
        init_projection(self.proj)
        for norm in (self.q_norm, self.k_norm):
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D) to (B, T, D)."""
        B, T, D = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, self.heads, D // self.heads)  # (B, T, 3, heads, D_h)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, D_h)
        heads = self.attend(self.q_norm(q), self.k_norm(k), v)  # (B, heads, T, D_h)
        return self.drop(self.proj(heads.transpose(1, 2).reshape(B, T, D)))


class MLP(nn.Module):
    """Map D to mlp_dim and back to D, with a GELU between. Dropout follows both layers (appendix B.1)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.width)
        self.gelu = GELU_FUNCTIONS[config.gelu]
        self.drop = nn.Dropout(config.dropout)

    def init_weights(self) -> None:
        """Fill the parameters as the JAX code does."""
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return self.drop(self.fc2(self.drop(self.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Compute one pre-norm encoder layer.

    Args:
        config: the model.
        layer: place of the layer, from 0. Drop path grows linearly from 0 in the first layer to `drop_path`
            in the last.
    """

    def __init__(self, config: ViTConfig, layer: int = 0):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.width, config.layer_scale) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)
        self.ls2 = LayerScale(config.width, config.layer_scale) if config.layer_scale else nn.Identity()
        self.drop_path = DropPath(config.drop_path * layer / max(config.depth - 1, 1))

    def init_weights(self) -> None:
        """Fill the parameters as the JAX code does."""
        self.norm1.reset_parameters()
        self.attn.init_weights()
        self.norm2.reset_parameters()
        self.mlp.init_weights()
        for scale in (self.ls1, self.ls2):
            if isinstance(scale, LayerScale):
                scale.init_weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))  # Eq. 2
        x = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))  # Eq. 3
        return x


class AttentionPool(nn.Module):
    """Pool by attention: one learned query attends to the patches (arXiv 2106.04560, section 3.2; SigLIP)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        self.latent = nn.Parameter(torch.empty(1, 1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def init_weights(self) -> None:
        """Fill the parameters as big_vision's MAPHead does."""
        nn.init.xavier_uniform_(self.latent[0])
        init_projection(self.q)
        init_projection(self.kv, parts=2)
        init_projection(self.proj)
        self.norm.reset_parameters()
        self.mlp.init_weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, N, D) to (B, D)."""
        B, N, D = x.shape
        d_h = D // self.heads
        q = self.q(self.latent).expand(B, -1, -1).reshape(B, 1, self.heads, d_h)  # (B, 1, heads, D_h)
        k, v = self.kv(x).reshape(B, N, 2, self.heads, d_h).unbind(2)  # each (B, N, heads, D_h)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # each (B, heads, tokens, D_h)
        heads = F.scaled_dot_product_attention(q, k, v)  # (B, heads, 1, D_h)
        y = self.proj(heads.reshape(B, D))  # (B, D)
        return y + self.mlp(self.norm(y))
