"""Count the parameters of a model and the multiplications of a forward pass. Imports no torch.

The letters are the paper's: d width, m width of the MLP, n patches.
"""

from collections.abc import Iterator

from wordsworth.vit_model.config import ViTConfig


def num_params(config: ViTConfig) -> int:
    """Return the number of parameters of the model."""
    d = config.width
    mlp = 2 * d * config.mlp_dim + config.mlp_dim + d
    stem = _patch_embed_inputs(config) * d
    if config.patch_bias:
        stem += d
    for channels, out, kernel, _ in _stem_convolutions(config):
        stem += kernel * kernel * channels * out + 2 * out  # with the GroupNorm
    tokens = config.num_prefix * d + _position_params(config)
    if config.norm_pre:
        tokens += 2 * d
    final = 2 * d + _head_params(config)
    if config.pool == "map":
        final += d + 4 * d * d + 4 * d + 2 * d + mlp
    return stem + tokens + config.depth * _block_params(config, mlp) + final


def _block_params(config: ViTConfig, mlp: int) -> int:
    d = config.width
    attention = 4 * d * d + d
    if config.qkv_bias:
        attention += 3 * d
    if config.qk_norm:
        attention += 4 * (d // config.heads)
    scales = 2 * d if config.layer_scale > 0 else 0
    return 4 * d + attention + mlp + scales


def _position_params(config: ViTConfig) -> int:
    rows = {
        "learned-1d": (config.class_rows + config.num_patches) * config.width,
        "learned-2d": sum(config.grid) * config.width // 2,
    }
    tables = config.depth if config.position_at == "every-layer" else 1
    return rows.get(config.position, 0) * tables


def _head_params(config: ViTConfig) -> int:
    hidden = config.width * config.representation_size
    if not config.projection:
        hidden += config.representation_size
    inputs = config.embedding_dim
    if config.head_bias:
        inputs += 1
    return hidden + inputs * config.num_classes


def macs(config: ViTConfig) -> int:
    """Return the multiply-accumulates of the forward pass of one image.

    Only matrix products and convolutions are counted.
    """
    d, m, n = config.width, config.mlp_dim, config.num_patches
    tokens = n + config.num_prefix
    pixels = config.image_size[0] * config.image_size[1]
    stem = n * _patch_embed_inputs(config) * d
    for channels, out, kernel, stride in _stem_convolutions(config):
        stem += kernel * kernel * channels * out * pixels // stride**2
    block = tokens * (4 * d * d + 2 * d * m) + 2 * tokens * tokens * d
    pool = 0
    if config.pool == "map":
        pool = 2 * n * d * d + 2 * d * d + 2 * n * d + 2 * d * m
    head = d * config.representation_size + config.embedding_dim * config.num_classes
    return stem + config.depth * block + pool + head


def _patch_embed_inputs(config: ViTConfig) -> int:
    """Return the numbers that become one token."""
    return (config.patch_size // config.stem_stride) ** 2 * config.stem_channels


def _stem_convolutions(config: ViTConfig) -> Iterator[tuple[int, int, int, int]]:
    """Yield every convolution of a hybrid's ResNet.

    Yields:
        (channels in, channels out, side of the kernel, pixels of the image along a side of one output)
    """
    if config.resnet is None:
        return
    yield 3, 64, 7, 2
    channels = 64
    stride = 4  # of what enters the next bottleneck
    for stage, layers in enumerate(config.resnet):
        inner = 64 * 2**stage
        outer = 4 * inner
        out_stride = 4 * 2**stage
        for layer in range(layers):
            yield channels, inner, 1, stride
            yield inner, inner, 3, out_stride
            yield inner, outer, 1, out_stride
            if layer == 0:
                yield channels, outer, 1, out_stride
            channels = outer
            stride = out_stride
