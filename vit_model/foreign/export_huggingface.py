"""Write a model as a folder for transformers.

AutoModelForImageClassification, or AutoModel without a head, and AutoImageProcessor open the folder.
"""

import math
from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign import rename_tables, renames
from wordsworth.vit_model.foreign.formats import undistilled
from wordsworth.vit_model.foreign.hub_folder import CONFIG, write_hub_folder
from wordsworth.vit_model.foreign.image_processors import PREPROCESSOR_CONFIG, RESAMPLING
from wordsworth.vit_model.weights import State

# transformers takes a softmax for the kind of a head where nothing is said.
PROBLEM_OF_KIND = {"sigmoid": "multi_label_classification", "value": "regression"}
HIDDEN_ACT_OF_GELU = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


def save_huggingface(path: Path, checkpoint: Checkpoint) -> None:
    """Write the folder.

    Raises:
        ModelError: transformers has no place for the model.
    """
    config = checkpoint.config
    if config.representation_size and (config.num_classes or config.representation_size != config.width):
        where = "only in models without a head, as wide as the model"
        raise ModelError(f"the format hf has a hidden layer {where}")
    jsons = {
        PREPROCESSOR_CONFIG: _processor(checkpoint.preprocessing, config.image_size),
        CONFIG: _config(checkpoint),
    }
    write_hub_folder(path, _their_state(checkpoint), jsons, {"format": "pt"})


def resized(preprocessing: Preprocessing, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels before the crop, of an image of the model's aspect ratio."""
    height, width = image_size
    return math.floor(height / preprocessing.crop_pct), math.floor(width / preprocessing.crop_pct)


def _their_state(checkpoint: Checkpoint) -> State:
    config = checkpoint.config
    if config.pool == "distilled":
        prefix = "deit."
        state = undistilled(checkpoint.state, config)
        theirs = renames.write(state, rename_tables.HF_DEIT, config, "hf")
    else:
        prefix = "vit."
        theirs = renames.write(checkpoint.state, rename_tables.HF_VIT, config, "hf")
    if not config.num_classes:
        return theirs
    return {name if "classifier" in name else prefix + name: tensor for name, tensor in theirs.items()}


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    height, width = config.image_size
    about: dict[str, Any] = {
        "architectures": [_class_name(config)],
        "model_type": "deit" if config.pool == "distilled" else "vit",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": HIDDEN_ACT_OF_GELU[config.gelu],
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
    }
    if config.num_classes:
        names = checkpoint.labels or [f"LABEL_{i}" for i in range(config.num_classes)]
        about["id2label"] = dict(enumerate(names))
        about["label2id"] = {name: i for i, name in enumerate(names)}
    if checkpoint.head.kind in PROBLEM_OF_KIND:
        about["problem_type"] = PROBLEM_OF_KIND[checkpoint.head.kind]
    return about


def _class_name(config: ViTConfig) -> str:
    """Return the class of transformers that loads the model."""
    if not config.num_classes:
        return "ViTModel"
    if config.pool == "distilled":
        return "DeiTForImageClassificationWithTeacher"
    return "ViTForImageClassification"


def _processor(preprocessing: Preprocessing, image_size: tuple[int, int]) -> dict[str, Any]:
    height, width = image_size
    edges = resized(preprocessing, image_size)
    squash = preprocessing.crop_mode == "squash"
    return {
        "do_resize": True,
        "size": {"height": edges[0], "width": edges[1]} if squash else {"shortest_edge": min(edges)},
        "resample": RESAMPLING.index(preprocessing.interpolation),
        "do_center_crop": not squash or preprocessing.crop_pct < 1,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        # These two crop, and did in every version of transformers.
        "image_processor_type": "DeiTImageProcessor" if squash else "CLIPImageProcessor",
    }
