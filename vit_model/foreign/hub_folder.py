"""Read and write folders in the form of a model hub: JSON files beside weights."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.json_file import read_json
from wordsworth.vit_model.model_folder import write_whole_file
from wordsworth.vit_model.weights import State, first_line

__all__ = ["CONFIG", "naming_broken_json", "read_json", "write_hub_folder"]

CONFIG = "config.json"  # of transformers and of timm; written last, it vouches for the rest of the folder


@contextlib.contextmanager
def naming_broken_json(path: Path) -> Iterator[None]:
    """Name the file in errors that come from JSON of another shape than expected.

    Raises:
        ModelError: in place of such an error.
    """
    try:
        yield
    except ModelError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{path} cannot be used: {first_line(error)}") from error


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
