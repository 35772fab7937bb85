"""What a model is (`ViTConfig`) and what its pixels must look like (`Preprocessing`). Imports no torch."""

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

GELUS = ("exact", "tanh", "quick")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
EXIF = ("apply", "ignore")
CROP_MODES = ("center", "squash")
POOLS = ("token", "avg", "map", "distilled")
POSITIONS = ("learned-1d", "none", "learned-2d", "sincos-2d", "sincos-2d-mae")
POSITIONS_AT = ("stem", "every-layer", "every-layer-shared")
POS_INTERP = ("timm", "google", "hf", "dinov2")

# name: (width, depth, mlp_dim, heads). Ti and S: DeiT and AugReg; B, L and H: Table 1 of the paper; M, So400m, g and G:
# "Scaling Vision Transformers" (arXiv 2106.04560) and its successors, as big_vision decodes them.
VARIANTS = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
    "So400m": (1152, 27, 4304, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}
PATCH_SIZES = (8, 14, 16, 32)

# name: (size, pixels a token, bottlenecks a stage). Despite its name R+Ti/16 has a token for 32 pixels: the root halves
# twice, then come patches of 8 x 8 (AugReg's released weights are of this form).
HYBRIDS = {
    "R+Ti/16": ("Ti", 32, ()),
    "R26+S/32": ("S", 32, (2, 2, 2, 2)),
    "R26+B/32": ("B", 32, (2, 2, 2, 2)),
    "R50+B/16": ("B", 16, (3, 4, 9)),
    "R50+L/32": ("L", 32, (3, 4, 6, 3)),
}


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
    """The numbers that fix a ViT, the three switches that decide parity with foreign weights, and optional parts.

    The switches (`gelu`, `norm_eps`, `class_position`) come from the checkpoint, never from a guess: GELU erf against
    tanh alone moves the logits by 1e-3. Every option is off unless it is asked for: the defaults are the paper's ViT.

    Raises:
        ModelError: the numbers do not fit together.
    """

    image_size: tuple[int, int] = (224, 224)  # (height, width) in pixels; an int means a square
    patch_size: int = 16  # pixels of the image along a side of what becomes one token
    width: int = 768  # D
    depth: int = 12  # L
    heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000  # 0: no head, the model gives embeddings only
    gelu: str = "exact"  # "exact" (timm, DeiT) | "tanh" (Google's JAX code) | "quick" (OpenAI CLIP)
    norm_eps: float = 1e-6
    class_position: bool = (
        True  # the learned 1-D table has a row for [class]; else N rows, of the patches only
    )

    resnet: tuple[int, ...] | None = None  # a hybrid's stem: bottlenecks a stage; () is the root alone
    class_token: bool = True
    registers: int = 0  # learned tokens after [class], without a position (arXiv 2309.16588)
    position: str = "learned-1d"  # one of POSITIONS; "sincos-2d-mae" is MAE's spacing of the frequencies
    position_at: str = "stem"  # where it is added (Table 8): "stem" | "every-layer" | "every-layer-shared"
    pos_interp: str = "timm"  # whose way of resampling the table the checkpoint expects: one of POS_INTERP
    norm_pre: bool = False  # a norm before the first block (CLIP)
    patch_bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False  # a norm of every head's queries and keys (ViT-22B)
    layer_scale: float = 0.0  # how the scale of every residual branch starts; 0: there is none
    # "token": [class] | "avg": mean of the patches | "map": a latent attends to the patches (SigLIP)
    # "distilled": [class] and the first register, DeiT's distillation token, side by side
    pool: str = "token"
    pool_norm: bool = False  # the final norm comes after pooling (timm's fc_norm), not before
    representation_size: int = 0  # hidden layer of the pre-training head, with tanh; 0: there is none
    projection: bool = (
        False  # that layer is a matrix and nothing else: CLIP's way into the space it shares with texts
    )
    head_bias: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; it grows linearly over the depth

    def __post_init__(self) -> None:
        size = self.image_size
        object.__setattr__(self, "image_size", (size, size) if isinstance(size, int) else tuple(size))
        if self.resnet is not None:
            object.__setattr__(self, "resnet", tuple(self.resnet))
        self._check_types()
        self._check_sizes()
        for name, known in CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        self._check_parts()

    def _check_types(self) -> None:
        if len(self.image_size) != 2:
            raise ModelError(f"image_size is {self.image_size}; it must be (height, width)")
        positive = {n: getattr(self, n) for n in ("patch_size", "width", "depth", "heads", "mlp_dim")}
        positive |= {"image height": self.image_size[0], "image width": self.image_size[1]}
        positive |= {f"resnet stage {i + 1}": layers for i, layers in enumerate(self.resnet or ())}
        for name, value in positive.items():
            if type(value) is not int or value < 1:
                raise ModelError(f"{name} is {value!r}; it must be a positive whole number")
        for name in ("num_classes", "registers", "representation_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise ModelError(
                    f"{name} is {getattr(self, name)!r}; it must be 0 (there is none) or a positive whole number"
                )
        for name in [f.name for f in fields(self) if f.type is bool]:
            if type(getattr(self, name)) is not bool:
                raise ModelError(f"{name} is {getattr(self, name)!r}; it must be true or false")

    def _check_sizes(self) -> None:
        if not self.norm_eps > 0:
            raise ModelError(f"norm_eps is {self.norm_eps!r}; it must be positive")
        if not self.layer_scale >= 0:
            raise ModelError(f"layer_scale is {self.layer_scale!r}; it must be 0 (there is none) or positive")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)!r}; it must be at least 0 and below 1")
        if any(side % self.patch_size for side in self.image_size):
            raise ModelError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.width % self.heads:
            raise ModelError(f"width {self.width} is not a multiple of heads {self.heads}")

    def _check_parts(self) -> None:
        if self.pool == "token" and not self.class_token:
            raise ModelError(
                "pool is 'token' but class_token is false; pool 'avg' or 'map' needs no class token"
            )
        if self.pool == "distilled" and not (
            self.class_token and self.registers and not self.representation_size
        ):
            raise ModelError(
                "pool 'distilled' needs a class token, a register and no hidden layer in the head"
            )
        if self.projection and not self.representation_size:
            raise ModelError("projection is true but representation_size, its width, is 0")
        divisor = {"learned-2d": 2, "sincos-2d": 4, "sincos-2d-mae": 4}.get(self.position, 1)
        if self.width % divisor:
            raise ModelError(
                f"width {self.width} is not a multiple of {divisor}, which position {self.position!r} needs"
            )
        if self.patch_size % self.stem_stride:
            raise ModelError(
                f"patch_size {self.patch_size} is not a multiple of {self.stem_stride}, the stride of the resnet"
            )

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

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: [class] and the registers."""
        return self.class_token + self.registers

    @property
    def class_rows(self) -> int:
        """Rows of the position table that belong to [class]: 1 or 0."""
        return int(self.position == "learned-1d" and self.class_token and self.class_position)

    @property
    def embedding_dim(self) -> int:
        """Length of the vector that enters the final linear layer."""
        return self.representation_size or self.width * (2 if self.pool == "distilled" else 1)

    @property
    def stem_stride(self) -> int:
        """Pixels a side of what the patch embedding sees as one: 1, or the downsampling of a hybrid's ResNet."""
        return 1 if self.resnet is None else 4 * 2 ** max(len(self.resnet) - 1, 0)

    @property
    def stem_channels(self) -> int:
        """Channels that the patch embedding sees: of RGB, or of a hybrid's last feature map."""
        return 3 if self.resnet is None else 128 * 2 ** len(self.resnet) if self.resnet else 64

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the size and the switches always, an option only where it is not the default.

        So a plain ViT is written, and fingerprinted, as it was before an option existed.
        """
        return {k: v for k, v in asdict(self).items() if k not in OPTIONS or v != OPTIONS[k]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return cls(**_known_fields(cls, values))


OPTIONS = {f.name: f.default for f in fields(ViTConfig)[10:]}
CHOICES = {
    "gelu": GELUS,
    "position": POSITIONS,
    "position_at": POSITIONS_AT,
    "pos_interp": POS_INTERP,
    "pool": POOLS,
}


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the pixels a model was trained on; it travels with the weights.

    The shorter side is resized to image_size / crop_pct (crop_mode "center"), or both sides are, whatever becomes of the
    aspect ratio ("squash"). The centre is cut out, and x becomes (x / 255 - mean) / std.

    Raises:
        ModelError: a value that cannot be used.
    """

    interpolation: str = "bicubic"
    crop_pct: float = 0.9
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of pixels in [0, 1], RGB
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    exif: str = "apply"  # turn the image as its EXIF orientation says, or "ignore" it (as timm does)
    crop_mode: str = "center"  # one of CROP_MODES

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
        _check_choice("crop_mode", self.crop_mode, CROP_MODES)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the mode only where it is not the default, so that a fingerprint from before there was one still holds."""
        return {k: v for k, v in asdict(self).items() if (k, v) != ("crop_mode", "center")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return cls(**_known_fields(cls, values))


def variant(name: str, image_size: int | tuple[int, int] = 224, num_classes: int = 1000) -> ViTConfig:
    """The config of a named variant such as "S/16": its size, a slash, the side of a patch in pixels; or of a hybrid.

    Raises:
        ModelError: an unknown name, or an image size that the patch size does not divide.
    """
    known = {f"{size}/{patch}": (size, patch, None) for size in VARIANTS for patch in PATCH_SIZES} | HYBRIDS
    if name not in known:
        raise ModelError(
            f"unknown variant {name!r}; did you mean {nearest(name, known)!r}? "
            f"Known: {', '.join(VARIANTS)} with a patch size of {', '.join(map(str, PATCH_SIZES))}, such as 'S/16', "
            f"and the hybrids {', '.join(HYBRIDS)}"
        )
    size, patch_size, resnet = known[name]
    width, depth, mlp_dim, heads = VARIANTS[size]
    return ViTConfig(image_size, patch_size, width, depth, heads, mlp_dim, num_classes, resnet=resnet)


def variant_name(config: ViTConfig) -> str | None:
    """The name whose `variant` has this size, patch size and stem, or None for a model of one's own size."""
    sizes = {numbers: name for name, numbers in VARIANTS.items()}
    size = sizes.get((config.width, config.depth, config.mlp_dim, config.heads))
    if config.resnet is not None:
        hybrids = {numbers: name for name, numbers in HYBRIDS.items()}
        return hybrids.get((size, config.patch_size, config.resnet))
    return f"{size}/{config.patch_size}" if size and config.patch_size in PATCH_SIZES else None


def num_params(config: ViTConfig) -> int:
    """How many parameters the model has."""
    d, m, d_h = config.width, config.mlp_dim, config.width // config.heads
    embedding = _patch_embed_inputs(config) * d + config.patch_bias * d
    embedding += sum(
        kernel * kernel * i * o + 2 * o for i, o, kernel, _ in _stem_convolutions(config)
    )  # and GroupNorm
    embedding += config.num_prefix * d + _position_numbers(config) + 2 * d * config.norm_pre
    attention = 4 * d * d + 3 * d * config.qkv_bias + d + 4 * d_h * config.qk_norm
    mlp = 2 * d * m + m + d
    block = 4 * d + attention + mlp + 2 * d * (config.layer_scale > 0)
    pool = (d + 4 * d * d + 4 * d + 2 * d + mlp) if config.pool == "map" else 0
    e, r = config.embedding_dim, config.representation_size
    hidden = (d + (not config.projection)) * r
    return (
        embedding + config.depth * block + 2 * d + pool + hidden + (e + config.head_bias) * config.num_classes
    )


def _position_numbers(config: ViTConfig) -> int:
    rows = {
        "learned-1d": (config.class_rows + config.num_patches) * config.width,
        "learned-2d": sum(config.grid) * config.width // 2,
    }
    return rows.get(config.position, 0) * (config.depth if config.position_at == "every-layer" else 1)


def macs(config: ViTConfig) -> int:
    """Multiply-accumulates of one forward pass of one image, counting the matrix products and convolutions only."""
    d, m, n, tokens = config.width, config.mlp_dim, config.num_patches, config.num_patches + config.num_prefix
    area = config.image_size[0] * config.image_size[1]
    embedding = n * _patch_embed_inputs(config) * d
    embedding += sum(
        kernel * kernel * i * o * area // stride**2 for i, o, kernel, stride in _stem_convolutions(config)
    )
    block = tokens * (4 * d * d + 2 * d * m) + 2 * tokens * tokens * d
    pool = (2 * n * d * d + 2 * d * d + 2 * n * d + 2 * d * m) if config.pool == "map" else 0
    head = d * config.representation_size + config.embedding_dim * config.num_classes
    return embedding + config.depth * block + pool + head


def _patch_embed_inputs(config: ViTConfig) -> int:
    return (config.patch_size // config.stem_stride) ** 2 * config.stem_channels


def _stem_convolutions(config: ViTConfig) -> Iterator[tuple[int, int, int, int]]:
    """(channels in, out, kernel, pixels of the image a side of one output) of every convolution of a hybrid's ResNet."""
    if config.resnet is None:
        return
    yield 3, 64, 7, 2
    channels, stride = 64, 4
    for stage, layers in enumerate(config.resnet):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        for layer in range(layers):
            out = 4 * 2**stage
            yield channels, inner, 1, stride
            yield inner, inner, 3, out
            yield inner, outer, 1, out
            if layer == 0:
                yield channels, outer, 1, out
            channels, stride = outer, out
