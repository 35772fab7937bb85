"""List the first images of a source and no more, page by page, so that another command can list the rest.

The listing stays open behind the last page. An image that is listed is labelled by whoever comes first, so
nothing is done twice. Where the limit falls into a tar or a table, a unit ends there: the page says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from wordsworth.pipeline.output.frozen_listing import (
    MEMBERS_IN_PAGE,
    FirstPage,
    FrozenListing,
    PageMetadata,
    read_frozen,
    with_cut,
)
from wordsworth.pipeline.sources.finder import Finder
from wordsworth.pipeline.sources.listing_cursor import ListingCursor
from wordsworth.pipeline.sources.shards import Shard, listing_table


@dataclass
class ImagesLeft:
    """Count the images that are left to be read.

    Attributes:
        limit: images that the run is to have.
        count: images that it lacks.
    """

    limit: int
    count: int


def first_limited_page(finder: Finder, limit: int) -> FirstPage:
    """List the first images, or the shard that has the first ones."""
    return next(_pages(finder, ListingCursor(), ImagesLeft(limit, limit)))


def list_limited(frozen: FrozenListing, finder: Finder, left: ImagesLeft) -> Iterator[pa.Table]:
    """Yield the frozen pages, and then pages of the rest of the source, each frozen before it is given.

    Args:
        frozen: the pages.
        finder: lists the sources.
        left: says how many images are left when a page is asked for. The caller counts them, and stops at 0.
    """
    replaced_in = frozen.replaced_in()
    cursor = ListingCursor()
    seen = 0
    while True:
        for page in read_frozen(frozen, seen, cursor, replaced_in):
            yield page
            seen += 1
        if frozen.complete:
            return
        for new in _pages(finder, cursor.copy(), left):
            if not frozen.put(seen, new.shards, last=new.ended, metadata=new.metadata):
                break  # another job has frozen a page
            cursor.advance(new.shards)
            seen += 1
            yield with_cut(listing_table(new.shards), new.metadata.cut)


def _pages(finder: Finder, after: ListingCursor, left: ImagesLeft) -> Iterator[FirstPage]:
    """Yield pages that end with the last image that is left to be read, or with the first tar or table."""
    shards = finder.shards(after)
    before = finder.passed_over.copy()
    ended = False
    while not ended:
        page, ended, cut = _next_page(shards, finder, left.count)
        finder.count_passed()
        metadata = PageMetadata.of_listing(finder.passed_over.since(before))
        before = finder.passed_over.copy()
        yield FirstPage(shards=page, ended=ended, metadata=replace(metadata, limit=left.limit, cut=cut))


def _next_page(shards: Iterator[Shard], finder: Finder, images_left: int) -> tuple[list[Shard], bool, int]:
    """Return the shards of a page, whether the listing ends with it, and the cut of the last shard."""
    page: list[Shard] = []
    members = 0
    finder.most_images = images_left
    for shard in shards:
        page.append(shard)
        if not shard.is_page:
            return page, False, images_left - members
        members += len(shard.members)
        if members >= min(images_left, MEMBERS_IN_PAGE):
            return page, False, 0
        finder.most_images = images_left - members
    return page, True, 0
