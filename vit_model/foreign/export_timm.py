"""Write a model as a folder for timm: `timm.create_model("local-dir:PATH", pretrained=True)`."""

from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.foreign.formats import undistilled
from wordsworth.vit_model.foreign.hub_folder import CONFIG, write_hub_folder
from wordsworth.vit_model.variants import variant_name
from wordsworth.vit_model.weights import State

ACT_LAYER_OF_GELU = {"exact": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
# variant: architecture of timm.
TIMM_HYBRIDS = {
    "R+Ti/16": "vit_tiny_r_s16_p8_224",
    "R26+S/32": "vit_small_r26_s32_224",
    "R26+B/32": "vit_base_r26_s32_224",
    "R50+B/16": "vit_base_r50_s16_224",
    "R50+L/32": "vit_large_r50_s32_224",
}


def save_timm(path: Path, checkpoint: Checkpoint) -> None:
    """Write the folder.

    Raises:
        ModelError: timm has no place for the model.
    """
    config = checkpoint.config
    _check(config)
    about = {
        "architecture": _architecture(config),
        "num_classes": config.num_classes or (config.representation_size if config.projection else 0),
        "num_features": config.width,
        "global_pool": "token" if config.pool == "distilled" else config.pool,
        "pretrained_cfg": _pretrained_cfg(checkpoint),
        "model_args": _model_args(config),
        "projection": config.projection,  # our own field: whether timm's head is CLIP's projection
    }
    head = checkpoint.head.to_dict()
    if head:
        about["head"] = head  # our own field: timm gives logits
    if checkpoint.labels:
        about["label_names"] = list(checkpoint.labels)
    write_hub_folder(path, _timm_state(checkpoint), {CONFIG: about})


def timm_eps(config: ViTConfig) -> float:
    """Return the eps that timm takes, whatever a config.json says: 1e-6, in CLIP's architectures 1e-5."""
    if config.resnet is not None or config.pool == "distilled":
        return 1e-6
    return 1e-5 if config.norm_eps == 1e-5 or config.projection else 1e-6


def _check(config: ViTConfig) -> None:
    if config.representation_size and not config.projection:
        raise ModelError("the format timm has no place for the hidden layer of a pre-training head")
    if config.patch_bias == config.norm_pre:
        raise ModelError("the format timm has a bias of patches just where it has no norm before the blocks")
    if config.projection and config.num_classes:
        raise ModelError("the format timm has no place for a projection and a head")


def _timm_state(checkpoint: Checkpoint) -> State:
    config = checkpoint.config
    state = dict(checkpoint.state)
    if config.projection:
        state["head.weight"] = state.pop("pre_logits.weight")
        state["head.bias"] = state["head.weight"].new_zeros(config.representation_size)
    if config.pool == "distilled":
        return undistilled(state, config)
    if config.registers and config.class_rows:
        # timm knows no position of [class] beside registers without positions, so the token takes the
        # position in.
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:].contiguous()
    return state


def _architecture(config: ViTConfig) -> str:
    if config.resnet is not None:
        name = TIMM_HYBRIDS.get(variant_name(config) or "")
        if name is None:
            raise ModelError("the format timm has no place for a hybrid of one's own size")
        return name
    if config.pool == "distilled":
        return "deit_base_distilled_patch16_224"
    return "vit_base_patch16_clip_224" if timm_eps(config) == 1e-5 else "vit_base_patch16_224"


def _pretrained_cfg(checkpoint: Checkpoint) -> dict[str, Any]:
    preprocessing = checkpoint.preprocessing.to_dict()
    return {
        "interpolation": preprocessing["interpolation"],
        "crop_pct": preprocessing["crop_pct"],
        "mean": preprocessing["mean"],
        "std": preprocessing["std"],
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "input_size": [3, *checkpoint.config.image_size],
        "num_classes": checkpoint.config.num_classes,
        "crop_mode": checkpoint.preprocessing.crop_mode,
    }


def _model_args(config: ViTConfig) -> dict[str, Any]:
    args: dict[str, Any] = {
        "img_size": list(config.image_size),
        "act_layer": ACT_LAYER_OF_GELU[config.gelu],
    }
    if config.resnet is not None:
        return args
    args |= {
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": _mlp_ratio(config),
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale or None,
        "pre_norm": config.norm_pre,
    }
    if config.pool == "distilled":
        return args
    return args | {
        "global_pool": config.pool,
        "fc_norm": config.pool_norm,
        "class_token": config.class_token,
        "reg_tokens": config.registers,
        "no_embed_class": config.registers > 0 or not config.class_position,
        "pos_embed": "none" if config.position == "none" else "learn",
    }


def _mlp_ratio(config: ViTConfig) -> float:
    """Return a ratio for which timm's int(width * ratio) is the width of the MLP."""
    ratio = config.mlp_dim / config.width
    if int(config.width * ratio) == config.mlp_dim:
        return ratio
    return (config.mlp_dim + 0.5) / config.width
