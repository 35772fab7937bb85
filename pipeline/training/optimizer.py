"""Build the optimizer of a training: what decays, and how fast each layer learns."""

import re
from typing import Any

import torch
from torch import nn

from wordsworth.pipeline.training.request import TrainRequest

EMBEDDING = re.compile(r"(^|\.)(patch_embed|cls_token|reg_token|pos_embed)")
BLOCK = re.compile(r"(?<!decoder\.)blocks\.(\d+)\.")
NO_DECAY = {"cls_token", "pos_embed", "mask_token"}  # and every bias and LayerNorm
MOMENTUM = 0.9  # of SGD, as the paper fine-tunes


def build_optimizer(objective: nn.Module, request: TrainRequest) -> torch.optim.Optimizer:
    """Return AdamW or SGD with momentum over the parameters of an objective."""
    groups = parameter_groups(objective, request.weight_decay, request.layer_decay)
    if request.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=request.lr, momentum=MOMENTUM)
    return torch.optim.AdamW(groups, lr=request.lr, betas=(0.9, request.beta2), fused=True)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return the parameters that are trained, in groups for an optimizer.

    Matrices decay; biases, LayerNorms, the [class] and [mask] tokens and positions do not.

    Args:
        model: an objective or a model.
        weight_decay: weight decay of matrices.
        layer_decay: learning rate of a layer as a multiple of the rate of the layer above, as in BEiT and
            MAE. The embedding is the lowest layer; the head and all that is no block are the highest.

    Returns:
        Groups with `params`, `weight_decay` and `scale`, a factor of the learning rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(weight_decay, 1.0): [], (0.0, 1.0): []}
    depth = 1 + max((_block(name) for name, _ in model.named_parameters()), default=0)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not NO_DECAY.intersection(name.split("."))
        scale = layer_decay ** (depth + 1 - _layer(name, depth))
        groups.setdefault((weight_decay if decays else 0.0, scale), []).append(parameter)
    found = []
    for (decay, scale), parameters in groups.items():
        if parameters:
            found.append({"params": parameters, "weight_decay": decay, "scale": scale})
    return found


def _block(name: str) -> int:
    """Return the number of the encoder block that a parameter belongs to, -1 for none."""
    found = BLOCK.search(name)
    if found and not EMBEDDING.search(name):  # the stem of a hybrid has blocks of its own
        return int(found[1])
    return -1


def _layer(name: str, depth: int) -> int:
    """Return the layer of a parameter: 0 for the embedding, 1 to `depth` for the blocks, depth + 1 above."""
    block = _block(name)
    if block >= 0:
        return block + 1
    return 0 if EMBEDDING.search(name) else depth + 1
