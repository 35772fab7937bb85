"""Compute the Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929) in PyTorch.

This package knows no Ray, no storage and no command line. A name is imported from its module when it is asked
for, as in `from wordsworth.vit_model import VisionTransformer`. So light processes use the config and patches
without loading torch.

    config.py               ViTConfig, Preprocessing
    variants.py cost.py     the named sizes; parameters and multiplications
    patches.py              patchify, unpatchify (numpy and torch)
    position.py             the positions and their resampling
    encoder.py              Attention, MLP, Block: Eq. 2 and 3
    model.py                VisionTransformer: Eq. 1 and 4
    hybrid.py               the ResNet stem
    weights.py              files of tensors, checked against a config
    checkpoint.py           model folders: load, save, fingerprint
    inference.py            the fast path: folded normalisation, bf16
    parallel.py             activation checkpointing, compilation, sharding
    objectives.py masked_autoencoder.py     the losses that an encoder is trained for
    analysis.py few_shot.py neighbours.py recall.py     measures of a trained encoder
    foreign/                other people's weights; load.py is the door
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wordsworth.vit_model.analysis import (
        attention_distances,
        attention_maps,
        attention_rollout,
        position_similarity,
        rgb_filters,
    )
    from wordsworth.vit_model.checkpoint import Checkpoint, random_checkpoint
    from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
    from wordsworth.vit_model.masked_autoencoder import MaskedAutoencoder
    from wordsworth.vit_model.model import VisionTransformer
    from wordsworth.vit_model.model_folder import load_folder, save_folder
    from wordsworth.vit_model.patches import patchify, unpatchify
    from wordsworth.vit_model.variants import VARIANTS, variant

__all__ = [
    "VARIANTS",
    "Checkpoint",
    "MaskedAutoencoder",
    "ModelError",
    "Preprocessing",
    "ViTConfig",
    "VisionTransformer",
    "attention_distances",
    "attention_maps",
    "attention_rollout",
    "load_folder",
    "patchify",
    "position_similarity",
    "random_checkpoint",
    "rgb_filters",
    "save_folder",
    "unpatchify",
    "variant",
]

# The module of each public name.
_MODULES = {
    "VARIANTS": "variants",
    "Checkpoint": "checkpoint",
    "MaskedAutoencoder": "masked_autoencoder",
    "ModelError": "config",
    "Preprocessing": "config",
    "ViTConfig": "config",
    "VisionTransformer": "model",
    "attention_distances": "analysis",
    "attention_maps": "analysis",
    "attention_rollout": "analysis",
    "load_folder": "model_folder",
    "patchify": "patches",
    "position_similarity": "analysis",
    "random_checkpoint": "checkpoint",
    "rgb_filters": "analysis",
    "save_folder": "model_folder",
    "unpatchify": "patches",
    "variant": "variants",
}


def __getattr__(name: str) -> Any:
    """Return a public name, and import its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
