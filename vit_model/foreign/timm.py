"""ViTs of timm, hybrids among them: their architecture, preprocessing, labels and weights become a `Checkpoint`.

timm is imported inside the functions, because it takes seconds.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wordsworth.vit_model.checkpoint import Checkpoint, State, first_line, fit, load_weights
from wordsworth.vit_model.config import CROP_MODES, ModelError, Preprocessing, ViTConfig, nearest
from wordsworth.vit_model.foreign.translate import translate

MODULES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.vision_transformer_hybrid")
POOLS = ("token", "avg", "map")
GELUS = {"GELU": "exact", "GELUTanh": "tanh", "QuickGELU": "quick"}


def from_timm(
    name: str, weights: str | Path | None = None, image_size: int | tuple[int, int] | None = None
) -> Checkpoint:
    """A timm ViT such as "vit_tiny_patch16_224" or "deit_small_patch16_224.fb_in1k".

    A hybrid differs from timm's by about 1e-4 in the logits, and is that much nearer to the JAX model it comes from:
    see `wordsworth.vit_model.hybrid.STD_EPS`.

    Args:
        name: timm's name, with its tag or without; or hf-hub:OWNER/NAME or local-dir:FOLDER, as timm has them.
        weights: a file to use in place of timm's own weights; then nothing is downloaded.
        image_size: if not the model's own, the position table is resampled to it.

    Raises:
        ModelError: an unknown name, a model with parts that this one lacks, weights that do not fit, no network.
    """
    architecture = _build(name)
    cfg, where = architecture.pretrained_cfg, weights or f"timm:{name}"
    config = _config(name, architecture)
    found = translate(load_weights(weights) if weights else _download(name), where)
    if weights and found.format.table:  # other people's names: what their code computes holds
        config = replace(config, **found.format.switches)
    state = found.state
    if _is_projection(name, cfg):
        config, state = _projected(config, state)
    state = fit(config, state, where, found.called)
    provenance = {"timm": name, "weights": Path(weights).name if weights else "timm"}
    checkpoint = Checkpoint(config, _preprocessing(name, cfg), _labels(cfg, config), state, provenance)
    return checkpoint if image_size is None else checkpoint.resized(image_size)


def config(name: str) -> ViTConfig:
    """The config of a timm model by name."""
    return _config(name, _build(name))


def _build(name: str) -> nn.Module:
    """timm's own model without memory for its weights."""
    import timm

    entry = name.split(".")[0]
    if not name.startswith(("hf-hub:", "local-dir:")):  # those name an architecture in a config.json
        if not timm.is_model(entry):
            raise ModelError(f"timm has no model {name!r}; nearest: {nearest(entry, timm.list_models())!r}")
        _check_module(name, timm.models.model_entrypoint(entry).__module__)
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except RuntimeError as error:  # an unknown tag
        known = [tag for tag in timm.list_pretrained() if tag.startswith(f"{entry}.")]
        raise ModelError(f"timm:{name}: {error}; known: {', '.join(known) or entry}") from error
    except Exception as error:  # whatever the hub's client raises
        raise ModelError(f"timm:{name} cannot be found: {first_line(error)}") from error
    _check_module(name, type(model).__module__)
    return model


def _check_module(name: str, module: str) -> None:
    if module not in MODULES:
        raise ModelError(f"timm:{name} is not a ViT of a kind known here: it comes from {module}")


def foreign_parts(model: nn.Module) -> list[str]:
    """What this timm model has and ours has not."""
    from timm.models.vision_transformer import Block

    none, norms = nn.Identity, [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    parts = {
        f"{model.global_pool or 'no'} pooling": model.global_pool not in POOLS,
        "pooling over prefix tokens": model.pool_include_prefix,
        "positions of register tokens": model.num_reg_tokens
        and model.pos_embed is not None
        and not model.no_embed_class,
        "no final norm": isinstance(model.norm, none) == isinstance(model.fc_norm, none),
        f"{len({norm.eps for norm in norms})} values of norm eps": len({norm.eps for norm in norms}) != 1,
        f"{model.in_chans} input channels": model.in_chans != 3,
    }
    parts |= _foreign_stem(model.patch_embed)
    kind = type(model.blocks[0])
    parts |= _foreign_block(model.blocks[0]) if kind is Block else {f"{kind.__name__} blocks": True}
    return [part for part, present in parts.items() if present]


def _foreign_stem(stem: nn.Module) -> dict[str, bool]:
    from timm.layers import HybridEmbed, PatchEmbed, StdConv2dSame

    if type(stem) is PatchEmbed:
        return {"a norm of patches": not isinstance(stem.norm, nn.Identity)}
    if type(stem) is not HybridEmbed:
        return {f"a {type(stem).__name__} stem": True}
    convolutions = [m for m in stem.backbone.modules() if isinstance(m, nn.Conv2d)]
    return {f"a {type(stem.backbone).__name__} stem": any(type(m) is not StdConv2dSame for m in convolutions)}


def _foreign_block(block: nn.Module) -> dict[str, bool]:
    from timm.layers import Mlp
    from timm.models.vision_transformer import Attention

    return {
        f"{type(block.attn).__name__}": type(block.attn) is not Attention,
        f"a {type(block.norm1).__name__}": not isinstance(block.norm1, nn.LayerNorm),
        f"an MLP of type {type(block.mlp).__name__}": type(block.mlp) is not Mlp,
        f"{type(getattr(block.mlp, 'act', None)).__name__}": _gelu(block.mlp) is None,
    }


def _gelu(mlp: nn.Module) -> str | None:
    act = getattr(mlp, "act", None)
    if isinstance(act, nn.GELU):
        return {"none": "exact", "tanh": "tanh"}[act.approximate]
    return GELUS.get(type(act).__name__)


def _config(name: str, model: nn.Module) -> ViTConfig:
    if parts := foreign_parts(model):
        raise ModelError(f"timm:{name} has parts that are not supported: {', '.join(parts)}")
    if len(set(model.patch_embed.patch_size)) > 1:
        raise ModelError(
            f"timm:{name} has parts that are not supported: its patches are {model.patch_embed.patch_size}"
        )
    config = config_of(model)
    where = f"timm:{name}"
    fit(
        config, translate(model.state_dict(), where).state, where
    )  # whatever part was not thought of has parameters of its own
    return config


def _is_projection(name: str, cfg: dict[str, Any]) -> bool:
    """timm keeps CLIP's projection in the place of a head; a tower that was fine-tuned for classes has a real one."""
    if name.startswith("local-dir:"):  # `convert` says it
        about = json.loads(Path(name.removeprefix("local-dir:"), "config.json").read_text(encoding="utf-8"))
        if "projection" in about:
            return about["projection"]
    architecture, tag = (cfg.get(key) or "" for key in ("architecture", "tag"))
    return "_clip_" in (architecture or name) and "_ft_" not in tag and cfg["num_classes"] not in (0, 1000)


def _projected(config: ViTConfig, state: State) -> tuple[ViTConfig, State]:
    """The head of such a tower as what it is. timm gives it a bias of zeros; one that was trained is of a head for classes."""
    state = dict(state)
    if "head.weight" in state:
        if "head.bias" in state and state["head.bias"].any():
            return config, state
        state.pop("head.bias", None)
        state["pre_logits.weight"] = state.pop("head.weight")
    size = config.num_classes
    return replace(config, num_classes=0, representation_size=size, projection=True, head_bias=True), state


def config_of(model: nn.Module) -> ViTConfig:
    """The config of a timm VisionTransformer that has no foreign parts."""
    block, none = model.blocks[0], nn.Identity
    distilled = getattr(model, "dist_token", None) is not None
    return ViTConfig(
        **_stem(model.patch_embed),
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_dim=block.mlp.fc1.out_features,
        num_classes=model.num_classes,
        gelu=_gelu(block.mlp),
        norm_eps=block.norm1.eps,
        class_position=not model.no_embed_class,
        class_token=model.has_class_token,
        registers=1 if distilled else model.num_reg_tokens,
        position="none" if model.pos_embed is None else "learned-1d",
        norm_pre=not isinstance(model.norm_pre, none),
        qkv_bias=block.attn.qkv.bias is not None,
        qk_norm=not isinstance(block.attn.q_norm, none),
        layer_scale=0.0 if isinstance(block.ls1, none) else getattr(block.ls1, "init_values", 1e-5),
        pool="distilled" if distilled else model.global_pool,
        pool_norm=isinstance(model.norm, none),
        head_bias=getattr(model.head, "bias", True) is not None,
    )


def _stem(stem: nn.Module) -> dict[str, Any]:
    """The fields of ViTConfig that describe a PatchEmbed or a HybridEmbed of timm's."""
    sizes = {"image_size": tuple(stem.img_size), "patch_bias": stem.proj.bias is not None}
    if not hasattr(stem, "backbone"):
        return sizes | {"patch_size": stem.patch_size[0]}
    resnet = tuple(len(stage.blocks) for stage in getattr(stem.backbone, "stages", ()))
    return sizes | {"resnet": resnet, "patch_size": stem.patch_size[0] * stem.feature_ratio[0]}


def _preprocessing(name: str, cfg: dict[str, Any]) -> Preprocessing:
    if cfg["crop_mode"] not in CROP_MODES:
        raise ModelError(f"timm:{name} wants images prepared by {cfg['crop_mode']!r}, which is not supported")
    return Preprocessing(
        cfg["interpolation"], cfg["crop_pct"], cfg["mean"], cfg["std"], crop_mode=cfg["crop_mode"]
    )


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
    except (
        Exception
    ) as error:  # whatever the hub's client raises: no network, a refusal, no weights under this name
        raise ModelError(
            f"the weights of timm:{name} cannot be downloaded ({first_line(error)}); pass a file with --weights FILE"
        ) from error
