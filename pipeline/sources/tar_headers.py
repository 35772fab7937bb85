"""What the header blocks of a tar say: pure functions of bytes, and the error for what is no header. See tar.py for the formats."""

import re
from dataclasses import dataclass

BLOCK = 512  # bytes; headers and data start on multiples of it
_PAX_RECORD = re.compile(
    rb"([0-9]{1,7}) ([^=]+)="
)  # then the value and a newline; the number counts all of it


class TarCut(Exception):
    """The tar ends or breaks before its end blocks. What lies before `offset` was whole and has been yielded."""

    def __init__(self, offset: int, reason: str, short: bool):
        super().__init__(offset, reason, short)  # all three, or it could not be unpickled in another process
        self.offset = offset  # start of the incomplete or corrupt member, or where end blocks are missing
        self.reason = reason
        self.short = short  # True: the stream ended early. False: bytes are there, but they are no tar

    def __str__(self) -> str:
        return f"{self.reason} (byte {self.offset})"


@dataclass(slots=True)
class Entry:
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


def text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def parse(block: bytes, start: int) -> Entry:
    """One header block of the member at `start`, as it stands."""
    if not _checksum_matches(block):
        raise TarCut(start, "no tar header: bad checksum", short=False)
    if (size := _number(block[124:136])) is None:
        raise TarCut(start, "a header without a valid size", short=False)
    kind, name = block[156:157], text(block[:100])
    if (
        block[257:263] == b"ustar\0" and block[345]
    ):  # GNU and V7 keep other things here, star its times behind 476
        name = text(block[345:476] if block[508:] == b"tar\0" else block[345:500]) + b"/" + name
    return Entry(kind, name, size, start, sparse=kind == b"S", more_map=kind == b"S" and block[482] != 0)


def pax(payload: bytes, start: int) -> dict[str, bytes | int]:
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
