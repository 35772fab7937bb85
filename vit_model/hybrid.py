"""The hybrid's stem: a BiT ResNet whose last feature map is cut into patches (section 3.1 of the paper, "Hybrid").

The architecture is that of the released JAX code (vit_jax/models_resnet.py): standardised convolutions, GroupNorm, ReLU
after the addition. Parameter names are timm's.
"""

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ViTConfig
from wordsworth.vit_model.encoder import lecun_normal_
from wordsworth.vit_model.patches import unpatchify

STD_EPS = 1e-5  # beside the standard deviation, as in JAX; timm puts 1e-8 beside the variance: logits move by about 1e-4
NORM_EPS = 1e-6  # flax's; timm has 1e-5


def pad_same(x: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """TensorFlow's "SAME": just enough for ceil(side / stride) outputs, the odd pixel below and to the right."""
    h, w = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
    return F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2), value=value)


class SameConv(nn.Conv2d):
    """A convolution without a bias, padded as TensorFlow's "SAME"."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1):
        super().__init__(channels, out, kernel, stride, bias=False)

    def kernel(self) -> torch.Tensor:
        return self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))"""
        return F.conv2d(pad_same(x, self.kernel_size[0], self.stride[0]), self.kernel(), stride=self.stride)


class StdConv(SameConv):
    """A convolution whose kernels have mean 0 and deviation 1 over their inputs (arXiv 1903.10520)."""

    def init_weights(self) -> None:
        lecun_normal_(self.weight)

    def kernel(self) -> torch.Tensor:
        """(out, in, k, k): (w - mean) / (std + eps), the population's deviation."""
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) / (std + STD_EPS)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, NORM_EPS)


class Root(nn.Module):
    """Down by 4: a convolution and a pooling of stride 2 each."""

    def __init__(self):
        super().__init__()
        self.conv = StdConv(3, 64, 7, stride=2)
        self.norm = group_norm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 64, H/4, W/4)"""
        x = F.relu(self.norm(self.conv(x)))  # (B, 64, H/2, W/2)
        return F.max_pool2d(pad_same(x, 3, 2, value=float("-inf")), 3, 2)


class Downsample(nn.Module):
    """The shortcut where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv = StdConv(channels, out, 1, stride)
        self.norm = group_norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, add, ReLU: activation after the addition."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        inner = out // 4
        self.downsample = (
            Downsample(channels, out, stride) if (channels, stride) != (out, 1) else nn.Identity()
        )
        self.conv1, self.norm1 = StdConv(channels, inner, 1), group_norm(inner)
        self.conv2, self.norm2 = StdConv(inner, inner, 3, stride), group_norm(inner)
        self.conv3, self.norm3 = StdConv(inner, out, 1), group_norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) -> (B, out, H / stride, W / stride)"""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.downsample(x))


class Stage(nn.Module):
    """Bottlenecks of one resolution; the first of them changes it."""

    def __init__(self, channels: int, out: int, stride: int, layers: int):
        super().__init__()
        first = Bottleneck(channels, out, stride)
        self.blocks = nn.Sequential(first, *(Bottleneck(out, out, 1) for _ in range(layers - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class ResNet(nn.Module):
    """Root and stages: (3, 4, 9) is a ResNet-50 whose fourth stage has moved into the third, as the paper has it."""

    def __init__(self, layers: tuple[int, ...]):
        super().__init__()
        self.stem = Root()
        outs = [256 * 2**i for i in range(len(layers))]
        shapes = zip([64, *outs[:-1]], outs, [1] + [2] * (len(layers) - 1), layers, strict=True)
        self.stages = nn.Sequential(*(Stage(*shape) for shape in shapes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C, h, w)"""
        return self.stages(self.stem(x))


class HybridEmbed(nn.Module):
    """The feature map's patches, most often of 1 x 1, to tokens: E of Eq. 1 on ResNet features."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.grid, self.patch_size = config.grid, config.patch_size
        self.backbone = ResNet(config.resnet) if config.resnet else Root()
        side = config.patch_size // config.stem_stride
        self.proj = nn.Conv2d(config.stem_channels, config.width, side, side, bias=config.patch_bias)

    def init_weights(self) -> None:
        """As JAX: the residual branches start switched off."""
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
        """Normalised floats, images (B, 3, H, W) or all of their patches (B, N, P*P*3) -> (B, N, D)."""
        if x.ndim == 3:
            x = unpatchify(x, self.grid, self.patch_size).permute(0, 3, 1, 2)  # (B, 3, H, W)
        return self.proj(self.backbone(x)).flatten(2).transpose(1, 2)


def fold_std_convs(model: nn.Module) -> None:
    """Standardise the kernels once and for all; they are computed anew in every forward otherwise, as training needs it."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, StdConv):
                folded = SameConv(
                    child.in_channels, child.out_channels, child.kernel_size[0], child.stride[0]
                )
                folded.weight = nn.Parameter(child.kernel().detach(), requires_grad=False)
                setattr(module, name, folded)
