"""Read tar shards front to back: notice every cut, know every member's place, begin again at any member.

Formats: POSIX.1-2001 ustar and pax interchange format (IEEE Std 1003.1, `pax`), GNU tar (its manual, "Basic
Tar Format": long names, base-256 numbers, sparse files), and the V7 headers from before both.

Why not tarfile or webdataset: both take the end of the stream at a member's edge for the end of the tar,
and the end blocks of a first tar for the end of the stream. They read a cut or concatenated shard short
without an error: benchmarks/tar_faults.csv counts up to 1,178 such readings of 1,193 cuts, and none of this
reader. Here a reading ends without an error only behind two zero blocks with nothing but zeros after them;
everything else is a `TarCut`.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from wordsworth.pipeline.sources.tar_headers import (
    BLOCK,
    Entry,
    Overrides,
    TarCut,
    parse_header,
    parse_pax,
    until_nul,
)

MAX_MEMBER_BYTES = 256 << 20  # bytes of a member; a larger one is refused
_MAX_EXTENSION_BYTES = 1 << 20  # bytes of a pax or long-name payload; real ones have a few hundred
_CHUNK = 1 << 20  # bytes asked of the stream at once: a header's claim alone never allocates memory
_REGULAR = b"0\x007S"  # kinds: file, file in V7, contiguous file, GNU sparse file
_HEADER_ONLY = b"123456"  # kinds without data, whatever the size field says: links, devices, directory, fifo
_EXTENSIONS = b"xXgLK"  # kinds: pax, pax as Solaris marks it, pax global, GNU long name, GNU long link target
_KINDS = {b"1": "link", b"2": "link", b"5": "directory"}  # names of kinds in a note; all others are "special"


class Readable(Protocol):
    """Give bytes, front to back. The stream may give fewer bytes than asked for, and none only at its end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Member:
    r"""Hold one regular file of the tar. All places are byte offsets from the beginning of the tar.

    Attributes:
        name: valid UTF-8 always: other bytes stand as \xNN
        offset: place of the data
        data: the file's bytes; None for a file that was `refused`, or (in a sample) not asked for
        size: bytes at `offset`; of a sparse file what the tar stores, not what would be unpacked
        start: place of the first header block, a pax or long-name header included: reading can begin again
            here
        refused: None, "sparse_member" or "too_many_bytes"
    """

    name: str
    offset: int
    data: bytes | None
    size: int
    start: int
    refused: str | None = None


class TarNote(NamedTuple):
    """Tell about something in the tar that no member or sample shows. Notes come in the order of the tar.

    Attributes:
        what: "skipped": a member that is no part of a sample
            "end": end blocks with more behind them; readers that trust end blocks stop here
            "not_utf8": a member's name that has escapes in `Member.name`; the member itself comes, too
        offset: byte of the tar where the member's first header block or the end blocks begin; two notes can
            have the same
        name: name of the member
        kind: of a skipped member "directory", "link", "special", or what `skip_reason` gives
    """

    what: str
    offset: int
    name: str = ""
    kind: str = ""


WantMember = Callable[[str], bool]  # whether the data of a member, or of a field of a sample, are to be read
OnNote = Callable[[TarNote], None]


def walk_members(
    stream: Readable, start: int, limit: int, want: WantMember | None, on_note: OnNote | None
) -> Iterator[Member]:
    """Yield every regular file of an uncompressed tar, in order.

    Data are read past in bounded chunks where they are not held, so memory holds two members at most.

    Args:
        stream: the tar at byte `start`, where a member begins
        start: byte of the tar
        limit: bytes of a member; a larger one is refused, as a sparse one is
        want: asked right before each file; one that is not wanted comes with neither data nor a refusal
        on_note: hears of what no member shows

    Raises:
        TarCut: the tar ends or breaks. Whatever `stream.read` raises passes through.
    """
    cursor = _Cursor(stream, start)
    while (entry := _next_entry(cursor, on_note)) is not None:
        offset = cursor.position
        padding = -entry.size % BLOCK
        name = entry.name.decode("utf-8", "backslashreplace")
        regular = entry.kind in _REGULAR
        wanted = regular and (want is None or want(name))
        refused = _refusal(entry, limit)
        data = None
        if wanted and refused is None:
            data = cursor.exactly(entry.size, entry.start)
            cursor.skip(padding, entry.start)
        else:
            cursor.skip(entry.size + padding, entry.start)
        if on_note:
            _note(entry, name, on_note)
        if regular:
            yield Member(
                name=name,
                offset=offset,
                data=data,
                size=entry.size,
                start=entry.start,
                refused=refused if wanted else None,
            )


def _refusal(entry: Entry, limit: int) -> str | None:
    if entry.sparse:
        return "sparse_member"
    return "too_many_bytes" if entry.size > limit else None


def _note(entry: Entry, name: str, on_note: OnNote) -> None:
    if entry.kind in _REGULAR:
        if "\\" in name and entry.name != name.encode():
            on_note(TarNote("not_utf8", entry.start, name))
    elif entry.kind != b"g":  # a global header is no member
        on_note(TarNote("skipped", entry.start, name, _KINDS.get(entry.kind, "special")))


def _next_entry(cursor: "_Cursor", on_note: OnNote | None) -> Entry | None:
    """Read all header blocks of the next member, so that the cursor stands at the data.

    None at the end of the tar.
    """
    block = _first_block(cursor, on_note)
    if block is None:
        return None
    start = cursor.position - BLOCK
    overrides: Overrides = {}
    first = parse_header(block, start)
    entry = first
    while entry.kind in _EXTENSIONS:
        overrides |= _read_extension(cursor, entry)
        if entry is first and entry.kind == b"g":
            return Entry(kind=b"g", name=b"", size=0, start=start)  # it stands alone: end blocks may follow
        entry = parse_header(cursor.exactly(BLOCK, start), start)
    while entry.more_map:
        entry.more_map = cursor.exactly(BLOCK, start)[504] != 0
    if overrides:
        entry = replace(entry, **overrides)
    if entry.kind == b"\0" and entry.name.endswith(b"/"):
        entry.kind = b"5"  # a V7 directory
    if entry.kind in _HEADER_ONLY:
        entry.size = 0
    return entry


def _first_block(cursor: "_Cursor", on_note: OnNote | None) -> bytes | None:
    """Return the next block that is not zeros; None if the stream ended as a tar must.

    Two or more zero blocks may be followed by another tar. A single zero block is a hole: no writer makes
    one.
    """
    origin = cursor.position
    num_zeros = 0
    while True:
        at = cursor.position
        block = cursor.take(BLOCK)
        blank = not block.strip(b"\0")
        ended = len(block) < BLOCK
        if blank and not ended:
            num_zeros += 1
            continue
        if on_note and num_zeros >= 2 and not blank:
            on_note(TarNote("end", origin))
        if ended and not (blank and num_zeros >= 2):
            raise TarCut(at if num_zeros >= 2 else origin, "the tar ends without its end blocks", short=True)
        if num_zeros == 1:
            raise TarCut(origin, "a lone zero block", short=False)
        return None if ended else block


def _read_extension(cursor: "_Cursor", entry: Entry) -> Overrides:
    """Read the payload of an extension header; return what it says about the member behind it."""
    if entry.size > _MAX_EXTENSION_BYTES:
        raise TarCut(entry.start, "an extension header that is too large", short=False)
    payload = cursor.exactly(entry.size, entry.start)
    cursor.skip(-entry.size % BLOCK, entry.start)
    if entry.kind == b"L":
        return {"name": until_nul(payload)}
    if entry.kind == b"K":
        return {}
    overrides = parse_pax(payload, entry.start)
    # As in libarchive and Go, a global header changes nothing, because a reading that begins behind it must
    # see the same tar. A global header that names or sizes all members to come cannot be ignored; no known
    # writer makes one.
    if entry.kind == b"g" and overrides:
        raise TarCut(entry.start, "a global pax header that names or sizes members", short=False)
    return overrides


class _Cursor:
    """Read a stream with a known position.

    All bytes asked for are given, however few each read of the stream returns.
    """

    def __init__(self, stream: Readable, position: int):
        self._read = stream.read
        self.position = position

    def _chunks(self, size: int) -> Iterator[bytes]:
        while size > 0 and (chunk := self._read(min(size, _CHUNK))):
            self.position += len(chunk)
            size -= len(chunk)
            yield chunk

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer only at the end of the stream."""
        chunks = self._chunks(size)
        first = next(chunks, b"")
        if len(first) == size:
            return first  # the usual case, without a copy
        whole = io.BytesIO(first)
        whole.seek(0, io.SEEK_END)
        whole.writelines(chunks)
        return whole.getvalue()

    def exactly(self, size: int, start: int) -> bytes:
        """Return the next `size` bytes, which belong to the member at `start`. Raises TarCut for fewer."""
        data = self.take(size)
        if len(data) < size:
            raise TarCut(start, "the tar ends inside a member", short=True)
        return data

    def skip(self, size: int, start: int) -> None:
        """Read past `size` bytes of the member at `start`, holding one chunk at a time.

        Raises TarCut for fewer.
        """
        target = self.position + size
        for _ in self._chunks(size):
            pass
        if self.position < target:
            raise TarCut(start, "the tar ends inside a member", short=True)
