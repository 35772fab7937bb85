"""Measure what a trained ViT has learned: the numbers behind Fig. 6, 7, 11 and 14 of the paper.

Results are torch tensors, detached, on the model's device; nothing is drawn. The model is used as it is: call
`model.eval()` first, or dropout is measured too. Attention weights are computed from the queries and keys
that pass through a forward hook: the forward itself stays on the fused path, which never forms attention
weights.

The letters of the shapes: B images, L layers, T tokens of which the first `num_prefix` are no patches, N
patches, width D.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.encoder import Attention
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.position import positions

Result = TypeVar("Result")


def attention_weights(attn: Attention, qkv: torch.Tensor) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(D_h)), Eq. 6, at least in float32.

    Args:
        attn: the layer.
        qkv: (B, T, 3D), the output of the layer's qkv projection.

    Returns:
        (B, heads, T, T): [query, key], every row sums to 1.
    """
    B, T, _ = qkv.shape
    q, k, _ = qkv.reshape(B, T, 3, attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, D_h)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    q, k = attn.q_norm(q).to(dtype), attn.k_norm(k).to(dtype)
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


@torch.no_grad()
def each_layer(
    model: VisionTransformer,
    x: torch.Tensor,
    measure: Callable[[torch.Tensor], Result],
    layers: Iterable[int] | None = None,
) -> list[Result]:
    """Run the model once and measure the attention of one layer after another. Only the results are kept.

    Args:
        model: the model.
        x: normalised floats, (B, 3, H, W) or (B, N, P*P*3).
        measure: from the attention of a layer, (B, heads, T, T), to a result.
        layers: numbers of layers, counted from 0, or from the end if negative. None: all layers.

    Returns:
        One result for each layer, in the order of the model.

    Raises:
        IndexError: there is no such layer.
    """
    every_layer = range(len(model.blocks))
    chosen = every_layer if layers is None else sorted({every_layer[i] for i in layers})
    results: list[Result] = []

    def hook_of(attn: Attention) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, qkv: torch.Tensor) -> None:
            results.append(measure(attention_weights(attn, qkv)))

        return hook

    hooks = []
    for layer in chosen:
        attn = model.blocks[layer].attn
        hooks.append(attn.qkv.register_forward_hook(hook_of(attn)))
    try:
        model.encode(model.embed(x))
    finally:
        for hook in hooks:
            hook.remove()
    return results


def attention_maps(
    model: VisionTransformer, x: torch.Tensor, layers: Iterable[int] | None = None
) -> list[torch.Tensor]:
    """Return the attention (B, heads, T, T) of each of the layers, all held at once. See `each_layer`."""
    return each_layer(model, x, lambda attention: attention, layers)


def rollout(attentions: Iterable[torch.Tensor], identity: bool = True) -> torch.Tensor:
    """Return how much of each input token is in each output token: Attention Rollout (arXiv 2005.00928).

    Args:
        attentions: (B, heads, T, T) of each layer, the first layer first. Rows need not sum to 1.
        identity: add the residual connection, A' = rows of (A + I) normalised, as Abnar and Zuidema do. If
            false: the plain product, in the words of appendix D.8 of the ViT paper. Heads are averaged in
            both cases.

    Returns:
        (B, T, T): [output token, input token], every row sums to 1.

    Raises:
        ValueError: there is no layer.
    """
    joint = Rollout(identity)
    for attention in attentions:
        joint.add_layer(attention)
    return joint.result()


class Rollout:
    """Multiply the attention of one layer after another: joint_l = A'_l joint_(l-1).

    Attributes:
        identity: as for `rollout`.
        joint: (B, T, T) of the layers so far; None before the first.
    """

    def __init__(self, identity: bool = True):
        self.identity = identity
        self.joint: torch.Tensor | None = None

    def add_layer(self, attention: torch.Tensor) -> None:
        """Take the attention of the next layer, (B, heads, T, T)."""
        a = attention.mean(1)  # (B, T, T)
        if self.identity:
            a = a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        # Without keepdim, columns would be divided by the sums of rows, and of other images.
        a = a / a.sum(-1, keepdim=True)
        self.joint = a if self.joint is None else a @ self.joint

    def result(self) -> torch.Tensor:
        """Return (B, T, T), as `rollout` does.

        Raises:
            ValueError: there is no layer.
        """
        if self.joint is None:
            raise ValueError("there is no layer to roll out")
        return self.joint


def attention_rollout(model: VisionTransformer, x: torch.Tensor, identity: bool = True) -> torch.Tensor:
    """Return where the [class] state comes from, Fig. 6 and 14: images or patches -> (B, H/P, W/P).

    A map is not scaled: it sums to 1 less the share of the prefix tokens. Divide a map by its maximum to show
    the map.

    Raises:
        ModelError: the model has no [class] token.
    """
    if not model.config.class_token:
        raise ModelError("attention rollout is that of the [class] token; this model has none")
    joint = Rollout(identity)
    each_layer(model, x, joint.add_layer)
    return joint.result()[:, 0, model.num_prefix :].unflatten(-1, model.config.grid)


def patch_distances(grid: tuple[int, int], patch_size: int) -> torch.Tensor:
    """Return the pixels between the centres of any two patches: (N, N) float64."""
    rows = torch.arange(grid[0], dtype=torch.float64)
    columns = torch.arange(grid[1], dtype=torch.float64)
    centres = torch.cartesian_prod(rows, columns) * patch_size  # (N, 2)
    return (centres[:, None] - centres).norm(dim=-1)


def attention_distance(
    attention: torch.Tensor,
    grid: tuple[int, int],
    patch_size: int,
    num_prefix: int = 1,
    renormalise: bool = False,
) -> torch.Tensor:
    """Return how far a head looks: distance of query and key, weighted by attention, over all queries (D.7).

    Prefix tokens are dropped, as queries and as keys. The rest of a row sums to less than 1. By default the
    row stays so, as in the published code for the figure (Kornblith's notebook, also the Keras example): a
    head that looks at [class] counts as local.

    Args:
        attention: (B, heads, T, T)
        grid: patches (down, across).
        patch_size: P, in pixels.
        num_prefix: tokens before the patches.
        renormalise: take the weighted mean over the patches alone. A row without attention to any patch
            counts as 0.

    Returns:
        (B, heads), in pixels.
    """
    a = attention[..., num_prefix:, num_prefix:]  # (B, heads, N, N)
    distances = (a * patch_distances(grid, patch_size).to(a)).sum(-1)  # (B, heads, N)
    if renormalise:
        distances = distances / a.sum(-1).clamp_min(torch.finfo(a.dtype).tiny)
    return distances.mean(-1)


def attention_distances(model: VisionTransformer, x: torch.Tensor, renormalise: bool = False) -> torch.Tensor:
    """Return `attention_distance` of every layer and head: (B, 3, H, W) or (B, N, P*P*3) -> (B, L, heads).

    The mean over the first axis, of 128 images 224 pixels wide, gives the dots of Fig. 7 (right) and Fig. 11.
    """

    def measure(attention: torch.Tensor) -> torch.Tensor:
        return attention_distance(
            attention, model.config.grid, model.config.patch_size, model.num_prefix, renormalise
        )

    return torch.stack(each_layer(model, x, measure), dim=1)


def cosine_tiles(rows: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return the cosine of each row with every row, as tiles: (N, D) -> (H/P, W/P, H/P, W/P), in [-1, 1]."""
    unit = F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)  # (N, D)
    return (unit @ unit.T).clamp(-1, 1).reshape(*grid, *grid)


@torch.no_grad()
def position_similarity(model: VisionTransformer, layer: int = 0) -> torch.Tensor:
    """Return how similar positions are (Fig. 7, centre): tile [i, j] compares patch (i, j) with every patch.

    Args:
        model: the model.
        layer: the layer of the table, where every layer has its own table.

    Returns:
        (H/P, W/P, H/P, W/P); the row of [class], where the table has one, is left out.

    Raises:
        ModelError: the model knows no positions.
    """
    if model.config.position == "none":
        raise ModelError("position is 'none': there is no similarity of positions")
    rows = positions(model.config, model.pos_embed, model.patch_embed.proj.weight, layer)[0]  # (T, D)
    return cosine_tiles(rows[model.num_prefix :], model.config.grid)


@torch.no_grad()
def rgb_filters(kernel: torch.Tensor, n: int = 28) -> torch.Tensor:
    """Return the principal components of the patch embedding's filters as small RGB images, Fig. 7 (left).

    The mean filter is subtracted before the SVD. A component has no sign of its own: here its largest number
    is positive.

    Args:
        kernel: (D, 3, P, P), `model.patch_embed.proj.weight`.
        n: number of components, the strongest first. The figure shows 28.

    Returns:
        (n, P, P, 3), each component scaled by itself to [0, 1].

    Raises:
        ModelError: the filters do not see RGB (the filters of a hybrid see features), or there are no n
            components.
    """
    width, channels, height, across = kernel.shape
    rank = min(width - 1, channels * height * across)  # centred filters span one dimension less
    if channels != 3:
        rank = 0
    if not 1 <= n <= rank:
        raise ModelError(f"a kernel of {tuple(kernel.shape)} has {rank} RGB components, not {n}")
    filters = kernel.permute(0, 2, 3, 1).flatten(1).double()  # (D, P*P*3)
    components = torch.linalg.svd(filters - filters.mean(0), full_matrices=False).Vh[:n]  # (n, P*P*3)
    components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    low, high = components.amin(1, keepdim=True), components.amax(1, keepdim=True)
    return ((components - low) / (high - low)).to(kernel.dtype).reshape(n, height, across, channels)
