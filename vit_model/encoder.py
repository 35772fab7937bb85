"""The Transformer encoder: Eq. 2 and 3 of the paper. Parameter names are timm's."""

import torch
import torch.nn.functional as F
from torch import nn

from vit_model.config import ViTConfig


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """OpenAI CLIP's approximation."""
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    """What flax's `nn.gelu` computes unless told otherwise, hence all of Google's ViTs."""
    return F.gelu(x, approximate="tanh")


GELU = {"exact": F.gelu, "tanh": tanh_gelu, "quick": quick_gelu}


class Attention(nn.Module):
    """Multi-head self-attention, Eq. 5 to 8: softmax(q k^T / sqrt(D_h)) v, D_h = D / heads."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)  # U_qkv of all heads: [q; k; v] x heads x D_h rows
        self.proj = nn.Linear(config.width, config.width)  # U_msa

    def init_weights(self) -> None:
        for matrix in self.qkv.weight.chunk(3):  # q, k, v each by itself: the fused shape would be sqrt(2) too small
            nn.init.xavier_uniform_(matrix)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)"""
        B, T, D = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, self.heads, D // self.heads)  # (B, T, 3, heads, D_h)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, D_h)
        heads = F.scaled_dot_product_attention(q, k, v)  # (B, heads, T, D_h)
        return self.proj(heads.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """D -> mlp_dim -> D with a GELU between."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.width)
        self.gelu = GELU[config.gelu]

    def init_weights(self) -> None:
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)"""
        return self.fc2(self.gelu(self.fc1(x)))


class Block(nn.Module):
    """One pre-norm encoder layer."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def init_weights(self) -> None:
        self.norm1.reset_parameters()
        self.attn.init_weights()
        self.norm2.reset_parameters()
        self.mlp.init_weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)"""
        x = x + self.attn(self.norm1(x))  # Eq. 2
        x = x + self.mlp(self.norm2(x))  # Eq. 3
        return x
