"""Let another library's module compute inside our predictor: its model at rest, and its way from pixels on.

Whatever our own Vision Transformer does not cover runs so: ConvNeXt, Swin, DINOv3, ... Images travel as uint8
patches like all others, and are put together again and normalised on the device.
"""

import copy
import importlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, check_choice, check_names
from wordsworth.vit_model.inference import PRECISIONS
from wordsworth.vit_model.json_file import check_numbers
from wordsworth.vit_model.model_folder import read_fields
from wordsworth.vit_model.patches import unpatchify
from wordsworth.vit_model.weight_bounds import check_model_size, count_numbers
from wordsworth.vit_model.weights import State, load_weights

# library: the file beside this one that builds its modules, by `build_tower(config)`.
BUILDERS = {"timm": "timm_module", "transformers": "transformers_module", "open_clip": "open_clip_module"}


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """Hold what another library needs to build its module, and what our predictor needs to know of it.

    Attributes:
        library: one of BUILDERS.
        architecture: the library's name of the model.
        arguments: JSON-able: what else the library's builder takes.
        image_size: (height, width) in pixels.
        num_classes: K. 0: the model has no head and gives embeddings only.
        embedding_dim: length of the vector that enters the final layer.
        linear_head: the final layer is linear and takes the embedding: it stays in float32.
        projection: the library's final layer leads into a space that images share with texts, as CLIP's does:
            the embedding is what it gives, and there are no classes.
        zero_shot: the head is ours: one linear layer over the embedding scaled to length 1, made of texts.

    Raises:
        ModelError: the library is not known.
    """

    library: str
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int]
    num_classes: int
    embedding_dim: int
    linear_head: bool = False
    projection: bool = False
    zero_shot: bool = False

    def __post_init__(self) -> None:
        check_choice("library", self.library, BUILDERS)
        object.__setattr__(self, "image_size", tuple(self.image_size))
        check_numbers({"image_size": list(self.image_size)} | self.arguments, self.architecture)
        # As config.json gives them back: a config that was saved and loaded is equal to the first one.
        object.__setattr__(self, "arguments", json.loads(json.dumps(self.arguments)))

    @property
    def patch_size(self) -> int:
        """Return P: the largest, so that a square image is one patch and needs no putting together."""
        return math.gcd(*self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Return the number of patches (down, across)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Return N = HW / P^2."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_dim(self) -> int:
        """Return P^2 C, the numbers in one RGB patch."""
        return self.patch_size * self.patch_size * 3

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModuleConfig":
        """Return the config that `to_dict` wrote."""
        return cls(**check_names(cls, values))


class Tower(Protocol):
    """Name what a library's file has to give: a module that maps images to logits and embeddings."""

    classifier: nn.Linear | None  # the final layer, if it is linear and takes the embedding

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Map normalised images (B, 3, H, W) to logits (B, K) or None, and embeddings (B, D)."""


class ModuleModel(nn.Module):
    """Map images to logits and embeddings by another library's module, and a head of ours for zero-shot."""

    def __init__(self, config: ModuleConfig):
        """Build the module. Its parameters hold nothing yet; its other buffers are as the library makes them.

        Raises:
            ModelError: the library is missing, or does not know the model.
        """
        super().__init__()
        self.config = config
        with UnfilledParameters():
            self.tower = _builder(config.library)(config)
        self.head = nn.Linear(config.embedding_dim, config.num_classes) if config.zero_shot else None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Map normalised images (B, 3, H, W) to logits (B, K) or None, and embeddings (B, D)."""
        logits, embedding = cast(Tower, self.tower)(images)
        if self.head is not None:
            embedding = nn.functional.normalize(embedding.float(), dim=-1)
            logits = self.head(embedding)
        return logits, embedding


class UnfilledParameters(TorchFunctionMode):
    """Leave out the random numbers that modules begin with: a large model takes seconds to draw them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")  # normal_, zero_, ...
        if in_place and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


def _builder(library: str) -> Callable[[ModuleConfig], nn.Module]:
    """Return the function that builds a library's tower. The library itself is imported when it is called."""
    module = importlib.import_module(f"wordsworth.vit_model.foreign.{BUILDERS[library]}")
    return module.build_tower


class ModuleOnPixels(nn.Module):
    """Run a module on pixels as they are decoded, in the precision of its tower."""

    def __init__(self, model: ModuleModel, preprocessing: Preprocessing, dtype: torch.dtype):
        super().__init__()
        self.model = model
        self.config = model.config
        self.dtype = dtype
        # (x / 255 - mean) / std = scale x + shift, for a whole row of pixels: loops over 3 numbers are slow.
        # No buffers: a cast would round the numbers.
        std = torch.tensor(preprocessing.std, dtype=torch.float64)  # (3,)
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)  # (3,)
        width = model.config.image_size[1]
        self.scale = (1 / (255 * std)).repeat(width).float()  # (W*3,)
        self.shift = (-mean / std).repeat(width).float()  # (W*3,)

    @torch.no_grad()
    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Map uint8 (B, N, P*P*3) to logits (B, K) or None, and embeddings (B, D); float32."""
        if self.scale.device != patches.device:  # once: a CUDA graph records no copy from the host
            self.scale = self.scale.to(patches.device)
            self.shift = self.shift.to(patches.device)
        pixels = unpatchify(patches, self.config.grid, self.config.patch_size)  # (B, H, W, 3)
        rows = torch.addcmul(self.shift, pixels.flatten(2).float(), self.scale)  # (B, H, W*3)
        images = rows.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)  # (B, 3, H, W), channels last
        logits, embedding = self.model(images.to(self.dtype))
        return None if logits is None else logits.float(), embedding.float()


@dataclass(kw_only=True)
class ModuleCheckpoint(BaseCheckpoint):
    """Hold a model at rest that another library's module computes. Its tensors have the library's names."""

    config: ModuleConfig

    def model(self) -> ModuleModel:
        """Return the model in eval mode, with the tensors of `state`.

        Raises:
            ModelError: the library is missing or builds another model, as another version of it may.
        """
        model = ModuleModel(self.config)
        try:
            model.load_state_dict(self.state, assign=True)
        except RuntimeError as error:
            complaint = " ".join(str(error).split())
            raise ModelError(
                f"the weights do not fit {self.config.architecture} as this version of {self.config.library} "
                f"builds it: {complaint[:200]}"
            ) from error
        return model.eval().requires_grad_(False)

    def for_inference(self, precision: str, device: str | torch.device) -> nn.Module:
        """Return the model on uint8 patches. A final linear layer stays in float32, as in our own model."""
        check_choice("precision", precision, PRECISIONS)
        model = self.model()
        dtype = PRECISIONS[precision]
        classifier = cast(Tower, model.tower).classifier
        exact = copy.deepcopy(classifier)
        model.tower.to(device, dtype, memory_format=torch.channels_last)
        if classifier is not None and exact is not None:
            classifier.float()
            classifier.load_state_dict(exact.state_dict())
        if model.head is not None:
            model.head.to(device)
        return ModuleOnPixels(model, self.preprocessing, dtype)

    def macs(self) -> int:
        """Return the multiply-accumulates of the forward pass of one image."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            model = ModuleModel(self.config).eval().requires_grad_(False)
            images = torch.zeros(1, 3, *self.config.image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images)
        return counter.get_total_flops() // 2

    @property
    def variant(self) -> str | None:
        """Return the library and its name of the architecture."""
        return f"{self.config.library}:{self.config.architecture}"

    @classmethod
    def _parse_config(cls, values: dict[str, Any]) -> ModuleConfig:
        return ModuleConfig.from_dict(values)


def is_module(about: dict[str, Any]) -> bool:
    """Return whether the content of a config.json of ours describes another library's module."""
    config = about.get("config")
    return isinstance(config, dict) and "library" in config


def load_module_folder(path: str | Path) -> ModuleCheckpoint:
    """Read a model folder of another library's module, as `model_folder.save_folder` wrote it.

    Raises:
        ModelError: a file is missing or broken.
    """
    folder = Path(path)
    fields = read_fields(folder, ModuleCheckpoint)
    weights = folder / "model.safetensors"
    state = load_weights(weights)
    with torch.device("meta"):
        check_model_size(ModuleModel(fields["config"]), count_numbers(state), weights)
    return ModuleCheckpoint(state=state, **fields)


def tower_state(state: State) -> State:
    """Return the tensors of a library's module under the names that a ModuleCheckpoint has for them."""
    return {f"tower.{name}": tensor for name, tensor in state.items()}
