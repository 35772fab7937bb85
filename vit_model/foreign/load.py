"""Load a model that other code has written: a file, a folder, a hub's, timm's, a variant with weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import Checkpoint, load_folder, saved_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign import huggingface
from wordsworth.vit_model.foreign.hub_folder import CONFIG, read_json
from wordsworth.vit_model.foreign.timm import from_timm, timm_config
from wordsworth.vit_model.foreign.translate import (
    Translated,
    architecture,
    checkpoint_of,
    published_heads,
    translate,
)
from wordsworth.vit_model.variants import variant, variant_name
from wordsworth.vit_model.weights import State, check_weights, load_weights

__all__ = [
    "WrongVariant",
    "from_file",
    "from_folder",
    "from_hub",
    "from_timm",
    "from_variant",
    "timm_config",
    "weights_for",
]

# Parts of models whose switches are not those of a plain ViT, by the first part of the names of their
# tensors.
UNUSUAL_PARTS = ("norm_pre.", "attn_pool.", "reg_token", "blocks.0.ls1")


class WrongVariant(ModelError):
    """Say in one line why a file is not the named variant."""


def from_file(path: str | Path) -> Checkpoint:
    """Load a single file as the whole model.

    The file is one of ours with its config inside, one of Hugging Face's beside its config.json, or one in a
    format whose code fixes all that the names leave open.

    Raises:
        ModelError: another file, or one that leaves the architecture open.
    """
    ours = saved_checkpoint(path)
    if ours:
        return ours
    path = Path(path)
    found = translate(load_weights(path), path)
    if found.format.is_hugging_face and (path.parent / CONFIG).is_file():
        return huggingface.from_folder(path.parent)
    if not found.format.tells_all:
        names = "timm:NAME or B/16" if found.format.name == "timm" else "timm:NAME"
        raise ModelError(
            f"{path} has the names of {found.format.name}, which do not tell the GELU of the weights: "
            f"name the architecture, --model {names}, and give this file as --weights"
        )
    config = architecture(found, path)
    return checkpoint_of(found, config, _preprocessing(found, config), path)


def _preprocessing(found: Translated, config: ViTConfig) -> Preprocessing:
    """Return the preprocessing of the format, or of the kind of file where a format has several kinds."""
    usual = found.format.preprocessing or Preprocessing()
    siglip = config.pool == "map" and not config.num_classes
    if found.format.name == "big_vision's .npz" and siglip:
        return replace(usual, crop_pct=1.0, crop_mode="squash")
    swag = config.image_size != (224, 224)
    if found.format.name == "torchvision" and swag:
        return replace(usual, interpolation="bicubic", crop_pct=1.0)
    return usual


def from_folder(path: str | Path) -> Checkpoint:
    """Load a model folder: ours, Hugging Face's, timm's or OpenCLIP's, as its config.json tells.

    Raises:
        ModelError: a file is missing or broken, or the model has parts that this one lacks.
    """
    path = Path(path)
    config = path / CONFIG
    if not config.is_file():
        return huggingface.from_folder(path)
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return load_folder(path)  # raises the error about config.json
    if "architecture" in about:
        return from_timm(f"local-dir:{path}")
    if "model_type" in about:
        return huggingface.from_folder(path)
    return load_folder(path)


def from_hub(name: str) -> Checkpoint:
    """Load the model of a repository OWNER/NAME on the Hugging Face hub.

    Raises:
        ModelError: the repository cannot be downloaded, or as `from_folder`.
    """
    folder = huggingface.download(name)
    if (folder / CONFIG).is_file() and "architecture" in read_json(folder / CONFIG):
        return from_timm(f"hf-hub:{name}")
    return huggingface.from_folder(folder)


def weights_for(config: ViTConfig, path: str | Path) -> tuple[ViTConfig, State]:
    """Load the tensors of a file for a model of this architecture.

    Returns:
        The config and the tensors. The switches that the file's format fixes, or a config.json beside the
        file has, replace the switches of the config.

    Raises:
        ModelError: the file is of another architecture. The message names missing, unexpected and misshapen
            tensors.
    """
    found = translate(load_weights(path), path)
    switches = dict(found.format.switches)
    if found.format.is_hugging_face:
        switches |= huggingface.switches_beside(Path(path))
    config = replace(config, **switches)
    return config, check_weights(config, found.state, path, found.called)


def from_variant(name: str, path: Path, note: Callable[[str], None]) -> Checkpoint:
    """Load the tensors of a file as a named variant, such as "S/16".

    The file says the rest (classes, image size, optional parts), and its format the switches.

    Args:
        name: the variant.
        path: the file.
        note: takes a line for the user.

    Raises:
        WrongVariant: the file holds another model.
        ModelError: the file is broken, or its tensors do not fit the model.
    """
    found = translate(load_weights(path), path)
    wanted = variant(name)
    # In timm's names a variant is what timm's own models are.
    if not found.format.tells_all and found.format.name != "timm":
        raise WrongVariant(
            f"{path} does not tell its GELU, and {name} neither: name the architecture, timm:NAME"
        )
    for part in UNUSUAL_PARTS:
        if any(key.startswith(part) for key in found.state):
            raise WrongVariant(f"{path} has {part}, which {name} has not: name the architecture, timm:NAME")
    config = _config_for_variant(found, wanted, path)
    if variant_name(config) != name:
        size = f"{config.width} wide and {config.depth} deep with patches of {config.patch_size}"
        what = variant_name(config) or f"a model {size}"
        raise WrongVariant(f"{path} holds the weights of {what}, not of {name}")
    preprocessing = found.format.preprocessing
    if preprocessing is None:
        preprocessing = Preprocessing()
        used = ", ".join(f"{key} {value}" for key, value in preprocessing.to_dict().items() if key != "exif")
        options = "--mean, --std, --crop-pct, --interpolation"
        note(f"{path.name} does not say how images are prepared, so: {used} ({options})")
    return checkpoint_of(found, config, preprocessing, path)


def _config_for_variant(found: Translated, wanted: ViTConfig, path: Path) -> ViTConfig:
    """Return the config that the file tells. The number of heads is that of the published size."""
    known: dict[str, Any] = {"heads": 1}  # any number will do until the size is known
    if "pos_embed" not in found.state:
        known["image_size"] = wanted.image_size
    config = architecture(found, path, **known)
    heads = published_heads(config.width, config.depth, config.mlp_dim)
    return replace(config, heads=heads or 1)
