"""Make small images of encoded ones. Images are untrusted: only the sandbox decodes them."""

import io
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

import numpy as np
from PIL import Image

from wordsworth.pipeline.images.codec import DecodeError
from wordsworth.pipeline.images.decode import turn_upright
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.images.sandbox import SandboxSettings, process_sandbox
from wordsworth.pipeline.output.records import RunPlan

KEEP_SIDE = 512  # pixels of the shorter side from which on a JPEG may be decoded at a fraction of its size


@dataclass(frozen=True, kw_only=True)
class ThumbnailSettings:
    """Say how images are decoded and encoded.

    Attributes:
        limits: what one image may take.
        exif: "apply" turns images upright by their EXIF orientation, "ignore" leaves them as stored.
        format: of the small images.
        quality: of the small images, from 1 to 100.
    """

    limits: DecodeLimits = field(default_factory=DecodeLimits)
    exif: str = "apply"
    format: Literal["jpeg", "webp"] = "jpeg"
    quality: int = 80

    @classmethod
    def of(cls, plan: RunPlan, format: Literal["jpeg", "webp"] = "jpeg", quality: int = 80) -> Self:
        """Return the settings with which images look as they did to the model of a run.

        A plan does not hold the limits of its run, so these are the default limits.
        """
        preprocessing = plan.asked.get("preprocessing") or {}
        return cls(exif=preprocessing.get("exif", "apply"), format=format, quality=quality)


class Thumbnail(NamedTuple):
    """Hold a small image.

    Attributes:
        data: the encoded image.
        width, height: pixels.
    """

    data: bytes
    width: int
    height: int


def thumbnail(data: bytes, side_px: int, settings: ThumbnailSettings) -> Thumbnail | str:
    """Return a small image, or the reason why there is none, in one line.

    Args:
        data: the encoded image.
        side_px: pixels of the longer side, at most; a smaller image keeps its size.
        settings: how to decode and encode.

    Raises:
        UserError: the process that decodes images does not start.
    """
    if len(data) > settings.limits.max_bytes:
        return f"too_many_bytes: {len(data)} bytes"
    sandbox = process_sandbox(SandboxSettings(limits=settings.limits, keep_side=max(KEEP_SIDE, side_px)))

    def small(pixels: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray:
        return turn_upright(_reduced(pixels, side_px), orientation, settings.exif).copy()

    try:
        pixels = sandbox.decode(data, small)
    except DecodeError as refusal:
        return " ".join(f"{refusal.code}: {refusal}".split())
    image = _resized(Image.fromarray(pixels), side_px)
    encoded = io.BytesIO()
    image.save(encoded, settings.format.upper(), quality=settings.quality)
    return Thumbnail(encoded.getvalue(), *image.size)


def _reduced(pixels: np.ndarray, side_px: int) -> np.ndarray:
    """Return the means of whole blocks of pixels, so that no copy of a large image is made.

    Both sides stay at least twice as long as `side_px` asks for; a smaller image comes back as it is.
    """
    height, width, _ = pixels.shape
    block = max(height, width) // (2 * side_px)
    if block < 2 or min(height, width) < block:
        return pixels
    rows, columns = height // block, width // block
    means = np.empty((rows, columns, 3), np.uint8)
    for row in range(rows):
        band = pixels[row * block : (row + 1) * block, : columns * block]
        means[row] = band.reshape(block, columns, block, 3).mean((0, 2)).round()
    return means


def _resized(image: Image.Image, side_px: int) -> Image.Image:
    longer = max(image.size)
    if longer <= side_px:
        return image
    width, height = (max(1, round(side * side_px / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
