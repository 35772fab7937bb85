"""Decompress tars again for verify, without code of the reader: small slices of the input, and what each of
them gives.

Where a slice fails, its earlier output is lost with it. Then the object is read again, up to that slice as
before and from there on a byte at a time. So every byte before the damage comes out, which is what the reader
promises to give.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import zstandard

SLICE_BYTES = 1024  # compressed bytes; those of a bomb become 32 MiB
MAX_RATIO = 500  # decompressed bytes for each compressed one; more is a bomb, and is cut there
UNCOUNTED_BYTES = 64 << 20  # decompressed bytes before the ratio counts


class ByteStream(Protocol):
    """Read bytes from front to back."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""


class _Broken(Exception):
    """Report that the compressed data end before their end mark."""


class ExpandedFile(io.RawIOBase):
    """Read what is in a compressed object as a file. The arguments are those of `Expanded`."""

    def __init__(self, open_again: "Callable[[], ByteStream]", name: str):
        self._expanded = Expanded(open_again, name)

    @property
    def broken(self) -> bool:
        """Return whether the data broke instead of ending."""
        return self._expanded.broken

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._expanded.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Expanded:
    """Read what is in a compressed object. The stream ends where the data end or break.

    Args:
        open_again: opens the object at its first byte. What it raises passes through.
        name: name of the object, which ends in .gz, .tgz, .zst or .tzst.

    Attributes:
        broken: whether the data broke instead of ending.
    """

    def __init__(self, open_again: Callable[[], ByteStream], name: str):
        self.broken = False
        self._open_again = open_again
        self._decode = _unzstd if name.lower().endswith("zst") else _gunzip
        self._taken = 0  # compressed bytes that were decoded
        self._held = b""
        self._pieces = self._all()

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        parts = [self._held]
        length = len(self._held)
        while length < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            parts.append(piece)
            length += len(piece)
        data = b"".join(parts)
        self._held = data[size:]
        return data[:size]

    def _all(self) -> Iterator[bytes]:
        """Yield the decompressed bytes: in slices, and after a failure once more, at the end in single
        bytes."""
        num_given = 0
        single_from: int | None = None
        for _ in range(2):
            num_seen = 0
            self._taken = 0
            try:
                for piece in self._decode(self._slices(single_from)):
                    fresh = piece[max(0, num_given - num_seen) :]
                    num_seen += len(piece)
                    if num_given + len(fresh) > UNCOUNTED_BYTES + MAX_RATIO * self._taken:
                        self.broken = True
                        return
                    num_given += len(fresh)
                    yield fresh
                return
            except (zlib.error, zstandard.ZstdError, _Broken):
                single_from = max(0, self._taken - SLICE_BYTES)
        self.broken = True

    def _slices(self, single_from: int | None) -> Iterator[bytes]:
        """Yield the object in slices, and from byte `single_from` on in single bytes."""
        file = self._open_again()
        while True:
            data = file.read(SLICE_BYTES)
            if not data:
                return
            if single_from is None or self._taken + len(data) <= single_from:
                self._taken += len(data)
                yield data
                continue
            for byte in data:
                self._taken += 1
                yield bytes([byte])


def _gunzip(slices: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what the members of a gzip file hold.

    Raises:
        zlib.error, _Broken: the data are damaged, or end too early.
    """
    decoder: Any = None
    is_begun = False
    for data in slices:
        while data:
            if decoder is None:
                if is_begun:
                    data = data.lstrip(b"\0")  # padding between members and after the last one
                    if not data:
                        break
                decoder = zlib.decompressobj(31)
                is_begun = True
            is_single = len(data) == 1
            yield decoder.decompress(data, 1 if is_single else 0)  # 0: all output
            while is_single and not decoder.eof:
                more = decoder.decompress(decoder.unconsumed_tail, 1)
                if not more:
                    break
                yield more
            if not decoder.eof:
                break
            data = decoder.unused_data
            decoder = None
    if decoder is not None or not is_begun:
        raise _Broken


def _unzstd(slices: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what the frames of a zstd file hold.

    Raises:
        zstandard.ZstdError, _Broken: the data are damaged, or end too early.
    """
    decoder: Any = None
    is_begun = False
    for data in slices:
        while data:
            if decoder is None:
                decoder = zstandard.ZstdDecompressor().decompressobj()
                is_begun = True
            yield decoder.decompress(data)
            if not decoder.eof:
                break
            data = decoder.unused_data
            decoder = None
    if decoder is not None or not is_begun:
        raise _Broken
