"""Parse the header blocks of a tar: pure functions of bytes, and the error for what is no header.

tar.py names the formats.
"""

import re
from dataclasses import dataclass
from typing import TypedDict

BLOCK = 512  # bytes; headers and data begin on multiples of it
# A pax record is "NUMBER KEYWORD=VALUE\n"; the number counts all bytes of the record, the newline included.
_PAX_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")


class TarCut(Exception):
    """Report that the tar ends or breaks before its end blocks.

    What lies before `offset` was whole and has been yielded.

    Attributes:
        offset: byte of the tar where the incomplete or corrupt member begins, or where end blocks are missing
        reason: what is wrong, in words
        short: True: the stream ended early. False: bytes are there, but they are no tar
    """

    def __init__(self, offset: int, reason: str, short: bool):
        super().__init__(offset, reason, short)  # all three, or it could not be unpickled in another process
        self.offset = offset
        self.reason = reason
        self.short = short

    def __str__(self) -> str:
        return f"{self.reason} (byte {self.offset})"


@dataclass(slots=True)
class Entry:
    """Hold what the header blocks of one member say.

    Attributes:
        kind: type flag, one byte
        name: path of the member
        size: bytes of data behind the headers
        start: byte of the tar where the first header block begins
        sparse: whether the member is a sparse file
        more_map: whether another block with the map of holes follows (GNU sparse files)
    """

    kind: bytes
    name: bytes
    size: int
    start: int
    sparse: bool = False
    more_map: bool = False


class Overrides(TypedDict, total=False):
    """Hold what an extension header says about the member behind it. The names are those of `Entry`."""

    name: bytes
    size: int
    sparse: bool


def parse_header(block: bytes, start: int) -> Entry:
    """Return what one header block of the member at `start` says.

    Raises:
        TarCut: the block is no header.
    """
    if not _checksum_matches(block):
        raise TarCut(start, "no tar header: bad checksum", short=False)
    size = _number(block[124:136])
    if size is None:
        raise TarCut(start, "a header without a valid size", short=False)
    kind = block[156:157]
    name = until_nul(block[:100])
    # GNU and V7 keep other things in the field of the prefix, and star keeps times behind byte 476.
    if block[257:263] == b"ustar\0" and block[345]:
        prefix = block[345:476] if block[508:] == b"tar\0" else block[345:500]
        name = until_nul(prefix) + b"/" + name
    sparse = kind == b"S"
    return Entry(
        kind=kind, name=name, size=size, start=start, sparse=sparse, more_map=sparse and block[482] != 0
    )


def parse_pax(payload: bytes, start: int) -> Overrides:
    """Return what a pax header says that names, sizes or refuses a member.

    An empty value says nothing (POSIX).

    Raises:
        TarCut: the payload is no pax header.
    """
    records: dict[bytes, bytes] = {}
    overrides: Overrides = {}
    payload = payload.rstrip(b"\0")
    at = 0
    while at < len(payload):
        keyword, value, at = _pax_record(payload, at, start)
        if keyword.startswith(b"GNU.sparse."):
            overrides["sparse"] = True
        if keyword in (b"path", b"size", b"GNU.sparse.name"):
            records[keyword] = value
    # The `path` of a sparse member may be made up, for readers that do not know the format.
    name = records.get(b"GNU.sparse.name") or records.get(b"path")
    if name:
        overrides["name"] = name
    size = records.get(b"size")
    if size:
        if not size.isdigit() or len(size) > 18:
            raise TarCut(start, "a pax header without a valid size", short=False)
        overrides["size"] = int(size)
    return overrides


def _pax_record(payload: bytes, at: int, start: int) -> tuple[bytes, bytes, int]:
    """Return keyword and value of the record at byte `at`, and the byte behind the record."""
    match = _PAX_RECORD.match(payload, at)
    if match is not None:
        end = at + int(match[1])
        if match.end() < end <= len(payload) and payload[end - 1] == 0x0A:
            return match[2], payload[match.end() : end - 1], end
    raise TarCut(start, "a malformed pax header", short=False)


def until_nul(field: bytes) -> bytes:
    """Return the text of a field, which ends at the first NUL byte."""
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int | None:
    """Return a header's number: octal digits, or base 256 if the top bit is set (GNU).

    None: negative or nonsense.
    """
    if field[0] & 0x80:
        number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        return number if number < 1 << 63 else None  # a negative number has its next bit set, too
    # GNU tar and Go step over a leading NUL, which old writers left when the field before overflowed.
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if digits.strip(b"01234567"):
        return None
    return int(digits or b"0", 8)


def _checksum_matches(block: bytes) -> bool:
    """Compare the sum of all header bytes, with spaces in the checksum's own field.

    Old writers summed signed chars.
    """
    rest = block[:148] + b" " * 8 + block[156:]
    told = _number(block[148:156])
    unsigned = sum(rest)
    if told == unsigned:
        return True
    num_negative = sum(1 for byte in rest if byte > 127)
    return told == unsigned - 256 * num_negative
