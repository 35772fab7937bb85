"""Images to rows of patches and back, for numpy arrays and torch tensors alike. Imports no torch."""

from typing import TypeVar

Array = TypeVar("Array")  # numpy.ndarray or torch.Tensor: both have reshape and swapaxes


def patchify(images: Array, patch_size: int) -> Array:
    """Cut images into square patches: x_p of Eq. 1.

    Args:
        images: (..., H, W, C), H and W multiples of `patch_size`.

    Returns:
        (..., N, P*P*C): patches in raster order, in each the rows of pixels in raster order, channels fastest.
    """
    *batch, height, width, channels = images.shape
    p, rows, columns = patch_size, height // patch_size, width // patch_size
    if (rows * p, columns * p) != (height, width):
        raise ValueError(f"an image of {height} x {width} cannot be cut into patches of {p} x {p}")
    cells = images.reshape(*batch, rows, p, columns, p, channels).swapaxes(
        -4, -3
    )  # (..., rows, columns, P, P, C)
    return cells.reshape(*batch, rows * columns, p * p * channels)


def unpatchify(patches: Array, grid: tuple[int, int], patch_size: int) -> Array:
    """Put patches together again; the inverse of `patchify`.

    Args:
        patches: (..., N, P*P*C) with N = rows * columns.
        grid: (rows, columns).

    Returns:
        (..., H, W, C)
    """
    *batch, _, numbers = patches.shape
    (rows, columns), p, channels = grid, patch_size, numbers // patch_size**2
    cells = patches.reshape(*batch, rows, columns, p, p, channels).swapaxes(
        -4, -3
    )  # (..., rows, P, columns, P, C)
    return cells.reshape(*batch, rows * p, columns * p, channels)
