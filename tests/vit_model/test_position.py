import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import zoom
from timm.layers import resample_abs_pos_embed
from torchvision.models.vision_transformer import interpolate_embeddings

from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.position import learned_tables, resample

GRIDS = [
    ((14, 14), (24, 24)),
    ((14, 14), (7, 7)),
    ((14, 14), (7, 28)),
    ((6, 10), (9, 4)),
    ((24, 24), (14, 20)),
]


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("prefix", [0, 1])
def test_resampling_is_timms(old, new, prefix):
    table = torch.randn(1, prefix + old[0] * old[1], 16)
    expected = resample_abs_pos_embed(table, new, old, num_prefix_tokens=prefix)
    torch.testing.assert_close(resample(table, old, new, prefix), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_resampling_without_antialiasing_would_be_seen(old, new):
    table = torch.randn(1, old[0] * old[1], 16)
    image = table.reshape(1, *old, 16).permute(0, 3, 1, 2)
    wrong = F.interpolate(image, size=new, mode="bicubic").permute(0, 2, 3, 1).reshape(1, -1, 16)
    assert (resample(table, old, new, 0) - wrong).abs().max() > 0.1


def test_the_same_grid_keeps_every_bit_and_the_prefix_is_never_touched():
    table = torch.randn(1, 1 + 196, 8)
    assert resample(table, (14, 14), (14, 14), 1) is table
    assert torch.equal(resample(table, (14, 14), (7, 28), 1)[:, :1], table[:, :1])


def test_half_precision_tables_keep_their_type():
    table = torch.randn(1, 1 + 16, 8).bfloat16()
    assert resample(table, (4, 4), (6, 6), 1).dtype == torch.bfloat16


@pytest.mark.parametrize(("class_position", "rows"), [(True, 25), (False, 24)])
def test_the_learned_table_has_a_row_for_class_only_when_the_config_says_so(class_position, rows):
    config = ViTConfig(image_size=(64, 96), class_position=class_position)
    assert learned_tables(config).shape == (1, rows, 768)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_dinov2s_manner_adds_its_tenth_of_a_patch(old, new):
    """Repeat its `interpolate_pos_encoding`, with the offset of 0.1 of its models without registers."""
    table = torch.randn(1, 1 + old[0] * old[1], 4)
    grid = table[:, 1:].reshape(1, *old, 4).permute(0, 3, 1, 2)
    scale = (float(new[0] + 0.1) / old[0], float(new[1] + 0.1) / old[1])
    expected = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
    assert expected.shape[-2:] == new
    found = resample(table, old, new, 1, "dinov2")
    torch.testing.assert_close(found[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-6, rtol=0)
    assert (found - resample(table, old, new, 1, "hf")).abs().max() > 0.01, (
        "without the tenth it would be seen"
    )


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_googles_manner_is_scipys_zoom_and_hfs_is_bicubic_without_antialiasing(old, new):
    table = torch.randn(1, 1 + old[0] * old[1], 4)
    image = table[0, 1:].reshape(*old, 4)
    zoomed = zoom(image.numpy(), (new[0] / old[0], new[1] / old[1], 1), order=1)
    google, hf, timm = (
        resample(table, old, new, 1, kind)[0, 1:].reshape(*new, 4) for kind in ("google", "hf", "timm")
    )
    torch.testing.assert_close(google, torch.from_numpy(zoomed), atol=1e-5, rtol=0)
    bicubic = F.interpolate(image.permute(2, 0, 1)[None], size=new, mode="bicubic", align_corners=False)[
        0
    ].permute(1, 2, 0)
    torch.testing.assert_close(hf, bicubic, atol=1e-6, rtol=0)
    for one, other in ((google, hf), (google, timm), (hf, timm)):
        assert (one - other).abs().max() > 0.05, "another interpolation would be seen"
    with pytest.raises(ModelError, match="pos_interp is 'jax'"):
        resample(table, old, new, 1, "jax")


@pytest.mark.parametrize("new", [12, 5])
def test_torchvisions_manner_is_its_interpolate_embeddings(new):
    table = torch.randn(1, 1 + 7 * 7, 4)
    theirs = interpolate_embeddings(new * 8, 8, {"encoder.pos_embedding": table.clone()})
    found = resample(table, (7, 7), (new, new), 1, "torchvision")
    torch.testing.assert_close(found, theirs["encoder.pos_embedding"], atol=1e-6, rtol=0)
    for other in ("hf", "timm", "google", "dinov2"):
        assert (found - resample(table, (7, 7), (new, new), 1, other)).abs().max() > 0.05
