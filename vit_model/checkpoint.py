"""Weights with everything needed to use them: load, save, check, fingerprint.

A model folder holds `config.json`, `model.safetensors` and, where classes have names, `labels.txt`. Weights are tensors
only: nothing is ever unpickled as code.
"""

import hashlib
import json
import os
import pickle
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig, variant_name
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.position import resampled

State = dict[str, torch.Tensor]
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
# What reading bytes that are no tensors may raise.
UNREADABLE = (
    SafetensorError,
    BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)
HEAD = ("head", "pre_logits")  # what stands behind the encoder, by the first part of its names
SHOWN = 3  # keys named in a message; the rest are counted


@dataclass
class Checkpoint:
    """A model at rest.

    Raises:
        ModelError: the number of labels is not the number of classes, or a label is not one line.
    """

    config: ViTConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None  # one a class
    state: State  # float32, timm's names
    extra: dict[str, Any] = field(default_factory=dict)  # JSON-able: objective, provenance

    def __post_init__(self) -> None:
        if self.labels is None:
            return
        self.labels = tuple(self.labels)
        if len(self.labels) != self.config.num_classes:
            raise ModelError(
                f"{len(self.labels)} labels for {self.config.num_classes} classes; one label a class"
            )
        if broken := [label for label in self.labels if "\n" in label or "\r" in label]:
            raise ModelError(f"label {broken[0]!r} is not one line")

    def model(self) -> VisionTransformer:
        """The model in eval mode. Its parameters are the tensors of `state`, not copies of them."""
        with torch.device("meta"):
            model = VisionTransformer(self.config)
        model.load_state_dict(self.state, assign=True)
        return model.eval()

    def fingerprint(self) -> str:
        """sha256 over config, preprocessing and every tensor: equal fingerprints give comparable predictions."""
        digest = hashlib.sha256(_json([self.config.to_dict(), self.preprocessing.to_dict()]).encode())
        for name, tensor in sorted(self.state.items()):
            digest.update(_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def resized(self, image_size: int | tuple[int, int]) -> Self:
        """The same model for another image size: the position table is resampled, all else is kept."""
        config = replace(self.config, image_size=image_size)
        return replace(self, config=config, state=self.state | resampled(self.state, self.config, config))

    def with_head(self, classes: int, labels: Iterable[str] | None = None) -> Self:
        """With a new head of zeros for so many classes, as fine-tuning begins (section 3.2): a hidden layer before it goes too."""
        config = replace(
            self.config, num_classes=classes, representation_size=0, projection=False, head_bias=True
        )
        kept = {name: tensor for name, tensor in self.state.items() if name.partition(".")[0] not in HEAD}
        head = (
            {"head.weight": torch.zeros(classes, config.embedding_dim), "head.bias": torch.zeros(classes)}
            if classes
            else {}
        )
        return type(self)(
            config, self.preprocessing, tuple(labels) if labels else None, kept | head, dict(self.extra)
        )

    def to_bytes(self) -> bytes:
        """One safetensors file with everything else in its metadata, so that it travels as one buffer."""
        about = self._about() | {"labels": self.labels}
        return safetensors.torch.save(_savable(self.state), {"checkpoint": _json(about)})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """The inverse of `to_bytes`."""
        header_size = int.from_bytes(blob[:8], "little")  # safetensors: u64 length, JSON header, tensors
        about = json.loads(json.loads(blob[8 : 8 + header_size])["__metadata__"]["checkpoint"])
        return cls(*_config(about), about["labels"], safetensors.torch.load(blob), about["extra"])

    def _about(self) -> dict[str, Any]:
        return {
            "variant": variant_name(self.config),
            "config": self.config.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "extra": self.extra,
        }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _config(about: dict[str, Any]) -> tuple[ViTConfig, Preprocessing]:
    return ViTConfig.from_dict(about["config"]), Preprocessing.from_dict(about["preprocessing"])


def _savable(state: State) -> State:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def random(
    config: ViTConfig, preprocessing: Preprocessing, seed: int, labels: Iterable[str] | None = None
) -> Checkpoint:
    """An untrained model: the same seed gives the same weights, and torch's own random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = VisionTransformer(config).state_dict()
    return Checkpoint(config, preprocessing, labels and tuple(labels), state, {"random_seed": seed})


# ---- model folders -------------------------------------------------------------------------------------------------


def save_folder(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a model folder. Every file appears whole or not at all; config.json is last and so vouches for the rest."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "model.safetensors", safetensors.torch.save(_savable(checkpoint.state)))
    if checkpoint.labels is None:
        (folder / "labels.txt").unlink(missing_ok=True)  # of a model that was here before
    else:
        replace_file(folder / "labels.txt", "".join(f"{label}\n" for label in checkpoint.labels).encode())
    replace_file(folder / "config.json", json.dumps(checkpoint._about(), indent=2).encode() + b"\n")


def replace_file(path: Path, content: bytes) -> None:
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
        ModelError: a file is missing, broken, or does not fit the others.
    """
    folder = Path(path)
    where = folder / "config.json"
    try:
        about = json.loads(where.read_text(encoding="utf-8"))
        config, preprocessing = _config(about)
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ModelError) as error:
        raise ModelError(f"{where} cannot be used: {first_line(error)}") from error
    weights = folder / "model.safetensors"
    state = fit(config, load_weights(weights), weights)
    return Checkpoint(
        config, preprocessing, _read_labels(folder / "labels.txt"), state, about.get("extra", {})
    )


def _read_labels(path: Path) -> tuple[str, ...] | None:
    if not path.exists():
        return None
    return tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))


def first_line(error: Exception) -> str:
    """A foreign error as one line; ours are one line already."""
    return str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}".splitlines()[0]


# ---- single files of weights ---------------------------------------------------------------------------------------


def load_weights(path: str | Path) -> State:
    """Read a file of tensors: .safetensors, .npz without pickles, or .pth, .pt, .bin read by torch with `weights_only`.

    A {"model": ...} or {"state_dict": ...} around the tensors is taken off; names stay as they are.

    Raises:
        ModelError: no such file, another format, or a file that holds anything but named tensors.
    """
    path = Path(path)
    readers = {".safetensors": safetensors.torch.load_file, ".npz": _load_npz} | dict.fromkeys(
        (".pth", ".pt", ".bin"), _load_torch
    )
    if path.suffix not in readers:
        raise ModelError(f"{path}: weights must be a file that ends in {', '.join(readers)}")
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        state = readers[path.suffix](path)
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise ModelError(
                f"{path} is a TorchScript archive, which holds code; save its state_dict alone"
            ) from error
        raise ModelError(f"{path} cannot be read as weights: {first_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, or is not a torch file, and was not opened; save its state_dict alone "
            f"(safetensors is best)"
        ) from error
    except (
        SafetensorError,
        EOFError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        BadZipFile,
        zlib.error,
    ) as error:
        raise ModelError(f"{path} cannot be read as weights: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ModelError(f"{path} is not a dictionary of named tensors; save the model's state_dict alone")
    return state


def _load_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a TorchScript archive, which is refused
        state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            return state[wrapper]
    return state


def _load_npz(path: Path) -> State:
    """numpy's own refusal of pickled objects is a ValueError. JAX stores bfloat16 as two bytes without a type."""
    state = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            bfloat16 = array.dtype.kind == "V" and array.dtype.itemsize == 2
            state[name] = (
                torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
                if bfloat16
                else torch.from_numpy(array)
            )
    return state


def saved_checkpoint(path: str | Path) -> Checkpoint | None:
    """The model in a .safetensors file that `Checkpoint.to_bytes` made, or None if it is a file of tensors alone."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            ours = "checkpoint" in (file.metadata() or {})
        if not ours:
            return None
        found = Checkpoint.from_bytes(path.read_bytes())
        return replace(found, state=fit(found.config, found.state, path))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read as a model: {first_line(error)}") from error


def fit(config: ViTConfig, state: State, where: str | Path, called: Callable[[str], str] = str) -> State:
    """Check that the weights are exactly those of the config, and give them as float32.

    Args:
        where: what to call the weights in a message.
        called: what a missing tensor would be called in the file.

    Raises:
        ModelError: keys are missing, unexpected or of another shape; nothing is dropped silently.
    """
    with torch.device("meta"):
        model = VisionTransformer(config).state_dict()
    shared = [key for key in model if key in state]
    complaints = [
        _some("missing", [called(key) for key in model if key not in state]),
        _some("unexpected", [key for key in state if key not in model]),
        _some("misfitting", [m for key in shared if (m := _misfit(key, state[key], model[key]))]),
    ]
    if any(complaints):
        raise ModelError(f"{where} does not fit the model: {'; '.join(filter(None, complaints))}")
    return {key: state[key].float() for key in model}


def _misfit(key: str, found: torch.Tensor, wanted: torch.Tensor) -> str | None:
    if found.shape != wanted.shape:
        return f"{key} is {tuple(found.shape)} in the file, {tuple(wanted.shape)} in the model"
    return None if found.is_floating_point() else f"{key} is {found.dtype} in the file, not a float"


def _some(what: str, items: list[str]) -> str | None:
    if not items:
        return None
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:SHOWN])}{more})"


def timm_config(name: str) -> ViTConfig:
    """The config of a timm model, without its weights."""
    from wordsworth.vit_model.foreign import timm as timm_models

    return timm_models.config(name)


def from_timm(
    name: str, weights: str | Path | None = None, image_size: int | tuple[int, int] | None = None
) -> Checkpoint:
    """A plain ViT of timm's: see `wordsworth.vit_model.foreign.timm`, which is imported only when it is asked for."""
    from wordsworth.vit_model.foreign import timm as timm_models

    return timm_models.from_timm(name, weights, image_size)
