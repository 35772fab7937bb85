"""Send damaged images of all nine formats through the sandbox.

Every mutant must give an image or an error with a name.

    python -m benchmarks.fuzz [--mutants 20000] [--seed 0] [--timeout 10]

Expected: no mutant ends the decoder. A mutant that ends the decoder is saved to tests/images/regressions/,
and a test decodes it from then on. Mutant n of a seed is always the same bytes: bits flipped, bytes replaced,
cut, blocks swapped, repeated or dropped, numbers in the header set to their extremes.
"""

import argparse
import collections
import hashlib
import io
import random
import struct
import time
from pathlib import Path

import numpy as np
from PIL import Image

from wordsworth.pipeline.images.codec import DecodeError
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.images.sandbox import Sandbox, SandboxSettings

REGRESSIONS = Path(__file__).parents[1] / "tests" / "images" / "regressions"
ENDED = ("decoder_crashed", "decoder_timeout")
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def originals() -> dict[str, bytes]:
    """Return small sound images: every format, in the forms that take different paths through its decoder."""
    coarse = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((61, 47), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    forms = {
        "jpeg": (image, "JPEG", {"exif": exif}),
        "jpeg progressive": (image, "JPEG", {"progressive": True, "subsampling": 0}),
        "jpeg grey": (image.convert("L"), "JPEG", {}),
        "jpeg cmyk": (image.convert("CMYK"), "JPEG", {}),
        "mpo": (image, "MPO", frames),
        "png": (image, "PNG", {"exif": exif}),
        "png palette": (image.quantize(30), "PNG", {"transparency": 3}),
        "png 16 bit": (deep, "PNG", {}),
        "apng": (image, "PNG", frames),
        "gif": (image, "GIF", frames),
        "bmp": (image, "BMP", {}),
        "bmp palette": (image.quantize(30), "BMP", {}),
        "tiff": (image, "TIFF", {}),
        "tiff lzw": (image, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (image.convert("RGBA"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (image, "TIFF", {"compression": "jpeg"}),
        "tiff fax": (image.convert("1"), "TIFF", {"compression": "group4"}),
        "webp": (image, "WEBP", {"exif": exif}),
        "webp lossless": (image.convert("RGBA"), "WEBP", {"lossless": True}),
        "webp animated": (image, "WEBP", frames),
        "avif": (image, "AVIF", {"exif": exif}),
        "jpeg 2000": (image, "JPEG2000", {}),
        "jpeg 2000 tiles": (image.convert("RGBA"), "JPEG2000", {"no_jp2": True, "tile_size": (32, 32)}),
        "heic": (image, "HEIF", {"exif": exif.tobytes()}),
        "heic tiles": (image.resize((150, 70)), "HEIF", {"tile_size": 64}),
        "heic alpha": (image.convert("RGBA"), "HEIF", {}),
    }
    return {name: _encoded(*form) for name, form in forms.items()}


def _encoded(image: Image.Image, kind: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    if kind == "HEIF":
        import pillow_heif  # comes with the extra `dev`

        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


# ---- mutants -----------------------------------------------------------------------------------------------


def mutant(data: bytes, rng: random.Random) -> bytes:
    """Return the image after one to four kinds of damage."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if len(changed) > 16:
            changed = rng.choice((_flip, _replace, _cut, _swap, _repeat, _drop, _header, _header))(
                changed, rng
            )
    return bytes(changed)


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 2, 8, 32))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _replace(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    length = min(rng.choice((1, 2, 4, 16, 64)), len(data) - at)
    data[at : at + length] = rng.randbytes(length)
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(8, len(data))]


def _swap(data: bytearray, rng: random.Random) -> bytearray:
    size = rng.choice((1, 4, 16, 64))
    a, b = (rng.randrange(max(1, len(data) - size)) for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return data


def _repeat(data: bytearray, rng: random.Random) -> bytearray:
    at, size = rng.randrange(len(data)), rng.choice((1, 8, 64, 512))
    return data[:at] + data[at : at + size] * rng.choice((2, 3, 50)) + data[at + size :]


def _drop(data: bytearray, rng: random.Random) -> bytearray:
    at, size = rng.randrange(len(data)), rng.choice((1, 2, 8, 64))
    return data[:at] + data[at + size :]


def _header(data: bytearray, rng: random.Random) -> bytearray:
    """Set a number near the beginning, where sizes, counts and offsets stand, to an extreme."""
    code, size = rng.choice(((">H", 2), ("<H", 2), (">I", 4), ("<I", 4), ("B", 1)))
    at = rng.randrange(min(len(data), 400) - size)
    data[at : at + size] = struct.pack(code, rng.choice(EXTREMES) & (256**size - 1))
    return data


# ---- the run -----------------------------------------------------------------------------------------------


def fuzz(count: int, seed: int, sandbox: Sandbox, save: Path | None) -> dict[str, collections.Counter]:
    """Decode `count` mutants, save those that end the decoder, and return counts of the error codes (and
    of "image") by original."""
    sound = originals()
    names = list(sound)
    counts = {name: collections.Counter() for name in names}
    for number in range(count):
        name = names[number % len(names)]
        data = mutant(sound[name], random.Random(f"{seed}|{number}"))
        counts[name][code := outcome(sandbox, data)] += 1
        if code in ENDED and save is not None:
            save.mkdir(exist_ok=True)
            (save / f"{name.replace(' ', '_')}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
    return counts


def outcome(sandbox: Sandbox, data: bytes) -> str:
    """Return "image", or the code of the error."""
    try:
        sandbox.decode(data)
    except DecodeError as error:
        return error.code
    return "image"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=10.0)
    options = parser.parse_args()
    sandbox = Sandbox(SandboxSettings(limits=DecodeLimits(timeout_s=options.timeout)))
    start = time.perf_counter()
    counts = fuzz(options.mutants, options.seed, sandbox, REGRESSIONS)
    seconds = time.perf_counter() - start
    sandbox.close()
    for name, found in counts.items():
        print(f"{name:18} " + "  ".join(f"{code} {number}" for code, number in found.most_common()))
    ended = sum(found[code] for found in counts.values() for code in ENDED)
    print(
        f"{options.mutants} mutants in {seconds:.0f} s, {options.mutants / seconds:.0f} a second; "
        f"{ended} ended the decoder"
    )


if __name__ == "__main__":
    main()
