"""Hold what a training is asked to do, and build what it begins with: weights and the objective's module."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS
from wordsworth.pipeline.sources.tar_keys import DEFAULT_KEY_RULE
from wordsworth.pipeline.storage.filesystem import StorageOptions
from wordsworth.pipeline.training.augment import Augmentation
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.head import Head

# Torch takes seconds to import, and a command has much to do before it needs it.
if TYPE_CHECKING:
    from torch import nn

    from wordsworth.vit_model.checkpoint import Checkpoint
    from wordsworth.vit_model.model import VisionTransformer

OBJECTIVES = ("supervised", "masked-patch", "mae")
MAE_SHARE = 0.75  # share of the patches that a masked autoencoder does not see

# Metadata of a field that may change when a training is continued; settings.py checks the others.
FREE_ON_RESUME = {"resume": False}
# Metadata of a field that earlier versions did not have: the settings have it only if it is not the default.
ADDED = {"added": True}


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Hold the settings of what is done to a batch on the device.

    Attributes:
        mixup: alpha of mixup's Beta distribution (arXiv:1710.09412), 0 for none.
        cutmix: alpha of CutMix's Beta distribution (arXiv:1905.04899), 0 for none. With both, one is drawn
            per batch.
        share: share of the batches that are mixed.
        erase: share of the images of which a rectangle becomes noise (arXiv:1708.04896).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    share: float = 1.0
    erase: float = 0.0

    @property
    def mixes(self) -> bool:
        """Tell whether any batch is mixed."""
        return bool((self.mixup or self.cutmix) and self.share)


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Hold what the user asked for.

    Attributes:
        sources: what the model learns from.
        output: the model folder.
        config: the architecture; num_classes of 0 stands for as many classes as the data has.
        preprocessing: how images become pixels.
        epochs: how often every sample is drawn.
        val: sources that the model is tried on after every epoch.
        probe: sources with classes that an objective without classes is probed with.
        probe_every: epochs from one probe to the next.
        target: where a class stands, as in `class_target.Target.where`.
        batch_size: images in one step, over all workers.
        is_batch_asked: whether the user asked for that size; a default one becomes smaller where it must.
        accumulate: parts in which a worker computes its share of a batch.
        lr: peak of the learning rate.
        weight_decay: weight decay of matrices; nothing else decays.
        warmup: share of the steps in which the learning rate rises; from 1 on, their number.
        decay: how the learning rate falls afterwards: one of `learning_rate.DECAYS`, or "constant" for not at
            all.
        label_smoothing: share of a target that is spread over all classes.
        loss: "softmax" or "sigmoid".
        class_weights: weights of the classes in the loss: "none", "balanced", or a number by the name of the
            class.
        balance: draw samples so that all classes come equally often in an epoch.
        clip: largest norm of a gradient; 0 for any.
        objective: one of OBJECTIVES; "supervised" alone needs classes.
        decoder: width, depth and heads of MAE's decoder, which no model folder keeps.
        start: the model that is fine-tuned, of the architecture `config` but for its head; None for random
            weights.
        optimizer: "adamw" or "sgd".
        beta2: of AdamW.
        layer_decay: learning rate of a layer as a multiple of the rate of the layer above.
        ema: decay of the average of the weights, 0 for none. If set, the average is validated and saved.
        dropout: share of the activations that are left out in training.
        drop_path: share of the last block's branches that are left out; it grows over the depth.
        augmentation: random changes of single images.
        mixing: random changes of batches.
        max_error_rate: share of an epoch's images that may be impossible to decode.
        keep_best: write the model of the epoch that was best on `val`, not of the last one.
        patience: epochs without a better one on `val` after which a training ends; 0 for none.
        unfreeze_last: train the head, the final norm and so many last blocks; with 0 the head alone; None
            trains all.
        seed: decides all that is random.
        workers: number of Ray Train workers, or the least and the most.
        precision: "auto", "fp32" or "bf16".
        device: "auto", "cpu" or "cuda".
        sharding: "ddp", "fsdp", or "auto" by the model's size.
        activation_checkpointing: compute activations again in the backward pass, to save memory.
        compile: compile every block.
        save_every: steps between checkpoints within an epoch; 0 for none.
        keep: number of checkpoints that stay.
        labels: names of the classes; None where the data has numbers.
        cluster: which Ray the training works on.
        storage_options: keyword arguments of the file system.
        format: kind of the sources; None to find out.
        image_keys: extensions of the images in a tar.
        image_column: column of a table that holds the images; None to find out.
        key: column of a table that holds the keys; None to find out.
        include_hidden: take the names too that are skipped.
        follow_links: "inside", or "outside" to follow links to folders out of the sources.
        key_rule: how the names of a tar's members become keys.
    """

    sources: tuple[str, ...] = field(metadata=FREE_ON_RESUME)
    output: str = field(metadata=FREE_ON_RESUME)
    config: ViTConfig
    preprocessing: Preprocessing
    epochs: int
    val: tuple[str, ...] = field(default=(), metadata=FREE_ON_RESUME)
    probe: tuple[str, ...] = field(default=(), metadata=FREE_ON_RESUME)
    probe_every: int = field(default=1, metadata=FREE_ON_RESUME)
    target: str = "cls"
    batch_size: int = 256
    is_batch_asked: bool = field(default=True, metadata=FREE_ON_RESUME)
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    decay: str = "cosine"
    label_smoothing: float = 0.0
    loss: str = "softmax"
    class_weights: str | dict[str, float] = field(default="none", metadata=ADDED)
    balance: bool = field(default=False, metadata=ADDED)
    clip: float = 1.0
    objective: str = "supervised"
    decoder: tuple[int, int, int] = (512, 8, 16)
    start: "Checkpoint | None" = field(default=None, metadata=FREE_ON_RESUME)
    optimizer: str = "adamw"
    beta2: float = 0.999
    layer_decay: float = 1.0
    ema: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixing: Mixing = field(default_factory=Mixing)
    max_error_rate: float = field(default=0.05, metadata=FREE_ON_RESUME)
    keep_best: bool = field(default=False, metadata=ADDED)
    patience: int = field(default=0, metadata=ADDED)
    unfreeze_last: int | None = field(default=None, metadata=ADDED)
    seed: int = 0
    workers: int | tuple[int, int] = field(default=1, metadata=FREE_ON_RESUME)
    precision: str = "auto"
    device: str = field(default="auto", metadata=FREE_ON_RESUME)
    sharding: str = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    save_every: int = field(default=1000, metadata=FREE_ON_RESUME)
    keep: int = field(default=2, metadata=FREE_ON_RESUME)
    labels: tuple[str, ...] | None = None
    cluster: ClusterRequest = field(default_factory=ClusterRequest, metadata=FREE_ON_RESUME)
    storage_options: StorageOptions = field(default_factory=dict, metadata=FREE_ON_RESUME)
    format: str | None = None
    image_keys: tuple[str, ...] = IMAGE_KEYS
    image_column: str | None = None
    key: str | None = None
    include_hidden: bool = field(default=False, metadata=FREE_ON_RESUME)  # the data's digest tells
    follow_links: str = field(default="inside", metadata=FREE_ON_RESUME)  # as does this one's effect
    key_rule: str = field(default=DEFAULT_KEY_RULE, metadata=FREE_ON_RESUME)  # the data's digest tells

    @property
    def classified(self) -> bool:
        """Tell whether samples need a class."""
        return self.objective == "supervised"

    @property
    def head(self) -> Head:
        """Return what the outputs of the trained head are: with a sigmoid loss, each class for itself."""
        return Head(kind="sigmoid" if self.classified and self.loss == "sigmoid" else "softmax")


def initial_checkpoint(request: TrainRequest) -> "Checkpoint":
    """Return the weights that a training begins with.

    These are random weights of the seed; or the model to fine-tune, at the size of the request's images,
    under a new head of zeros.
    """
    if request.start is None:
        return _from_scratch(request)
    return request.start.resized(request.config.image_size).with_head(request.config.num_classes)


def _from_scratch(request: TrainRequest) -> "Checkpoint":
    """Return random weights as in the original JAX code, but for the head and the patch embedding.

    A head of zeros gives the encoder no gradient at first, and the JAX code's patches drown the positions.
    Both begin as timm's, which learns in fewer steps (docs/training.md). With a sigmoid loss the head's bias
    makes every class as rare as one of them is (big_vision's init_head_bias). Objectives without classes have
    the weights of MAE's code.
    """
    import torch

    from wordsworth.vit_model.checkpoint import random_checkpoint

    start = random_checkpoint(request.config, request.preprocessing, request.seed)
    if not request.classified:
        return _published(start, request.seed)
    if not start.config.num_classes:
        return start
    state = dict(start.state)
    generator = torch.Generator().manual_seed(request.seed)
    state["head.weight"] = torch.empty_like(state["head.weight"]).normal_(std=0.02, generator=generator)
    if start.config.resnet is None:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"] / math.sqrt(3)
    if request.loss == "sigmoid" and "head.bias" in state:
        state["head.bias"] = torch.full_like(state["head.bias"], -math.log(start.config.num_classes))
    return replace(start, state=state)


def _published(start: "Checkpoint", seed: int) -> "Checkpoint":
    """Return a checkpoint with new random weights, as the MAE code draws them."""
    import torch

    from wordsworth.vit_model.masked_autoencoder import init_as_published

    encoder = start.model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        init_as_published(encoder)
    return replace(start, state=encoder.state_dict())


def build_objective(request: TrainRequest) -> "nn.Module":
    """Return the objective's module around a model.

    The seed decides what is random, so that all workers get the same module.

    Raises:
        ModelError: the objective cannot train this architecture.
        UserError: more blocks are to be trained than there are.
    """
    import torch

    start = request.start
    if start is None or start.config != request.config:
        start = initial_checkpoint(request)  # a worker's request has the initial checkpoint already
    config = replace(start.config, dropout=request.dropout, drop_path=request.drop_path)
    encoder = replace(start, config=config).model().train().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        objective = _objective(encoder, request)
    if request.unfreeze_last is not None:
        freeze(encoder, request.unfreeze_last)
    return objective


def _objective(encoder: "VisionTransformer", request: TrainRequest) -> "nn.Module":
    from wordsworth.vit_model.masked_autoencoder import MaskedAutoencoder
    from wordsworth.vit_model.objectives import MaskedPatchPrediction, Supervised

    if request.objective == "mae":
        width, depth, heads = request.decoder
        return MaskedAutoencoder(encoder, share=MAE_SHARE, width=width, depth=depth, heads=heads)
    if request.objective == "masked-patch":
        return MaskedPatchPrediction(encoder)
    return Supervised(encoder, request.loss, request.label_smoothing)


def freeze(encoder: "VisionTransformer", unfreeze_last: int) -> None:
    """Let no gradient reach the parameters that stay as they are.

    Args:
        encoder: a model with a head.
        unfreeze_last: number of the last blocks that are trained, with all behind them; with 0 the head is
            trained alone.

    Raises:
        UserError: the model has fewer blocks.
    """
    depth = len(encoder.blocks)
    if unfreeze_last > depth:
        raise UserError(f"--unfreeze-last {unfreeze_last}: the model has {depth} blocks")
    trained: list[nn.Module] = [encoder.head]
    if unfreeze_last:
        parts = (*encoder.blocks[depth - unfreeze_last :], encoder.norm, encoder.attn_pool, encoder.fc_norm)
        trained += [part for part in parts if part is not None]
    encoder.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
