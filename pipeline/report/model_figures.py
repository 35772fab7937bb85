"""Draw the paper's figures of a model, each from arrays into the bytes of a PNG file.

The letters of the shapes: an image H * W pixels, its grid h * w patches, L layers.
"""

import math
from typing import Any

import numpy as np

from wordsworth.pipeline.report.figure_frame import INK, PALE, framed

HEAT = "inferno"
PANELS_ACROSS = range(4, 8)  # panels side by side, where there are more than four
FILTERS_ACROSS = 7
MOST_TILES = 16  # tiles along a side of the figure of positions; of more patches, one of every few is shown
MOST_NUMBERS = 40  # patches along a side that are all numbered; of more, those of every few rows and columns
PANEL = 3.3  # inches along the longer side of an image


def rollout_figure(image: np.ndarray, rollout: np.ndarray, title: str, note: str = "") -> bytes:
    """Draw where the state of an image comes from, Fig. 6 and 14: the image, the image by attention, the map.

    Args:
        image: uint8 (H, W, 3), as the model sees it.
        rollout: (h, w) share of each patch.
        title: the first line.
        note: the second line.
    """
    with framed(*_panels(image, 3), title, note) as (figure, saved):
        plain, masked, heat = figure.subplots(1, 3)
        _show_image(plain, image, "what the model sees")
        _show_image(masked, weighted_image(image, rollout), "the image by attention")
        shown_map = _show_map(heat, 100 * rollout, image.shape[:2], 0, None)
        heat.set_title("attention rollout, by patch", loc="left")
        _colour_bar(figure, shown_map, heat, "share of the pooled state (%)")
    return saved.getvalue()


def heads_figure(image: np.ndarray, heads: np.ndarray, title: str, note: str = "") -> bytes:
    """Draw the attention of each head to each patch, all on one scale.

    Args:
        image: uint8 (H, W, 3), as the model sees it.
        heads: (heads, h, w) attention weights.
        title, note: the first and the second line.
    """
    num_panels = len(heads) + 1
    across = panels_across(num_panels)
    down = math.ceil(num_panels / across)
    highest = float(heads.max())
    with framed(*_panels(image, across, down, side=2.2), title, note) as (figure, saved):
        from matplotlib.colors import PowerNorm

        axes = list(figure.subplots(down, across, squeeze=False).flat)
        _show_image(axes[0], image, "what the model sees")
        norm = PowerNorm(0.5, 0, highest or 1.0)
        for number, (axis, weights) in enumerate(zip(axes[1:], heads, strict=False), 1):
            drawn = _show_map(axis, weights, image.shape[:2], norm=norm)
            axis.set_title(f"head {number}: {weights.sum():.0%} on patches", loc="left")
        for axis in axes[num_panels:]:
            axis.set_axis_off()
        _colour_bar(figure, drawn, axes, "attention weight", shrink=0.8 if down == 1 else 0.6)
    return saved.getvalue()


def panels_across(num_panels: int) -> int:
    """Return how many panels stand side by side, so that the last row has few gaps."""
    if num_panels <= PANELS_ACROSS.start:
        return num_panels
    return min(PANELS_ACROSS, key=lambda across: -num_panels % across)


def patches_figure(image: np.ndarray, grid: tuple[int, int], title: str, note: str = "") -> bytes:
    """Draw the patches and the order in which they are read: numbers from 1 on, row after row.

    Args:
        image: uint8 (H, W, 3), as the model sees it.
        grid: patches (down, across).
        title, note: the first and the second line.
    """
    height, width = image.shape[:2]
    longest = max(grid)
    every = math.ceil(longest / MOST_NUMBERS)
    side = min(11.0, max(5.0, longest * 0.32))
    pale = (image.astype(np.float32) * 0.45 + 255 * 0.55).astype(np.uint8)
    points = max(3.5, min(12.0, 72 * side / longest * 0.27 * every))
    if every > 1:
        note = f"{note}; numbers of one of {every} rows and columns".lstrip("; ")
    with framed(*_panels(image, 1, side=side), title, note) as (figure, saved):
        axis = figure.subplots()
        _show_image(axis, pale, "")
        down, across = height / grid[0], width / grid[1]
        for row in range(1, grid[0]):
            axis.axhline(row * down - 0.5, color=INK, alpha=0.3, linewidth=0.8)
        for column in range(1, grid[1]):
            axis.axvline(column * across - 0.5, color=INK, alpha=0.3, linewidth=0.8)
        for number in patch_numbers(grid, every):
            row, column = divmod(number - 1, grid[1])
            centre = ((column + 0.5) * across - 0.5, (row + 0.5) * down - 0.5)
            axis.text(*centre, str(number), ha="center", va="center", fontsize=points, color=INK)
    return saved.getvalue()


def patch_numbers(grid: tuple[int, int], every: int = 1) -> list[int]:
    """Return the numbers, from 1 on in raster order, of the patches in every few rows and columns."""
    rows, columns = grid
    return [
        row * columns + column + 1 for row in range(0, rows, every) for column in range(0, columns, every)
    ]


def filters_figure(filters: np.ndarray, title: str, note: str = "") -> bytes:
    """Draw the principal components of the filters that see the pixels, Fig. 7 (left).

    Args:
        filters: (n, P, P, 3) in [0, 1], the strongest first.
        title, note: the first and the second line.
    """
    across = min(len(filters), FILTERS_ACROSS)
    down = math.ceil(len(filters) / across)
    with framed(across * 0.95, down * 0.95, title, note) as (figure, saved):
        for number, axis in enumerate(figure.subplots(down, across, squeeze=False).flat):
            axis.set_axis_off()
            if number < len(filters):
                axis.imshow(filters[number], interpolation="nearest")
    return saved.getvalue()


def positions_figure(similarity: np.ndarray, title: str, note: str = "") -> bytes:
    """Draw how similar the embeddings of positions are, Fig. 7 (centre): a tile for each patch.

    Args:
        similarity: (h, w, h, w) cosines; tile [i, j] compares patch (i, j) with every patch.
        title, note: the first and the second line.
    """
    rows, columns = similarity.shape[:2]
    every = math.ceil(max(rows, columns) / MOST_TILES)
    tiles = similarity[::every, ::every]
    if every > 1:
        note = f"{note}; one of {every} rows and columns".lstrip("; ")
    mosaic = tile_mosaic(tiles)
    inches = 6.4 / max(rows, columns)
    with framed(inches * columns + 0.9, inches * rows, title, note) as (figure, saved):
        axis = figure.subplots()
        drawn = axis.imshow(mosaic, cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
        axis.set(xlabel="column of the patch", ylabel="row of the patch")
        axis.set_yticks(_middles(len(tiles), rows), [str(1 + every * row) for row in range(len(tiles))])
        across = tiles.shape[1]
        axis.set_xticks(_middles(across, columns), [str(1 + every * column) for column in range(across)])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        _colour_bar(figure, drawn, axis, "cosine similarity")
    return saved.getvalue()


def _middles(num_tiles: int, length: int) -> np.ndarray:
    """Return the middles of tiles in a row, whose side has `length` cells."""
    return np.arange(num_tiles) * (length + gap_of(length)) + length / 2 - 0.5


def gap_of(length: int) -> int:
    """Return the cells between two tiles whose side has `length` cells."""
    return max(1, length // 12)


def tile_mosaic(tiles: np.ndarray) -> np.ndarray:
    """Put tiles side by side, with gaps of NaN: (a, b, h, w) -> one map."""
    down, across, rows, columns = tiles.shape
    row_gap, column_gap = gap_of(rows), gap_of(columns)
    height = down * (rows + row_gap) - row_gap
    mosaic = np.full((height, across * (columns + column_gap) - column_gap), np.nan)
    for i in range(down):
        for j in range(across):
            top, left = i * (rows + row_gap), j * (columns + column_gap)
            mosaic[top : top + rows, left : left + columns] = tiles[i, j]
    return mosaic


def distances_figure(distances: np.ndarray, uniform: float, title: str, note: str = "") -> bytes:
    """Draw how far each head looks, against the depth of its layer: Fig. 7 (right) and 11.

    Args:
        distances: (L, heads) in pixels.
        uniform: pixels of a head that looks at all patches alike.
        title, note: the first and the second line.
    """
    depth, num_heads = distances.shape
    layers = np.arange(1, depth + 1)
    with framed(6.4, 4.0, title, note) as (figure, saved):
        from matplotlib.ticker import MaxNLocator

        axis = figure.subplots()
        axis.axhline(uniform, color=PALE, linestyle=":", linewidth=1.2, label="all patches alike")
        axis.plot(layers, distances.mean(1), color="#c8553d", linewidth=1.6, label="mean of the heads")
        axis.scatter(
            np.repeat(layers, num_heads),
            distances.reshape(-1),
            s=26,
            color="#2a6f97",
            alpha=0.65,
            linewidths=0,
            label="a head",
            zorder=3,
        )
        axis.set(xlabel="layer, from the image on", ylabel="mean attention distance (pixels)")
        axis.set_ylim(0, 1.08 * max(float(distances.max()), uniform) or 1.0)
        axis.set_xlim(0.5, depth + 0.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    return saved.getvalue()


def weighted_image(image: np.ndarray, rollout: np.ndarray) -> np.ndarray:
    """Return the image multiplied by its attention, as Fig. 6 has it: the strongest patch stays as it is.

    Args:
        image: uint8 (H, W, 3).
        rollout: (h, w); scaled to the image by bilinear interpolation.

    Returns:
        uint8 (H, W, 3).
    """
    from PIL import Image

    height, width = image.shape[:2]
    peak = float(rollout.max()) or 1.0
    small = Image.fromarray((rollout / peak).astype(np.float32))
    mask = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)
    return np.rint(image * mask[..., None]).astype(np.uint8)


# ---- parts of a figure -------------------------------------------------------------------------------------


def _panels(image: np.ndarray, across: int, down: int = 1, side: float = PANEL) -> tuple[float, float]:
    """Return (width, height) in inches of panels with an image each."""
    height, width = image.shape[:2]
    longest = max(height, width)
    bar = 0.9 if across > 1 else 0.0
    return across * side * width / longest + bar, down * (side * height / longest + 0.3)


def _show_image(axis: Any, image: np.ndarray, title: str) -> None:
    axis.imshow(image, interpolation="bilinear")
    axis.set_axis_off()
    axis.set_title(title, loc="left")


def _show_map(
    axis: Any,
    values: np.ndarray,
    size: tuple[int, int],
    lowest: float | None = None,
    highest: float | None = None,
    norm: Any = None,
) -> Any:
    """Draw a map of patches at the size of its image, (height, width), each patch as one square."""
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    axis.set_axis_off()
    return axis.imshow(
        values, cmap=HEAT, extent=extent, interpolation="nearest", vmin=lowest, vmax=highest, norm=norm
    )


def _colour_bar(figure: Any, drawn: Any, axes: Any, label: str, shrink: float = 0.85) -> None:
    bar = figure.colorbar(drawn, ax=axes, label=label, shrink=shrink, pad=0.02)
    bar.outline.set_visible(False)
