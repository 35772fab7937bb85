"""Read the lines of a table of text: UTF-8, or UTF-16 where the first bytes say so."""

import io
from collections import deque
from dataclasses import dataclass

from wordsworth.pipeline.sources.text_object import TableCut, TextObject

MAX_LINE = 16 << 20  # bytes of a line; a longer one is no record and is never held
_PIECE = 1 << 20  # bytes of a line read at once; even, so that no character of UTF-16 is cut
_MARKS = {
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
}  # byte order mark: encoding
_NEWLINES = {"utf-8": b"\n", "utf-16-le": b"\n\0", "utf-16-be": b"\0\n"}


@dataclass(slots=True)
class Line:
    """Hold one line. size: bytes in the file. bad: why the line cannot be read, in words."""

    text: str
    size: int
    bad: str | None = None


class Lines:
    """Read the lines of a table of text, decoded; lines can be put back.

    Where compressed data end or break, the lines end, without the last one if it is not whole:
    `check_whole` says so.

    Args:
        file: the table, at its first byte

    Attributes:
        position: bytes of text before the next line
    """

    def __init__(self, file: TextObject):
        self._object = file
        self._file = io.BufferedReader(file, 1 << 20)
        self._cut: TableCut | None = None
        self._back: deque[Line] = deque()
        self.position = 0
        self._encoding: str | None = None  # None before the first line
        self._newline = b""
        self._head = b""  # bytes that were read before the first line
        self._mark_size = 0  # bytes of the byte order mark, which belongs to the first line

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> Line:
        line = self._back.popleft() if self._back else self._read()
        self.position += line.size
        return line

    def put_back(self, lines: list[Line]) -> None:
        self._back.extendleft(reversed(lines))
        self.position -= sum(line.size for line in lines)

    def end(self) -> int:
        """Return the bytes of the object before the next line; must be asked for line by line."""
        return self._object.consumed(self.position) if self._object.is_packed else self.position

    def check_whole(self) -> None:
        """Raise TableCut if the lines ended at the damage of compressed data."""
        if self._cut:
            raise self._cut

    def _read(self) -> Line:
        if self._cut:
            raise StopIteration
        try:
            encoding = self._encoding or self._begin()
            data, size = self._bytes()
        except TableCut as cut:
            self._cut = cut
            raise StopIteration from cut
        if not size:
            raise StopIteration
        size += self._mark_size
        self._mark_size = 0
        if data is None:
            return Line("", size, f"a line of more than {MAX_LINE} bytes")
        try:
            return Line(data.decode(encoding), size)
        except UnicodeDecodeError as error:
            name = encoding[:6].upper()
            return Line("", size, f"not {name}: {error.reason} at byte {error.start} of the line")

    def _begin(self) -> str:
        """Find the encoding, and return it."""
        head = self._file.read(4)
        self._encoding, self._mark_size = encoding_of(head)
        self._newline = _NEWLINES[self._encoding]
        self._head = head[self._mark_size :]
        return self._encoding

    def _bytes(self) -> tuple[bytes | None, int]:
        """Return the next line, None for one that is too long, and its size; 0 at the end."""
        data = self._piece() if self._head or self._newline != b"\n" else self._file.readline(_PIECE)
        size = len(data)
        if size <= MAX_LINE and data.endswith(self._newline):  # nearly every line is one piece
            return data, size
        held = bytearray(data)
        while data and not data.endswith(self._newline):
            data = self._piece()
            size += len(data)
            if size <= MAX_LINE:
                held += data
        return (bytes(held) if size <= MAX_LINE else None), size

    def _piece(self) -> bytes:
        """Return whole characters up to the end of the line, or _PIECE bytes of the line."""
        if self._head:
            cut = self._head.find(b"\n") + 1
            data = self._head[: cut or None]
            self._head = self._head[len(data) :]
            if not cut:
                data += self._file.readline(_PIECE - len(data))
        else:
            data = self._file.readline(_PIECE)
        if len(data) % len(self._newline):  # half a character of UTF-16
            data += self._head[:1] or self._file.read(1)
            self._head = self._head[1:]
        return data

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def encoding_of(head: bytes) -> tuple[str, int]:
    """Return the encoding of a text that begins with these four bytes, and the bytes of its mark.

    Without a mark it is UTF-8, unless every second of the bytes is 0: no text of UTF-8 has these.
    """
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding, len(mark)
    zeros = [byte == 0 for byte in head]
    if zeros == [False, True, False, True]:
        return "utf-16-le", 0
    if zeros == [True, False, True, False]:
        return "utf-16-be", 0
    return "utf-8", 0
