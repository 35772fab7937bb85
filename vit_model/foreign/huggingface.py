"""Load ViTs in Hugging Face's form: a config.json, a preprocessor_config.json and tensors.

The files alone are read; transformers is not needed.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError, as_size
from wordsworth.vit_model.foreign.class_names import TAGS
from wordsworth.vit_model.foreign.heads import with_transformers_head
from wordsworth.vit_model.foreign.hub import HubFiles, Note, Snapshot, fetch, split_revision
from wordsworth.vit_model.foreign.hub_cache import parts_of
from wordsworth.vit_model.foreign.hub_folder import CONFIG, naming_broken_json, read_json
from wordsworth.vit_model.foreign.image_processors import (
    PREPROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    read_image_processor,
)
from wordsworth.vit_model.foreign.preparation import note_guess
from wordsworth.vit_model.foreign.timm import NotOurs
from wordsworth.vit_model.foreign.translate import Translated, architecture, checkpoint_of, translate
from wordsworth.vit_model.weights import State, load_weights

OPEN_CLIP_CONFIG = "open_clip_config.json"
LABELS = "labels.txt"  # of our own model folders
CONFIGS = (CONFIG, OPEN_CLIP_CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG)
# In order of preference. An index names the parts of weights that are too large for one file.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors")
WEIGHTS = (*SAFETENSORS, "pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin")
# Ends of names of weights, in whatever form.
OTHER_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".ckpt", ".npz", ".gguf")
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
    "siglip2": ("gelu_pytorch_tanh", 1e-6),  # NaFlex; the others of SigLIP 2 are of the kind "siglip"
    "siglip2_vision_model": ("gelu_pytorch_tanh", 1e-6),
}
# Classes whose head takes another vector than our own model's: a mean of patches, beside [class] or alone.
OTHER_HEADS = (
    "CLIPForImageClassification",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "SiglipForImageClassification",
)


def from_folder(
    folder: str | Path, note: Note = print, named: tuple[Path, Translated] | None = None
) -> Checkpoint:
    """Load a folder that transformers' `save_pretrained` wrote.

    Args:
        folder: the folder.
        note: gets a line where the folder does not say how images are prepared.
        named: a file of weights and its tensors, in place of the folder's usual ones.

    Raises:
        ModelError: a file is missing or broken, or the model has parts that this one lacks.
    """
    folder = Path(folder)
    where = folder / CONFIG
    if not where.is_file():
        raise ModelError(f"{folder} has neither a {CONFIG} nor an {OPEN_CLIP_CONFIG}")
    with naming_broken_json(where):
        return _transformers(folder, read_json(where), note, named)


def _transformers(
    folder: Path, about: dict[str, Any], note: Note, named: tuple[Path, Translated] | None
) -> Checkpoint:
    fields = _fields(about)
    weights, found = named or translated(folder)
    config = architecture(found, weights, **fields)
    processor = read_image_processor(folder, about["model_type"], found.format.preprocessing)
    if processor.flips_channels:
        raise NotOurs(f"{folder} takes images as BGR")
    note_guess(folder, about["model_type"], processor.preprocessing, note)
    checkpoint = with_transformers_head(checkpoint_of(found, config, processor.preprocessing, weights), about)
    if processor.image_size in (None, config.image_size):
        return checkpoint
    return checkpoint.resized(processor.image_size)


def translated(folder: Path) -> tuple[Path, Translated]:
    """Return the file of weights, or its index, and the tensors under our names."""
    weights, state = read_weights(folder)
    return weights, translate(state, weights)


def switches_beside(path: Path) -> dict[str, Any]:
    """Return the switches in the config.json of transformers beside a file; nothing without such a JSON."""
    config = path.parent / CONFIG
    about = read_json(config) if config.is_file() else {}
    if about.get("model_type") not in DEFAULT_SWITCHES:
        return {}
    fields = _fields(about)
    return {name: fields[name] for name in ("gelu", "norm_eps", "pos_interp")}


def download(name: str, note: Note = print, also: Sequence[str] = ()) -> Snapshot:
    """Fetch the configs and the weights of a repository of the hub, and no file in any other form.

    Args:
        name: OWNER/NAME, or OWNER/NAME@REVISION.
        note: gets what the user should know.
        also: names of further files, which a repository may lack.

    Raises:
        ModelError: the repository cannot be downloaded, or has no weights that can be read.
    """
    repository, revision = split_revision(name)
    wanted = HubFiles(
        called=f"hf:{name}",
        repository=repository,
        revision=revision,
        choose=lambda names: model_files(names, f"hf:{name}", also),
        usual=(CONFIG, PREPROCESSOR_CONFIG, SAFETENSORS[0], *also),
        option="--model FOLDER",
    )
    return fetch(wanted, note)


def model_files(names: Sequence[str], where: str, also: Sequence[str] = ()) -> list[str]:
    """Return the files to fetch of all files of a repository, the weights last.

    Raises:
        ModelError: none are weights that can be read. The message has the files that look like weights.
    """
    configs = [name for name in (*CONFIGS, LABELS, TAGS, *also) if name in names]
    for weights in WEIGHTS:
        if weights in names:
            return [*configs, weights]
    others = [name for name in names if name.endswith(OTHER_WEIGHTS)]
    has = f"it has {', '.join(others[:5])}" if others else "it has no weights at all"
    raise ModelError(f"{where} has none of {', '.join(WEIGHTS)}: {has}")


def read_weights(folder: Path) -> tuple[Path, State]:
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
    state: State = {}
    for name in parts_of(index):
        state |= load_weights(index.parent / name)
    return state


# ---- transformers ----


def _fields(about: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ViTConfig that a config.json of transformers says and the tensors do not."""
    kind = about["model_type"]
    if kind not in DEFAULT_SWITCHES:
        raise NotOurs(f"a {kind} is no ViT of our own kind")
    named = (about.get("architectures") or [""])[0]
    if named in OTHER_HEADS:
        raise NotOurs(f"a {named} has another head than our own ViT")
    if about.get("use_swiglu_ffn"):
        raise NotOurs(f"a {kind} that has a SwiGLU instead of an MLP with GELU is no ViT of our own kind")
    default_act, default_eps = DEFAULT_SWITCHES[kind]
    vision = about.get("vision_config", about)
    act = vision.get("hidden_act", default_act)
    if act not in GELU_OF_HIDDEN_ACT:
        raise NotOurs(
            f"our own ViT has no {act} for its hidden_act; known are {', '.join(GELU_OF_HIDDEN_ACT)}"
        )
    size = _int_or_tuple(vision.get("image_size", 224))
    pos_interp = "timm" if kind == "dinov2_with_registers" else "hf"  # the former antialiases
    if kind.startswith("siglip2"):
        size = vision.get("patch_size", 16) * math.isqrt(vision.get("num_patches", 256))
        pos_interp = "siglip2"
    patch_size = vision.get("patch_size", 16)
    if any(side % patch_size for side in as_size(size)):
        raise NotOurs(f"images of {size} pixels are no whole number of patches of {patch_size}")
    return {
        "heads": vision.get("num_attention_heads", 12),
        "image_size": size,
        "gelu": GELU_OF_HIDDEN_ACT[act],
        "norm_eps": vision.get("layer_norm_eps", default_eps),
        "pos_interp": pos_interp,
    }


def _int_or_tuple(size: Any) -> int | tuple[int, int]:
    return size if isinstance(size, int) else tuple(size)
