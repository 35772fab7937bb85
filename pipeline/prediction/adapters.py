"""Load a model with an adapter of peft: the adapter names its base model, or --model does."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.model_files import ModelFiles
from wordsworth.pipeline.prediction.model_names import is_variant
from wordsworth.vit_model.checkpoint import BaseCheckpoint, own_model
from wordsworth.vit_model.foreign.adapter import base_of, is_of_transformers, merge, merge_transformers

Note = Callable[[str], None]  # gets what the user should know, a line at a time


@dataclass(frozen=True)
class Adapter:
    """Name an adapter and its base model.

    Attributes:
        folder: of the adapter.
        base: the base model, as --model names models.
    """

    folder: Path
    base: str


def find_adapter(model: str, weights: str | None, files: ModelFiles) -> Adapter | None:
    """Return the adapter that --weights or --model names, or None.

    Raises:
        UserError: the base model is not known or has no weights.
    """
    if weights and files.is_adapter(weights):
        if is_variant(model):
            raise UserError(
                f"--weights {weights} is an adapter, which needs a base model with weights: "
                "--model FOLDER, timm:NAME or hf:NAME",
                exit_code=2,
            )
        return Adapter(files.adapter(weights), model)
    if weights or not files.is_adapter(model):
        return None
    folder = files.adapter(model)
    base = base_of(folder)
    if base and Path(base).is_dir():
        return Adapter(folder, base)
    if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base):  # a repository of the hub
        return Adapter(folder, f"hf:{base}")
    named = f"for {base}, which is not here" if base else "that names no base model"
    raise UserError(
        f"--model {model} is an adapter {named}: give the base as --model, and the adapter as --weights",
        exit_code=2,
    )


def with_adapter(adapter: Adapter, files: ModelFiles, note: Note) -> BaseCheckpoint:
    """Return the base model with the adapter merged into it.

    Raises:
        ModelError: the adapter cannot be merged.
    """
    from wordsworth.vit_model.foreign.load import from_folder, from_timm

    note(f"{adapter.folder.name} is an adapter: it is merged into {adapter.base}")
    origin: dict[str, Any] = {"adapter": adapter.folder.name, "base": adapter.base}
    if adapter.base.startswith("timm:"):
        base = from_timm(adapter.base.removeprefix("timm:"), note=note)
    else:
        folder, commit = _base_folder(adapter.base, files, note)
        origin |= commit
        if is_of_transformers(folder):
            merge_transformers(adapter.folder, folder, files.scratch / "merged")
            found = from_folder(files.scratch / "merged", note)
            return replace(found, extra=found.extra | origin)
        base = from_folder(folder, note)
    found = merge(adapter.folder, own_model(base, "--weights with an adapter"))
    return replace(found, extra=base.extra | origin)


def _base_folder(base: str, files: ModelFiles, note: Note) -> tuple[Path, dict[str, str]]:
    """Return the folder of a base model, and the commit where it comes from the hub."""
    from wordsworth.vit_model.foreign.huggingface import download

    if re.match(r"hf:(?!//)", base):
        snapshot = download(base.removeprefix("hf:"), note)
        return snapshot.folder, snapshot.provenance()
    folder = files.model(base)
    if folder.is_file():
        raise UserError(f"--model {base} is a file; an adapter is merged into a model folder", exit_code=2)
    return folder, {}
