"""Tables counted again for verify: no code shared with the reader of tables, and CSV by an expression instead of the csv module.

What a record is, which column has the image and what a row is called are written anew from their description. Where reader and
recount differ, one is wrong. What the URIs of a table name is not asked for again: of such rows the key and the order are held
against the source, not the size.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from wordsworth.pipeline.storage.filesystem import public

_IMAGES = {"image", "url", "uri", "image_url", "path", "image_path", "file", "filename", "file_name"}
_LONGEST_LINE, _LONGEST_RECORD = 16 << 20, 256 << 10


class Row(NamedTuple):
    """One record. size: of bytes that stand in the table, None where a URI names them."""

    key: str | None
    size: int | None
    error: str | None


class Unusable(Exception):
    """The table has no such column: there is nothing to count."""


class Watched:
    """A file for pyarrow to seek in, which tells a store that fails (`failed`) from bytes that are damaged."""

    closed = False

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.failed = file, size, False

    def read(self, size: int = -1) -> bytes:
        try:
            wanted = max(0, self.size - self.file.tell())
            wanted = wanted if size is None or size < 0 else min(size, wanted)
            data = b""
            while len(data) < wanted:
                if not (more := self.file.read(wanted - len(data))):
                    raise OSError(f"the store ended it {wanted - len(data)} bytes early")
                data += more
            return data
        except Exception:
            self.failed = True
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset if whence != 2 else self.size + offset, whence % 2)

    def tell(self) -> int:
        return self.file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """The file is closed by who opened it."""


def table_rows(file: Watched, name: str, image_column: str | None, key: str | None) -> Iterator[Row]:
    """The rows of a table in order. Raises what the store raises, and Unusable."""
    ending = name.lower().rpartition(".")[2]
    if ending == "parquet":
        yield from _parquet_rows(file, image_column, key)
        return
    records = (
        _json_values(file)
        if ending in ("jsonl", "ndjson")
        else _csv_values(file, "\t" if ending == "tsv" else ",")
    )
    column = image_column
    for number, values in enumerate(records):
        if values is None:
            yield Row(str(number), None, "bad_record")
            continue
        if column is None:
            column = next((name for name in values if name in _IMAGES), None)
            if column is None:
                raise Unusable("no column says where its images are")
        yield _row(number, values.get(column), values.get(key) if key else None)


def _row(number: int, cell: Any, key: Any) -> Row:
    if isinstance(cell, dict):
        cell = cell["bytes"] if isinstance(cell.get("bytes"), bytes) else cell.get("path")
    size = len(cell) if isinstance(cell, bytes) else None
    missing = cell is None or cell == ""
    if key is None and size is None and not missing:
        key = public(cell if isinstance(cell, str) else json.dumps(cell))
    name = number if key is None else key
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    name = name if isinstance(name, str) else json.dumps(name, ensure_ascii=False, default=_words)
    return Row(name.encode("utf-8", "backslashreplace").decode(), size, "missing_image" if missing else None)


def _words(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


# ---- lines ----------------------------------------------------------------------------------------------------------------


def _lines(file: BinaryIO) -> Iterator[str | None]:
    """Lines with their ends; None for one that is too long or is no UTF-8."""
    buffer, mark = io.BufferedReader(_Raw(file), 1 << 20), b"\xef\xbb\xbf"
    while line := buffer.readline(_LONGEST_LINE + 1):
        line, mark = line.removeprefix(mark), b""
        if len(line) > _LONGEST_LINE:
            while line and line[-1:] != b"\n":
                line = buffer.readline(1 << 16)
            yield None
            continue
        try:
            yield str(line, "utf-8")
        except UnicodeDecodeError:
            yield None


class _Raw(io.RawIOBase):
    def __init__(self, file: BinaryIO):
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _json_values(file: BinaryIO) -> Iterator[dict | None]:
    for line in _lines(file):
        if line is not None and not line.strip():
            continue
        try:
            value = None if line is None else json.loads(line)
        except (ValueError, RecursionError):
            value = None
        yield value if isinstance(value, dict) else None


def _csv_values(file: BinaryIO, delimiter: str) -> Iterator[dict | None]:
    """Records by a grammar: a quoted field ends before a delimiter or the line's end, an unquoted one holds neither. What is no
    record costs one line."""
    mark = re.escape(delimiter)
    field = re.compile(rf'(?:"((?:[^"]|"")*)"|((?!")[^{mark}\r\n]*))({mark}|[\r\n]*\Z)')
    source, waiting, header = _lines(file), [], None
    while True:
        if not waiting:
            if (line := next(source, "")) == "":
                return
            waiting.append(line)
        if waiting[0] is not None and not waiting[0].strip("\r\n"):
            del waiting[0]
            continue
        values, used = _csv_record(source, waiting, field)
        if header is None:
            if values is None:
                raise Unusable("its header cannot be read")
            header = values
        elif values is None or len(values) != len(header):
            yield None
            used = 1
        else:
            yield dict(zip(header, [value or None for value in values], strict=True))
        del waiting[:used]


def _csv_record(
    source: Iterator[str | None], waiting: list[str | None], field: re.Pattern
) -> tuple[list[str] | None, int]:
    """The fields of the record that begins the lines, None where there is none, and how many lines it has."""
    text = ""
    for used in range(1, 1 << 30):
        if used > len(waiting):
            if (line := next(source, "")) == "":
                return None, 1
            waiting.append(line)
        if waiting[used - 1] is None or (
            used > 1 and len((text + waiting[used - 1]).encode()) > _LONGEST_RECORD
        ):
            return None, 1
        text += waiting[used - 1]
        if '"' not in text or not _open_quote(text, field):
            return _fields(text, field), used


def _open_quote(text: str, field: re.Pattern) -> bool:
    """Whether a quoted field of the text is still open."""
    at = 0
    while at < len(text):
        found = field.match(text, at)
        if found is None:
            return text[at] == '"' and re.match(r'"(?:[^"]|"")*\Z', text[at:]) is not None
        if found.end() == at or not found[3].strip("\r\n"):
            return False
        at = found.end()
    return False


def _fields(text: str, field: re.Pattern) -> list[str] | None:
    fields, at = [], 0
    while True:
        found = field.match(text, at)
        if found is None:
            return None
        fields.append(found[1].replace('""', '"') if found[1] is not None else found[2])
        at = found.end()
        if not found[3].strip("\r\n"):
            return fields


# ---- Parquet --------------------------------------------------------------------------------------------------------------


def _parquet_rows(file: Watched, image_column: str | None, key: str | None) -> Iterator[Row]:
    """In batches, and where one fails row by row, so that every row counts that can be had."""
    number = 0
    for size in (256, 1):
        try:
            table = pq.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True)
            column = image_column or _image_column(table.schema_arrow)
            if any(name not in table.schema_arrow.names for name in (column, key) if name):
                raise Unusable("it lacks a column that was asked for")
            for row in _values(table, size, column, key, number):
                yield _row(number, *row)
                number += 1
            return
        except Unusable:
            raise
        except Exception:  # whatever pyarrow makes of damaged bytes; the second round says how far they go
            if file.failed:
                raise
    yield Row(None, None, "shard_truncated")


def _values(
    table: pq.ParquetFile, size: int, column: str, key: str | None, first: int
) -> Iterator[tuple[Any, Any]]:
    wanted = [column, key] if key else [column]
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        if first >= count:
            first -= count
            continue
        for batch in table.iter_batches(size, [group], wanted, use_threads=False):
            for row in batch.to_pylist()[first:]:
                yield row[column], row[key] if key else None
            first = max(0, first - batch.num_rows)


def _image_column(schema: pa.Schema) -> str:
    def has_bytes(kind: pa.DataType) -> bool:
        if isinstance(kind, pa.StructType):
            return any(field.name == "bytes" and has_bytes(field.type) for field in kind)
        name = str(kind.value_type if isinstance(kind, pa.DictionaryType) else kind)
        return name in ("binary", "large_binary", "binary_view")

    cells = [field.name for field in schema if has_bytes(field.type)]
    named = [name for name in schema.names if name in _IMAGES]
    if len(cells) != 1 and not named:
        raise Unusable("no column says where its images are")
    return cells[0] if len(cells) == 1 else named[0]
