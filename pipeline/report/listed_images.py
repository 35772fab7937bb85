"""Find where the images of rows lie, by the frozen listing of the run."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from wordsworth.pipeline.output.frozen_listing import SAMPLE, FrozenListing
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.shards import NAMED, PICKS, ListedImage, Shard
from wordsworth.pipeline.storage.filesystem import without_credentials

WANTED = ("shard", "index", "offset", "size", "key")  # columns that say where the image of a row lies


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedImage:
    """Hold what a row says of where its image lies; the fields but the first are columns of the row.

    Attributes:
        row_number: place of the row in the table that was given.
        shard: URI of the shard, without credentials.
        index: number of the sample in its shard.
        offset: byte of the shard; None where no range read finds the image.
        size: bytes of the encoded image; None where that is not known.
        key: key of the sample; None for the rest of a shard that was cut.
    """

    row_number: int
    shard: str
    index: int
    offset: int | None
    size: int | None
    key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImages:
    """Hold rows of one shard.

    Attributes:
        shard: the shard; a page of loose images has only the image of the row.
        images: the rows, in the order of their indexes; of a page there is one.
    """

    shard: Shard
    images: list[WantedImage]

    @property
    def member(self) -> ListedImage | None:
        """Return the loose image; None in a tar, an archive or a table."""
        return self.shard.members[0] if self.shard.is_page else None


def wanted_images(rows: pa.Table) -> Iterator[WantedImage]:
    """Yield what the rows of a table say of where their images lie."""
    for number, row in enumerate(rows.select(list(WANTED)).to_pylist()):
        yield WantedImage(row_number=number, **row)


def find_images(folder: RunFolder, wanted: list[WantedImage]) -> Iterator[FoundImages]:
    """Yield the rows with their shards, page by page of the listing. Rows that are in no page do not come.

    Memory holds one page of the listing.
    """
    by_shard: dict[str, list[WantedImage]] = {}
    for image in sorted(wanted, key=lambda image: image.index):
        by_shard.setdefault(image.shard, []).append(image)
    left = len(wanted)
    for page in _pages(folder):
        if not left:
            return
        for found in _found_in(page, by_shard, wanted):
            left -= len(found.images)
            yield found


def _pages(folder: RunFolder) -> Iterator[pa.Table]:
    """Return the pages of the run, or of the sample that is labelled so far."""
    listing = FrozenListing(folder)
    return listing.pages() if listing.files() else FrozenListing(folder, SAMPLE).pages()


def _found_in(
    page: pa.Table, by_shard: dict[str, list[WantedImage]], wanted: list[WantedImage]
) -> Iterator[FoundImages]:
    kinds, uris = page["kind"].to_pylist(), page["uri"].to_pylist()
    for number, (kind, uri) in enumerate(zip(kinds, uris, strict=True)):
        candidates = wanted if kind == NAMED else by_shard.get(without_credentials(uri), [])
        if not candidates:
            continue
        if kind in ("images", NAMED):
            yield from _loose_images(page, number, candidates)
        else:
            yield FoundImages(shard=_shard(page, number), images=candidates)


def _loose_images(page: pa.Table, number: int, candidates: list[WantedImage]) -> Iterator[FoundImages]:
    """Yield the rows whose images are in a page of loose images."""
    members = page["members"][number].values
    first = page["first_index"][number].as_py()
    for image in candidates:
        place = image.index - first
        if members is None or not 0 <= place < len(members):
            continue
        member = members[place].as_py()
        shard = _shard(page, number, (member,))
        folder, key = shard.place_in_rows(member)
        if (without_credentials(folder), key) == (image.shard, image.key):
            yield FoundImages(shard=shard, images=[image])


def _shard(page: pa.Table, number: int, members: tuple[ListedImage, ...] = ()) -> Shard:
    columns = ("kind", "uri", "size", "version", "first_index", "source")
    told = {name: page[name][number].as_py() for name in columns}
    picks = page[PICKS.name][number].as_py() if PICKS.name in page.column_names and not members else None
    return Shard(**told, members=members, picks=tuple(picks or ()))
