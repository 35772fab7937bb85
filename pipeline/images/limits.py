"""Define what an image may cost before it is refused.

This module imports nothing heavy, because the command line reads its defaults here.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """Bound what one image may take.

    Attributes:
        max_bytes: bytes of the encoded image; a larger one is refused before it is read.
        max_pixels: pixels by the image's header; an image with more is refused before it is decoded.
        max_side: pixels of the longer side, likewise.
        timeout_s: seconds that decoding may take.
        slow_images_s: seconds that the slow images of a unit may take together, each beyond the short time;
            after that each further image of the unit has the short time alone.
        short_timeout_s: the short time, seconds. Hardly any good image takes as long.
    """

    max_bytes: int = 256 << 20
    max_pixels: int = 100_000_000
    max_side: int = 65_500
    timeout_s: float = 30.0
    slow_images_s: float = 600.0
    short_timeout_s: float = 1.0
