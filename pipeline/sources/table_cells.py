"""Tell what a cell of the column of images holds: the image itself, as bytes or as text, or its name."""

import base64
import binascii
import json
import re
import string
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from wordsworth.pipeline.storage.filesystem import without_credentials

URI_FIELDS = ("path", "url", "uri")  # fields of a struct that name its image; the first that is there counts
MAX_NAME = 4096  # characters of a name; a longer text names no object and never becomes a key
# The first bytes of images, as far as 24 characters of base64 tell them.
_IMAGE_HEAD = re.compile(
    rb"\xff\xd8\xff[\xc0-\xfe]"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|RIFF....WEBP"
    rb"|II[*+]\0|MM\0[*+]"  # TIFF
    rb"|BM....\0\0\0\0"
    rb"|\0\0\0\x0c(?:jP  |JXL )\r\n\x87\n|\xff\x4f\xff\x51"  # JPEG 2000, JPEG XL
    rb"|....ftyp(?:avi|hei|hev|mif|msf)",  # AVIF, HEIC
    re.DOTALL,
)
# The first letters of those in base64, which almost no name has, and the letters behind them.
_BASE64_HEAD = re.compile(
    r"\s*((?=[/_][90]|iVBOR|R0lGOD|UklGR|SUk|TU0A|Qk|AA)[A-Za-z0-9+/_-]{24})",
)
_MAY_BE_TEXT = re.compile(rb"\s*(?:data:|[A-Za-z0-9+/_-]{24})", re.IGNORECASE)  # few images begin so
_DATA_URI = re.compile(r"\s*data:([^,]{0,1000}),", re.IGNORECASE)
_ALPHABET = (string.ascii_letters + string.digits + "+/").encode()
_MAY_BE_IMAGE = re.compile(r"\s*(?:data:|[/_]|iVBOR|R0lGOD|UklGR|SUk|TU0A|Qk|AA)", re.IGNORECASE)
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(slots=True)
class CellImage:
    """Hold what a cell says of one image. An empty cell sets no field.

    Attributes:
        data: bytes of the image; None where the cell does not hold them
        uri: name of the image; None where the cell does not name one
        size: bytes of the image; None where the cell does not hold it
        error: code of the error, None for a good image
        detail: what is wrong, in words
    """

    data: bytes | None = None
    uri: str | None = None
    size: int | None = None
    error: str | None = None
    detail: str | None = None


def cell_image(cell: Any, max_bytes: int) -> CellImage:
    """Return the image in a cell.

    A struct holds its image in `bytes`, or names it in one of URI_FIELDS. Text that is a data: URI, or base64
    of an image, is the image. A JSON value that is no text is taken as it is written.

    Args:
        cell: the value
        max_bytes: bytes of an image; a larger one is not decoded
    """
    if isinstance(cell, bytes):  # first, as there are most of these
        if len(cell) <= max_bytes and not _MAY_BE_TEXT.match(cell):
            return CellImage(data=cell, size=len(cell))
        return _from_bytes(cell, max_bytes)
    if isinstance(cell, dict):
        data = cell.get("bytes")
        if isinstance(data, bytes):
            return _from_bytes(data, max_bytes)
        if is_list_of_numbers(data):
            return cell_image(data, max_bytes)
        if isinstance(data, str) and data:  # JSON has no bytes: this is what stands for them
            return _from_data_uri(data, max_bytes) or _from_base64(data, max_bytes)
        return cell_image(next(filter(None, map(cell.get, URI_FIELDS)), None), max_bytes)
    if cell is None or cell == "":
        return CellImage()
    if isinstance(cell, list):
        return _from_list(cell)
    text = cell if isinstance(cell, str) else json.dumps(cell)
    if _MAY_BE_IMAGE.match(text):
        return _from_text(text, max_bytes) or _from_name(text)
    return _from_name(text)


def is_list_of_numbers(cell: Any) -> bool:
    """Return whether a cell holds numbers one by one: bytes or pixels, as JSON has no bytes."""
    return isinstance(cell, list) and cell != [] and all(isinstance(entry, int | float) for entry in cell)


def key_text(value: Any) -> str | None:
    """Return the key in a cell; None where it holds none: an image or a very long text is no key."""
    if not isinstance(value, str):  # most keys are text
        if value is None or value == [] or (isinstance(value, bytes) and _IMAGE_HEAD.match(value)):
            return None
        if isinstance(value, dict | list) and _holds_image(value):
            return None
        value = as_text(value[: MAX_NAME + 1] if isinstance(value, bytes) else value)
    if len(value) > MAX_NAME or _is_image(value):
        return None
    return valid_text(value)


def _is_image(text: str) -> bool:
    if not _MAY_BE_IMAGE.match(text):
        return False
    return _DATA_URI.match(text) is not None or _is_base64_of_image(text)


def _holds_image(value: Any) -> bool:
    """Return whether bytes, or text that is an image, stand somewhere in a value."""
    if isinstance(value, dict):
        return any(map(_holds_image, value.values()))
    if isinstance(value, list):
        return any(map(_holds_image, value))
    return isinstance(value, bytes) or (isinstance(value, str) and _is_image(value))


def _from_bytes(data: bytes, max_bytes: int) -> CellImage:
    """Return the image of a cell with bytes. Base64 is decoded: no image begins with such letters."""
    if _MAY_BE_TEXT.match(data):
        head = data[:1100].decode("latin-1")
        if _DATA_URI.match(head) or _is_base64_of_image(head):
            return _from_text(data.decode("latin-1"), max_bytes) or CellImage()
    return _sized(data, len(data), max_bytes)


def _from_text(text: str, max_bytes: int) -> CellImage | None:
    """Return the image that stands in a text; None where the text is no image."""
    if _is_base64_of_image(text):
        return _from_base64(text, max_bytes)
    return _from_data_uri(text, max_bytes)


def _from_list(cell: list[Any]) -> CellImage:
    """Return what to say of a list in a struct, or of numbers. A list of images is divided before."""
    if is_list_of_numbers(cell):
        return CellImage(error="bad_record", detail="a list of numbers is no image: write bytes as base64")
    return CellImage(error="refused_uri", detail="a list in place of a name")


def _from_name(text: str) -> CellImage:
    if len(text) > MAX_NAME and (num_characters := len(without_credentials(text))) > MAX_NAME:
        detail = f"a text of {num_characters} characters is neither a name nor a known image in base64"
        return CellImage(error="refused_uri", detail=detail)
    return CellImage(uri=text)


def _is_base64_of_image(text: str) -> bool:
    head = _BASE64_HEAD.match(text)
    return head is not None and _IMAGE_HEAD.match(base64.b64decode(head[1], b"-_")) is not None


def _from_data_uri(text: str, max_bytes: int) -> CellImage | None:
    """Return the image of a data: URI; None for any other text."""
    head = _DATA_URI.match(text)
    if head is None:
        return None
    body = text[head.end() :]
    if head[1].lower().rpartition(";")[2].strip() == "base64":
        return _from_base64(body, max_bytes)
    data = unquote_to_bytes(body)
    return _sized(data, len(data), max_bytes)


def _from_base64(text: str, max_bytes: int) -> CellImage:
    """Return the image of a text in base64, of either alphabet, with or without line ends and padding."""
    packed = text.strip().encode("utf-8", "replace")
    if b"%" in packed:
        packed = unquote_to_bytes(packed)
    packed = packed.translate(_URL_SAFE, delete=b"\r\n\t").rstrip(b"=")
    if packed.translate(None, _ALPHABET) or len(packed) % 4 == 1:
        return CellImage(error="bad_record", detail="the image is no valid base64")
    size = len(packed) * 3 // 4
    if size > max_bytes:
        return _sized(b"", size, max_bytes)
    return CellImage(data=binascii.a2b_base64(packed + b"=" * (-len(packed) % 4)), size=size)


def _sized(data: bytes, size: int, max_bytes: int) -> CellImage:
    if size > max_bytes:
        return CellImage(size=size, error="too_many_bytes", detail=f"{size} bytes")
    return CellImage(data=data, size=size)


def without_images(value: Any, max_bytes: int) -> Any:
    """Return a value with the size of an image in place of each image in it, and its URIs without secrets."""
    if isinstance(value, dict):
        return {name: without_images(one, max_bytes) for name, one in value.items()}
    if isinstance(value, list):
        return [without_images(one, max_bytes) for one in value]
    if not isinstance(value, str | bytes) or not value:
        return value
    image = cell_image(value, max_bytes)
    if image.uri is not None:
        return without_credentials(image.uri)
    return f"({image.size} bytes)" if image.size is not None else None


# ---- text -------------------------------------------------------------------------------------------------


def as_text(value: Any) -> str | None:
    """Return text as it is, of the bytes of an image their number, and other types as JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, bytes):
        return _text_of_bytes(value)
    return valid_text(json.dumps(value, ensure_ascii=False, default=_json_default))


def _json_default(value: Any) -> str:
    return _text_of_bytes(value) if isinstance(value, bytes) else str(value)


def _text_of_bytes(value: bytes) -> str:
    if _IMAGE_HEAD.match(value):
        return f"({len(value)} bytes)"
    return value.decode("utf-8", "backslashreplace")


def valid_text(text: str) -> str:
    r"""Return text with \uNNNN for half a surrogate pair, which JSON can hold and Arrow cannot."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
