"""Keep weights together with everything that a user of the weights needs: config, labels, fingerprint."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import safetensors.torch
import torch
from torch import nn

from wordsworth.vit_model.config import (
    ModelConfig,
    ModelError,
    Preprocessing,
    ViTConfig,
    as_size,
    check_choice,
)
from wordsworth.vit_model.cost import macs
from wordsworth.vit_model.head import Head
from wordsworth.vit_model.inference import prepare
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.position import resampled
from wordsworth.vit_model.variants import variant_name
from wordsworth.vit_model.weights import State

# The modules behind the encoder: the first part of the names of their tensors.
HEAD_PARTS = ("head", "pre_logits")
POOLINGS = ("token", "avg")  # that have no tensors of their own
AVG_NORM = "avg-norm"  # "avg" with `pool_norm`, as a name of what to pool by
MAX_LABEL = 4096  # characters of the name of a class, which stands in every row


@dataclass(kw_only=True)
class BaseCheckpoint(ABC):
    """Hold a model at rest: all that the labeler needs to know of it.

    Attributes:
        config: the model.
        preprocessing: from an image to the pixels that the model takes.
        labels: one name for each class, or None if the classes have no names.
        head: how the logits become scores. A softmax over one class would give every image the score 1, so
            a head with one output is a sigmoid unless it is a value. Without classes it is the default.
        state: the tensors.
        extra: JSON-able: the objective that the model was trained for, the origin of the weights.

    Raises:
        ModelError: the number of labels is not the number of classes, or a label is not one line of text.
    """

    config: ModelConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    head: Head = field(default_factory=Head)
    state: State
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        classes = self.config.num_classes
        if not classes:
            self.head = Head()
        elif classes == 1 and self.head.kind == "softmax":
            self.head = replace(self.head, kind="sigmoid")
        if self.labels is None:
            return
        self.labels = tuple(self.labels)
        if len(self.labels) != classes:
            raise ModelError(f"{len(self.labels)} labels for {classes} classes; one label a class")
        for label in self.labels:
            _check_label(label)

    @abstractmethod
    def model(self) -> nn.Module:
        """Return the torch module in eval mode. Its parameters are the tensors of `state`, not copies."""

    @abstractmethod
    def for_inference(self, precision: str, device: str | torch.device) -> nn.Module:
        """Return a module that maps uint8 patches (B, N, P*P*3) to logits (B, K) and embeddings (B, D).

        Both are float32; the logits are None for a model without a head.

        Args:
            precision: "fp32" or "bf16".
            device: where the module computes.
        """

    @abstractmethod
    def macs(self) -> int:
        """Return the multiply-accumulates of the forward pass of one image."""

    @property
    @abstractmethod
    def variant(self) -> str | None:
        """Return the name of the architecture in messages, or None for sizes of one's own."""

    def fingerprint(self) -> str:
        """Return the sha256 of config, preprocessing, head and every tensor.

        Models with equal fingerprints give comparable predictions.
        """
        settings = [_as_before(self.config.to_dict()), self.preprocessing.to_dict()]
        if self.head.to_dict():
            settings.append(self.head.to_dict())
        digest = hashlib.sha256(_json(settings).encode())
        for name, tensor in sorted(self.state.items()):
            digest.update(_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """Return the model as one buffer: a safetensors file with all else in its metadata."""
        about = self.about() | {"labels": self.labels}
        return safetensors.torch.save(savable(self.state), {"checkpoint": _json(about)})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the model that `to_bytes` wrote."""
        about = about_bytes(blob)
        return cls(state=safetensors.torch.load(blob), labels=about["labels"], **cls.parse_about(about))

    def about(self) -> dict[str, Any]:
        """Return the content of config.json."""
        told = {
            "variant": self.variant,
            "config": self.config.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "extra": self.extra,
        }
        head = self.head.to_dict()
        return told | {"head": head} if head else told

    @classmethod
    def parse_about(cls, about: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that config.json holds, without labels and tensors."""
        return {
            "config": cls._parse_config(about["config"]),
            "preprocessing": Preprocessing.from_dict(about["preprocessing"]),
            "head": Head.from_dict(about.get("head", {})),
            "extra": about.get("extra", {}),
        }

    @classmethod
    @abstractmethod
    def _parse_config(cls, values: dict[str, Any]) -> ModelConfig:
        """Return the config that its `to_dict` wrote."""


def _check_label(label: str) -> None:
    """Raise ModelError for the name of a class that no row can have."""
    if "\n" in label or "\r" in label:
        raise ModelError(f"label {label[:MAX_LABEL]!r} is not one line")
    if len(label) > MAX_LABEL:
        raise ModelError(f"label {label[:50]!r}... has {len(label):,} characters; {MAX_LABEL:,} are the most")
    if not label.isascii():
        try:
            label.encode()
        except UnicodeEncodeError as error:
            raise ModelError(f"label {label!r} is no text: it has half of a surrogate pair") from error


@dataclass(kw_only=True)
class Checkpoint(BaseCheckpoint):
    """Hold a Vision Transformer of our own at rest. Its tensors are float32, under timm's names."""

    config: ViTConfig

    def model(self) -> VisionTransformer:
        """Return the model in eval mode. Its parameters are the tensors of `state`, not copies."""
        with torch.device("meta"):
            model = VisionTransformer(self.config)
        model.load_state_dict(self.state, assign=True)
        return model.eval()

    def for_inference(self, precision: str, device: str | torch.device) -> nn.Module:
        """Return the model on uint8 patches, as `inference.prepare` makes it."""
        return prepare(self.model(), self.preprocessing, precision, device)

    def macs(self) -> int:
        """Return the multiply-accumulates of the forward pass of one image."""
        return macs(self.config)

    @property
    def variant(self) -> str | None:
        """Return the name of the variant, such as "S/16", or None for sizes of one's own."""
        return variant_name(self.config)

    def resized(self, image_size: int | tuple[int, int]) -> Self:
        """Return the same model for another image size: only the position table is resampled."""
        config = replace(self.config, image_size=as_size(image_size))
        return replace(self, config=config, state=self.state | resampled(self.state, self.config, config))

    def pooled(self, pool: str) -> Self:
        """Return the model with another pooling and without a head: every tensor of the encoder stays.

        Args:
            pool: "token" for the [class] token, "avg" for the mean of the patches behind the final norm,
                "avg-norm" for their mean before it, so that the norm stands behind the mean, as MAE's paper
                fine-tunes (arXiv 2111.06377, A.1; timm's fc_norm).

        Raises:
            ModelError: the model pools by other parts than these, which have tensors.
        """
        check_choice("pool", self.config.pool, POOLINGS)
        check_choice("pool", pool, (*POOLINGS, AVG_NORM))
        without = self.with_head(0)
        norms = {True: "fc_norm.", False: "norm."}
        before, after = norms[self.config.pool_norm], norms[pool == AVG_NORM]
        config = replace(without.config, pool=pool.removesuffix("-norm"), pool_norm=pool == AVG_NORM)
        state = {
            after + name.removeprefix(before) if name.startswith(before) else name: tensor
            for name, tensor in without.state.items()
        }
        return replace(without, config=config, state=state)

    def with_head(self, num_classes: int) -> Self:
        """Return the model with a new head of zeros and without labels, as fine-tuning begins (section 3.2).

        A hidden layer in front of the old head goes too.
        """
        config = self.config.with_head(num_classes)
        state = dict(self.state)
        for name in self.state:
            if name.partition(".")[0] in HEAD_PARTS:
                del state[name]
        if num_classes:
            state["head.weight"] = torch.zeros(num_classes, config.embedding_dim)
            state["head.bias"] = torch.zeros(num_classes)
        return replace(self, config=config, labels=None, head=Head(), state=state, extra=dict(self.extra))

    @classmethod
    def _parse_config(cls, values: dict[str, Any]) -> ViTConfig:
        return ViTConfig.from_dict(values)


def own_model(checkpoint: BaseCheckpoint, what: str) -> Checkpoint:
    """Return a model of our own, for what no other can.

    Args:
        checkpoint: any model.
        what: the subject of the message, such as "wordsworth finetune".

    Raises:
        ModelError: another library's module computes the model.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    raise ModelError(
        f"{what} works with our own Vision Transformer alone, and {checkpoint.variant} is another library's "
        "module: label, embed, evaluate and plan take it"
    )


def about_bytes(blob: bytes) -> dict[str, Any]:
    """Return what a buffer of `BaseCheckpoint.to_bytes` says about its model, without reading tensors."""
    header_size = int.from_bytes(blob[:8], "little")  # safetensors: u64 length, JSON header, tensors
    return json.loads(json.loads(blob[8 : 8 + header_size])["__metadata__"]["checkpoint"])


def _as_before(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as an earlier version had it, so that its runs go on.

    That version took torchvision's way with positions for "hf". No prediction depends on the way.
    """
    if config.get("pos_interp") == "torchvision":
        return config | {"pos_interp": "hf"}
    return config


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def savable(state: State) -> State:
    """Return the tensors as safetensors can write them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def random_checkpoint(
    config: ViTConfig, preprocessing: Preprocessing, seed: int, labels: Iterable[str] | None = None
) -> Checkpoint:
    """Return an untrained model. The same seed gives the same weights; torch's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = VisionTransformer(config).state_dict()
    return Checkpoint(
        config=config,
        preprocessing=preprocessing,
        labels=None if labels is None else tuple(labels),
        state=state,
        extra={"random_seed": seed},
    )
