"""Check Google's .npz: files written by hand in its naming, read by timm's own loader and by ours."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import wordsworth.vit_model.hybrid
from tests.support import npz_files
from tests.support.npz_files import DEPTH, HEADS, MLP, D, P
from tests.support.parity import FP32, assert_outputs, assert_training, images
from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign.load import from_file
from wordsworth.vit_model.foreign.translate import architecture, checkpoint_of, translate
from wordsworth.vit_model.position import sincos_2d
from wordsworth.vit_model.weights import load_weights

TIMM = {
    "img_size": 32,
    "patch_size": P,
    "embed_dim": D,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_ratio": MLP / D,
    "num_classes": 5,
}
TIMM |= {"act_layer": "gelu_tanh"}  # as the JAX code computes; timm's own models of these weights take erf's
BIG_VISION = {
    "tok": {"no_embed_class": True},
    "gap": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "map": {"class_token": False, "global_pool": "map"},
}


def save(path, named: dict[str, np.ndarray]):
    np.savez(path, **named)
    return path


def timms(path, architecture: str = "vit_base_patch16_224", **options) -> nn.Module:
    model = timm.create_model(architecture, **TIMM | options)
    model.load_pretrained(str(path))
    return model.eval()


def assert_is_timms(path, **options) -> None:
    checkpoint, theirs = from_file(path), timms(path, **options)
    assert (checkpoint.config.gelu, checkpoint.config.norm_eps, checkpoint.config.pos_interp) == (
        "tanh",
        1e-6,
        "google",
    )
    assert checkpoint.config.heads == HEADS and checkpoint.preprocessing.mean == (0.5, 0.5, 0.5)
    assert_outputs(checkpoint.model(), theirs, lambda m, x: m(x), lambda m: m.blocks)
    assert_training(checkpoint.model(), theirs, lambda m, x: m(x))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_an_original_file_is_what_timms_loader_makes_of_it(tmp_path, prefix):
    named = {prefix + name: array for name, array in npz_files.original().items()}
    assert_is_timms(save(tmp_path / "w.npz", named))


@pytest.mark.slow
@pytest.mark.parametrize("pool", BIG_VISION)
def test_a_big_vision_file_is_what_timms_loader_makes_of_it(tmp_path, pool):
    path = save(tmp_path / "w.npz", npz_files.big_vision(pool))
    assert_is_timms(path, **BIG_VISION[pool])


def test_a_file_with_stacked_blocks_is_the_file_without(tmp_path):
    named = npz_files.big_vision("map")
    stacked = npz_files.scanned(named)
    assert len(stacked) < len(named)
    one, other = (from_file(save(tmp_path / f"{i}.npz", arrays)) for i, arrays in enumerate((named, stacked)))
    assert one.fingerprint() == other.fingerprint()


def test_the_image_tower_of_two_is_read_and_the_text_tower_left(tmp_path):
    named = npz_files.big_vision("map")
    two = {name.replace("params/", "params/img/"): array for name, array in named.items()}
    two |= {
        "params/txt/Encoder_0/encoder_norm/scale": np.ones(4, np.float32),
        "params/t": np.ones(1, np.float32),
    }
    one, tower = from_file(save(tmp_path / "one.npz", named)), from_file(save(tmp_path / "two.npz", two))
    assert one.fingerprint() == tower.fingerprint()
    assert tower.extra["left_out"] == 2 and "left_out" not in one.extra


@pytest.mark.parametrize("prefix", ["img/", "params/img/"])
def test_siglips_tower_is_squashed_and_the_prefix_may_be_short(tmp_path, prefix):
    named = {name: array for name, array in npz_files.big_vision("map").items() if "/head/" not in name}
    tower = {name.replace("params/", prefix): array for name, array in named.items()} | {
        "txt/x" if prefix == "img/" else "params/txt/x": np.ones(1)
    }
    checkpoint = from_file(save(tmp_path / "w.npz", tower))
    assert checkpoint.preprocessing.crop_mode == "squash" and checkpoint.config.num_classes == 0
    assert all(
        torch.equal(checkpoint.state[k], t)
        for k, t in from_file(save(tmp_path / "o.npz", named)).state.items()
    )


def test_either_numbering_of_the_parts_is_read_under_either_name_of_the_positions(tmp_path):
    named = npz_files.original()
    linen = {}
    for name, array in named.items():
        for old, new in (
            ("LayerNorm_2", "LayerNorm_1"),
            ("MlpBlock_3", "MlpBlock_0"),
            ("Attention_1", "Attention_0"),
        ):
            name = name.replace(old, new)
        linen[name] = array
    assert linen.keys() != named.keys()
    one, other = (from_file(save(tmp_path / f"{i}.npz", arrays)) for i, arrays in enumerate((named, linen)))
    assert one.fingerprint() == other.fingerprint()


def test_the_optimizers_arrays_are_left_out_and_counted(tmp_path):
    named = {f"opt/target/{name}": array for name, array in npz_files.original().items()}
    checkpoint = from_file(
        save(tmp_path / "w.npz", named | {"opt/state/step": np.ones(1), "opt/state/m/x": np.ones(2)})
    )
    assert checkpoint.extra["left_out"] == 2


def test_a_file_without_a_table_has_sines_and_cosines_and_needs_its_size_named(tmp_path):
    named = {
        name: array for name, array in npz_files.big_vision("gap").items() if "pos_embedding" not in name
    }
    with pytest.raises(ModelError, match="does not tell its image size: it has no position table"):
        from_file(save(tmp_path / "w.npz", named))
    found = translate(load_weights(tmp_path / "w.npz"), "w.npz")
    config = architecture(found, "w.npz", image_size=32)
    assert config.position == "sincos-2d"
    with_table = {**npz_files.big_vision("gap"), "params/pos_embedding": sincos_2d((4, 4), D).numpy()}
    x = images()
    expected = from_file(save(tmp_path / "table.npz", with_table)).model()(x)
    torch.testing.assert_close(
        checkpoint_of(found, config, Preprocessing(), "w").model()(x), expected, **FP32
    )


def test_the_image_tower_of_a_language_model_is_refused(tmp_path):
    named = npz_files.big_vision("gap") | {"params/llm/embedder": np.ones(1)}
    with pytest.raises(ModelError, match="a language model with an image tower"):
        from_file(save(tmp_path / "w.npz", named))


def test_bfloat16_arrays_which_numpy_takes_for_bytes_are_read(tmp_path):
    named = npz_files.original()
    exact = {name: torch.from_numpy(array).bfloat16() for name, array in named.items()}
    raw = {name: tensor.view(torch.int16).numpy().view("V2") for name, tensor in exact.items()}
    found = load_weights(save(tmp_path / "w.npz", raw))
    assert all(torch.equal(found[name], tensor) for name, tensor in exact.items())
    assert from_file(tmp_path / "w.npz").state["cls_token"].dtype == torch.float32


def test_the_hidden_layer_and_its_tanh_are_kept_which_timm_drops(tmp_path):
    named = npz_files.original(classes=7, hidden=16)
    checkpoint = from_file(save(tmp_path / "w.npz", named))
    config = checkpoint.config
    assert (config.representation_size, config.num_classes, config.projection) == (16, 7, False)
    x = images()
    with torch.no_grad():
        y = timms(tmp_path / "w.npz", num_classes=0)(x).numpy()
        hidden = np.tanh(y @ named["pre_logits/kernel"] + named["pre_logits/bias"])
        expected = hidden @ named["head/kernel"] + named["head/bias"]
        torch.testing.assert_close(checkpoint.model()(x), torch.from_numpy(expected), **FP32)


def test_the_released_head_of_21843_classes_is_read(tmp_path):
    config = from_file(save(tmp_path / "w.npz", npz_files.original(classes=21843, hidden=D))).config
    assert (config.num_classes, config.representation_size) == (21843, D)


HYBRIDS = {
    "vit_tiny_r_s16_p8_224": (),
    "vit_small_r26_s32_224": (2, 2, 2, 2),
    "vit_base_r50_s16_224": (3, 4, 9),
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", HYBRIDS)
def test_a_hybrid_is_what_timms_loader_makes_of_it_but_for_the_documented_eps(
    tmp_path, monkeypatch, architecture
):
    layers = HYBRIDS[architecture]
    path = save(tmp_path / "w.npz", npz_files.hybrid(layers))
    checkpoint = from_file(path)
    assert checkpoint.config.resnet == layers and checkpoint.config.image_size == (64, 64)
    options = {name: value for name, value in TIMM.items() if name not in ("patch_size", "img_size")}
    theirs = timm.create_model(architecture, img_size=64, **options)
    theirs.load_pretrained(str(path))
    ours, x = checkpoint.model(), images((64, 64), 2)
    with torch.no_grad():
        expected = theirs.eval()(x)
        difference = (ours(x) - expected).abs().max()
        _take_timms_eps(monkeypatch, ours)
        found = ours(x)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
    assert (found - expected).abs().max() < difference < 5e-3


def _take_timms_eps(monkeypatch, model: nn.Module) -> None:
    def standardised(self):
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return (self.weight - mean) / (variance + 1e-8).sqrt()

    monkeypatch.setattr(wordsworth.vit_model.hybrid.StdConv, "kernel", standardised)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-5


@pytest.mark.parametrize("wrong", ["exact", "quick"])
def test_another_gelu_than_jaxs_is_caught(tmp_path, wrong):
    path = save(tmp_path / "w.npz", npz_files.original())
    ours, theirs = from_file(path).model(), timms(path)
    x = images()
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), **FP32)
        other = timms(path, act_layer={"exact": "gelu", "quick": "quick_gelu"}[wrong])
        assert not torch.allclose(ours(x), other(x), **FP32)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", **npz_files.original(), extra=np.array([{"a": 1}], dtype=object))
    with pytest.raises(
        ModelError, match="cannot be read as weights: ValueError: Object arrays cannot be loaded"
    ):
        load_weights(tmp_path / "w.npz")


def test_a_missing_array_is_called_what_it_is_called_in_the_file(tmp_path):
    named = npz_files.original()
    del named["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"], named["head/bias"]
    with pytest.raises(
        ModelError,
        match=r"1 missing \(Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel\)",
    ):
        from_file(save(tmp_path / "w.npz", named))
