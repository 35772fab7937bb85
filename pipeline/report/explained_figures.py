"""Draw what a model attends to and what it has learned; captions say how to read each figure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.report import model_figures
from wordsworth.pipeline.sources.model_inputs import ModelInput
from wordsworth.vit_model.analysis import patch_distances, rgb_filters
from wordsworth.vit_model.attended import Attention, Layout, filters_of, positions_of
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.config import ModelError

NUM_FILTERS = 28  # as in Fig. 7
# What a pooled state is, by the way of pooling.
POOLED = {
    "token": "the state of [class]",
    "distilled": "the mean of the states of [class] and [distillation]",
    "avg": "the mean of the states of the patches",
    "map": "the state of the attention pool",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Hold one figure.

    Attributes:
        file: name of its PNG file.
        png: the file.
        caption: what it shows and how to read it.
        alt: what it shows, for those who do not see it.
    """

    file: str
    png: bytes
    caption: str
    alt: str


# ---- figures of an image -----------------------------------------------------------------------------------


def rollout(image: ModelInput, attention: Attention, told: str, number: int) -> Figure:
    """Draw where an image's state comes from, Fig. 6.

    Args:
        image: as the model sees it.
        attention: of the image.
        told: the prediction in words.
        number: of the image, from 1 on; it names the file.
    """
    state = POOLED[attention.layout.pool]
    share = float(attention.rollout.sum())
    row, column = np.unravel_index(int(attention.rollout.argmax()), attention.layout.grid)
    hottest = f"row {row + 1}, column {column + 1}"
    return Figure(
        file=f"image-{number:03d}-rollout.png",
        png=model_figures.rollout_figure(
            image.pixels,
            attention.rollout.numpy(),
            f"{image.short_name}: {told}",
            f"{share:.0%} of {state} comes from patches; most from {hottest}",
        ),
        caption=(
            "Attention rollout (Fig. 6): the attention of all layers, averaged over heads and multiplied, "
            f"with the residual connections. It says how much of {state} comes from each patch: {share:.1%} "
            f"in all, the rest from other tokens. The strongest patch is in {hottest}."
        ),
        alt=f"Attention rollout of {image.name}, strongest in {hottest}",
    )


def heads(image: ModelInput, attention: Attention, layer: int | None, number: int) -> list[Figure]:
    """Draw the attention of each head of one layer, or of the attention pool: a figure for each query.

    Args:
        image, attention, number: as for `rollout`.
        layer: from 1 on, or from the end if negative; None: the attention pool, or else the last layer.

    Raises:
        UserError: there is no such layer.
    """
    if layer is None and attention.pool_heads is not None:
        return [_heads(image, attention.pool_heads, "pool", "the latent of the attention pool", number)]
    depth = attention.heads.shape[1]
    place = _place_of(layer, depth)
    figures = []
    for query, maps in zip(attention.layout.queries, attention.heads, strict=True):
        name = f"layer-{place + 1:02d}" + ("-distillation" if query == "[distillation]" else "")
        figures.append(_heads(image, maps[place], name, f"{query} in layer {place + 1} of {depth}", number))
    return figures


def _heads(image: ModelInput, maps: torch.Tensor, name: str, query: str, number: int) -> Figure:
    return Figure(
        file=f"image-{number:03d}-heads-{name}.png",
        png=model_figures.heads_figure(
            image.pixels,
            maps.numpy(),
            f"attention of {query}",
            f"{image.short_name}; one scale for all heads, in which a step is smaller the brighter it is",
        ),
        caption=(
            f"The attention of {query} to each patch, head by head, on one scale. What is not on patches is "
            "on other tokens."
        ),
        alt=f"Attention of {query} to the patches of {image.name}, {len(maps)} heads",
    )


def _place_of(layer: int | None, depth: int) -> int:
    """Return the place of a layer, from 0 on.

    Raises:
        UserError: there is no such layer.
    """
    place = -1 if layer is None else layer
    if place == 0 or abs(place) > depth:
        raise UserError(f"--layer {layer}: the model has the layers 1 to {depth}, or -1 for the last", 2)
    return place - 1 if place > 0 else depth + place


def patches(image: ModelInput, layout: Layout, number: int) -> Figure:
    """Draw the patches of an image in their reading order.

    Args:
        image, number: as for `rollout`.
        layout: what the tokens are.
    """
    rows, columns = layout.grid
    before = ""
    if layout.num_prefix:
        before = f", after {layout.num_prefix} token{'s' if layout.num_prefix > 1 else ''} of no patch"
    size = f"{rows} x {columns} patches of {layout.patch_size} x {layout.patch_size} pixels"
    return Figure(
        file=f"image-{number:03d}-patches.png",
        png=model_figures.patches_figure(image.pixels, layout.grid, "the patches in reading order", size),
        caption=f"Here an image is worth {rows * columns:,} words: {size}, read row after row{before}.",
        alt=f"The patches of {image.name}, numbered from 1 to {rows * columns} row after row",
    )


# ---- figures of the model ----------------------------------------------------------------------------------


def filters(model: nn.Module, layout: Layout | str) -> Figure | str:
    """Draw the RGB filters of a model, Fig. 7 (left), or say in a line why there are none.

    Args:
        model: a checkpoint's `model()`.
        layout: what its tokens are, or why this is not known.
    """
    try:
        kernel = filters_of(model).float()
        most = min(kernel.shape[0] - 1, kernel[0].numel())
        components = rgb_filters(kernel, min(NUM_FILTERS, most))
    except ModelError as error:
        return f"no filters are drawn: {error}"
    is_embedding = isinstance(layout, Layout) and kernel.shape[-1] == layout.patch_size
    where = "the patch embedding" if is_embedding else "the first convolution"
    size = f"{kernel.shape[0]:,} filters of {kernel.shape[-2]} x {kernel.shape[-1]} pixels"
    strongest = f"the first {len(components)} principal components of {size}"
    return Figure(
        file="filters.png",
        png=model_figures.filters_figure(components.numpy(), f"RGB filters of {where}", strongest),
        caption=(
            f"RGB filters of {where} (Fig. 7, left): {strongest}, each scaled by itself. After much training "
            "they look like the low frequencies of an image; after little, like noise."
        ),
        alt=f"{len(components)} small colour images, the principal components of the filters",
    )


def positions(checkpoint: BaseCheckpoint, model: nn.Module, layout: Layout | str) -> Figure | str:
    """Draw how similar a model's positions are, Fig. 7 (centre), or say in a line why there are none.

    Args:
        checkpoint: the model at rest.
        model: its `model()`.
        layout: what its tokens are, or why this is not known.
    """
    if isinstance(layout, str):
        return f"no positions are drawn: {layout}"
    try:
        similarity = positions_of(checkpoint, model, layout)
    except ModelError as error:
        return f"no positions are drawn: {error}"
    rows, columns = layout.grid
    return Figure(
        file="positions.png",
        png=model_figures.positions_figure(
            similarity.numpy(),
            "similarity of position embeddings",
            "a tile for each patch: the cosine of its position with that of every patch",
        ),
        caption=(
            "Similarity of position embeddings (Fig. 7, centre): the tile of a patch has the cosine of its "
            f"position with those of all {rows} x {columns} patches. Learned positions come to be most like "
            "their neighbours, and like their own row and column."
        ),
        alt=f"{rows} x {columns} tiles: the similarity of each position to all positions",
    )


def distances(attentions: Sequence[Attention]) -> Figure:
    """Draw the mean attention distance of each head by depth, over images: Fig. 7 (right).

    Args:
        attentions: of at least one image.
    """
    layout = attentions[0].layout
    mean = torch.stack([attention.distances for attention in attentions]).mean(0)  # (L, heads)
    uniform = float(patch_distances(layout.grid, layout.patch_size).mean())
    count = f"{len(attentions)} image{'s' if len(attentions) > 1 else ''}"
    return Figure(
        file="distances.png",
        png=model_figures.distances_figure(
            mean.numpy(), uniform, "attention distance by depth", f"mean over {count}"
        ),
        caption=(
            "How far each head looks (Fig. 7, right): the distance between the patch that asks and the patch "
            f"that answers, weighted by attention; the mean over {count} (the paper takes 128). Attention "
            "to tokens of no patch counts as distance 0. The dotted line is a head that looks at all patches "
            "alike."
        ),
        alt=f"Attention distance in pixels of {mean.shape[1]} heads in each of {mean.shape[0]} layers",
    )
