"""What a model is (`ViTConfig`) and what its pixels must look like (`Preprocessing`). Imports no torch."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

GELUS = ("exact", "tanh", "quick")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
EXIF = ("apply", "ignore")

# name: (width, depth, mlp_dim, heads). Ti and S: DeiT and AugReg; B, L and H: Table 1 of the paper.
VARIANTS = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
}
PATCH_SIZES = (8, 14, 16, 32)


class ModelError(ValueError):
    """A model, its weights or its config cannot be used. The message is one line: what, where, what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, whatever its case."""
    by_lower = {k.lower(): k for k in known}
    return by_lower[difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)[0]]


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f"{what} is {value!r}; it must be one of {', '.join(known)}")


def _known_fields(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(cls)]
    for key in values:
        if key not in names:
            raise ModelError(f"{cls.__name__} has no field {key!r}; nearest: {nearest(key, names)!r}")
    return values


@dataclass(frozen=True)
class ViTConfig:
    """The numbers that fix a plain ViT, and the three switches that decide parity with foreign weights.

    The switches (`gelu`, `norm_eps`, `class_position`) come from the checkpoint, never from a guess: GELU erf against
    tanh alone moves the logits by 1e-3.

    Raises:
        ModelError: the numbers do not fit together.
    """

    image_size: tuple[int, int] = (224, 224)  # (height, width) in pixels; an int means a square
    patch_size: int = 16
    width: int = 768  # D
    depth: int = 12  # L
    heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000  # 0: no head, the model gives embeddings only
    gelu: str = "exact"  # "exact" (timm, DeiT) | "tanh" (Google's JAX code) | "quick" (OpenAI CLIP)
    norm_eps: float = 1e-6
    class_position: bool = True  # the position table has a row for [class]; else N rows, added before it is prepended

    def __post_init__(self) -> None:
        size = self.image_size
        object.__setattr__(self, "image_size", (size, size) if isinstance(size, int) else tuple(size))
        self._check_numbers()
        _check_choice("gelu", self.gelu, GELUS)
        if any(side % self.patch_size for side in self.image_size):
            raise ModelError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ModelError(f"width {self.width} is not a multiple of heads {self.heads}")

    def _check_numbers(self) -> None:
        if len(self.image_size) != 2:
            raise ModelError(f"image_size is {self.image_size}; it must be (height, width)")
        positive = {n: getattr(self, n) for n in ("patch_size", "width", "depth", "heads", "mlp_dim")}
        positive |= {"image height": self.image_size[0], "image width": self.image_size[1]}
        for name, value in positive.items():
            if type(value) is not int or value < 1:
                raise ModelError(f"{name} is {value!r}; it must be a positive whole number")
        if type(self.num_classes) is not int or self.num_classes < 0:
            raise ModelError(f"num_classes is {self.num_classes!r}; it must be 0 (no head) or a positive whole number")
        if not self.norm_eps > 0:
            raise ModelError(f"norm_eps is {self.norm_eps!r}; it must be positive")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """N = HW / P^2."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_dim(self) -> int:
        """P^2 C, the numbers in one RGB patch."""
        return self.patch_size * self.patch_size * 3

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return cls(**_known_fields(cls, values))


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the pixels a model was trained on; it travels with the weights.

    The shorter side is resized to image_size / crop_pct, the centre is cut out, and x becomes (x / 255 - mean) / std.

    Raises:
        ModelError: a value that cannot be used.
    """

    interpolation: str = "bicubic"
    crop_pct: float = 0.9
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of pixels in [0, 1], RGB
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    exif: str = "apply"  # turn the image as its EXIF orientation says, or "ignore" it (as timm does)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
            if len(getattr(self, name)) != 3 or not all(map(math.isfinite, getattr(self, name))):
                raise ModelError(f"{name} is {getattr(self, name)}; it must be three numbers, for R, G and B")
        if min(self.std) <= 0:
            raise ModelError(f"std is {self.std}; every number must be positive")
        if not 0 < self.crop_pct <= 1:
            raise ModelError(f"crop_pct is {self.crop_pct!r}; it must be above 0 and at most 1")
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        _check_choice("exif", self.exif, EXIF)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return cls(**_known_fields(cls, values))


def variant(name: str, image_size: int | tuple[int, int] = 224, num_classes: int = 1000) -> ViTConfig:
    """The config of a named variant such as "S/16": its size, a slash, the side of a patch in pixels.

    Raises:
        ModelError: an unknown name, or an image size that the patch size does not divide.
    """
    known = {f"{size}/{patch}": (size, patch) for size in VARIANTS for patch in PATCH_SIZES}
    if name not in known:
        raise ModelError(
            f"unknown variant {name!r}; did you mean {nearest(name, known)!r}? "
            f"Known: {', '.join(VARIANTS)} with a patch size of {', '.join(map(str, PATCH_SIZES))}, such as 'S/16'"
        )
    size, patch_size = known[name]
    width, depth, mlp_dim, heads = VARIANTS[size]
    return ViTConfig(image_size, patch_size, width, depth, heads, mlp_dim, num_classes)


def variant_name(config: ViTConfig) -> str | None:
    """The name whose `variant` has this size and patch size, or None for a model of one's own size."""
    for name, size in VARIANTS.items():
        if size == (config.width, config.depth, config.mlp_dim, config.heads) and config.patch_size in PATCH_SIZES:
            return f"{name}/{config.patch_size}"
    return None


def num_params(config: ViTConfig) -> int:
    """How many parameters the model has."""
    d, m = config.width, config.mlp_dim
    embedding = config.patch_dim * d + d + d + (config.num_patches + config.class_position) * d
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * m + m) + (m * d + d)
    head = (d + 1) * config.num_classes
    return embedding + config.depth * block + 2 * d + head


def macs(config: ViTConfig) -> int:
    """Multiply-accumulates of one forward pass of one image, counting the matrix products only."""
    d, tokens = config.width, config.num_patches + 1
    embedding = config.num_patches * config.patch_dim * d
    block = tokens * (4 * d * d + 2 * d * config.mlp_dim) + 2 * tokens * tokens * d
    return embedding + config.depth * block + d * config.num_classes
