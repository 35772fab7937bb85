"""Compare a source with the frozen listing of a run, and add the differences to the listing."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.output import frozen_listing
from wordsworth.pipeline.output.frozen_listing import FrozenListing, PageMetadata
from wordsworth.pipeline.sources.finder import PAGE, Finder
from wordsworth.pipeline.sources.listing_cursor import ListingCursor
from wordsworth.pipeline.sources.shards import UNSEEN, ListedImage, Shard
from wordsworth.pipeline.storage.filesystem import join, without_credentials

Identity = tuple[int, str]  # size in bytes and version of an object


class Revision(NamedTuple):
    """Hold a shard of the listing and what takes its place.

    Attributes:
        old: the shard that is no longer part of the run; None for a shard that is new.
        new: the shard that an update adds; None where nothing of the old one is left.
        is_part: whether the new shard has images of the old one, as they were, and no others.
    """

    old: Shard | None
    new: Shard | None
    is_part: bool = False


@dataclass(kw_only=True)
class SourceChanges:
    """Hold how a source differs from the frozen listing.

    Attributes:
        frozen: the listing.
        known: the objects of the listing.
        replace_changed: whether an update replaces shards and images that changed.
        drop_missing: whether an update drops shards and images that are gone.
        new: number of shards or images that the listing does not have.
        changed: URIs of shards or images that have another size or version now.
        mended: number of links, and of names in lists, that led nowhere and lead to a file now.
        gone: number of shards or images that are no longer in the source.
        first_gone: URI of the first of them.
        shards: the new shards.
    """

    frozen: FrozenListing
    known: "_KnownObjects"
    replace_changed: bool
    drop_missing: bool
    new: int = 0
    changed: list[str] = field(default_factory=list)
    mended: int = 0
    gone: int = 0
    first_gone: str | None = None
    shards: list[Shard] = field(default_factory=list)
    _shards_now: dict[str, Shard] = field(default_factory=dict)  # of those that changed, by URI
    _images_now: dict[str, ListedImage] = field(default_factory=dict)

    @property
    def is_source_empty(self) -> bool:
        """Return whether nothing is left of the source."""
        return self.gone > 0 and self.gone == self.known.count and not self.new

    @property
    def replaces(self) -> bool:
        return bool(self.replace_changed and self.changed)

    @property
    def drops(self) -> bool:
        return self.drop_missing and self.gone > 0

    def add_changed(self, uri: str, image: ListedImage | None, shard: Shard) -> None:
        """Add a loose image that changed, or a shard that is one object itself, as it is now."""
        self.changed.append(uri)
        if image is None:
            self._shards_now[uri] = shard
        else:
            self._images_now[uri] = image

    def revisions(self) -> Iterator[Revision]:
        """Yield what an update does to the listing, as a stream: new shards first."""
        for shard in self.shards:
            yield Revision(old=None, new=shard)
        if self.replaces or self.drops:
            for shard in self.frozen.shards():
                revision = self._revision_of(shard)
                if revision.new is not shard:
                    yield revision

    def _revision_of(self, old: Shard) -> Revision:
        """Return what takes the place of a shard: the same place in the listing, another id."""
        if not old.is_page:
            if self.drops and self.known.is_gone(old.uri):
                return Revision(old, None)
            return Revision(old, self._shards_now.get(old.uri, old) if self.replaces else old)
        members: list[ListedImage] = []
        is_part = True
        for member, uri, _ in objects(old):
            if member is None or (self.drops and self.known.is_gone(uri)):
                continue
            now = self._images_now.get(uri, member) if self.replaces else member
            is_part = is_part and now is member
            members.append({"key": member["key"], "size": now["size"], "version": now["version"]})
        if is_part and len(members) == len(old.members):
            return Revision(old, old)
        size = sum(member["size"] for member in members)
        new = replace(old, size=size, members=tuple(members)) if members else None
        return Revision(old, new, is_part)


def find_changes(
    frozen: FrozenListing, finder: Finder, replace_changed: bool = False, drop_missing: bool = False
) -> SourceChanges:
    """List the whole source, and return what an update would add, replace and drop.

    Args:
        frozen: the listing of the run.
        finder: lists the source as it is now.
        replace_changed: whether changed shards are to be replaced.
        drop_missing: whether shards and images that are gone are to be dropped.
    """
    known = _KnownObjects(frozen.shards())
    found = SourceChanges(
        frozen=frozen, known=known, replace_changed=replace_changed, drop_missing=drop_missing
    )
    cursor = frozen.cursor()
    new_images: dict[Shard, list[ListedImage]] = {}  # by a page that is like their own, but empty
    for shard in finder.shards_left(cursor.kinds):
        for image, uri, identity in objects(shard):
            state = known.state(uri, identity)
            if state == "changed" or (state == "mended" and replace_changed):
                found.add_changed(uri, image, shard)
            elif state == "mended":
                found.mended += 1
            elif state == "new":
                found.new += 1
                if image:
                    new_images.setdefault(replace(shard, size=0, first_index=0, members=()), []).append(image)
                else:
                    found.shards.append(shard)
    for empty, images in new_images.items():
        found.shards += _image_pages(empty, images, cursor)
    found.gone, found.first_gone = known.gone(frozen)
    return found


class _KnownObjects:
    """Hold which objects a listing has, as hashes: 17 bytes for each, however long the names are.

    Attributes:
        count: number of the objects.
    """

    def __init__(self, shards: Iterable[Shard]):
        names = []
        identities = []
        for shard in shards:
            for _, uri, identity in objects(shard):
                names.append(_hash(uri))
                identities.append(_hash(f"{uri}|{identity}"))
        self.count = len(names)
        order = np.argsort(np.array(names, np.uint64))
        self._names = np.array(names, np.uint64)[order]
        self._identities = np.array(identities, np.uint64)[order]
        self._is_seen = np.zeros(self.count, bool)

    def state(self, uri: str, identity: Identity) -> str:
        """Return "new", "same", "changed" or "mended" for an object that is in the source.

        "mended" is a link that led nowhere, and the link itself is the same, or a name of a list that named
        nothing: it was listed without a size.
        """
        place = self._place(uri)
        if place is None:
            return "new"
        self._is_seen[place] = True
        was = self._identities[place]
        if was == np.uint64(_hash(f"{uri}|{identity}")):
            return "same"
        size, version = identity
        nowhere = [_hash(f"{uri}|{(0, told)}") for told in (version, UNSEEN)]
        return "mended" if size and int(was) in nowhere else "changed"

    def is_gone(self, uri: str) -> bool:
        """Return whether the listing has an object and the source had none when it was listed again."""
        place = self._place(uri)
        return place is not None and not self._is_seen[place]

    def gone(self, frozen: FrozenListing) -> tuple[int, str | None]:
        """Return how many objects of the listing are gone, and the URI of the first."""
        count = 0
        first: str | None = None
        if not self._is_seen.all():
            for shard in frozen.shards():
                for _, uri, _ in objects(shard):
                    if self.is_gone(uri):
                        count += 1
                        first = first or uri
        return count, first

    def _place(self, uri: str) -> int | None:
        name = np.uint64(_hash(uri))
        place = int(np.searchsorted(self._names, name))
        return place if place < self.count and self._names[place] == name else None


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def objects(shard: Shard) -> Iterator[tuple[ListedImage | None, str, Identity]]:
    """Yield the objects of the store that a shard consists of.

    Yields:
        The loose image, None for a shard that is one object; the object's URI; its size and version.
    """
    if not shard.is_page:
        yield None, shard.uri, (shard.size, shard.version)
    for member in shard.members:
        yield member, join(shard.uri, member["key"]), (member["size"], member["version"])


def _image_pages(empty: Shard, images: list[ListedImage], cursor: ListingCursor) -> Iterator[Shard]:
    """Yield new images as pages, and number them on behind the images that the listing has.

    Args:
        empty: a page that is like the new ones, but without images.
        images: the images.
        cursor: behind the listing.
    """
    for begin in range(0, len(images), PAGE):
        members = tuple(images[begin : begin + PAGE])
        page = replace(empty, size=sum(member["size"] for member in members), members=members)
        yield replace(page, first_index=cursor.take_indexes(page))


def freeze_update(
    frozen: FrozenListing, found: SourceChanges, done: Callable[[list[Revision]], object] = len
) -> None:
    """Add what was found to the listing. The last page is the update's end.

    Args:
        frozen: the listing.
        found: what to add, to replace and to drop.
        done: is called with the revisions of each page once they are part of the listing.

    Raises:
        UserError: another job updates the same run.
    """
    number = len(frozen.files())
    for page, last in _pages_of(found.revisions()):
        shards = [revision.new for revision in page if revision.new]
        replaces = [revision.old.id for revision in page if revision.old]
        if not frozen.put(number, shards, last=last, metadata=PageMetadata(replaces=replaces)):
            uri = without_credentials(frozen.run.uri)
            raise UserError(
                f"another job updates {uri} right now: run the same command again when it is done"
            )
        done(page)
        number += 1


def _pages_of(revisions: Iterable[Revision]) -> Iterator[tuple[list[Revision], bool]]:
    """Yield pages of revisions, and whether a page is the last one."""
    page: list[Revision] = []
    members = 0
    for revision in revisions:
        if len(page) >= frozen_listing.SHARDS_IN_PAGE or members >= frozen_listing.MEMBERS_IN_PAGE:
            yield page, False
            page = []
            members = 0
        page.append(revision)
        members += len(revision.new.members) if revision.new else 0
    yield page, True


def change_notes(found: SourceChanges, updating: bool) -> Iterator[str]:
    """Yield what the user should know of a source that changed since the run was planned."""
    if found.mended and not found.replace_changed:
        mended = plural(found.mended, "link or name", "links or names")
        yield f"{mended} that led nowhere before: --retry-errors labels what is there now"
    first = f"first {without_credentials(found.first_gone)}" if found.first_gone else ""
    if updating:
        changed = f", {len(found.changed)} changed" if found.changed else ""
        if found.changed and not found.replaces:
            changed += " (--replace-changed labels those again)"
        gone = f", {found.gone} gone, {first}" if found.gone else ""
        if found.gone:
            gone += ": dropped" if found.drops else " (--drop-missing drops those)"
        new = plural(found.new, "new shard or image", "new shards or images")
        yield f"update: {new}{changed}{gone}"
        return
    if found.new:
        new = plural(found.new, "shard or image is", "shards or images are")
        yield f"{new} new since this run was planned and not part of it: --update labels what is new"
    if found.gone:
        gone = plural(found.gone, "shard or image of this run is", "shards or images of this run are")
        drops = "--update --drop-missing drops what is gone, with its rows"
        yield f"{gone} gone from the source, {first}: {drops}"
