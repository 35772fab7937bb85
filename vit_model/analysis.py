"""What a trained ViT has learned: the measurements behind Fig. 6, 7, 11 and 14 of the paper (arXiv 2010.11929).

Everything comes back as torch tensors, detached, on the model's device; nothing is drawn. The model is used as it is: call
`model.eval()` first, or dropout is measured too. Attention weights are computed from the queries and keys that pass through
a forward hook, so the forward itself stays on the fused path that never forms them.

The words of the shapes: B images, L layers, T tokens of which the first `num_prefix` are no patches, N patches, width D.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
import torch.nn.functional as F

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.encoder import Attention
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.position import positions

Result = TypeVar("Result")


def attention_weights(attn: Attention, qkv: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(D_h)), Eq. 6, of what the layer's qkv projection gave; at least in float32.

    Args:
        qkv: (B, T, 3D)

    Returns:
        (B, heads, T, T): [query, key], every row sums to 1.
    """
    B, T, _ = qkv.shape
    q, k, _ = qkv.reshape(B, T, 3, attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, D_h)
    q, k = attn.q_norm(q), attn.k_norm(k)
    q, k = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, k))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


@torch.no_grad()
def each_layer(
    model: VisionTransformer,
    x: torch.Tensor,
    measure: Callable[[torch.Tensor], Result],
    layers: Iterable[int] | None = None,
) -> list[Result]:
    """Run the model once and measure the attention of one layer after the other; only what `measure` returns is kept.

    Args:
        x: normalised floats, (B, 3, H, W) or (B, N, P*P*3).
        measure: from the attention of a layer, (B, heads, T, T), to anything.
        layers: which, counted from 0, or from the end if negative; by default all.

    Returns:
        One result a layer, in the order of the model.

    Raises:
        IndexError: there is no such layer.
    """
    depth = range(len(model.blocks))
    results, hooks = [], []
    for layer in sorted({depth[i] for i in layers} if layers is not None else depth):
        attn = model.blocks[layer].attn
        hooks.append(
            attn.qkv.register_forward_hook(
                lambda _, __, qkv, attn=attn: results.append(measure(attention_weights(attn, qkv)))
            )
        )
    try:
        model.encode(model.embed(x))
    finally:
        for hook in hooks:
            hook.remove()
    return results


def attention_maps(
    model: VisionTransformer, x: torch.Tensor, layers: Iterable[int] | None = None
) -> list[torch.Tensor]:
    """The attention of the layers asked for, all held at once: a (B, heads, T, T) a layer. See `each_layer`."""
    return each_layer(model, x, lambda attention: attention, layers)


def rollout(attentions: Iterable[torch.Tensor], identity: bool = True) -> torch.Tensor:
    """Attention Rollout (Abnar and Zuidema, arXiv 2005.00928): how much of each input token is in each output token.

    Args:
        attentions: (B, heads, T, T) a layer, the first layer first. Rows need not sum to 1.
        identity: add the residual connection, A' = rows of (A + I) normalised, as its authors do; else the plain product
            that appendix D.8 of the ViT paper words. Heads are averaged in both.

    Returns:
        (B, T, T): [output token, input token], every row sums to 1.
    """
    joint = None
    for attention in attentions:
        joint = _rolled(joint, attention, identity)
    if joint is None:
        raise ValueError("there is no layer to roll out")
    return joint


def _rolled(joint: torch.Tensor | None, attention: torch.Tensor, identity: bool) -> torch.Tensor:
    """joint_l = A'_l joint_(l-1)"""
    a = attention.mean(1)  # (B, T, T)
    if identity:
        a = a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    a = a / a.sum(
        -1, keepdim=True
    )  # without keepdim it would divide columns by sums of rows, and of other images
    return a if joint is None else a @ joint


def attention_rollout(model: VisionTransformer, x: torch.Tensor, identity: bool = True) -> torch.Tensor:
    """Where the [class] state comes from, Fig. 6 and 14: (B, 3, H, W) or (B, N, P*P*3) -> (B, H/P, W/P).

    A map is not scaled; it sums to 1 less what is left on the prefix tokens. To show it, divide by its maximum.

    Raises:
        ModelError: the model has no [class] token.
    """
    if not model.config.class_token:
        raise ModelError("attention rollout is that of the [class] token; this model has none")
    joint = None

    def multiply(attention: torch.Tensor) -> None:
        nonlocal joint
        joint = _rolled(joint, attention, identity)

    each_layer(model, x, multiply)
    return joint[:, 0, model.num_prefix :].unflatten(-1, model.config.grid)


def patch_distances(grid: tuple[int, int], patch_size: int) -> torch.Tensor:
    """Pixels between the centres of any two patches: (N, N) float64."""
    centres = (
        torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid)) * patch_size
    )  # (N, 2)
    return (centres[:, None] - centres).norm(dim=-1)


def attention_distance(
    attention: torch.Tensor,
    grid: tuple[int, int],
    patch_size: int,
    num_prefix: int = 1,
    renormalise: bool = False,
) -> torch.Tensor:
    """How far a head looks, in pixels: distance of query to key weighted by attention, averaged over the queries (D.7).

    Prefix tokens are dropped, as queries and as keys. What then remains of a row sums to less than 1 and is left so by
    default: this is what the published code for the figure does (Kornblith's notebook, also the Keras example), so a head
    that looks at [class] counts as local. `renormalise` takes the weighted mean over the patches alone; a row that gives
    nothing to any patch counts as 0.

    Args:
        attention: (B, heads, T, T)

    Returns:
        (B, heads)
    """
    a = attention[..., num_prefix:, num_prefix:]  # (B, heads, N, N)
    distances = (a * patch_distances(grid, patch_size).to(a)).sum(-1)  # (B, heads, N)
    if renormalise:
        distances = distances / a.sum(-1).clamp_min(torch.finfo(a.dtype).tiny)
    return distances.mean(-1)


def attention_distances(model: VisionTransformer, x: torch.Tensor, renormalise: bool = False) -> torch.Tensor:
    """`attention_distance` of every layer and head: (B, 3, H, W) or (B, N, P*P*3) -> (B, L, heads).

    The mean over the first axis, of 128 images 224 pixels wide, gives the dots of Fig. 7 (right) and Fig. 11.
    """

    def measure(attention: torch.Tensor) -> torch.Tensor:
        return attention_distance(
            attention, model.config.grid, model.config.patch_size, model.num_prefix, renormalise
        )

    return torch.stack(each_layer(model, x, measure), dim=1)


def cosine_tiles(rows: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The cosine of each row with all the others, laid out as tiles: (N, D) -> (H/P, W/P, H/P, W/P), in [-1, 1]."""
    unit = F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)  # (N, D)
    return (unit @ unit.T).clamp(-1, 1).reshape(*grid, *grid)


@torch.no_grad()
def position_similarity(model: VisionTransformer, layer: int = 0) -> torch.Tensor:
    """Fig. 7 (centre) and Fig. 10: tile [i, j] holds the similarity of the position of patch (i, j) with all the others.

    Args:
        layer: whose table, where every layer has its own.

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
    """Fig. 7 (left): the principal components of the patch embedding's filters, as small RGB images.

    The mean filter is taken off before the SVD. A component has no sign of its own: here its largest number is positive.

    Args:
        kernel: (D, 3, P, P), `model.patch_embed.proj.weight`.
        n: how many, the strongest first; the figure shows 28.

    Returns:
        (n, P, P, 3), each scaled by itself to [0, 1].

    Raises:
        ModelError: the filters do not see RGB (a hybrid's see features), or there are no n components.
    """
    width, channels, height, across = kernel.shape
    rank = min(width - 1, channels * height * across)  # centred filters span one dimension less
    if channels != 3 or not 1 <= n <= rank:
        raise ModelError(
            f"a kernel of {tuple(kernel.shape)} has {rank if channels == 3 else 0} RGB components, not {n}"
        )
    filters = kernel.permute(0, 2, 3, 1).flatten(1).double()  # (D, P*P*3)
    components = torch.linalg.svd(filters - filters.mean(0), full_matrices=False).Vh[:n]  # (n, P*P*3)
    components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    low, high = components.amin(1, keepdim=True), components.amax(1, keepdim=True)
    return ((components - low) / (high - low)).to(kernel.dtype).reshape(n, height, across, channels)
