"""What convert writes: the library it is for computes the same from it, and it comes back bit-identical."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config

from tests.support.parity import FP32, images
from wordsworth.pipeline.images.decode import crop_for_evaluation
from wordsworth.vit_model.checkpoint import Checkpoint, random_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign.export import export_model
from wordsworth.vit_model.foreign.load import from_file, from_folder, from_timm
from wordsworth.vit_model.model_folder import load_folder
from wordsworth.vit_model.variants import variant

BASE = {
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 72,
    "num_classes": 5,
}
LABELS = ("ant", "bee", "cat", "dog", "é, ü")
PREPROCESSING = Preprocessing(
    interpolation="bilinear", crop_pct=0.8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)
HF = {"pos_interp": "hf"}
CLIP = {"norm_eps": 1e-5, "norm_pre": True, "patch_bias": False}
GOOGLE = {"gelu": "tanh", "pos_interp": "google"}
CASES = {
    "timm": {
        "plain": {},
        "tanh GELU": {"gelu": "tanh"},
        "CLIP's eps and GELU": CLIP | {"gelu": "quick"},
        "CLIP with its projection": CLIP | {"num_classes": 0, "representation_size": 16, "projection": True},
        "no class row": {"class_position": False},
        "not square": {"image_size": (32, 48)},
        "average": {"class_token": False, "pool": "avg", "pool_norm": True},
        "MAP": {"class_token": False, "pool": "map"},
        "LayerScale, qk-norm, no bias": {"layer_scale": 0.1, "qk_norm": True, "qkv_bias": False},
        "no head": {"num_classes": 0},
        "distilled": {"registers": 1, "pool": "distilled"},
    },
    "hf": {
        "plain": HF,
        "HF's own eps": HF | {"norm_eps": 1e-12},
        "tanh GELU": HF | {"gelu": "tanh"},
        "quick GELU": HF | {"gelu": "quick"},
        "not square": HF | {"image_size": (32, 48)},
        "no bias": HF | {"qkv_bias": False},
        "pooler": HF | {"num_classes": 0, "representation_size": 32},
        "distilled": HF | {"registers": 1, "pool": "distilled"},
    },
    "npz": {
        "plain": GOOGLE,
        "hidden layer": GOOGLE | {"representation_size": 16},
        "no class row": GOOGLE | {"class_position": False},
        "average": GOOGLE | {"class_token": False, "pool": "avg"},
        "MAP": GOOGLE | {"class_token": False, "pool": "map"},
        "hybrid": GOOGLE | {"resnet": (1, 2), "image_size": 32},
        "hybrid of a root alone": GOOGLE | {"resnet": (), "patch_size": 8},
    },
}
ALL = [(format, case) for format, cases in CASES.items() for case in cases]


def made(options: dict, labels: bool = True) -> Checkpoint:
    config = ViTConfig(**BASE | options)
    checkpoint = random_checkpoint(
        config, PREPROCESSING, 0, LABELS[: config.num_classes] if config.num_classes and labels else None
    )
    generator = torch.Generator().manual_seed(1)
    for tensor in checkpoint.state.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return checkpoint


def written(checkpoint: Checkpoint, folder, format: str) -> Checkpoint:
    """Written and read again, by our own code."""
    path = folder / ("w.npz" if format == "npz" else "model")
    export_model(checkpoint, path, format)
    if format == "timm":
        return from_timm(f"local-dir:{path}")
    return from_file(path) if format == "npz" else from_folder(path)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "case"), ALL)
def test_a_round_trip_is_bit_identical(format, case, tmp_path):
    before = made(CASES[format][case])
    after = written(before, tmp_path, format)
    assert after.state.keys() == before.state.keys()
    assert all(torch.equal(after.state[name], before.state[name]) for name in before.state)
    assert (
        replace(after.config, layer_scale=before.config.layer_scale) == before.config
    )  # its start is no part of the weights
    if format != "npz":  # which carries neither
        assert after.labels == before.labels and after.preprocessing == before.preprocessing


def size_of(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.config.image_size


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES["timm"])
def test_timm_computes_the_same_from_the_folder(case, tmp_path):
    checkpoint = made(CASES["timm"][case])
    export_model(checkpoint, tmp_path, "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(size_of(checkpoint))
    torch.testing.assert_close(checkpoint.model()(x), theirs(x), **FP32)
    transform = resolve_data_config(model=theirs)
    assert (transform["crop_pct"], transform["interpolation"], tuple(transform["mean"])) == (
        0.8,
        "bilinear",
        (0.1, 0.2, 0.3),
    )
    assert create_transform(**transform) is not None


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES["hf"] if case != "pooler"])
def test_transformers_computes_the_same_from_the_folder(case, tmp_path):
    checkpoint = made(CASES["hf"][case])
    export_model(checkpoint, tmp_path, "hf")
    kind = transformers.AutoModelForImageClassification
    if case == "distilled":
        kind = transformers.DeiTForImageClassificationWithTeacher
    theirs = kind.from_pretrained(tmp_path)
    x = images(size_of(checkpoint))
    torch.testing.assert_close(checkpoint.model()(x), theirs(pixel_values=x).logits, **FP32)
    assert tuple(theirs.config.id2label.values()) == LABELS
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert (
        processor.do_center_crop
        and processor.size["shortest_edge"] == 40
        and list(processor.image_mean) == [0.1, 0.2, 0.3]
    )


@pytest.mark.slow
def test_transformers_pools_the_same_from_a_folder_without_a_head(tmp_path):
    checkpoint = made(CASES["hf"]["pooler"])
    export_model(checkpoint, tmp_path, "hf")
    x = images()
    theirs = transformers.AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(checkpoint.model()(x), theirs(pixel_values=x).pooler_output, **FP32)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("plain", {}),
        ("no class row", {"no_embed_class": True}),
        ("average", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("MAP", {"class_token": False, "global_pool": "map"}),
    ],
)
def test_timms_npz_loader_computes_the_same_from_the_file(case, options, tmp_path):
    checkpoint = made(CASES["npz"][case])
    export_model(checkpoint, tmp_path / "w.npz", "npz")
    size = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 2.25,
        "num_classes": 5,
    }
    theirs = timm.create_model("vit_base_patch16_224", act_layer="gelu_tanh", **size, **options)
    theirs.load_pretrained(str(tmp_path / "w.npz"))
    x = images()
    torch.testing.assert_close(checkpoint.model()(x), theirs.eval()(x), **FP32)


@pytest.mark.parametrize("name", ["model", "one.safetensors"])
def test_our_own_form_is_a_folder_or_one_file_with_all_inside(name, tmp_path):
    before = made({})
    export_model(before, tmp_path / name, "safetensors")
    after = from_file(tmp_path / name) if name.endswith("s") else load_folder(tmp_path / name)
    assert after.fingerprint() == before.fingerprint() and after.labels == before.labels
    assert (tmp_path / name).is_file() == name.endswith("s")


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("npz", {}, "Google's code computes the tanh GELU, this model has the exact one .*--lossy"),
        ("npz", GOOGLE | {"norm_eps": 1e-12}, "Google's code has a norm eps of 1e-06, this model 1e-12"),
        ("timm", {"norm_eps": 1e-12}, "timm would take a norm eps of 1e-06, this model has 1e-12"),
        ("npz", GOOGLE | {"registers": 2}, "no place for reg_token"),
        ("npz", GOOGLE | {"layer_scale": 0.1}, "no place for blocks.0.ls1.gamma"),
        ("npz", GOOGLE | {"pool": "avg"}, "no place for this pooling with a class token"),
        ("hf", {"layer_scale": 0.1}, "no place for blocks.0.ls1.gamma"),
        ("hf", {"pool": "avg", "class_token": False}, "no place for class_token = False"),
        ("hf", {"position": "sincos-2d"}, "no place for position = 'sincos-2d'"),
        ("hf", {"representation_size": 16}, "a hidden layer only in models without a head"),
        ("timm", {"position_at": "every-layer"}, "no place for position_at = 'every-layer'"),
        ("timm", {"norm_pre": True}, "a bias of patches just where it has no norm before the blocks"),
        ("timm", {"representation_size": 16}, "no place for the hidden layer of a pre-training head"),
        ("timm", {"registers": 2, "pool": "distilled"}, "no place for registers = 2"),
        ("hf", HF | {"registers": 1, "pool": "distilled", "num_classes": 0}, "no place for num_classes = 0"),
        ("timm", {"resnet": (1, 1), "image_size": 32, "pool": "avg"}, "no place for pool = 'avg'"),
        ("timm", {"resnet": (1, 1), "image_size": 32, "layer_scale": 0.1}, "no place for layer_scale = 0.1"),
        (
            "timm",
            {"resnet": (1, 1), "image_size": 32},
            "timm standardises a hybrid's kernels with another eps",
        ),
    ],
)
def test_what_a_form_cannot_hold_or_say_is_refused_and_nothing_is_written(format, options, message, tmp_path):
    path = tmp_path / ("w.npz" if format == "npz" else "model")
    with pytest.raises(ModelError, match=message) as error:
        export_model(made(options), path, format)
    assert "\n" not in str(error.value) and not path.exists()


def test_an_accepted_loss_is_a_note(tmp_path):
    notes = export_model(made({}), tmp_path / "w.npz", "npz", lossy=True)
    assert any("tanh GELU" in note for note in notes)
    assert from_file(tmp_path / "w.npz").config.gelu == "tanh"


@pytest.mark.parametrize(
    ("format", "change", "note"),
    [
        ("hf", {"crop_pct": 0.9}, "crop_pct 0.9 becomes 0.914286"),
        ("timm", {"exif": "ignore"}, "EXIF"),
        ("npz", {}, "neither the preprocessing nor the names"),
    ],
)
def test_what_prepares_pictures_and_is_not_said_is_a_note(format, change, note, tmp_path):
    checkpoint = made(GOOGLE | {"pos_interp": {"hf": "hf", "timm": "timm", "npz": "google"}[format]})
    path = tmp_path / ("w.npz" if format == "npz" else "m")
    notes = export_model(replace(checkpoint, preprocessing=replace(PREPROCESSING, **change)), path, format)
    assert len(notes) == 1 and note in notes[0]


def test_a_folder_of_clips_eps_with_a_head_of_zeros_has_classes_still(tmp_path):
    checkpoint = made(CLIP)
    checkpoint.state["head.bias"].zero_()
    assert written(checkpoint, tmp_path, "timm").config.num_classes == 5


def test_transformers_gives_the_model_the_same_pixels(tmp_path):
    checkpoint = replace(made(HF), preprocessing=Preprocessing(interpolation="bilinear", crop_pct=0.8))
    export_model(checkpoint, tmp_path, "hf")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (320, 240), 3
    )
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    ours = (
        crop_for_evaluation(image, checkpoint.preprocessing, (32, 32)).transpose(2, 0, 1) / 255 - 0.5
    ) / 0.5
    assert np.abs(ours - theirs).mean() < 0.02, "about two levels of 255"


def test_registers_beside_a_class_position_are_timms_in_its_own_way(tmp_path):
    """DINOv2's: timm adds the position to the token; the outputs stay, the tensors do not."""
    checkpoint = made({"registers": 3, "layer_scale": 0.1})
    export_model(checkpoint, tmp_path, "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images()
    torch.testing.assert_close(checkpoint.model()(x), theirs(x), **FP32)


@pytest.mark.slow
def test_a_hybrid_is_timms_by_its_name_where_the_loss_is_accepted(tmp_path):
    checkpoint = random_checkpoint(variant("R26+S/32", 64, 7), Preprocessing(), 0)
    notes = export_model(checkpoint, tmp_path, "timm", lossy=True)
    assert any("another eps" in note for note in notes)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "vit_small_r26_s32_224"
    after = from_timm(f"local-dir:{tmp_path}")
    assert after.config == checkpoint.config
    assert all(torch.equal(after.state[name], tensor) for name, tensor in checkpoint.state.items())


def test_an_npz_that_is_not_called_so_and_an_unknown_form_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"must end in \.npz"):
        export_model(made(GOOGLE), tmp_path / "w", "npz")
    with pytest.raises(ModelError, match="the format timm is a folder"):
        export_model(made({}), tmp_path / "w.npz", "timm")
    with pytest.raises(ModelError, match="format is 'onnx'; it must be one of safetensors, timm, hf, npz"):
        export_model(made({}), tmp_path / "w", "onnx")
