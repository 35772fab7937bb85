"""Make random images as the objectives take them."""

import torch

from wordsworth.vit_model.config import ViTConfig

SMALL_DECODER = {"width": 24, "depth": 2, "heads": 2}


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of random numbers."""
    return torch.Generator().manual_seed(seed)


def random_patches(config: ViTConfig, batch: int = 2, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return patches (B, N, P*P*3) as normalised floats, and the uint8 patches that the floats come from."""
    shape = (batch, config.num_patches, config.patch_dim)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=seeded(seed))
    return (pixels / 255 - 0.5) / 0.25, pixels
