"""Promises of attention that is seen while a model labels: it is that of the pass, of any way of pooling, and
of other libraries' modules; or one line says why not."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.support.transformers_families import CLASSIFIERS, randomised
from wordsworth.vit_model import analysis
from wordsworth.vit_model.attended import (
    Attention,
    Layout,
    _AttentionCalls,
    filters_of,
    layout_of,
    positions_of,
    see,
)
from wordsworth.vit_model.checkpoint import Checkpoint, random_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign.load import from_folder, from_timm
from wordsworth.vit_model.foreign.timm_module import load_timm_module
from wordsworth.vit_model.patches import patchify

MODELS = {
    "class": {},
    "registers": {"registers": 3},
    "distilled": {"registers": 1, "pool": "distilled"},
    "average": {"pool": "avg", "class_token": False},
    "average beside class": {"pool": "avg"},
    "attention pool": {"pool": "map", "class_token": False},
    "hybrid": {"resnet": (1,), "patch_size": 8},
    "normalised queries": {"qk_norm": True},
}


def checkpoint_of(**parts: object) -> Checkpoint:
    """Return a model of 4 x 6 patches whose attention is far from uniform."""
    sizes = {"image_size": (32, 48), "patch_size": 8, "width": 32, "depth": 3, "heads": 4, "mlp_dim": 64}
    checkpoint = random_checkpoint(ViTConfig(num_classes=5, **sizes | parts), Preprocessing(), 0)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in checkpoint.state.items():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
        if "qkv.weight" in name or "attn_pool" in name:
            tensor.mul_(3)
    return checkpoint


def image_of(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image as uint8 patches (N, P*P*3), and as normalised floats (1, 3, H, W)."""
    shape = (*checkpoint.config.image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    mean, std = torch.tensor(checkpoint.preprocessing.mean), torch.tensor(checkpoint.preprocessing.std)
    floats = ((pixels / 255 - mean) / std).permute(2, 0, 1)[None]
    return patchify(pixels, checkpoint.config.patch_size), floats


def seen_by(checkpoint, patches: torch.Tensor):
    return see(checkpoint.for_inference("fp32", "cpu"), patches, layout_of(checkpoint, checkpoint.model()))


@pytest.mark.parametrize("parts", MODELS.values(), ids=MODELS)
def test_what_is_seen_is_the_attention_of_the_pass_that_labels(parts):
    checkpoint = checkpoint_of(**parts)
    patches, floats = image_of(checkpoint)
    seen = seen_by(checkpoint, patches)
    model = checkpoint.model()
    maps = analysis.attention_maps(model, floats)  # by hooks on other layers of the model as it was trained
    joint = analysis.rollout(maps)[0].detach()
    prefix, grid = model.num_prefix, checkpoint.config.grid
    expected = {
        "token": joint[0],
        "distilled": (joint[0] + joint[1]) / 2,
        "avg": joint[prefix:].mean(0),
    }
    with torch.no_grad():
        torch.testing.assert_close(seen.logits, model(floats)[0], rtol=1e-3, atol=1e-4)
    assert isinstance(seen.attention, Attention)
    if checkpoint.config.pool == "map":
        pool = seen.attention.pool_heads.flatten(1)
        assert torch.allclose(pool.sum(1), torch.ones(4), atol=1e-5)
        expected["map"] = pool.mean(0) @ joint[prefix:]
    rollout = expected[checkpoint.config.pool][prefix:].unflatten(-1, grid)
    torch.testing.assert_close(seen.attention.rollout, rollout, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        seen.attention.distances, analysis.attention_distances(model, floats)[0], rtol=1e-3, atol=1e-3
    )
    rows = (
        maps[1][0, :, 0]
        if checkpoint.config.pool in ("token", "distilled")
        else maps[1][0, :, prefix:].mean(1)
    )
    torch.testing.assert_close(seen.attention.heads[0, 1].flatten(1), rows[:, prefix:], rtol=1e-3, atol=1e-5)


def test_two_tokens_have_an_attention_each_and_the_pools_are_its_own():
    distilled = checkpoint_of(registers=1, pool="distilled")
    attention = seen_by(distilled, image_of(distilled)[0]).attention
    assert attention.layout.queries == ("[class]", "[distillation]") and attention.heads.shape[0] == 2
    assert not torch.allclose(attention.heads[0], attention.heads[1], atol=1e-3)
    pooled = checkpoint_of(pool="map", class_token=False)
    found = seen_by(pooled, image_of(pooled)[0]).attention
    hook: list[torch.Tensor] = []
    model = pooled.model()
    model.attn_pool.kv.register_forward_hook(lambda _, inputs, out: hook.append(out))
    with torch.no_grad():
        model(image_of(pooled)[1])
    keys = hook[0][0, :, :32].unflatten(-1, (4, 8)).transpose(0, 1)  # (heads, N, D_h)
    query = model.attn_pool.q(model.attn_pool.latent)[0, 0].unflatten(-1, (4, 8))  # (heads, D_h)
    expected = ((keys @ query[..., None])[..., 0] / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close(found.pool_heads.flatten(1), expected.detach(), rtol=1e-3, atol=1e-5)


def everyone_reads(patch: int, depth: int = 2) -> Checkpoint:
    """Return a model in which every token of every layer attends to one patch alone."""
    checkpoint = checkpoint_of(depth=depth, heads=1, norm_eps=1e-6)
    state = checkpoint.state
    for name, tensor in state.items():
        if name.startswith(("patch_embed", "cls_token", "pos_embed", "blocks")) and "norm" not in name:
            tensor.zero_()  # tokens are their positions, and no layer changes them
    state["pos_embed"][0, :, 0] = 1.0
    state["pos_embed"][0, 1 + patch, 0], state["pos_embed"][0, 1 + patch, 1] = 0.0, 1.0
    for layer in range(depth):
        for name in ("norm1", "norm2"):
            state[f"blocks.{layer}.{name}.weight"].fill_(1.0)
            state[f"blocks.{layer}.{name}.bias"].zero_()
        state[f"blocks.{layer}.attn.qkv.bias"][0] = 100.0  # the query of every token
        state[f"blocks.{layer}.attn.qkv.weight"][32, 1] = 100.0  # the key: the second number of the token
    return checkpoint


def test_constructed_attention_has_the_rollout_and_the_distance_worked_out_by_hand():
    patch = 8  # row 2, column 3 of 4 x 6
    checkpoint = everyone_reads(patch)
    attention = seen_by(checkpoint, image_of(checkpoint)[0]).attention
    expected = torch.zeros(4, 6)
    # Half stays and half is read, twice: a quarter of [class] itself, the rest what the patch is.
    expected[1, 2] = 0.75
    torch.testing.assert_close(attention.rollout, expected, rtol=0, atol=1e-6)
    cells = [(row, column) for row in range(4) for column in range(6)]
    pixels = sum(8 * math.dist(cell, (1, 2)) for cell in cells) / 24
    assert attention.distances.flatten().tolist() == pytest.approx([pixels, pixels], abs=1e-3)
    assert attention.heads[0, :, 0, 1, 2].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_bfloat16_shows_the_same_patch():
    checkpoint = everyone_reads(8)
    model = checkpoint.for_inference("bf16", "cpu")
    seen = see(model, image_of(checkpoint)[0], layout_of(checkpoint, checkpoint.model()))
    assert seen.attention.rollout.argmax() == 8 and seen.attention.rollout.dtype == torch.float32
    logits, _ = model(image_of(checkpoint)[0][None])
    assert torch.equal(seen.logits, logits[0]), "the attention is that of the pass that labels"


# ---- modules of other libraries ----------------------------------------------------------------------------


def timm_file(name: str, folder: Path) -> Path:
    """Write random weights of a timm model."""
    torch.manual_seed(0)
    net = timm.create_model(name)
    state = {
        key: t + 0.05 * torch.randn(t.shape) if t.is_floating_point() else t
        for key, t in net.state_dict().items()
    }
    torch.save(state, folder / "w.pth")
    return folder / "w.pth"


def module_of(name: str, folder: Path):
    return load_timm_module(name, timm_file(name, folder), note=lambda text: None)


def test_timms_own_module_shows_the_attention_of_our_model_of_the_same_weights(tmp_path):
    module = module_of("test_vit", tmp_path)
    ours = from_timm("test_vit", tmp_path / "w.pth", lambda text: None)
    assert isinstance(ours, Checkpoint)
    pixels = torch.randint(0, 256, (*ours.config.image_size, 3), dtype=torch.uint8)
    of_ours = seen_by(ours, patchify(pixels, ours.config.patch_size)).attention
    of_theirs = seen_by(module, patchify(pixels, module.config.patch_size)).attention
    assert of_theirs.layout == of_ours.layout
    for name in ("rollout", "heads", "distances"):
        torch.testing.assert_close(getattr(of_theirs, name), getattr(of_ours, name), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(filters_of(module.model()), filters_of(ours.model()))
    similarity = [positions_of(one, one.model(), of_ours.layout) for one in (module, ours)]
    torch.testing.assert_close(similarity[0], similarity[1])


REFUSED = {
    "test_convnext": "has no layers of attention|does not cut",
    "test_maxvit": "does not cut the image into patches|not over all patches",
    "test_resnet": "does not cut",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_without_attention_over_all_patches_is_one_line(name, tmp_path):
    module = module_of(name, tmp_path)
    pixels = torch.zeros((*module.config.image_size, 3), dtype=torch.uint8)
    patches = patchify(pixels, module.config.patch_size)
    try:
        layout: Layout | str = layout_of(module, module.model())
    except ModelError as error:
        layout = str(error)
    seen = see(module.for_inference("fp32", "cpu"), patches, layout)
    assert seen.logits is not None and isinstance(seen.attention, str)
    assert torch.tensor([part in seen.attention for part in REFUSED[name].split("|")]).any()
    assert filters_of(module.model()).shape[1] == 3


def test_relative_positions_are_no_table_and_their_attention_is_seen(tmp_path):
    module = module_of("test_vit_relpos", tmp_path)
    pixels = torch.randint(0, 256, (*module.config.image_size, 3), dtype=torch.uint8)
    attention = seen_by(module, patchify(pixels, module.config.patch_size)).attention
    assert isinstance(attention, Attention) and attention.rollout.sum() <= 1.001
    with pytest.raises(ModelError, match="no table of positions"):
        positions_of(module, module.model(), attention.layout)


def test_transformers_own_class_shows_the_attention_that_it_gives_itself(tmp_path):
    kind, make_config, size = CLASSIFIERS["beit"]
    theirs = randomised(kind(make_config()), lambda model, x: model(pixel_values=x).logits, size)
    theirs.save_pretrained(tmp_path)
    checkpoint = from_folder(tmp_path, lambda text: None)
    pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8)
    attention = seen_by(checkpoint, patchify(pixels, checkpoint.config.patch_size)).attention
    theirs.set_attn_implementation("eager")
    mean, std = torch.tensor(checkpoint.preprocessing.mean), torch.tensor(checkpoint.preprocessing.std)
    floats = ((pixels / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        maps = theirs(pixel_values=floats, output_attentions=True).attentions
    joint = analysis.rollout(maps)[0]
    assert attention.layout.pool == "avg" and attention.layout.num_prefix == 1
    expected = joint[1:].mean(0)[1:].unflatten(-1, attention.layout.grid)
    torch.testing.assert_close(attention.rollout, expected, rtol=1e-3, atol=1e-5)


def test_attention_by_torchs_own_layer_is_seen_and_its_result_is_unchanged():
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(1, 6, 16)
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        expected, weights = layer(x, x, x, average_attn_weights=False)
        with _AttentionCalls(seen.append):
            found, nothing = layer(x, x, x, need_weights=False)
    assert nothing is None
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(seen[0], weights)


@pytest.mark.parametrize("mask", ["bool", "float"])
def test_masks_and_scales_count(mask):
    q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
    allowed = torch.rand(5, 5) > 0.3
    allowed.fill_diagonal_(True)
    given = allowed if mask == "bool" else torch.randn(5, 5)
    seen: list[torch.Tensor] = []
    with _AttentionCalls(seen.append):
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=0.7)
    torch.testing.assert_close(seen[0] @ v, found, rtol=1e-4, atol=1e-5)


def test_a_root_of_a_hybrid_has_its_filters_as_the_pass_applies_them():
    checkpoint = checkpoint_of(resnet=(1,))
    kernel = filters_of(checkpoint.model())
    assert kernel.shape == (64, 3, 7, 7)
    assert torch.allclose(kernel.mean((1, 2, 3)), torch.zeros(64), atol=1e-4)  # standardised
    assert analysis.rgb_filters(kernel, 28).shape == (28, 7, 7, 3)


def test_a_model_without_positions_is_refused():
    checkpoint = checkpoint_of(position="none")
    with pytest.raises(ModelError, match="none"):
        positions_of(checkpoint, checkpoint.model(), layout_of(checkpoint, checkpoint.model()))
    assert replace(layout_of(checkpoint, checkpoint.model()), pool="map").queries == ("mean of the patches",)
