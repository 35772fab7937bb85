"""Read a whole object in one request where the store allows it, and no byte more than may be held."""

import os
import stat
from collections.abc import Callable
from typing import Protocol

import fsspec
from fsspec.asyn import sync

from wordsworth.pipeline.storage.filesystem import is_local
from wordsworth.pipeline.storage.objects import is_s3, object_bytes, object_info, unread_object
from wordsworth.pipeline.storage.streams import with_retries

NO_FILE = "not a regular file"
HasRoom = Callable[[int], bool]  # whether so many bytes of one object may be held now


class TooLarge(Exception):
    """Report that an object is larger than it may be.

    Attributes:
        size: bytes of the object; None where the store does not say
    """

    def __init__(self, size: int | None, max_bytes: int):
        super().__init__(f"more than {max_bytes} bytes" if size is None else f"{size} bytes")
        self.size = size


class NoRoom(Exception):
    """Report that an object cannot be held now: it was not read, and is to be asked for again.

    Attributes:
        num_bytes: bytes that it takes, as far as is known
    """

    def __init__(self, num_bytes: int):
        super().__init__(f"{num_bytes} bytes have to wait")
        self.num_bytes = num_bytes


class Unreachable(OSError):
    """Report that a server did not give an image, at no try.

    Attributes:
        began: time of the first try, by time.monotonic
        is_known: whether the server is left alone, since it failed before while others answered
    """

    def __init__(self, detail: str, began: float, is_known: bool = False):
        super().__init__(detail)
        self.began = began
        self.is_known = is_known


class BoundedReader(Protocol):
    """Read whole objects of a store that bounds them itself."""

    def read_whole(self, path: str, max_bytes: int, has_room: HasRoom) -> bytes: ...


def whole_object(fs: fsspec.AbstractFileSystem, path: str, max_bytes: int, has_room: HasRoom) -> bytes:
    """Return the bytes of an object.

    A disk, S3 and a web server are asked once. Other stores are asked for the size first.

    Args:
        fs: file system of the object
        path: exact path in `fs`
        max_bytes: bytes that it may have
        has_room: asked before bytes are read, with the bytes of the object that will be held then

    Raises:
        TooLarge: it has more.
        NoRoom: there is no room now.
        ValueError: it is a device or a pipe, whose reading may never end.
        OSError: it is missing, or the store fails.
    """
    if is_local(fs):
        return _file_bytes(path, max_bytes, has_room)
    if hasattr(fs, "read_whole"):
        reader: BoundedReader = fs
        return reader.read_whole(path, max_bytes, has_room)
    if is_s3(fs, path):
        return with_retries(lambda: _s3_bytes(fs, path, max_bytes, has_room))
    info = with_retries(lambda: object_info(fs, path))
    if info.get("type") == "directory":
        raise IsADirectoryError(path)
    if info.get("type", "file") != "file":
        raise ValueError(NO_FILE)
    check_size(info.get("size"), max_bytes, has_room)
    return with_retries(lambda: object_bytes(fs, path))


def check_size(size: int | None, max_bytes: int, has_room: HasRoom) -> None:
    """Check that an object of this size may be read now; None for a size that is not known.

    Raises:
        TooLarge: it has more than `max_bytes`.
        NoRoom: there is no room now.
    """
    if size is not None and size > max_bytes:
        raise TooLarge(size, max_bytes)
    num_bytes = max_bytes if size is None else size
    if not has_room(num_bytes):
        raise NoRoom(num_bytes)


def _file_bytes(path: str, max_bytes: int, has_room: HasRoom) -> bytes:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(mode):
        raise ValueError(NO_FILE)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, max_bytes, has_room)
        data = file.read(size + 1)
        if len(data) > size:  # it grows, or is a file of /proc, which has no size
            data += file.read(max_bytes + 1 - len(data))
    if len(data) > max_bytes:
        raise TooLarge(None, max_bytes)
    return data


def _s3_bytes(fs: fsspec.AbstractFileSystem, path: str, max_bytes: int, has_room: HasRoom) -> bytes:
    answer = unread_object(fs, path)
    try:
        check_size(answer["ContentLength"], max_bytes, has_room)
        data: bytes = sync(fs.loop, answer["Body"].read)
    finally:
        answer["Body"].close()
    return data
