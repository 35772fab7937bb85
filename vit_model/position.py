"""E_pos of Eq. 1: its kinds (Table 8 of the paper), and how a learned table follows a change of resolution."""

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ModelError, ViTConfig

Tables = nn.Parameter | nn.ParameterDict | None


def learned_tables(config: ViTConfig) -> Tables:
    """What of the positions is learned; not filled yet. A = depth with a table of each layer's own, else 1.

    Returns:
        "learned-1d": (A, N, D), or (A, 1+N, D) with a first row for [class]. "learned-2d": y (A, H/P, D/2) and
        x (A, W/P, D/2). None for "none" and for sines and cosines.
    """
    tables = config.depth if config.position_at == "every-layer" else 1
    if config.position == "learned-1d":
        return nn.Parameter(torch.empty(tables, config.class_rows + config.num_patches, config.width))
    if config.position == "learned-2d":
        sides = {"y": config.grid[0], "x": config.grid[1]}
        return nn.ParameterDict(
            {name: torch.empty(tables, side, config.width // 2) for name, side in sides.items()}
        )
    return None


def positions(config: ViTConfig, tables: Tables, like: torch.Tensor, layer: int = 0) -> torch.Tensor:
    """What is added to the tokens in front of a layer: (1, T, D), zero where a token has no position.

    Args:
        like: any tensor of the device and type that the positions shall have.
    """
    own = slice(layer, layer + 1) if config.position_at == "every-layer" else slice(0, 1)
    if config.position == "learned-1d":
        rows = tables[own]  # (1, N, D) or (1, 1+N, D)
    elif config.position == "learned-2d":
        rows = concatenated(tables["y"][own], tables["x"][own])  # (1, N, D)
    elif config.position == "none":
        rows = like.new_zeros(1, config.num_patches, config.width)
    else:
        mae = config.position == "sincos-2d-mae"
        rows = sincos_2d(config.grid, config.width, mae, like.device).to(like.dtype)  # (1, N, D)
    c = config.class_rows
    without = rows.new_zeros(1, config.num_prefix - c, config.width)
    return torch.cat([rows[:, :c], without, rows[:, c:]], dim=1)


def concatenated(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The 2-D embedding of Table 8, half of the width for each axis: (1, h, D/2) and (1, w, D/2) -> (1, h*w, D)."""
    h, w = y.shape[1], x.shape[1]
    return torch.cat([x[:, None].expand(-1, h, -1, -1), y[:, :, None].expand(-1, -1, w, -1)], dim=-1).flatten(
        1, 2
    )


def sincos_2d(
    grid: tuple[int, int], width: int, mae: bool = False, device: str | torch.device | None = None
) -> torch.Tensor:
    """[sin x, cos x, sin y, cos y] with omega_i = 10000^(-i / (D/4 - 1)), as MoCo-v3 and big_vision; / (D/4) in MAE.

    Computed anew whenever it is wanted: no state, so another image size needs nothing.

    Returns:
        (1, h*w, D) float32.
    """
    steps = width // 4 if mae else max(width // 4 - 1, 1)
    omega = 10000.0 ** -(torch.arange(width // 4, device=device) / steps)  # (D/4,)
    y, x = (torch.arange(side, device=device)[:, None] * omega for side in grid)  # (h, D/4), (w, D/4)
    return concatenated(*(torch.cat([angle.sin(), angle.cos()], dim=1)[None] for angle in (y, x)))


def resample(
    table: torch.Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    prefix: int,
    manner: str = "timm",
) -> torch.Tensor:
    """2-D interpolation of a table "according to their location in the original image" (section 3.2).

    Nobody agrees how; on a table of unit normals the manners differ by tenths:

    * "google": scipy.ndimage.zoom(order=1), that is bilinear with aligned corners.
    * "timm": bicubic with antialiasing, which matters also when the grid grows: torch's cubic coefficient differs.
    * "hf": bicubic without antialiasing, as in transformers, DeiT and MAE.
    * "dinov2": the same, with a tenth of a patch added to the new grid in the scale, as DINOv2 (without registers) has it.

    Args:
        table: (A, prefix + h*w, D)
        old_grid, new_grid: patches (down, across).
        prefix: rows in front that belong to no patch; they are kept as they are.

    Returns:
        (A, prefix + H*W, D) in the type of `table`; computed in float32.

    Raises:
        ModelError: an unknown manner.
    """
    if manner not in MANNERS:
        raise ModelError(f"manner is {manner!r}; it must be one of {', '.join(MANNERS)}")
    if old_grid == new_grid:
        return table
    tables, _, width = table.shape
    image = table[:, prefix:].float().reshape(tables, *old_grid, width).permute(0, 3, 1, 2)  # (A, D, h, w)
    scale = [(new + 0.1) / old for new, old in zip(new_grid, old_grid, strict=True)]
    size = {"scale_factor": scale} if manner == "dinov2" else {"size": new_grid}
    image = F.interpolate(image, **size, **MANNERS[manner])  # (A, D, H, W)
    rows = image.permute(0, 2, 3, 1).reshape(tables, -1, width).to(table.dtype)  # (A, H*W, D)
    return torch.cat([table[:, :prefix], rows], dim=1)


MANNERS = {
    "google": {"mode": "bilinear", "align_corners": True},
    "timm": {"mode": "bicubic", "antialias": True},
    "hf": {"mode": "bicubic"},
    "dinov2": {"mode": "bicubic"},
}


def resampled(state: dict[str, torch.Tensor], old: ViTConfig, new: ViTConfig) -> dict[str, torch.Tensor]:
    """The learned tables of a state dict for the image size of `new`, in the checkpoint's manner."""
    grids = {
        "pos_embed": (old.grid, new.grid),
        "pos_embed.y": ((old.grid[0], 1), (new.grid[0], 1)),
        "pos_embed.x": ((1, old.grid[1]), (1, new.grid[1])),
    }
    known = {name: grid for name, grid in grids.items() if name in state}
    return {
        name: resample(state[name], *grid, old.class_rows, old.pos_interp) for name, grid in known.items()
    }
