"""Load the model that --model names: a folder, a file, timm:NAME, hf:NAME, or a variant with weights."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.prediction.adapters import find_adapter, with_adapter
from wordsworth.pipeline.prediction.class_texts import Texts, read_zero_shot
from wordsworth.pipeline.prediction.model_classes import with_classes
from wordsworth.pipeline.prediction.model_files import ModelFiles
from wordsworth.pipeline.prediction.model_names import is_variant, refuse_bare_variant, understood
from wordsworth.pipeline.storage.filesystem import StorageOptions, without_credentials
from wordsworth.pipeline.storage.refusals import naming
from wordsworth.vit_model.checkpoint import BaseCheckpoint, Checkpoint, own_model, random_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign.class_names import TAGS
from wordsworth.vit_model.foreign.transformers_text import TOKENIZER_FILES
from wordsworth.vit_model.foreign.zero_shot import ZeroShot, dual_encoder_refusal
from wordsworth.vit_model.head import HEAD_FROM
from wordsworth.vit_model.variants import variant
from wordsworth.vit_model.weight_sets import is_averaged
from wordsworth.vit_model.weights import check_numbers

Note = Callable[[str], None]  # gets what the user should know, a line at a time


# These are the options of a model on the command line; a caller names each.
def load_model(  # noqa: PLR0913
    model: str,
    *,
    weights: str | None = None,
    weights_key: str | None = None,
    labels: str | None = None,
    head: str | None = None,
    classes: Texts | None = None,
    prompt: Texts | None = None,
    allow_random_weights: bool = False,
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
    note: Note = print,
    storage_options: StorageOptions | None = None,
) -> BaseCheckpoint:
    """Return the checkpoint that the options of a model describe.

    Args:
        model: a model folder or a file of weights, timm:NAME, hf:OWNER/NAME@REVISION, or a variant such as
            S/16.
        weights: a file of weights in place of the model's own.
        weights_key: the set of tensors to take from a file of weights that holds several.
        labels: a file with the class names, one a line.
        head: the kind of the head in place of what the model says: one of HEAD_KINDS.
        classes: texts that are the classes, as `class_texts.read_zero_shot` takes them.
        prompt: texts around the classes, likewise.
        allow_random_weights: let a bare variant have random weights.
        seed: of random weights.
        overrides: preprocessing in place of the model's own, by field of Preprocessing.
        note: gets what the user should know of the model.
        storage_options: of the stores that files come from.

    Raises:
        UserError: the model does not exist, or has no weights.
        ModelError: the weights do not fit the model.
    """
    model = understood(model, has_weights=weights is not None, note=note)
    asked = _zero_shot(classes, prompt, {"--labels": labels, "--weights": weights}, storage_options)
    with naming(weights or model), tempfile.TemporaryDirectory(prefix="wordsworth-model-") as scratch:
        files = ModelFiles(Path(scratch), storage_options)
        adapter = find_adapter(model, weights, files)
        file = _WeightsFile(files.weights(weights), weights_key) if weights and not adapter else None
        if weights_key is not None and file is None and not files.is_weights(model):
            raise UserError(
                "--weights-key takes one of several sets of tensors in a file: give the file, --weights FILE",
                exit_code=2,
            )
        if adapter is not None:
            found = with_adapter(adapter, files, note)
        elif asked is not None:
            found = _dual_encoder(model, files, asked, note)
        elif model.startswith("timm:"):
            found = _timm(model.removeprefix("timm:"), file, note)
        elif is_variant(model):
            if file is None:
                found = _random(model, allow_random_weights, seed, note)
            else:
                found = _variant_with(model, file, note)
        elif file is None:
            found = _folder_or_hub(model, files, weights_key, note)
        else:
            found = _with_weights(_folder_or_hub(model, files, None, note), file, note)
    check_numbers(found.state, without_credentials(weights or model))
    _note_choice(found.extra, asked=weights_key is not None, note=note)
    found = with_classes(found, labels, head, note, storage_options)
    return _prepared(found, overrides or {})


def _prepared(found: BaseCheckpoint, overrides: dict[str, Any]) -> BaseCheckpoint:
    """Return the model with some of its preprocessing in place of its own.

    Raises:
        UserError: an option gives what no preprocessing has.
    """
    try:
        return replace(found, preprocessing=replace(found.preprocessing, **overrides))
    except ModelError as error:
        raise UserError(f"--{str(error).replace('_', '-', 1)}", exit_code=2) from error


def _zero_shot(
    classes: Texts | None, prompt: Texts | None, others: dict[str, str | None], options: StorageOptions | None
) -> ZeroShot | None:
    """Return the classes that are asked for as texts, or None.

    Raises:
        UserError: they cannot be read, or another option cannot go with them.
    """
    if classes is None:
        if prompt is not None:
            raise UserError("--prompt needs --classes, which it puts into a text", exit_code=2)
        return None
    for option, given in others.items():
        if given is not None:
            raise UserError(
                f"--classes makes the head of the model and its labels: leave {option} out", exit_code=2
            )
    return read_zero_shot(classes, prompt, options)


def _dual_encoder(model: str, files: ModelFiles, asked: ZeroShot, note: Note) -> BaseCheckpoint:
    """Return a model of images and texts with the classes as its head."""
    from wordsworth.vit_model.foreign.load import from_folder, from_hub

    if re.match(r"hf:(?!//)", model):
        return from_hub(model.removeprefix("hf:"), note, asked)
    if model.startswith("timm:") or is_variant(model):
        raise dual_encoder_refusal(f"--model {model}", "has no text tower")
    path = files.model(model, TOKENIZER_FILES)
    if path.is_file():
        raise dual_encoder_refusal(
            path.name, "is a file of weights without a text tower's config and tokenizer"
        )
    return from_folder(path, note, asked)


# ---- what --model names -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _WeightsFile:
    """Name the file of --weights, and the set of tensors of --weights-key in it."""

    path: Path
    key: str | None


def _timm(name: str, weights: _WeightsFile | None, note: Note) -> BaseCheckpoint:
    from wordsworth.vit_model.foreign.load import from_timm, module_config, timm_config

    if weights is None:
        return from_timm(name, note=note)
    found = from_timm(name, weights.path, note, weights.key)
    plain = name.partition("@")[0]  # without a revision of the hub
    if isinstance(found, Checkpoint):
        named = timm_config(plain)
        _note_classes(named.num_classes, found.config.num_classes, weights.path, note)
        _note_switches(named, found.config, weights.path, note)
    else:
        _note_classes(module_config(plain).num_classes, found.config.num_classes, weights.path, note)
    return found


def _folder_or_hub(model: str, files: ModelFiles, key: str | None, note: Note) -> BaseCheckpoint:
    from wordsworth.vit_model.foreign.load import from_file, from_folder, from_hub

    if re.match(r"hf:(?!//)", model):  # hf:// is a store
        return from_hub(model.removeprefix("hf:"), note)
    path = files.model(model)
    return from_file(path, key, note) if path.is_file() else from_folder(path, note)


def _with_weights(known: BaseCheckpoint, weights: _WeightsFile, note: Note) -> BaseCheckpoint:
    """Return a checkpoint with the weights of a file in place of its own."""
    from wordsworth.vit_model.foreign.load import module_with_weights, weights_for
    from wordsworth.vit_model.foreign.module import ModuleCheckpoint

    if known.extra.get(HEAD_FROM, "").startswith(TAGS):
        raise UserError(
            f"--weights {weights.path.name}: the weights of a tagger take blue first, and this file does not "
            f"say whether they do: put it beside {TAGS} as model.safetensors, and leave --weights out",
            exit_code=2,
        )
    if isinstance(known, ModuleCheckpoint):
        found = module_with_weights(known, weights.path, weights.key)
        _note_classes(known.config.num_classes, found.config.num_classes, weights.path, note)
        return found
    known = own_model(known, "--weights")
    config, state, origin = weights_for(known.config, weights.path, weights.key)
    _note_classes(known.config.num_classes, config.num_classes, weights.path, note)
    _note_switches(known.config, config, weights.path, note)
    labels = known.labels if config.num_classes == known.config.num_classes else None
    return replace(known, config=config, labels=labels, state=state, extra=origin)


def _random(model: str, allow_random: bool, seed: int, note: Note) -> Checkpoint:
    """Return a variant with random weights. Raises UserError where random weights are not allowed."""
    refuse_bare_variant(model, has_weights=False, allow_random=allow_random)
    note(f"{model} has RANDOM weights: the labels mean nothing")
    return random_checkpoint(variant(model), Preprocessing(), seed)


def _variant_with(model: str, weights: _WeightsFile, note: Note) -> Checkpoint:
    """Return a variant with the weights of a file. Raises UserError if the file holds another model."""
    from wordsworth.vit_model.foreign.load import WrongVariant, from_variant

    try:
        return from_variant(model, weights.path, note, weights.key)
    except WrongVariant as error:
        raise UserError(str(error), exit_code=2) from None


def _note_classes(named: int, used: int, weights: Path, note: Note) -> None:
    """Say that weights have another head than the model that was named."""
    if used and used != named:
        classes = plural(used, "class", "classes")
        note(f"{weights.name} has {classes}, the named model {named or 'none'}: --labels FILE names them")
    elif used != named:
        note(f"{weights.name} has no head: it gives embeddings and no labels")


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


def _note_choice(origin: dict[str, Any], asked: bool, note: Note) -> None:
    """Say which tensors of a file were taken and which were not."""
    others = origin.get("other_weights")
    if others and not asked:
        key = origin["weights_key"]
        averaged = ", the averaged weights" if is_averaged(key) else ""
        rest = f" or {', '.join(others[1:3])}" if others[1:] else ""
        note(f"{origin['weights']}: takes {key}{averaged}; --weights-key {others[0]}{rest} takes the others")
    if "head" in origin:
        note(f"{origin['weights']}: the layer {origin['head']}, beside the model, is its head")
    num_left_out = origin.get("left_out")
    if num_left_out:
        note(
            f"{num_left_out} tensors of {origin['weights']} are no part of the model that labels "
            "(another tower, a decoder, a loss): left out"
        )
