"""The learned 1-D position table, E_pos of Eq. 1, and how it follows a change of resolution."""

import torch
import torch.nn.functional as F
from torch import nn

from vit_model.config import ViTConfig


def learned_table(config: ViTConfig) -> nn.Parameter:
    """(1, N, D), one row a patch, or (1, 1+N, D) with a first row for [class]; not filled yet."""
    rows = config.num_patches + config.class_position
    return nn.Parameter(torch.empty(1, rows, config.width))


def resample(pos_embed: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], prefix: int) -> torch.Tensor:
    """2-D interpolation of the table "according to their location in the original image" (section 3.2), timm's way.

    Bicubic with antialiasing, which matters also when the grid grows: torch's cubic coefficient differs without it.

    Args:
        pos_embed: (1, prefix + h*w, D)
        old_grid, new_grid: patches (down, across).
        prefix: rows in front that belong to no patch; they are kept as they are.

    Returns:
        (1, prefix + H*W, D) in the type of `pos_embed`; computed in float32.
    """
    if old_grid == new_grid:
        return pos_embed
    width = pos_embed.shape[-1]
    image = pos_embed[:, prefix:].float().reshape(1, *old_grid, width).permute(0, 3, 1, 2)  # (1, D, h, w)
    image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True)  # (1, D, H, W)
    rows = image.permute(0, 2, 3, 1).reshape(1, -1, width).to(pos_embed.dtype)  # (1, H*W, D)
    return torch.cat([pos_embed[:, :prefix], rows], dim=1)
