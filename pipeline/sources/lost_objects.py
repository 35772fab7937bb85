"""Tell a lost object from a store that fails.

An object can be gone, forbidden or archived while the store is well. Such an object is lost, and the others
need not wait for it. But a disk that is not mounted, a token that ended or a policy that forbids everything
look the same from one object. So a loss counts only beside a witness: another image that can still be read.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import fsspec

from wordsworth.pipeline.sources.file_kinds import base_name, kind_of
from wordsworth.pipeline.sources.samples import ShardChanged, StoreFault, UnfitTable
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import StorageOptions, is_local, join, open_exact
from wordsworth.pipeline.storage.objects import object_bytes
from wordsworth.pipeline.storage.streams import AZURE_ARCHIVED, with_retries
from wordsworth.pipeline.storage.walk import walk_files

LOSSES = ("not_found", "forbidden", "archived")  # codes of rows, and first words of a lost shard's fault
WITNESSES = 16  # images of a page that are tried, and images of a new listing
LOOKED_AT = 1000  # files of the new listing among which these are sought
# S3's codes that speak of one object. Its other refusals speak of the key, the token or the clock.
S3_FORBIDDEN = ("AccessDenied", "403")
S3_ARCHIVED = "InvalidObjectState"


class Loss(NamedTuple):
    """Say why an object is lost.

    Attributes:
        code: one of LOSSES
        detail: what it means, in words
    """

    code: str
    detail: str


class LostShard(StoreFault):
    """Report that a shard is lost. No row is made: how many samples it has is not known."""


def loss_of(error: OSError, fs: fsspec.AbstractFileSystem, path: str) -> Loss | None:
    """Return what an error says of the object at `path`; None for an error that may pass."""
    if isinstance(error, PermissionError):
        return _refusal(error)
    is_missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if error.errno == errno.ENXIO and is_local(fs):
        return Loss("not_found", "a pipe, a socket or a device is there, and no image")
    if not is_missing and error.errno != errno.ELOOP:
        return None
    if is_local(fs) and os.path.islink(path):
        return Loss("not_found", "this link leads nowhere")
    return Loss("not_found", "there is no such object")


def _refusal(error: PermissionError) -> Loss | None:
    response = getattr(error.__cause__, "response", None)
    code = response["Error"].get("Code") if isinstance(response, dict) else None
    if code == S3_ARCHIVED or getattr(error.__cause__, "error_code", None) == AZURE_ARCHIVED:
        return Loss("archived", "it lies in an archive and is not restored")
    if code is None or code in S3_FORBIDDEN:
        return Loss("forbidden", "reading it is not allowed")
    return None


def fault_of(error: OSError | StoreFault, shard: Shard, options: StorageOptions) -> str:
    """Return what a unit says of an error that ends the reading of a shard."""
    if isinstance(error, ShardChanged | LostShard | UnfitTable):
        return str(error)
    fs, path = open_exact(shard.uri, options)
    loss = loss_of(error, fs, path) if isinstance(error, OSError) else None
    return f"{loss.code}: {loss.detail}" if loss else f"{type(error).__name__}: {error}"


def is_readable(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Return whether the first byte of an object can be read.

    Raises:
        OSError: the store fails.
    """
    try:
        with_retries(lambda: object_bytes(fs, path, 0, 1))
    except OSError as error:
        if loss_of(error, fs, path) is None:
            raise
        return False
    return True


class Witness:
    """Find an image that can be read, beside one that is lost.

    Attributes:
        last: path of the image that was read last; None before the first
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, page: Shard, image_keys: tuple[str, ...]):
        """Prepare for a page of loose images; nothing is read.

        Args:
            fs: file system of the page
            root: path of the page's prefix
            page: the page
            image_keys: extensions of images, in lower case
        """
        self.fs = fs
        self.root = root
        self.page = page
        self.image_keys = image_keys
        self.last: str | None = None

    def confirm(self, loss: Loss, path: str) -> None:
        """Check that the image at `path` is lost, and not the store.

        The witness is read after the loss was met. So a token that ended between two images is no loss.

        Raises:
            LostShard: no other image can be read.
            OSError: the store fails.
        """
        if loss.code == "archived":  # a store says this only after a look at the object itself
            return
        for candidate in self._candidates():
            if candidate != path and is_readable(self.fs, candidate):
                self.last = candidate
                return
        raise LostShard(f"unreadable: no image here can be read, first {path}: {loss.detail}")

    def _candidates(self) -> Iterator[str]:
        """Yield paths of images that may be readable, the likeliest first."""
        if self.last is not None:
            yield self.last
        members = self.page.members
        for member in members[:: -(-len(members) // WITNESSES)]:
            if member["size"]:  # an empty file and a link that leads nowhere tell nothing
                yield join(self.root, member["key"])
        with contextlib.suppress(FileNotFoundError, PermissionError):
            yield from islice(self._listed_now(), WITNESSES)

    def _listed_now(self) -> Iterator[str]:
        for path, info in islice(walk_files(self.fs, self.root), LOOKED_AT):
            if info["size"] and kind_of(base_name(path), self.image_keys) == "images":
                yield path
