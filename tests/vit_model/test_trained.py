"""Check what each step of the fast path, and all steps together, do to the answers of a trained model."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.inference import (
    InferenceModel,
    cast,
    fold_layer_scale,
    fold_patch_embed,
    prepare,
)
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.patches import patchify

CONFIG = ViTConfig(
    image_size=32, patch_size=8, width=64, depth=4, heads=4, mlp_dim=128, num_classes=10, layer_scale=0.1
)
PREPROCESSING = Preprocessing(mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
FP32 = {"atol": 1e-5, "rtol": 1e-5}


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 255 - PREPROCESSING.mean[0]) / PREPROCESSING.std[0]


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 patches of scikit-learn's 1,797 digits, and the classes, in a fixed random order."""
    images, classes = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images.reshape(-1, 1, 8, 8) * (255 / 16)).float()
    pixels = F.interpolate(pixels, size=32, mode="bicubic").clamp(0, 255).round().byte().expand(-1, 3, -1, -1)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(pixels)))
    return patchify(pixels.permute(0, 2, 3, 1), 8)[order], torch.from_numpy(classes)[order]


@pytest.fixture(scope="module")
def trained(digits) -> VisionTransformer:
    """Return a ViT that was trained on 1,400 of the digits."""
    patches, classes = (part[:1400] for part in digits)
    torch.manual_seed(0)
    model = VisionTransformer(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=15 * 11)
    for _ in range(15):
        for batch in torch.randperm(len(patches)).split(128):
            loss = F.cross_entropy(model(normalised(patches[batch])), classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def expected(digits, trained) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and embeddings of the model as it is, for the 397 images that it has not seen."""
    with torch.no_grad():
        tokens = trained.forward_features(normalised(digits[0][1400:]))
        return trained.forward_head(tokens), trained.forward_head(tokens, pre_logits=True)


@pytest.mark.slow
def test_the_model_is_trained(digits, expected):
    assert (expected[0].argmax(-1) == digits[1][1400:]).float().mean() > 0.9


@pytest.mark.slow
def test_folding_the_normalisation_alone_moves_the_rounding_only(digits, trained, expected):
    model = copy.deepcopy(trained)
    fold_patch_embed(model, PREPROCESSING)
    for found, wanted in zip(InferenceModel(model)(digits[0][1400:]), expected, strict=True):
        torch.testing.assert_close(found, wanted, **FP32)


@pytest.mark.slow
def test_folding_the_layer_scale_alone_moves_the_rounding_only(digits, trained, expected):
    model = copy.deepcopy(trained)
    fold_layer_scale(model)  # of parameters that want gradients, too
    assert not [name for name in model.state_dict() if "gamma" in name]
    with torch.no_grad():
        torch.testing.assert_close(model(normalised(digits[0][1400:])), expected[0], **FP32)


def assert_bf16(
    found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == torch.float32 and not torch.equal(f, e)
        assert F.cosine_similarity(f, e).min() > 0.999
    assert (found[0].argmax(-1) == expected[0].argmax(-1)).float().mean() >= 0.99


@pytest.mark.slow
def test_bf16_alone_keeps_direction_and_best_class(digits, trained, expected):
    model = copy.deepcopy(trained)
    fold_patch_embed(model, PREPROCESSING)
    cast(model, "bf16", "cpu")
    assert_bf16(InferenceModel(model)(digits[0][1400:]), expected)


@pytest.mark.slow
def test_all_steps_together_stay_within_the_bounds_of_each(digits, trained, expected):
    patches = digits[0][1400:]
    fp32 = prepare(trained, PREPROCESSING, "fp32", "cpu")(patches)
    for found, wanted in zip(fp32, expected, strict=True):
        torch.testing.assert_close(found, wanted, **FP32)
    assert_bf16(prepare(trained, PREPROCESSING, "bf16", "cpu")(patches), expected)


@pytest.mark.slow
def test_eight_bits_of_mantissa_fewer_would_be_seen(digits, trained, expected):
    """The bounds can tell: weights of float8 are outside of them."""
    model = copy.deepcopy(trained)
    fold_patch_embed(model, PREPROCESSING)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.float8_e5m2))
    with pytest.raises(AssertionError):
        assert_bf16(InferenceModel(model)(digits[0][1400:]), expected)
