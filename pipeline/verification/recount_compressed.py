"""Compressed tars decompressed again for verify, sharing no code with the reader: by small slices of the input, whatever they give.

Where a slice fails, what it had made before is lost. So the object is read again up to there and goes on a byte at a time: the
bytes before damage are then all that can be had, which is what the reader promises to give.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

SLICE = 1024  # compressed bytes; a bomb makes 32 MiB of it
RATIO, UNCOUNTED = 500, 64 << 20  # what expands further is a bomb, and cut there


class _Broken(Exception):
    pass


class Expanded:
    """What is in a compressed object, for `read`. It ends where the data end or break; `broken` says which it was.

    `again` opens the object at its first byte; what that raises passes through.
    """

    def __init__(self, again: Callable[[], BinaryIO], name: str):
        self.broken = False
        self._again, self._decode = again, _unzstd if name.lower().endswith("zst") else _gunzip
        self._pieces, self._held = self._all(), b""

    def read(self, size: int) -> bytes:
        parts, have = [self._held], len(self._held)
        while have < size and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        self._held = data[size:]
        return data[:size]

    def _all(self) -> Iterator[bytes]:
        given = fine_from = 0
        for single in (False, True):
            seen, self._taken = 0, 0
            try:
                for piece in self._decode(self._slices(fine_from if single else None)):
                    fresh = piece[max(0, given - seen) :]
                    seen += len(piece)
                    if given + len(fresh) > UNCOUNTED + RATIO * self._taken:
                        self.broken = True
                        return
                    given += len(fresh)
                    yield fresh
                return
            except (zlib.error, zstandard.ZstdError, _Broken):
                fine_from = max(0, self._taken - SLICE)
        self.broken = True

    def _slices(self, fine_from: int | None) -> Iterator[bytes]:
        """The object in slices; from byte `fine_from` on in single bytes."""
        file = self._again()
        while data := file.read(SLICE):
            if fine_from is None or self._taken + len(data) <= fine_from:
                self._taken += len(data)
                yield data
                continue
            for byte in data:
                self._taken += 1
                yield bytes([byte])


def _gunzip(slices: Iterator[bytes]) -> Iterator[bytes]:
    decoder, begun = None, False
    for data in slices:
        while data:
            if decoder is None:
                data = data.lstrip(b"\0") if begun else data  # padding between members and behind the last
                if not data:
                    break
                decoder, begun = zlib.decompressobj(31), True
            limit = 1 if len(data) == 1 else 0  # 0: all of it
            yield decoder.decompress(data, limit)
            while limit and not decoder.eof and (more := decoder.decompress(decoder.unconsumed_tail, 1)):
                yield more
            data, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder is not None or not begun:
        raise _Broken


def _unzstd(slices: Iterator[bytes]) -> Iterator[bytes]:
    decoder, begun = None, False
    for data in slices:
        while data:
            if decoder is None:
                decoder, begun = zstandard.ZstdDecompressor().decompressobj(), True
            yield decoder.decompress(data)
            data, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder is not None or not begun:
        raise _Broken
