"""What the model tests share: weights in which no parameter is zero, and a tiny config."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.random_images import SMALL_DECODER
from wordsworth.vit_model.config import ViTConfig
from wordsworth.vit_model.masked_autoencoder import MaskedAutoencoder
from wordsworth.vit_model.model import VisionTransformer


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> ViTConfig:
    return ViTConfig(image_size=(32, 48), patch_size=8, width=32, depth=2, heads=4, mlp_dim=64, num_classes=5)


@pytest.fixture
def randomised():
    """A function that makes every parameter random: zero heads and zero biases would hide a wrong mapping."""

    def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        return model.eval()

    return randomise


@pytest.fixture
def headless(tiny) -> ViTConfig:
    return replace(tiny, num_classes=0)  # 24 patches of 8 x 8 pixels, 4 down and 6 across


@pytest.fixture
def encoder(headless, randomised) -> VisionTransformer:
    return randomised(VisionTransformer(headless))


@pytest.fixture
def mae(encoder, randomised) -> MaskedAutoencoder:
    return randomised(MaskedAutoencoder(encoder, **SMALL_DECODER), seed=1)
