import json
import subprocess
import sys

import pytest
import torch

from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.cost import macs, num_params
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.variants import PATCH_SIZES, VARIANTS, variant, variant_name

NAMES = [f"{size}/{patch}" for size in VARIANTS for patch in PATCH_SIZES]


@pytest.mark.slow
def test_importing_config_and_patches_does_not_import_torch():
    names = ("config", "variants", "cost", "patches")
    modules = ", ".join(f"wordsworth.vit_model.{name}" for name in names)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_parsed_and_named_back(name):
    assert variant_name(variant(name, image_size=448)) == name


def test_a_model_of_ones_own_size_has_no_variant_name(tiny):
    assert variant_name(tiny) is None


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("s/16", "'S/16'"), ("ViT-B/16", "'B/16'"), ("L/15", "'L/16'"), ("", "/")]
)
def test_an_unknown_variant_is_answered_with_the_nearest_and_all_known_ones(wrong, nearest):
    with pytest.raises(
        ModelError,
        match=f"did you mean .*{nearest}.*Ti, S, M, B, L, H, So400m, g, G.*8, 14, 16, 32.*R50\\+B/16",
    ) as error:
        variant(wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    # With 1000 classes and without a head, as timm counts. Rounded, the paper's 86M, 307M and 632M.
    [
        ("Ti/16", 1000, 5.72),
        ("S/16", 1000, 22.05),
        ("B/16", 1000, 86.57),
        ("B/32", 1000, 88.22),
        ("L/16", 1000, 304.33),
        ("H/14", 1000, 632.05),
        ("Ti/16", 0, 5.52),
        ("S/16", 0, 21.67),
        ("B/16", 0, 85.80),
        ("H/14", 0, 630.76),
    ],
)
def test_num_params_agrees_with_the_published_counts(name, classes, millions):
    assert num_params(variant(name, num_classes=classes)) / 1e6 == pytest.approx(millions, abs=0.0051)


@pytest.mark.parametrize("name", ["Ti/16", "B/32", "L/16", "H/14"])
@pytest.mark.parametrize(
    "switches", [{}, {"class_position": False}, {"num_classes": 0, "image_size": (448, 224)}]
)
def test_num_params_is_the_sum_of_the_real_parameters(name, switches):
    config = ViTConfig.from_dict(variant(name).to_dict() | switches)
    with torch.device("meta"):
        model = VisionTransformer(config)
    assert num_params(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "billions"),
    [
        ("Ti/16", 224, 1.26),
        ("S/16", 224, 4.61),
        ("B/32", 224, 4.41),
        ("B/16", 224, 17.58),
        ("L/16", 224, 61.6),
        ("H/14", 224, 167.4),
        ("B/16", 384, 55.54),
        ("L/16", 384, 191.21),
    ],
)
def test_macs_agree_with_timms_measurements(name, size, billions):
    # timm also counts the biases and norms: up to 1%
    assert macs(variant(name, size)) / 1e9 == pytest.approx(billions, rel=0.01)


def test_configs_survive_json(tiny):
    preprocessing = Preprocessing(
        interpolation="lanczos",
        crop_pct=0.875,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        exif="ignore",
    )
    assert ViTConfig.from_dict(json.loads(json.dumps(tiny.to_dict()))) == tiny
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_an_unknown_field_is_named_with_the_nearest_known_one(tiny):
    with pytest.raises(ModelError, match="ViTConfig has no field 'patchsize'; nearest: 'patch_size'"):
        ViTConfig.from_dict(tiny.to_dict() | {"patchsize": 8})
    with pytest.raises(ModelError, match="Preprocessing has no field 'crop'; nearest: 'crop_pct'"):
        Preprocessing.from_dict({"crop": 1.0})


def test_an_int_is_a_square_image_and_the_grid_follows():
    assert ViTConfig(image_size=96).grid == (6, 6)
    config = ViTConfig(image_size=(64, 96))
    assert (config.grid, config.num_patches, config.patch_dim) == ((4, 6), 24, 768)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 225},
        {"image_size": (224, 230)},
        {"image_size": (1, 2, 3)},
        {"heads": 7},
        {"depth": 0},
        {"width": -768},
        {"mlp_dim": 1.5},
        {"num_classes": -1},
        {"gelu": "relu"},
        {"norm_eps": 0.0},
        {"patch_size": 0},
    ],
)
def test_a_config_that_does_not_fit_together_is_refused_in_one_line_that_names_it(wrong):
    with pytest.raises(ModelError, match="|".join(wrong) + "|image height") as error:
        ViTConfig(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"interpolation": "best"},
        {"crop_pct": 0.0},
        {"crop_pct": 1.1},
        {"mean": (0.5, 0.5)},
        {"std": (0.5, 0.5, 0.0)},
        {"exif": "maybe"},
        {"mean": (0.5, 0.5, float("nan"))},
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused_by_name(wrong):
    with pytest.raises(ModelError, match="|".join(wrong)):
        Preprocessing(**wrong)
