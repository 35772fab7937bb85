"""Mark how far a listing came, and number the images of its pages."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from wordsworth.pipeline.sources.shards import NAMED, Shard


@dataclass
class ListingCursor:
    """Mark how far a listing came, so that another listing can begin there.

    Attributes:
        source: number of the source that is being listed, from 0
        last: URI of the last file that was listed; None before the first
        kinds: kind of each source that was begun, by the source's number
        images: indexes given so far to the images of a prefix, by the URI of the prefix
        named: indexes given so far to images of NAMED pages
        highest: indexes given so far to the images of any page
    """

    source: int = 0
    last: str | None = None
    kinds: dict[int, str] = field(default_factory=dict)
    images: Counter[str] = field(default_factory=Counter)
    named: int = 0
    highest: int = 0

    def copy(self) -> "ListingCursor":
        """Return a cursor that a listing can move while this one stays."""
        return replace(self, kinds=dict(self.kinds), images=Counter(self.images))

    def advance(self, shards: Iterable[Shard]) -> None:
        """Move the cursor behind these shards."""
        for shard in shards:
            self.source = shard.source
            self.last = shard.last_path
            self.kinds[shard.source] = "images" if shard.is_page else shard.kind
            if shard.is_page:
                self._count(shard, shard.first_index + len(shard.members))

    def take_indexes(self, page: Shard) -> int:
        """Return the index of the first image of a page, and count the images of the page.

        Two rows of one folder never have one index: those of a NAMED page come behind all that were given,
        and those of other pages behind the NAMED ones.
        """
        first = self.highest if page.kind == NAMED else max(self.images[page.uri], self.named)
        self._count(page, first + len(page.members))
        return first

    def _count(self, page: Shard, end: int) -> None:
        self.highest = max(self.highest, end)
        if page.kind == NAMED:
            self.named = max(self.named, end)
        else:
            self.images[page.uri] = max(self.images[page.uri], end)
