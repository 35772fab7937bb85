"""Cut images into rows of patches and put patches together again, in numpy or torch. Imports no torch."""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

Array = TypeVar("Array", "np.ndarray", "torch.Tensor")


def patchify(images: Array, patch_size: int) -> Array:
    """Cut images into square patches: x_p of Eq. 1.

    Args:
        images: (..., H, W, C), H and W multiples of `patch_size`.
        patch_size: P, in pixels.

    Returns:
        (..., N, P*P*C): patches in raster order. In a patch, pixels are in raster order too, channels
        fastest.
    """
    *batch, height, width, channels = images.shape
    p, rows, columns = patch_size, height // patch_size, width // patch_size
    if (rows * p, columns * p) != (height, width):
        raise ValueError(f"an image of {height} x {width} cannot be cut into patches of {p} x {p}")
    cells = images.reshape(*batch, rows, p, columns, p, channels)
    cells = cells.swapaxes(-4, -3)  # (..., rows, columns, P, P, C)
    return cells.reshape(*batch, rows * columns, p * p * channels)


def unpatchify(patches: Array, grid: tuple[int, int], patch_size: int) -> Array:
    """Put patches together again; the inverse of `patchify`.

    Args:
        patches: (..., N, P*P*C) with N = rows * columns.
        grid: (rows, columns).
        patch_size: P, in pixels.

    Returns:
        (..., H, W, C)
    """
    *batch, _, numbers = patches.shape
    (rows, columns), p, channels = grid, patch_size, numbers // patch_size**2
    cells = patches.reshape(*batch, rows, columns, p, p, channels)
    cells = cells.swapaxes(-4, -3)  # (..., rows, P, columns, P, C)
    return cells.reshape(*batch, rows * p, columns * p, channels)
