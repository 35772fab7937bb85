"""Count the elements of a JSON array again for verify, without code of the reader.

The elements are cut apart by their brackets and commas, in bytes, before any of them is parsed.
"""

import codecs
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from wordsworth.pipeline.verification.recount_lines import JsonRecord, Unusable, encoding_of, json_records

_MAX_ELEMENT_BYTES = 16 << 20  # bytes of an element; where one has more, the rest of the array is lost
_PART = re.compile(rb'[\[\]{},"]')
_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)  # a string behind its first quote
_SPACE = b" \t\r\n"


class Broken:
    """Stand for the rest of a table, which cannot be read."""


def json_file_records(open_text: Callable[[], io.RawIOBase]) -> Iterator[JsonRecord | Broken | None]:
    """Yield the elements of an array, or the objects on the lines of a file that is none.

    Raises:
        Unusable: it is neither.
    """
    buffer = io.BufferedReader(open_text(), 1 << 20)
    encoding = encoding_of(buffer)
    chunks = _as_utf_8(buffer, encoding)
    head = b""
    while not head and (chunk := next(chunks, None)) is not None:
        head = chunk.lstrip(_SPACE)
    if head.startswith(b"["):
        for element in _elements(itertools.chain([head[1:]], chunks)):
            record = Broken() if element is None else _parsed(element, encoding)
            yield record
            if isinstance(record, Broken):
                return
        return
    for number, line in enumerate(json_records(open_text())):
        if number == 0 and line is None:
            raise Unusable("it is neither an array of objects nor an object a line")
        yield line


def _as_utf_8(buffer: "io.BufferedReader[io.RawIOBase]", encoding: str) -> Iterator[bytes]:
    """Yield the file in UTF-8, without the mark in front; what is no text stays recognizable."""
    is_wide = encoding != "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass") if is_wide else None
    mark = b"\xef\xbb\xbf"
    while data := buffer.read1(1 << 20):
        if decoder:
            data = decoder.decode(data).encode("utf-8", "surrogatepass")
        if mark and data:
            data = data.removeprefix(mark)
            mark = b""
        yield data
    if decoder and decoder.getstate()[0]:
        yield b"\xff"  # half a character


def _elements(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Yield what stands between the commas of an array, behind its first bracket; None for a lost rest."""
    data = b""
    begin = 0  # of the element
    at = 0
    depth = 0
    is_first = True
    for chunk in chunks:
        data = data[begin:] + chunk
        at -= begin
        begin = 0
        if len(data) > 2 * _MAX_ELEMENT_BYTES + len(chunk):
            break
        while part := _PART.search(data, at):
            character = part[0]
            if character == b'"':
                string = _STRING.match(data, part.end())
                if string is None:
                    at = part.start()
                    break
                at = string.end()
                continue
            at = part.end()
            if depth == 0 and character == b"]":
                element = data[begin : part.start()]
                if not is_first or element.strip(_SPACE):
                    yield element
                rest = b"".join([data[at:], *chunks])
                if rest.strip(_SPACE):
                    yield None
                return
            if depth == 0 and character == b",":
                yield data[begin : part.start()]
                begin = at
                is_first = False
            depth = max(0, depth + {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(character, 0))
        else:
            at = len(data)
    yield None


def _parsed(element: bytes, encoding: str) -> JsonRecord | Broken | None:
    """Return an element; None for one that is no object or no text, Broken for one that is no JSON."""
    errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
    text = element.decode("utf-8", errors).strip(" \t\r\n")
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return Broken()
    if len(text.encode(encoding, errors)) > _MAX_ELEMENT_BYTES:
        return Broken()
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return value if isinstance(value, dict) else None
