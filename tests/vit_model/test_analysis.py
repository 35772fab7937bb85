import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from wordsworth.vit_model import analysis
from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.model import VisionTransformer

GRID, PATCH = (3, 4), 16
N = GRID[0] * GRID[1]
OPTIONS = {
    "plain": {},
    "qk_norm": {"qk_norm": True, "qkv_bias": False},
    "registers": {"registers": 3},
    "every-layer": {"position_at": "every-layer"},
    "no class": {"class_token": False, "pool": "avg"},
}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 48)


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS)
def model(request: pytest.FixtureRequest, tiny: ViTConfig, randomised) -> VisionTransformer:
    model = randomised(VisionTransformer(replace(tiny, depth=3, **request.param)))
    for block in model.blocks:  # far from uniform attention, or every map would be right
        block.attn.qkv.weight.data *= 3
    return model


def layer_input_and_output(
    model: VisionTransformer, images: torch.Tensor, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    seen = []
    hook = model.blocks[layer].attn.register_forward_hook(
        lambda _, inputs, out: seen.extend((inputs[0], out))
    )
    with torch.no_grad():
        model(images)
    hook.remove()
    return tuple(seen)


@pytest.mark.parametrize("layer", [0, 2])
def test_weights_times_values_are_the_output_of_the_layer(model, images, layer):
    x, expected = layer_input_and_output(model, images, layer)
    attn = model.blocks[layer].attn
    with torch.no_grad():
        v = (
            attn.qkv(x).chunk(3, dim=-1)[2].unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        )  # (B, heads, T, D_h)
    [weights] = analysis.attention_maps(model, images, [layer])
    found = attn.proj((weights @ v).transpose(1, 2).flatten(2))
    assert (found - expected).abs().max() < 1e-5
    uniform = torch.full_like(weights, 1 / weights.shape[-1])  # the tolerance can tell
    assert (attn.proj((uniform @ v).transpose(1, 2).flatten(2)) - expected).abs().max() > 1e-3
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-6)


def test_layers_come_in_order_counted_from_either_end_and_no_hook_stays(model, images):
    every = analysis.attention_maps(model, images)
    tokens = N * 2 + model.num_prefix
    assert [a.shape for a in every] == [(2, 4, tokens, tokens)] * 3
    some = analysis.attention_maps(model, images, [-1, 0])
    assert torch.equal(some[0], every[0]) and torch.equal(some[1], every[2])
    with pytest.raises(IndexError):
        analysis.attention_maps(model, images, [3])
    with pytest.raises(ZeroDivisionError):
        analysis.each_layer(model, images, lambda _: 1 / 0)
    assert not any(block.attn.qkv._forward_hooks for block in model.blocks)


def test_one_layer_is_held_at_a_time(tiny, images):
    model, alive = VisionTransformer(replace(tiny, depth=6)).eval(), []

    def measure(attention: torch.Tensor) -> None:
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(attention))

    analysis.each_layer(model, images, measure)
    assert len(alive) == 6


def random_attentions(layers: int = 3, batch: int = 2) -> list[torch.Tensor]:
    return [torch.rand(batch, 4, 5, 5, dtype=torch.float64) for _ in range(layers)]  # rows do not sum to 1


def looped_rollout(attentions: list[torch.Tensor], image: int, identity: bool) -> np.ndarray:
    joint = np.eye(5)
    for attention in attentions:
        a = attention[image].numpy().mean(0) + identity * np.eye(5)
        joint = np.stack([row / row.sum() for row in a]) @ joint
    return joint


@pytest.mark.parametrize("identity", [True, False])
def test_rollout_normalises_rows_of_each_image_by_itself(identity):
    attentions = random_attentions()
    found = analysis.rollout(attentions, identity)
    for image in range(2):
        np.testing.assert_allclose(found[image], looped_rollout(attentions, image, identity), atol=1e-14)
    assert torch.allclose(found.sum(-1), torch.ones((), dtype=found.dtype))


def test_normalising_without_keepdim_would_be_seen():
    [attention] = random_attentions(layers=1, batch=1)
    a = attention.mean(1) + torch.eye(5)
    wrong = a / a.sum(-1)  # divides column j by the sum of row j
    assert (wrong - analysis.rollout([attention])).abs().max() > 1e-2


def test_rollout_order_and_identity_on_hand_made_layers():
    to_next = torch.tensor([[0.0, 1, 0], [0, 1, 0], [0, 1, 0]])[None, None]  # everyone reads token 1 ...
    to_last = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 1]])[
        None, None
    ]  # ... after everyone has read token 2
    assert torch.equal(analysis.rollout([to_last, to_next], identity=False)[0, 0], torch.tensor([0.0, 0, 1]))
    assert torch.equal(analysis.rollout([to_next, to_last], identity=False)[0, 0], torch.tensor([0.0, 1, 0]))
    # half stays, half is read: 1/4 [class] itself, 1/4 what token 1 was, 1/2 token 2
    assert torch.equal(analysis.rollout([to_last, to_next])[0, 0], torch.tensor([0.25, 0.25, 0.5]))


def test_rollout_of_a_model_is_the_class_row_on_the_patch_grid(model, images):
    if not model.config.class_token:
        with pytest.raises(ModelError, match="none"):
            analysis.attention_rollout(model, images)
        return
    found = analysis.attention_rollout(model, images)
    joint = analysis.rollout(analysis.attention_maps(model, images))
    assert found.shape == (2, 4, 6)
    assert torch.equal(found.flatten(1), joint[:, 0, model.num_prefix :])
    assert not torch.allclose(found, analysis.attention_rollout(model, images, identity=False))


def with_prefix(patches: torch.Tensor, prefix: int = 2) -> torch.Tensor:
    """Half of each row goes to the prefix tokens, which themselves attend to everything."""
    attention = torch.full((1, 1, N + prefix, N + prefix), 1 / (N + prefix), dtype=torch.float64)
    attention[..., prefix:, prefix:] = patches / 2
    attention[..., prefix:, :prefix] = 1 / (2 * prefix)
    return attention


def mean_distance_of_uniform() -> float:
    cells = [(i, j) for i in range(GRID[0]) for j in range(GRID[1])]
    return sum(PATCH * math.dist(a, b) for a in cells for b in cells) / N**2


NEIGHBOUR = torch.eye(N, dtype=torch.float64).roll(
    GRID[1], dims=1
)  # the patch below; from the last row the first: 2 up
HAND_MADE = {
    "uniform": (torch.full((N, N), 1 / N, dtype=torch.float64), mean_distance_of_uniform()),
    "identity": (torch.eye(N, dtype=torch.float64), 0.0),
    "one neighbour": (NEIGHBOUR, (2 * PATCH + 2 * PATCH) / 3),
}


@pytest.mark.parametrize(("patches", "pixels"), HAND_MADE.values(), ids=HAND_MADE)
def test_distance_of_hand_made_attention(patches, pixels):
    attention = with_prefix(patches)
    renormalised = analysis.attention_distance(attention, GRID, PATCH, num_prefix=2, renormalise=True)
    as_published = analysis.attention_distance(attention, GRID, PATCH, num_prefix=2)
    assert renormalised.item() == pytest.approx(pixels, abs=1e-12)
    assert as_published.item() == pytest.approx(pixels / 2, abs=1e-12)


def test_uniform_distance_on_two_by_two_patches_by_hand():
    attention = torch.full((1, 1, 4, 4), 0.25, dtype=torch.float64)
    found = analysis.attention_distance(attention, (2, 2), 16, num_prefix=0).item()
    assert found == pytest.approx((0 + 16 + 16 + 16 * math.sqrt(2)) / 4, abs=1e-12)


def test_a_head_that_sees_only_the_prefix_has_distance_0():
    attention = with_prefix(torch.zeros(N, N, dtype=torch.float64))
    assert analysis.attention_distance(attention, GRID, PATCH, num_prefix=2, renormalise=True).item() == 0


def test_distances_of_a_model_are_per_image_layer_and_head(model, images):
    found = analysis.attention_distances(model, images, renormalise=True)
    assert found.shape == (2, 3, 4)
    alone = analysis.attention_distances(model, images[1:], renormalise=True)
    assert torch.allclose(found[1:], alone, atol=1e-4)
    assert found.min() > 0 and found.max() < 8 * math.hypot(3, 5)  # the diagonal, in pixels
    [last] = analysis.attention_maps(model, images, [2])
    assert torch.equal(
        found[:, 2], analysis.attention_distance(last, (4, 6), 8, model.num_prefix, renormalise=True)
    )


@pytest.mark.parametrize("class_position", [True, False])
def test_position_similarity_leaves_the_class_row_out(tiny, randomised, class_position):
    model = randomised(VisionTransformer(replace(tiny, class_position=class_position, registers=2)))
    found = analysis.position_similarity(model)
    rows = model.pos_embed[0, -24:].detach().numpy()
    for i, j, k, m in [(0, 0, 0, 0), (1, 2, 3, 4), (3, 5, 0, 1)]:
        a, b = rows[i * 6 + j], rows[k * 6 + m]
        assert found[i, j, k, m].item() == pytest.approx(
            a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6
        )
    assert found.shape == (4, 6, 4, 6)


def test_position_similarity_of_sines_falls_with_distance_and_of_none_is_refused(tiny):
    tile = analysis.position_similarity(VisionTransformer(replace(tiny, position="sincos-2d")))[0, 0]
    assert tile[0, 0] > tile[0, 1] > tile[0, 2] and tile[0, 0].item() == pytest.approx(1)
    with pytest.raises(ModelError, match="none"):
        analysis.position_similarity(VisionTransformer(replace(tiny, position="none")))


def test_filters_are_the_principal_components():
    kernel = (
        torch.randn(50, 3, 4, 4) * torch.linspace(1, 3, 48).reshape(3, 4, 4) + 5
    )  # a mean filter that is not 0
    found = analysis.rgb_filters(kernel, 7)
    assert found.shape == (7, 4, 4, 3)
    components = PCA(7, svd_solver="full").fit(kernel.permute(0, 2, 3, 1).flatten(1).numpy()).components_
    for image, component in zip(found.flatten(1).numpy(), components, strict=True):
        component = component * np.sign(component[np.abs(component).argmax()])
        np.testing.assert_allclose(image, (component - component.min()) / np.ptp(component), atol=1e-4)
    assert torch.equal(found.flatten(1).amin(1), torch.zeros(7)) and torch.equal(
        found.flatten(1).amax(1), torch.ones(7)
    )


def test_filters_that_do_not_exist_are_refused():
    with pytest.raises(ModelError, match="47 RGB components, not 48"):
        analysis.rgb_filters(torch.randn(48, 3, 4, 4), 48)
    with pytest.raises(ModelError, match="0 RGB"):
        analysis.rgb_filters(torch.randn(48, 64, 1, 1), 4)
