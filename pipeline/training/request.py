"""What a training is asked to do: the request, the objective's module, the optimiser's groups, the learning rate."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS
from wordsworth.pipeline.training.augment import Augmentation
from wordsworth.vit_model.checkpoint import Checkpoint, random
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.objectives import MaskedAutoencoder, MaskedPatchPrediction, Supervised

EMBEDDING = re.compile(r"(^|\.)(patch_embed|cls_token|reg_token|pos_embed)")
NO_DECAY = {"cls_token", "pos_embed", "mask_token"}  # and every bias and LayerNorm
COOLDOWN = 0.1  # the last share of the steps, in which a rate that falls as an inverse root goes to zero
SHARDED = 1_000_000_000  # parameters from which on weights are sharded over the workers
OBJECTIVES: dict[str, Callable[[VisionTransformer, "TrainRequest"], nn.Module]] = {
    "supervised": lambda encoder, request: Supervised(encoder, request.loss, request.label_smoothing),
    "masked-patch": lambda encoder, request: MaskedPatchPrediction(encoder),
    "mae": lambda encoder, request: MaskedAutoencoder(encoder, 0.75, *request.decoder),
}
DECAYS = ("cosine", "linear", "rsqrt")


@dataclass(frozen=True)
class Mixing:
    """What is done to a batch on the device. mixup, cutmix: alpha of the Beta distribution (arXiv:1710.09412, arXiv:1905.04899), 0
    for none; of both, one is drawn for every batch. share: of the batches that are mixed. erase: the share of the pictures of which
    a rectangle becomes noise (arXiv:1708.04896)."""

    mixup: float = 0.0
    cutmix: float = 0.0
    share: float = 1.0
    erase: float = 0.0

    @property
    def mixes(self) -> bool:
        return bool((self.mixup or self.cutmix) and self.share)


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for.

    val: sources that the model is tried on after every epoch. target: where a class stands
    (pipeline/sources/class_target.py). epochs: so many
    times all samples. batch_size: images in one step over all workers, in `accumulate` parts. warmup: the share of the steps that
    the learning rate rises in, or from 1 on their number; then it falls as `decay` says. objective: one of OBJECTIVES, of which
    "supervised" alone needs classes. decoder: width, depth and heads of MAE's, which is thrown away. config.num_classes of 0: as
    many as the data has. start: the model that is fine-tuned, which then has `config` but for the head; None for random weights.
    layer_decay: the learning rate of a layer is so many times that of the layer above it. ema: the share of the averaged weights
    that a step keeps; 0 for none; with it they are what is tried and saved. workers: their number, or the least and the most.
    sharding: "ddp", "fsdp", or "auto" by the model's size. save_every: steps between checkpoints within an epoch; keep: how many.
    """

    sources: tuple[str, ...]
    output: str
    config: ViTConfig
    preprocessing: Preprocessing
    epochs: int
    val: tuple[str, ...] = ()
    target: str = "cls"
    batch_size: int = 256
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    decay: str = "cosine"
    label_smoothing: float = 0.0
    loss: str = "softmax"
    clip: float = 1.0
    objective: str = "supervised"
    decoder: tuple[int, int, int] = (512, 8, 16)
    start: Checkpoint | None = None
    optimizer: str = "adamw"
    beta2: float = 0.999
    layer_decay: float = 1.0
    ema: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixing: Mixing = field(default_factory=Mixing)
    max_error_rate: float = 0.05
    seed: int = 0
    workers: int | tuple[int, int] = 1
    precision: str = "auto"
    device: str = "auto"
    sharding: str = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    save_every: int = 1000
    keep: int = 2
    labels: tuple[str, ...] | None = None
    address: str | None = None
    storage_options: dict[str, Any] = field(default_factory=dict)
    format: str | None = None
    image_keys: tuple[str, ...] = IMAGE_KEYS
    image_column: str | None = None
    key: str | None = None

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def classified(self) -> bool:
        """Whether samples need a class."""
        return self.objective == "supervised"


def start_of(request: TrainRequest) -> Checkpoint:
    """Random weights of the seed, or those to fine-tune under a new head of zeros, at the size of pictures that is asked for."""
    if request.start is None:
        return _from_scratch(request)
    return request.start.resized(request.config.image_size).with_head(request.config.num_classes)


def _from_scratch(request: TrainRequest) -> Checkpoint:
    """The JAX code's weights but for two, where there are classes: its head of zeros gives the encoder no gradient at first, and
    its patches drown the positions. Both begin as timm's, which learns in fewer steps (docs/training.md). A sigmoid loss begins
    with all classes as rare as one of them is (big_vision's init_head_bias)."""
    start = random(request.config, request.preprocessing, request.seed)
    if not request.classified or not start.config.num_classes:
        return start
    state, chance = dict(start.state), torch.Generator().manual_seed(request.seed)
    state["head.weight"] = torch.empty_like(state["head.weight"]).normal_(std=0.02, generator=chance)
    if start.config.resnet is None:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"] / math.sqrt(3)
    if request.loss == "sigmoid" and "head.bias" in state:
        state["head.bias"] = torch.full_like(state["head.bias"], -math.log(start.config.num_classes))
    return replace(start, state=state)


def objective_of(request: TrainRequest) -> nn.Module:
    """A model and around it what it is trained for; what is random is the seed's, so the same on every worker.

    Raises ModelError for a config that the objective cannot train.
    """
    ready = (
        request.start is not None and request.start.config == request.config
    )  # a worker has what start_of made
    start = request.start if ready else start_of(request)
    config = replace(start.config, dropout=request.dropout, drop_path=request.drop_path)
    encoder = replace(start, config=config).model().train().requires_grad_(True)
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
        decays = parameter.ndim > 1 and not set(name.split(".")) & NO_DECAY
        scale = layer_decay ** (depth + 1 - _layer(name, depth))
        groups.setdefault((weight_decay if decays else 0.0, scale), []).append(parameter)
    return [
        {"params": some, "weight_decay": decay, "scale": scale}
        for (decay, scale), some in groups.items()
        if some
    ]


def _block(name: str) -> int:
    found = re.search(r"(?<!decoder\.)blocks\.(\d+)\.", name)
    return int(found[1]) if found and not EMBEDDING.search(name) else -1  # the hybrid's stem has blocks too


def _layer(name: str, depth: int) -> int:
    if (block := _block(name)) >= 0:
        return block + 1
    return 0 if EMBEDDING.search(name) else depth + 1


def optimizer_of(objective: nn.Module, request: TrainRequest) -> torch.optim.Optimizer:
    """AdamW; or SGD with a momentum of 0.9, which the paper fine-tunes with."""
    groups = parameter_groups(objective, request.weight_decay, request.layer_decay)
    if request.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=request.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=request.lr, betas=(0.9, request.beta2), fused=True)


def learning_rate(step: int, steps: int, peak: float, warmup: float, decay: str = "cosine") -> float:
    """Linear warm-up over a share of the steps, or from 1 on a number of them; then what `decay` says.

    "cosine" and "linear" go to zero at the last step (the paper uses both). "rsqrt" falls as the inverse root of the step, which
    needs no end (arXiv:2106.04560), but for the last COOLDOWN of the steps, where it goes to zero along a line.
    """
    rising = max(1, round(warmup * steps if warmup < 1 else warmup))
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)  # 0 to 1
    if decay == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if decay == "linear":
        return peak * (1 - done)
    return peak * math.sqrt(rising / (step + 1)) * min(1.0, (steps - step) / max(1.0, COOLDOWN * steps))
