"""Prepare a model for labeling. Speed is applied from outside: modules are swapped on a copy of the model.

The steps of `prepare`: copy, fold_patch_embed, fold_layer_scale, cast, swap_attention.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function

from wordsworth.vit_model.config import Preprocessing, check_choice
from wordsworth.vit_model.encoder import LayerScale
from wordsworth.vit_model.hybrid import HybridEmbed, fold_std_convs
from wordsworth.vit_model.model import VisionTransformer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The names that torch.cpu.get_capabilities has for native bfloat16: two on x86, one on ARM.
CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")
MATRIX_TOKENS = 320  # tokens up to which attention by whole matrices is faster on a CPU


def resolve_precision(precision: str, device: str | torch.device) -> str:
    """Return the precision for a device: "auto" is "bf16" where the device computes it natively, else "fp32".

    Raises:
        ModelError: the precision is not "auto", "fp32" or "bf16".
    """
    check_choice("precision", precision, ("auto", *PRECISIONS))
    if precision != "auto":
        return precision
    return "bf16" if _has_bf16(torch.device(device).type) else "fp32"


def _has_bf16(device_type: str) -> bool:
    if device_type != "cpu":
        # Not every device has this function.
        supported = getattr(torch.get_device_module(device_type), "is_bf16_supported", None)
        return supported is not None and supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch has no public call that tells
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in CPU_BF16)


def fold_normalisation(
    weight: torch.Tensor, bias: torch.Tensor | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold ((x / 255) - mean) / std into the patch embedding, for inputs u = x - 128 of uint8 values x.

        W ((u + 128) / 255 - mean) / std + b  =  (W / (255 std)) u  +  (b + W (128 / 255 - mean) / std)

    u is centred on 128 and not on 0: the values are then about as often negative as positive, the bias stays
    small, and the error of a bfloat16 matrix on real pixels is less than half as large.

    Args:
        weight: (D, 3, P, P)
        bias: (D,), or None for zeros.
        mean: RGB, of pixels in [0, 1].
        std: RGB, of pixels in [0, 1].

    Returns:
        The matrix (D, P*P*3) and the bias (D,), both float64.
    """
    kernel = weight.double().permute(0, 2, 3, 1)  # (D, P, P, 3)
    mean64 = torch.tensor(mean, dtype=torch.float64, device=weight.device)  # (3,)
    std64 = torch.tensor(std, dtype=torch.float64, device=weight.device)  # (3,)
    matrix = (kernel / (255 * std64)).flatten(1)  # (D, P*P*3)
    shift = (kernel * ((128 / 255 - mean64) / std64)).flatten(1).sum(1)  # (D,)
    return matrix, shift if bias is None else bias.double() + shift


class FoldedPatchEmbed(nn.Module):
    """Embed patches of pixels as they are decoded: no normalised float image ever exists."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, preprocessing: Preprocessing):
        super().__init__()
        matrix, shift = fold_normalisation(weight, bias, preprocessing.mean, preprocessing.std)
        self.register_buffer("weight", matrix.float())
        self.register_buffer("bias", shift.float())

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Map uint8 (B, N, P*P*3) to (B, N, D)."""
        centred = patches.to(self.weight.dtype) - 128  # whole numbers up to 256: exact in bfloat16 too
        return F.linear(centred, self.weight, self.bias)


class HybridOnPixels(nn.Module):
    """Apply a hybrid's stem to pixels as they are decoded.

    The first layer of the stem pads with zeros. A zero is the mean colour only after the normalisation, so
    the normalisation cannot be folded and is computed in float32.
    """

    def __init__(self, stem: HybridEmbed, preprocessing: Preprocessing):
        super().__init__()
        self.stem = stem
        # No buffers: a cast of the model would round the numbers, and the mean of a channel to half a level.
        self.mean = torch.tensor(preprocessing.mean)  # (3,)
        self.std = torch.tensor(preprocessing.std)  # (3,)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Map uint8 (B, N, P*P*3) to (B, N, D)."""
        if self.mean.device != patches.device:  # once: a CUDA graph records no copy from the host
            self.mean = self.mean.to(patches.device)
            self.std = self.std.to(patches.device)
        pixels = patches.float().unflatten(-1, (-1, 3)) / 255  # (B, N, P*P, 3)
        return self.stem(((pixels - self.mean) / self.std).flatten(-2).to(self.stem.proj.weight.dtype))


class InferenceModel(nn.Module):
    """Run a prepared model on uint8 patches."""

    def __init__(self, model: VisionTransformer):
        super().__init__()
        self.model = model

    @torch.no_grad()  # not inference_mode: a probe may be trained on the embeddings
    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return logits and embeddings. The embedding of an image is the input of the final linear layer.

        That layer is small and stays in float32: bfloat16 logits have so few digits that the best classes
        would often tie.

        Args:
            patches: uint8 (B, N, P*P*3), any B.

        Returns:
            Logits (B, K), or None without a head, and embeddings (B, D); float32.
        """
        tokens = self.model.forward_features(patches)  # (B, T, D)
        embedding = self.model.forward_head(tokens, pre_logits=True).float()  # (B, D)
        if self.model.config.normalize:  # again, for the length that bfloat16 has rounded
            embedding = F.normalize(embedding, dim=-1)
        if not self.model.config.num_classes:
            return None, embedding
        return self.model.head(embedding), embedding


def fold_patch_embed(model: VisionTransformer, preprocessing: Preprocessing) -> None:
    """Let the model take uint8 patches: the normalisation becomes part of the patch embedding.

    In a hybrid the normalisation stands before the stem.
    """
    if isinstance(model.patch_embed, HybridEmbed):
        fold_std_convs(model.patch_embed)
        model.patch_embed = HybridOnPixels(model.patch_embed, preprocessing)
        return
    proj = model.patch_embed.proj
    model.patch_embed = FoldedPatchEmbed(proj.weight, proj.bias, preprocessing)


@torch.no_grad()
def fold_layer_scale(model: VisionTransformer) -> None:
    """Make every LayerScale a part of the layer before: gamma (W x + b) = (gamma W) x + gamma b."""
    for block in model.blocks:
        for linear, name in ((block.attn.proj, "ls1"), (block.mlp.fc2, "ls2")):
            scale = getattr(block, name)
            if isinstance(scale, LayerScale):
                gamma = scale.gamma.double()  # (D,)
                linear.weight.copy_(linear.weight * gamma[:, None])
                linear.bias.copy_(linear.bias * gamma)
                setattr(block, name, nn.Identity())


def cast(model: VisionTransformer, precision: str, device: str | torch.device) -> None:
    """Bring everything but the head to the device and the type, and the head to the device only."""
    head = model.head
    model.head = nn.Identity()  # a cast of the head, even if undone, would round the weights
    model.to(device, PRECISIONS[precision])
    model.head = head.to(device)


def matrix_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Compute softmax(q k^T / sqrt(D_h)) v by whole matrices, on a CPU in bfloat16.

    torch's own function goes through an image's tokens in small tiles, to keep memory small; few tokens need
    none. The products are rounded to bfloat16 before the softmax, which torch's function keeps in float32.

    Args:
        q, k, v: (B, heads, T, D_h)

    Returns:
        (B, heads, T, D_h)
    """
    if has_torch_function((q, k, v)):  # who looks at calls of torch sees this one as one call
        return handle_torch_function(matrix_attention, (q, k, v), q, k, v)
    B, heads, T, d_h = q.shape
    q, k, v = (x.reshape(B * heads, T, d_h) for x in (q, k, v))
    scores = torch.baddbmm(q.new_empty(1), q, k.mT, beta=0, alpha=d_h**-0.5)  # (B * heads, T, T)
    return torch.bmm(scores.softmax(-1), v).reshape(B, heads, T, d_h)


def swap_attention(model: VisionTransformer) -> None:
    """Compute the attention by whole matrices where the tokens are few."""
    if model.config.num_patches + model.config.num_prefix <= MATRIX_TOKENS:
        for block in model.blocks:
            block.attn.attend = matrix_attention


def prepare(
    model: VisionTransformer, preprocessing: Preprocessing, precision: str, device: str | torch.device
) -> InferenceModel:
    """Return a copy of the model for inference on uint8 patches. The model itself is not touched.

    Args:
        model: the model as it was trained.
        preprocessing: the mean and std that are folded.
        precision: "fp32" or "bf16" (`resolve_precision` turns "auto" into one of the two).
        device: the device of the copy.

    Raises:
        ModelError: another precision.
    """
    check_choice("precision", precision, PRECISIONS)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_patch_embed(model, preprocessing)
    fold_layer_scale(model)
    cast(model, precision, device)
    if torch.device(device).type == "cpu" and precision == "bf16":
        swap_attention(model)
    return InferenceModel(model)
