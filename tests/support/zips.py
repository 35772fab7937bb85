"""Make zip archives for the tests: by zipfile, and with bytes changed where no writer would."""

import io
import stat
import zipfile
from pathlib import Path

import numpy as np


def picture(number: int, size: int = 400) -> bytes:
    """Return bytes that stand for an image; deflating makes them smaller."""
    generator = np.random.default_rng(number)
    return bytes(generator.integers(0, 16, size + 61 * number, dtype=np.uint8))


def make_zip(
    members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    """Return an archive; a name that ends with a slash is a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
        archive.comment = comment
    return buffer.getvalue()


def write_zip(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_zip(members, method))
    return path


def link(name: str) -> zipfile.ZipInfo:
    """Return the head of a member that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def with_entry_bytes(data: bytes, name: bytes, offset: int, new: bytes) -> bytes:
    """Return an archive with other bytes in the directory's entry of a member.

    Args:
        offset: byte of the entry, such as 8 for its flags and 10 for its method
    """
    place = data.rindex(name) - 46
    assert data[place : place + 4] == b"PK\1\2"
    return data[: place + offset] + new + data[place + offset + len(new) :]
