"""Read the samples of a shard that were drawn, and no others."""

from collections.abc import Iterator
from typing import TypeVar

_Item = TypeVar("_Item")


def picked(samples: Iterator[_Item], picks: tuple[int, ...], begun: int) -> Iterator[_Item]:
    """Yield the samples that were drawn; all where none was.

    Args:
        samples: of a shard, from the one on behind the last that was read.
        picks: numbers of those that were drawn, in order.
        begun: how many of these were read before.
    """
    if not picks:
        yield from samples
        return
    wanted = iter(picks[begun:])
    number = next(wanted, None)
    place = picks[begun - 1] + 1 if begun else 0
    while number is not None:
        sample = next(samples, None)
        if sample is None:
            return
        if place == number:
            yield sample
            number = next(wanted, None)
        place += 1
