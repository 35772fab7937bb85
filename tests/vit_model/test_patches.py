import numpy as np
import pytest
import torch

from wordsworth.vit_model.patches import patchify, unpatchify


def test_patches_are_in_raster_order_with_channels_fastest():
    image = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    patches = patchify(image, 2)
    assert patches.shape == (6, 12)
    for n in range(6):
        row, column = divmod(n, 3)
        cut = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert patches[n].tolist() == cut.ravel().tolist()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_numpy_and_torch_give_the_same_patches(batch):
    images = np.random.default_rng(0).integers(0, 256, (*batch, 32, 48, 3), dtype=np.uint8)
    expected, found = patchify(images, 16), patchify(torch.from_numpy(images), 16)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_unpatchify_undoes_patchify(kind):
    images = kind(np.random.default_rng(0).random((2, 3, 24, 40, 3)))
    assert (unpatchify(patchify(images, 8), (3, 5), 8) == images).all()


def test_an_image_that_cannot_be_cut_evenly_is_refused():
    with pytest.raises(ValueError, match="33 x 48"):
        patchify(np.zeros((33, 48, 3)), 16)
