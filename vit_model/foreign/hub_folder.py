"""Read and write folders in the form of a model hub: JSON files beside weights."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from wordsworth.vit_model.checkpoint import write_whole_file
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.weights import State, first_line

CONFIG = "config.json"  # of transformers and of timm; written last, it vouches for the rest of the folder


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: the file cannot be read, or is not an object.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(about, dict):
        raise ModelError(f"{path} is not a JSON object")
    return about


def write_hub_folder(
    path: Path, state: State, jsons: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write weights and JSON files, config.json last. Every file appears whole or not at all.

    Args:
        path: the folder.
        state: the tensors of model.safetensors.
        jsons: content by name of the file; config.json is among the names.
        metadata: of the safetensors file.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_whole_file(path / "model.safetensors", safetensors.torch.save(state, metadata))
    for name in [*(name for name in jsons if name != CONFIG), CONFIG]:
        text = json.dumps(jsons[name], indent=2, ensure_ascii=False)
        write_whole_file(path / name, text.encode() + b"\n")
