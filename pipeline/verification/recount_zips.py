"""Read zip archives again for verify, without code of the reader: the whole directory at once.

The data of every image are unpacked and their checksums are taken, in pieces.
"""

import bz2
import contextlib
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, NamedTuple

from wordsworth.pipeline.verification.recount_keys import Sample
from wordsworth.pipeline.verification.recount_names import is_skipped_member

PIECE = 1 << 20  # bytes that are read, and bytes that are unpacked, at once
TAIL = 0x10000 + 22  # bytes at the end of an archive among which its end record begins
WRAP = 1 << 32  # bytes after which an offset of four bytes begins again
MOST_DICTIONARY = 256 << 20  # bytes that an LZMA decoder may take


class _Broken(Exception):
    """Report that the archive, or a member, is cut or damaged."""


class _Member(NamedTuple):
    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    place: int
    is_link: bool


class _Directory(NamedTuple):
    """Hold the directory's bytes, its place, what is in front of the archive, and whether offsets wrap."""

    data: bytes
    place: int
    before: int
    wraps: bool


class Rule(NamedTuple):
    """Say which members are images.

    Attributes:
        image_keys: extensions of images, in lower case.
        too_large: names of the members that the run refused for their size; their data are not looked at.
        include_hidden: whether the run takes every name.
    """

    image_keys: list[str]
    too_large: Collection[str | None] = ()
    include_hidden: bool = False


def zip_samples(file: BinaryIO, size: int, rule: Rule) -> list[Sample]:
    """Return the images of an archive in the order of its directory. A cut is one sample more, without a key.

    Args:
        file: the archive.
        size: bytes of the archive.
        rule: which members count.
    """
    samples = []
    try:
        directory = _directory(file, size)
        for member in _members(directory):
            if _is_image(member, rule):
                samples.append(_sample(file, member, directory.place, rule.too_large))
    except _Broken:
        samples.append(Sample(None, None, None, "shard_truncated"))
    return samples


def _is_image(member: _Member, rule: Rule) -> bool:
    if member.name[-1:] == "/" or member.is_link:
        return False
    if is_skipped_member(member.name) and not rule.include_hidden:
        return False
    _, *extensions = member.name.split("/")[-1].split(".")
    return bool(extensions) and extensions[-1].lower() in rule.image_keys


def _sample(file: BinaryIO, member: _Member, end: int, too_large: Collection[str | None]) -> Sample:
    if member.flags % 2:
        return Sample(member.name, None, member.size, "encrypted_member")
    if member.method not in (0, 8, 12, 14):
        return Sample(member.name, None, member.size, "unknown_method")
    if member.name in too_large:
        return Sample(member.name, None, member.size, None)
    try:
        place = _check(file, member, end)
    except _Broken:
        return Sample(member.name, None, member.size, "damaged_member")
    return Sample(member.name, None if member.method else place, member.size, None)


# ---- the directory ----------------------------------------------------------------------------------------


def _directory(file: BinaryIO, size: int) -> _Directory:
    begin = max(0, size - TAIL)
    file.seek(begin)
    tail = file.read(size - begin)
    file.seek(0)
    is_member_first = file.read(4) == b"PK\x03\x04"
    all_found = list(re.finditer(b"PK\x05\x06", tail))
    for found in reversed(all_found):
        record = tail[found.start() : found.start() + 22]
        if len(record) == 22:
            comment = int.from_bytes(record[20:], "little")
            is_last = begin + found.end() + 18 + comment == size
            if not is_last and found is not all_found[-1]:
                continue
            with contextlib.suppress(_Broken):
                return _directory_told_by(file, record, begin + found.start(), is_last, is_member_first)
    raise _Broken


def _directory_told_by(
    file: BinaryIO, record: bytes, end: int, is_last: bool, is_member_first: bool
) -> _Directory:
    """Return the directory of an end record that begins at `end`, if the record is that of this archive."""
    part, first_part, count, length, offset = struct.unpack_from("<HH2xHLL", record, 4)
    large = _large_end(file, end)
    if large:
        end, part, first_part, count, length, offset = large
    before = end - length - offset
    wraps = is_member_first and before > 0 and before % WRAP == 0 and not large
    is_own = before == 0 or wraps or (is_last and not is_member_first)
    if part or first_part or before < 0 or length > end or not is_own:
        raise _Broken
    file.seek(end - length)
    data = file.read(length)
    if data[:4] != b"PK\x01\x02" and (data or count):
        raise _Broken
    return _Directory(data, end - length, 0 if wraps else before, wraps)


def _large_end(file: BinaryIO, end: int) -> tuple[int, ...] | None:
    """Return the place of the zip64 end record, and its two numbers of parts, the number of entries, the
    length and the offset of the directory."""
    if end < 20:
        return None
    file.seek(end - 20)
    locator = file.read(20)
    if locator[:4] != b"PK\x06\x07":
        return None
    for place in (struct.unpack_from("<Q", locator, 8)[0], end - 76):
        if 0 <= place <= end - 76:
            file.seek(place)
            record = file.read(56)
            if record[:4] == b"PK\x06\x06":
                return place, *struct.unpack_from("<LL8xQQQ", record, 16)
    raise _Broken


def _members(directory: _Directory) -> Iterator[_Member]:
    data = memoryview(directory.data)
    turns = 0
    last = 0
    while data:
        if len(data) < 46 or bytes(data[:4]) != b"PK\x01\x02":
            raise _Broken
        flags, method = struct.unpack_from("<HH", data, 8)
        crc, packed, size, *lengths = struct.unpack_from("<LLLHHH", data, 16)
        mode, place = struct.unpack_from("<LL", data, 38)
        ends = [46]
        for length in lengths:
            ends.append(ends[-1] + length)
        if ends[-1] > len(data):
            raise _Broken
        fields = dict(reversed(list(_fields(bytes(data[ends[1] : ends[2]])))))
        numbers = iter(struct.unpack_from(f"<{len(fields.get(1, b'')) // 8}Q", fields.get(1, b"")))
        size, packed, place = (
            next(numbers, told) if told == 0xFFFFFFFF else told for told in (size, packed, place)
        )
        if directory.wraps:
            turns += place < last
            last = place
        is_link = data[5] == 3 and (mode >> 28) == 0o12
        name = _name(bytes(data[46 : ends[1]]), flags, fields.get(0x7075, b""))
        real_place = place + directory.before + turns * WRAP
        yield _Member(name, flags, method, crc, packed, size, real_place, is_link)
        data = data[ends[-1] :]


def _fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    while len(extra) > 3:
        number, length = struct.unpack_from("<HH", extra)
        yield number, extra[4 : 4 + length]
        extra = extra[4 + length :]


def _name(raw: bytes, flags: int, unicode_field: bytes) -> str:
    is_about_it = len(unicode_field) > 4 and struct.unpack_from("<BL", unicode_field) == (1, zlib.crc32(raw))
    if is_about_it:
        raw = unicode_field[5:]
    return str(raw, "utf-8" if is_about_it or flags >> 11 & 1 else "cp437", "backslashreplace")


# ---- the data ---------------------------------------------------------------------------------------------


def _check(file: BinaryIO, member: _Member, end: int) -> int:
    """Return where a member's data begin.

    Raises:
        _Broken: they are not what the directory tells.
    """
    header = b""
    place = member.place
    while header[:4] != b"PK\x03\x04":  # where offsets wrap, a large member may take a whole turn
        if place + 30 > end:
            raise _Broken
        file.seek(place)
        header = file.read(30)
        place += WRAP
    place += 30 - WRAP + sum(struct.unpack_from("<HH", header, 26))
    if place + member.packed > end:
        raise _Broken
    file.seek(place)
    crc = 0
    left = member.size
    for piece in _unpacked(file, member):
        crc = zlib.crc32(piece, crc)
        left -= len(piece)
        if left < 0:
            break
    if left or crc != member.crc:
        raise _Broken
    return place


def _unpacked(file: BinaryIO, member: _Member) -> Iterator[bytes]:
    packed = _pieces(file, member.packed)
    if member.method == 0:
        yield from packed
        return
    unpack: Callable[[bytes], Iterator[bytes]]
    if member.method == 8:
        unpack = _Inflater().unpack
    elif member.method == 12:
        unpack = _Unpacker(bz2.BZ2Decompressor()).unpack
    else:
        packed = iter([b"".join(packed)])  # the head is no part of the data
        unpack = _unpack_lzma
    for piece in packed:
        try:
            yield from unpack(piece)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            raise _Broken from error


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        piece = file.read(min(size, PIECE))
        size -= len(piece)
        yield piece


class _Inflater:
    def __init__(self) -> None:
        self.stream = zlib.decompressobj(wbits=-15)

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while data and not self.stream.eof:
            yield self.stream.decompress(data, PIECE)
            data = self.stream.unconsumed_tail
        while more := b"" if self.stream.eof else self.stream.decompress(b"", PIECE):
            yield more


class _Unpacker:
    """Unpack by a decompressor of bz2 or lzma."""

    def __init__(self, stream: Any):
        self.stream = stream

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while not self.stream.eof and (data or not self.stream.needs_input):
            yield self.stream.decompress(data, PIECE)
            data = b""


def _unpack_lzma(data: bytes) -> Iterator[bytes]:
    """Unpack what a zip archive calls LZMA: version, length of the properties, the properties, the data."""
    if len(data) < 9 or data[2:4] != b"\x05\x00":
        raise ValueError("not the head of LZMA data")
    rest, lc = divmod(data[4], 9)
    pb, lp = divmod(rest, 5)
    dictionary = struct.unpack_from("<L", data, 5)[0]
    if dictionary > MOST_DICTIONARY:
        raise ValueError("a dictionary that is too large")
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": max(dictionary, 4096), "lc": lc, "lp": lp, "pb": pb}]
    yield from _Unpacker(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)).unpack(data[9:])
