"""Plain ViTs of timm: their architecture, preprocessing, labels and weights become a `Checkpoint`.

timm is imported inside the functions, because it takes seconds.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_model.checkpoint import Checkpoint, State, first_line, fit, load_weights
from vit_model.config import ModelError, Preprocessing, ViTConfig, nearest

MODULES = ("timm.models.vision_transformer", "timm.models.deit")  # where timm keeps plain ViTs
GELUS = {"GELU": "exact", "GELUTanh": "tanh", "QuickGELU": "quick"}


def from_timm(name: str, weights: str | Path | None = None, image_size: int | tuple[int, int] | None = None) -> Checkpoint:
    """A plain timm ViT such as "vit_tiny_patch16_224" or "deit_small_patch16_224.fb_in1k".

    Args:
        name: timm's name, with its tag or without.
        weights: a file to use in place of timm's own weights; then nothing is downloaded.
        image_size: if not the model's own, the position table is resampled to it.

    Raises:
        ModelError: an unknown name, a model with parts that this one lacks, weights that do not fit, no network.
    """
    architecture = _build(name)
    config = _config(name, architecture)
    preprocessing = _preprocessing(name, architecture.pretrained_cfg)
    state = _download(name) if weights is None else load_weights(weights)
    state = fit(config, state, weights or f"timm:{name}")
    provenance = {"timm": name, "weights": Path(weights).name if weights else "timm"}
    checkpoint = Checkpoint(config, preprocessing, _labels(architecture.pretrained_cfg, config), state, provenance)
    return checkpoint if image_size is None else checkpoint.resized(image_size)


def _build(name: str) -> nn.Module:
    """timm's own model without memory for its weights."""
    import timm

    entry = name.split(".")[0]
    if not timm.is_model(entry):
        raise ModelError(f"timm has no model {name!r}; nearest: {nearest(entry, timm.list_models())!r}")
    module = timm.models.model_entrypoint(entry).__module__
    if module not in MODULES:
        raise ModelError(f"timm:{name} is not a plain ViT: it comes from {module}")
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except RuntimeError as error:  # an unknown tag
        known = [tag for tag in timm.list_pretrained() if tag.startswith(f"{entry}.")]
        raise ModelError(f"timm:{name}: {error}; known: {', '.join(known) or entry}") from error


def _foreign_parts(model: nn.Module) -> list[str]:
    """What this timm model has and ours has not."""
    from timm.layers import Mlp, PatchEmbed
    from timm.models.vision_transformer import Attention, Block

    if getattr(model, "dist_token", None) is not None:
        return ["a distillation token"]
    block, none = model.blocks[0], nn.Identity
    parts = {
        f"{model.global_pool or 'no'} pooling": model.global_pool != "token" or not isinstance(model.fc_norm, none),
        "register tokens": model.num_reg_tokens > 0,
        "no class token": not model.has_class_token,
        "no position table": model.pos_embed is None,
        "a norm before the blocks": not isinstance(model.norm_pre, none),
        "a final norm that is not LayerNorm": not isinstance(model.norm, (nn.LayerNorm, none)),
        "no final norm": isinstance(model.norm, none) and isinstance(model.fc_norm, none),
        f"a {type(model.patch_embed).__name__} stem": type(model.patch_embed) is not PatchEmbed,
        f"{model.in_chans} input channels": model.in_chans != 3,
    }
    if type(block) is not Block:
        parts[f"{type(block).__name__} blocks"] = True
    else:
        parts |= {
            "LayerScale": not isinstance(block.ls1, none),
            f"{type(block.attn).__name__}": type(block.attn) is not Attention,
            "no bias in qkv": getattr(getattr(block.attn, "qkv", None), "bias", None) is None,
            "a norm of queries and keys": not isinstance(getattr(block.attn, "q_norm", none()), none),
            f"an MLP of type {type(block.mlp).__name__}": type(block.mlp) is not Mlp,
            f"{type(getattr(block.mlp, 'act', None)).__name__}": _gelu(block.mlp) is None,
        }
    return [part for part, present in parts.items() if present]


def _gelu(mlp: nn.Module) -> str | None:
    act = getattr(mlp, "act", None)
    if isinstance(act, nn.GELU):
        return {"none": "exact", "tanh": "tanh"}[act.approximate]
    return GELUS.get(type(act).__name__)


def _config(name: str, model: nn.Module) -> ViTConfig:
    if parts := _foreign_parts(model):
        raise ModelError(f"timm:{name} is not a plain ViT: it has {', '.join(parts)}")
    block, (height, width) = model.blocks[0], model.patch_embed.patch_size
    if height != width:
        raise ModelError(f"timm:{name} is not a plain ViT: its patches are {height} x {width}")
    config = ViTConfig(
        image_size=model.patch_embed.img_size,
        patch_size=height,
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_dim=block.mlp.fc1.out_features,
        num_classes=model.num_classes,
        gelu=_gelu(block.mlp),
        norm_eps=model.norm.eps,
        class_position=not model.no_embed_class,
    )
    fit(config, model.state_dict(), f"timm:{name}")  # whatever part was not thought of has parameters of its own
    return config


def _preprocessing(name: str, cfg: dict[str, Any]) -> Preprocessing:
    if cfg["crop_mode"] != "center":
        raise ModelError(f"timm:{name} wants images prepared by {cfg['crop_mode']!r}, which is not supported")
    return Preprocessing(cfg["interpolation"], cfg["crop_pct"], cfg["mean"], cfg["std"])


def _labels(cfg: dict[str, Any], config: ViTConfig) -> tuple[str, ...] | None:
    """The class names that go with an ImageNet head of this size, such as "tench, Tinca tinca"."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if names := cfg.get("label_names"):
        return tuple((cfg.get("label_descriptions") or {}).get(n, n) for n in names)
    subset = infer_imagenet_subset({"num_classes": config.num_classes})
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None


def _download(name: str) -> State:
    """timm's own weights, by timm's own code."""
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # whatever the hub's client raises: no network, a refusal, no weights under this name
        raise ModelError(
            f"the weights of timm:{name} cannot be downloaded ({first_line(error)}); pass a file with --weights FILE"
        ) from error
