"""What --model means: a folder or file of weights anywhere, timm:NAME, hf:NAME, or a variant with weights from a file."""

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem, public
from wordsworth.vit_model import checkpoint as formats
from wordsworth.vit_model.checkpoint import WEIGHT_SUFFIXES, Checkpoint
from wordsworth.vit_model.config import VARIANTS, Preprocessing, ViTConfig, variant, variant_name


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
    with tempfile.TemporaryDirectory(
        prefix="wordsworth-model-"
    ) as scratch:  # for what has to be fetched from a store
        store = _Store(Path(scratch), storage_options)
        found = _find(
            model,
            store.file("weights", weights) if weights else None,
            allow_random_weights,
            seed,
            note,
            store,
        )
    if left := found.extra.get("left_out"):
        note(
            f"{left} tensors of {found.extra['weights']} are no part of the model that labels (another tower, a decoder): left out"
        )
    if labels:
        found = replace(found, labels=_read_labels(labels, found.config.num_classes, storage_options))
    return replace(found, preprocessing=replace(found.preprocessing, **(overrides or {})))


def _find(
    model: str,
    weights: Path | None,
    allow_random: bool,
    seed: int,
    note: Callable[[str], None],
    store: "_Store",
) -> Checkpoint:
    if model.startswith("timm:"):
        name = model.removeprefix("timm:")
        found = formats.from_timm(name, weights)
        if weights is not None:
            _say_switches(formats.timm_config(name), found.config, weights, note)
        return found
    if re.fullmatch(r"[A-Za-z0-9+]+/\d+", model) and model.split("/")[0].split("+")[-1] in VARIANTS:
        return _variant(model, weights, allow_random, seed, note)
    known = (
        _hub(model.removeprefix("hf:"))
        if re.match(r"hf:(?!//)", model)
        else _file_or_folder(store.model(model))
    )
    if weights is None:
        return known
    from wordsworth.vit_model.foreign.translate import weights_for

    config, state = weights_for(known.config, weights)
    _say_switches(known.config, config, weights, note)
    return replace(known, config=config, state=state, extra={"weights": weights.name})


def _hub(name: str) -> Checkpoint:
    from wordsworth.vit_model.foreign import huggingface as hf_models

    return hf_models.from_hub(name)


def _file_or_folder(path: Path) -> Checkpoint:
    """Ours, or by what its config.json is like one of Hugging Face's, timm's or OpenCLIP's."""
    from wordsworth.vit_model.foreign import huggingface as hf_models
    from wordsworth.vit_model.foreign import translate as foreign

    if path.is_file():
        return foreign.from_file(path)
    config = path / "config.json"
    try:
        about = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except ValueError:
        about = {}  # load_folder will say what is wrong with it
    if "architecture" in about:
        return formats.from_timm(f"local-dir:{path}")
    if "model_type" in about or not config.is_file():
        return hf_models.from_folder(path)
    return formats.load_folder(path)


def _variant(
    model: str, weights: Path | None, allow_random: bool, seed: int, note: Callable[[str], None]
) -> Checkpoint:
    if weights is not None:
        return _variant_with(model, weights, note)
    if not allow_random:
        raise UserError(
            f"--model {model} names an architecture but no weights: add --weights FILE, or use a folder, timm:NAME or hf:NAME "
            "(--allow-random-weights tries the pipeline without)",
            exit_code=2,
        )
    note(f"{model} has RANDOM weights: the labels mean nothing")
    return formats.random(variant(model), Preprocessing(), seed)


def _variant_with(model: str, weights: Path, note: Callable[[str], None]) -> Checkpoint:
    """The file says the rest (classes, image size, optional parts), its format the switches; the variant must be the one named."""
    from wordsworth.vit_model.foreign import translate as foreign

    found = foreign.translate(formats.load_weights(weights), weights)
    wanted = variant(model)
    if (
        not found.format.tells_all and found.format.name != "timm"
    ):  # in timm's names a variant is what timm's own models are
        raise UserError(
            f"{public(str(weights))} does not tell its GELU, and {model} neither: name the architecture, timm:NAME",
            2,
        )
    if parts := [name for name in foreign.TELLING if any(key.startswith(name) for key in found.state)]:
        raise UserError(
            f"{public(str(weights))} has {parts[0]}, which {model} has not: name the architecture, timm:NAME",
            2,
        )
    without = (
        {} if "pos_embed" in found.state else {"image_size": wanted.image_size}
    )  # nothing in the file says it
    config = foreign.architecture(
        found, weights, heads=1, **without
    )  # whose sizes tell the variant, and that the heads
    sizes = {numbers[:3]: numbers[3] for numbers in VARIANTS.values()}
    config = replace(config, heads=sizes.get((config.width, config.depth, config.mlp_dim), 1))
    if variant_name(config) != model:
        what = (
            variant_name(config)
            or f"a model {config.width} wide and {config.depth} deep with patches of {config.patch_size}"
        )
        raise UserError(f"{public(str(weights))} holds the weights of {what}, not of {model}", exit_code=2)
    preprocessing = found.format.preprocessing or Preprocessing()
    if found.format.preprocessing is None:
        used = ", ".join(
            f"{name} {value}" for name, value in preprocessing.to_dict().items() if name != "exif"
        )
        note(
            f"{weights.name} does not say how pictures are prepared, so: {used} (--mean, --std, --crop-pct, --interpolation)"
        )
    return foreign.checkpoint_of(found, config, preprocessing, None, weights)


def _say_switches(named: ViTConfig, used: ViTConfig, weights: Path, note: Callable[[str], None]) -> None:
    """Loudly: these weights are of code that computes something else than the model that was named."""
    changed = [
        f"{name} {getattr(used, name)}"
        for name in ("gelu", "norm_eps")
        if getattr(used, name) != getattr(named, name)
    ]
    if changed:
        note(
            f"{weights.name} was trained with {' and '.join(changed)}, which is used in place of the named model's"
        )


@dataclass
class _Store:
    """Files and folders on this disk as they are; those on a store are fetched into `scratch`."""

    scratch: Path
    options: dict[str, Any] | None

    def model(self, uri: str) -> Path:
        """A model folder, or a single file of weights."""
        fs, path = open_filesystem(uri, self.options)
        if path.endswith(WEIGHT_SUFFIXES) and fs.isfile(path):
            return self._fetched(fs, path)
        names = _model_files(fs, path) if fs.isdir(path) else []
        if not {"config.json", "open_clip_config.json"} & set(names):
            hint = (
                "a file must end in " + ", ".join(WEIGHT_SUFFIXES)
                if fs.isfile(path)
                else "no such model folder"
            )
            known = f"model folders, files of weights, timm:NAME, hf:NAME, and variants ({', '.join(f'{v}/16' for v in VARIANTS)}, ...)"
            raise UserError(f"unknown model {public(uri)}: {hint}; known are {known}", exit_code=2)
        if is_local(fs):
            return Path(path)
        for name in names:
            self._fetched(fs, f"{path.rstrip('/')}/{name}", self.scratch / "model")
        return self.scratch / "model"

    def file(self, option: str, uri: str) -> Path:
        fs, path = open_filesystem(uri, self.options)
        if not fs.isfile(path):
            raise UserError(f"--{option} {public(uri)}: no such file", exit_code=2)
        return self._fetched(fs, path)

    def _fetched(self, fs: Any, path: str, folder: Path | None = None) -> Path:
        if is_local(fs):
            return Path(path)
        folder = folder or self.scratch
        folder.mkdir(exist_ok=True)
        local = folder / path.rpartition("/")[2]
        fs.get_file(path, str(local))
        return local


def _model_files(fs: Any, path: str) -> list[str]:
    """The files of a model folder worth fetching: configs, labels, weights (torch's own only where there are no others)."""
    names = sorted(name.rpartition("/")[2] for name in fs.ls(path, detail=False))
    safe = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    kept = (".json", ".safetensors", "labels.txt") if safe else (".json", ".bin", "labels.txt")
    return [name for name in names if name.endswith(kept)]


def publish(folder: Path, uri: str, storage_options: dict[str, Any] | None = None) -> None:
    """Copy a model's files to a store; config.json vouches for the rest, and so is the last."""
    fs, path = open_filesystem(uri, storage_options)
    if fs.exists(stale := f"{path.rstrip('/')}/labels.txt"):
        fs.rm_file(stale)  # of a model that was here before
    for file in sorted(folder.iterdir(), key=lambda file: file.name == "config.json"):
        fs.pipe_file(f"{path.rstrip('/')}/{file.name}", file.read_bytes())


def _read_labels(uri: str, num_classes: int, storage_options: dict[str, Any] | None) -> tuple[str, ...]:
    fs, path = open_filesystem(uri, storage_options)
    if not fs.isfile(path):
        raise UserError(f"--labels {public(uri)}: no such file", exit_code=2)
    labels = tuple(fs.cat_file(path).decode().splitlines())
    if len(labels) != num_classes:
        raise UserError(
            f"--labels {public(uri)} has {len(labels)} names, the model has {num_classes} classes",
            exit_code=2,
        )
    return labels
