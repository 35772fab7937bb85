"""Compute the stem of a hybrid (section 3.1): a BiT ResNet whose last feature map is cut into patches.

The architecture is that of the released JAX code (vit_jax/models_resnet.py): standardised convolutions,
GroupNorm, ReLU after the addition. Parameter names are timm's.
"""

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ViTConfig
from wordsworth.vit_model.encoder import lecun_normal_
from wordsworth.vit_model.patches import unpatchify

# Added to the standard deviation, as in JAX. timm adds 1e-8 to the variance: logits move by about 1e-4.
STD_EPS = 1e-5
NORM_EPS = 1e-6  # added to the variance by every GroupNorm, as flax does; timm adds 1e-5


def pad_same(x: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Pad as TensorFlow's "SAME": for ceil(side / stride) outputs, the odd pixel below and to the right."""
    h, w = (_missing_pixels(side, kernel, stride) for side in x.shape[-2:])
    return F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2), value=value)


def _missing_pixels(side: int, kernel: int, stride: int) -> int:
    outputs = -(-side // stride)
    return max((outputs - 1) * stride + kernel - side, 0)


class SameConv(nn.Conv2d):
    """Apply a convolution without a bias, padded as TensorFlow's "SAME"."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1):
        super().__init__(channels, out, kernel, stride, bias=False)

    def kernel(self) -> torch.Tensor:
        """Return the kernels that the forward applies: (out, in, k, k)."""
        return self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        return F.conv2d(pad_same(x, self.kernel_size[0], self.stride[0]), self.kernel(), stride=self.stride)


class StdConv(SameConv):
    """Apply a convolution whose kernels have mean 0 and deviation 1 over their inputs (arXiv 1903.10520)."""

    def init_weights(self) -> None:
        """Fill the kernels as the JAX code does."""
        lecun_normal_(self.weight)

    def kernel(self) -> torch.Tensor:
        """Return (w - mean) / (std + eps), with the deviation of the population: (out, in, k, k)."""
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) / (std + STD_EPS)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm as the JAX code has it."""
    return nn.GroupNorm(32, channels, NORM_EPS)


class Root(nn.Module):
    """Halve the sides of an image twice: by a convolution, then by a pooling."""

    def __init__(self):
        super().__init__()
        self.conv = StdConv(3, 64, 7, stride=2)
        self.norm = group_norm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) to (B, 64, H/4, W/4)."""
        x = F.relu(self.norm(self.conv(x)))  # (B, 64, H/2, W/2)
        return F.max_pool2d(pad_same(x, 3, 2, value=float("-inf")), 3, 2)


class Downsample(nn.Module):
    """Compute the shortcut of a bottleneck that changes the shape."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv = StdConv(channels, out, 1, stride)
        self.norm = group_norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) to (B, out, H / stride, W / stride)."""
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """Compute 1x1 down, 3x3, 1x1 up, add, ReLU: the activation follows the addition."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        inner = out // 4
        same_shape = channels == out and stride == 1
        self.downsample = nn.Identity() if same_shape else Downsample(channels, out, stride)
        self.conv1 = StdConv(channels, inner, 1)
        self.norm1 = group_norm(inner)
        self.conv2 = StdConv(inner, inner, 3, stride)
        self.norm2 = group_norm(inner)
        self.conv3 = StdConv(inner, out, 1)
        self.norm3 = group_norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) to (B, out, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.downsample(x))


class Stage(nn.Module):
    """Compute the bottlenecks of one resolution. The first bottleneck changes the resolution."""

    def __init__(self, channels: int, out: int, stride: int, layers: int):
        super().__init__()
        first = Bottleneck(channels, out, stride)
        self.blocks = nn.Sequential(first, *(Bottleneck(out, out, 1) for _ in range(layers - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) to (B, out, H / stride, W / stride)."""
        return self.blocks(x)


class ResNet(nn.Module):
    """Compute the root and the stages.

    (3, 4, 9) is a ResNet-50 whose fourth stage has moved into the third, as in the paper.
    """

    def __init__(self, layers: tuple[int, ...]):
        super().__init__()
        self.stem = Root()
        stages: list[nn.Module] = []
        channels = 64
        for i, bottlenecks in enumerate(layers):
            out = 256 * 2**i
            stages.append(Stage(channels, out, stride=2 if i else 1, layers=bottlenecks))
            channels = out
        self.stages = nn.Sequential(*stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) to (B, C, h, w)."""
        return self.stages(self.stem(x))


class HybridEmbed(nn.Module):
    """Map the patches of the feature map, most often of 1 x 1, to tokens: E of Eq. 1 on ResNet features."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.grid = config.grid
        self.patch_size = config.patch_size
        self.backbone = ResNet(config.resnet) if config.resnet else Root()
        side = config.patch_size // config.stem_stride
        self.proj = nn.Conv2d(config.stem_channels, config.width, side, side, bias=config.patch_bias)

    def init_weights(self) -> None:
        """Fill the parameters as the JAX code does: the residual branches start switched off."""
        for module in self.modules():
            if isinstance(module, StdConv):
                module.init_weights()
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)
        lecun_normal_(self.proj.weight)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised floats, images (B, 3, H, W) or all patches of images (B, N, P*P*3), to (B, N, D)."""
        if x.ndim == 3:
            x = unpatchify(x, self.grid, self.patch_size).permute(0, 3, 1, 2)  # (B, 3, H, W)
        return self.proj(self.backbone(x)).flatten(2).transpose(1, 2)


def fold_std_convs(model: nn.Module) -> None:
    """Replace every StdConv by a convolution with fixed kernels, for a model that is not trained any more."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, StdConv):
                kernel, stride = child.kernel_size[0], child.stride[0]
                folded = SameConv(child.in_channels, child.out_channels, kernel, stride)
                folded.weight = nn.Parameter(child.kernel().detach(), requires_grad=False)
                setattr(module, name, folded)
