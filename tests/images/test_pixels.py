"""pixels: every image has the colours that timm and torchvision see, whichever library decodes it."""

import io
import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageCms, TiffImagePlugin, TiffTags

from tests.images.test_decode import AS_STORED, pixels, refusal
from tests.support.samples import encoded, photo
from wordsworth.pipeline.images.codec import PILLOW, TURBO, Limits, decode, simplejpeg
from wordsworth.pipeline.images.decode import turn_upright


def test_sixteen_bit_grey_is_shifted_not_clipped():
    ramp = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(
            pixels(encoded(Image.fromarray(ramp), kind)), np.repeat((ramp >> 8)[..., None], 3, 2)
        )
    big_endian = io.BytesIO()
    Image.fromarray(ramp.astype(">u2")).save(big_endian, "TIFF")
    assert np.array_equal(pixels(big_endian.getvalue())[..., 0], ramp >> 8)
    clipped = np.asarray(Image.fromarray(ramp).convert("RGB"))  # what Pillow makes of it
    assert (clipped == 255).mean() > 0.9


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_orientation_turns_the_picture_upright_unless_it_is_ignored(kind, orientation):
    image = photo(1, 48, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))
    stored = pixels(data, AS_STORED)
    assert np.array_equal(
        stored, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    ) and stored.shape == (32, 48, 3)
    # EXIF 2.32, 4.6.4: which side of the scene the first row and the first column of the stored image are
    upright = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1]}
    turned = stored.transpose(1, 0, 2)
    upright |= {5: turned, 6: turned[:, ::-1], 7: turned[::-1, ::-1], 8: turned[::-1]}
    assert np.array_equal(pixels(data), upright[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])  # Pillow decodes these on two paths
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_a_tiff_is_turned_once_and_its_size_is_that_of_the_file(mode, compression, orientation):
    grey = np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 40
    image = Image.fromarray(grey) if mode == "I;16" else photo(1, 48, 32).convert(mode)
    plain = pixels(encoded(image, "TIFF", compression=compression))
    data = encoded(image, "TIFF", compression=compression, tiffinfo={0x0112: orientation})
    assert np.array_equal(pixels(data, AS_STORED), plain) and plain.shape == (32, 48, 3)
    assert np.array_equal(pixels(data), turn_upright(plain, orientation, "apply"))
    if mode == "RGB":  # Pillow's own turn
        assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))
    decoded = decode(data, Limits(10**6, 10**6), lambda num_bytes: memoryview(bytearray(num_bytes)))
    assert (decoded.width, decoded.height, decoded.orientation) == (48, 32, orientation)


def test_an_orientation_that_a_tiff_writes_as_a_fraction_counts():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x0112] = 6.0
    info.tagtype[0x0112] = TiffTags.FLOAT
    data = encoded(photo(1, 48, 32), "TIFF", tiffinfo=info)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6.0
    assert pixels(data, AS_STORED).shape == (32, 48, 3) and pixels(data).shape == (48, 32, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_comes_upright_as_its_container_says_with_and_without_exif(orientation):
    image = photo(1, 48, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    data = encoded(image, "HEIF", exif=exif.tobytes(), **lossless)
    upright = turn_upright(np.asarray(image), orientation, "apply")
    assert np.array_equal(pixels(data), upright) and np.array_equal(pixels(data, AS_STORED), upright)


def test_a_heic_of_ten_bits_or_with_alpha_or_of_several_images_gives_the_pixels_of_its_primary_image():
    import pillow_heif

    exact = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    image = photo(3)
    expected = np.asarray(image)
    grey = image.convert("L")
    transparent = image.copy()
    transparent.putalpha(grey)
    deep = pillow_heif.from_bytes("RGB;16", image.size, (expected.astype(np.uint16) * 257).tobytes())
    burst = pillow_heif.HeifFile()
    for seed in (1, 2, 3):
        burst.add_from_pillow(photo(seed))
    for made, options in ((deep, {}), (burst, {"primary_index": 2})):
        buffer = io.BytesIO()
        made.save(buffer, **exact, **options)
        assert np.array_equal(pixels(buffer.getvalue()), expected)
    assert np.array_equal(pixels(encoded(transparent, "HEIF", **exact)), expected)
    flat = np.repeat(np.asarray(grey)[..., None], 3, 2)
    assert np.array_equal(pixels(encoded(grey, "HEIF", quality=-1)), flat)


def test_jpeg_2000_gives_the_pixels_that_were_written():
    image = photo(2)
    for options in ({}, {"no_jp2": True}, {"tile_size": (32, 32)}):
        assert np.array_equal(pixels(encoded(image, "JPEG2000", **options)), np.asarray(image))
    assert np.array_equal(pixels(encoded(image.convert("RGBA"), "JPEG2000")), np.asarray(image))
    grey = np.asarray(image.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(pixels(encoded(deep, "JPEG2000")), np.repeat(grey[..., None], 3, 2))


def test_broken_exif_says_nothing_about_the_pixels():
    data = encoded(
        photo(1), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x07" + b"\xff" * 40
    )
    assert np.array_equal(pixels(data), pixels(data, AS_STORED))


def test_colours_come_as_timm_and_torchvision_see_them():
    image = photo(2)
    palette = image.convert("RGBA").quantize(17)
    palette.info["transparency"] = 3
    cases = [
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image.convert("L"), "JPEG"),
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("1"), "PNG"),
        encoded(palette, "PNG", transparency=3),
        encoded(image.convert("LA"), "PNG"),
        encoded(
            image, "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        ),
        encoded(image, "JPEG", icc_profile=b"broken"),
        encoded(image, "JPEG") + b"trailing garbage",
    ]
    for data in cases:
        assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert (
        np.abs(pixels(cases[0]).astype(int) - np.asarray(image)).mean() < 6
    )  # CMYK is not inverted: that would be about 100


def test_the_inverted_inks_of_an_adobe_jpeg_come_out_as_the_colour_they_print():
    image = Image.new("CMYK", (32, 32), (200, 10, 30, 5))
    data = encoded(image, "JPEG", quality=100)
    assert b"Adobe" in data
    stored = np.asarray(Image.open(io.BytesIO(data)), int)
    assert np.abs(stored - np.asarray(image)).max() <= 2
    turned_over = ImageChops.invert(image).convert("RGB")
    assert np.abs(pixels(data).astype(int) - np.asarray(image.convert("RGB"))).max() <= 2
    assert (
        np.abs(pixels(data).astype(int) - np.asarray(turned_over)).min() > 40
    )  # what a reader that forgets it sees


def test_a_picture_of_several_pictures_gives_the_first():
    first, second = photo(1, 64, 48), photo(2, 64, 48)
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(pixels(data), pixels(encoded(first, "JPEG")))
    assert not np.array_equal(pixels(data), pixels(encoded(second, "JPEG")))


def test_the_name_and_the_ratio_of_a_picture_do_not_matter():
    for size in ((1, 1), (1, 4000), (4000, 1)):
        image = Image.new("RGB", size, (10, 120, 230))
        for kind in ("PNG", "TIFF", "BMP"):
            assert np.array_equal(pixels(encoded(image, kind)), np.asarray(image))
        assert np.abs(pixels(encoded(image, "JPEG", quality=100)).astype(int) - (10, 120, 230)).max() <= 2


def jpegs() -> Iterator[bytes]:
    """Every form of JPEG that a camera or a library writes."""
    for width, height in ((640, 480), (641, 479), (33, 17), (17, 33), (1, 1), (3, 500)):
        image = photo(width, width, height)
        for quality, sampling, progressive in itertools.product(
            (30, 75, 95), ("4:4:4", "4:2:2", "4:2:0"), (False, True)
        ):
            yield encoded(image, "JPEG", quality=quality, subsampling=sampling, progressive=progressive)
        yield encoded(image, "JPEG", restart_marker_blocks=3)
        yield encoded(image, "JPEG", keep_rgb=True)
        yield encoded(image.convert("L"), "JPEG")
        yield encoded(image.convert("CMYK"), "JPEG")
        yield encoded(image, "JPEG") + b"trailing garbage"


@pytest.mark.slow
@pytest.mark.skipif(simplejpeg is None, reason="simplejpeg is not installed")
def test_libjpeg_turbo_gives_pillows_pixels_and_leaves_to_pillow_what_it_refuses():
    decoders = Counter()
    for data in jpegs():
        image = Image.open(io.BytesIO(data))
        target = bytearray(image.width * image.height * 3)
        found = decode(data, Limits(10**6, 10**4), lambda count, target=target: memoryview(target)[:count])
        assert target == image.convert("RGB").tobytes()
        decoders[found.decoder, image.mode] += 1
    assert decoders[TURBO, "RGB"] == 6 * 21 and decoders[TURBO, "L"] == 6 and decoders[PILLOW, "CMYK"] == 6
    odd = (
        encoded(photo(0), "JPEG")[:-2] + bytes(9) + b"\xff\xd9"
    )  # bytes before the end marker: a warning, the image is whole
    target = memoryview(bytearray(96 * 72 * 3))
    assert decode(odd, Limits(10**6, 10**4), lambda count: target).decoder == PILLOW
    assert target == Image.open(io.BytesIO(odd)).tobytes()
    damaged = encoded(photo(0), "JPEG")[:-2]
    assert refusal(damaged) == "truncated"  # Pillow's word for it, not the other's
    approximate = simplejpeg.decode_jpeg(
        data := encoded(photo(0), "JPEG"), "RGB", fastdct=True, fastupsample=True
    )
    assert not np.array_equal(approximate, pixels(data))  # this comparison can fail


def test_the_colour_under_alpha_is_kept_and_not_blended():
    image = photo(2).convert("RGBA")
    image.putalpha(0)
    assert np.array_equal(pixels(encoded(image, "PNG")), np.asarray(photo(2)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    difference = np.abs(pixels(data).astype(int) - np.asarray(frames[0])).max()
    assert difference <= (3 if kind == "AVIF" else 0)
