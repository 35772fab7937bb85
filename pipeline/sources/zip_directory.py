"""Read the directory of a zip archive entry by entry, and the members that it names.

Format: PKWARE's APPNOTE.TXT 6.3.10, zip64 included. The directory stands at the end of the archive.

Why not zipfile: of an archive of a million images it holds 640 MiB before the first one is read, in every
task that reads, and one entry that it cannot read costs the whole archive. Here memory holds one entry, and
reading can begin at any of them.
"""

import bz2
import io
import lzma
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wordsworth.pipeline.sources.zip_names import fields_of, member_name
from wordsworth.pipeline.storage.seekable import RangeReader

_END = struct.Struct("<4s4H2LH")  # end of central directory record
_END64_PLACE = struct.Struct("<4sLQL")  # zip64 end of central directory locator
_END64 = struct.Struct("<4sQ2H2L4Q")  # zip64 end of central directory record
_ENTRY = struct.Struct("<4s4B4H3L5H2L")  # central directory header
_LOCAL = struct.Struct("<4s5H3L2H")  # local file header
_MOST_COMMENT = 0xFFFF  # bytes behind the end record
_FULL = 0xFFFFFFFF  # stands for a number that the zip64 extra field has
_ZIP64 = 0x0001  # number of that extra field
_ENCRYPTED = 0x1  # flag of an entry
_END_MARKED = 0x2  # flag of an entry: LZMA data end with a mark
_UNIX = 3  # system whose modes of files an entry has
_MOST_DICTIONARY = 256 << 20  # bytes that an LZMA decoder may take
_NAME_BYTES = 1024  # bytes that the name and the extra fields of a member mostly take at most
# Methods of compression that are not read, by their numbers, for messages.
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES"}
STORED = 0  # method of a member that is not compressed


class ZipDamage(Exception):
    """Report that the archive, or one member of it, is cut or damaged. The message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Say where the directory of an archive is. All places are byte offsets in the file.

    Attributes:
        start: first byte
        end: behind the last byte
        shift: bytes in front of the archive, such as those of a program that unpacks it
        wraps: how often the offsets in the entries may have passed 4 GiB and begun again at 0: macOS writes
            large archives so
    """

    start: int
    end: int
    shift: int
    wraps: int = 0


@dataclass(slots=True, kw_only=True)
class ZipEntry:
    """Hold what the directory says of a member.

    Attributes:
        name: name of the member, see zip_names.py
        start: byte of the file where the entry stands
        next: byte behind the entry
        header: offset of the member as the entry has it
        method: number of the compression
        flags: bits
        crc: CRC-32 of the contents
        packed_size: bytes in the archive
        size: bytes of the contents
        is_link: whether the contents are the target of a symbolic link
    """

    name: str
    start: int
    next: int
    header: int
    method: int
    flags: int
    crc: int
    packed_size: int
    size: int
    is_link: bool


# ---- the directory ----------------------------------------------------------------------------------------


def find_directory(file: io.BufferedReader, size: int) -> Directory:
    """Return the place of the directory of an archive of `size` bytes.

    Raises:
        ZipDamage: there is none: the archive is cut, is one part of several, or is no zip.
    """
    tail_start = max(0, size - _END.size - _MOST_COMMENT)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    place = tail.rfind(b"PK\5\6")
    reason = ""
    while place >= 0:
        record = tail[place : place + _END.size]
        is_at_end = place + len(record) + int.from_bytes(record[-2:], "little") == len(tail)
        try:
            # Behind the last record some bytes may follow. An earlier one counts if the later ones stand in
            # its comment, and not if they end another archive.
            if is_at_end or not reason:
                return _directory_before(file, tail_start + place, record, is_at_end)
        except ZipDamage as damage:
            reason = reason or str(damage)
        place = tail.rfind(b"PK\5\6", 0, place)
    raise ZipDamage(reason or "it has no directory at its end: it is cut, or no zip")


def _directory_before(file: io.BufferedReader, place: int, record: bytes, is_at_end: bool) -> Directory:
    """Return the directory that the end record at `place` tells of.

    Args:
        file: the archive
        place: byte of the file where the end record begins
        record: its bytes
        is_at_end: whether the file ends behind the record and its comment
    """
    if len(record) < _END.size:
        raise ZipDamage("it ends inside its end record")
    _, disk, first_disk, _, num_entries, length, offset, _ = _END.unpack(record)
    end = place
    end64 = _find_end64(file, place)
    if end64 is not None:
        end = end64[0]
        disk, first_disk, num_entries, length, offset = end64[1:]
    if disk or first_disk:
        raise ZipDamage(
            "it is one part of a split archive: zip -s 0 PART.zip --out WHOLE.zip joins the parts"
        )
    shift = end - length - offset
    if end < length or shift < 0:
        raise ZipDamage("its directory lies in a part that is missing")
    file.seek(0)
    begins_as_zip = file.read(4) == b"PK\3\4"
    wraps = 0
    if shift and begins_as_zip:
        # The end record belongs to another archive inside this one, unless 4 GiB were not counted.
        if shift % (1 << 32) or end64:
            raise ZipDamage("it begins as one archive and ends as another: it is cut, or several are joined")
        wraps = shift >> 32
        shift = 0
    if shift and not is_at_end:
        raise ZipDamage("its end record is not its own: it is cut")
    directory = Directory(start=end - length, end=end, shift=shift, wraps=wraps)
    if num_entries and next(read_entries(file, directory, directory.start), None) is None:
        raise ZipDamage("its directory is empty")
    return directory


def _find_end64(file: io.BufferedReader, place: int) -> tuple[int, int, int, int, int, int] | None:
    """Return the place of the zip64 end record, and what it says, for the end record at `place`."""
    locator = place - _END64_PLACE.size
    if locator < 0:
        return None
    file.seek(locator)
    signature, _, told_place, _ = _END64_PLACE.unpack(file.read(_END64_PLACE.size))
    if signature != b"PK\6\7":
        return None
    for record in (told_place, locator - _END64.size):  # the second one: behind bytes in front of the archive
        if not 0 <= record <= locator - _END64.size:
            continue
        file.seek(record)
        signature, *_, disk, first_disk, _, num_entries, length, offset = _END64.unpack(
            file.read(_END64.size)
        )
        if signature == b"PK\6\6":
            return record, disk, first_disk, num_entries, length, offset
    raise ZipDamage("its zip64 end record is missing")


def read_entries(file: io.BufferedReader, directory: Directory, position: int) -> Iterator[ZipEntry]:
    """Yield the entries of the directory from byte `position` of the file on, where an entry begins.

    Raises:
        ZipDamage: the directory breaks.
    """
    file.seek(position)
    while position < directory.end:
        entry = _read_entry(file, directory, position)
        position = entry.next
        yield entry


def _read_entry(file: io.BufferedReader, directory: Directory, position: int) -> ZipEntry:
    fixed = file.read(_ENTRY.size) if position + _ENTRY.size <= directory.end else b""
    if not fixed.startswith(b"PK\1\2"):
        raise ZipDamage(f"its directory breaks at byte {position}")
    fields = _ENTRY.unpack(fixed)
    _, _, system, _, _, flags, method, _, _, crc, packed_size, size, *lengths, _, _, mode, header = fields
    name_length, extra_length, comment_length = lengths
    rest = file.read(name_length + extra_length + comment_length)
    following = position + _ENTRY.size + len(rest)
    if len(rest) < sum(lengths) or following > directory.end:
        raise ZipDamage(f"its directory breaks at byte {position}")
    name = rest[:name_length]
    extra = rest[name_length : name_length + extra_length]
    if _FULL in (size, packed_size, header):
        size, packed_size, header = _from_zip64(extra, size, packed_size, header)
    return ZipEntry(
        name=member_name(name, flags, extra),
        start=position,
        next=following,
        header=header,
        method=method,
        flags=flags,
        crc=crc,
        packed_size=packed_size,
        size=size,
        is_link=system == _UNIX and stat.S_ISLNK(mode >> 16),
    )


def _from_zip64(extra: bytes, *numbers: int) -> list[int]:
    """Return the numbers, with those of the zip64 extra field in the places of the full ones."""
    found = []
    field = fields_of(extra).get(_ZIP64, b"")
    for number in numbers:
        if number == _FULL and len(field) >= 8:
            number = int.from_bytes(field[:8], "little")
            field = field[8:]
        found.append(number)
    return found


# ---- a member ---------------------------------------------------------------------------------------------


def refusal_of(entry: ZipEntry, max_bytes: int) -> tuple[str, str] | None:
    """Return the code and the detail of an error for a member that is not read; None for one that is."""
    if entry.flags & _ENCRYPTED:
        return "encrypted_member", "it is encrypted: unzip the archive with its password"
    if entry.method not in _DECODERS:
        name = _METHODS.get(entry.method, "unknown")
        return "unknown_method", f"compression {entry.method} ({name}) is not read: unzip the archive"
    largest = max(entry.size, entry.packed_size)
    return ("too_many_bytes", f"{largest} bytes") if largest > max_bytes else None


def read_member(file: RangeReader, directory: Directory, entry: ZipEntry) -> tuple[int, bytes]:
    """Return the offset of a member's data in the file, and its contents. The memory that is taken is bounded
    by the sizes that the entry tells, whatever the data unpack to.

    Args:
        file: the archive
        directory: the directory of the archive
        entry: the member

    Raises:
        ZipDamage: the member is not what the entry tells.
    """
    offset = _offset_of_data(file, directory, entry)
    if offset + entry.packed_size > directory.start:
        raise ZipDamage("its data reach into the directory")
    packed = file.read(offset, entry.packed_size)
    try:
        data = _DECODERS[entry.method](packed, entry)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise ZipDamage(f"its data cannot be unpacked: {error}") from error
    if len(data) != entry.size:
        more = "more" if len(data) > entry.size else f"only {len(data)}"
        raise ZipDamage(f"it has {more} of the {entry.size} bytes that the directory tells")
    if zlib.crc32(data) != entry.crc:
        raise ZipDamage("its checksum is another one")
    return offset, data


def _offset_of_data(file: RangeReader, directory: Directory, entry: ZipEntry) -> int:
    places = [entry.header + directory.shift + (turn << 32) for turn in range(directory.wraps + 1)]
    if directory.wraps:
        here = file.position
        places.sort(key=lambda place: abs(place - here))  # members mostly follow each other
    for place in places:
        if place + _LOCAL.size > directory.start:
            continue
        header = file.read(place, _LOCAL.size, behind=_NAME_BYTES + entry.packed_size)
        signature, *_, name_length, extra_length = _LOCAL.unpack(header)
        if signature == b"PK\3\4":
            return place + _LOCAL.size + name_length + extra_length
    raise ZipDamage("no member is where the directory tells")


def _stored(packed: bytes, entry: ZipEntry) -> bytes:
    return packed


def _inflated(packed: bytes, entry: ZipEntry) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, entry.size + 1)


def _from_bzip2(packed: bytes, entry: ZipEntry) -> bytes:
    return bz2.BZ2Decompressor().decompress(packed, entry.size + 1)


def _from_lzma(packed: bytes, entry: ZipEntry) -> bytes:
    """Unpack LZMA data: behind two bytes of a version and two of a length, they are those of an .lzma file
    without its size."""
    size = b"\xff" * 8 if entry.flags & _END_MARKED else entry.size.to_bytes(8, "little")
    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MOST_DICTIONARY)
    return decoder.decompress(packed[4:9] + size + packed[9:], entry.size + 1)


_DECODERS: dict[int, Callable[[bytes, ZipEntry], bytes]] = {
    STORED: _stored,
    8: _inflated,
    12: _from_bzip2,
    14: _from_lzma,
}
