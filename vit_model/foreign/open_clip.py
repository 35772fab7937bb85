"""Load the image towers of OpenCLIP: an open_clip_config.json and tensors.

A plain tower becomes our own ViT, from the files alone. Any other runs in open_clip's own module.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import BaseCheckpoint, Checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign.formats import CLIP_COLOURS
from wordsworth.vit_model.foreign.hub_folder import naming_broken_json, read_json
from wordsworth.vit_model.foreign.huggingface import OPEN_CLIP_CONFIG, read_weights, translated
from wordsworth.vit_model.foreign.open_clip_module import int_or_tuple, load_open_clip_module
from wordsworth.vit_model.foreign.timm import NotOurs
from wordsworth.vit_model.foreign.translate import architecture, checkpoint_of

# Fields of OpenCLIP's vision_cfg that change the computation and have no tensor, with their values in a plain
# tower.
OPEN_CLIP_PLAIN = {
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "patch_dropout": 0.0,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "input_patchnorm": False,
}


def from_folder(folder: Path, note: Callable[[str], None]) -> BaseCheckpoint:
    """Load the image tower of the files of an OpenCLIP repository.

    Args:
        folder: with the files.
        note: takes a line for the user.

    Raises:
        ModelError: a file is missing or broken, or open_clip is needed and missing.
    """
    where = folder / OPEN_CLIP_CONFIG
    about = read_json(where)
    with naming_broken_json(where):
        try:
            return _as_our_own(folder, about)
        except NotOurs as reason:
            weights, state = read_weights(folder)
            found = load_open_clip_module(about["model_cfg"], _preprocessing(about), state, weights)
            note(f"{folder}: {reason}: open_clip's own module runs it")
            return found


def _as_our_own(folder: Path, about: dict[str, Any]) -> Checkpoint:
    fields = _fields(about)
    preprocessing = _preprocessing(about)
    weights, found = translated(folder)
    config = architecture(found, weights, **fields)
    return checkpoint_of(found, config, preprocessing, weights)


def _fields(about: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ViTConfig that an open_clip_config.json says and the tensors do not."""
    model = about["model_cfg"]
    vision = model["vision_cfg"]
    if "timm_model_name" in vision:
        raise NotOurs(f"its visual tower is timm's {vision['timm_model_name']}")
    if not isinstance(vision.get("layers", 12), int):
        raise NotOurs("its visual tower is a ResNet")
    for name, plain in OPEN_CLIP_PLAIN.items():
        if vision.get(name, plain) not in (plain, None):
            what = f"{name} = {vision[name]!r}"
            raise NotOurs(f"its visual tower has {what}, which our own ViT has not")
    return {
        "heads": vision["width"] // vision.get("head_width", 64),
        "image_size": int_or_tuple(vision["image_size"]),
        "gelu": _gelu(model, vision),
        "norm_eps": (vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        "pos_interp": "timm",  # OpenCLIP resizes its table bicubic with antialiasing
    }


def _gelu(model: dict[str, Any], vision: dict[str, Any]) -> str:
    if model.get("quick_gelu"):
        return "quick"
    if (vision.get("act_kwargs") or {}).get("approximate") == "tanh":
        return "tanh"
    return "exact"


def _preprocessing(about: dict[str, Any]) -> Preprocessing:
    cfg = about.get("preprocess_cfg") or {}
    mode = {"shortest": "center", "squash": "squash"}.get(cfg.get("resize_mode", "shortest"))
    if mode is None:
        raise ModelError(f"resize_mode is {cfg['resize_mode']!r}; known are shortest and squash")
    return Preprocessing(
        interpolation=cfg.get("interpolation", "bicubic"),
        crop_pct=1.0,
        mean=cfg.get("mean", CLIP_COLOURS["mean"]),
        std=cfg.get("std", CLIP_COLOURS["std"]),
        crop_mode=mode,
    )
