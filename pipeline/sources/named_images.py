"""Gather images that sources name one by one, on the command line or in a list, into pages.

A named image keeps the key that it has alone: `shard` is its folder, `key` its base name. So no row depends
on which other images are named beside it.
"""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.shards import NAMED, UNSEEN, ListedImage, Shard
from wordsworth.pipeline.sources.source_files import name_in_text
from wordsworth.pipeline.storage.filesystem import WILDCARDS, is_local, version_of, without_credentials
from wordsworth.pipeline.storage.objects import object_info
from wordsworth.pipeline.storage.streams import with_retries

LOOKERS = 32  # objects of a store that are asked for at once
_GONE = (FileNotFoundError, NotADirectoryError, PermissionError)


@dataclass(frozen=True, slots=True)
class Name:
    """Hold a source that is called like an image.

    Attributes:
        source: number of the source
        fs, path: where it lies
        uri: its URI
        is_listed: whether it stands in a list
    """

    source: int
    fs: fsspec.AbstractFileSystem
    path: str
    uri: str
    is_listed: bool


@dataclass(slots=True)
class NamedImage:
    """Hold what lies at a name.

    Attributes:
        name: the name
        is_file: whether the name is that of an image; else it is a folder or a glob, or names nothing
        size, version: of the image, as `ListedImage` has them
        is_gone: whether the name stood in a list and nothing is there now
    """

    name: Name
    is_file: bool = False
    size: int = 0
    version: str = ""
    is_gone: bool = False


class NameLookup:
    """Look up names, many at once.

    Nothing at a name of a list is an image that is not there: its row says so. That counts only while
    another named image is there. Else the disk may not be mounted.
    """

    def __init__(self) -> None:
        self._witness: Name | None = None  # the image that was found last

    def find(self, names: list[Name], may_be_gone: bool = False) -> list[NamedImage]:
        """Return what lies at each name.

        Args:
            names: the names
            may_be_gone: whether to return what is not there with `is_gone`, and else with the version UNSEEN.

        Raises:
            UserError: no name of a list names anything.
            OSError: a store fails.
        """
        found = _look_up(names)
        missing = [
            image for image in found if image.is_gone and image.name.is_listed and not _matches(image.name)
        ]
        there = [image.name for image in found if image.is_file]
        if there:
            self._witness = there[-1]
        elif missing and not may_be_gone:
            self._check_witness(missing)
        for image in missing:
            image.is_file = True
            image.is_gone = may_be_gone
            image.version = UNSEEN
        return found

    def _check_witness(self, missing: list[NamedImage]) -> None:
        if self._witness is None or not _look(self._witness).is_file:
            first = without_credentials(missing[0].name.uri)
            raise UserError(
                f"none of {len(missing)} images that a list names is there, first {first}: "
                "mount the disk, or correct the list"
            )


def _matches(name: Name) -> bool:
    """Return whether a name is a glob that matches something."""
    if not WILDCARDS.search(name.path):
        return False
    try:
        return bool(name.fs.glob(name.path))
    except (ValueError, OSError):
        return False


def _look_up(names: list[Name]) -> list[NamedImage]:
    if all(is_local(name.fs) for name in names):
        return list(map(_look, names))
    with ThreadPoolExecutor(LOOKERS, "look-up") as pool:
        return list(pool.map(_look, names))


def _look(name: Name) -> NamedImage:
    """Return what lies at a name; with `is_gone` where nothing can be seen there."""
    if name_in_text(name.path):
        return NamedImage(name)
    try:
        if is_local(name.fs):
            status = os.stat(name.path)
            if not stat.S_ISREG(status.st_mode):
                return NamedImage(name)
            return NamedImage(name, True, status.st_size, version_of({"mtime": status.st_mtime}))
        info = with_retries(lambda: object_info(name.fs, name.path))
    except _GONE:
        return NamedImage(name, is_gone=True)
    except OSError:
        if is_local(name.fs):  # a name that is too long, or a link to itself
            return NamedImage(name, is_gone=True)
        raise
    if info["type"] != "file":
        return NamedImage(name)
    return NamedImage(name, True, info["size"], version_of(info))


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
