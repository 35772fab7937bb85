"""Promises of timm's modules, family by family: the logits of timm's own call, every number random."""

import pytest

from benchmarks import model_coverage
from wordsworth.vit_model.foreign.timm import TIMM_MODULES

# What timm's families do differently, each by a small model: what the head is, what stands beside parameters.
QUICK = {
    "test_byobnet": "blocks described by a table",
    "test_efficientnet": "BatchNorm, and a convolution before pooling",
    "test_efficientnet_evos": "a norm with an activation inside",
    "test_mambaout": "a head with a hidden layer",
    "test_nfnet": "weights that are standardised in the forward pass",
    "test_resnet": "BatchNorm",
    "test_convnext2": "a norm behind the pooling",
    "test_convnext3": "the same with another norm",
    "test_vit2": "our own where it can be, run by timm's module",
    "test_vit3": "pooling by attention and registers",
    "test_vit4": "a mean of patches",
    "ecaresnet50d_pruned": "channels that are left out",
    "levit_128s": "two heads whose mean is the answer, and a table of biases that is no parameter",
}
SLOW = {
    "beit_base_patch16_224": "an index of relative positions",
    "cait_xxs24_224": "class attention",
    "coat_lite_tiny": "several scales",
    "crossvit_9_240": "two branches with a head each",
    "densenet121": "a norm as the last layer",
    "edgenext_xx_small": "cross-covariance attention",
    "efficientformer_l1": "two heads, and attention biases",
    "efficientvit_b0": "a head of several layers",
    "efficientvit_m0": "another model of that name",
    "eva02_tiny_patch14_336": "rotary positions, which are no parameters",
    "fastvit_t8": "branches that are put together for inference",
    "ghostnet_100": "a convolution behind the pooling",
    "hardcorenas_a": "a head with a convolution",
    "maxvit_rmlp_pico_rw_256": "positions by a small network",
    "mixer_s32_224": "no attention",
    "mobilenetv3_small_050": "a head that is a convolution and a layer",
    "naflexvit_base_patch16_gap": "patches of any aspect ratio",
    "pit_ti_distilled_224": "two heads, and pooling between blocks",
    "regnetx_002": "a plain head",
    "repvgg_a0": "branches",
    "rexnetr_100": "a plain head",
    "swin_tiny_patch4_window7_224": "windows and shifted windows",
    "swinv2_tiny_window8_256": "positions by a small network, with tables",
    "tnt_s_legacy_patch16_224": "transformers in transformers",
    "twins_svt_small": "positions by a convolution",
    "vit_small_patch16_dinov3": "rotary positions of DINOv3",
    "vit_relpos_small_patch16_224": "relative positions",
    "volo_d1_224": "a class token and a dense head",
    "xcit_nano_12_p16_224": "class attention at the end",
}
TOLERANCE = 1e-5  # of the largest number


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_model_gives_what_timms_own_call_gives(name: str):
    assert model_coverage.difference(name) < TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
def test_a_model_of_a_larger_family_gives_what_timms_own_call_gives(name: str):
    assert model_coverage.difference(name) < TOLERANCE


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_nearly_all_classifiers_of_timm_label():
    rows = list(model_coverage.tried([]))
    ways = [row["way"] for row in rows if row["kind"] == "classifier"]
    assert len(ways) > 1000 and sum(way != "refused" for way in ways) >= 0.95 * len(ways)
    ours = {row["family"] for row in rows if row["way"] == "ours"}
    assert ours == {module.rpartition(".")[2] for module in TIMM_MODULES}
