"""What a training is asked to do: the request, the objective's module, the optimiser's groups, the learning rate."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.training_data import Augmentation
from vit_model.checkpoint import Checkpoint, random
from vit_model.config import Preprocessing, ViTConfig
from vit_model.model import VisionTransformer
from vit_model.objectives import MaskedAutoencoder, MaskedPatchPrediction, Supervised

EMBEDDING = re.compile(r"(^|\.)(patch_embed|cls_token|reg_token|pos_embed)")
NO_DECAY = ("cls_token", "pos_embed", "mask_token")  # and every bias and LayerNorm
OBJECTIVES: dict[str, Callable[[VisionTransformer, "TrainRequest"], nn.Module]] = {
    "supervised": lambda encoder, request: Supervised(encoder, label_smoothing=request.label_smoothing),
    "masked-patch": lambda encoder, request: MaskedPatchPrediction(encoder),
    "mae": lambda encoder, request: MaskedAutoencoder(encoder, 0.75, *request.decoder),
}


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for. batch_size: images in one step over all workers. warmup: share of the steps that the learning rate
    rises in, before it falls as a cosine. objective: one of OBJECTIVES, of which "supervised" alone needs classes. decoder: width,
    depth and heads of MAE's, which is thrown away. config.num_classes of 0: as many as the data has. start: the model that is
    fine-tuned, which then has `config` but for the head; None for random weights. layer_decay: the learning rate of a layer is so
    many times that of the layer above it."""

    sources: tuple[str, ...]
    output: str
    config: ViTConfig
    preprocessing: Preprocessing
    epochs: int
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    label_smoothing: float = 0.0
    clip: float = 1.0
    objective: str = "supervised"
    decoder: tuple[int, int, int] = (512, 8, 16)
    start: Checkpoint | None = None
    optimizer: str = "adamw"
    layer_decay: float = 1.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    workers: int = 1
    precision: str = "auto"
    device: str = "auto"
    labels: tuple[str, ...] | None = None
    address: str | None = None
    storage_options: dict[str, Any] = field(default_factory=dict)


def start_of(request: TrainRequest) -> Checkpoint:
    """Random weights of the seed, or those to fine-tune under a new head of zeros, at the size of pictures that is asked for."""
    if request.start is None:
        return random(request.config, request.preprocessing, request.seed)
    if request.start.config == request.config:
        return request.start
    return request.start.resized(request.config.image_size).with_head(request.config.num_classes)


def objective_of(request: TrainRequest) -> nn.Module:
    """A model and around it what it is trained for; what is random is the seed's, so the same on every worker.

    Raises ModelError for a config that the objective cannot train.
    """
    encoder = start_of(request).model().train().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        return OBJECTIVES[request.objective](encoder, request)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Matrices decay; biases, LayerNorms, the [class] and [mask] tokens and positions do not. A group's `scale` is what the
    learning rate is multiplied by: layer_decay once for every layer above, as in BEiT and MAE. The embedding is the lowest layer,
    the head and whatever is no block the highest."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(weight_decay, 1.0): [], (0.0, 1.0): []}
    depth = 1 + max((_block(name) for name, _ in model.named_parameters()), default=0)
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and name.rpartition(".")[2] not in NO_DECAY
        scale = layer_decay ** (depth + 1 - _layer(name, depth))
        groups.setdefault((weight_decay if decays else 0.0, scale), []).append(parameter)
    return [{"params": some, "weight_decay": decay, "scale": scale} for (decay, scale), some in groups.items() if some]


def _block(name: str) -> int:
    found = re.search(r"(?<!decoder\.)blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _layer(name: str, depth: int) -> int:
    if (block := _block(name)) >= 0:
        return block + 1
    return 0 if EMBEDDING.search(name) else depth + 1


def optimizer_of(objective: nn.Module, request: TrainRequest) -> torch.optim.Optimizer:
    """AdamW; or SGD with a momentum of 0.9, which the paper fine-tunes with."""
    groups = parameter_groups(objective, request.weight_decay, request.layer_decay)
    if request.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=request.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=request.lr, fused=True)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over `warmup` of the steps, then a cosine to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
