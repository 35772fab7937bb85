"""Find transformers' own class for a config.json, in transformers' own lists, and keep its manners at bay.

Code that lies beside weights is never run. transformers is imported inside the functions, because the import
takes seconds.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.weight_bounds import check_model_size, count_numbers
from wordsworth.vit_model.weights import State, first_line

# Fields of a config.json that would have transformers fetch code or weights.
LOADING = re.compile(
    r"_?attn_implementation.*|_?experts_implementation.*|use_kernels|auto_map|use_pretrained_backbone"
)
# Tasks whose models are loaded for the encoder inside.
PRE_TRAINING = ("MaskedImageModeling", "PreTraining", "MaskedImageModelingWithTeacher")
# model_type of models with a text tower, whose images are embedded by `get_image_features`.
WITH_TEXT_TOWER = (
    "aimv2",
    "align",
    "altclip",
    "chinese_clip",
    "clip",
    "groupvit",
    "metaclip_2",
    "siglip",
    "tipsv2",
    "vision-text-dual-encoder",
)


def library() -> str:
    import transformers

    return f"transformers {transformers.__version__}"


def their_config(values: dict[str, Any], where: str | Path) -> Any:
    """Return transformers' own config.

    Raises:
        ModelError: transformers is missing, or does not know the kind of model.
    """
    kind = values.get("model_type")
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"{where} is a {kind}, which runs in transformers: pip install 'wordsworth[zeroshot]'"
        ) from error
    if kind not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{where}: model_type is {kind!r}, which neither our own ViT nor {library()} knows; "
            "code that lies beside the weights is never run"
        )
    with one_line(f"{where} cannot be read by {library()}"):
        theirs = transformers.CONFIG_MAPPING[kind].from_dict(_without_loading(values))
        if getattr(theirs, "use_pretrained_backbone", False):  # the default of some
            theirs.use_pretrained_backbone = False
        return theirs


def _without_loading(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a config without those that have code or weights fetched, of its parts as well."""
    kept = {}
    for name, value in values.items():
        if not LOADING.fullmatch(name):
            kept[name] = _without_loading(value) if isinstance(value, dict) else value
    return kept


def load_tensors(kind: Any, theirs: Any, state: State, where: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build a model of transformers with tensors that our own reader has read.

    transformers knows the names of older versions. It opens no file.

    Args:
        kind: transformers' class.
        theirs: its config.
        state: the tensors under the names of the file.
        where: the file, in messages.

    Returns:
        The model in float32, and transformers' own account of the tensors.

    Raises:
        ModelError: this version of transformers does not build it, or the weights are of a far smaller model.
    """
    with one_line(f"{where} does not fit {kind.__name__}"), quiet():
        with torch.device("meta"):
            check_model_size(kind(theirs), count_numbers(state), where)
        return kind.from_pretrained(
            None,
            config=theirs,
            state_dict=dict(state),
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by their names
        )


def classifiers(theirs: Any) -> tuple[Any, ...]:
    """Return transformers' classes that label images, for a config."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    return _listed(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, theirs)


def encoders(theirs: Any) -> tuple[Any, ...]:
    """Return transformers' classes without a head, for a config."""
    from transformers import MODEL_MAPPING

    return _listed(MODEL_MAPPING, theirs)


def _listed(mapping: Any, theirs: Any) -> tuple[Any, ...]:
    if type(theirs) not in mapping:
        return ()
    found = mapping[type(theirs)]
    return found if isinstance(found, tuple) else (found,)


def class_for(about: dict[str, Any], theirs: Any, folder: Path) -> Any:
    """Return the class that a config.json names, or the plain model inside of it.

    Raises:
        ModelError: the model neither labels nor embeds images.
    """
    named = (about.get("architectures") or [""])[0]
    for kind in classifiers(theirs):
        if kind.__name__ == named:
            return kind
    task = re.search(r"For([A-Z]\w*)$", named)
    if task and task[1].startswith("ImageClassification"):
        raise ModelError(
            f"{folder} holds a {named}, which {library()} does not have for a {theirs.model_type}"
        )
    if task and task[1] not in PRE_TRAINING:
        raise ModelError(f"{folder} holds a {named}, which gives neither labels nor embeddings of images")
    plain = encoders(theirs)
    takes_images = plain and plain[0].main_input_name == "pixel_values"
    if not takes_images and theirs.model_type not in WITH_TEXT_TOWER:
        raise ModelError(f"{folder} holds a {named or theirs.model_type}, which is no model of single images")
    return plain[0]


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn any error of transformers' code, which has many kinds, into one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {first_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from showing progress and reports on the standard error."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
