"""Load the text tower of a dual encoder of Hugging Face's: transformers' own module and tokenizer.

transformers is imported inside the functions, because the import takes seconds, and it is optional.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.hub_folder import CONFIG
from wordsworth.vit_model.foreign.huggingface import read_weights
from wordsworth.vit_model.foreign.transformers_classes import encoders, load_tensors, their_config
from wordsworth.vit_model.foreign.zero_shot import PACKAGES, TextTower, dual_encoder_refusal
from wordsworth.vit_model.head import Head
from wordsworth.vit_model.weights import first_line

# A tokenizer is one of these files, or the pair of the last two.
TOKENIZERS = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
MAX_TOKENIZER_BYTES = 256 << 20  # of one file; the largest that are published have 35 MB
TOKENIZER_FILES = (
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def _exponential(model: nn.Module) -> tuple[float, float]:
    """Return CLIP's scale and bias."""
    return math.exp(model.logit_scale.item()), 0.0


def _with_bias(model: nn.Module) -> tuple[float, float]:
    """Return SigLIP's scale and bias."""
    return math.exp(model.logit_scale.item()), model.logit_bias.item()


def _clamped(model: nn.Module) -> tuple[float, float]:
    """Return AIMv2's scale and bias."""
    return math.exp(min(max(model.logit_scale.item(), 0.0), model.max_log_logit_scale)), 0.0


def _temperature(model: nn.Module) -> tuple[float, float]:
    """Return ALIGN's scale and bias."""
    return 1 / model.temperature.item(), 0.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """Hold how the embeddings of one kind of dual encoder become scores, which its config.json does not say.

    Attributes:
        scale_and_bias: of the cosines, from transformers' module.
        head: how the sums become scores.
        padded: every text is filled up to the whole context, as the model was trained.
    """

    scale_and_bias: Callable[[nn.Module], tuple[float, float]] = _exponential
    head: Head = field(default_factory=Head)
    padded: bool = False


_SIGLIP = Family(scale_and_bias=_with_bias, head=Head(kind="sigmoid"), padded=True)
FAMILIES = {
    "aimv2": Family(scale_and_bias=_clamped),
    "clip": Family(),
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "align": Family(scale_and_bias=_temperature),
    "altclip": Family(),
    "chinese_clip": Family(),
    "metaclip_2": Family(),
}


def load_text_tower(folder: Path, about: dict[str, Any]) -> TextTower:
    """Load the text tower of a folder that transformers' `save_pretrained` wrote.

    Args:
        folder: with the weights of both towers and the files of the tokenizer.
        about: the content of its config.json.

    Raises:
        ModelError: the model has no text tower, a file is missing, transformers is missing.
    """
    kind = about.get("model_type")
    if kind not in FAMILIES:
        raise dual_encoder_refusal(folder / CONFIG, f"is of the model_type {kind!r}, which has no text tower")
    family = FAMILIES[kind]
    tokenizer = load_tokenizer(folder)
    model = _load_model(folder, about)
    scale, bias = family.scale_and_bias(model)
    text = model.config.get_text_config()
    context = text.max_position_embeddings
    if text.model_type == "altclip_text_model":  # its positions begin behind that of the padding
        context -= text.pad_token_id + 1
    model.double()

    def embed(texts: Sequence[str]) -> torch.Tensor:
        padding = "max_length" if family.padded else True
        tokens = tokenizer(
            list(texts), padding=padding, truncation=True, max_length=context, return_tensors="pt"
        )
        _check_tokens(tokens["input_ids"], text.vocab_size, folder)
        features = model.get_text_features(**tokens)
        return getattr(features, "pooler_output", features)

    def count_tokens(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]

    return TextTower(
        called=str(folder),
        embed=embed,
        count_tokens=count_tokens,
        context=context,
        scale=scale,
        bias=bias,
        head=family.head,
    )


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a folder. Nothing is downloaded, and no code of the folder runs.

    Raises:
        ModelError: there is none, it cannot be read, or transformers is missing.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ModelError(f"{folder}: transformers reads the texts of --classes: {PACKAGES}") from error
    # transformers makes an empty tokenizer where there are no files.
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(
            f"{folder} has no tokenizer, which reads the texts of --classes: one of {', '.join(TOKENIZERS)} "
            "of the same model goes there, and its tokenizer_config.json"
        )
    check_tokenizer_files(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its readers have many kinds of errors
        raise ModelError(f"{folder}: its tokenizer cannot be read: {first_line(error)}") from error


def check_tokenizer_files(folder: Path) -> None:
    """Check that no file of a tokenizer is larger than any tokenizer's.

    Raises:
        ModelError: one is.
    """
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file() and path.stat().st_size > MAX_TOKENIZER_BYTES:
            size = path.stat().st_size
            raise ModelError(
                f"{path} has {size:,} bytes, more than the {MAX_TOKENIZER_BYTES:,} of a tokenizer"
            )


def _load_model(folder: Path, about: dict[str, Any]) -> nn.Module:
    """Return transformers' module in eval mode, in float32 and without its image tower.

    Raises:
        ModelError: transformers cannot read it, or it has no weights for the text tower.
    """
    weights, state = read_weights(folder)
    theirs = their_config(about, folder)
    model, loading = load_tensors(encoders(theirs)[0], theirs, state, weights)
    others = [told[0] for told in loading["mismatched_keys"]]
    if others:
        raise ModelError(f"{weights} does not fit its config: {len(others)} tensors, {min(others)} first")
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("vision_model."))
    if missing:
        raise dual_encoder_refusal(folder, f"has no weights for its text tower (missing {missing[0]})")
    model.vision_model = nn.Identity()
    return model.eval().requires_grad_(False)


def _check_tokens(tokens: torch.Tensor, vocab_size: int, folder: Path) -> None:
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise ModelError(
            f"{folder}: its tokenizer gives the token {largest} and its text tower has {vocab_size}: "
            "the tokenizer is of another model"
        )
