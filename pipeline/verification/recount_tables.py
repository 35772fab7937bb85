"""Count tables again for verify, without code of the reader of tables.

The rules for a record, for the column with the images and for the name of a row are written a second time,
from their description; CSV is read by an expression instead of the csv module. Where the reader and the
recount differ, one of them is wrong. The images that a table names by URI are not fetched again: of such a
row the key and the order are compared, not the size.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from wordsworth.pipeline.storage.filesystem import without_credentials
from wordsworth.pipeline.verification.recount_cells import image_cell, key_text

# Names of columns that hold images.
_IMAGES = {"image", "url", "uri", "image_url", "path", "image_path", "file", "filename", "file_name"}
_MAX_LINE_BYTES = 16 << 20  # bytes of a line; a longer one is no record
_MAX_RECORD_BYTES = 256 << 10  # bytes of a CSV record of several lines

JsonRecord = dict[str, Any]
CsvRecord = dict[str, str | None]


class Row(NamedTuple):
    """Hold what a recount knows of one record.

    Attributes:
        key: name of the row.
        size: bytes of an image that stands in the table; None where a URI names the image.
        error: "missing_image", "bad_record", "shard_truncated" or None.
    """

    key: str | None
    size: int | None
    error: str | None


class Unusable(Exception):
    """Report that the table has no column with images: there is nothing to count."""


class TableFile(io.RawIOBase):
    """Let pyarrow seek in a file, and remember whether the store failed: pyarrow blurs that with damage.

    Attributes:
        failed: whether the store failed.
    """

    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.size = size
        self.failed = False

    def read(self, size: int | None = -1) -> bytes:
        try:
            left = max(0, self.size - self.file.tell())
            wanted = left if size is None or size < 0 else min(size, left)
            data = b""
            while len(data) < wanted:
                more = self.file.read(wanted - len(data))
                if not more:
                    raise OSError(f"the store ended it {wanted - len(data)} bytes early")
                data += more
            return data
        except Exception:
            self.failed = True
            raise

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            return self.file.seek(self.size + offset)
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Leave the file open: its opener closes it."""


def table_rows(file: TableFile, name: str, image_column: str | None, key: str | None) -> Iterator[Row]:
    """Yield the rows of a table in order.

    The column with the images is no key of its own: the rows are named as without a key.

    Args:
        file: the table.
        name: its URI, whose ending says what kind of table it is.
        image_column: column with the images; None finds it.
        key: column that names the rows, or None.

    Raises:
        Unusable: there is no column with images.
        OSError: the store failed.
    """
    ending = name.lower().rpartition(".")[2]
    if ending == "parquet":
        yield from _parquet_rows(file, image_column, key)
        return
    records: Iterator[JsonRecord | CsvRecord | None]
    if ending in ("jsonl", "ndjson"):
        records = _json_records(file)
    else:
        records = _csv_records(file, "\t" if ending == "tsv" else ",")
    column = image_column
    for number, record in enumerate(records):
        if record is None:
            yield Row(str(number), None, "bad_record")
            continue
        if column is None:
            column = next((name for name in record if name in _IMAGES), None)
            if column is None:
                raise Unusable("no column says where its images are")
        yield _row(number, record, column, key)


def _row(number: int, record: JsonRecord | CsvRecord, column: str, key: str | None) -> Row:
    """Return the row of a record.

    Args:
        number: of the record in the table, from 0.
        record: its cells.
        column: the column with the images.
        key: column that names the rows, or None.
    """
    image = image_cell(record.get(column))
    if key is not None and key != column:
        name = key_text(record.get(key))
    else:
        name = key_text(None if image.name is None else without_credentials(image.name))
    return Row(str(number) if name is None else name, image.size, image.error)


# ---- lines ----------------------------------------------------------------------------------------------


def _lines(file: TableFile) -> Iterator[str | None]:
    """Yield lines with their ends; None for a line that is too long or is not UTF-8."""
    buffer = io.BufferedReader(file, 1 << 20)
    mark = b"\xef\xbb\xbf"  # before the first line
    while True:
        line = buffer.readline(_MAX_LINE_BYTES + 1)
        if not line:
            return
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


def _json_records(file: TableFile) -> Iterator[JsonRecord | None]:
    """Yield the objects of a file with one on a line; None for a line that is none. Empty lines are passed
    over."""
    for line in _lines(file):
        if line is None:
            yield None
        elif line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield value if isinstance(value, dict) else None


def _csv_records(file: TableFile, delimiter: str) -> Iterator[CsvRecord | None]:
    """Yield the records of a CSV file; None for a line that begins none, which costs one line.

    A quoted field ends before a delimiter or before the end of the line. An unquoted field holds neither.
    """
    mark = re.escape(delimiter)
    field = re.compile(rf'(?:"((?:[^"]|"")*)"|((?!")[^{mark}\r\n]*))({mark}|[\r\n]*\Z)')
    source = _lines(file)
    waiting: list[str | None] = []  # lines that no record has taken yet
    header: list[str] | None = None
    while True:
        if not waiting:
            line = next(source, "")
            if line == "":
                return
            waiting.append(line)
        if waiting[0] is not None and not waiting[0].strip("\r\n"):
            del waiting[0]
            continue
        values, num_lines = _csv_record(source, waiting, field)
        if header is None:
            if values is None:
                raise Unusable("its header cannot be read")
            header = values
        elif values is None or len(values) != len(header):
            yield None
            num_lines = 1
        else:
            yield dict(zip(header, [value or None for value in values], strict=True))
        del waiting[:num_lines]


def _csv_record(
    source: Iterator[str | None], waiting: list[str | None], field: re.Pattern[str]
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
        if num_lines > 1 and len(text.encode()) > _MAX_RECORD_BYTES:
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


# ---- Parquet --------------------------------------------------------------------------------------------


def _parquet_rows(file: TableFile, image_column: str | None, key: str | None) -> Iterator[Row]:
    """Yield the rows in batches, and where a batch fails one by one: every row counts that can be read."""
    number = 0
    for batch_size in (256, 1):
        try:
            table = pq.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True)
            column = image_column or _image_column(table.schema_arrow)
            wanted = [column, key] if key else [column]
            if not set(wanted) <= set(table.schema_arrow.names):
                raise Unusable("it lacks a column that was asked for")
            for row in _records_from(number, table, batch_size, wanted):
                yield _row(number, row, column, key)
                number += 1
            return
        except Unusable:
            raise
        except Exception:  # pyarrow raises anything for damaged bytes; the second round says how far they go
            if file.failed:
                raise
    yield Row(None, None, "shard_truncated")


def _records_from(
    first: int, table: pq.ParquetFile, batch_size: int, columns: list[str]
) -> Iterator[JsonRecord]:
    """Yield the records of a Parquet file from number `first` on."""
    for group in range(table.num_row_groups):
        num_rows = table.metadata.row_group(group).num_rows
        if first >= num_rows:
            first -= num_rows
            continue
        for batch in table.iter_batches(batch_size, [group], columns, use_threads=False):
            yield from batch.to_pylist()[first:]
            first = max(0, first - batch.num_rows)


def _image_column(schema: pa.Schema) -> str:
    """Return the column with the images: the only one with bytes, or else the first one that is named so."""
    cells = [field.name for field in schema if _has_bytes(field.type)]
    if len(cells) == 1:
        return cells[0]
    named = [name for name in schema.names if name in _IMAGES]
    if not named:
        raise Unusable("no column says where its images are")
    return named[0]


def _has_bytes(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.StructType):
        return any(field.name == "bytes" and _has_bytes(field.type) for field in kind)
    value = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    return str(value) in ("binary", "large_binary", "binary_view")
