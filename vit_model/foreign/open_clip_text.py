"""Load the text tower of an OpenCLIP model: open_clip's own module and tokenizer.

open_clip is imported inside the functions, because the import takes seconds, and it is optional.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.hub import HubFiles, fetch
from wordsworth.vit_model.foreign.hub_folder import CONFIG, naming_broken_json, read_json
from wordsworth.vit_model.foreign.huggingface import OPEN_CLIP_CONFIG, read_weights
from wordsworth.vit_model.foreign.transformers_classes import their_config
from wordsworth.vit_model.foreign.transformers_text import TOKENIZERS, check_tokenizer_files
from wordsworth.vit_model.foreign.zero_shot import PACKAGES, TextTower
from wordsworth.vit_model.head import Head
from wordsworth.vit_model.weight_bounds import check_model_size, count_numbers
from wordsworth.vit_model.weights import State, first_line

# The smallest tower that open_clip builds, in place of the one that is not wanted.
TINY_VISION = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 16}
TINY_TEXT = {"layers": 1, "width": 64, "heads": 1, "vocab_size": 2, "context_length": 2}
# Tensors of a model that belong to neither of its two towers.
OTHERS = ("visual.", "text_decoder.", "logit_scale", "logit_bias")
STALE = "transformer.embeddings.position_ids"  # of text towers that an earlier transformers has written


def load_text_tower(folder: Path) -> TextTower:
    """Load the text tower of the files of an OpenCLIP repository.

    Args:
        folder: with the config, the weights of both towers, and the files of the tokenizer where that is not
            open_clip's own.

    Raises:
        ModelError: the model has no text tower, the weights do not fit, open_clip is missing.
    """
    where = folder / OPEN_CLIP_CONFIG
    about = read_json(where)
    with naming_broken_json(where):
        return _text_tower(folder, about["model_cfg"])


def _text_tower(folder: Path, model_cfg: dict[str, Any]) -> TextTower:
    weights, state = read_weights(folder)
    with torch.device("meta"):
        check_model_size(_build(folder, model_cfg), count_numbers(state), weights)
    tower = _build(folder, model_cfg)
    _load(tower, state, folder)
    tower.double()
    context = model_cfg["text_cfg"].get("context_length", 77)
    tokenize, count_tokens = _tokenizer(folder, model_cfg["text_cfg"], context)
    # The embedding is mostly that of the end token, the largest one, which sees no padding behind it: texts
    # are then read without, in a fraction of the time.
    # CoCa's is that of a last token of its own.
    at_end = getattr(tower, "pool_type", None) == "argmax" and tower.cls_emb is None
    causal = tower.attn_mask if at_end else None

    def embed(texts: Sequence[str]) -> torch.Tensor:
        tokens = tokenize(texts)
        if causal is not None:
            length = int(tokens.argmax(-1).max()) + 1
            tokens = tokens[:, :length]
            tower.attn_mask = causal[:length, :length]
        features = tower(tokens)
        return features[0] if isinstance(features, tuple) else features  # CoCa gives its tokens too

    bias = state.get("logit_bias")
    return TextTower(
        called=str(folder),
        embed=embed,
        count_tokens=count_tokens,
        context=context,
        scale=math.exp(state["logit_scale"].item()),
        bias=0.0 if bias is None else bias.item(),
        # A model with a bias was trained with a sigmoid, as SigLIP is.
        head=Head() if bias is None else Head(kind="sigmoid"),
    )


def _build(folder: Path, model_cfg: dict[str, Any]) -> nn.Module:
    """Return open_clip's text tower in eval mode, with any weights."""
    try:
        from open_clip import CustomTextCLIP
    except ImportError as error:
        raise ModelError(f"{folder}: open_clip reads the texts of --classes: {PACKAGES}") from error
    text_cfg = model_cfg["text_cfg"] | {"hf_model_pretrained": False}
    if text_cfg.get("hf_model_name"):
        text_cfg["hf_model_name"] = _hugging_face_config(folder, text_cfg["hf_model_name"])
    try:
        model = CustomTextCLIP(
            model_cfg["embed_dim"], TINY_VISION, text_cfg, quick_gelu=model_cfg.get("quick_gelu", False)
        )
    except Exception as error:  # open_clip's builders have many kinds of errors
        raise ModelError(f"{folder}: open_clip does not build its text tower: {first_line(error)}") from error
    return model.text.eval().requires_grad_(False)


def _hugging_face_config(folder: Path, name: str) -> str:
    """Return a folder with the config.json that tells a text tower of transformers; its weights are here.

    Raises:
        ModelError: it is neither on the hub nor in the cache.
    """
    if Path(name).is_dir():
        return _without_code(name)
    wanted = HubFiles(
        called=f"{folder}: the config of its text tower, hf:{name}",
        repository=name,
        revision=None,
        choose=lambda names: [CONFIG],
        usual=(CONFIG,),
        option=f"that folder as hf_model_name in {OPEN_CLIP_CONFIG}",
    )
    return _without_code(str(fetch(wanted, lambda _: None).folder))


def _without_code(folder: str) -> str:
    """Return a folder whose config.json is of a model of transformers' own.

    Raises:
        ModelError: code beside the config would have to build it, about which open_clip would ask.
    """
    their_config(read_json(Path(folder, CONFIG)), folder)
    return folder


def _load(tower: nn.Module, state: State, folder: Path) -> None:
    """Give the tower its weights.

    Raises:
        ModelError: they do not fit.
    """
    own = {name.removeprefix("text."): t for name, t in state.items() if not name.startswith(OTHERS)}
    own.pop(STALE, None)
    try:
        tower.load_state_dict(own)
    except RuntimeError as error:
        complaint = " ".join(str(error).split())
        raise ModelError(f"{folder}: its weights do not fit its text tower: {complaint[:200]}") from error


Tokenize = Callable[[Sequence[str]], torch.Tensor]  # M texts to tokens (M, context)
Count = Callable[[Sequence[str]], list[int]]


def _tokenizer(folder: Path, text_cfg: dict[str, Any], context: int) -> tuple[Tokenize, Count]:
    """Return what cuts texts into tokens, and what counts the tokens of the uncut texts."""
    import open_clip

    name = text_cfg.get("hf_tokenizer_name") or text_cfg.get("hf_model_name")
    options = text_cfg.get("tokenizer_kwargs") or {}
    if not name:
        tokenizer = open_clip.SimpleTokenizer(context_length=context, **options)
        return tokenizer, lambda texts: [len(tokenizer.encode(text)) + 2 for text in texts]
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise ModelError(
            f"{folder} has no tokenizer, which reads the texts of --classes: it is that of {name} on the "
            "hub, whose files tokenizer.json and tokenizer_config.json go there"
        )
    check_tokenizer_files(folder)
    from open_clip.tokenizer import HFTokenizer

    mode = text_cfg.get("tokenizer_mode")
    offline = {"local_files_only": True, "trust_remote_code": False}
    try:
        hf_tokenizer = HFTokenizer(
            str(folder), context_length=context, tokenizer_mode=mode, **(options | offline)
        )
    except Exception as error:  # its readers have many kinds of errors
        raise ModelError(f"{folder}: its tokenizer cannot be read: {first_line(error)}") from error

    def count_tokens(texts: Sequence[str]) -> list[int]:
        cleaned = [hf_tokenizer.clean_fn(text) for text in texts]
        return [len(ids) for ids in hf_tokenizer.tokenizer(cleaned, verbose=False)["input_ids"]]

    return hf_tokenizer, count_tokens
