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
from typing import BinaryIO, NamedTuple

from wordsworth.pipeline.sources.tar_headers import BLOCK, Entry, TarCut, parse, pax, text

MAX_MEMBER_BYTES = 256 << 20
_MAX_EXTENSION_BYTES = 1 << 20  # a pax or long-name payload; real ones are a few hundred bytes
_CHUNK = 1 << 20  # the most asked of the stream at once: a header's claim alone never allocates
_REGULAR = b"0\x007S"  # file, file in V7, contiguous file, GNU sparse file
_HEADER_ONLY = b"123456"  # links, devices, directory, fifo: no data follows, whatever the size field says
_EXTENSIONS = b"xXgLK"  # pax, pax as Solaris marks it, pax global, GNU long name, GNU long link target
_KINDS = {b"1": "link", b"2": "link", b"5": "directory"}  # of what is no regular file; the rest is "special"
Want = Callable[[str], bool]


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


class Passed(NamedTuple):
    """What a read goes past without yielding it. Places are byte offsets, in the order of the tar; two can be equal.

    what "skipped": a member that is no part of a sample; kind says why: "directory", "link", "special" or a `skip_reason`.
    what "end": end blocks with more behind them, where readers that trust them stop. what "not_utf8": a name that `Member`
    has with escapes; that member comes too.
    """

    what: str
    offset: int  # of the member's first header block, or of the end blocks
    name: str = ""
    kind: str = ""


Tell = Callable[[Passed], None]


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


def _extension(cursor: _Cursor, entry: Entry) -> dict[str, bytes | int]:
    """Reads the payload of an extension header: what it says about the member behind it."""
    if entry.size > _MAX_EXTENSION_BYTES:
        raise TarCut(entry.start, "an extension header that is too large", short=False)
    payload = cursor.exactly(entry.size, entry.start)
    cursor.skip(-entry.size % BLOCK, entry.start)
    if entry.kind in b"LK":
        return {"name": text(payload)} if entry.kind == b"L" else {}
    said = pax(payload, entry.start)
    # As in libarchive and Go, a global header changes nothing, for a read that starts behind it must see the same.
    # One that names or sizes all members to come cannot be passed over; no known writer makes it.
    if entry.kind == b"g" and said:
        raise TarCut(entry.start, "a global pax header that names or sizes members", short=False)
    return said


def _first_block(cursor: _Cursor, tell: Tell | None) -> bytes | None:
    """The next block that is not zeros, or None when the stream ended as a tar must.

    Two or more zero blocks may be followed by another tar. One alone is a hole: no writer makes it.
    """
    origin, zeros = cursor.position, 0
    while True:
        at, block = cursor.position, cursor.take(BLOCK)
        blank, ended = not block.strip(b"\0"), len(block) < BLOCK
        if blank and not ended:
            zeros += 1
            continue
        if tell and zeros >= 2 and not blank:
            tell(Passed("end", origin))
        if ended and not (blank and zeros >= 2):
            raise TarCut(at if zeros >= 2 else origin, "the tar ends without its end blocks", short=True)
        if zeros == 1:
            raise TarCut(origin, "a lone zero block", short=False)
        return None if ended else block


def _next_entry(cursor: _Cursor, tell: Tell | None) -> Entry | None:
    """Reads all header blocks of the next member, so that the cursor stands at its data. None at the end."""
    if (block := _first_block(cursor, tell)) is None:
        return None
    start, said = cursor.position - BLOCK, {}
    entry = first = parse(block, start)
    while entry.kind in _EXTENSIONS:
        said |= _extension(cursor, entry)
        if entry is first and entry.kind == b"g":
            return Entry(b"g", b"", 0, start)  # it stands alone: end blocks may follow
        entry = parse(cursor.exactly(BLOCK, start), start)
    while entry.more_map:
        entry.more_map = cursor.exactly(BLOCK, start)[504] != 0
    entry = replace(entry, **said)
    if entry.kind == b"\0" and entry.name.endswith(b"/"):
        entry.kind = b"5"  # a V7 directory
    if entry.kind in _HEADER_ONLY:
        entry.size = 0
    return entry


def _walk(stream: BinaryIO, start: int, limit: int, want: Want | None, tell: Tell | None) -> Iterator[Member]:
    """Every regular file; one that is not wanted has neither data nor a refusal. `want` is asked right before each."""
    cursor = _Cursor(stream, start)
    while (entry := _next_entry(cursor, tell)) is not None:
        offset, padding = cursor.position, -entry.size % BLOCK
        name = entry.name.decode("utf-8", "backslashreplace")
        regular = entry.kind in _REGULAR
        wanted = regular and (want is None or want(name))
        refused = "sparse_member" if entry.sparse else "too_many_bytes" if entry.size > limit else None
        held = wanted and refused is None
        data = cursor.exactly(entry.size, entry.start) if held else None
        cursor.skip(padding if held else entry.size + padding, entry.start)
        if tell:
            _tell_of(entry, name, regular, tell)
        if regular:
            yield Member(name, offset, data, entry.size, entry.start, refused if wanted else None)


def _tell_of(entry: Entry, name: str, regular: bool, tell: Tell) -> None:
    if not regular and entry.kind != b"g":  # a global header is no member
        tell(Passed("skipped", entry.start, name, _KINDS.get(entry.kind, "special")))
    elif "\\" in name and entry.name != name.encode():
        tell(Passed("not_utf8", entry.start, name))


def read_members(
    stream: BinaryIO,
    start: int = 0,
    max_member_bytes: int = MAX_MEMBER_BYTES,
    want: Want | None = None,
    tell: Tell | None = None,
) -> Iterator[Member]:
    """Yields the regular files of an uncompressed tar in their order.

    `stream` stands at byte `start` of the tar, the start of a member; only its `read(n)` is used, which may return
    fewer than n bytes. Sparse members and those above `max_member_bytes` come without data and with `refused` set;
    names for which `want` is false, directories, links, devices and fifos do not come at all. All of them are read
    past in bounded chunks, so memory holds two members at most and does not grow with the tar. `tell` hears of what has no
    other trace, see `Passed`.

    Raises TarCut where the tar ends or breaks; whatever `stream.read` raises passes through.
    """
    for member in _walk(stream, start, max_member_bytes, want, tell):
        if member.data is not None or member.refused is not None:
            yield member


_META_NAME = re.compile(r"__[^/]*__(/|\Z)")  # webdataset.tariterators.tar_file_iterator, skip_meta
_JUNK_FOLDER = re.compile(r"(^|/)(__MACOSX|PaxHeaders?(\.[0-9]+)?)/")


def skip_reason(name: str) -> str | None:
    """Why a member is no part of any sample: "apple_double", "hidden", "no_extension", "meta", "macosx"
    or "pax_header". None: it is part of one.

    As in webdataset 1.0.2: names whose first component is `__xyz__`, and base names without a dot or beginning with
    one. There, `d/.hidden.jpg` slips through as extension `hidden.jpg` of the key `d/`; here it is skipped like
    `.hidden.jpg`, and so is AppleDouble's `d/._a.jpg`. Beyond webdataset: what lies in a `__MACOSX/` folder, or in
    a `PaxHeader/` folder, where old tars unpack headers that they do not know.
    """
    base = name.rpartition("/")[2]
    if base.startswith("."):
        return "apple_double" if base.startswith("._") else "hidden"
    if "." not in base:
        return "no_extension"
    if _META_NAME.match(name):
        return "meta"
    junk = _JUNK_FOLDER.search(name)
    return None if junk is None else "macosx" if junk[2] == "__MACOSX" else "pax_header"


def is_skipped(name: str) -> bool:
    """Whether a member is no part of any sample."""
    return skip_reason(name) is not None


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
    stream: BinaryIO,
    start: int = 0,
    max_member_bytes: int = MAX_MEMBER_BYTES,
    want_field: Want | None = None,
    tell: Tell | None = None,
) -> Iterator[Sample]:
    """Yields the samples of a tar: consecutive members with one key, those of `is_skipped` left out.

    A repeated extension starts a new sample with the same key, so nothing is dropped. Fields for which
    `want_field(extension)` is false are there without their bytes: a sample of nothing else still comes. Arguments,
    refusals and errors are otherwise those of `read_members`.

    Raises TarCut, after yielding what was collected of the sample it broke, marked `cut`; to keep that or not is the
    caller's choice, since its last field may have been whole.
    """

    skipped = key = extension = None  # of the member that `_walk` asks about, which it then yields

    def want(name: str) -> bool:
        nonlocal skipped, key, extension
        skipped, (key, extension) = skip_reason(name), split_key(name)
        return skipped is None and (want_field is None or want_field(extension))

    sample = None
    try:
        for member in _walk(stream, start, max_member_bytes, want, tell):
            if skipped is not None:
                if tell:
                    tell(Passed("skipped", member.start, member.name, skipped))
                continue
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
