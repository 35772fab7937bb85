"""Check the optional parts against timm's: every parameter random, tokens, logits and gradients."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

import wordsworth.vit_model.hybrid
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.cost import num_params
from wordsworth.vit_model.foreign.timm import config_of, foreign_parts
from wordsworth.vit_model.inference import prepare
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.patches import patchify
from wordsworth.vit_model.variants import variant

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
PARTS = {
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "LayerScale": {"init_values": 0.1},
    "qk-norm": {"qk_norm": True},
    "average pooling": {"global_pool": "avg", "class_token": False},
    "average pooling beside a class token": {"global_pool": "avg"},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "norm before the blocks": {"pre_norm": True},
    "no bias in qkv": {"qkv_bias": False},
    "no position": {"pos_embed": "none"},
    "tanh GELU": {"act_layer": "gelu_tanh"},
}


def pair(randomised, **parts):
    theirs = randomised(TimmViT(**SIZE, **parts))
    assert not foreign_parts(theirs)
    ours = VisionTransformer(config_of(theirs)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, CLOSE), (torch.float64, {"atol": 1e-12, "rtol": 0})]
)
def test_every_part_is_timms(randomised, part, dtype, close):
    ours, theirs = (model.to(dtype) for model in pair(randomised, **PARTS[part]))
    x, target = torch.randn(3, 3, 32, 32, dtype=dtype), torch.tensor([0, 3, 4])
    torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), **close)
    logits = ours(x), theirs(x)
    torch.testing.assert_close(*logits, **close)
    for found in logits:
        F.cross_entropy(found, target).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-6, rtol=1e-4)
    assert num_params(ours.config) == sum(parameter.numel() for parameter in ours.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["registers", "LayerScale", "qk-norm", "attention pooling"])
def test_a_part_that_is_left_out_is_seen(randomised, part):
    """The tolerance above can tell: without the part the logits differ by far more."""
    ours, _ = pair(randomised, **PARTS[part])
    plain = VisionTransformer(config_of(TimmViT(**SIZE))).eval()
    state = plain.state_dict()
    plain.load_state_dict(
        state | {k: v for k, v in ours.state_dict().items() if k in state and v.shape == state[k].shape}
    )
    x = torch.randn(3, 3, 32, 32)
    assert not torch.allclose(plain(x), ours(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", ["LayerScale", "attention pooling", "registers", "qk-norm"])
def test_prepared_for_inference_a_part_gives_the_same_logits(randomised, part):
    ours, _ = pair(randomised, **PARTS[part])
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    logits, embedding = prepare(ours, Preprocessing(), "fp32", "cpu")(patchify(images, 8))
    floats = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    torch.testing.assert_close(logits, ours(floats), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        embedding, ours.forward_head(ours.forward_features(floats), pre_logits=True), atol=1e-5, rtol=1e-4
    )


HYBRIDS = {
    "R+Ti/16": "vit_tiny_r_s16_p8_224",
    "R26+S/32": "vit_small_r26_s32_224",
    "R50+B/16": "vit_base_r50_s16_224",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_is_timms_but_for_the_documented_eps(randomised, monkeypatch, name):
    theirs = randomised(timm.create_model(HYBRIDS[name], img_size=64, num_classes=7))
    config = config_of(theirs)
    assert config == variant(name, image_size=64, num_classes=7)
    ours = VisionTransformer(config).eval()
    ours.load_state_dict(theirs.state_dict())
    assert num_params(config) == sum(parameter.numel() for parameter in theirs.parameters())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        difference = (ours(x) - theirs(x)).abs().max()
        monkeypatch.setattr(wordsworth.vit_model.hybrid.StdConv, "kernel", _timms_standardised)
        torch.testing.assert_close(ours(x), theirs(x), atol=5e-5, rtol=1e-4)
    assert difference < 5e-3, "more than an eps is different"


def _timms_standardised(self) -> torch.Tensor:
    variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
    return (self.weight - mean) / (variance + 1e-8).sqrt()


@pytest.mark.slow
def test_a_hybrid_takes_patches_floats_or_uint8_as_well_as_images(randomised):
    config = variant("R26+S/32", image_size=(64, 96), num_classes=7)
    model, preprocessing = (
        randomised(VisionTransformer(config)),
        Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.2, 0.3, 0.4)),
    )
    pixels = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    floats = (pixels / 255 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    with torch.no_grad():
        expected = model(floats.permute(0, 3, 1, 2))
        assert torch.equal(model(patchify(floats, config.patch_size)), expected)
    logits, _ = prepare(model, preprocessing, "fp32", "cpu")(patchify(pixels, config.patch_size))
    torch.testing.assert_close(logits, expected, **CLOSE)
    bf16, _ = prepare(model, preprocessing, "bf16", "cpu")(patchify(pixels, config.patch_size))
    assert F.cosine_similarity(bf16, expected).min() > 0.999


@pytest.mark.parametrize("position", ["none", "learned-1d", "learned-2d", "sincos-2d", "sincos-2d-mae"])
@pytest.mark.parametrize("position_at", ["stem", "every-layer", "every-layer-shared"])
def test_every_position_of_table_8_runs_learns_and_counts(position, position_at):
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        width=32,
        depth=3,
        heads=2,
        mlp_dim=64,
        num_classes=4,
        position=position,
        position_at=position_at,
    )
    model = VisionTransformer(config)
    assert num_params(config) == sum(parameter.numel() for parameter in model.parameters())
    nn.init.normal_(model.head.weight)
    x = torch.randn(2, 3, 32, 32)
    model(x).square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters()
    )
    shuffled = patchify(x.permute(0, 2, 3, 1), 8)[:, torch.randperm(16)]
    same = torch.allclose(model(shuffled), model(x), atol=1e-5)
    assert same == (position == "none"), (
        "without positions the order of the patches is unknown, with them it is not"
    )


def test_dropout_and_drop_path_act_in_training_only():
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        width=32,
        depth=3,
        heads=2,
        mlp_dim=64,
        num_classes=4,
        dropout=0.5,
        drop_path=0.5,
    )
    model, x = VisionTransformer(config), torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.head.weight)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_the_pretraining_head_has_a_tanh_and_fine_tuning_replaces_all_of_it_by_zeros():
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        width=32,
        depth=2,
        heads=2,
        mlp_dim=64,
        num_classes=4,
        representation_size=16,
    )
    model, x = VisionTransformer(config).eval(), torch.randn(2, 3, 32, 32)
    y = model.pool(model.forward_features(x))
    expected = torch.tanh(F.linear(y, model.pre_logits.weight, model.pre_logits.bias))
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), expected)
    assert expected.shape == (2, config.embedding_dim)
    saved = Checkpoint(config=config, preprocessing=Preprocessing(), state=model.state_dict())
    fine_tuned = saved.with_head(9).model()
    assert torch.equal(fine_tuned(x), torch.zeros(2, 9)) and fine_tuned.config.representation_size == 0


def std(tensor: torch.Tensor) -> float:
    return tensor.std().item()


@pytest.mark.slow
def test_the_optional_parts_start_as_in_the_jax_code():
    """LeCun's normal has a variance of 1 / fan_in, Xavier's uniform an edge of sqrt(6 / (in + out))."""
    config = ViTConfig(
        image_size=64,
        patch_size=16,
        width=192,
        depth=1,
        heads=4,
        mlp_dim=768,
        resnet=(2, 2, 2),
        pool="map",
        class_token=False,
        representation_size=192,
        registers=4,
    )
    model = VisionTransformer(config)
    for name, module in model.patch_embed.backbone.named_modules():
        if isinstance(module, wordsworth.vit_model.hybrid.StdConv):
            assert std(module.weight) == pytest.approx(module.weight[0].numel() ** -0.5, rel=0.06), name
        elif isinstance(module, nn.GroupNorm):
            starts = 0 if name.endswith("norm3") else 1  # the residual branches start switched off
            assert (module.weight == starts).all() and (module.bias == 0).all(), name
    assert std(model.patch_embed.proj.weight) == pytest.approx(config.stem_channels**-0.5, rel=0.02)
    assert (
        std(model.pre_logits.weight) == pytest.approx(192**-0.5, rel=0.02)
        and (model.pre_logits.bias == 0).all()
    )
    pool, edge = model.attn_pool, (6 / (192 + 192)) ** 0.5
    for matrix in (pool.q.weight, *pool.kv.weight.chunk(2), pool.proj.weight):
        assert matrix.abs().max() <= edge and std(matrix) == pytest.approx(edge / 3**0.5, rel=0.02)
    assert std(pool.latent) == pytest.approx((2 / (1 + 192)) ** 0.5, rel=0.15)
    for linear in (pool.mlp.fc1, pool.mlp.fc2):
        assert std(linear.weight) == pytest.approx((2 / (192 + 768)) ** 0.5, rel=0.02)
        assert std(linear.bias) == pytest.approx(1e-6, rel=0.15)
    assert (pool.q.bias == 0).all() and (pool.kv.bias == 0).all() and (pool.proj.bias == 0).all()
    assert 0 < std(model.reg_token) < 1e-5 and (model.head.weight == 0).all() and (model.head.bias == 0).all()
