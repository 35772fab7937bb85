"""Read and write model folders, and files that hold a whole model.

A model folder holds `config.json`, `model.safetensors` and, where classes have names, `labels.txt`.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from wordsworth.vit_model.checkpoint import BaseCheckpoint, Checkpoint, about_bytes, savable
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.head import HEAD_FROM, Head
from wordsworth.vit_model.json_file import parse_json, read_text
from wordsworth.vit_model.weights import check_weights, first_line, load_weights


def save_folder(path: str | Path, checkpoint: BaseCheckpoint) -> None:
    """Write a model folder.

    Every file appears whole or not at all. config.json is written last and vouches for the rest.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole_file(folder / "model.safetensors", safetensors.torch.save(savable(checkpoint.state)))
    if checkpoint.labels is None:
        (folder / "labels.txt").unlink(missing_ok=True)  # the labels of an earlier model
    else:
        text = "".join(f"{label}\n" for label in checkpoint.labels)
        write_whole_file(folder / "labels.txt", text.encode())
    write_whole_file(folder / "config.json", json.dumps(checkpoint.about(), indent=2).encode() + b"\n")


def write_whole_file(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_folder(path: str | Path) -> Checkpoint:
    """Read a model folder.

    Raises:
        ModelError: a file is missing, broken, or does not fit the other files.
    """
    folder = Path(path)
    fields = read_fields(folder, Checkpoint)
    weights = folder / "model.safetensors"
    state = check_weights(fields["config"], load_weights(weights), weights)
    return Checkpoint(state=state, **fields)


def read_fields(folder: Path, kind: type[BaseCheckpoint]) -> dict[str, Any]:
    """Read all fields of a checkpoint but the tensors from a model folder.

    Raises:
        ModelError: config.json is missing or broken.
    """
    where = folder / "config.json"
    try:
        about = parse_json(read_text(where))
        fields = kind.parse_about(about)
        fields |= told_of_head(about)
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"{where} cannot be used: {first_line(error)}") from error
    return fields | {"labels": _read_labels(folder / "labels.txt")}


def told_of_head(about: dict[str, Any]) -> dict[str, Any]:
    """Return head and extra where they are not simply what config.json says.

    A config.json that has a head tells its kind by itself. One of an earlier version has none: there the loss
    of the training tells the kind.
    """
    extra = about.get("extra", {})
    if "head" in about:
        return {"extra": {name: value for name, value in extra.items() if name != HEAD_FROM}}
    if HEAD_FROM in extra or extra.get("objective") != "supervised":
        return {}
    if extra.get("settings", {}).get("loss") != "sigmoid":
        return {}
    return {"head": Head(kind="sigmoid"), "extra": extra | {HEAD_FROM: "it was trained with --loss sigmoid"}}


def _read_labels(path: Path) -> tuple[str, ...] | None:
    if not path.exists():
        return None
    try:
        return tuple(read_text(path).removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error


def saved_checkpoint(path: str | Path) -> Checkpoint | None:
    """Read our own model in a .safetensors file that `Checkpoint.to_bytes` made.

    Returns:
        None for a file of tensors alone.

    Raises:
        ModelError: the file is broken.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if "checkpoint" not in metadata:
            return None
        blob = path.read_bytes()
        found = Checkpoint.from_bytes(blob)
        state = check_weights(found.config, found.state, path)
        return replace(found, state=state, **told_of_head(about_bytes(blob)))
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as a model: {first_line(error)}") from error
