"""Keep weights together with everything that a user of the weights needs: load, save, fingerprint.

A model folder holds `config.json`, `model.safetensors` and, where classes have names, `labels.txt`.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig, as_size
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.position import resampled
from wordsworth.vit_model.variants import variant_name
from wordsworth.vit_model.weights import State, check_weights, first_line, load_weights

# The modules behind the encoder: the first part of the names of their tensors.
HEAD_PARTS = ("head", "pre_logits")


@dataclass(kw_only=True)
class Checkpoint:
    """Hold a model at rest.

    Attributes:
        config: the model.
        preprocessing: from an image to the pixels that the model takes.
        labels: one name for each class, or None if the classes have no names.
        state: the tensors, float32, under timm's names.
        extra: JSON-able: the objective that the model was trained for, the origin of the weights.

    Raises:
        ModelError: the number of labels is not the number of classes, or a label is not one line.
    """

    config: ViTConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    state: State
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels is None:
            return
        self.labels = tuple(self.labels)
        classes = self.config.num_classes
        if len(self.labels) != classes:
            raise ModelError(f"{len(self.labels)} labels for {classes} classes; one label a class")
        for label in self.labels:
            if "\n" in label or "\r" in label:
                raise ModelError(f"label {label!r} is not one line")

    def model(self) -> VisionTransformer:
        """Return the model in eval mode. Its parameters are the tensors of `state`, not copies."""
        with torch.device("meta"):
            model = VisionTransformer(self.config)
        model.load_state_dict(self.state, assign=True)
        return model.eval()

    def fingerprint(self) -> str:
        """Return the sha256 of config, preprocessing and every tensor.

        Models with equal fingerprints give comparable predictions.
        """
        digest = hashlib.sha256(_json([self.config.to_dict(), self.preprocessing.to_dict()]).encode())
        for name, tensor in sorted(self.state.items()):
            digest.update(_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def resized(self, image_size: int | tuple[int, int]) -> Self:
        """Return the same model for another image size: only the position table is resampled."""
        config = replace(self.config, image_size=as_size(image_size))
        return replace(self, config=config, state=self.state | resampled(self.state, self.config, config))

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
        return replace(self, config=config, labels=None, state=state, extra=dict(self.extra))

    def to_bytes(self) -> bytes:
        """Return the model as one buffer: a safetensors file with all else in its metadata."""
        about = self.about() | {"labels": self.labels}
        return safetensors.torch.save(_savable(self.state), {"checkpoint": _json(about)})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the model that `to_bytes` wrote."""
        header_size = int.from_bytes(blob[:8], "little")  # safetensors: u64 length, JSON header, tensors
        about = json.loads(json.loads(blob[8 : 8 + header_size])["__metadata__"]["checkpoint"])
        config, preprocessing = _parse_about(about)
        return cls(
            config=config,
            preprocessing=preprocessing,
            labels=about["labels"],
            state=safetensors.torch.load(blob),
            extra=about["extra"],
        )

    def about(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "variant": variant_name(self.config),
            "config": self.config.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "extra": self.extra,
        }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _parse_about(about: dict[str, Any]) -> tuple[ViTConfig, Preprocessing]:
    return ViTConfig.from_dict(about["config"]), Preprocessing.from_dict(about["preprocessing"])


def _savable(state: State) -> State:
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


# ---- model folders ---------------------------------------------------------------------------------------


def save_folder(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a model folder.

    Every file appears whole or not at all. config.json is written last and vouches for the rest.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole_file(folder / "model.safetensors", safetensors.torch.save(_savable(checkpoint.state)))
    if checkpoint.labels is None:
        (folder / "labels.txt").unlink(missing_ok=True)  # the labels of an earlier model
    else:
        text = "".join(f"{label}\n" for label in checkpoint.labels)
        write_whole_file(folder / "labels.txt", text.encode())
    write_whole_file(folder / "config.json", json.dumps(checkpoint.about(), indent=2).encode() + b"\n")


def write_whole_file(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_folder(path: str | Path) -> Checkpoint:
    """Read a model folder.

    Raises:
        ModelError: a file is missing, broken, or does not fit the other files.
    """
    folder = Path(path)
    where = folder / "config.json"
    try:
        about = json.loads(where.read_text(encoding="utf-8"))
        config, preprocessing = _parse_about(about)
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ModelError) as error:
        raise ModelError(f"{where} cannot be used: {first_line(error)}") from error
    weights = folder / "model.safetensors"
    return Checkpoint(
        config=config,
        preprocessing=preprocessing,
        state=check_weights(config, load_weights(weights), weights),
        labels=_read_labels(folder / "labels.txt"),
        extra=about.get("extra", {}),
    )


def _read_labels(path: Path) -> tuple[str, ...] | None:
    if not path.exists():
        return None
    return tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))


def saved_checkpoint(path: str | Path) -> Checkpoint | None:
    """Read the model in a .safetensors file that `Checkpoint.to_bytes` made.

    Returns:
        None for a file of tensors alone.

    Raises:
        ModelError: the file is broken.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if "checkpoint" not in metadata:
            return None
        found = Checkpoint.from_bytes(path.read_bytes())
        return replace(found, state=check_weights(found.config, found.state, path))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read as a model: {first_line(error)}") from error
