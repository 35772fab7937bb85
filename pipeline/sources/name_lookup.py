"""Look up sources that are called like images, many at once."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import fsspec

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.sources.shards import UNSEEN
from wordsworth.pipeline.sources.source_files import name_in_text
from wordsworth.pipeline.storage.filesystem import WILDCARDS, is_local, version_of, without_credentials
from wordsworth.pipeline.storage.objects import object_info
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.storage.walk import walk_files

LOOKERS = 32  # objects of a store that are asked for at once
FEWEST_LISTED = 16  # names in a folder of S3 that are worth a listing
LISTED_FOR_A_NAME = 100  # files of a listing for each name; a request gives a thousand
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
                f"none of {plural(len(missing), 'image')} that a list names is there, first {first}: "
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
    listed = _listed_on_s3(names)
    with ThreadPoolExecutor(LOOKERS, "look-up") as pool:
        return list(pool.map(lambda name: listed.get(name.uri) or _look(name), names))


def _listed_on_s3(names: list[Name]) -> dict[str, NamedImage]:
    """Return the images that a listing of their folders gives with fewer requests than they are, by URI."""
    by_folder: dict[str, list[Name]] = {}
    for name in names:
        if hasattr(name.fs, "call_s3"):
            by_folder.setdefault(name.path.rpartition("/")[0], []).append(name)
    found: dict[str, NamedImage] = {}
    for folder, below in by_folder.items():
        if len(below) >= FEWEST_LISTED and "/" in folder:
            found |= _listed_below(folder, {name.path: name for name in below})
    return found


def _listed_below(folder: str, names: dict[str, Name]) -> dict[str, NamedImage]:
    fs = next(iter(names.values())).fs
    last = max(names)
    found: dict[str, NamedImage] = {}
    try:
        # The first name without its last character comes before it, and behind few others.
        files = walk_files(fs, folder, min(names)[:-1])
        for path, info in islice(files, LISTED_FOR_A_NAME * len(names)):
            if path > last:
                break
            name = names.get(path)
            if name:
                found[name.uri] = NamedImage(name, True, info["size"], version_of(info))
    except OSError:  # it may not be listed: each object is asked for
        return found
    return found


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
    if info.get("type", "file") != "file":
        return NamedImage(name)
    return NamedImage(name, True, info["size"], version_of(info))
