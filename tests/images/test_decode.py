"""decode: every refusal has its name, pixels are those of other libraries, and no header buys memory."""

import json
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.support.samples import encoded, photo, rows_of, units_of, write_tar
from wordsworth.pipeline.images.decode import (
    DecodeError,
    DecodeSettings,
    crop_for_evaluation,
    decode_unit,
    open_image,
)
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.labeling.stages import decode_stage
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.patches import patchify

SHAPE = {"image_size": (32, 48), "patch_size": 8}
SETTINGS = DecodeSettings(preprocessing=Preprocessing(), limits=DecodeLimits(max_pixels=4_000_000), **SHAPE)
AS_STORED = DecodeSettings(preprocessing=Preprocessing(exif="ignore"), **SHAPE)
KINDS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "HEIF")
HEIC_HEADER = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic")


def refusal(data: bytes, settings: DecodeSettings = SETTINGS) -> str | None:
    try:
        open_image(data, settings)
    except DecodeError as error:
        assert str(error)
        return error.code
    return None


def pixels(data: bytes, settings: DecodeSettings = SETTINGS) -> np.ndarray:
    image = open_image(data, settings)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    return image


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    """A small JPEG whose frame header claims another size."""
    data = bytearray(encoded(photo(0), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jp2_header(width: int, height: int) -> bytes:
    """A small JPEG 2000 whose file header claims another size."""
    data = bytearray(encoded(photo(0), "JPEG2000"))
    box = data.index(b"ihdr")
    data[box + 4 : box + 12] = struct.pack(">II", height, width)
    return bytes(data)


def heic_header(width: int, height: int) -> bytes:
    """A small HEIC whose header claims another size."""
    data = bytearray(encoded(photo(0), "HEIF"))
    box = data.index(b"ispe")
    data[box + 8 : box + 16] = struct.pack(">II", width, height)
    return bytes(data)


# ---- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("empty", b""),
        ("not_an_image", b"\xff"),
        ("not_an_image", b"<html>404</html>"),
        ("not_an_image", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("not_an_image", bytes(5000)),
        ("not_an_image", encoded(photo(0), "PPM")),  # Pillow could: it is not among the nine formats
        ("not_an_image", encoded(photo(0), "EPS")),
        ("not_an_image", HEIC_HEADER.replace(b"heic", b"mp42") + bytes(2000)),
        ("corrupt", HEIC_HEADER + bytes(2000)),
        ("unsupported_format", b"\xff\x0a" + bytes(2000)),
        ("unsupported_format", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(2000)),
        ("too_many_pixels", png_header(2001, 2000)),
        ("too_many_pixels", png_header(60_000, 60_000)),
        ("too_many_pixels", jpeg_header(60_000, 60_000)),
        ("too_many_pixels", png_header(2**31 - 1, 1)),
        ("too_many_pixels", jp2_header(60_000, 60_000)),
        ("corrupt", jp2_header(1_000, 1_000)),  # the codestream has another size
        ("too_many_pixels", heic_header(60_000, 60_000)),
        ("corrupt", heic_header(1_000, 1_000)),
        ("too_many_pixels", png_header(65_501, 1)),  # few pixels: the side
        ("too_many_pixels", encoded(Image.new("L", (1, 65_501)), "TIFF")),
        ("truncated", png_header(2000, 2000)),
        ("unsupported_mode", encoded(Image.new("F", (8, 8), 0.5), "TIFF")),
        ("unsupported_mode", encoded(Image.new("I", (8, 8), 70_000), "TIFF")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_refusal_has_its_name(code, data):
    assert refusal(data) == code


def test_a_heic_without_its_decoder_names_the_extra(monkeypatch):
    whole = encoded(photo(0), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for data in (whole, whole[:100], HEIC_HEADER):
        with pytest.raises(DecodeError, match=r"pip install 'wordsworth\[heif\]'") as refused:
            open_image(data, SETTINGS)
        assert refused.value.code == "unsupported_format"


def test_a_jpeg_2000_that_ends_between_two_tiles_is_cut():
    for options in ({}, {"no_jp2": True}):
        data = encoded(photo(0), "JPEG2000", tile_size=(32, 32), **options)
        ends = [at for at in range(len(data)) if data[at : at + 4] == b"\xff\x90\0\x0a"]
        assert len(ends) == 9 and {refusal(data[:end]) for end in ends[1:]} == {"truncated"}
        assert refusal(data) is None and refusal(data + b"garbage") is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_picture_is_never_filled_up(kind):
    data = encoded(photo(0), kind)
    names = {cut: refusal(data[:cut]) for cut in range(0, len(data) - 40, 13)}
    assert set(names.values()) <= {"empty", "not_an_image", "truncated", "corrupt"}  # None would be an image
    assert names[max(names)] == ("corrupt" if kind == "WEBP" else "truncated")
    assert kind != "JPEG" or refusal(data[:-2]) == "truncated"  # only the end marker is missing
    assert refusal(data) is None


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_pictures_raise_nothing_but_a_decode_error(kind):
    whole, rng = encoded(photo(0, 40, 30), kind), random.Random(kind)
    refused = 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), 600) if rng.random() < 0.7 else len(data))] = rng.choice(
                (0, 1, 127, 255, rng.randrange(256))
            )
        refused += refusal(bytes(data)) is not None
    assert refused > 50


# One process with little room to grow; what it cannot do shows that the room is little.
BOUNDED = """
import json, resource, sys
from functools import partial
import numpy as np
from PIL import Image
from wordsworth.pipeline.images import resize_numba
from wordsworth.pipeline.images.decode import DecodeError, DecodeSettings, crop_for_evaluation, open_image
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.vit_model.config import Preprocessing
from tests.images.test_decode import jpeg_header, png_header

SETTINGS = partial(DecodeSettings, preprocessing=Preprocessing(), image_size=(224, 224), patch_size=16)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)

def code(data, max_pixels):
    try:
        open_image(data, SETTINGS(limits=DecodeLimits(max_pixels=max_pixels)))
    except DecodeError as error:
        return f"{error.code}: {error}"

headers = [png_header(60_000, 60_000), jpeg_header(65_500, 65_500)]
assert max(map(len, headers)) < 4096
said = [code(data, 100_000_000) for data in headers] + [code(png_header(12_000, 10_000), 100_000_000)]
strips = [Image.new("RGB", size, (9, 99, 199)) for size in ((1, 1), (1, 4000), (4000, 1), (60_000, 1))]
fits = [crop_for_evaluation(strip, Preprocessing(), (224, 224)) for strip in strips]
said.append([list(image.shape) for image in fits] + [bool((image == (9, 99, 199)).all()) for image in fits])
try:
    said.append(strips[1].resize((248, 992_000), Image.Resampling.BICUBIC).size)
except MemoryError:
    said.append("MemoryError")
Image.MAX_IMAGE_PIXELS = None
said += [code(data, 10**10) for data in headers]
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS and /proc are Linux's")
def test_neither_a_header_nor_a_strip_buys_memory():
    done = subprocess.run([sys.executable, "-c", BOUNDED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    png, jpeg, middle, fits, resized, *unjudged = json.loads(done.stdout)
    assert png.startswith("too_many_pixels") and jpeg.startswith("too_many_pixels")
    assert (
        middle == "too_many_pixels: 12000x10000, the limit is 100000000 pixels"
    )  # Pillow itself would only warn
    assert fits == [[224, 224, 3]] * 4 + [True] * 4
    assert resized == "MemoryError"  # resize-then-crop of the 1x4000 strip, as others do it
    assert all(code.startswith("out_of_memory") for code in unjudged)


# ---- the crop -------------------------------------------------------------------------------------


def by_timm(
    image: Image.Image, size: tuple[int, int], interpolation: str, crop_pct: float, crop_mode: str = "center"
) -> np.ndarray:
    from timm.data import create_transform

    transform = create_transform(
        (3, *size), interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, normalize=False
    )
    return transform(image).permute(1, 2, 0).numpy().astype(float)  # (H, W, 3), 0..255


LANDSCAPE = [(500, 375), (640, 427), (224, 224), (600, 333), (100, 80), (1024, 200), (1600, 1200), (375, 500)]
PORTRAIT = [(427, 640), (720, 1280), (200, 300), (57, 333), (260, 1300)]


@pytest.mark.slow
@pytest.mark.parametrize("crop_pct", [0.9, 0.95])
@pytest.mark.parametrize(("width", "height"), LANDSCAPE + PORTRAIT)
def test_the_crop_is_timms_evaluation_crop(width, height, crop_pct):
    image = photo(width, width, height)
    expected = by_timm(image, (224, 224), "bicubic", crop_pct)

    def equal(found: np.ndarray) -> bool:
        difference = np.abs(found - expected)  # of 255
        return difference.mean() <= 0.001 and difference.max() <= 1

    ours = crop_for_evaluation(image, Preprocessing(crop_pct=crop_pct), (224, 224))
    assert equal(ours)
    # what this notices: another filter, two pixels to the side, and an image resized one pixel smaller
    assert not equal(
        crop_for_evaluation(image, Preprocessing(interpolation="bilinear", crop_pct=crop_pct), (224, 224))
    )
    assert not equal(np.roll(ours, 2, 1))
    assert not equal(crop_for_evaluation(image, Preprocessing(crop_pct=crop_pct * 1.0044), (224, 224)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 336), (336, 224)])
def test_the_crop_of_a_model_that_is_not_square_is_timms_too(size):
    for width, height in [(500, 375), (640, 427), (300, 300), (400, 900)]:
        image = photo(width, width, height)
        expected = by_timm(image, size, "bicubic", 0.9)
        assert np.abs(crop_for_evaluation(image, Preprocessing(), size) - expected).max() <= 1
        assert (
            np.abs(crop_for_evaluation(image, Preprocessing(interpolation="bilinear"), size) - expected).max()
            > 2
        )


@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("size", [(224, 224), (224, 336)])
def test_a_squashed_picture_is_timms(size, crop_pct):
    for width, height in [(500, 375), (375, 500), (1024, 200)]:
        image = photo(width, width, height)
        expected = by_timm(image, size, "bilinear", crop_pct, "squash")
        assert (
            np.abs(
                crop_for_evaluation(
                    image,
                    Preprocessing(interpolation="bilinear", crop_pct=crop_pct, crop_mode="squash"),
                    size,
                )
                - expected
            ).max()
            <= 1
        )
        assert (
            np.abs(
                crop_for_evaluation(image, Preprocessing(interpolation="bilinear", crop_pct=crop_pct), size)
                - expected
            ).max()
            > 2
        )


@pytest.mark.slow
def test_every_small_size_and_every_strip_fits_and_none_is_empty():
    sizes = [(width, height) for width in range(1, 49) for height in range(1, 49)]
    sizes += [(1, n) for n in range(50, 5000, 71)] + [(n, 1) for n in range(50, 5000, 71)]
    for size in sizes:
        for crop_pct in (0.875, 0.9, 1.0):
            image = crop_for_evaluation(
                Image.new("RGB", size, (10, 120, 230)), Preprocessing(crop_pct=crop_pct), (16, 16)
            )
            assert image.shape == (16, 16, 3) and (image == (10, 120, 230)).all()


# ---- units ----------------------------------------------------------------------------------------


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif)


GOOD = [encoded(photo(1, 90, 70), "PNG"), turned(photo(3, 60, 40)), encoded(photo(5, 33, 80), "WEBP")]


@pytest.fixture
def mixed(tmp_path) -> Unit:
    """Three good images of other shapes among bad ones; one is a PNG named jpg."""
    members = [
        ("0.jpg", b"no image"),
        ("1.jpg", GOOD[0]),
        ("2.txt", b"alone"),
        ("3.jpg", GOOD[1]),
        ("4.jpg", b""),
    ]
    members += [("5.webp", GOOD[2]), ("6.jpg", bytes(70_000)), ("7.jpg", GOOD[0][:900])]
    (unit,) = units_of(write_tar(tmp_path / "a.tar", members), rows=9, max_bytes=60_000)
    return unit


def test_a_unit_keeps_the_patches_of_its_good_pictures_and_no_hole_for_the_bad(mixed):
    unit = decode_unit(mixed, SETTINGS)
    rows = rows_of([unit])
    refused = ["not_an_image", None, "missing_image", None, "empty", None, "too_many_bytes", "truncated"]
    assert [row["error"] for row in rows] == refused
    assert [(row["width"], row["height"]) for row in rows if row["error"] is None] == [
        (90, 70),
        (40, 60),
        (33, 80),
    ]
    assert all(row["width"] is None and row["height"] is None for row in rows if row["error"])
    assert unit.payload.shape == (3, 24, 192) and unit.payload.dtype == np.uint8
    for patches, data in zip(unit.payload, GOOD, strict=True):
        assert np.array_equal(
            patches,
            patchify(crop_for_evaluation(open_image(data, SETTINGS), SETTINGS.preprocessing, (32, 48)), 8),
        )


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1", "text"),
        (b"SECRET=hunter2\x00PATH=/bin", "no kind that is known here"),
        ("Gr\u00fc\u00dfe".encode() * 20, "text"),
        (b"  <!DOCTYPE html><title>secret</title>", "HTML or XML"),
        (b'{"token": "secret"}', "JSON"),
        (b"%PDF-1.7 secret", "a PDF"),
        (b"PK\x03\x04secret", "an archive"),
        (b"\x80\x04secret.", "a pickle or an array"),
        (bytes(range(256)), "no kind that is known here"),
    ],
)
def test_what_is_no_image_is_described_and_none_of_its_bytes_is_quoted(data, kind):
    with pytest.raises(DecodeError) as error:
        open_image(data, SETTINGS)
    assert (error.value.code, str(error.value)) == ("not_an_image", f"{len(data)} bytes of {kind}")


def test_the_stage_is_the_unit_on_the_wire_and_a_second_decoding_is_the_same(mixed):
    table = mixed.to_arrow()
    once, again = (Unit.from_arrow(decode_stage(table, SETTINGS)) for _ in range(2))
    assert np.array_equal(once.payload, again.payload) and rows_of([once]) == rows_of([again])
    assert once.payload.size == 3 * 24 * 192 and once.seconds["decode"] > 0


def test_units_of_nothing_good_decode_to_no_patches(tmp_path):
    for members in ([], [("a.jpg", b"bad"), ("b.txt", b"")]):
        (unit,) = units_of(write_tar(tmp_path / "a.tar", members))
        assert decode_unit(unit, SETTINGS).payload.shape == (0, 24, 192) and len(unit.samples) == len(members)
