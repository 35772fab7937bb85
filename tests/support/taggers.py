"""Make folders as taggers have them: timm's config.json and weights, and a table of tags beside them."""

import json
from pathlib import Path

import safetensors.torch
import timm
import torch

TAGS = ("general", "1girl", "solo, standing", "6+cats", "^_^")
# Our own ViT computes the first, timm's own module the second.
TAGGERS = {
    "vit_base_patch16_224": {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "act_layer": "gelu_tanh",
    },
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]},
}


def tagger(folder: Path, randomised, architecture: str = "vit_base_patch16_224") -> torch.nn.Module:
    """Write a folder as taggers have it: timm's config.json and weights, and a table of tags beside them."""
    arguments = TAGGERS[architecture]
    theirs = randomised(timm.create_model(architecture, num_classes=5, **arguments))
    with torch.no_grad():
        theirs.get_classifier().weight.mul_(30)
    about = {
        "architecture": architecture,
        "num_classes": 5,
        "num_features": 32,
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5, 0.4, 0.3],
            "std": [0.5, 0.6, 0.7],
            "num_classes": 5,
            "first_conv": None,
            "classifier": None,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(about))
    safetensors.torch.save_file(theirs.state_dict(), folder / "model.safetensors")
    rows = "".join(f'{100 + i},"{tag}",0,{9 - i}\n' for i, tag in enumerate(TAGS))
    (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n" + rows)
    return theirs
