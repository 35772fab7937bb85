"""Make tars for the tests: by tarfile, by webdataset, and block by block where no writer would make them."""

import io
import os
import random
import tarfile
import tracemalloc
from collections.abc import Iterator

from wordsworth.pipeline.sources.tar import (
    MAX_MEMBER_BYTES,
    Member,
    OnNote,
    Readable,
    WantMember,
    walk_members,
)
from wordsworth.pipeline.sources.tar_headers import BLOCK, TarCut

os.environ["WDS_SECURE"] = "1"  # webdataset reads it when it is imported
import webdataset

END = bytes(2 * BLOCK)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def header(
    name=b"a.jpg", size=b"00000000003\0", kind=b"0", magic=b"ustar\x0000", signed=False, tail=b""
) -> bytes:
    """Make one header block by hand.

    Args:
        size: the raw 12-byte field.
        tail: the bytes from byte 345 on.
    """
    fields = [name.ljust(100, b"\0"), b"0000644\0", b"0000000\0" * 2, size, b"00000000000\0", b" " * 8, kind]
    block = (b"".join(fields) + bytes(100) + magic.ljust(88, b"\0") + tail).ljust(BLOCK, b"\0")
    assert len(block) == BLOCK
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    return block[:148] + b"%06o\0 " % total + block[156:]


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def pax_record(keyword: bytes, value: bytes) -> bytes:
    length = len(keyword) + len(value) + 3
    while len(b"%d" % length) + len(keyword) + len(value) + 3 != length:
        length += 1
    return b"%d %s=%s\n" % (length, keyword, value)


def extension(payload: bytes, kind: bytes = b"x") -> bytes:
    return header(b"ext", octal(len(payload)), kind) + padded(payload)


def sparse_6_gib() -> bytes:
    """Return an old GNU sparse file: 3 stored bytes, 6 GiB when unpacked, two blocks of map behind the
    header."""
    tail = bytes(41) + (octal(0) + octal(3)) * 4 + b"\x01" + b"\x80" + (6 << 30).to_bytes(11, "big")
    maps = bytes(504) + b"\x01" + bytes(7) + bytes(BLOCK)
    return header(b"s.jpg", kind=b"S", magic=b"ustar  \0", tail=tail) + maps + padded(b"abc")


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_tar(files: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files:
            add(tar, name, data)
    return out.getvalue()


def make_samples(count: int) -> list[dict]:
    """Return samples for TarWriter with every kind of name: nested, dotted, upper case, unicode, very
    long."""
    rng = random.Random(0)
    keys = [
        "plain",
        "deep/er/key",
        "v1.2/key",
        "Grün/图像",
        "long/" + "n" * 150,
        "x" * 99,
        "./dot/key",
        "a b",
    ]
    return [
        {"__key__": f"{keys[i % len(keys)]}{i}", "JPG": rng.randbytes(rng.choice([0, 511, 512, 513, 1300]))}
        | {"seg.PNG": rng.randbytes(40), "json": b"{}", "cls": b"%d" % i}
        for i in range(count)
    ]


def write_shard(samples: list[dict]) -> bytes:
    out = io.BytesIO()
    with webdataset.TarWriter(out, encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return out.getvalue()


def webdataset_read(shard: bytes) -> list[dict]:
    source = [{"url": "shard", "stream": io.BytesIO(shard)}]
    files = webdataset.tariterators.tar_file_expander(source)
    return [
        {name: value for name, value in sample.items() if name != "__url__"}
        for sample in webdataset.tariterators.group_by_keys(files)
    ]


def webdataset_key(name: str) -> tuple[str | None, str | None]:
    return webdataset.tariterators.base_plus_ext(name)


def read_until_cut(items) -> tuple[list, TarCut | None]:
    seen = []
    try:
        for item in items:
            seen.append(item)
    except TarCut as cut:
        return seen, cut
    return seen, None


def flat(samples) -> list[dict]:
    return [{"__key__": s.key} | {ext: member.data for ext, member in s.fields.items()} for s in samples]


def peak_bytes(read) -> int:
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read_members(
    stream: Readable,
    start: int = 0,
    max_member_bytes: int = MAX_MEMBER_BYTES,
    want: WantMember | None = None,
    on_note: OnNote | None = None,
) -> Iterator[Member]:
    """Yield the members of a tar that were read or refused."""
    for member in walk_members(stream, start, max_member_bytes, want, on_note):
        if member.data is not None or member.refused is not None:
            yield member
