"""Read an object in any order, as pyarrow reads a Parquet file."""

import io
from typing import Any

import fsspec

from wordsworth.pipeline.storage.objects import object_bytes
from wordsworth.pipeline.storage.streams import with_retries

AHEAD_BYTES = 8 << 20  # read at once where ranges follow each other
NEAR_BYTES = 1 << 20  # a gap between two ranges that still follow each other


class SeekableObject(io.RawIOBase):
    """Read ranges of an object, each by one request that is tried again when it fails or is cut short.

    Attributes:
        fault: the last error of the store. pyarrow raises a store's error as if the bytes were damaged; this
            tells them apart.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int):
        """Prepare the reads.

        Args:
            fs: file system of the object.
            path: path of the object in `fs`.
            size: bytes of the object.
        """
        self.fs = fs
        self.path = path
        self.size = size
        self.position = 0
        self.fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = start + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        end = self.size if size < 0 else min(self.size, self.position + size)
        if end <= self.position:
            return b""
        try:
            data = with_retries(lambda: self._range(end))
        except Exception as error:
            self.fault = error
            raise
        self.position = end
        return data

    def _range(self, end: int) -> bytes:
        data = object_bytes(self.fs, self.path, self.position, end)
        if len(data) != end - self.position:
            raise OSError(f"{self.path} gave {len(data)} of {end - self.position} bytes")
        return data


class RangeReader:
    """Read ranges that mostly follow each other: then many come with one request, each byte once. A range
    that lies somewhere else is a request of its own, and no bytes beside it are read.

    Args:
        file: what is read.

    Attributes:
        position: place behind the range that was read last.
    """

    def __init__(self, file: SeekableObject):
        self.file = file
        self.position = 0
        self._begin = 0
        self._held = b""  # from `_begin` on

    def read(self, place: int, size: int, behind: int = 0) -> bytes:
        """Return the bytes of a range; fewer at the end of the object.

        Args:
            place: first byte
            size: bytes
            behind: bytes behind the range that are read next
        """
        at = place - self._begin
        if not 0 <= at <= at + size <= len(self._held):
            follows = 0 <= at <= len(self._held) + NEAR_BYTES and self._held
            self.file.seek(place)
            self._held = self.file.read(max(size + behind, AHEAD_BYTES if follows else 0))
            self._begin = place
            at = 0
        self.position = place + size
        return self._held[at : at + size]
