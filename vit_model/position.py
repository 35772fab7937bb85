"""Compute E_pos of Eq. 1: the kinds of positions (Table 8), and a learned table at another resolution."""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ViTConfig, check_choice

Tables: TypeAlias = nn.Parameter | nn.ParameterDict | None

# The arguments of F.interpolate for each value of `pos_interp`.
INTERPOLATE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "google": {"mode": "bilinear", "align_corners": True},
    "timm": {"mode": "bicubic", "antialias": True},
    "hf": {"mode": "bicubic"},
    "dinov2": {"mode": "bicubic"},
    "torchvision": {"mode": "bicubic", "align_corners": True},
    "siglip2": {"mode": "bilinear", "antialias": True},
}


def learned_tables(config: ViTConfig) -> Tables:
    """Return the parameters of the positions, not filled yet. A = depth if each layer has a table, else 1.

    Returns:
        "learned-1d": (A, N, D), or (A, 1+N, D) with a first row for [class]. "learned-2d": y (A, H/P, D/2)
        and x (A, W/P, D/2). None for "none" and for sines and cosines.
    """
    tables = config.depth if config.position_at == "every-layer" else 1
    if config.position == "learned-1d":
        return nn.Parameter(torch.empty(tables, config.class_rows + config.num_patches, config.width))
    if config.position == "learned-2d":
        y = torch.empty(tables, config.grid[0], config.width // 2)
        x = torch.empty(tables, config.grid[1], config.width // 2)
        return nn.ParameterDict({"y": y, "x": x})
    return None


def positions(config: ViTConfig, tables: Tables, like: torch.Tensor, layer: int = 0) -> torch.Tensor:
    """Return the positions that are added to the tokens in front of a layer.

    Args:
        config: the model.
        tables: the parameters that `learned_tables` made.
        like: any tensor of the device and type that the positions shall have.
        layer: number of the layer, from 0. It matters only if every layer has its own table.

    Returns:
        (1, T, D), zero where a token has no position.
    """
    own = slice(layer, layer + 1) if config.position_at == "every-layer" else slice(0, 1)
    if isinstance(tables, nn.ParameterDict):
        rows = concatenated(tables["y"][own], tables["x"][own])  # (1, N, D)
    elif tables is not None:
        rows = tables[own]  # (1, N, D) or (1, 1+N, D)
    elif config.position == "none":
        rows = like.new_zeros(1, config.num_patches, config.width)
    else:
        mae = config.position == "sincos-2d-mae"
        rows = sincos_2d(config.grid, config.width, mae, like.device).to(like.dtype)  # (1, N, D)
    c = config.class_rows
    without = rows.new_zeros(1, config.num_prefix - c, config.width)
    return torch.cat([rows[:, :c], without, rows[:, c:]], dim=1)


def concatenated(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Join two axes to the 2-D embedding of Table 8: (1, h, D/2) and (1, w, D/2) -> (1, h*w, D)."""
    h, w = y.shape[1], x.shape[1]
    columns = x[:, None].expand(-1, h, -1, -1)  # (1, h, w, D/2)
    rows = y[:, :, None].expand(-1, -1, w, -1)  # (1, h, w, D/2)
    return torch.cat([columns, rows], dim=-1).flatten(1, 2)


def sincos_2d(
    grid: tuple[int, int], width: int, mae: bool = False, device: str | torch.device | None = None
) -> torch.Tensor:
    """Return [sin x, cos x, sin y, cos y] with omega_i = 10000^(-i / (D/4 - 1)), as MoCo-v3 and big_vision.

    The positions are no state: they are computed at every call, so another image size needs nothing.

    Args:
        grid: patches (down, across).
        width: D.
        mae: divide by D/4 in place of D/4 - 1, as MAE does.
        device: the device of the result.

    Returns:
        (1, h*w, D) float32.
    """
    steps = width // 4 if mae else max(width // 4 - 1, 1)
    omega = 10000.0 ** -(torch.arange(width // 4, device=device) / steps)  # (D/4,)
    y, x = (torch.arange(side, device=device)[:, None] * omega for side in grid)  # (h, D/4), (w, D/4)
    rows = torch.cat([y.sin(), y.cos()], dim=1)[None]  # (1, h, D/2)
    columns = torch.cat([x.sin(), x.cos()], dim=1)[None]  # (1, w, D/2)
    return concatenated(rows, columns)


def resample(
    table: torch.Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    prefix: int,
    pos_interp: str = "timm",
) -> torch.Tensor:
    """Interpolate a table in 2-D "according to their location in the original image" (section 3.2).

    Every code base does it in its own way. On a table of unit normals the results differ by tenths:

    * "google": scipy.ndimage.zoom(order=1), that is bilinear with aligned corners.
    * "timm": bicubic with antialiasing. This matters also when the grid grows: torch's cubic coefficient
      differs.
    * "hf": bicubic without antialiasing, as in transformers, DeiT and MAE.
    * "dinov2": as "hf", but the scale counts a tenth of a patch more in the new grid, as DINOv2 (without
      registers) does.
    * "torchvision": bicubic with aligned corners, as its `interpolate_embeddings` does.
    * "siglip2": bilinear with antialiasing, as NaFlex models.

    Args:
        table: (A, prefix + h*w, D)
        old_grid: patches (down, across) of the table.
        new_grid: patches (down, across) of the result.
        prefix: rows in front that belong to no patch; these rows are kept as they are.
        pos_interp: one of POS_INTERP.

    Returns:
        (A, prefix + H*W, D) in the type of `table`; computed in float32.

    Raises:
        ModelError: `pos_interp` is not known.
    """
    check_choice("pos_interp", pos_interp, INTERPOLATE_ARGUMENTS)
    if old_grid == new_grid:
        return table
    tables, _, width = table.shape
    image = table[:, prefix:].float().reshape(tables, *old_grid, width).permute(0, 3, 1, 2)  # (A, D, h, w)
    size = _interpolate_size(old_grid, new_grid, pos_interp)
    image = F.interpolate(image, **size, **INTERPOLATE_ARGUMENTS[pos_interp])  # (A, D, H, W)
    rows = image.permute(0, 2, 3, 1).reshape(tables, -1, width).to(table.dtype)  # (A, H*W, D)
    return torch.cat([table[:, :prefix], rows], dim=1)


def _interpolate_size(
    old_grid: tuple[int, int], new_grid: tuple[int, int], pos_interp: str
) -> dict[str, Any]:
    """Return the arguments of F.interpolate that say the size of the result."""
    if pos_interp != "dinov2":
        return {"size": new_grid}
    return {"scale_factor": [(new + 0.1) / old for new, old in zip(new_grid, old_grid, strict=True)]}


def resampled(state: dict[str, torch.Tensor], old: ViTConfig, new: ViTConfig) -> dict[str, torch.Tensor]:
    """Return the learned tables of a state dict, resampled for the image size of `new`."""
    grids = {
        "pos_embed": (old.grid, new.grid),
        "pos_embed.y": ((old.grid[0], 1), (new.grid[0], 1)),
        "pos_embed.x": ((1, old.grid[1]), (1, new.grid[1])),
    }
    tables = {}
    for name, (old_grid, new_grid) in grids.items():
        if name in state:
            tables[name] = resample(state[name], old_grid, new_grid, old.class_rows, old.pos_interp)
    return tables
