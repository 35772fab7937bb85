"""Load ViTs in Hugging Face's form: a config.json, a preprocessor_config.json and tensors.

The files alone are read; transformers is not needed. OpenCLIP's form, with an open_clip_config.json, is read
too.
"""

from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign.formats import CLIP_COLOURS
from wordsworth.vit_model.foreign.hub_folder import CONFIG, read_json
from wordsworth.vit_model.foreign.translate import Translated, architecture, checkpoint_of, translate
from wordsworth.vit_model.weights import State, first_line, load_weights

OPEN_CLIP_CONFIG = "open_clip_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"  # of the image processor alone
PROCESSOR_CONFIG = "processor_config.json"  # of the processor for images and texts
CONFIGS = (CONFIG, OPEN_CLIP_CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG)
# In order of preference. An index names the parts of weights that are too large for one file.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors")
WEIGHTS = (*SAFETENSORS, "pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin")
GELU_OF_HIDDEN_ACT = {
    "gelu": "exact",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
    "quick_gelu": "quick",
}
# model_type: the defaults (hidden_act, layer_norm_eps). transformers leaves a field with a default out of
# config.json.
DEFAULT_SWITCHES = {
    "vit": ("gelu", 1e-12),
    "deit": ("gelu", 1e-12),
    "dinov2": ("gelu", 1e-6),
    "dinov2_with_registers": ("gelu", 1e-6),
    "clip": ("quick_gelu", 1e-5),
    "clip_vision_model": ("quick_gelu", 1e-5),
    "siglip": ("gelu_pytorch_tanh", 1e-6),
    "siglip_vision_model": ("gelu_pytorch_tanh", 1e-6),
}
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
RESAMPLING = (
    "nearest",
    "lanczos",
    "bilinear",
    "bicubic",
    "box",
    "hamming",
)  # in the order of Pillow's numbers


def from_folder(folder: str | Path) -> Checkpoint:
    """Load a folder that transformers' `save_pretrained` wrote, or the files of an OpenCLIP repository.

    Raises:
        ModelError: a file is missing or broken, or the model has parts that this one lacks.
    """
    folder = Path(folder)
    for name in (CONFIG, OPEN_CLIP_CONFIG):
        where = folder / name
        if where.is_file():
            break
    else:
        raise ModelError(f"{folder} has neither a {CONFIG} nor an {OPEN_CLIP_CONFIG}")
    about = read_json(where)
    try:
        if where.name == OPEN_CLIP_CONFIG:
            return _open_clip(folder, about)
        return _transformers(folder, about)
    except ModelError:
        raise
    except (
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
    ) as error:  # JSON of another shape
        raise ModelError(f"{where} cannot be used: {first_line(error)}") from error


def _transformers(folder: Path, about: dict[str, Any]) -> Checkpoint:
    fields = _fields(about)
    labels = _labels(about)
    weights, found = _translated(folder)
    config = architecture(found, weights, **fields)
    preprocessing, size = _preprocessing(folder, about, found.format.preprocessing)
    if not config.num_classes:
        labels = None
    checkpoint = checkpoint_of(found, config, preprocessing, weights, labels)
    if size is None or size == config.image_size:
        return checkpoint
    return checkpoint.resized(size)


def _open_clip(folder: Path, about: dict[str, Any]) -> Checkpoint:
    fields = _open_clip_fields(about)
    preprocessing = _open_clip_preprocessing(about)
    weights, found = _translated(folder)
    config = architecture(found, weights, **fields)
    return checkpoint_of(found, config, preprocessing, weights)


def _translated(folder: Path) -> tuple[Path, Translated]:
    """Return the file of weights, or its index, and the tensors under our names."""
    weights, state = _weights(folder)
    return weights, translate(state, weights)


def switches_beside(path: Path) -> dict[str, Any]:
    """Return the switches in the config.json of transformers beside a file; nothing without such a JSON."""
    config = path.parent / CONFIG
    about = read_json(config) if config.is_file() else {}
    if about.get("model_type") not in DEFAULT_SWITCHES:
        return {}
    fields = _fields(about)
    return {name: fields[name] for name in ("gelu", "norm_eps", "pos_interp")}


def download(name: str) -> Path:
    """Download a repository OWNER/NAME of the hub, by the hub's own client. HF_ENDPOINT and HF_TOKEN hold.

    Returns:
        The folder with the configs and weights, in the client's cache.

    Raises:
        ModelError: the repository cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        safe = [*CONFIGS, *SAFETENSORS, "model-*.safetensors"]
        folder = Path(snapshot_download(name, allow_patterns=safe))
        if not any((folder / weights).is_file() for weights in WEIGHTS):  # there are no safetensors
            folder = Path(snapshot_download(name, allow_patterns=[*CONFIGS, *WEIGHTS]))
        return folder
    except (
        Exception
    ) as error:  # no network, no such repository, a refusal: the client has many kinds of errors
        reason = first_line(error)
        raise ModelError(
            f"hf:{name} cannot be downloaded ({reason}); give a folder or a file instead"
        ) from error


def _weights(folder: Path) -> tuple[Path, State]:
    """Read the first kind of weights that the folder has.

    Returns:
        The file, or the index of several files, and the tensors.
    """
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            state = _indexed_weights(path) if name.endswith(".index.json") else load_weights(path)
            return path, state
    raise ModelError(f"{folder} has no weights: one of {', '.join(WEIGHTS)}")


def _indexed_weights(index: Path) -> State:
    """Read the tensors of all files that an index names."""
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    if any(Path(name).name != name for name in names):
        raise ModelError(f"{index} names files outside of its folder")
    state: State = {}
    for name in names:
        state |= load_weights(index.parent / name)
    return state


# ---- transformers ----


def _fields(about: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ViTConfig that a config.json of transformers says and the tensors do not."""
    kind = about["model_type"]
    if kind not in DEFAULT_SWITCHES:
        raise ModelError(f"model_type is {kind!r}; known are {', '.join(DEFAULT_SWITCHES)}")
    default_act, default_eps = DEFAULT_SWITCHES[kind]
    vision = about.get("vision_config", about)
    act = vision.get("hidden_act", default_act)
    if act not in GELU_OF_HIDDEN_ACT:
        raise ModelError(f"hidden_act is {act!r}; known are {', '.join(GELU_OF_HIDDEN_ACT)}")
    return {
        "heads": vision.get("num_attention_heads", 12),
        "image_size": _int_or_tuple(vision.get("image_size", 224)),
        "gelu": GELU_OF_HIDDEN_ACT[act],
        "norm_eps": vision.get("layer_norm_eps", default_eps),
        "pos_interp": "timm" if kind == "dinov2_with_registers" else "hf",  # the former antialiases
    }


def _int_or_tuple(size: Any) -> int | tuple[int, ...]:
    return size if isinstance(size, int) else tuple(size)


def _labels(about: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes, or None if the names are only LABEL_0, LABEL_1, ..."""
    names = {int(number): name for number, name in (about.get("id2label") or {}).items()}
    if not names or all(name == f"LABEL_{number}" for number, name in names.items()):
        return None
    return tuple(names[number] for number in range(len(names)))


def _preprocessing(
    folder: Path, config: dict[str, Any], default: Preprocessing | None
) -> tuple[Preprocessing, tuple[int, int] | None]:
    """Return what the JSON of the processor says, and the size of its images (None: the model's size).

    A size of {height, width} squashes, {shortest_edge} keeps the aspect ratio. A plain number is the former
    for most processors, and the latter for CLIP's. A centre crop may follow.
    """
    about = _processor(folder)
    default = default or Preprocessing()
    if about is None:
        return default, None
    if about.get("do_rescale", True) and abs(about.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ModelError(f"{folder}: its processor rescales by {about['rescale_factor']}, which is not 1/255")
    size = about.get("size") or 224
    if not isinstance(size, dict):
        clip = config["model_type"].startswith("clip")
        size = {"shortest_edge": size} if clip else {"height": size, "width": size}
    squash = "shortest_edge" not in size
    resized = (size["height"], size["width"]) if squash else (size["shortest_edge"], size["shortest_edge"])
    given = _crop_size(about) if about.get("do_center_crop") else resized
    resample = about.get("resample")
    normalised = about.get("do_normalize", True)
    preprocessing = Preprocessing(
        interpolation=default.interpolation if resample is None else RESAMPLING[resample],
        crop_pct=min(given[0] / resized[0], given[1] / resized[1], 1.0),
        mean=(about.get("image_mean") or default.mean) if normalised else (0, 0, 0),
        std=(about.get("image_std") or default.std) if normalised else (1, 1, 1),
        crop_mode="squash" if squash else "center",
    )
    return preprocessing, given


def _crop_size(about: dict[str, Any]) -> tuple[int, int]:
    crop = about.get("crop_size") or {}
    return (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)


def _processor(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the image processor, or None if the folder has none."""
    if (folder / PREPROCESSOR_CONFIG).is_file():
        return read_json(folder / PREPROCESSOR_CONFIG)
    if (folder / PROCESSOR_CONFIG).is_file():
        return read_json(folder / PROCESSOR_CONFIG).get("image_processor")
    return None


# ---- OpenCLIP ----


def _open_clip_fields(about: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ViTConfig that an open_clip_config.json says and the tensors do not."""
    model = about["model_cfg"]
    vision = model["vision_cfg"]
    if "timm_model_name" in vision:
        raise ModelError(f"its visual tower is timm's {vision['timm_model_name']}: use --model timm:NAME")
    for name, plain in OPEN_CLIP_PLAIN.items():
        if vision.get(name, plain) not in (plain, None):
            what = f"{name} = {vision[name]!r}"
            raise ModelError(f"its visual tower has parts that are not supported: {what}")
    return {
        "heads": vision["width"] // vision.get("head_width", 64),
        "image_size": _int_or_tuple(vision["image_size"]),
        "gelu": _open_clip_gelu(model, vision),
        "norm_eps": (vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        "pos_interp": "timm",  # OpenCLIP resizes its table bicubic with antialiasing
    }


def _open_clip_gelu(model: dict[str, Any], vision: dict[str, Any]) -> str:
    if model.get("quick_gelu"):
        return "quick"
    if (vision.get("act_kwargs") or {}).get("approximate") == "tanh":
        return "tanh"
    return "exact"


def _open_clip_preprocessing(about: dict[str, Any]) -> Preprocessing:
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
