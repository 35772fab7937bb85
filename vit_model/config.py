"""Describe a model (`ViTConfig`) and the pixels that the model takes (`Preprocessing`). Imports no torch."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, Self

GELUS = ("exact", "tanh", "quick")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
EXIF = ("apply", "ignore")
CROP_MODES = ("center", "squash")
POOLS = ("token", "avg", "map", "distilled")
POSITIONS = ("learned-1d", "none", "learned-2d", "sincos-2d", "sincos-2d-mae")
POSITIONS_AT = ("stem", "every-layer", "every-layer-shared")
MAX_DEPTH = 256  # layers: each is built as a module of its own
MAX_SIDE = 8_192  # pixels along a side of the images that a model takes
MAX_WIDTH = 1 << 17  # numbers in a token, in a hidden layer
MAX_CLASSES = 1 << 24
MIN_CROP_PCT = 0.05  # below, an image is enlarged to many times what the model sees
POS_INTERP = ("timm", "google", "hf", "dinov2", "torchvision", "siglip2")


class ModelError(ValueError):
    """Say in one line why a model, its weights or its config cannot be used: what, where, what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most like `name`. Upper and lower case count as equal."""
    by_lower = {k.lower(): k for k in known}
    [best] = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)
    return by_lower[best]


def check_choice(what: str, value: str, known: Iterable[str]) -> None:
    """Check that a value is one of the known ones.

    Raises:
        ModelError: the value is not known.
    """
    known = tuple(known)
    if value not in known:
        raise ModelError(f"{what} is {value!r}; it must be one of {', '.join(known)}")


def as_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels. An int means a square."""
    if isinstance(image_size, int):
        return image_size, image_size
    return image_size


def check_names(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, once each key is known to be a field of the dataclass.

    Raises:
        ModelError: a key is not a field.
    """
    names = [f.name for f in fields(cls)]
    for key in values:
        if key not in names:
            raise ModelError(f"{cls.__name__} has no field {key!r}; nearest: {nearest(key, names)!r}")
    return values


class ModelConfig(Protocol):
    """Name what the labeler needs to know of any model: of our own, or of another library's module."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Return (height, width) in pixels."""

    @property
    def patch_size(self) -> int:
        """Return P, the pixels along a side of the patches in which an image travels."""

    @property
    def num_patches(self) -> int:
        """Return N = HW / P^2."""

    @property
    def patch_dim(self) -> int:
        """Return P^2 C, the numbers in one RGB patch."""

    @property
    def num_classes(self) -> int:
        """Return K; 0 for a model without a head."""

    @property
    def embedding_dim(self) -> int:
        """Return the length of the vector that enters the final linear layer."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Hold the numbers that fix a ViT, the switches that foreign weights depend on, and optional parts.

    The switches (`gelu`, `norm_eps`, `class_position`) come from the checkpoint, never from a guess: the
    exact GELU in place of the tanh GELU alone moves the logits by 1e-3. Every optional part is off by
    default: the defaults are the paper's ViT.

    Attributes:
        image_size: (height, width) in pixels. An int means a square.
        patch_size: pixels along a side of the part of the image that becomes one token.
        width: D, the numbers in one token.
        depth: L, the number of encoder layers.
        heads: attention heads of a layer.
        mlp_dim: width of the hidden layer of an MLP.
        num_classes: K. 0: the model has no head and gives embeddings only.
        gelu: one of GELUS: "exact" (timm, DeiT), "tanh" (Google's JAX code) or "quick" (OpenAI CLIP).
        norm_eps: the number that every LayerNorm adds to the variance.
        class_position: the learned 1-D table has a row for [class]. If false, it has N rows, for the patches
            only.
        resnet: stem of a hybrid, as the bottlenecks of each stage. () is the root alone; None is no hybrid.
        class_token: the model has a [class] token.
        registers: learned tokens behind [class], without a position (arXiv 2309.16588).
        position: one of POSITIONS. "sincos-2d-mae" spaces the frequencies as MAE does.
        position_at: one of POSITIONS_AT: where the positions are added (Table 8 of the paper).
        pos_interp: one of POS_INTERP: the code whose way of resampling the position table the weights expect.
        norm_pre: a norm stands before the first block (CLIP).
        patch_bias: the patch embedding has a bias.
        qkv_bias: the projections to queries, keys and values have a bias.
        qk_norm: queries and keys of every head are normalised (ViT-22B).
        layer_scale: start value of the scale of every residual branch. 0: there is no scale.
        pool: one of POOLS. "token": [class]. "avg": mean of the patches. "map": a latent attends to the
            patches (SigLIP). "distilled": [class] and the first register (DeiT's distillation token) side by
            side.
        pool_norm: the final norm stands after pooling (timm's fc_norm), not before.
        representation_size: width of the hidden layer of the pre-training head, with tanh. 0: there is none.
        projection: the hidden layer is a bare matrix: CLIP's way into the space that images share with texts.
        normalize: the embedding is scaled to length 1 before the head (zero-shot heads of CLIP and SigLIP).
        head_bias: the head has a bias.
        dropout: probability, in [0, 1).
        drop_path: probability for the last block, in [0, 1). It grows linearly over the depth.

    Raises:
        ModelError: the numbers do not fit together.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000
    gelu: str = "exact"
    norm_eps: float = 1e-6
    class_position: bool = True
    # From here on: optional parts, see OPTIONS.
    resnet: tuple[int, ...] | None = None
    class_token: bool = True
    registers: int = 0
    position: str = "learned-1d"
    position_at: str = "stem"
    pos_interp: str = "timm"
    norm_pre: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float = 0.0
    pool: str = "token"
    pool_norm: bool = False
    representation_size: int = 0
    projection: bool = False
    normalize: bool = False
    head_bias: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        size = self.image_size
        object.__setattr__(self, "image_size", (size, size) if isinstance(size, int) else tuple(size))
        if self.resnet is not None:
            object.__setattr__(self, "resnet", tuple(self.resnet))
        self._check_types()
        self._check_sizes()
        for name, known in CHOICES.items():
            check_choice(name, getattr(self, name), known)
        self._check_parts()

    def _check_types(self) -> None:
        if len(self.image_size) != 2:
            raise ModelError(f"image_size is {self.image_size}; it must be (height, width)")
        names = ("patch_size", "width", "depth", "heads", "mlp_dim")
        positive = {name: getattr(self, name) for name in names}
        positive["image height"], positive["image width"] = self.image_size
        for stage, layers in enumerate(self.resnet or (), start=1):
            positive[f"resnet stage {stage}"] = layers
        for name, value in positive.items():
            if type(value) is not int or value < 1:
                raise ModelError(f"{name} is {value!r}; it must be a positive whole number")
        for name in ("num_classes", "registers", "representation_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                wanted = "0 (there is none) or a positive whole number"
                raise ModelError(f"{name} is {value!r}; it must be {wanted}")
        for name in [f.name for f in fields(self) if f.type is bool]:
            if type(getattr(self, name)) is not bool:
                raise ModelError(f"{name} is {getattr(self, name)!r}; it must be true or false")

    def _check_sizes(self) -> None:
        if not self.norm_eps > 0:
            raise ModelError(f"norm_eps is {self.norm_eps!r}; it must be positive")
        if not self.layer_scale >= 0:
            raise ModelError(f"layer_scale is {self.layer_scale!r}; it must be 0 (there is none) or positive")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ModelError(f"{name} is {getattr(self, name)}; it must be at most {most:,}")
        if max(self.image_size) > MAX_SIDE or sum(self.resnet or ()) > MAX_DEPTH:
            raise ModelError(
                f"image_size is {self.image_size} and resnet {self.resnet}: no model is so large"
            )
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)!r}; it must be at least 0 and below 1")
        if any(side % self.patch_size for side in self.image_size):
            patch_size = f"patch_size {self.patch_size}"
            raise ModelError(f"image_size {self.image_size} is not a multiple of {patch_size}")
        if self.width % self.heads:
            raise ModelError(f"width {self.width} is not a multiple of heads {self.heads}")

    def _check_parts(self) -> None:
        if self.pool == "token" and not self.class_token:
            without = "pool 'avg' or 'map' needs no class token"
            raise ModelError(f"pool is 'token' but class_token is false; {without}")
        two_tokens = self.class_token and self.registers > 0
        if self.pool == "distilled" and (not two_tokens or self.representation_size):
            parts = "a class token, a register and no hidden layer in the head"
            raise ModelError(f"pool 'distilled' needs {parts}")
        if self.projection and not self.representation_size:
            raise ModelError("projection is true but representation_size, its width, is 0")
        divisor = {"learned-2d": 2, "sincos-2d": 4, "sincos-2d-mae": 4}.get(self.position, 1)
        if self.width % divisor:
            needed = f"{divisor}, which position {self.position!r} needs"
            raise ModelError(f"width {self.width} is not a multiple of {needed}")
        if self.patch_size % self.stem_stride:
            stride = f"{self.stem_stride}, the stride of the resnet"
            raise ModelError(f"patch_size {self.patch_size} is not a multiple of {stride}")

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

    @property
    def num_prefix(self) -> int:
        """Return the number of tokens before the patches: [class] and the registers."""
        return int(self.class_token) + self.registers

    @property
    def class_rows(self) -> int:
        """Return the number of rows of the position table that belong to [class]: 1 or 0."""
        return int(self.position == "learned-1d" and self.class_token and self.class_position)

    @property
    def embedding_dim(self) -> int:
        """Return the length of the vector that enters the final linear layer."""
        tokens = 2 if self.pool == "distilled" else 1
        return self.representation_size or tokens * self.width

    @property
    def stem_stride(self) -> int:
        """Return the pixels along a side of one input of the patch embedding: more than 1 in a hybrid."""
        if self.resnet is None:
            return 1
        return 4 * 2 ** max(len(self.resnet) - 1, 0)

    @property
    def stem_channels(self) -> int:
        """Return the channels that the patch embedding takes: of RGB, or of a hybrid's last feature map."""
        if self.resnet is None:
            return 3
        if not self.resnet:
            return 64
        return 128 * 2 ** len(self.resnet)

    def with_head(self, num_classes: int) -> Self:
        """Return the config with one linear layer as the whole head, as fine-tuning begins (B.1.1)."""
        return replace(
            self,
            num_classes=num_classes,
            representation_size=0,
            projection=False,
            normalize=False,
            head_bias=True,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict: sizes and switches always, an optional part only if it is not default.

        A plain ViT is thus written, and fingerprinted, as before the optional part was known.
        """
        return {name: v for name, v in asdict(self).items() if name not in OPTIONS or v != OPTIONS[name]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the config that `to_dict` wrote."""
        return cls(**check_names(cls, values))


# The optional parts of a model and their defaults: every field behind class_position.
_NAMES = [f.name for f in fields(ViTConfig)]
OPTIONS = {f.name: f.default for f in fields(ViTConfig)[_NAMES.index("class_position") + 1 :]}
MOST = {
    "patch_size": MAX_SIDE,
    "width": MAX_WIDTH,
    "depth": MAX_DEPTH,
    "mlp_dim": 8 * MAX_WIDTH,
    "num_classes": MAX_CLASSES,
    "registers": MAX_WIDTH,
    "representation_size": MAX_WIDTH,
}
CHOICES = {
    "gelu": GELUS,
    "position": POSITIONS,
    "position_at": POSITIONS_AT,
    "pos_interp": POS_INTERP,
    "pool": POOLS,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Hold the way from a decoded image to the pixels of a model. The preprocessing travels with the weights.

    The image is resized, the centre is cut out, and x becomes (x / 255 - mean) / std.

    Attributes:
        interpolation: one of INTERPOLATIONS.
        crop_pct: side of the image that the model takes, as a share of the side that the image is resized to;
            in (0, 1].
        mean: RGB, of pixels in [0, 1].
        std: RGB, of pixels in [0, 1].
        exif: "apply" turns the image as its EXIF orientation says, "ignore" does not (as timm).
        crop_mode: "center" resizes the shorter side to image_size / crop_pct and keeps the aspect ratio;
            "squash" resizes both sides.

    Raises:
        ModelError: a value that cannot be used.
    """

    interpolation: str = "bicubic"
    crop_pct: float = 0.9
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    exif: str = "apply"
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise ModelError(f"{name} is {values}; it must be three numbers, for R, G and B")
        if min(self.std) <= 0:
            raise ModelError(f"std is {self.std}; every number must be positive")
        if not MIN_CROP_PCT <= self.crop_pct <= 1:
            raise ModelError(
                f"crop_pct is {self.crop_pct!r}; it must be at least {MIN_CROP_PCT} and at most 1"
            )
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("exif", self.exif, EXIF)
        check_choice("crop_mode", self.crop_mode, CROP_MODES)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict, without the default crop mode: fingerprints are older than that field."""
        values = asdict(self)
        if self.crop_mode == "center":
            del values["crop_mode"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the preprocessing that `to_dict` wrote."""
        return cls(**check_names(cls, values))
