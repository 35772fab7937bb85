"""Measure how fast a training is: images per second, and the share of what the device could compute."""

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wordsworth.pipeline.training.news import Rates

PEAK_TRIES = 5  # matrix products of which the fastest counts
GPU_MATRIX = 8192  # rows and columns of a matrix that keeps a GPU busy
CPU_MATRIX = 1024  # rows and columns of a matrix that keeps a CPU busy


@dataclass(frozen=True, kw_only=True)
class SpeedMeter:
    """Turn steps and seconds into rates.

    Attributes:
        images_per_step: images of one worker in one step.
        num_workers: number of workers.
        flops_per_image: floating-point operations of one image, forward and backward.
        peak_flops: floating-point operations per second that a worker's device can do.
    """

    images_per_step: int
    num_workers: int
    flops_per_image: float
    peak_flops: float

    def rates(self, num_steps: int, seconds: float, waited_s: float) -> Rates:
        """Return the rates of steps.

        Args:
            num_steps: steps that were made.
            seconds: how long they took, waiting included.
            waited_s: seconds of these without a batch.
        """
        if not seconds:
            return Rates(images_per_second=0.0, mfu=0.0, data_wait=0.0)
        images_per_second = num_steps * self.images_per_step / seconds  # of this worker
        return Rates(
            images_per_second=round(images_per_second * self.num_workers, 1),
            mfu=round(images_per_second * self.flops_per_image / self.peak_flops, 3),
            data_wait=round(waited_s / seconds, 3),
        )


def count_flops(objective: nn.Module, patch_dim: int, num_patches: int) -> float:
    """Count the floating-point operations of one image, forward and backward, while a batch of zeros runs.

    Matrix products and convolutions count.

    Args:
        objective: as in vit_model/objectives.py.
        patch_dim: numbers in a patch.
        num_patches: patches of an image.
    """
    device = next(objective.parameters()).device
    inputs = torch.zeros(2, num_patches, patch_dim, device=device)
    classes = torch.zeros(2, dtype=torch.long, device=device)
    # With this backend attention is matrix products, which the counter sees.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss, _ = objective(inputs, pixels=inputs, classes=classes)
        loss.backward()
    objective.zero_grad()
    return counter.get_total_flops() / 2


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a large matrix product, which no model exceeds."""
    side = GPU_MATRIX if device.type == "cuda" else CPU_MATRIX
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    rates = []
    for _ in range(PEAK_TRIES):
        begin = time.perf_counter()
        product = left @ right
        product.flatten()[0].item()  # waits for the device
        rates.append(2 * side**3 / (time.perf_counter() - begin))
    return max(rates)
