"""Say again what a cell of a table holds, without code of the reader: an image, a name, or neither."""

import json
import re
import string
from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple
from urllib.parse import unquote

from wordsworth.pipeline.storage.filesystem import without_credentials

_LONGEST_NAME = 4096  # characters
_LETTERS = frozenset(string.ascii_letters + string.digits + "+/-_")
# Types of the entries of a list that is an image written as numbers.
_NUMBERS = [set(kinds) for many in (1, 2, 3) for kinds in combinations((int, float, bool), many)]
# What images begin with, and at which byte it stands.
_BEGINNINGS = (
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"GIF87a"),
    (0, b"GIF89a"),
    (8, b"WEBP"),
    (0, b"II*\0"),
    (0, b"II+\0"),
    (0, b"MM\0*"),
    (0, b"MM\0+"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n"),
    (0, b"\xff\x4f\xff\x51"),
    *((4, b"ftyp" + brand) for brand in (b"avi", b"hei", b"hev", b"mif", b"msf")),
)


class Cell(NamedTuple):
    """Hold what a cell of the column of images is.

    Attributes:
        size: bytes of the image; None where the cell does not hold it.
        name: name of the image; None where the cell does not name one.
        error: "missing_image", "bad_record" or None.
    """

    size: int | None = None
    name: str | None = None
    error: str | None = None


def image_cell(cell: Any) -> Cell:
    """Return what a cell of the column of images is."""
    is_packed = False  # whether a text must be an image
    while isinstance(cell, dict):
        is_packed = isinstance(cell.get("bytes"), str) and cell["bytes"] != ""
        if is_row_of_numbers(cell.get("bytes")):
            return Cell(error="bad_record")
        has_bytes = is_packed or isinstance(cell.get("bytes"), bytes)
        cell = cell["bytes"] if has_bytes else cell.get("path") or cell.get("url") or cell.get("uri")
    if isinstance(cell, list):
        return Cell(error="bad_record") if is_row_of_numbers(cell) else Cell()
    if isinstance(cell, bytes):
        start = str(cell[:1100], "latin-1")
        if _data_parts(start) is None and not _packs_image(start):
            return Cell(size=len(cell))
        cell = str(cell, "latin-1")
    if not is_packed and (cell is None or cell == ""):
        return Cell(error="missing_image")
    text = cell if isinstance(cell, str) else json.dumps(cell)
    parts = _data_parts(text)
    if parts is not None and not parts[0]:
        escapes = re.findall("%[0-9A-Fa-f]{2}", parts[1])
        return Cell(size=len(parts[1].encode()) - 2 * len(escapes))
    if parts is not None or is_packed or _packs_image(text):
        size = _unpacked_size(parts[1] if parts else text)
        return Cell(error="bad_record") if size is None else Cell(size=size)
    if len(without_credentials(text)) > _LONGEST_NAME:
        return Cell()  # a text that is no name
    return Cell(name=text)


def cell_of(record: Any, name: str) -> Any:
    """Return a cell of a record: of the column of this name, or else of a field that the dots lead to.

    Below a list, the cells of all its entries are returned as a list.
    """
    if isinstance(record, list):
        return [cell_of(entry, name) for entry in record]
    column = _column(record, name)
    if column is None or column == name:
        return None if column is None else record[column]
    return cell_of(record[column], name[len(column) + 1 :])


def key_text(cell: Any) -> str | None:
    """Return the key that a cell gives; None where it gives none: an image and a very long text do not."""
    if isinstance(cell, bytes):
        if _is_image(cell):
            return None
        text = str(cell, "utf-8", "backslashreplace")
    elif isinstance(cell, str):
        text = cell
    elif cell is None or cell == [] or _has_payload(cell):
        return None
    else:
        text = json.dumps(cell, ensure_ascii=False, default=_as_text)
    if len(text) > _LONGEST_NAME or _data_parts(text) is not None or _packs_image(text):
        return None
    return str(text.encode("utf-8", "backslashreplace"), "utf-8")


def cells_beside(value: Any, name: str, image: str) -> Iterator[Any]:
    """Yield the cell of column `name` for each image of column `image`.

    Of a list that both are in, each image has the cell of its own entry.

    Args:
        value: a record, or what stands where the names have led to.
        name: name of a column or field; empty for the value itself.
        image: likewise, of the images.
    """
    if isinstance(value, list):
        for entry in value:
            yield from cells_beside(entry, name, image)
        return
    column = _column(value, name)
    if column is not None and column == _column(value, image):
        rest = len(column) + 1
        yield from cells_beside(value[column], name[rest:], image[rest:])
        return
    cell = cell_of(value, name) if name else value
    images = cell_of(value, image) if image else value
    for _ in leaves(images) if isinstance(images, list) else [images]:
        yield cell


def _column(record: Any, name: str) -> str | None:
    """Return the column of a record that a name means or leads into: the one of the most dots."""
    while isinstance(record, dict) and name:
        if name in record:
            return name
        name = name.rpartition(".")[0]
    return None


def leaves(value: Any) -> Iterator[Any]:
    """Yield what stands in a list and in lists in it, in order."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(reversed(one))
        else:
            yield one


def is_row_of_numbers(cell: Any) -> bool:
    """Return whether a cell is a list of nothing but numbers, such as bytes or pixels one by one."""
    return isinstance(cell, list) and {type(one) for one in cell} in _NUMBERS


def _has_payload(cell: Any) -> bool:
    """Return whether an image stands somewhere in a list or an object."""
    for leaf in leaves(cell):
        if isinstance(leaf, dict):
            found = _has_payload(list(leaf.values()))
        elif isinstance(leaf, str):
            found = _data_parts(leaf) is not None or _packs_image(leaf)
        else:
            found = isinstance(leaf, bytes)
        if found:
            return True
    return False


def _as_text(value: Any) -> str:
    return str(value, "utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _is_image(data: bytes) -> bool:
    """Return whether bytes begin as an image does."""
    if data[:3] == b"\xff\xd8\xff":
        return len(data) > 3 and 0xC0 <= data[3] <= 0xFE
    if data[:2] == b"BM":
        return data[6:10] == bytes(4)
    if data[8:12] == b"WEBP":
        return data[:4] == b"RIFF"
    return any(data[at : at + len(mark)] == mark for at, mark in _BEGINNINGS)


def _packs_image(text: str) -> bool:
    """Return whether a text begins as an image in base64 does."""
    letters = text.lstrip()[:24]
    if len(letters) < 24 or not _LETTERS.issuperset(letters):
        return False
    values = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    bits = 0
    for letter in letters.replace("-", "+").replace("_", "/"):
        bits = bits << 6 | values.index(letter)
    return _is_image(bits.to_bytes(18, "big"))


def _data_parts(text: str) -> tuple[bool, str] | None:
    """Return whether a data: URI is in base64, and what stands behind its comma; None for another text."""
    text = text.lstrip()
    if text[:5].lower() != "data:":
        return None
    kind, comma, body = text[5:].partition(",")
    if not comma or len(kind) > 1000:
        return None
    return kind.lower().split(";")[-1].strip() == "base64", body


def _unpacked_size(text: str) -> int | None:
    """Return the bytes that base64 stands for; None where it is none."""
    text = text.strip()
    if "%" in text:
        text = unquote(text, "latin-1")
    text = re.sub(r"[\r\n\t]", "", text).rstrip("=")
    if len(text) % 4 == 1 or not _LETTERS.issuperset(text):
        return None
    return len(text) * 6 // 8
