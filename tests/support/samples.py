"""Make images and shards for the tests, and read them back."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.unit import Unit


def photo(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Return an image like a camera's: a spectrum that falls towards fine detail, hard edges, a little
    noise."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells in (2, 5, 12, 28, 64):
        noise = (generator.random((cells, cells, 3)) * 255).astype(np.uint8)
        pixels += (
            np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), float)
            / cells**0.7
        )
    pixels = (pixels - pixels.min()) * (200 / np.ptp(pixels)) + 20
    for _ in range(4):
        left, top = generator.integers(0, width), generator.integers(0, height)
        pixels[top : top + height // 4, left : left + width // 4] += generator.normal(0, 25, 3)
    return Image.fromarray((pixels + generator.normal(0, 1.5, pixels.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """Return the file of an image. HEIF is written by pillow-heif, which the extra `dev` installs."""
    buffer = io.BytesIO()
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shard_of(path: Path) -> Shard:
    (shard,) = find_shards([str(path)]).shards
    return shard


def units_of(path: Path, rows: int = 4, **settings) -> list[Unit]:
    return list(read_units(shard_of(path), ReadSettings(unit_rows=rows, **settings)))


def rows_of(units: list[Unit]) -> list[dict]:
    return [row for unit in units for row in unit.samples.to_pylist()]
