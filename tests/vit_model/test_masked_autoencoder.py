"""Check the masked autoencoder against the published algorithm."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.published_objectives import PublishedMAE
from tests.support.random_images import SMALL_DECODER, random_patches, seeded
from wordsworth.vit_model import masked_autoencoder
from wordsworth.vit_model.masked_autoencoder import MaskedAutoencoder
from wordsworth.vit_model.patches import unpatchify

TARGETS = ["mean_colour", "colours_4x4", "pixels"]


def published_twin(mae: MaskedAutoencoder) -> PublishedMAE:
    twin = PublishedMAE(mae.encoder.config, **SMALL_DECODER)
    state = {key.removeprefix("encoder."): value.clone() for key, value in mae.state_dict().items()}
    assert (state.pop("decoder.positions") - twin.decoder.positions).abs().max() < 1e-6
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["decoder.positions"], [])
    return twin


def both_losses(mae: MaskedAutoencoder) -> tuple[torch.Tensor, torch.Tensor, PublishedMAE]:
    """Ours and the published algorithm's, from the same random numbers."""
    config, twin = mae.encoder.config, published_twin(mae)
    patches, _ = random_patches(config, batch=3)
    images = unpatchify(patches, config.grid, config.patch_size).permute(0, 3, 1, 2)
    ours, _ = mae(patches, generator=seeded(3))
    return ours, twin(images, torch.rand(3, 24, generator=seeded(3))), twin


@pytest.mark.slow
def test_loss_and_every_gradient_are_the_published_algorithms(mae):
    ours, published, twin = both_losses(mae)
    assert ours.item() == pytest.approx(published.item(), abs=1e-6)
    ours.backward()
    published.backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()}
    for name, parameter in mae.named_parameters():
        gradient = expected.pop(name.removeprefix("encoder."))
        assert gradient.abs().max() > (1e-4 if "qkv.bias" not in name else 0), (
            name
        )  # there is something to compare
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5, msg=name)
    assert not expected


def positions_after_masking(self, patches, visible):
    z = masked_autoencoder.take(self.encoder.patch_embed(patches), visible)
    places = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.arange(self.visible)])
    cls = self.encoder.cls_token.expand(len(z), -1, -1)
    return self.encoder.encode(torch.cat([cls, z], dim=1) + self.encoder.pos_embed[:, places])


def loss_over_all_patches(self, painted, patches, masked):
    return masked_autoencoder.regression_loss(painted, masked_autoencoder.standardised(patches))


def restored_in_the_wrong_order(self, latent, restore, forward=masked_autoencoder.Decoder.forward):
    return forward(self, latent, restore.argsort(dim=1))


def biased_variance(patches):
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    return (patches - mean) / (variance + 1e-6).sqrt()


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (MaskedAutoencoder, "encode_visible", positions_after_masking),
        (MaskedAutoencoder, "score", loss_over_all_patches),
        (masked_autoencoder.Decoder, "forward", restored_in_the_wrong_order),
        (masked_autoencoder, "standardised", biased_variance),
        (masked_autoencoder, "standardised", lambda patches: patches),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_wrong_variant_is_caught_by_the_tolerance(mae, monkeypatch, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    ours, published, _ = both_losses(mae)
    assert abs(ours.item() - published.item()) > 1e-4


def test_the_decoders_positions_are_maes_and_not_mocos_with_zero_rows_for_the_prefix(headless):
    config = replace(headless, width=24, heads=2)
    table = masked_autoencoder.Decoder(config, latent_width=32, prefix=3).positions
    assert table.shape == (1, 27, 24) and not table[:, :3].any() and table[:, 3:].any(-1).all()
    x, y, i, quarter = 5, 1, 3, 6
    row = table[0, 3 + 6 * y + x]
    assert row[i].item() == pytest.approx(math.sin(x / 10000 ** (i / quarter)))
    assert row[i].item() != pytest.approx(math.sin(x / 10000 ** (i / (quarter - 1))), abs=1e-3)
    assert row[3 * quarter + i].item() == pytest.approx(math.cos(y / 10000 ** (i / quarter)))


@pytest.mark.slow
def test_the_encoder_sees_the_visible_patches_only(mae):
    patches, _ = random_patches(mae.encoder.config)
    visible = torch.tensor([[4, 17, 2, 9, 23, 0]] * 2)
    latent = mae.encode_visible(patches, visible)
    assert latent.shape == (2, 1 + 6, 32)
    for place in range(24):
        changed = patches.clone()
        changed[:, place] += 1
        same = torch.equal(mae.encode_visible(changed, visible), latent)
        assert same == (place not in visible[0].tolist())


def test_the_decoder_puts_every_token_back_in_its_place(mae, monkeypatch):
    """With zero positions and no blocks, the paint at a place depends only on the token of that place."""
    mae.decoder.positions.zero_()
    mae.decoder.blocks = nn.Sequential()
    patches, _ = random_patches(mae.encoder.config)
    order = masked_autoencoder.random_order(patches, seeded(4))
    latent = mae.encode_visible(patches, order[:, :6])
    painted = mae.decoder(latent, order.argsort(dim=1))
    rest = mae.decoder.predict(mae.decoder.norm(mae.decoder.mask_token))[0, 0]
    for image in range(2):
        alone = mae.decoder.predict(mae.decoder.norm(mae.decoder.embed(latent[image, 1:])))
        for place in range(24):
            at = order[image].tolist().index(place)
            torch.testing.assert_close(painted[image, place], alone[at] if at < 6 else rest)


def test_what_is_painted_in_a_hole_depends_on_where_the_hole_is(mae):
    patches, _ = random_patches(mae.encoder.config)
    order = masked_autoencoder.random_order(patches, seeded(4))
    latent, holes = mae.encode_visible(patches, order[:, :6]), order[0, 6:]
    painted = mae.decoder(latent, order.argsort(dim=1))[0, holes]
    mae.decoder.positions.zero_()
    everywhere_the_same = mae.decoder(latent, order.argsort(dim=1))[0, holes]
    assert (painted[0] - painted[1:]).abs().amax(-1).min() > 1e-3
    assert (everywhere_the_same[0] - everywhere_the_same[1:]).abs().max() < 1e-6
