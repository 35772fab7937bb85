"""Open a table of text as a stream of its bytes, decompressed where its name says so."""

import io
from typing import Any

import fsspec

from wordsworth.pipeline.sources.compressed import CompressedCut, Decompressed
from wordsworth.pipeline.sources.file_kinds import compression
from wordsworth.pipeline.storage.streams import ObjectStream


class TableCut(Exception):
    """Report that a table breaks off. All rows before the damage were whole and have been given."""


class TextObject(io.RawIOBase):
    """Read a table of text from front to back.

    Args:
        fs: file system of the table
        path: path of the table in `fs`; its ending says how it is compressed
        size: bytes of the table

    Attributes:
        is_packed: whether it is compressed
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int):
        self._raw = ObjectStream(fs, path, size, 0)
        form = compression(path)
        self._unpacked = Decompressed(self._raw, form) if form else None
        self.is_packed = form is not None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with one read. Return the number of bytes; 0 at the end.

        Raises:
            TableCut: compressed data end or break here. All bytes before that were given.
            OSError: the store fails.
        """
        if self._unpacked is None:
            return self._raw.readinto(buffer)
        try:
            data = self._unpacked.read(len(buffer))
        except CompressedCut as cut:
            raise TableCut(cut.reason) from cut
        buffer[: len(data)] = data
        return len(data)

    def consumed(self, position: int) -> int:
        """Return the bytes of the object that stand for the first `position` bytes of text.

        Positions must be asked for in their order.
        """
        return position if self._unpacked is None else self._unpacked.consumed(position)

    def close(self) -> None:
        (self._unpacked or self._raw).close()
        super().close()
