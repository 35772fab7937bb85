from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.inference import (
    MATRIX_TOKENS,
    fold_normalisation,
    matrix_attention,
    prepare,
    resolve_precision,
)
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.patches import patchify
from wordsworth.vit_model.variants import variant

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def uint8_patches(config, batch: int) -> torch.Tensor:
    return torch.randint(256, (batch, config.num_patches, config.patch_dim), dtype=torch.uint8)


def smooth_patches(config, batch: int) -> torch.Tensor:
    """Return patches of blurred noise: neighbours alike, colours far from the mean, as in photographs."""
    coarse = torch.rand(batch, 3, 5, 5)
    images = F.interpolate(coarse, size=config.image_size, mode="bicubic").clamp(0, 1).mul(255).byte()
    return patchify(images.permute(0, 2, 3, 1), config.patch_size)


def test_folding_is_exact_in_double_precision():
    weight, bias = torch.randn(24, 3, 8, 8), torch.randn(24)
    pixels = torch.randint(256, (5, 8, 8, 3))
    matrix, shift = fold_normalisation(weight, bias, IMAGENET.mean, IMAGENET.std)
    assert matrix.dtype == shift.dtype == torch.float64
    floats = (pixels.double() / 255 - torch.tensor(IMAGENET.mean).double()) / torch.tensor(
        IMAGENET.std
    ).double()
    expected = F.conv2d(floats.permute(0, 3, 1, 2), weight.double(), bias.double()).flatten(1)
    found = (pixels.flatten(1).double() - 128) @ matrix.T + shift
    torch.testing.assert_close(
        found, expected, rtol=0, atol=1e-5
    )  # mean and std of `expected` are rounded to float32


def test_centring_on_128_more_than_halves_the_error_of_a_bfloat16_matrix_on_bright_pixels():
    weight, bias = torch.randn(64, 3, 16, 16), torch.zeros(64)
    pixels = smooth_patches(variant("Ti/16"), 4).double().flatten(0, 1)
    matrix, shift = fold_normalisation(weight, bias, IMAGENET.mean, IMAGENET.std)
    uncentred = shift - 128 * matrix.sum(1)
    expected = (pixels - 128) @ matrix.T + shift
    rounded = matrix.bfloat16().double()
    error = ((pixels - 128) @ rounded.T + shift - expected).norm()
    assert error < 0.5 * (pixels @ rounded.T + uncentred - expected).norm()


def test_the_original_model_is_not_touched(tiny, randomised):
    model = randomised(VisionTransformer(tiny)).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    prepare(model, IMAGENET, "bf16", "cpu")
    after = model.state_dict()
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_and_embeddings_are_float32_and_the_head_joins_them(tiny, randomised, precision):
    model = randomised(VisionTransformer(tiny))
    logits, embedding = prepare(model, IMAGENET, precision, "cpu")(uint8_patches(tiny, 3))
    assert (logits.dtype, logits.shape) == (torch.float32, (3, 5))
    assert (embedding.dtype, embedding.shape) == (torch.float32, (3, tiny.width))
    torch.testing.assert_close(model.head(embedding), logits)


def test_a_model_without_a_head_gives_no_logits(tiny):
    logits, embedding = prepare(VisionTransformer(replace(tiny, num_classes=0)), IMAGENET, "fp32", "cpu")(
        uint8_patches(tiny, 2)
    )
    assert logits is None and embedding.shape == (2, tiny.width)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_images_answer_does_not_depend_on_the_size_of_its_batch(tiny, randomised, precision):
    model = prepare(randomised(VisionTransformer(tiny)), IMAGENET, precision, "cpu")
    patches = uint8_patches(tiny, 7)
    whole = model(patches)[0]
    for size in (1, 2, 5):
        parts = torch.cat([model(part)[0] for part in patches.split(size)])
        torch.testing.assert_close(
            parts, whole, **({"atol": 1e-5, "rtol": 1e-4} if precision == "fp32" else BF16)
        )
    assert model(patches[:0])[0].shape == (0, 5)


BF16 = {"atol": 5e-2, "rtol": 5e-2}


@pytest.mark.slow
def test_bf16_embeddings_and_logits_point_where_fp32_ones_do(randomised):
    model = randomised(VisionTransformer(variant("Ti/16")))
    patches = smooth_patches(model.config, 4)
    fp32, bf16 = (prepare(model, IMAGENET, precision, "cpu")(patches) for precision in ("fp32", "bf16"))
    for expected, found in zip(fp32, bf16, strict=True):
        assert F.cosine_similarity(found, expected).min() > 0.999
        assert not torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(2, 3, 197, 64), (1, 2, 5, 24), (3, 1, 1, 8), (0, 2, 5, 8)])
def test_attention_by_whole_matrices_is_that_of_torch(shape):
    B, heads, T, d_h = shape
    # Slices of one tensor, as a layer has them.
    q, k, v = torch.randn(B, T, 3, heads, d_h).permute(2, 0, 3, 1, 4).unbind(0)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(matrix_attention(q, k, v), expected, rtol=1e-5, atol=1e-6)
    found = matrix_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


def test_whole_matrices_are_for_few_tokens_in_bfloat16(tiny):
    model = VisionTransformer(tiny)
    many = VisionTransformer(replace(tiny, image_size=(tiny.patch_size * 18,) * 2))
    assert tiny.num_patches < MATRIX_TOKENS < many.config.num_patches
    for source, precision, expected in [
        (model, "bf16", matrix_attention),
        (model, "fp32", F.scaled_dot_product_attention),
        (many, "bf16", F.scaled_dot_product_attention),
    ]:
        prepared = prepare(source, IMAGENET, precision, "cpu").model
        assert all(block.attn.attend is expected for block in prepared.blocks)
        assert all(block.attn.attend is F.scaled_dot_product_attention for block in source.blocks)


def test_auto_precision_is_bf16_only_where_the_device_computes_it(monkeypatch):
    for capabilities, expected in [
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"architecture": "arm64", "bf16": True}, "bf16"),
        ({"avx2": True, "avx512_bf16": False}, "fp32"),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert resolve_precision("auto", "cpu") == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolve_precision("auto", "cpu") == "fp32"
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert resolve_precision("auto", "cuda:0") == ("bf16" if has else "fp32")
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


def test_a_named_precision_is_kept_and_an_unknown_one_refused(tiny):
    assert [resolve_precision(p, "cpu") for p in ("fp32", "bf16")] == ["fp32", "bf16"]
    with pytest.raises(ModelError, match="precision is 'fp16'; it must be one of auto, fp32, bf16"):
        resolve_precision("fp16", "cpu")
    with pytest.raises(ModelError, match="precision is 'auto'"):
        prepare(VisionTransformer(tiny), IMAGENET, "auto", "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_gives_the_cpus_answer(randomised, precision):
    model = randomised(VisionTransformer(variant("Ti/16")))
    patches = smooth_patches(model.config, 4)
    expected = prepare(model, IMAGENET, "fp32", "cpu")(patches)
    found = prepare(model, IMAGENET, precision, "cuda")(patches.cuda())
    for e, f in zip(expected, found, strict=True):
        assert F.cosine_similarity(f.cpu(), e).min() > (0.999 if precision == "bf16" else 1 - 1e-6)
