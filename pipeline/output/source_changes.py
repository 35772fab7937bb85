"""Compare a source with the frozen listing of a run, and add the differences to the listing."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.frozen_listing import FrozenListing, PageMetadata, split_into_pages
from wordsworth.pipeline.sources.finder import PAGE, Finder
from wordsworth.pipeline.sources.shards import ListedImage, Shard
from wordsworth.pipeline.storage.filesystem import join, without_credentials

Identity = tuple[int, str]  # size in bytes and version of an object


@dataclass
class SourceChanges:
    """Hold how a source differs from the frozen listing.

    Attributes:
        new: number of shards or images that the listing does not have.
        changed: URIs of shards or images that have another size or version now.
        shards: the shards that an update adds.
        replaces: id of an added shard -> id of the shard that it replaces.
    """

    new: int = 0
    changed: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    replaces: dict[str, str] = field(default_factory=dict)


def find_changes(frozen: FrozenListing, finder: Finder, replace_changed: bool = False) -> SourceChanges:
    """List the whole source, and return what an update would add and replace.

    Args:
        frozen: the listing of the run.
        finder: lists the source as it is now.
        replace_changed: whether changed shards are to be replaced.
    """
    known = _KnownObjects(frozen.shards())
    found = SourceChanges()
    changed = _ChangedObjects()
    new_images: dict[tuple[str, int], list[ListedImage]] = {}  # by prefix and number of the source
    for shard in finder.shards():
        for image, uri, identity in objects(shard):
            state = known.state(uri, identity)
            if state == "changed":
                found.changed.append(uri)
                changed.add(uri, image, shard)
            elif state == "new":
                found.new += 1
                if image:
                    new_images.setdefault((shard.uri, shard.source), []).append(image)
                else:
                    found.shards.append(shard)
    images_before = frozen.cursor().images
    for (uri, source), images in new_images.items():
        found.shards += _image_pages(uri, source, images, images_before)
    if replace_changed and found.changed:
        for old in frozen.shards():
            new = changed.replacement(old)
            if new:
                found.shards.append(new)
                found.replaces[new.id] = old.id
    return found


class _KnownObjects:
    """Hold which objects a listing has, as hashes: 16 bytes for each, however long the names are."""

    def __init__(self, shards: Iterable[Shard]):
        names = []
        identities = []
        for shard in shards:
            for _, uri, identity in objects(shard):
                names.append(_hash(uri))
                identities.append(_hash(f"{uri}|{identity}"))
        order = np.argsort(np.array(names, np.uint64))
        self.names = np.array(names, np.uint64)[order]
        self.identities = np.array(identities, np.uint64)[order]

    def state(self, uri: str, identity: Identity) -> str:
        """Return "new", "same" or "changed"."""
        name = np.uint64(_hash(uri))
        place = int(np.searchsorted(self.names, name))
        if place == len(self.names) or self.names[place] != name:
            return "new"
        return "same" if self.identities[place] == np.uint64(_hash(f"{uri}|{identity}")) else "changed"


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def objects(shard: Shard) -> Iterator[tuple[ListedImage | None, str, Identity]]:
    """Yield the objects of the store that a shard consists of.

    Yields:
        The loose image, None for a shard that is one object; the object's URI; its size and version.
    """
    if shard.kind != "images":
        yield None, shard.uri, (shard.size, shard.version)
    for member in shard.members:
        yield member, join(shard.uri, member["key"]), (member["size"], member["version"])


def _image_pages(
    uri: str, source: int, images: list[ListedImage], images_before: Counter[str]
) -> Iterator[Shard]:
    """Yield new images of a prefix as shards, and number them on behind the images that the listing has."""
    for begin in range(0, len(images), PAGE):
        page = tuple(images[begin : begin + PAGE])
        first = images_before[uri]
        images_before[uri] += len(page)
        yield Shard(
            kind="images",
            uri=uri,
            size=sum(member["size"] for member in page),
            version="",
            first_index=first,
            members=page,
            source=source,
        )


class _ChangedObjects:
    """Hold the objects that have another size or version now, as they are now, by URI."""

    def __init__(self) -> None:
        self.shards: dict[str, Shard] = {}
        self.images: dict[str, ListedImage] = {}

    def add(self, uri: str, image: ListedImage | None, shard: Shard) -> None:
        """Add a loose image, or a shard that is one object itself."""
        if image is None:
            self.shards[uri] = shard
        else:
            self.images[uri] = image

    def replacement(self, old: Shard) -> Shard | None:
        """Return a shard as it is now: the same place in the listing, another id.

        None if nothing in the shard changed.
        """
        if old.kind != "images":
            return self.shards.get(old.uri)
        members: list[ListedImage] = []
        for member in old.members:
            now = self.images.get(join(old.uri, member["key"]), member)
            members.append({"key": member["key"], "size": now["size"], "version": now["version"]})
        if tuple(members) == old.members:
            return None
        return replace(old, size=sum(member["size"] for member in members), members=tuple(members))


def freeze_update(frozen: FrozenListing, found: SourceChanges) -> None:
    """Add what was found to the listing. The last page is the update's end.

    Raises:
        UserError: another job updates the same run.
    """
    number = len(frozen.files())
    for shards, last in split_into_pages(found.shards, float("inf")):
        replaces = [found.replaces[shard.id] for shard in shards if shard.id in found.replaces]
        if not frozen.put(number, shards, last=last, metadata=PageMetadata(replaces=replaces)):
            uri = without_credentials(frozen.run.uri)
            raise UserError(
                f"another job updates {uri} right now: run the same command again when it is done"
            )
        number += 1


def change_notes(found: SourceChanges, updating: bool) -> Iterator[str]:
    """Yield what the user should know of a source that changed since the run was planned."""
    if found.new and not updating:
        new = f"{found.new} shards or images are new since this run was planned"
        yield f"{new} and are not part of it: --update labels them"
    if updating:
        changed = f", {len(found.changed)} changed" if found.changed else ""
        kept = ""
        if found.changed and not found.replaces:
            kept = " (--replace-changed labels those again)"
        yield f"update: {found.new} new shards or images{changed}{kept}"
