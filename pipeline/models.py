"""What --model means: a model folder anywhere, timm:NAME, or a variant with weights from a file."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.storage import is_local, open_filesystem, public
from vit_model import checkpoint as formats
from vit_model.checkpoint import Checkpoint
from vit_model.config import VARIANTS, Preprocessing, variant

MODEL_FILES = ("config.json", "model.safetensors", "labels.txt")


def load_model(
    model: str,
    weights: str | None = None,
    labels: str | None = None,
    allow_random_weights: bool = False,
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
    note: Callable[[str], None] = print,
    storage_options: dict[str, Any] | None = None,
) -> Checkpoint:
    """The checkpoint that `--model`, `--weights`, `--labels` and the preprocessing overrides describe.

    Raises UserError or ModelError, one line each: the model does not exist, has no weights, or its weights do not fit it.
    """
    with tempfile.TemporaryDirectory(prefix="wordsworth-model-") as scratch:  # for what has to be fetched from a store
        store = _Store(Path(scratch), storage_options)
        found = _find(model, store.file("weights", weights) if weights else None, allow_random_weights, seed, note, store)
    if labels:
        found = replace(found, labels=_read_labels(labels, found.config.num_classes, storage_options))
    return replace(found, preprocessing=replace(found.preprocessing, **(overrides or {})))


def _find(
    model: str, weights: Path | None, allow_random: bool, seed: int, note: Callable[[str], None], store: "_Store"
) -> Checkpoint:
    if model.startswith("timm:"):
        return formats.from_timm(model.removeprefix("timm:"), weights)
    if re.fullmatch(r"[A-Za-z0-9]+/\d+", model) and model.split("/")[0] in VARIANTS:
        return _variant(model, weights, allow_random, seed, note)
    known = formats.load_folder(store.model_folder(model))
    if weights is None:
        return known
    return replace(known, state=formats.fit(known.config, formats.load_weights(weights), str(weights)))


def _variant(model: str, weights: Path | None, allow_random: bool, seed: int, note: Callable[[str], None]) -> Checkpoint:
    if weights is not None:
        state = formats.load_weights(weights)
        classes = len(state["head.weight"]) if "head.weight" in state else 0
        config = variant(model, num_classes=classes)
        return Checkpoint(config, Preprocessing(), None, formats.fit(config, state, str(weights)), {})
    if not allow_random:
        raise UserError(
            f"--model {model} names an architecture but no weights: add --weights FILE, or use a model folder or timm:NAME "
            "(--allow-random-weights tries the pipeline without)",
            exit_code=2,
        )
    note(f"{model} has RANDOM weights: the labels mean nothing")
    return formats.random(variant(model), Preprocessing(), seed)


@dataclass
class _Store:
    """Files and folders on this disk as they are; those on a store are fetched into `scratch`."""

    scratch: Path
    options: dict[str, Any] | None

    def model_folder(self, uri: str) -> Path:
        fs, path = open_filesystem(uri, self.options)
        if not fs.exists(f"{path}/config.json"):
            hint = "give its architecture with --model and the file with --weights" if fs.isfile(path) else "no such model folder"
            known = f"model folders, timm:NAME, and variants ({', '.join(f'{name}/16' for name in VARIANTS)}, ...)"
            raise UserError(f"unknown model {public(uri)}: {hint}; known are {known}", exit_code=2)
        if is_local(fs):
            return Path(path)
        local = self.scratch / "model"
        local.mkdir()
        for name in MODEL_FILES:
            if fs.exists(f"{path}/{name}"):
                fs.get_file(f"{path}/{name}", str(local / name))
        return local

    def file(self, option: str, uri: str) -> Path:
        fs, path = open_filesystem(uri, self.options)
        if not fs.isfile(path):
            raise UserError(f"--{option} {public(uri)}: no such file", exit_code=2)
        if is_local(fs):
            return Path(path)
        local = self.scratch / path.rpartition("/")[2]
        fs.get_file(path, str(local))
        return local


def _read_labels(uri: str, num_classes: int, storage_options: dict[str, Any] | None) -> tuple[str, ...]:
    fs, path = open_filesystem(uri, storage_options)
    if not fs.isfile(path):
        raise UserError(f"--labels {public(uri)}: no such file", exit_code=2)
    labels = tuple(fs.cat_file(path).decode().splitlines())
    if len(labels) != num_classes:
        raise UserError(f"--labels {public(uri)} has {len(labels)} names, the model has {num_classes} classes", exit_code=2)
    return labels
