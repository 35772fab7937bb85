"""Load a model that other code has written: a file, a folder, a hub's, timm's, a variant with weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import BaseCheckpoint, Checkpoint, about_bytes
from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.foreign import huggingface, open_clip_text, transformers_text
from wordsworth.vit_model.foreign import open_clip as open_clip_format
from wordsworth.vit_model.foreign import timm as timm_format
from wordsworth.vit_model.foreign.heads import with_timm_head
from wordsworth.vit_model.foreign.hub import Note, split_revision
from wordsworth.vit_model.foreign.hub_folder import CONFIG, read_json
from wordsworth.vit_model.foreign.module import ModuleCheckpoint, ModuleConfig, is_module, load_module_folder
from wordsworth.vit_model.foreign.preparation import note_guess, usual_preprocessing
from wordsworth.vit_model.foreign.timm import NotOurs, timm_config
from wordsworth.vit_model.foreign.translate import (
    Translated,
    architecture,
    checkpoint_of,
    published_heads,
    translate,
    with_classes_of,
)
from wordsworth.vit_model.foreign.zero_shot import ZeroShot, dual_encoder_refusal, with_classes
from wordsworth.vit_model.model_folder import load_folder, saved_checkpoint
from wordsworth.vit_model.variants import variant, variant_name
from wordsworth.vit_model.weights import State, check_weights, load_weights

__all__ = [
    "WrongVariant",
    "checkpoint_from_bytes",
    "from_file",
    "from_folder",
    "from_hub",
    "from_timm",
    "from_variant",
    "module_config",
    "module_with_weights",
    "timm_config",
    "weights_for",
]

# Parts of models whose switches are not those of a plain ViT, by the first part of the names of their
# tensors.
UNUSUAL_PARTS = ("norm_pre.", "attn_pool.", "reg_token", "blocks.0.ls1")


LOCAL_DIR = "local-dir:"  # and a folder: timm's way to write one


def checkpoint_from_bytes(blob: bytes) -> BaseCheckpoint:
    """Return the model that `to_bytes` wrote, of our own or of another library."""
    kind = ModuleCheckpoint if is_module(about_bytes(blob)) else Checkpoint
    return kind.from_bytes(blob)


def from_timm(
    name: str, weights: str | Path | None = None, note: Note = print, key: str | None = None
) -> BaseCheckpoint:
    """Load a model of timm's: as our own ViT where that computes the same, else for timm's own module.

    Args:
        name: timm's name, with its tag or without, and with @REVISION for another than the newest commit of
            its repository; or hf-hub:OWNER/NAME or local-dir:FOLDER, as timm writes them.
        weights: a file to use in place of timm's own weights; then nothing is downloaded.
        note: takes a line for the user.
        key: the set of tensors to take from a file of `weights` with several; see `load_weights`.

    Raises:
        ModelError: an unknown name, weights that do not fit, no network.
    """
    found = _timm_or_module(name, weights, note, key)
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        found.extra["timm"] = LOCAL_DIR + folder.name  # and no path of this machine
        return with_timm_head(found, folder)
    return found


def _timm_or_module(name: str, weights: str | Path | None, note: Note, key: str | None) -> BaseCheckpoint:
    revision = None
    if not name.startswith(("hf-hub:", LOCAL_DIR)):
        name, revision = split_revision(name)
    try:
        return timm_format.from_timm(name, weights, key=key, revision=revision, note=note)
    except NotOurs as reason:
        from wordsworth.vit_model.foreign.timm_module import load_timm_module

        note(f"{reason}: timm's own module runs it")
        return load_timm_module(name, weights, key, revision, note)


def module_config(name: str) -> ModuleConfig:
    """Return the config of a model that timm's own module computes, without its weights."""
    from wordsworth.vit_model.foreign import timm_module

    return timm_module.module_config(name)


class WrongVariant(ModelError):
    """Say in one line why a file is not the named variant."""


def from_file(path: str | Path, key: str | None = None, note: Note = print) -> Checkpoint:
    """Load a single file as the whole model.

    The file is one of ours with its config inside, one of Hugging Face's beside its config.json, or one in a
    format whose code fixes all that the names leave open.

    Args:
        path: the file.
        key: the set of tensors to take from a file with several; see `load_weights`.
        note: takes a line for the user.

    Raises:
        ModelError: another file, or one that leaves the architecture open.
    """
    ours = saved_checkpoint(path)
    if ours:
        if key is not None:
            raise ModelError(
                f"{path} is a whole model with one set of tensors: --weights-key has no choice there"
            )
        return ours
    path = Path(path)
    found = translate(load_weights(path, key), path)
    if found.format.is_hugging_face and (path.parent / CONFIG).is_file():
        return huggingface.from_folder(path.parent, note, (path, found))
    if not found.format.tells_all:
        names = "timm:NAME or B/16" if found.format.name == "timm" else "timm:NAME"
        raise ModelError(
            f"{path} has the names of {found.format.name}, which do not tell the GELU of the weights: "
            f"name the architecture, --model {names}, and give this file as --weights"
        )
    config = architecture(found, path)
    return checkpoint_of(found, config, usual_preprocessing(found, config, path, note), path)


def from_folder(path: str | Path, note: Note = print, asked: ZeroShot | None = None) -> BaseCheckpoint:
    """Load a model folder: ours, Hugging Face's, timm's or OpenCLIP's, as its config.json tells.

    Args:
        path: the folder.
        note: takes a line for the user.
        asked: classes that are texts, for a model of images and texts.

    Raises:
        ModelError: a file is missing or broken, or the model has parts that this one lacks.
    """
    path = Path(path)
    if asked is None:
        return _from_folder(path, note)
    about = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    if _is_open_clip(path, about):
        tower = open_clip_text.load_text_tower(path)
        return with_classes(open_clip_format.from_folder(path, note), tower, asked, note)
    if "model_type" not in about:
        raise dual_encoder_refusal(path, "has no text tower")
    tower = transformers_text.load_text_tower(path, about)
    return with_classes(_from_transformers(path, note), tower, asked, note)


def _is_open_clip(folder: Path, about: dict[str, Any]) -> bool:
    """Return whether the towers of a folder are OpenCLIP's: many folders have the configs of both forms."""
    if not (folder / huggingface.OPEN_CLIP_CONFIG).is_file():
        return False
    names = [name for name in huggingface.WEIGHTS if (folder / name).is_file()]
    return "model_type" not in about or all(name.startswith("open_clip") for name in names)


def _from_folder(path: Path, note: Note) -> BaseCheckpoint:
    config = path / CONFIG
    if not config.is_file():
        if (path / huggingface.OPEN_CLIP_CONFIG).is_file():
            return open_clip_format.from_folder(path, note)
        return huggingface.from_folder(path, note)  # raises the error about config.json
    about = read_json(config)
    if "architecture" in about:
        return from_timm(f"{LOCAL_DIR}{path}", note=note)
    if "model_type" in about:
        return _from_transformers(path, note)
    if is_module(about):
        return load_module_folder(path)
    return load_folder(path)


def _from_transformers(folder: Path, note: Note) -> BaseCheckpoint:
    """Load a folder of transformers: as our own ViT where that computes the same, else for its own class."""
    try:
        found = huggingface.from_folder(folder, note)
        if found.config.pos_interp == "siglip2":
            size = "x".join(map(str, found.config.image_size))
            note(f"{folder} is NaFlex, made for any aspect ratio: here each image is resized to {size}")
        return found
    except NotOurs as reason:
        from wordsworth.vit_model.foreign.transformers_module import load_transformers_module

        module = load_transformers_module(folder)
        note(f"{reason}: transformers' {module.config.architecture} runs it")
        note_guess(folder, module.config.architecture, module.preprocessing, note)
        return module


def from_hub(name: str, note: Note = print, asked: ZeroShot | None = None) -> BaseCheckpoint:
    """Load the model of a repository on the Hugging Face hub.

    Args:
        name: OWNER/NAME, or OWNER/NAME@REVISION with a branch, a tag, a commit or refs/pr/N.
        note: gets what the user should know.
        asked: classes that are texts, for a model of images and texts.

    Returns:
        The model. Its `extra` has the commit, and the revision where one was named.

    Raises:
        ModelError: the repository cannot be downloaded, or as `from_folder`.
    """
    snapshot = huggingface.download(name, note, () if asked is None else transformers_text.TOKENIZER_FILES)
    found = from_folder(snapshot.folder, note, asked)
    extra = found.extra | snapshot.provenance()
    if "timm" in extra:
        extra["timm"] = f"hf-hub:{name}"  # not the folder of the cache
    return replace(found, extra=extra)


def weights_for(
    config: ViTConfig, path: str | Path, key: str | None = None
) -> tuple[ViTConfig, State, dict[str, Any]]:
    """Load the tensors of a file for a model of this architecture.

    Args:
        config: the model.
        path: the file.
        key: the set of tensors to take from a file with several; see `load_weights`.

    Returns:
        The config, the tensors, and their origin as a Checkpoint keeps it in `extra`. The switches that the
        file's format fixes, or a config.json beside the file has, replace the switches of the config; the
        number of classes is the file's.

    Raises:
        ModelError: the file is of another architecture. The message names missing, unexpected and misshapen
            tensors.
    """
    found = translate(load_weights(path, key), path)
    switches = dict(found.format.switches)
    if found.format.is_hugging_face:
        switches |= huggingface.switches_beside(Path(path))
    config = with_classes_of(found.state, replace(config, **switches))
    return config, check_weights(config, found.state, path, found.called), found.provenance(path)


def module_with_weights(known: ModuleCheckpoint, path: Path, key: str | None = None) -> ModuleCheckpoint:
    """Return another library's module with the weights of a file in place of its own.

    Raises:
        ModelError: the weights do not fit, or the library is not timm.
    """
    from wordsworth.vit_model.foreign import timm_module

    if known.config.library != "timm":
        raise ModelError(
            f"--weights cannot change {known.variant}: put the file into its folder in place of its weights"
        )
    return timm_module.with_weights(known, path, key)


def from_variant(name: str, path: Path, note: Callable[[str], None], key: str | None = None) -> Checkpoint:
    """Load the tensors of a file as a named variant, such as "S/16".

    The file says the rest (classes, image size, optional parts), and its format the switches.

    Args:
        name: the variant.
        path: the file.
        note: takes a line for the user.
        key: the set of tensors to take from a file with several; see `load_weights`.

    Raises:
        WrongVariant: the file holds another model.
        ModelError: the file is broken, or its tensors do not fit the model.
    """
    found = translate(load_weights(path, key), path)
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
    _note_pooling(found, config, path, note)
    preprocessing = usual_preprocessing(found, config, path, note)
    return checkpoint_of(found, config, preprocessing, path)


def _note_pooling(found: Translated, config: ViTConfig, path: Path, note: Note) -> None:
    """Tell which state becomes the embedding, where tensors leave it open.

    Every ViT of timm's with a class token, a norm and no fc_norm pools the token. Only timm's user can have
    built another one.
    """
    if found.format.name == "timm" and config.pool == "token":
        note(
            f"{path.name} does not say how it pools: the class token, as all of timm's own models with these "
            'tensors. For global_pool="avg" with fc_norm=False give a folder with a config.json of timm\'s, '
            "whose model_args say so"
        )


def _config_for_variant(found: Translated, wanted: ViTConfig, path: Path) -> ViTConfig:
    """Return the config that the file tells. The number of heads is that of the published size."""
    known: dict[str, Any] = {"heads": 1}  # any number will do until the size is known
    if "pos_embed" not in found.state:
        known["image_size"] = wanted.image_size
    config = architecture(found, path, **known)
    heads = published_heads(config.width, config.depth, config.mlp_dim)
    return replace(config, heads=heads or 1)
