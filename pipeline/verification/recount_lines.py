"""Count the records of CSV and JSONL again for verify, without code of the reader.

CSV is read by an expression instead of the csv module, and text is decoded before it is cut into lines.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any

_MAX_LINE_BYTES = 16 << 20  # bytes of a line; a longer one is no record
_MAX_RECORD_BYTES = 256 << 10  # bytes of a CSV record of several lines

JsonRecord = dict[str, Any]
CsvRecord = dict[str, str | None]


class Unusable(Exception):
    """Report that the table has no column with images: there is nothing to count."""


# ---- lines ----------------------------------------------------------------------------------------------


def encoding_of(buffer: "io.BufferedReader[io.RawIOBase]") -> str:
    """Return "utf-8", "utf-16-le" or "utf-16-be": what the first four bytes look like."""
    start = buffer.peek(4)[:4]
    if re.match(rb"(?s)\xff\xfe|[^\0]\0[^\0]\0", start):
        return "utf-16-le"
    if re.match(rb"(?s)\xfe\xff|\0[^\0]\0[^\0]", start):
        return "utf-16-be"
    return "utf-8"


def _lines(buffer: "io.BufferedReader[io.RawIOBase]", encoding: str) -> Iterator[str | None]:
    """Yield lines with their ends; None for a line that is too long or cannot be decoded."""
    return _wide_lines(buffer, encoding) if encoding != "utf-8" else _narrow_lines(buffer)


def _narrow_lines(buffer: "io.BufferedReader[io.RawIOBase]") -> Iterator[str | None]:
    mark = b"\xef\xbb\xbf"  # before the first line
    while True:
        line = buffer.readline(_MAX_LINE_BYTES + 1)
        if not line:
            return
        if line[-1:] != b"\n" and getattr(buffer.raw, "broken", False):
            return  # the rest of the line is lost with the damaged data
        line = line.removeprefix(mark)
        mark = b""
        if len(line) > _MAX_LINE_BYTES:
            while line and line[-1:] != b"\n":
                line = buffer.readline(1 << 16)
            yield None
            continue
        try:
            yield str(line, "utf-8")
        except UnicodeDecodeError:
            yield None


def _wide_lines(buffer: "io.BufferedReader[io.RawIOBase]", encoding: str) -> Iterator[str | None]:
    """Yield the lines of UTF-16. Half a surrogate pair is let through, and spoils its line alone."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    line: str | None = ""  # what is known of the line; None for one that is too long
    mark = "\ufeff"
    while data := buffer.read(1 << 20):
        text = decoder.decode(data)
        if mark:
            text = text.removeprefix(mark)
            mark = ""
        *ends, rest = text.split("\n")
        for end in ends:
            yield _sound(line, end + "\n", encoding)
            line = ""
        line = None if line is None or 2 * len(line + rest) > _MAX_LINE_BYTES else line + rest
    if getattr(buffer.raw, "broken", False):
        return
    try:
        rest = decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        yield None
        return
    if line is None or line or rest:
        yield _sound(line, rest, encoding)


def _sound(line: str | None, end: str, encoding: str) -> str | None:
    """Return a whole line; None for one that is too long, or that is no text."""
    try:
        data = ((line or "") + end).encode(encoding)
    except UnicodeEncodeError:
        return None
    return None if line is None or len(data) > _MAX_LINE_BYTES else line + end


# ---- records --------------------------------------------------------------------------------------------


def json_records(file: io.RawIOBase) -> Iterator[JsonRecord | None]:
    """Yield the objects of a file with one on a line; None for a line that is none. Empty lines are passed
    over."""
    buffer = io.BufferedReader(file, 1 << 20)
    for line in _lines(buffer, encoding_of(buffer)):
        if line is None:
            yield None
        elif line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield value if isinstance(value, dict) else None


def csv_records(file: io.RawIOBase, delimiters: str, wanted: set[str]) -> Iterator[CsvRecord | None]:
    """Yield the records of a CSV file; None for a line that begins none, which costs one line.

    Raises:
        Unusable: the header is no record with any of the delimiters.
    """
    buffer = io.BufferedReader(file, 1 << 20)
    encoding = encoding_of(buffer)
    source = _lines(buffer, encoding)
    waiting: list[str | None] = []  # lines that no record has taken yet
    header: list[str] = []
    field = _field(",")
    while True:
        if not waiting:
            line = next(source, "")
            if line == "":
                return
            waiting.append(line)
        if waiting[0] is not None and not waiting[0].strip("\r\n"):
            del waiting[0]
            continue
        if not header:
            header, num_lines, field = _header(source, waiting, delimiters, wanted, encoding)
            del waiting[:num_lines]
            of_images = next((name for name in header if name in wanted), "")
            if header.count(of_images) > 1:
                raise Unusable(f"{of_images} comes twice in its header")
            continue
        values, num_lines = _csv_record(source, waiting, field, encoding)
        if values is None or len(values) != len(header):
            yield None
            num_lines = 1
        else:
            yield dict(zip(header, [value or None for value in values], strict=True))
        del waiting[:num_lines]


def _header(
    source: Iterator[str | None], waiting: list[str | None], delimiters: str, wanted: set[str], encoding: str
) -> tuple[list[str], int, re.Pattern[str]]:
    """Return the names of the columns, the number of lines that they take, and the expression for a field.

    The first of the delimiters counts with which there is a wanted column, or else the first of those with
    which there are most columns.
    """
    found: list[tuple[int, list[str], int, re.Pattern[str]]] = []
    for delimiter in delimiters:
        field = _field(delimiter)
        names, num_lines = _csv_record(source, waiting, field, encoding)
        if names:
            rank = 0 if wanted.isdisjoint(names) else _MAX_LINE_BYTES
            found.append((rank or len(names), names, num_lines, field))
    if not found:
        raise Unusable("its header cannot be read")
    _, names, num_lines, field = max(found, key=lambda entry: entry[0])  # the first of equal ones
    return names, num_lines, field


def _field(delimiter: str) -> re.Pattern[str]:
    """Return the expression for a field.

    A quoted field ends before a delimiter or before the end of the line. An unquoted field holds neither.
    """
    mark = re.escape(delimiter)
    return re.compile(rf'(?:"((?:[^"]|"")*)"|((?!")[^{mark}\r\n]*))({mark}|[\r\n]*\Z)')


def _csv_record(
    source: Iterator[str | None], waiting: list[str | None], field: re.Pattern[str], encoding: str
) -> tuple[list[str] | None, int]:
    """Return the fields of the record that begins with the first waiting line, and its number of lines.

    Where no record begins there, the fields are None. Lines that are needed are taken from `source` into
    `waiting`.
    """
    text = ""
    num_lines = 0
    while True:
        if num_lines == len(waiting):
            line = next(source, "")
            if line == "":
                return None, 1
            waiting.append(line)
        line = waiting[num_lines]
        num_lines += 1
        if line is None:
            return None, 1
        text += line
        if num_lines > 1 and len(text.encode(encoding)) > _MAX_RECORD_BYTES:
            return None, 1
        if '"' not in text or not _has_open_quote(text, field):
            return _fields(text, field), num_lines


def _has_open_quote(text: str, field: re.Pattern[str]) -> bool:
    """Return whether a quoted field of the text is still open."""
    at = 0
    while at < len(text):
        found = field.match(text, at)
        if found is None:
            return text[at] == '"' and re.match(r'"(?:[^"]|"")*\Z', text[at:]) is not None
        if found.end() == at or not found[3].strip("\r\n"):
            return False
        at = found.end()
    return False


def _fields(text: str, field: re.Pattern[str]) -> list[str] | None:
    """Return the fields of a record; None where the text is no record."""
    fields: list[str] = []
    at = 0
    while True:
        found = field.match(text, at)
        if found is None:
            return None
        quoted, plain, end = found.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        at = found.end()
        if not end.strip("\r\n"):
            return fields
