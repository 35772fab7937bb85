"""Load ViTs and hybrids of timm: architecture, preprocessing, labels and weights become a `Checkpoint`.

timm is imported inside the functions, because the import takes seconds.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import CROP_MODES, ModelError, Preprocessing, ViTConfig, nearest
from wordsworth.vit_model.foreign.hub import Note
from wordsworth.vit_model.foreign.hub_folder import CONFIG, read_json
from wordsworth.vit_model.foreign.timm_download import download_weights
from wordsworth.vit_model.foreign.translate import translate, with_classes_of
from wordsworth.vit_model.weights import State, check_weights, first_line, load_weights

# The modules of timm whose models are known here.
TIMM_MODULES = (
    "timm.models.vision_transformer",
    "timm.models.deit",
    "timm.models.vision_transformer_hybrid",
)
TIMM_POOLS = ("token", "avg", "map")
CLIP_PARTS = ("clip", "pe_core")  # parts of the names of towers whose last layer is CLIP's projection
GELU_OF_TIMM_CLASS = {"GELU": "exact", "GELUTanh": "tanh", "QuickGELU": "quick"}


def from_timm(
    name: str,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    key: str | None = None,
    revision: str | None = None,
    note: Note = print,
) -> Checkpoint:
    """Load a timm ViT such as "vit_tiny_patch16_224" or "deit_small_patch16_224.fb_in1k".

    A hybrid differs from timm's by about 1e-4 in the logits, and is so much nearer to the JAX model behind
    both: see `wordsworth.vit_model.hybrid.STD_EPS`.

    Args:
        name: timm's name, with its tag or without; or hf-hub:OWNER/NAME or local-dir:FOLDER, as timm writes
            them.
        weights: a file to use in place of timm's own weights; then nothing is downloaded.
        image_size: if not the model's own, the position table is resampled to this size.
        key: the set of tensors to take from a file of `weights` with several; see `load_weights`.
        revision: of timm's repository on the hub.
        note: gets what the user should know.

    Raises:
        ModelError: an unknown name, a model with parts that this one lacks, weights that do not fit, no
            network.
    """
    model = _build(name)
    cfg = model.pretrained_cfg
    config = _config(name, model)
    where = weights or f"timm:{name}"
    origin: dict[str, Any] = {}
    loaded: State
    if weights:
        loaded = load_weights(weights, key)
    else:
        loaded, origin = download_weights(name, revision, note)
    found = translate(loaded, where)
    if weights and found.format.table:  # other people's names: the switches of their code hold
        config = replace(config, **found.format.switches)
    state = found.state
    labels = labels_of(cfg, config.num_classes)
    if weights:
        named = config.num_classes
        config = with_classes_of(state, config)
        labels = labels if config.num_classes == named else None
    if config.num_classes == cfg["num_classes"] and is_projection(name, cfg):
        config, state = _with_projection(config, state)
    state = check_weights(config, state, where, found.called)
    checkpoint = Checkpoint(
        config=config,
        preprocessing=preprocessing_of(name, cfg),
        labels=labels,
        state=state,
        extra={"timm": name} | (found.provenance(weights) if weights else {"weights": "timm"} | origin),
    )
    return checkpoint if image_size is None else checkpoint.resized(image_size)


def timm_config(name: str) -> ViTConfig:
    """Return the config of a timm model, without its weights."""
    return _config(name, _build(name))


class NotOurs(ModelError):
    """Say in one line why our own Vision Transformer cannot compute a model that timm can."""


def _build(name: str) -> nn.Module:
    """Build timm's own model without memory for its weights.

    Raises:
        NotOurs: the model is of another kind than our own.
        ModelError: as `build_net`.
    """
    model = build_net(name)
    module = type(model).__module__
    if module not in TIMM_MODULES:
        raise NotOurs(f"timm:{name} is not a ViT of our own kind: it comes from {module}")
    return model


def build_net(name: str) -> nn.Module:
    """Build a model of timm's without memory for its weights.

    Raises:
        ModelError: timm has no such model, or the hub does not answer.
    """
    import timm

    entry = name.split(".")[0]
    from_hub = name.startswith(("hf-hub:", "local-dir:"))  # a config.json there names the architecture
    if not from_hub and not timm.is_model(entry):
        raise ModelError(f"timm has no model {name!r}; nearest: {nearest(entry, timm.list_models())!r}")
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except RuntimeError as error:  # an unknown tag
        known = [tag for tag in timm.list_pretrained() if tag.startswith(f"{entry}.")]
        raise ModelError(f"timm:{name}: {error}; known: {', '.join(known) or entry}") from error
    except Exception as error:  # the hub's client has many kinds of errors
        raise ModelError(f"timm:{name} cannot be found: {first_line(error)}") from error


def foreign_parts(model: nn.Module) -> list[str]:
    """Return the parts of a timm model that ours lacks."""
    from timm.models.vision_transformer import Block

    eps = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    with_register_positions = (
        model.num_reg_tokens and model.pos_embed is not None and not model.no_embed_class
    )
    parts = {
        f"{model.global_pool or 'no'} pooling": model.global_pool not in TIMM_POOLS,
        "pooling over prefix tokens": model.pool_include_prefix,
        "positions of register tokens": with_register_positions,
        "no final norm": _is_absent(model.norm) == _is_absent(model.fc_norm),
        f"{len(eps)} values of norm eps": len(eps) != 1,
        f"{model.in_chans} input channels": model.in_chans != 3,
    }
    parts |= _foreign_stem(model.patch_embed)
    kind = type(model.blocks[0])
    parts |= _foreign_block(model.blocks[0]) if kind is Block else {f"{kind.__name__} blocks": True}
    return [part for part, present in parts.items() if present]


def _is_absent(part: nn.Module) -> bool:
    return isinstance(part, nn.Identity)


def _foreign_stem(stem: nn.Module) -> dict[str, bool]:
    from timm.layers import HybridEmbed, PatchEmbed, StdConv2dSame

    if type(stem) is PatchEmbed:
        return {"a norm of patches": not _is_absent(stem.norm)}
    if type(stem) is not HybridEmbed:
        return {f"a {type(stem).__name__} stem": True}
    kinds = {type(module) for module in stem.backbone.modules() if isinstance(module, nn.Conv2d)}
    return {f"a {type(stem.backbone).__name__} stem": not kinds <= {StdConv2dSame}}


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
    """Return one of GELUS, or None for any other activation."""
    act = getattr(mlp, "act", None)
    if isinstance(act, nn.GELU):
        return {"none": "exact", "tanh": "tanh"}[act.approximate]
    return GELU_OF_TIMM_CLASS.get(type(act).__name__)


def _config(name: str, model: nn.Module) -> ViTConfig:
    parts = foreign_parts(model)
    if len(set(model.patch_embed.patch_size)) > 1:
        parts.append(f"patches of {model.patch_embed.patch_size}")
    elif any(side % model.patch_embed.patch_size[0] for side in model.patch_embed.img_size):
        parts.append(f"images of {model.patch_embed.img_size}, no whole number of patches")
    if parts:
        raise NotOurs(f"timm:{name} has parts that our own ViT lacks: {', '.join(parts)}")
    config = config_of(model)
    where = f"timm:{name}"
    # A part that `foreign_parts` does not know has parameters of its own.
    try:
        check_weights(config, translate(model.state_dict(), where).state, where)
    except ModelError as error:
        raise NotOurs(str(error)) from error
    return config


def is_projection(name: str, cfg: dict[str, Any]) -> bool:
    """Return whether the head is CLIP's projection: timm has both in one place.

    A tower that was fine-tuned for classes has a head.

    Args:
        name: timm's name, or hf-hub:OWNER/NAME or local-dir:FOLDER.
        cfg: timm's pretrained_cfg.
    """
    if name.startswith("local-dir:"):  # a folder that `wordsworth convert` wrote has this field
        about = _about(name)
        if "projection" in about:
            return about["projection"]
    if cfg.get("label_names"):
        return False
    called = f"{cfg.get('architecture') or name}.{cfg.get('tag') or ''}"
    clip = any(part in called for part in CLIP_PARTS)
    fine_tuned = "_ft_in" in called
    return clip and not fine_tuned and cfg["num_classes"] not in (0, 1000)


def _about(name: str) -> dict[str, Any]:
    """Return config.json of local-dir:FOLDER."""
    return read_json(Path(name.removeprefix("local-dir:"), CONFIG))


def model_args(name: str) -> dict[str, Any]:
    """Return what a repository or folder wants of timm's builder beside the architecture.

    Args:
        name: timm's name, hf-hub:OWNER/NAME or local-dir:FOLDER.
    """
    if name.startswith("local-dir:"):
        return _about(name).get("model_args", {})
    if name.startswith("hf-hub:"):
        from timm.models import load_model_config_from_hf

        return load_model_config_from_hf(name.removeprefix("hf-hub:"))[2]
    return {}


def _with_projection(config: ViTConfig, state: State) -> tuple[ViTConfig, State]:
    """Turn the head into a projection.

    timm gives a projection a bias of zeros. Any other bias was trained, and the head is a head.
    """
    state = dict(state)
    if "head.weight" in state:
        if "head.bias" in state and state["head.bias"].any():
            return config, state
        state.pop("head.bias", None)
        state["pre_logits.weight"] = state.pop("head.weight")
    size = config.num_classes
    return replace(config, num_classes=0, representation_size=size, projection=True, head_bias=True), state


def config_of(model: nn.Module) -> ViTConfig:
    """Return the config of a timm VisionTransformer that has no foreign parts."""
    block = model.blocks[0]
    distilled = getattr(model, "dist_token", None) is not None
    return ViTConfig(
        **_stem_fields(model.patch_embed),
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_dim=block.mlp.fc1.out_features,
        num_classes=model.num_classes,
        gelu=_gelu(block.mlp) or "other",
        norm_eps=block.norm1.eps,
        class_position=not model.no_embed_class,
        class_token=model.has_class_token,
        registers=1 if distilled else model.num_reg_tokens,
        position="none" if model.pos_embed is None else "learned-1d",
        norm_pre=not _is_absent(model.norm_pre),
        qkv_bias=block.attn.qkv.bias is not None,
        qk_norm=not _is_absent(block.attn.q_norm),
        layer_scale=0.0 if _is_absent(block.ls1) else getattr(block.ls1, "init_values", 1e-5),
        pool="distilled" if distilled else model.global_pool,
        pool_norm=_is_absent(model.norm),
        head_bias=getattr(model.head, "bias", True) is not None,
    )


def _stem_fields(stem: nn.Module) -> dict[str, Any]:
    """Return the fields of ViTConfig that describe a PatchEmbed or a HybridEmbed of timm's."""
    sizes: dict[str, Any] = {"image_size": tuple(stem.img_size), "patch_bias": stem.proj.bias is not None}
    if not hasattr(stem, "backbone"):
        return sizes | {"patch_size": stem.patch_size[0]}
    resnet = tuple(len(stage.blocks) for stage in getattr(stem.backbone, "stages", ()))
    return sizes | {"resnet": resnet, "patch_size": stem.patch_size[0] * stem.feature_ratio[0]}


def preprocessing_of(name: str, cfg: dict[str, Any]) -> Preprocessing:
    if cfg["crop_mode"] not in CROP_MODES:
        raise ModelError(f"timm:{name} wants images prepared by {cfg['crop_mode']!r}, which is not supported")
    return Preprocessing(
        interpolation=cfg["interpolation"],
        crop_pct=cfg["crop_pct"],
        mean=cfg["mean"],
        std=cfg["std"],
        crop_mode=cfg["crop_mode"],
    )


def labels_of(cfg: dict[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """Return the names of the classes: the model's own, or ImageNet's for a head of ImageNet's size."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    names = cfg.get("label_names")
    if names:
        descriptions = cfg.get("label_descriptions") or {}
        return tuple(descriptions.get(name, name) for name in names)
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None
