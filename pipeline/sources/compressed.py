"""Read compressed tars as streams, front to back in bounded memory, and notice every damage.

gzip is RFC 1952, with members end to end; zstd is RFC 8878, with frames end to end and skippable frames.
The libraries' own file objects take an object for whole that ends inside a frame, or that has something
else behind the frame. Here a stream ends without an error only when the end mark of its last frame was
seen, and only what the format allows came after that mark.
"""

import io
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

import zstandard

from wordsworth.pipeline.sources.tar_headers import TarCut

CHUNK = 64 << 10  # compressed bytes asked for at once
PIECE = 256 << 10  # decompressed bytes of gzip held at once
SLICE = 2 << 10  # compressed bytes given to zstd at once: it gives all of their contents, 64 MiB at most
MAX_EXPANSION = (
    500  # decompressed bytes for a compressed byte; tars of tiny text reach about 100, a bomb 1,000 to 30,000
)
FREE_EXPANSION = 64 << 20  # decompressed bytes before the ratio counts


class CompressedCut(TarCut):
    """Report that the compressed stream ends or breaks before its end mark.

    All bytes before `offset` (decompressed) have been given. It is a `TarCut`, because the tar inside is
    cut there. Errors of the store are no cut and pass through.
    """


class Decompressed:
    """Read the contents of a compressed object as a forward-only stream.

    Args:
        raw: the object, at its first byte
        form: "gzip" or "zstd"
    """

    def __init__(self, raw: io.RawIOBase, form: str):
        self._source = _Source(raw)
        contents = _gunzip(self._source) if form == "gzip" else _unzstd(self._source)
        self._pieces = _bounded(contents, self._source)
        self._piece = memoryview(b"")
        self._at = 0  # bytes of the piece that were given
        self._made = 0  # bytes decompressed
        # Bytes decompressed, and the compressed bytes that these took, for each piece that may be asked for.
        self._marks: deque[tuple[int, int]] = deque()

    @property
    def position(self) -> int:
        """Return the number of decompressed bytes that were given."""
        return self._made - len(self._piece) + self._at

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end, and only there.

        Raises:
            CompressedCut: the data end or break, or expand beyond MAX_EXPANSION. All bytes before that were
                given.
            OSError: the store fails.
        """
        while self._at == len(self._piece):
            if not self._next():
                return b""
        data = bytes(self._piece[self._at : self._at + size])
        self._at += len(data)
        return data

    def _next(self) -> bool:
        """Take the next piece; return whether there is one."""
        try:
            piece = next(self._pieces, None)
        except _Damage as damage:
            raise CompressedCut(self._made, damage.reason, damage.short) from damage
        if piece is None:
            return False
        taken = self._source.position
        self._piece = memoryview(piece)
        self._at = 0
        self._made += len(piece)
        if self._marks and self._marks[-1][1] == taken:
            self._marks.pop()
        self._marks.append((self._made, taken))
        return True

    def skip(self, position: int) -> None:
        """Read on to decompressed byte `position`, or to the end."""
        while self.position < position and self.read(min(PIECE, position - self.position)):
            self.consumed(self.position)

    def consumed(self, position: int) -> int:
        """Return the compressed bytes that were read until byte `position` was there.

        The number is the same at every reading. Positions must be asked for in their order.
        """
        while len(self._marks) > 1 and self._marks[0][0] < position:
            self._marks.popleft()
        return self._marks[0][1] if self._marks else 0

    def close(self) -> None:
        """Close the object."""
        self._source.close()


class _Source:
    """Read the compressed object. position: compressed bytes that were taken."""

    def __init__(self, raw: io.RawIOBase):
        self._file = io.BufferedReader(raw, 1 << 20)
        self.position = 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer only at the object's end."""
        data = self._file.read(size)
        self.position += len(data)
        return data

    def close(self) -> None:
        self._file.close()


class _Damage(Exception):
    """Report damage whose place in the stream is not known yet. See `TarCut` for the attributes."""

    def __init__(self, reason: str, short: bool = True):
        super().__init__(reason)
        self.reason = reason
        self.short = short


def _bounded(pieces: Iterator[bytes], source: _Source) -> Iterator[bytes]:
    """Yield the pieces as long as they are no bomb: the contents of few bytes that expand without end."""
    made = 0
    for piece in pieces:
        room = FREE_EXPANSION + MAX_EXPANSION * source.position - made
        if len(piece) > room:
            yield piece[:room]
            raise _Damage(f"it expands to more than {MAX_EXPANSION} times its size", short=False)
        made += len(piece)
        yield piece


# ---- gzip -------------------------------------------------------------------------------------------------


def _gunzip(source: _Source) -> Iterator[bytes]:
    """Yield the contents of a gzip file in pieces. Zeros may stand behind each member, as padding."""
    data = source.take(CHUNK)
    while True:
        data = yield from _gzip_member(source, data)
        data = data.lstrip(b"\0")
        while not data:
            more = source.take(CHUNK)
            if not more:
                return
            data = more.lstrip(b"\0")


def _gzip_member(source: _Source, data: bytes) -> Generator[bytes, None, bytes]:
    """Yield the contents of one member that begins with `data`; return the bytes behind the member."""
    member = zlib.decompressobj(wbits=31)
    full = False  # whether the last piece was as long as allowed: zlib may then hold more than it gave
    while not member.eof:
        if not data and not full:
            data = source.take(CHUNK)
            if not data:
                raise _Damage("the gzip stream ends before its end mark")
        before = member.copy()
        try:
            piece = member.decompress(data, PIECE)
        except zlib.error as error:
            yield from _gzip_before_damage(before, data)
            raise _Damage(f"the gzip stream is damaged: {error}") from error
        data = member.unconsumed_tail
        full = len(piece) == PIECE
        yield piece
    return member.unused_data


def _gzip_before_damage(member: Any, data: bytes) -> Iterator[bytes]:
    """Yield what can be decompressed before the error: zlib drops what the failing call had made.

    Where the bytes end must not depend on how they were cut into calls: a second reading would see another
    number of samples. The call that makes the last byte must not see the checksum behind it.
    """
    try:
        for at in range(len(data)):
            byte = data[at : at + 1]
            while piece := member.decompress(byte, 1):
                yield piece
                byte = member.unconsumed_tail
    except zlib.error:
        return


# ---- zstd -------------------------------------------------------------------------------------------------


def _unzstd(source: _Source) -> Iterator[bytes]:
    """Yield the contents of a zstd file in pieces."""
    frame: _Frame | None = None
    chunk = source.take(CHUNK)
    if not chunk:
        raise _Damage("the object is empty")
    while chunk:
        for begin in range(0, len(chunk), SLICE):
            data = chunk[begin : begin + SLICE]
            while data:
                frame = frame or _Frame()
                try:
                    piece = frame.decompress(data)
                except zstandard.ZstdError as error:
                    yield from frame.before_damage(data)
                    raise _Damage(f"the zstd stream is damaged: {error}") from error
                if piece:
                    yield piece
                data = frame.unused
                if frame.ended:
                    frame = None
        chunk = source.take(CHUNK)
    if frame is not None:
        raise _Damage("the zstd stream ends before its end mark")


class _Frame:
    """Decompress one frame, slice by slice.

    The library drops what a failing call had made, and its decoder cannot be copied. So a second decoder
    stays one slice behind: from that decoder comes what can be had of the slice that fails.
    `_gzip_before_damage` says why that matters.
    """

    def __init__(self) -> None:
        self._ahead = zstandard.ZstdDecompressor().decompressobj()
        self._behind = zstandard.ZstdDecompressor().decompressobj()
        self._last = b""  # the slice that only the first decoder has

    @property
    def ended(self) -> bool:
        return self._ahead.eof

    @property
    def unused(self) -> bytes:
        """Return the bytes behind the end of the frame."""
        return self._ahead.unused_data

    def decompress(self, data: bytes) -> bytes:
        """Return the contents of a slice. Raises ZstdError for a damaged one."""
        self._behind.decompress(self._last)
        self._last = data
        return self._ahead.decompress(data)

    def before_damage(self, data: bytes) -> Iterator[bytes]:
        """Yield the contents of the slice that failed, up to the damage."""
        try:
            for at in range(len(data)):
                yield self._behind.decompress(data[at : at + 1])
        except zstandard.ZstdError:
            return
