"""Our model in the forms that other code opens: timm, Hugging Face, Google's .npz, or one .safetensors file of our own.

A form that cannot say something that changes the outputs, such as the GELU, is refused, unless the loss is accepted; read back,
what was written without a loss has bit-identical tensors and the same switches. What only labels or prepares is a note.
"""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from wordsworth.vit_model.checkpoint import WEIGHT_SUFFIXES, Checkpoint, replace_file, save_folder
from wordsworth.vit_model.config import OPTIONS, ModelError, Preprocessing, ViTConfig, variant_name
from wordsworth.vit_model.foreign import renames
from wordsworth.vit_model.foreign.formats import undistilled
from wordsworth.vit_model.foreign.huggingface import RESAMPLING
from wordsworth.vit_model.foreign.renames import State

FORMATS = ("safetensors", "timm", "hf", "npz")
TIMM_GELUS = {"exact": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
HF_GELUS = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
TIMM_HYBRIDS = {
    "R+Ti/16": "vit_tiny_r_s16_p8_224",
    "R26+S/32": "vit_small_r26_s32_224",
    "R26+B/32": "vit_base_r26_s32_224",
    "R50+B/16": "vit_base_r50_s16_224",
    "R50+L/32": "vit_large_r50_s32_224",
}
FREE = ("resnet", "gelu", "pos_interp", "dropout", "drop_path", "position", "position_at", "head_bias")
# What the forms have no word for; the values that they can hold.
PLAIN = {"position": ("learned-1d",), "position_at": ("stem",)}
HOLDS: dict[str, dict[str, tuple]] = {
    "timm": {"position": ("learned-1d", "none"), "position_at": ("stem",), "head_bias": (True,)},
    "hf": PLAIN
    | {
        "class_token": (True,),
        "class_position": (True,),
        "pool": ("token", "distilled"),
        "pool_norm": (False,),
    }
    | {"patch_bias": (True,), "head_bias": (True,), "projection": (False,), "resnet": (None,)},
    "npz": PLAIN
    | {"pool": ("token", "avg", "map"), "pool_norm": (False,), "patch_bias": (True,), "qkv_bias": (True,)}
    | {"head_bias": (True,), "projection": (False,)},
}


def convert(checkpoint: Checkpoint, path: str | Path, format: str, lossy: bool = False) -> list[str]:
    """Write the model; every file appears whole or not at all.

    Args:
        path: "safetensors": a file that ends so, or else a model folder. "npz": a file that ends so. Others: a folder.
        lossy: write also what the form cannot say in full; the losses are among the notes.

    Returns:
        Notes: what the form does not carry.

    Raises:
        ModelError: the form has no place for the model, or would change what it computes and `lossy` is not set.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ModelError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    one_file = {"npz": (".npz",), "safetensors": (".safetensors", "")}.get(format, ("",))
    if path.suffix not in one_file and path.suffix in (*WEIGHT_SUFFIXES, ""):
        what = "one file, whose name must end in .npz" if format == "npz" else "a folder"
        raise ModelError(f"{path}: the format {format} is {what}")
    for name, values in _holds(checkpoint.config, format).items():
        if (value := getattr(checkpoint.config, name)) not in values:
            raise ModelError(f"the format {format} has no place for {name} = {value!r} of this model")
    losses = list(_losses(checkpoint.config, format))
    if losses and not lossy:
        raise ModelError(
            f"the format {format} cannot say it all: {'; '.join(losses)} (--lossy writes it all the same)"
        )
    writers = {"safetensors": _save_ours, "timm": _save_timm, "hf": _save_hf, "npz": _save_npz}
    writers[format](path, checkpoint)
    return losses + _unsaid(checkpoint, format)


def _unsaid(checkpoint: Checkpoint, format: str) -> list[str]:
    """What prepares pictures or names classes and the form does not say; it changes no tensor and no logit."""
    config, preprocessing, notes = checkpoint.config, checkpoint.preprocessing, []
    manner = {"timm": "timm", "hf": "hf", "npz": "google"}.get(format, config.pos_interp)
    if config.pos_interp != manner:
        notes.append(
            f"at another image size the position table would be resampled in the manner of {manner}, not of {config.pos_interp}"
        )
    if format in ("timm", "hf") and preprocessing.exif == "ignore":
        notes.append("that EXIF orientation is ignored is not said")
    if format == "timm" and config.num_classes == 1000 and not checkpoint.labels:
        notes.append("1000 classes without names are taken for ImageNet's by timm")
    if format == "hf" and preprocessing.crop_mode == "center":
        edge, side = min(_resized(preprocessing, config.image_size)), min(config.image_size)
        if len(set(config.image_size)) > 1:
            notes.append(
                "transformers pads where it crops a size that is not square: prepare the pictures in another way"
            )
        elif side / edge != preprocessing.crop_pct:
            notes.append(
                f"crop_pct {preprocessing.crop_pct} becomes {side / edge:.6g}: sizes are whole pixels"
            )
    if format == "npz":
        notes.append("an .npz carries neither the preprocessing nor the names of the classes")
    return notes


def _resized(preprocessing: Preprocessing, image_size: tuple[int, int]) -> list[int]:
    return [math.floor(side / preprocessing.crop_pct) for side in image_size]


def _holds(config: ViTConfig, format: str) -> dict[str, tuple]:
    """Which values of which fields the form can hold. A hybrid or a distilled model is plain in all else."""
    holds = HOLDS.get(format, {})
    if format == "timm" and config.resnet is not None:
        holds = holds | {name: (default,) for name, default in OPTIONS.items() if name not in FREE}
    if format in ("timm", "hf") and config.pool == "distilled":
        holds = holds | {
            "registers": (1,),
            "position": ("learned-1d",),
            "class_position": (True,),
            "pool_norm": (False,),
        }
        holds |= {"num_classes": range(1, 1 << 31)}
    return holds


def _losses(config: ViTConfig, format: str) -> Iterator[str]:
    """What code that opens the form would compute otherwise."""
    if format == "npz":
        if config.gelu != "tanh":
            yield f"Google's code computes the tanh GELU, this model has the {config.gelu} one (logits move by about 1e-3)"
        if config.norm_eps != 1e-6:
            yield f"Google's code has a norm eps of 1e-06, this model {config.norm_eps}"
    if format == "timm":
        if config.norm_eps != _timm_eps(config):
            yield f"timm would take a norm eps of {_timm_eps(config)}, this model has {config.norm_eps} (logits move by about 1e-5)"
        if config.resnet is not None:
            yield "timm standardises a hybrid's kernels with another eps (logits move by about 1e-4)"


def _save_ours(path: Path, checkpoint: Checkpoint) -> None:
    if path.suffix != ".safetensors":
        save_folder(path, checkpoint)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, checkpoint.to_bytes())


def _write_folder(
    path: Path, state: State, jsons: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Weights first, config.json last: it vouches for the rest."""
    path.mkdir(parents=True, exist_ok=True)
    replace_file(path / "model.safetensors", safetensors.torch.save(state, metadata))
    for name, content in sorted(jsons.items(), key=lambda item: item[0] == "config.json"):
        replace_file(path / name, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


# ---- timm --------------------------------------------------------------------------------------------------------------


def _timm_eps(config: ViTConfig) -> float:
    """timm's architectures have 1e-6, those of CLIP 1e-5; a config.json cannot change it."""
    if config.resnet is not None or config.pool == "distilled":
        return 1e-6
    return 1e-5 if config.norm_eps == 1e-5 or config.projection else 1e-6


def _save_timm(path: Path, checkpoint: Checkpoint) -> None:
    """A folder for `timm.create_model("local-dir:PATH", pretrained=True)`, in the form of timm's hub repositories."""
    config, state = checkpoint.config, dict(checkpoint.state)
    if config.representation_size and not config.projection:
        raise ModelError("the format timm has no place for the hidden layer of a pre-training head")
    if config.patch_bias == config.norm_pre:
        raise ModelError("the format timm has a bias of patches just where it has no norm before the blocks")
    if config.projection:
        if config.num_classes:
            raise ModelError("the format timm has no place for a projection and a head")
        state["head.weight"] = state.pop("pre_logits.weight")
        state["head.bias"] = state["head.weight"].new_zeros(config.representation_size)
    if config.pool == "distilled":
        state = undistilled(state, config)
    elif config.registers and config.class_rows:  # registers without and [class] with a position: not in timm
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:].contiguous()
    about = {
        "architecture": _timm_architecture(config),
        "num_classes": config.num_classes or (config.representation_size if config.projection else 0),
        "num_features": config.width,
        "global_pool": _timm_pool(config),
        "pretrained_cfg": _timm_cfg(checkpoint),
        "model_args": _timm_args(config),
        "projection": config.projection,  # ours: whether what timm calls the head is CLIP's projection
    }
    if checkpoint.labels:
        about["label_names"] = list(checkpoint.labels)
    _write_folder(path, state, {"config.json": about})


def _timm_pool(config: ViTConfig) -> str:
    return "token" if config.pool == "distilled" else config.pool


def _timm_architecture(config: ViTConfig) -> str:
    if config.resnet is not None:
        if name := TIMM_HYBRIDS.get(variant_name(config) or ""):
            return name
        raise ModelError("the format timm has no place for a hybrid of one's own size")
    if config.pool == "distilled":
        return "deit_base_distilled_patch16_224"
    return "vit_base_patch16_clip_224" if _timm_eps(config) == 1e-5 else "vit_base_patch16_224"


def _timm_cfg(checkpoint: Checkpoint) -> dict[str, Any]:
    preprocessing = checkpoint.preprocessing.to_dict()
    kept = {name: preprocessing[name] for name in ("interpolation", "crop_pct", "mean", "std")}
    size, classes = list(checkpoint.config.image_size), checkpoint.config.num_classes
    first = {"first_conv": "patch_embed.proj", "classifier": "head"}
    return (
        kept
        | first
        | {"input_size": [3, *size], "num_classes": classes, "crop_mode": checkpoint.preprocessing.crop_mode}
    )


def _timm_args(config: ViTConfig) -> dict[str, Any]:
    args = {"img_size": list(config.image_size), "act_layer": TIMM_GELUS[config.gelu]}
    if config.resnet is not None:
        return args
    ratio = config.mlp_dim / config.width
    args |= {
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": ratio
        if int(config.width * ratio) == config.mlp_dim
        else (config.mlp_dim + 0.5) / config.width,
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


# ---- Hugging Face --------------------------------------------------------------------------------------------------------


def _save_hf(path: Path, checkpoint: Checkpoint) -> None:
    """A folder for `AutoModelForImageClassification` or, without a head, `AutoModel`, and for `AutoImageProcessor`."""
    config, state = checkpoint.config, checkpoint.state
    if config.representation_size and (config.num_classes or config.representation_size != config.width):
        raise ModelError(
            "the format hf has a hidden layer only in models without a head, as wide as the model"
        )
    deit = config.pool == "distilled"
    if deit:
        state = undistilled(state, config)
    prefix = ("deit." if deit else "vit.") if config.num_classes else ""
    theirs = renames.write(state, renames.HF_DEIT if deit else renames.HF_VIT, config, "hf")
    theirs = {name if "classifier" in name else prefix + name: tensor for name, tensor in theirs.items()}
    kind = (
        ("DeiTForImageClassificationWithTeacher" if deit else "ViTForImageClassification")
        if config.num_classes
        else "ViTModel"
    )
    about = {
        "architectures": [kind],
        "model_type": "deit" if deit else "vit",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": HF_GELUS[config.gelu],
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size[0] if len(set(config.image_size)) == 1 else list(config.image_size),
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
    }
    if config.num_classes:
        names = checkpoint.labels or [f"LABEL_{i}" for i in range(config.num_classes)]
        about |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    # These two crop, and did in every version of transformers.
    processor_kind = (
        "CLIPImageProcessor" if checkpoint.preprocessing.crop_mode == "center" else "DeiTImageProcessor"
    )
    processor = _processor(checkpoint.preprocessing, config.image_size) | {
        "image_processor_type": processor_kind
    }
    _write_folder(
        path, theirs, {"preprocessor_config.json": processor, "config.json": about}, {"format": "pt"}
    )


def _processor(preprocessing: Preprocessing, image_size: tuple[int, int]) -> dict[str, Any]:
    (height, width), resized = image_size, _resized(preprocessing, image_size)
    squash = preprocessing.crop_mode == "squash"
    return {
        "do_resize": True,
        "size": {"height": resized[0], "width": resized[1]} if squash else {"shortest_edge": min(resized)},
        "resample": RESAMPLING.index(preprocessing.interpolation),
        "do_center_crop": not squash or preprocessing.crop_pct < 1,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


# ---- Google's .npz -------------------------------------------------------------------------------------------------------


def _save_npz(path: Path, checkpoint: Checkpoint) -> None:
    """float32 arrays in the original naming, or in big_vision's where [class] has no position or there is none."""
    config = checkpoint.config
    arrays = {
        name: t.numpy()
        for name, t in renames.write(checkpoint.state, _npz_table(config), config, "npz").items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())


def _npz_table(config: ViTConfig) -> renames.Table:
    if config.class_rows and config.pool == "token":
        return (
            renames.NPZ
            if config.resnet is None
            else renames.NPZ_HYBRID
            if config.resnet
            else renames.NPZ_ROOT
        )
    if config.resnet is not None or (config.class_token and config.pool != "token"):
        raise ModelError("the format npz has no place for this pooling with a class token, nor in a hybrid")
    return renames.NPZ_BIG_VISION
