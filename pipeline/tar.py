"""Read tar shards front to back: every cut noticed, every member's place known, reading restartable at a member.

Formats: POSIX.1-2001 ustar and pax interchange format (IEEE Std 1003.1, `pax`), GNU tar (its manual, "Basic Tar
Format": long names, base-256 numbers, sparse files), and the V7 headers from before both. Keys follow WebDataset 1.0.2.

Python's tarfile and the readers built on it take the end of the stream at a member's edge for the end of the tar, and
a first tar's end blocks for the end of the stream: they read a cut or concatenated shard short without an error. Here
a read ends in silence only behind two zero blocks with nothing but zeros after them; all else is a `TarCut`.
"""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

BLOCK = 512  # bytes; headers and data start on multiples of it
MAX_MEMBER_BYTES = 256 << 20
_MAX_EXTENSION_BYTES = 1 << 20  # a pax or long-name payload; real ones are a few hundred bytes
_CHUNK = 1 << 20  # the most asked of the stream at once: a header's claim alone never allocates
_REGULAR = b"0\x007S"  # file, file in V7, contiguous file, GNU sparse file
_HEADER_ONLY = b"123456"  # links, devices, directory, fifo: no data follows, whatever the size field says
_EXTENSIONS = b"xXgLK"  # pax, pax as Solaris marks it, pax global, GNU long name, GNU long link target
Want = Callable[[str], bool]
_PAX_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")  # then the value and a newline; the number counts all of it


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of the tar. All places are byte offsets from the beginning of the tar.

    `data` is None when the member was `refused` (then that says why) or when it was not asked for (then `refused` is
    None; only in a `Sample`). An empty file has `b""`.
    """

    name: str  # always valid UTF-8: bytes that are not stand as \xNN
    offset: int  # of its data
    data: bytes | None
    size: int  # bytes at `offset`; of a sparse member what the tar stores, not what it would unpack to
    start: int  # of its first header block, a pax or long-name header included: reading can begin again here
    refused: str | None = None  # None, "sparse_member" or "too_many_bytes"


class TarCut(Exception):
    """The tar ends or breaks before its end blocks. What lies before `offset` was whole and has been yielded."""

    def __init__(self, offset: int, reason: str, short: bool):
        super().__init__(offset, reason, short)  # all three, or it could not be unpickled in another process
        self.offset = offset  # start of the incomplete or corrupt member, or where end blocks are missing
        self.reason = reason
        self.short = short  # True: the stream ended early. False: bytes are there, but they are no tar

    def __str__(self) -> str:
        return f"{self.reason} (byte {self.offset})"


class _Cursor:
    """A stream that knows its position and gives all bytes asked for, however few each read returns."""

    def __init__(self, stream: BinaryIO, position: int):
        self._read = stream.read
        self.position = position

    def _chunks(self, size: int) -> Iterator[bytes]:
        while size > 0 and (chunk := self._read(min(size, _CHUNK))):
            self.position += len(chunk)
            size -= len(chunk)
            yield chunk

    def take(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end of the stream."""
        chunks = self._chunks(size)
        first = next(chunks, b"")
        if len(first) == size:
            return first  # the usual case, without a copy
        whole = io.BytesIO(first)
        whole.seek(0, io.SEEK_END)
        whole.writelines(chunks)
        return whole.getvalue()

    def exactly(self, size: int, start: int) -> bytes:
        """The next `size` bytes, which belong to the member at `start`."""
        data = self.take(size)
        if len(data) < size:
            raise TarCut(start, "the tar ends inside a member", short=True)
        return data

    def skip(self, size: int, start: int) -> None:
        """Reads past `size` bytes of the member at `start`, holding one chunk at a time."""
        target = self.position + size
        for _ in self._chunks(size):
            pass
        if self.position < target:
            raise TarCut(start, "the tar ends inside a member", short=True)


@dataclass(slots=True)
class _Entry:
    """What the header blocks of one member say."""

    kind: bytes
    name: bytes
    size: int  # bytes of data that follow the headers
    start: int
    sparse: bool = False
    more_map: bool = False  # GNU sparse: the map of holes goes on in blocks after the header


def _number(field: bytes) -> int | None:
    """A header's number: octal digits, or base 256 when the top bit is set (GNU). None: negative or nonsense."""
    if field[0] & 0x80:
        number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        return number if number < 1 << 63 else None  # a negative one has its next bit set too
    # GNU tar and Go step over a leading NUL, which old writers left when the field before overflowed.
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else None


def _checksum_matches(block: bytes) -> bool:
    """The sum of all header bytes, its own field counted as spaces. Old writers summed signed chars."""
    rest = block[:148] + b" " * 8 + block[156:]
    told, unsigned = _number(block[148:156]), sum(rest)
    return told == unsigned or told == unsigned - 256 * sum(byte > 127 for byte in rest)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _parse(block: bytes, start: int) -> _Entry:
    """One header block of the member at `start`, as it stands."""
    if not _checksum_matches(block):
        raise TarCut(start, "no tar header: bad checksum", short=False)
    if (size := _number(block[124:136])) is None:
        raise TarCut(start, "a header without a valid size", short=False)
    kind, name = block[156:157], _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:  # GNU and V7 keep other things here, star its times behind 476
        name = _text(block[345:476] if block[508:] == b"tar\0" else block[345:500]) + b"/" + name
    return _Entry(kind, name, size, start, sparse=kind == b"S", more_map=kind == b"S" and block[482] != 0)


def _pax(payload: bytes, start: int) -> dict[str, bytes | int]:
    """What a pax header says that names, sizes or refuses a member. An empty value says nothing (POSIX)."""
    payload, at, records, said = payload.rstrip(b"\0"), 0, {}, {}
    while at < len(payload):
        record = _PAX_RECORD.match(payload, at)
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(payload) or payload[end - 1] != 0x0A:
            raise TarCut(start, "a malformed pax header", short=False)
        keyword, value, at = record[2], payload[record.end() : end - 1], end
        if keyword.startswith(b"GNU.sparse."):
            said["sparse"] = True
        if keyword in (b"path", b"size", b"GNU.sparse.name"):
            records[keyword] = value
    # The `path` of a sparse member may be made up, for readers that do not know the format.
    if name := records.get(b"GNU.sparse.name") or records.get(b"path"):
        said["name"] = name
    if size := records.get(b"size"):
        if not size.isdigit() or len(size) > 18:
            raise TarCut(start, "a pax header without a valid size", short=False)
        said["size"] = int(size)
    return said


def _extension(cursor: _Cursor, entry: _Entry) -> dict[str, bytes | int]:
    """Reads the payload of an extension header: what it says about the member behind it."""
    if entry.size > _MAX_EXTENSION_BYTES:
        raise TarCut(entry.start, "an extension header that is too large", short=False)
    payload = cursor.exactly(entry.size, entry.start)
    cursor.skip(-entry.size % BLOCK, entry.start)
    if entry.kind in b"LK":
        return {"name": _text(payload)} if entry.kind == b"L" else {}
    said = _pax(payload, entry.start)
    # As in libarchive and Go, a global header changes nothing, for a read that starts behind it must see the same.
    # One that names or sizes all members to come cannot be passed over; no known writer makes it.
    if entry.kind == b"g" and said:
        raise TarCut(entry.start, "a global pax header that names or sizes members", short=False)
    return said


def _first_block(cursor: _Cursor) -> bytes | None:
    """The next block that is not zeros, or None when the stream ended as a tar must.

    Two or more zero blocks may be followed by another tar. One alone is a hole: no writer makes it.
    """
    origin, zeros = cursor.position, 0
    while True:
        at, block = cursor.position, cursor.take(BLOCK)
        blank, ended = not block.strip(b"\0"), len(block) < BLOCK
        if blank and not ended:
            zeros += 1
        elif ended and not (blank and zeros >= 2):
            raise TarCut(at if zeros >= 2 else origin, "the tar ends without its end blocks", short=True)
        elif zeros == 1:
            raise TarCut(origin, "a lone zero block", short=False)
        else:
            return None if ended else block


def _next_entry(cursor: _Cursor) -> _Entry | None:
    """Reads all header blocks of the next member, so that the cursor stands at its data. None at the end."""
    if (block := _first_block(cursor)) is None:
        return None
    start, said = cursor.position - BLOCK, {}
    entry = first = _parse(block, start)
    while entry.kind in _EXTENSIONS:
        said |= _extension(cursor, entry)
        if entry is first and entry.kind == b"g":
            return _Entry(b"g", b"", 0, start)  # it stands alone: end blocks may follow
        entry = _parse(cursor.exactly(BLOCK, start), start)
    while entry.more_map:
        entry.more_map = cursor.exactly(BLOCK, start)[504] != 0
    entry = replace(entry, **said)
    if entry.kind in _HEADER_ONLY or (entry.kind == b"\0" and entry.name.endswith(b"/")):  # the latter: V7 directory
        entry.kind, entry.size = b"5", 0
    return entry


def _walk(stream: BinaryIO, start: int, limit: int, want: Want | None) -> Iterator[Member]:
    """Every regular file; one that is not wanted has neither data nor a refusal."""
    cursor = _Cursor(stream, start)
    while (entry := _next_entry(cursor)) is not None:
        offset, padding = cursor.position, -entry.size % BLOCK
        name = entry.name.decode("utf-8", "backslashreplace")
        regular = entry.kind in _REGULAR
        wanted = regular and (want is None or want(name))
        refused = "sparse_member" if entry.sparse else "too_many_bytes" if entry.size > limit else None
        held = wanted and refused is None
        data = cursor.exactly(entry.size, entry.start) if held else None
        cursor.skip(padding if held else entry.size + padding, entry.start)
        if regular:
            yield Member(name, offset, data, entry.size, entry.start, refused if wanted else None)


def read_members(
    stream: BinaryIO, start: int = 0, max_member_bytes: int = MAX_MEMBER_BYTES, want: Want | None = None
) -> Iterator[Member]:
    """Yields the regular files of an uncompressed tar in their order.

    `stream` stands at byte `start` of the tar, the start of a member; only its `read(n)` is used, which may return
    fewer than n bytes. Sparse members and those above `max_member_bytes` come without data and with `refused` set;
    names for which `want` is false, directories, links, devices and fifos do not come at all. All of them are read
    past in bounded chunks, so memory holds two members at most and does not grow with the tar.

    Raises TarCut where the tar ends or breaks; whatever `stream.read` raises passes through.
    """
    for member in _walk(stream, start, max_member_bytes, want):
        if member.data is not None or member.refused is not None:
            yield member


_META_NAME = re.compile(r"__[^/]*__(/|\Z)")  # webdataset.tariterators.tar_file_iterator, skip_meta
_JUNK_FOLDER = re.compile(r"(^|/)(__MACOSX|PaxHeaders?(\.[0-9]+)?)/")


def is_skipped(name: str) -> bool:
    """Whether a member is no part of any sample.

    As in webdataset 1.0.2: names whose first component is `__xyz__`, and base names without a dot or beginning with
    one. There, `d/.hidden.jpg` slips through as extension `hidden.jpg` of the key `d/`; here it is skipped like
    `.hidden.jpg`, and so is AppleDouble's `d/._a.jpg`. Beyond webdataset: what lies in a `__MACOSX/` folder, or in
    a `PaxHeader/` folder, where old tars unpack headers that they do not know.
    """
    base = name.rpartition("/")[2]
    return base.startswith(".") or "." not in base or bool(_META_NAME.match(name) or _JUNK_FOLDER.search(name))


def split_key(name: str) -> tuple[str, str]:
    """Key and extension as in webdataset 1.0.2: at the first dot of the base name, directories kept in the key, the
    extension in lower case. `d.1/a.B.JPG` gives `("d.1/a", "b.jpg")`."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


@dataclass(slots=True)
class Sample:
    """Consecutive members of one key. `start` and `end` are byte offsets in the tar."""

    key: str
    fields: dict[str, Member]  # by extension; a field that was not asked for has neither data nor a refusal
    start: int  # reading can begin again here and sees this sample first
    end: int = 0  # behind its last member: reading can begin again here and sees what follows
    cut: bool = False  # the tar broke before this sample's end was seen: fields may be missing


def read_samples(
    stream: BinaryIO, start: int = 0, max_member_bytes: int = MAX_MEMBER_BYTES, want_field: Want | None = None
) -> Iterator[Sample]:
    """Yields the samples of a tar: consecutive members with one key, those of `is_skipped` left out.

    A repeated extension starts a new sample with the same key, so nothing is dropped. Fields for which
    `want_field(extension)` is false are there without their bytes: a sample of nothing else still comes. Arguments,
    refusals and errors are otherwise those of `read_members`.

    Raises TarCut, after yielding what was collected of the sample it broke, marked `cut`; to keep that or not is the
    caller's choice, since its last field may have been whole.
    """

    def want(name: str) -> bool:
        return not is_skipped(name) and (want_field is None or want_field(split_key(name)[1]))

    sample = None
    try:
        for member in _walk(stream, start, max_member_bytes, want):
            if is_skipped(member.name):
                continue
            key, extension = split_key(member.name)
            if sample is None or key != sample.key or extension in sample.fields:
                if sample is not None:
                    yield sample
                sample = Sample(key, {}, member.start)
            sample.fields[extension] = member
            sample.end = member.offset + member.size + -member.size % BLOCK
    except TarCut:
        if sample is not None:
            sample.cut = True
            yield sample
        raise
    if sample is not None:
        yield sample
