"""Read an object in any order, as pyarrow reads a Parquet file."""

import io
from typing import Any

import fsspec

from wordsworth.pipeline.storage.objects import object_bytes
from wordsworth.pipeline.storage.streams import with_retries


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
