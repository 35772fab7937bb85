"""Gather images that sources name one by one, on the command line or in a list, into pages.

A named image keeps the key that it has alone: `shard` is its folder, `key` its base name. So no row depends
on which other images are named beside it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from wordsworth.pipeline.sources.name_lookup import NamedImage
from wordsworth.pipeline.sources.shards import NAMED, ListedImage, Shard


def pages_of(images: list[NamedImage]) -> Iterator[Shard]:
    """Yield a page for each store, with its images in their order. The caller numbers them.

    All pages have the number of the last source, so a listing may not end between two of them.
    """
    found = [ImageAt(image.name.uri, image.size, image.version) for image in images]
    yield from named_pages(found, source=images[-1].name.source if images else 0)


class ImageAt(NamedTuple):
    """Say where an image lies, with its size and version as `ListedImage` has them."""

    uri: str
    size: int
    version: str


def named_pages(images: list[ImageAt], source: int) -> Iterator[Shard]:
    """Yield a page for each store, with its images in their order and the number of a source."""
    by_store: dict[str, list[ImageAt]] = {}
    for image in images:
        by_store.setdefault(_store(image.uri), []).append(image)
    for found in by_store.values():
        yield _page(found, source)


def _store(uri: str) -> str:
    """Return the scheme and the bucket, or the server, of a URI; "" for a file of this machine."""
    return uri[: (uri + "/").index("/", uri.index("://") + 3)] if "://" in uri else ""


def _page(images: list[ImageAt], source: int) -> Shard:
    top = _common_folder({image.uri.rpartition("/")[0] for image in images})
    members: list[ListedImage] = []
    for image in images:
        members.append({"key": image.uri[len(top) + 1 :], "size": image.size, "version": image.version})
    return Shard(
        kind=NAMED if len(images) > 1 else "images",
        uri=top,
        size=sum(image.size for image in images),
        version="",
        members=tuple(members),
        source=source,
    )


def _common_folder(folders: set[str]) -> str:
    """Return the folder that all these folders are, or lie below."""
    parts = sorted(folder.split("/") for folder in folders)
    first = parts[0]
    last = parts[-1]
    place = 0
    while place < min(len(first), len(last)) and first[place] == last[place]:
        place += 1
    return "/".join(first[:place])
