"""Bound the time that the slow images of one file may take together."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from wordsworth.pipeline.images.limits import DecodeLimits

SIGN_EVERY_S = 10.0  # seconds of decoding between two signs of life


@dataclass
class DecodeBudget:
    """Count what the images of one unit take beyond the time of an ordinary image.

    Attributes:
        limits: of one image, and of the slow images of a unit.
        alive: called between two images, every few seconds.
        slow_s: seconds so far that images took beyond `limits.short_timeout_s` each.
    """

    limits: DecodeLimits
    alive: Callable[[], None]
    slow_s: float = 0.0
    _last_sign: float = field(default_factory=time.monotonic)

    @property
    def is_used_up(self) -> bool:
        """Tell whether the slow images before this one took all that there is for them."""
        return self.slow_s >= self.limits.slow_images_s

    @property
    def timeout_s(self) -> float | None:
        """Return the seconds that the next image may take; None is the usual time."""
        return min(self.limits.short_timeout_s, self.limits.timeout_s) if self.is_used_up else None

    @contextmanager
    def one_image(self) -> Iterator[float | None]:
        """Count the time of the block, one image, and give its `timeout_s`."""
        begun = time.monotonic()
        try:
            yield self.timeout_s
        finally:
            now = time.monotonic()
            self.slow_s += max(0.0, now - begun - self.limits.short_timeout_s)
            if now - self._last_sign >= SIGN_EVERY_S:
                self._last_sign = now
                self.alive()

    def told(self, detail: str) -> str:
        """Return the detail of an image that got the short time alone."""
        given = f"{self.limits.slow_images_s:g} seconds"
        return f"{detail}: the {given} that slow images of one file may take are used up"
