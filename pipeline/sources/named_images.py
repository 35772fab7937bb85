"""Gather images that sources name one by one, on the command line or in a list, into pages.

A named image keeps the key that it has alone: `shard` is its folder, `key` its base name. So no row depends
on which other images are named beside it.
"""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import fsspec

from wordsworth.pipeline.sources.shards import NAMED, ListedImage, Shard
from wordsworth.pipeline.storage.filesystem import is_local, version_of
from wordsworth.pipeline.storage.objects import object_info
from wordsworth.pipeline.storage.streams import with_retries

LOOKERS = 32  # objects of a store that are asked for at once


@dataclass(slots=True)
class NamedImage:
    """Hold one image that a source names.

    Attributes:
        source: number of the source.
        uri: URI of the image.
        size: bytes.
        version: etag, or time of modification.
    """

    source: int
    uri: str
    size: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class Name:
    """Hold a source that is called like an image: its number, its file system, path and URI."""

    source: int
    fs: fsspec.AbstractFileSystem
    path: str
    uri: str


def look_up(names: list[Name]) -> Iterator[NamedImage | None]:
    """Yield the image of each name; None for a name that is no file: a folder, a glob, or nothing.

    Raises:
        OSError: a store fails.
    """
    if all(is_local(name.fs) for name in names):
        yield from map(_look_up, names)
        return
    with ThreadPoolExecutor(LOOKERS, "look-up") as pool:
        yield from pool.map(_look_up, names)


def _look_up(name: Name) -> NamedImage | None:
    try:
        if is_local(name.fs):
            status = os.stat(name.path)
            if not stat.S_ISREG(status.st_mode):
                return None
            return NamedImage(name.source, name.uri, status.st_size, version_of({"mtime": status.st_mtime}))
        info = with_retries(lambda: object_info(name.fs, name.path))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError:
        if is_local(name.fs):  # a name that is too long, or a link to itself
            return None
        raise
    if info["type"] != "file":
        return None
    return NamedImage(name.source, name.uri, info["size"], version_of(info))


def pages_of(images: list[NamedImage]) -> Iterator[Shard]:
    """Yield a page for each store, with its images in their order. The caller numbers them.

    All pages have the number of the last source, so a listing may not end between two of them.
    """
    by_store: dict[str, list[NamedImage]] = {}
    for image in images:
        by_store.setdefault(_store(image.uri), []).append(image)
    for found in by_store.values():
        yield _page(found, source=images[-1].source)


def _store(uri: str) -> str:
    """Return the scheme and the bucket, or the server, of a URI; "" for a file of this machine."""
    return uri[: (uri + "/").index("/", uri.index("://") + 3)] if "://" in uri else ""


def _page(images: list[NamedImage], source: int) -> Shard:
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
