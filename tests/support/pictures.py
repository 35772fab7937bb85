"""Random pictures as the objectives take them."""

import torch

from wordsworth.vit_model.config import ViTConfig

SMALL_DECODER = {"width": 24, "depth": 2, "heads": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture_patches(config: ViTConfig, batch: int = 2, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised floats and the uint8 patches that they come from."""
    pixels = torch.randint(
        256, (batch, config.num_patches, config.patch_dim), dtype=torch.uint8, generator=seeded(seed)
    )
    return (pixels / 255 - 0.5) / 0.25, pixels
