"""Make files as Google's code leaves them, by hand from the names in that code. Every array is random, and
the code under test makes none of them."""

import numpy as np

D, HEADS, MLP, P, GRID, DEPTH = 32, 4, 64, 8, 4, 2


class Arrays:
    """Hold random float32 arrays by name."""

    def __init__(self, seed: int = 0):
        self.random = np.random.default_rng(seed)
        self.named: dict[str, np.ndarray] = {}

    def add(self, name: str, *shape: int, around: float = 0.0, scale: float = 0.2) -> None:
        self.named[name] = (around + scale * self.random.standard_normal(shape)).astype(np.float32)

    def dense(self, name: str, inputs: int, outputs: int) -> None:
        self.add(f"{name}/kernel", inputs, outputs)
        self.add(f"{name}/bias", outputs)

    def norm(self, name: str, width: int = D) -> None:
        self.add(f"{name}/scale", width, around=1.0)
        self.add(f"{name}/bias", width)

    def attention(self, name: str) -> None:
        for part in ("query", "key", "value"):
            self.add(f"{name}/{part}/kernel", D, HEADS, D // HEADS)
            self.add(f"{name}/{part}/bias", HEADS, D // HEADS)
        self.add(f"{name}/out/kernel", HEADS, D // HEADS, D)
        self.add(f"{name}/out/bias", D)

    def mlp(self, name: str) -> None:
        self.dense(f"{name}/Dense_0", D, MLP)
        self.dense(f"{name}/Dense_1", MLP, D)

    def block(self, name: str, attention: int, norm2: int, mlp: int) -> None:
        self.norm(f"{name}/LayerNorm_0")
        self.attention(f"{name}/MultiHeadDotProductAttention_{attention}")
        self.norm(f"{name}/LayerNorm_{norm2}")
        self.mlp(f"{name}/MlpBlock_{mlp}")


def original(
    classes: int = 5, hidden: int = 0, patch: int = P, channels: int = 3, grid: int = GRID
) -> dict[str, np.ndarray]:
    """Return vit_jax's arrays: [class] has a position, and the parts of a block are counted together."""
    arrays = Arrays()
    arrays.add("embedding/kernel", patch, patch, channels, D)
    arrays.add("embedding/bias", D)
    arrays.add("cls", 1, 1, D)
    arrays.add("Transformer/posembed_input/pos_embedding", 1, 1 + grid * grid, D)
    for i in range(DEPTH):
        arrays.block(f"Transformer/encoderblock_{i}", attention=1, norm2=2, mlp=3)
    arrays.norm("Transformer/encoder_norm")
    if hidden:
        arrays.dense("pre_logits", D, hidden)
    arrays.dense("head", hidden or D, classes)
    return arrays.named


def big_vision(pool: str, classes: int = 5) -> dict[str, np.ndarray]:
    """Return big_vision's arrays: [class] has no position, and each kind of part is counted by itself.

    Args:
        pool: "tok", "gap" or "map".
    """
    arrays = Arrays(1)
    arrays.add("embedding/kernel", P, P, 3, D)
    arrays.add("embedding/bias", D)
    arrays.add("pos_embedding", 1, GRID * GRID, D)
    if pool == "tok":
        arrays.add("cls", 1, 1, D)
    for i in range(DEPTH):
        arrays.block(f"Transformer/encoderblock_{i}", attention=0, norm2=1, mlp=0)
    arrays.norm("Transformer/encoder_norm")
    if pool == "map":
        arrays.add("MAPHead_0/probe", 1, 1, D)
        arrays.attention("MAPHead_0/MultiHeadDotProductAttention_0")
        arrays.norm("MAPHead_0/LayerNorm_0")
        arrays.mlp("MAPHead_0/MlpBlock_0")
    arrays.dense("head", D, classes)
    return {f"params/{name}": array for name, array in arrays.named.items()}


def scanned(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return big_vision's arrays with scan=True: the blocks' arrays are stacked along a first axis of
    depth."""
    first = "params/Transformer/encoderblock_0/"
    kept = {name: array for name, array in named.items() if "/encoderblock_" not in name}
    for name in [name for name in named if name.startswith(first)]:
        rest = name.removeprefix(first)
        blocks = [named[f"params/Transformer/encoderblock_{i}/{rest}"] for i in range(DEPTH)]
        kept[f"params/Transformer/encoderblock/{rest}"] = np.stack(blocks)
    return kept


def hybrid(layers: tuple[int, ...], classes: int = 5, image: int = 64) -> dict[str, np.ndarray]:
    """Return the arrays of vit_jax's models_resnet in front of a ViT; GroupNorm's scale and bias are (1,
    1, 1, C), as in released files."""
    arrays = Arrays(2)

    def group_norm(name: str, channels: int) -> None:
        arrays.add(f"{name}/scale", 1, 1, 1, channels, around=1.0)
        arrays.add(f"{name}/bias", 1, 1, 1, channels)

    arrays.add("conv_root/kernel", 7, 7, 3, 64)
    group_norm("gn_root", 64)
    channels = 64
    for stage, units in enumerate(layers):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        for unit in range(units):
            name = f"block{stage + 1}/unit{unit + 1}"
            for n, (kernel, i, o) in enumerate(
                [(1, channels, inner), (3, inner, inner), (1, inner, outer)], start=1
            ):
                arrays.add(f"{name}/conv{n}/kernel", kernel, kernel, i, o)
                group_norm(f"{name}/gn{n}", o)
            if unit == 0:
                arrays.add(f"{name}/conv_proj/kernel", 1, 1, channels, outer)
                group_norm(f"{name}/gn_proj", outer)
            channels = outer
    patch = 1 if layers else 8
    stride = (4 * 2 ** (len(layers) - 1) if layers else 4) * patch
    return arrays.named | original(classes, patch=patch, channels=channels, grid=image // stride)
