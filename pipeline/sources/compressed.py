"""Compressed tars as streams: decompressed front to back in bounded memory, every damage noticed.

gzip is RFC 1952, members end to end included; zstd is RFC 8878, frames end to end and skippable ones included. The libraries'
own file objects take an object that ends inside a frame, or has something else behind it, for whole. Here a stream ends in
silence only when the end mark of its last frame was seen and nothing but what the format allows came after it.
"""

import io
import zlib
from collections import deque
from collections.abc import Iterator

import zstandard

from wordsworth.pipeline.sources.tar import TarCut

CHUNK = 64 << 10  # compressed bytes asked for at once
PIECE = 256 << 10  # decompressed bytes held at once
MAX_EXPANSION = 500  # decompressed bytes for one compressed; tars of tiny text reach about 100, a bomb of zeros 1,000 or 30,000
FREE_EXPANSION = 64 << 20  # decompressed bytes before the ratio counts
_MAGIC = 0xFD2FB528
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)


class Damaged(TarCut):
    """The compressed stream ends or breaks before its end mark. All that lay before `offset` (decompressed) has been given.

    A `TarCut`, because for who reads the tar it is one. What the store raises is none and passes through.
    """


class _Source:
    """The compressed object; `position` counts what was taken of it."""

    def __init__(self, raw: io.RawIOBase):
        self._file, self.position = io.BufferedReader(raw, 1 << 20), 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the object's end."""
        data = self._file.read(size)
        self.position += len(data)
        return data

    def close(self) -> None:
        self._file.close()


class _Bad(Exception):
    """Damage, its place not yet known."""


# ---- gzip -----------------------------------------------------------------------------------------------------------------


def _gunzip(source: _Source) -> Iterator[bytes]:
    """The contents of a gzip file in pieces. Ends behind the last member; zeros may pad it (as gzip's own manual has it)."""
    data, first = source.take(CHUNK), True
    while first or data:
        member, first, full = zlib.decompressobj(wbits=31), False, False
        while not member.eof:
            if not data and not full and not (data := source.take(CHUNK)):
                raise _Bad("the gzip stream ends before its end mark")
            before = member.copy()
            try:
                piece = member.decompress(data, PIECE)
            except zlib.error as error:
                yield from _last_words(before, data)
                raise _Bad(f"the gzip stream is damaged: {error}") from error
            data, full = (
                member.unconsumed_tail,
                len(piece) == PIECE,
            )  # a full piece: zlib may hold more than it gave
            yield piece
        data = member.unused_data.lstrip(b"\0")
        while not data and (more := source.take(CHUNK)):
            data = more.lstrip(b"\0")


def _last_words(member, data: bytes) -> Iterator[bytes]:
    """What can be decompressed before the error: zlib drops what the failing call had made. Where the bytes end must not
    depend on how they were cut into calls, or a second reading would see another number of samples."""
    try:
        while True:
            yield member.decompress(data, 1)
            data = member.unconsumed_tail
    except zlib.error:
        return


# ---- zstd -----------------------------------------------------------------------------------------------------------------


def _unzstd(source: _Source) -> Iterator[bytes]:
    """The contents of a zstd file, a block (128 KiB at most) at a time: fed more, the library would give it all at once."""
    first = True
    while (magic := source.take(4)) or first:
        number, first = int.from_bytes(magic, "little"), False
        if len(magic) < 4:
            raise _Bad("the zstd stream ends before its end mark" if magic else "the object is empty")
        if number in _SKIPPABLE:
            _skip_frame(source)
        elif number == _MAGIC:
            yield from _frame(source, magic)
        else:
            raise _Bad("no zstd frame: wrong magic number")


def _skip_frame(source: _Source) -> None:
    left = int.from_bytes(_exactly(source, 4), "little")
    while left:
        left -= len(_exactly(source, min(left, CHUNK)))


def _exactly(source: _Source, size: int) -> bytes:
    if len(data := source.take(size)) < size:
        raise _Bad("the zstd stream ends before its end mark")
    return data


def _frame(source: _Source, magic: bytes) -> Iterator[bytes]:
    decoder = zstandard.ZstdDecompressor().decompressobj()
    descriptor = _exactly(source, 1)[0]
    single = descriptor >> 5 & 1  # then there is no window byte, and the content's size is there
    header = (1 - single) + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
    yield _decoded(decoder, magic + bytes([descriptor]) + _exactly(source, header))
    last = False
    while not last:
        block = _exactly(source, 3)
        word = int.from_bytes(block, "little")
        last, kind, size = word & 1, word >> 1 & 3, word >> 3
        want = 1 if kind == 1 else size  # kind 1: one byte, repeated
        data = source.take(want)
        yield _decoded(decoder, block + data)
        if len(data) < want:
            raise _Bad("the zstd stream ends before its end mark")
    if descriptor & 4:
        yield _decoded(decoder, _exactly(source, 4))  # the checksum
    if not decoder.eof:
        raise _Bad("the zstd stream is damaged: its last block is not the end of the frame")


def _decoded(decoder, data: bytes) -> bytes:
    try:
        return decoder.decompress(data)
    except zstandard.ZstdError as error:
        raise _Bad(f"the zstd stream is damaged: {error}") from error


# ---- the stream -----------------------------------------------------------------------------------------------------------


class Decompressed:
    """A forward-only stream of what is in a compressed object, whose `raw` stands at its first byte.

    Raises Damaged where the compressed data end or break, or expand beyond MAX_EXPANSION, after all bytes before that were given;
    OSError, from `raw`, when the store fails.
    """

    def __init__(self, raw: io.RawIOBase, form: str):
        self._source = _Source(raw)
        self._pieces = {"gzip": _gunzip, "zstd": _unzstd}[form](self._source)
        self._piece, self._at = memoryview(b""), 0
        self._made = 0  # bytes decompressed
        self._marks: deque[tuple[int, int]] = (
            deque()
        )  # bytes decompressed, and the compressed bytes that took

    @property
    def position(self) -> int:
        """Decompressed bytes that were given."""
        return self._made - len(self._piece) + self._at

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end, and only there."""
        while self._at == len(self._piece):
            if not self._next():
                return b""
        data = bytes(self._piece[self._at : self._at + size])
        self._at += len(data)
        return data

    def _next(self) -> bool:
        try:
            piece = next(self._pieces, None)
        except _Bad as bad:
            raise Damaged(self._made, str(bad), short=True) from bad
        if piece is None:
            return False
        if self._made + len(piece) > FREE_EXPANSION + MAX_EXPANSION * self._source.position:
            raise Damaged(self._made, f"it expands to more than {MAX_EXPANSION} times its size", short=False)
        self._piece, self._at = memoryview(piece), 0
        self._made += len(piece)
        self._marks.append((self._made, self._source.position))
        return True

    def skip(self, position: int) -> None:
        """Reads on to byte `position`, or to the end."""
        while self.position < position and self.read(min(PIECE, position - self.position)):
            self.consumed(self.position)

    def consumed(self, position: int) -> int:
        """Compressed bytes that were read until byte `position` was there: the same at every reading. Never ask backwards."""
        while len(self._marks) > 1 and self._marks[0][0] < position:
            self._marks.popleft()
        return self._marks[0][1] if self._marks else 0

    def close(self) -> None:
        self._source.close()
