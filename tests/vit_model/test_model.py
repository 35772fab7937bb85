import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F

from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.inference import prepare
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.patches import patchify
from wordsworth.vit_model.variants import variant

TIMM = {"vit_tiny_patch16_224": "Ti/16", "vit_small_patch16_224": "S/16", "vit_base_patch16_224": "B/16"}
FP32 = {"atol": 1e-5, "rtol": 1e-4}
FP64 = {"atol": 1e-12, "rtol": 0}


def ours_with(weights: torch.nn.Module, config: ViTConfig) -> VisionTransformer:
    with torch.device("meta"):
        model = VisionTransformer(config)
    model.load_state_dict({k: v.clone() for k, v in weights.state_dict().items()}, assign=True)
    return model.eval()


def steps(model: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What goes into the first block, what comes out of every block, the normalised tokens, the logits."""
    seen = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
    hooks += [
        m.register_forward_hook(lambda _, __, out: seen.append(out)) for m in [*model.blocks, model.norm]
    ]
    with torch.no_grad():
        seen.append(model(images))
    for hook in hooks:
        hook.remove()
    return seen


def all_close(found: list[torch.Tensor], expected: list[torch.Tensor], atol: float, rtol: float) -> bool:
    assert len(found) == len(expected)
    return all(torch.allclose(f, e, atol=atol, rtol=rtol) for f, e in zip(found, expected, strict=True))


@pytest.fixture(params=TIMM, scope="module")
def name(request):
    return request.param


@pytest.fixture
def reference(name, randomised):
    return randomised(timm.create_model(name))


def images(batch: int = 2, size: int = 224) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_every_token_and_logit_is_timms_in_single_and_double_precision(name, reference):
    model = ours_with(reference, variant(TIMM[name]))
    found, expected = steps(model, images()), steps(reference, images())
    assert (
        expected[-1].abs().min() > 0 and expected[-1].std() > 0.1
    )  # the head is not zero: there is something to see
    assert all_close(found, expected, **FP32)
    x = images(batch=1).double()
    assert all_close(steps(model.double(), x), steps(reference.double(), x), **FP64)


@pytest.mark.slow
def test_every_gradient_is_timms(name, reference):
    model = ours_with(reference, variant(TIMM[name]))
    labels = torch.tensor([3, 141])
    for m in (model, reference):
        F.cross_entropy(m(images()), labels).backward()
    expected_gradients = {key: parameter.grad for key, parameter in reference.named_parameters()}
    for key, parameter in model.named_parameters():
        found, expected = parameter.grad, expected_gradients.pop(key)
        if key.endswith(
            "qkv.bias"
        ):  # the loss does not depend on k's bias (softmax is shift invariant): only noise
            torch.testing.assert_close(found.chunk(3)[1], expected.chunk(3)[1], atol=1e-6, rtol=0)
            found, expected = (torch.cat([g.chunk(3)[0], g.chunk(3)[2]]) for g in (found, expected))
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), key
    assert not expected_gradients


@pytest.mark.slow
def test_a_step_of_sgd_with_momentum_ends_where_timms_does(name, reference):
    model = ours_with(reference, variant(TIMM[name]))
    losses = {}
    for m in (model, reference):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9)
        loss = losses[m] = F.cross_entropy(m(images()), torch.tensor([3, 141]))
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(*losses.values(), **FP32)
    expected = reference.state_dict()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], **FP32, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [{"gelu": "tanh"}, {"gelu": "quick"}, {"norm_eps": 1e-5}, {"norm_eps": 1e-12}],
    ids=lambda w: "-".join(map(str, next(iter(w.items())))),
)
def test_a_wrong_switch_is_caught_by_the_tolerance(wrong, randomised):
    reference = randomised(timm.create_model("vit_tiny_patch16_224"))
    model = ours_with(reference, replace(variant("Ti/16"), **wrong))
    assert not all_close(steps(model, images()), steps(reference, images()), **FP32)


@pytest.mark.slow
def test_a_table_without_a_class_row_is_timms_no_embed_class_and_the_other_kind_is_caught(randomised):
    reference = randomised(timm.create_model("vit_tiny_patch16_224", no_embed_class=True))
    config = replace(variant("Ti/16"), class_position=False)
    expected = steps(reference, images())
    assert all_close(steps(ours_with(reference, config), images()), expected, **FP32)
    with pytest.raises(RuntimeError, match="pos_embed"):  # a row too few: cannot even be loaded
        ours_with(reference, variant("Ti/16"))
    padded = ours_with(
        reference, config
    )  # and with the row made up, [class] gets a position that it must not have
    padded.config = variant("Ti/16")
    padded.pos_embed = torch.nn.Parameter(torch.cat([padded.pos_embed[:, :1], padded.pos_embed], dim=1))
    assert not all_close(steps(padded, images()), expected, **FP32)


def test_float_images_float_patches_and_folded_uint8_patches_give_the_same_answer(tiny, randomised):
    model = randomised(VisionTransformer(tiny))
    preprocessing = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = torch.randint(256, (4, *tiny.image_size, 3), dtype=torch.uint8)
    floats = (pixels / 255 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    with torch.no_grad():
        expected = model(floats.permute(0, 3, 1, 2))
        assert torch.equal(model(patchify(floats, tiny.patch_size)), expected)
    logits, _ = prepare(model, preprocessing, "fp32", "cpu")(patchify(pixels, tiny.patch_size))
    torch.testing.assert_close(logits, expected, **FP32)  # folding moves only the rounding


def test_features_and_head_are_the_two_halves_of_forward(tiny, randomised):
    model = randomised(VisionTransformer(tiny))
    x = torch.randn(2, 3, *tiny.image_size)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 1 + tiny.num_patches, tiny.width)
    assert torch.equal(model.forward_head(tokens), model(x))
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 0])


def test_a_model_without_a_head_gives_the_class_state(tiny):
    model = VisionTransformer(replace(tiny, num_classes=0))
    x = torch.randn(2, 3, *tiny.image_size)
    assert torch.equal(model(x), model.forward_features(x)[:, 0])
    assert not [key for key in model.state_dict() if key.startswith("head")]


@pytest.mark.slow
def test_the_model_is_built_and_run_without_memory_on_the_meta_device():
    with torch.device("meta"):
        model, x = VisionTransformer(variant("H/14")), torch.empty(2, 3, 224, 224)
    assert model(x).shape == (2, 1000)


@pytest.mark.slow
def test_building_on_the_meta_device_does_not_import_the_compiler():
    code = (
        "import sys, torch; from wordsworth.vit_model.variants import variant\n"
        "from wordsworth.vit_model.model import VisionTransformer\n"
        "with torch.device('meta'): VisionTransformer(variant('Ti/16'))\n"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_initial_weights_are_those_of_the_original_jax_code():
    with torch.device("meta"):
        model = VisionTransformer(variant("Ti/16"))
    for tensor in model.to_empty(device="cpu").parameters():
        torch.nn.init.constant_(tensor, 7.0)
    model.init_weights()  # so what it forgets would still be 7
    state = model.state_dict()
    expected_std = {"patch_embed.proj.weight": 0.0361, "pos_embed": 0.02}  # lecun_normal: sqrt(1 / 768)
    for i in range(12):
        expected_std |= {f"blocks.{i}.attn.proj.weight": 0.0722, f"blocks.{i}.mlp.fc1.weight": 0.0456}
        expected_std |= {f"blocks.{i}.mlp.fc2.weight": 0.0456}
        expected_std |= {f"blocks.{i}.mlp.fc1.bias": 1e-6, f"blocks.{i}.mlp.fc2.bias": 1e-6}
        for q_k_or_v in state[f"blocks.{i}.attn.qkv.weight"].chunk(3):
            assert q_k_or_v.std().item() == pytest.approx(0.0722, rel=0.02)
            assert q_k_or_v.abs().max().item() == pytest.approx(
                0.125, rel=0.001
            )  # sqrt(3 / D): uniform has an edge
    for key, std in expected_std.items():
        assert state[key].std().item() == pytest.approx(std, rel=0.15 if key.endswith("bias") else 0.02), key
    edge = 2 * (1 / 768) ** 0.5 / 0.87962566
    assert state["patch_embed.proj.weight"].abs().max().item() == pytest.approx(edge, rel=0.01)
    for key in state.keys() - expected_std.keys():
        if not key.endswith("qkv.weight"):
            assert (state[key] == float("norm" in key and key.endswith("weight"))).all(), key
