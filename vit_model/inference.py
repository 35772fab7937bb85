"""The fast path for labeling. Speed is applied from outside: modules are swapped on a copy of the model, step by step.

prepare = copy, fold_patch_embed, fold_layer_scale, cast, and on demand FixedBatch and compiled
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.encoder import LayerScale
from wordsworth.vit_model.hybrid import HybridEmbed, fold_std_convs
from wordsworth.vit_model.model import VisionTransformer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # x86, x86, ARM: as torch.cpu.get_capabilities names them


def resolve_precision(precision: str, device: str | torch.device) -> str:
    """What "auto" means on this machine: "bf16" where the device computes it natively, else "fp32".

    Raises:
        ModelError: not "auto", "fp32" or "bf16".
    """
    if precision in PRECISIONS:
        return precision
    if precision != "auto":
        raise ModelError(f"precision is {precision!r}; it must be one of auto, {', '.join(PRECISIONS)}")
    return "bf16" if _has_bf16(torch.device(device).type) else "fp32"


def _has_bf16(device_type: str) -> bool:
    if device_type != "cpu":
        supported = getattr(
            torch.get_device_module(device_type), "is_bf16_supported", None
        )  # not every device has the question
        return supported is not None and supported(including_emulation=False)
    if hasattr(torch.cpu, "get_capabilities"):  # older torch has no public call for it
        return any(torch.cpu.get_capabilities().get(name) for name in CPU_BF16)
    return False


def fold_normalisation(
    weight: torch.Tensor, bias: torch.Tensor | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold ((x / 255) - mean) / std into the patch embedding, for inputs u = x - 128 where x are uint8 values.

        W ((u + 128) / 255 - mean) / std + b  =  (W / (255 std)) u  +  (b + W (128 / 255 - mean) / std)

    Centred on 128, not on 0: the values are then about as often negative as positive, the bias stays small, and the
    error of a bfloat16 matrix on real pixels is less than half as large.

    Args:
        weight: (D, 3, P, P)
        bias: (D,), or None for zeros.

    Returns:
        (D, P*P*3) and (D,), both float64.
    """
    kernel = weight.double().permute(0, 2, 3, 1)  # (D, P, P, 3)
    mean64, std64 = (torch.tensor(v, dtype=torch.float64, device=weight.device) for v in (mean, std))  # (3,)
    matrix = (kernel / (255 * std64)).flatten(1)  # (D, P*P*3)
    shift = (kernel * ((128 / 255 - mean64) / std64)).flatten(1).sum(1)  # (D,)
    return matrix, shift if bias is None else bias.double() + shift


class FoldedPatchEmbed(nn.Module):
    """Patch embedding that takes pixels as they are decoded: no normalised float image ever exists."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, preprocessing: Preprocessing):
        super().__init__()
        matrix, shift = fold_normalisation(weight, bias, preprocessing.mean, preprocessing.std)
        self.register_buffer("weight", matrix.float())
        self.register_buffer("bias", shift.float())

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """uint8 (B, N, P*P*3) -> (B, N, D)"""
        centred = patches.to(self.weight.dtype) - 128  # whole numbers up to 256: exact in bfloat16 too
        return F.linear(centred, self.weight, self.bias)


class HybridOnPixels(nn.Module):
    """A hybrid's stem that takes pixels as they are decoded. Its first layer pads with zeros, which stand for the mean
    colour only after the normalisation: that cannot be folded and is computed in float32."""

    def __init__(self, stem: HybridEmbed, preprocessing: Preprocessing):
        super().__init__()
        self.stem = stem
        # Not buffers: a cast of the model would round them, and the mean of a channel to half a level.
        self.mean, self.std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)  # (3,)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """uint8 (B, N, P*P*3) -> (B, N, D)"""
        if self.mean.device != patches.device:  # once: a CUDA graph records no copy from the host
            self.mean, self.std = self.mean.to(patches.device), self.std.to(patches.device)
        pixels = patches.float().unflatten(-1, (-1, 3)) / 255  # (B, N, P*P, 3)
        return self.stem(((pixels - self.mean) / self.std).flatten(-2).to(self.stem.proj.weight.dtype))


class InferenceModel(nn.Module):
    """A model prepared by `prepare`."""

    def __init__(self, model: VisionTransformer):
        super().__init__()
        self.model = model

    @torch.no_grad()  # not inference_mode: a probe may be trained on the embeddings
    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """uint8 patches (B, N, P*P*3), any B -> logits (B, K) or None without a head, and embedding (B, D); float32.

        The embedding is what enters the final linear layer. That layer is small and stays in float32: bfloat16 logits
        have so few digits that the best classes would often tie.
        """
        tokens = self.model.forward_features(patches)  # (B, T, D)
        embedding = self.model.forward_head(tokens, pre_logits=True).float()  # (B, D)
        return (self.model.head(embedding) if self.model.config.num_classes else None), embedding


class FixedBatch(nn.Module):
    """Every batch in the one shape that was compiled, or that a GPU is fastest with; the last rows are padding."""

    def __init__(self, model: nn.Module, batch_size: int):
        super().__init__()
        self.model, self.batch_size = model, batch_size

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """uint8 patches (B, N, P*P*3), any B -> what the model gives for them."""
        answers = [self._padded(part) for part in patches.split(self.batch_size)]
        logits, embeddings = zip(*answers, strict=True)
        return (None if logits[0] is None else torch.cat(logits)), torch.cat(embeddings)

    def _padded(self, patches: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        rows = len(patches)
        padding = patches.new_zeros(self.batch_size - rows, *patches.shape[1:])
        logits, embedding = self.model(torch.cat([patches, padding]))
        return (None if logits is None else logits[:rows]), embedding[:rows]


def fold_patch_embed(model: VisionTransformer, preprocessing: Preprocessing) -> None:
    """Let the model take uint8 patches: normalisation becomes part of the patch embedding, or stands before a hybrid's stem."""
    if isinstance(model.patch_embed, HybridEmbed):
        fold_std_convs(model.patch_embed)
        model.patch_embed = HybridOnPixels(model.patch_embed, preprocessing)
        return
    proj = model.patch_embed.proj
    model.patch_embed = FoldedPatchEmbed(proj.weight, proj.bias, preprocessing)


@torch.no_grad()
def fold_layer_scale(model: VisionTransformer) -> None:
    """gamma (W x + b) = (gamma W) x + gamma b: LayerScale becomes part of the layer before it."""
    for block in model.blocks:
        for linear, name in ((block.attn.proj, "ls1"), (block.mlp.fc2, "ls2")):
            if isinstance(scale := getattr(block, name), LayerScale):
                gamma = scale.gamma.double()  # (D,)
                linear.weight.copy_(linear.weight * gamma[:, None])
                linear.bias.copy_(linear.bias * gamma)
                setattr(block, name, nn.Identity())


def cast(model: VisionTransformer, precision: str, device: str | torch.device) -> None:
    """Everything but the head to the device and the type; the head stays as it is, on the device."""
    head, model.head = model.head, nn.Identity()  # out of the way: a cast and back would have rounded it
    model.to(device, PRECISIONS[precision])
    model.head = head.to(device)


def compiled(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """The model as one compiled graph without breaks; another shape of batch would be compiled anew."""
    model.compile(fullgraph=True, dynamic=False, backend=backend)
    return model


def prepare(
    model: VisionTransformer,
    preprocessing: Preprocessing,
    precision: str,
    device: str | torch.device,
    batch_size: int | None = None,
    compile: bool = False,
) -> InferenceModel | FixedBatch:
    """A copy of the model for inference on uint8 patches; the model itself is not touched.

    Args:
        precision: "fp32" or "bf16" (`resolve_precision` turns "auto" into one of them).
        batch_size: pad every batch to this one; None runs batches as they come.
        compile: with torch.compile; needs a batch_size.

    Raises:
        ModelError: another precision, or `compile` for any size of batch.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if compile and batch_size is None:
        raise ModelError("compile needs a batch_size: every other size of batch would be compiled anew")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_patch_embed(model, preprocessing)
    fold_layer_scale(model)
    cast(model, precision, device)
    prepared = InferenceModel(model)
    if compile:
        prepared = compiled(prepared)
    return prepared if batch_size is None else FixedBatch(prepared, batch_size)
