"""Load the model that --model names: a folder, a file, timm:NAME, hf:NAME, or a variant with weights."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    is_local,
    open_filesystem,
    without_credentials,
)
from wordsworth.vit_model.checkpoint import Checkpoint, random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.variants import VARIANTS, variant
from wordsworth.vit_model.weights import WEIGHT_SUFFIXES

Note = Callable[[str], None]  # gets what the user should know, a line at a time


# These are the options of a model on the command line; a caller names each.
def load_model(  # noqa: PLR0913
    model: str,
    *,
    weights: str | None = None,
    labels: str | None = None,
    allow_random_weights: bool = False,
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
    note: Note = print,
    storage_options: StorageOptions | None = None,
) -> Checkpoint:
    """Return the checkpoint that the options of a model describe.

    Args:
        model: a model folder or a file of weights, timm:NAME, hf:NAME, or a variant such as S/16.
        weights: a file of weights in place of the model's own.
        labels: a file with the class names, one a line.
        allow_random_weights: let a bare variant have random weights.
        seed: of random weights.
        overrides: preprocessing in place of the model's own, by field of Preprocessing.
        note: gets what the user should know of the model.
        storage_options: of the stores that files come from.

    Raises:
        UserError: the model does not exist, or has no weights.
        ModelError: the weights do not fit the model.
    """
    with tempfile.TemporaryDirectory(prefix="wordsworth-model-") as scratch:
        files = _Files(Path(scratch), storage_options)
        weights_file = files.file("weights", weights) if weights else None
        if model.startswith("timm:"):
            found = _timm(model.removeprefix("timm:"), weights_file, note)
        elif _is_variant(model):
            if weights_file is None:
                found = _random(model, allow_random_weights, seed, note)
            else:
                found = _variant_with(model, weights_file, note)
        else:
            found = _with_weights(_folder_or_hub(model, files), weights_file, note)
    num_left_out = found.extra.get("left_out")
    if num_left_out:
        note(
            f"{num_left_out} tensors of {found.extra['weights']} are no part of the model that labels "
            "(another tower, a decoder): left out"
        )
    if labels:
        found = replace(found, labels=_read_labels(labels, found.config.num_classes, storage_options))
    return replace(found, preprocessing=replace(found.preprocessing, **(overrides or {})))


# ---- what --model names -----------------------------------------------------------------------------------


def _timm(name: str, weights: Path | None, note: Note) -> Checkpoint:
    from wordsworth.vit_model.foreign.load import from_timm, timm_config

    found = from_timm(name, weights)
    if weights is not None:
        _note_switches(timm_config(name), found.config, weights, note)
    return found


def _is_variant(model: str) -> bool:
    """Tell whether `model` is written like a variant: "S/16", or "R50+S/16" with a stem."""
    if not re.fullmatch(r"[A-Za-z0-9+]+/\d+", model):
        return False
    return model.split("/")[0].split("+")[-1] in VARIANTS


def _folder_or_hub(model: str, files: "_Files") -> Checkpoint:
    from wordsworth.vit_model.foreign.load import from_file, from_folder, from_hub

    if re.match(r"hf:(?!//)", model):  # hf:// is a store
        return from_hub(model.removeprefix("hf:"))
    path = files.model(model)
    return from_file(path) if path.is_file() else from_folder(path)


def _with_weights(known: Checkpoint, weights: Path | None, note: Note) -> Checkpoint:
    """Return a checkpoint with the weights of a file in place of its own, if there is a file."""
    if weights is None:
        return known
    from wordsworth.vit_model.foreign.load import weights_for

    config, state = weights_for(known.config, weights)
    _note_switches(known.config, config, weights, note)
    return replace(known, config=config, state=state, extra={"weights": weights.name})


def _random(model: str, allow_random: bool, seed: int, note: Note) -> Checkpoint:
    """Return a variant with random weights. Raises UserError where random weights are not allowed."""
    if not allow_random:
        raise UserError(
            f"--model {model} names an architecture but no weights: "
            "add --weights FILE, or use a folder, timm:NAME or hf:NAME "
            "(--allow-random-weights tries the pipeline without)",
            exit_code=2,
        )
    note(f"{model} has RANDOM weights: the labels mean nothing")
    return random_checkpoint(variant(model), Preprocessing(), seed)


def _variant_with(model: str, weights: Path, note: Note) -> Checkpoint:
    """Return a variant with the weights of a file. Raises UserError if the file holds another model."""
    from wordsworth.vit_model.foreign.load import WrongVariant, from_variant

    try:
        return from_variant(model, weights, note)
    except WrongVariant as error:
        raise UserError(str(error), exit_code=2) from None


def _note_switches(named: ViTConfig, used: ViTConfig, weights: Path, note: Note) -> None:
    """Say loudly that weights are of code that computes something else than the model that was named."""
    changed = []
    for name in ("gelu", "norm_eps"):
        if getattr(used, name) != getattr(named, name):
            changed.append(f"{name} {getattr(used, name)}")
    if changed:
        note(
            f"{weights.name} was trained with {' and '.join(changed)}, "
            "which is used in place of the named model's"
        )


# ---- files ------------------------------------------------------------------------------------------------


@dataclass
class _Files:
    """Find files and folders: on this disk as they are, from a store as copies.

    Attributes:
        scratch: the folder of copies.
        options: of the stores.
    """

    scratch: Path
    options: StorageOptions | None

    def model(self, uri: str) -> Path:
        """Return a model folder, or a single file of weights. Raises UserError where there is neither."""
        fs, path = open_filesystem(uri, self.options)
        if path.endswith(WEIGHT_SUFFIXES) and fs.isfile(path):
            return self._fetch(fs, path)
        names = _model_files(fs, path) if fs.isdir(path) else []
        if not {"config.json", "open_clip_config.json"} & set(names):
            hint = "no such model folder"
            if fs.isfile(path):
                hint = f"a file must end in {', '.join(WEIGHT_SUFFIXES)}"
            variants = ", ".join(f"{name}/16" for name in VARIANTS)
            raise UserError(
                f"unknown model {without_credentials(uri)}: {hint}; known are model folders, "
                f"files of weights, timm:NAME, hf:NAME, and variants ({variants}, ...)",
                exit_code=2,
            )
        if is_local(fs):
            return Path(path)
        for name in names:
            self._fetch(fs, f"{path.rstrip('/')}/{name}", self.scratch / "model")
        return self.scratch / "model"

    def file(self, option: str, uri: str) -> Path:
        """Return a single file. Raises UserError where there is none."""
        fs, path = open_filesystem(uri, self.options)
        if not fs.isfile(path):
            raise UserError(f"--{option} {without_credentials(uri)}: no such file", exit_code=2)
        return self._fetch(fs, path)

    def _fetch(self, fs: Any, path: str, folder: Path | None = None) -> Path:
        if is_local(fs):
            return Path(path)
        folder = folder or self.scratch
        folder.mkdir(exist_ok=True)
        local = folder / path.rpartition("/")[2]
        fs.get_file(path, str(local))
        return local


def _model_files(fs: Any, path: str) -> list[str]:
    """Return the names in a model folder that are worth fetching: configs, labels, weights.

    Weights in torch's own format are fetched only where there are no others.
    """
    names = sorted(name.rpartition("/")[2] for name in fs.ls(path, detail=False))
    safe = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    kept = (".json", ".safetensors", "labels.txt") if safe else (".json", ".bin", "labels.txt")
    return [name for name in names if name.endswith(kept)]


def publish(folder: Path, uri: str, storage_options: StorageOptions | None = None) -> None:
    """Copy a model's files to a store; config.json vouches for the other files, and so is the last.

    Args:
        folder: a model folder on this disk.
        uri: the folder on the store.
        storage_options: of the store.
    """
    fs, path = open_filesystem(uri, storage_options)
    folder_path = path.rstrip("/")
    stale = f"{folder_path}/labels.txt"
    if fs.exists(stale):
        fs.rm_file(stale)  # of a model that was here before
    for file in sorted(folder.iterdir(), key=lambda file: file.name == "config.json"):
        fs.pipe_file(f"{folder_path}/{file.name}", file.read_bytes())


def _read_labels(uri: str, num_classes: int, storage_options: StorageOptions | None) -> tuple[str, ...]:
    fs, path = open_filesystem(uri, storage_options)
    if not fs.isfile(path):
        raise UserError(f"--labels {without_credentials(uri)}: no such file", exit_code=2)
    labels = tuple(fs.cat_file(path).decode().splitlines())
    if len(labels) != num_classes:
        raise UserError(
            f"--labels {without_credentials(uri)} has {len(labels)} names, "
            f"the model has {num_classes} classes",
            exit_code=2,
        )
    return labels
