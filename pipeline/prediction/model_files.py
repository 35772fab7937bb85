"""Find the files of a model: on this disk as they are, from a store as copies."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.model_names import CONFIGS, is_variant, unknown_model
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    is_local,
    open_filesystem,
    without_credentials,
)
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.file_kinds import WEIGHT_SUFFIXES, kind_by_content, kind_by_name, kind_of_folder
from wordsworth.vit_model.foreign.adapter import ADAPTER_CONFIG, ADAPTER_FILES
from wordsworth.vit_model.foreign.class_names import TAGS


def is_name(model: str) -> bool:
    """Tell whether `model` is timm:NAME, hf:NAME or a variant, and so no place of files."""
    return re.match(r"(timm|hf):(?!//)", model) is not None or is_variant(model)  # hf:// is a store


@dataclass
class ModelFiles:
    """Find files and folders: on this disk as they are, from a store as copies.

    Attributes:
        scratch: the folder of copies.
        options: of the stores.
    """

    scratch: Path
    options: StorageOptions | None

    def model(self, uri: str, also: tuple[str, ...] = ()) -> Path:
        """Return a model folder, or a single file of weights. Raises UserError where there is neither.

        Args:
            uri: of the folder or the file.
            also: names of further files that are wanted of a folder, if it has them.
        """
        if self.is_weights(uri):
            file = self.weights(uri, option="model")
            kind = kind_by_content(file)
            if kind:
                raise ModelError(f"--model {without_credentials(uri)} {kind}")
            return file
        fs, path = open_filesystem(uri, self.options)
        names = _model_files(fs, path, also) if fs.isdir(path) else []
        if not set(CONFIGS) & set(names):
            hint = "no such model folder"
            if fs.isfile(path):
                hint = f"a file must end in {', '.join(WEIGHT_SUFFIXES)}"
            elif fs.isdir(path):
                _refuse_folder(fs, path)
                hint = "the folder has no config.json"
            raise unknown_model(without_credentials(uri), hint)
        if is_local(fs):
            return Path(path)
        for name in names:
            self._fetch(fs, f"{path.rstrip('/')}/{name}", self.scratch / "model")
        return self.scratch / "model"

    def is_weights(self, uri: str) -> bool:
        """Tell whether there is a file that is, or was meant to be, one of weights."""
        if is_name(uri):
            return False
        fs, path = open_filesystem(uri, self.options)
        named = path.endswith(WEIGHT_SUFFIXES) or kind_by_name(path) is not None
        return named and fs.isfile(path)

    def weights(self, uri: str, option: str = "weights") -> Path:
        """Return a file of weights.

        Raises:
            UserError: there is no such file.
            ModelError: the file or folder is known to be something else.
        """
        fs, path = open_filesystem(uri, self.options)
        kind = kind_by_name(path)
        if kind and fs.exists(path):
            raise ModelError(f"--{option} {without_credentials(uri)} {kind}")
        if fs.isdir(path):
            _refuse_folder(fs, path)
            raise UserError(f"--{option} {without_credentials(uri)} is a folder, not a file", exit_code=2)
        if not fs.isfile(path):
            raise UserError(f"--{option} {without_credentials(uri)}: no such file", exit_code=2)
        return self._fetch(fs, path)

    def is_adapter(self, uri: str) -> bool:
        """Tell whether there is a folder with an adapter of peft and no whole model."""
        if is_name(uri):
            return False
        fs, path = open_filesystem(uri, self.options)
        folder = path.rstrip("/")
        return fs.isfile(f"{folder}/{ADAPTER_CONFIG}") and not fs.isfile(f"{folder}/config.json")

    def adapter(self, uri: str) -> Path:
        """Return the folder of an adapter."""
        fs, path = open_filesystem(uri, self.options)
        if is_local(fs):
            return Path(path)
        for name in ADAPTER_FILES:
            if fs.isfile(f"{path.rstrip('/')}/{name}"):
                self._fetch(fs, f"{path.rstrip('/')}/{name}", self.scratch / "adapter")
        return self.scratch / "adapter"

    def _fetch(self, fs: Any, path: str, folder: Path | None = None) -> Path:
        if is_local(fs):
            return Path(path)
        folder = folder or self.scratch
        folder.mkdir(exist_ok=True)
        local = folder / path.rpartition("/")[2]
        fs.get_file(path, str(local))
        return local


def _refuse_folder(fs: Any, path: str) -> None:
    """Raise ModelError where a folder is known to be no model, and say what it is."""
    kind = kind_of_folder([name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False)])
    if kind:
        raise ModelError(f"{path} {kind}")


def _model_files(fs: Any, path: str, also: tuple[str, ...]) -> list[str]:
    """Return the names in a model folder that are worth fetching: configs, labels, weights, and `also`.

    Weights in torch's own format are fetched only where there are no others.
    """
    names = sorted(name.rpartition("/")[2] for name in fs.ls(path, detail=False))
    safe = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    kept = (".json", "labels.txt", TAGS, ".safetensors" if safe else ".bin")
    return [name for name in names if name.endswith(kept) or name in also]


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
