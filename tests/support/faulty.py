"""Make a tar of every header format, and a file system whose reads fail once at a chosen byte."""

import io
import tarfile
from pathlib import Path

from fsspec.spec import AbstractFileSystem

from tests.support.tars import BLOCK, END, add, header, octal, padded

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def multi_format_tar(count: int = 2) -> bytes:
    """Return one tar without gaps, with `count` samples of each kind: ustar, pax with a long name, GNU
    with a long name, base-256 sizes."""
    made = bytearray()
    for place, (kind, form) in enumerate(FORMATS.items()):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for number in range(count):
                name = f"{place}{kind}/{number}" + ("" if kind == "ustar" else "n" * 110)
                add(archive, f"{name}.jpg", _bytes(3 * number + place, 600))
                add(archive, f"{name}.json", b'{"number": %d}' % number)
        made += out.getvalue()[: _content_end(out.getvalue())]
    for number in range(count):
        data = _bytes(number + 50, 700)
        made += header(f"3base256/{number}.jpg".encode(), b"\x80" + len(data).to_bytes(11, "big")) + padded(
            data
        )
        made += header(f"3base256/{number}.json".encode(), octal(2)) + padded(b"{}")
    return bytes(made) + END


def _bytes(seed: int, size: int) -> bytes:
    return bytes((seed * 31 + at * 7) % 251 + 1 for at in range(size))


def _content_end(tar: bytes) -> int:
    return len(padded(tar.rstrip(b"\0")))


def places(shard: bytes) -> list[int]:
    """Return each block's first byte, and three bytes within the block: the second, the middle one and the
    last."""
    return [
        start + within for start in range(0, len(shard), BLOCK) for within in (0, 1, BLOCK // 2, BLOCK - 1)
    ]


class FailsOnce(io.RawIOBase):
    """Read the bytes of a file system. A read that would give byte `fail_at` raises, once for all files
    together."""

    def __init__(self, fs: "FaultyFileSystem"):
        self.fs, self.at = fs, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self.at = offset
        return offset

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer) -> int:
        end = min(self.at + len(buffer), len(self.fs.data))
        if self.at <= self.fs.fail_at < end and not self.fs.failed:
            if self.at < self.fs.fail_at:
                end = self.fs.fail_at  # the bytes before the fault arrive, as they do from a socket
            else:
                self.fs.failed = True
                raise self.fs.error
        count = end - self.at
        buffer[:count] = self.fs.data[self.at : end]
        self.at = end
        return count


class FaultyFileSystem(AbstractFileSystem):
    """Hold one object whose reads fail once.

    Attributes:
        failed: whether a read has met the fault.
        opened: the number of times that the object was opened.
    """

    protocol = "faulty"
    cachable = False

    def __init__(self, data: bytes, fail_at: int, error: OSError | None = None):
        super().__init__()
        self.data, self.fail_at, self.failed, self.opened = data, fail_at, False, 0
        self.error = error or OSError("AWS Error NETWORK_CONNECTION: reset by peer")

    def info(self, path, **kwargs):
        return {"name": path, "size": len(self.data), "type": "file", "ETag": "1"}

    def ls(self, path, detail=True, **kwargs):
        return [self.info(path)] if detail else [path]

    def _open(self, path, mode="rb", **kwargs):
        self.opened += 1
        return FailsOnce(self)


def write_holes(path: Path, sizes: list[int]) -> int:
    """Write a tar of one-member samples whose data is holes: large to read, nothing on the disk. Return
    its bytes."""
    with open(path, "wb") as file:
        for number, size in enumerate(sizes):
            file.write(header(f"{number:06d}.jpg".encode(), octal(size)))
            file.seek(size + -size % BLOCK, io.SEEK_CUR)
        file.write(END)
        return file.tell()
