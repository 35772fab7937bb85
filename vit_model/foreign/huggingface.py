"""ViTs in Hugging Face's form: a config.json, a preprocessor_config.json and tensors, in a folder or on the hub.

Read from the files alone; transformers itself is not needed. Also OpenCLIP's form, whose config is open_clip_config.json.
"""

import json
from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import Checkpoint, State, first_line, load_weights
from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign.formats import CLIP_COLOURS
from wordsworth.vit_model.foreign.translate import architecture, checkpoint_of, translate

CONFIGS = ("config.json", "open_clip_config.json", "preprocessor_config.json", "processor_config.json")
# In order of preference; an index names the parts of weights that are too large for one file.
SAFE = ("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors")
WEIGHTS = (*SAFE, "pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin")
GELUS = {
    "gelu": "exact",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
    "quick_gelu": "quick",
}
# transformers leaves a field out of config.json where it has its class's default: (hidden_act, layer_norm_eps)
DEFAULTS = {
    "vit": ("gelu", 1e-12),
    "deit": ("gelu", 1e-12),
    "dinov2": ("gelu", 1e-6),
    "dinov2_with_registers": ("gelu", 1e-6),
    "clip": ("quick_gelu", 1e-5),
    "clip_vision_model": ("quick_gelu", 1e-5),
    "siglip": ("gelu_pytorch_tanh", 1e-6),
    "siglip_vision_model": ("gelu_pytorch_tanh", 1e-6),
}
# Fields of OpenCLIP's vision_cfg that change the computation without a tensor of their own, and what they are in a plain tower.
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
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers


def from_folder(folder: str | Path) -> Checkpoint:
    """The model in a folder as transformers' `save_pretrained` writes it, or as OpenCLIP's hub repositories hold it.

    Raises:
        ModelError: a file is missing or broken, or the model has parts that this one lacks.
    """
    folder = Path(folder)
    where = next((folder / name for name in CONFIGS[:2] if (folder / name).is_file()), None)
    if where is None:
        raise ModelError(f"{folder} has neither a {CONFIGS[0]} nor an {CONFIGS[1]}")
    about = _read_json(where)
    try:
        if where.name == CONFIGS[1]:
            fields, preprocessing, labels = _open_clip_fields(about), _open_clip_preprocessing(about), None
        else:
            fields, labels, preprocessing = _fields(about), _labels(about), None
        weights, state = _weights(folder)
        found = translate(state, weights)
        config = architecture(found, weights, **fields)
        preprocessing, size = (
            (preprocessing, None)
            if preprocessing
            else _preprocessing(folder, about, found.format.preprocessing)
        )
        checkpoint = checkpoint_of(
            found, config, preprocessing, labels if config.num_classes else None, weights
        )
        return checkpoint if size in (None, config.image_size) else checkpoint.resized(size)
    except (
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
    ) as error:  # JSON of another shape
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{where} cannot be used: {first_line(error)}") from error


def switches_beside(path: Path) -> dict[str, Any]:
    """What the config.json beside a file of weights says of the switches, if it is Hugging Face's; else nothing."""
    config = Path(path).parent / CONFIGS[0]
    about = _read_json(config) if config.is_file() else {}
    if about.get("model_type") not in DEFAULTS:
        return {}
    return {
        name: value for name, value in _fields(about).items() if name in ("gelu", "norm_eps", "pos_interp")
    }


def from_hub(name: str) -> Checkpoint:
    """The model of a repository OWNER/NAME on the hub, by its own client and cache; HF_ENDPOINT and HF_TOKEN hold.

    Raises:
        ModelError: it cannot be downloaded, or as `from_folder`.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*CONFIGS, *SAFE, "model-*.safetensors"]))
        if not any(
            (folder / weights).is_file() for weights in WEIGHTS
        ):  # only where there are no safetensors
            folder = Path(snapshot_download(name, allow_patterns=[*CONFIGS, *WEIGHTS]))
    except Exception as error:  # whatever the client raises: no network, no such repository, a refusal
        raise ModelError(
            f"hf:{name} cannot be downloaded ({first_line(error)}); give a folder or a file instead"
        ) from error
    if (folder / CONFIGS[0]).is_file() and "architecture" in _read_json(folder / CONFIGS[0]):
        from wordsworth.vit_model.foreign.timm import from_timm

        return from_timm(f"hf-hub:{name}")
    return from_folder(folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(about, dict):
        raise ModelError(f"{path} is not a JSON object")
    return about


def _weights(folder: Path) -> tuple[Path, State]:
    for name in WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return path, load_weights(path)
        parts = sorted(set(_read_json(path).get("weight_map", {}).values()))
        if any(Path(part).name != part for part in parts):
            raise ModelError(f"{path} names files outside of its folder")
        return path, {key: tensor for part in parts for key, tensor in load_weights(folder / part).items()}
    raise ModelError(f"{folder} has no weights: one of {', '.join(WEIGHTS)}")


def _fields(about: dict[str, Any]) -> dict[str, Any]:
    """What config.json says and the tensors do not."""
    kind = about["model_type"]
    if kind not in DEFAULTS:
        raise ModelError(f"model_type is {kind!r}; known are {', '.join(DEFAULTS)}")
    about = about.get("vision_config", about)
    act, eps = DEFAULTS[kind]
    act = about.get("hidden_act", act)
    if act not in GELUS:
        raise ModelError(f"hidden_act is {act!r}; known are {', '.join(GELUS)}")
    size = about.get("image_size", 224)
    return {
        "heads": about.get("num_attention_heads", 12),
        "image_size": size if isinstance(size, int) else tuple(size),
        "gelu": GELUS[act],
        "norm_eps": about.get("layer_norm_eps", eps),
        "pos_interp": "timm" if kind == "dinov2_with_registers" else "hf",  # which antialiases
    }


def _labels(about: dict[str, Any]) -> tuple[str, ...] | None:
    names = {int(number): name for number, name in (about.get("id2label") or {}).items()}
    if not names or all(name == f"LABEL_{number}" for number, name in names.items()):
        return None
    return tuple(names[number] for number in range(len(names)))


def _preprocessing(
    folder: Path, config: dict[str, Any], default: Preprocessing | None
) -> tuple[Preprocessing, tuple[int, int] | None]:
    """What the processor's JSON says, and the size of the images that it gives (None: the model's).

    size {height, width} squashes, {shortest_edge} keeps the aspect ratio; a plain number is the first for most processors and the
    second for CLIP's. A centre crop may follow.
    """
    about, default = _processor(folder), default or Preprocessing()
    if about is None:
        return default, None
    clip = config["model_type"].startswith("clip")
    size, crop = about.get("size") or 224, about.get("crop_size") or {}
    if not isinstance(size, dict):
        size = {"shortest_edge": size} if clip else {"height": size, "width": size}
    if about.get("do_rescale", True) and abs(about.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ModelError(f"{folder}: its processor rescales by {about['rescale_factor']}, which is not 1/255")
    resized = (size["shortest_edge"],) * 2 if "shortest_edge" in size else (size["height"], size["width"])
    given = resized
    if about.get("do_center_crop"):
        given = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
    resample, normalised = about.get("resample"), about.get("do_normalize", True)
    preprocessing = Preprocessing(
        default.interpolation if resample is None else RESAMPLING[resample],
        min(min(g / r for g, r in zip(given, resized, strict=True)), 1.0),
        (about.get("image_mean") or default.mean) if normalised else (0, 0, 0),
        (about.get("image_std") or default.std) if normalised else (1, 1, 1),
        crop_mode="center" if "shortest_edge" in size else "squash",
    )
    return preprocessing, given


def _processor(folder: Path) -> dict[str, Any] | None:
    """The image processor's settings: a file of its own, or a part of the processor for images and texts."""
    if (folder / CONFIGS[2]).is_file():
        return _read_json(folder / CONFIGS[2])
    return _read_json(folder / CONFIGS[3]).get("image_processor") if (folder / CONFIGS[3]).is_file() else None


def _open_clip_fields(about: dict[str, Any]) -> dict[str, Any]:
    model = about["model_cfg"]
    vision = model["vision_cfg"]
    if "timm_model_name" in vision:
        raise ModelError(f"its visual tower is timm's {vision['timm_model_name']}: use --model timm:NAME")
    if other := [
        name for name, plain in OPEN_CLIP_PLAIN.items() if vision.get(name, plain) not in (plain, None)
    ]:
        raise ModelError(
            f"its visual tower has parts that are not supported: {other[0]} = {vision[other[0]]!r}"
        )
    tanh = (vision.get("act_kwargs") or {}).get("approximate") == "tanh"
    return {
        "heads": vision["width"] // vision.get("head_width", 64),
        "image_size": vision["image_size"]
        if isinstance(vision["image_size"], int)
        else tuple(vision["image_size"]),
        "gelu": "quick" if model.get("quick_gelu") else "tanh" if tanh else "exact",
        "norm_eps": (vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        "pos_interp": "timm",  # OpenCLIP resizes its table bicubic with antialiasing
    }


def _open_clip_preprocessing(about: dict[str, Any]) -> Preprocessing:
    cfg = about.get("preprocess_cfg") or {}
    mode = {"shortest": "center", "squash": "squash"}.get(cfg.get("resize_mode", "shortest"))
    if mode is None:
        raise ModelError(f"resize_mode is {cfg['resize_mode']!r}; known are shortest and squash")
    mean, std = cfg.get("mean", CLIP_COLOURS[0]), cfg.get("std", CLIP_COLOURS[1])
    return Preprocessing(cfg.get("interpolation", "bicubic"), 1.0, mean, std, crop_mode=mode)
