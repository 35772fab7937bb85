"""Draw samples of a source at random, each with the same chance."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from wordsworth.pipeline.sources.listing_cursor import ListingCursor
from wordsworth.pipeline.sources.named_images import ImageAt, named_pages
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import NAMED, ListedImage, Shard
from wordsworth.pipeline.sources.table import table_rows
from wordsworth.pipeline.storage.filesystem import join, key_under

HASHES_AT_ONCE = 1 << 16  # samples of a shard that are drawn from at once
IMAGES_IN_PAGE = 4096  # loose images in a page
COUNTED_AT_ONCE = 1024
SPARE = 4096  # samples beyond those wanted that are held before the others are forgotten


@dataclass(slots=True)
class _Drawn:
    """Hold one sample that may be drawn.

    Attributes:
        hash: decides: the smallest ones are drawn.
        shard: number of its shard in the listing.
        place: number of the sample in its shard.
        member: the loose image; None in another shard.
    """

    hash: int
    shard: int
    place: int
    member: ListedImage | None = None


class Lottery:
    """Draw samples: those with the smallest hashes of their place and a seed.

    So the drawing depends on the samples and on the seed alone, not on the order of the listing or on who
    reads it. Memory holds the samples that are drawn so far, and a few more.

    Args:
        num_wanted: samples to draw.
        seed: another one draws others.
    """

    def __init__(self, num_wanted: int, seed: int):
        self.num_wanted = num_wanted
        self.seed = seed
        self.num_samples = 0
        self._drawn: list[_Drawn] = []
        self._shards: dict[int, Shard] = {}  # those of which a sample is drawn, without their images
        self._num_shards = 0
        self._below = 1 << 64  # a sample with this hash, or with a larger one, is not drawn

    def add(self, shard: Shard, num_samples: int) -> None:
        """Let the samples of a shard take part. A page has as many as it has images, whatever is said."""
        number = self._num_shards
        self._num_shards += 1
        self.num_samples += len(shard.members) if shard.is_page else num_samples
        if shard.is_page:
            self._add_page(shard, number)
        else:
            self._add_shard(shard, number, num_samples)
        if any(drawn.shard == number for drawn in self._drawn[-1:]):
            self._shards[number] = replace(shard, members=(), size=0) if shard.is_page else shard

    def _add_page(self, page: Shard, number: int) -> None:
        for place, member in enumerate(page.members):
            hashed = self._hash(join(page.uri, member["key"]))
            if hashed < self._below:
                self._add(_Drawn(hashed, number, place, member))

    def _add_shard(self, shard: Shard, number: int, num_samples: int) -> None:
        first = np.uint64(self._hash(shard.uri))
        for begin in range(0, num_samples, HASHES_AT_ONCE):
            end = min(begin + HASHES_AT_ONCE, num_samples)
            hashes = _mixed(np.arange(begin, end, dtype=np.uint64) + first)
            for place in np.flatnonzero(hashes <= np.uint64(self._below - 1)).tolist():
                self._add(_Drawn(int(hashes[place]), number, begin + place))

    def _add(self, drawn: _Drawn) -> None:
        self._drawn.append(drawn)
        if len(self._drawn) >= 2 * self.num_wanted + SPARE:
            self._forget()

    def _forget(self) -> None:
        """Keep no more than those that are drawn so far."""
        self._drawn.sort(key=lambda drawn: drawn.hash)
        del self._drawn[self.num_wanted :]
        if len(self._drawn) == self.num_wanted:
            self._below = self._drawn[-1].hash
        self._drawn.sort(key=lambda drawn: (drawn.shard, drawn.place))

    def _hash(self, text: str) -> int:
        told = f"{self.seed}|{text}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")

    def draw(self) -> Iterator[Shard]:
        """Yield the shards of the samples that are drawn, in the order of the listing; pages come last."""
        self._forget()
        by_shard: dict[int, list[_Drawn]] = {}
        for drawn in self._drawn:
            by_shard.setdefault(drawn.shard, []).append(drawn)
        images: dict[str | None, list[ImageAt]] = {}  # by prefix; None for those that were named one by one
        for number, found in by_shard.items():
            shard = self._shards[number]
            if not shard.is_page:
                yield replace(shard, picks=tuple(drawn.place for drawn in found))
                continue
            members = [drawn.member for drawn in found if drawn.member]
            prefix = None if shard.kind == NAMED else shard.uri
            images.setdefault(prefix, []).extend(_image_at(shard.uri, member) for member in members)
        yield from _pages(images)


def _image_at(prefix: str, member: ListedImage) -> ImageAt:
    return ImageAt(join(prefix, member["key"]), member["size"], member["version"])


def _pages(images: dict[str | None, list[ImageAt]]) -> Iterator[Shard]:
    cursor = ListingCursor()
    number = 0  # of the part: pages of one part are frozen together
    for prefix, found in images.items():
        for begin in range(0, len(found), IMAGES_IN_PAGE):
            part = found[begin : begin + IMAGES_IN_PAGE]
            for page in named_pages(part, number) if prefix is None else [_page_below(prefix, part, number)]:
                yield replace(page, first_index=cursor.take_indexes(page))
            number += 1


def _page_below(prefix: str, images: list[ImageAt], source: int) -> Shard:
    members: list[ListedImage] = []
    for image in images:
        key = key_under(prefix, image.uri)
        members.append({"key": key, "size": image.size, "version": image.version})
    size = sum(image.size for image in images)
    return Shard(kind="images", uri=prefix, size=size, version="", members=tuple(members), source=source)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return hashes of numbers: the finalizer of splitmix64, which gives each number another one."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xD1342543DE82EF95)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---- how many there are -----------------------------------------------------------------------------------


def count_samples(shard: Shard, settings: ReadSettings) -> int:
    """Count the samples of a tar, an archive or a table. No image is held.

    Raises:
        StoreFault, OSError: the shard cannot be read.
    """
    if shard.kind == "table":
        return sum(1 for _ in table_rows(shard, settings))
    reading = replace(settings, max_bytes=0, keep=(), target=None, unit_rows=COUNTED_AT_ONCE)
    total = 0
    for unit in read_units(shard, reading):
        if unit.fault:
            raise StoreFault(unit.fault)
        total += len(unit.samples)
    return total
