"""See what a model attends to while it labels an image: our own model, or another library's module.

The attention is that of the very pass that gives the logits: the calls of torch that compute attention are
seen, and the weights are computed from their queries and keys. So a model needs no method of its own for it.

The letters of the shapes: L layers, T tokens of which the first `num_prefix` are no patches, N = h * w
patches, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from wordsworth.vit_model.analysis import Rollout, attention_distance, cosine_tiles, position_similarity
from wordsworth.vit_model.checkpoint import BaseCheckpoint, Checkpoint
from wordsworth.vit_model.config import POOLS, ModelError
from wordsworth.vit_model.foreign.module import ModuleCheckpoint
from wordsworth.vit_model.hybrid import SameConv
from wordsworth.vit_model.inference import matrix_attention

MAX_PREFIX = 64  # tokens before the patches; more are no prefix
# Modules of timm say how they pool; each of these is one of POOLS.
TIMM_POOLS = ("token", "avg", "map")
POSITION_NAMES = ("pos_embed", "position_embedding", "positional_embedding")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Say what the tokens of a model are.

    Attributes:
        grid: patches (down, across).
        patch_size: pixels along a side of a patch; in a hybrid, of a cell of the network's last map.
        num_prefix: tokens before the patches; None until a pass has told.
        pool: one of POOLS: which tokens become the state of the image.
    """

    grid: tuple[int, int]
    patch_size: int
    num_prefix: int | None
    pool: str

    @property
    def num_patches(self) -> int:
        """Return N."""
        return self.grid[0] * self.grid[1]

    @property
    def queries(self) -> tuple[str, ...]:
        """Return the names of the tokens whose attention is shown: those that are pooled."""
        return {"token": ("[class]",), "distilled": ("[class]", "[distillation]")}.get(
            self.pool, ("mean of the patches",)
        )


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Hold where one image's state comes from.

    Attributes:
        layout: what the tokens are.
        rollout: (h, w) share of each patch in the pooled state; sums to 1 less the share of the other tokens.
        heads: (Q, L, heads, h, w) attention of each of `layout.queries` to each patch.
        pool_heads: (heads, h, w) attention of the pooling latent to each patch; None where none pools.
        distances: (L, heads) mean attention distance in pixels.
    """

    layout: Layout
    rollout: torch.Tensor
    heads: torch.Tensor
    pool_heads: torch.Tensor | None
    distances: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Hold what one pass says about an image.

    Attributes:
        logits: (K,), or None for a model without a head.
        attention: where the image's state comes from, or one line that says why this cannot be told.
    """

    logits: torch.Tensor | None
    attention: Attention | str


# ---- what the tokens are -----------------------------------------------------------------------------------


def layout_of(checkpoint: BaseCheckpoint, model: nn.Module) -> Layout:
    """Return what the tokens of a model are.

    Args:
        checkpoint: the model at rest.
        model: its `model()` or `for_inference(...)`.

    Raises:
        ModelError: its tokens are not the patches of a grid, or it pools in a way that attention does not
            tell.
    """
    if isinstance(checkpoint, Checkpoint):
        config = checkpoint.config
        return Layout(
            grid=config.grid, patch_size=config.patch_size, num_prefix=config.num_prefix, pool=config.pool
        )
    what = checkpoint.variant
    first = first_convolution(model)
    if first is None or first.stride != first.kernel_size or first.stride[0] != first.stride[1]:
        raise ModelError(f"{what} does not cut the image into patches in its first layer")
    height, width = checkpoint.config.image_size
    side = first.stride[0]
    if height % side or width % side:
        raise ModelError(f"{what} does not cut {height} x {width} pixels into whole patches of {side}")
    grid = (height // side, width // side)
    return Layout(grid=grid, patch_size=side, num_prefix=None, pool=_pool_of(checkpoint, model))


def first_convolution(model: nn.Module) -> nn.Conv2d | None:
    """Return the convolution that sees the pixels; None where no convolution of RGB does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return module
    return None


def _pool_of(checkpoint: BaseCheckpoint, model: nn.Module) -> str:
    """Return how another library's module pools, or "" where only its tokens tell."""
    assert isinstance(checkpoint, ModuleCheckpoint)
    if checkpoint.config.arguments.get("reading") == "mean":  # of transformers
        return "avg"
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_mean_pooling", False):  # of transformers' BEiT
            return "avg"
        pool = getattr(module, "global_pool", None)
        if isinstance(pool, str):
            if pool not in TIMM_POOLS:
                raise ModelError(f"{checkpoint.variant} pools by {pool!r}, which attention does not tell")
            return pool
    return ""


# ---- one pass ----------------------------------------------------------------------------------------------


@torch.no_grad()
def see(model: nn.Module, patches: torch.Tensor, layout: Layout | str) -> Seen:
    """Run a model on one image, and return its logits and what it attended to.

    Args:
        model: as `for_inference` makes it.
        patches: uint8 (N', P'*P'*3) on the model's device, as the model takes them.
        layout: what the tokens are, or a line that says why this is not known.
    """
    if isinstance(layout, str):
        logits, _ = model(patches[None])
        return Seen(logits=None if logits is None else logits[0].float().cpu(), attention=layout)
    collected = _Collected(layout)
    with _AttentionCalls(collected.take):
        logits, _ = model(patches[None])
    return Seen(logits=None if logits is None else logits[0].float().cpu(), attention=collected.result())


class _AttentionCalls(TorchFunctionMode):
    """Give the weights of every call of attention inside the block to a function."""

    def __init__(self, take: Callable[[torch.Tensor], None]):
        super().__init__()
        self.take = take

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.scaled_dot_product_attention, matrix_attention):
            self.take(_weights(*args, **kwargs))
        elif func is F.multi_head_attention_forward:
            _, weights = func(*args, **kwargs | {"need_weights": True, "average_attn_weights": False})
            self.take(weights)
        return func(*args, **kwargs)


# The arguments are torch's own.
def _weights(  # noqa: PLR0913
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return softmax(q k^T scale + mask) of a call of `scaled_dot_product_attention`, at least in float32.

    Returns:
        (B, heads, T, S), or an empty tensor where the weights are not those of such a product.
    """
    if is_causal or enable_gqa or query.ndim != 4:
        return query.new_empty(0)
    dtype = torch.promote_types(query.dtype, torch.float32)
    logits = query.to(dtype) @ key.to(dtype).mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        logits = logits + attn_mask
    return logits.softmax(-1)


class _Collected:
    """Collect the attention of one image, layer after layer; only what is shown is kept.

    Attributes:
        layout: what the tokens are.
        refusal: why the calls do not tell where the state comes from; empty if they do.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.refusal = ""
        self._joint = Rollout()
        self._heads: list[torch.Tensor] = []  # (Q, heads, N) of each layer
        self._distances: list[torch.Tensor] = []  # (heads,) of each layer
        self._pool: torch.Tensor | None = None  # (heads, N)

    def take(self, weights: torch.Tensor) -> None:
        """Take the attention of the next call, (B, heads, T, S)."""
        if self.refusal:
            return
        if weights.ndim != 4 or len(weights) != 1:
            self.refusal = "its attention is not over all patches of an image at once (windows, groups)"
        elif weights.shape[2] == weights.shape[3]:
            self._take_layer(weights)
        elif weights.shape[2] == 1 and self._heads and self._pool is None:
            self._take_pool(weights)
        else:
            self.refusal = "it has layers in which some tokens alone attend to others (class attention)"

    def _take_layer(self, weights: torch.Tensor) -> None:
        num_prefix = weights.shape[3] - self.layout.num_patches
        known = self.layout.num_prefix
        if self._pool is not None:
            self.refusal = "it attends again after its pooling"
        elif not 0 <= num_prefix <= MAX_PREFIX or known not in (None, num_prefix):
            self.refusal = "its layers attend to other tokens than the patches of its first layer"
        elif self._heads and self._heads[0].shape[1] != weights.shape[1]:
            self.refusal = "its layers have different numbers of heads"
        if self.refusal:
            return
        pool = self.layout.pool or ("token" if num_prefix else "avg")
        self.layout = layout = replace(self.layout, num_prefix=num_prefix, pool=pool)
        self._joint.add_layer(weights)
        rows = weights[0, :, : len(layout.queries)]  # (heads, Q, T)
        if layout.queries[0] != "[class]":
            rows = weights[0, :, num_prefix:].mean(1, keepdim=True)
        self._heads.append(rows[..., num_prefix:].transpose(0, 1))
        distance = attention_distance(weights, layout.grid, layout.patch_size, num_prefix)
        self._distances.append(distance[0])

    def _take_pool(self, weights: torch.Tensor) -> None:
        if self.layout.pool not in ("map", "avg"):
            self.refusal = "it has layers in which [class] alone attends to others (class attention)"
            return
        if weights.shape[3] not in (self.layout.num_patches, len(self._joint.result()[0])):
            self.refusal = "its pooling attends to other tokens than those of its layers"
            return
        self.layout = replace(self.layout, pool="map")
        self._pool = weights[0, :, 0]  # (heads, N or T)

    def result(self) -> Attention | str:
        """Return where the image's state comes from, or why this cannot be told."""
        if not self._heads and not self.refusal:
            self.refusal = "it has no layers of attention that torch computes as one call"
        if not self.refusal and self.layout.pool == "map" and self._pool is None:
            self.refusal = "the attention of its pooling is not computed as one call of torch"
        if self.refusal:
            return self.refusal
        layout = self.layout
        assert layout.num_prefix is not None and layout.pool in POOLS
        joint = self._joint.result()[0]  # (T, T)
        from_tokens = self._pooled(joint) @ joint  # (T,)
        pool = None
        if self._pool is not None:
            pool = self._pool[:, -layout.num_patches :].unflatten(-1, layout.grid).cpu()
        return Attention(
            layout=layout,
            rollout=from_tokens[layout.num_prefix :].unflatten(-1, layout.grid).cpu(),
            heads=torch.stack(self._heads, dim=1).unflatten(-1, layout.grid).cpu(),
            pool_heads=pool,
            distances=torch.stack(self._distances).cpu(),
        )

    def _pooled(self, joint: torch.Tensor) -> torch.Tensor:
        """Return the share of each token of the last layer in the pooled state: (T,), sums to 1."""
        share = joint.new_zeros(len(joint))
        if self._pool is not None:
            share[len(joint) - self._pool.shape[1] :] = self._pool.mean(0)
        elif self.layout.pool == "avg":
            share[self.layout.num_prefix :] = 1 / self.layout.num_patches
        else:
            num_queries = len(self.layout.queries)
            share[:num_queries] = 1 / num_queries
        return share


# ---- of the model alone ------------------------------------------------------------------------------------


def filters_of(model: nn.Module) -> torch.Tensor:
    """Return the kernels that see the pixels, (D, 3, P, P): of the patch embedding, of a hybrid's root.

    Args:
        model: the module as it was trained (`checkpoint.model()`).

    Raises:
        ModelError: no layer of the model sees RGB by kernels.
    """
    first = first_convolution(model)
    if first is None:
        raise ModelError("no convolution of the model sees the pixels: it has no RGB filters")
    return first.kernel() if isinstance(first, SameConv) else first.weight


def positions_of(checkpoint: BaseCheckpoint, model: nn.Module, layout: Layout) -> torch.Tensor:
    """Return how similar positions are, (h, w, h, w), as `analysis.position_similarity` does.

    Args:
        checkpoint: the model at rest.
        model: its `model()`.
        layout: what the tokens are.

    Raises:
        ModelError: the model has no table of positions: none, relative or rotary ones.
    """
    if isinstance(checkpoint, Checkpoint):
        return position_similarity(model)
    for name, tensor in checkpoint.state.items():
        named_so = any(part in name for part in POSITION_NAMES)
        if not named_so or tensor.ndim not in (2, 3) or not tensor.is_floating_point():
            continue
        rows = tensor.flatten(0, -2)  # (rows, D)
        if layout.num_patches <= len(rows) <= layout.num_patches + MAX_PREFIX:
            return cosine_tiles(rows[-layout.num_patches :], layout.grid)
    raise ModelError(f"{checkpoint.variant} has no table of positions (relative, rotary or none)")
