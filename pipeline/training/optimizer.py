"""Build the optimizer of a training: what decays, how fast each layer learns, the learning rate's curve."""

import math
import re
from typing import Any

import torch
from torch import nn

from wordsworth.pipeline.training.request import TrainRequest

EMBEDDING = re.compile(r"(^|\.)(patch_embed|cls_token|reg_token|pos_embed)")
BLOCK = re.compile(r"(?<!decoder\.)blocks\.(\d+)\.")
NO_DECAY = {"cls_token", "pos_embed", "mask_token"}  # and every bias and LayerNorm
DECAYS = ("cosine", "linear", "rsqrt")  # those whose rate goes to zero at the last step
CONSTANT = "constant"  # the rate stays at its peak
COOLDOWN = 0.1  # last share of the steps, in which a rate that falls as an inverse root goes to zero
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


def learning_rate(step: int, steps: int, peak: float, warmup: float, decay: str = "cosine") -> float:
    """Return the learning rate of a step.

    Args:
        step: number of the step, from 0.
        steps: steps of the whole training.
        peak: the highest rate.
        warmup: share of the steps in which the rate rises along a line; from 1 on, their number.
        decay: how the rate falls afterwards. "cosine" and "linear" go to zero at the last step (the paper
            uses both). "rsqrt" falls as the inverse root of the step, which needs no end (arXiv:2106.04560);
            in the last COOLDOWN of the steps it goes to zero along a line. "constant" stays at the peak.
    """
    rising = max(1, round(warmup * steps if warmup < 1 else warmup))
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)  # 0 to 1
    if decay == CONSTANT:
        return peak
    if decay == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if decay == "linear":
        return peak * (1 - done)
    return peak * math.sqrt(rising / (step + 1)) * min(1.0, (steps - step) / max(1.0, COOLDOWN * steps))
