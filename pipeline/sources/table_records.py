"""Read the records of a table file in order: CSV and JSONL as streams, Parquet by batches of a row group."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from wordsworth.pipeline.sources.samples import UnfitTable
from wordsworth.pipeline.sources.text_lines import MAX_LINE, Line, Lines
from wordsworth.pipeline.sources.text_object import TableCut, TextObject
from wordsworth.pipeline.storage.seekable import SeekableObject

MAX_LINES = 256 << 10  # bytes of a CSV record that takes more than one line
MAX_BATCH_ROWS = 1024  # rows of Parquet decoded at once
_BATCH_BYTES = 8 << 20  # bytes of Parquet decoded at once, by the average of the row group
_REPEATED_BYTES = 16 << 20  # bytes decoded at once, if every row repeats the largest value that there can be
_Result = TypeVar("_Result")


@dataclass(slots=True)
class Record:
    """Hold one record.

    Attributes:
        values: values by column; None for a record that cannot be read
        end: bytes of the file that lie before the next record
        bad: why the record cannot be read, in words
    """

    values: dict[str, Any] | None
    end: int
    bad: str | None = None


# ---- CSV --------------------------------------------------------------------------------------------------


def csv_records(
    file: TextObject, path: str, delimiters: str, is_header: Callable[[list[str]], bool]
) -> Iterator[Record]:
    """Yield the records behind the header of a CSV file.

    Empty lines are no records; a missing field is None, like an empty one.

    A malformed record costs its first line only: reading goes on with the second line. A stray quote would
    swallow all lines up to another quote; this way it neither loses nor shifts what follows.

    Args:
        file: the table, at its first byte.
        path: its path, for messages.
        delimiters: characters that may stand between two fields; the first whose header is usable counts.
        is_header: tells whether the fields of a header are usable.

    Raises:
        UnfitTable: the header cannot be read.
        TableCut: compressed data end or break.
        OSError: the store fails.
    """
    csv.field_size_limit(MAX_LINE)
    with Lines(file) as lines:
        delimiter = _delimiter(lines, delimiters, is_header)
        header = _csv_fields(lines, delimiter)
        if header is None:
            lines.check_whole()
            return
        if header.bad:
            raise UnfitTable(f"{path}: its header cannot be read: {header.bad}")
        while (found := _csv_fields(lines, delimiter)) is not None:
            bad = found.bad
            if bad is None and len(found.fields) != len(header.fields):
                bad = f"{len(found.fields)} fields where the header has {len(header.fields)}"
            if bad:
                lines.put_back(found.lines[1:])
                yield Record(None, lines.end(), bad)
                continue
            pairs = zip(header.fields, found.fields, strict=True)
            yield Record({name: field or None for name, field in pairs}, lines.end())
        lines.check_whole()


def _delimiter(lines: Lines, delimiters: str, is_header: Callable[[list[str]], bool]) -> str:
    """Return the first delimiter whose header is usable; where none is, the one that gives most columns."""
    most = 0
    best = delimiters[0]
    for delimiter in delimiters:
        header = _csv_fields(lines, delimiter)
        if header is None:
            break
        lines.put_back(header.lines)
        if header.bad:
            continue
        if is_header(header.fields):
            return delimiter
        if len(header.fields) > most:
            most = len(header.fields)
            best = delimiter
    return best


@dataclass(slots=True)
class _CsvFields:
    """Hold the lines of a record, its fields, and why it cannot be read, in words."""

    lines: list[Line]
    fields: list[str]
    bad: str | None


def _csv_fields(lines: Lines, delimiter: str) -> _CsvFields | None:
    """Return the fields of the next record; None at the end."""
    while True:
        taken: list[Line] = []
        fields: list[str] | None = None
        bad: str | None = None
        try:
            fields = next(csv.reader(_pull(lines, taken), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            bad = str(error)
        if not taken:
            return None
        bad = taken[0].bad or bad
        if bad or fields:  # else an empty line
            return _CsvFields(taken, fields or [], bad)


def _pull(lines: Lines, taken: list[Line]) -> Iterator[str]:
    """Yield lines to the csv module, which takes as many as an open quote needs, and note them in `taken`."""
    size = 0
    for line in lines:
        if taken and (line.bad or size + line.size > MAX_LINES):
            lines.put_back([line])
            return
        taken.append(line)
        size += line.size
        if line.bad:
            return
        yield line.text


# ---- JSONL ------------------------------------------------------------------------------------------------


def json_records(file: TextObject) -> Iterator[Record]:
    """Yield the records of a JSONL file, an object a line. Empty lines are no records.

    Raises:
        TableCut: compressed data end or break.
        OSError: the store fails.
    """
    with Lines(file) as lines:
        for line in lines:
            if line.bad or line.text.strip():
                yield _json_record(line, lines.end())
        lines.check_whole()


def _json_record(line: Line, end: int) -> Record:
    if line.bad:
        return Record(None, end, line.bad)
    try:
        values = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        return Record(None, end, f"no JSON: {error}")
    if not isinstance(values, dict):
        return Record(None, end, "a JSON value that is no object")
    return Record(values, end)


# ---- Parquet ----------------------------------------------------------------------------------------------


class ParquetTable:
    """Read a Parquet file. Everything it raises is either an error of the store, or TableCut.

    Attributes:
        schema: the columns
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int):
        self._object = SeekableObject(fs, path, size)
        self._size = size
        self._file = self._sound(
            lambda: pq.ParquetFile(
                self._object, buffer_size=4 << 20, pre_buffer=False, page_checksum_verification=True
            )
        )
        self.schema: pa.Schema = self._sound(lambda: self._file.schema_arrow)

    def _sound(self, read: Callable[[], _Result]) -> _Result:
        """Return what `read` gives. Raises what the store raised, else TableCut."""
        try:
            return read()
        except Exception as error:  # damaged bytes can raise anything that pyarrow knows
            if self._object.fault is not None:
                raise self._object.fault from error
            raise TableCut(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error

    def records(self, columns: list[str], position: int, one_by_one: bool = False) -> Iterator[Record]:
        """Yield the records from row `position` on.

        Args:
            columns: names of the columns to read
            position: number of the first row
            one_by_one: read row by row, and so give the rows before damage that would be lost with their
                batch
        """
        begin = 0
        for group in range(self._file.metadata.num_row_groups):
            num_rows = self._file.metadata.row_group(group).num_rows
            if position < begin + num_rows:
                batch_size = 1 if one_by_one else self._batch_size(group, columns)
                yield from self._group(group, columns, batch_size, begin, position)
            begin += num_rows

    def group_begins(self) -> list[int]:
        """Return the number of the first row of each row group."""
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return list(accumulate(sizes[:-1], initial=0))

    def _batch_size(self, group: int, columns: list[str]) -> int:
        """Return the rows of a row group to decode at once."""
        metadata = self._file.metadata.row_group(group)
        num_rows = max(1, metadata.num_rows)
        num_bytes = 0  # of the columns, encoded
        repeated = 0  # bytes of one row with average lists, at most, where a value is stored once for many
        for number in range(metadata.num_columns):
            chunk = metadata.column(number)
            if any(
                chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.")
                for name in columns
            ):
                num_bytes += chunk.total_uncompressed_size
                values_per_row = -(-chunk.num_values // num_rows)  # more than one in lists
                repeated += _largest_repeated_value(chunk) * values_per_row
        average = max(1, num_bytes // num_rows)
        rows = min(MAX_BATCH_ROWS, _BATCH_BYTES // average, _REPEATED_BYTES // max(1, repeated))
        return max(1, rows)

    def _group(
        self, group: int, columns: list[str], batch_size: int, begin: int, position: int
    ) -> Iterator[Record]:
        """Yield the records of a row group, whose first row is `begin`, from row `position` on."""
        batches = self._sound(
            lambda: self._file.iter_batches(
                batch_size, row_groups=[group], columns=columns, use_threads=False
            )
        )
        while (batch := self._sound(lambda: next(batches, None))) is not None:
            first = max(begin, position)
            end = begin + batch.num_rows
            if first < end:
                rows = self._sound(batch.slice(first - begin).to_pylist)
                for number, values in enumerate(rows, first + 1):
                    yield Record(values, self.share(number))
            begin = end

    def is_empty(self, column: str) -> bool:
        """Return whether the file says that a column holds nothing but nulls."""
        metadata = self._file.metadata
        for group in range(metadata.num_row_groups):
            chunks = [metadata.row_group(group).column(at) for at in range(metadata.num_columns)]
            for chunk in chunks:
                if chunk.path_in_schema != column:
                    continue
                if not chunk.is_stats_set or chunk.statistics.null_count != chunk.num_values:
                    return False
        return True

    def share(self, rows: int) -> int:
        """Return the bytes that the first `rows` rows stand for, in proportion to all rows."""
        return self._size * rows // max(1, self._file.metadata.num_rows)


def _largest_repeated_value(chunk: pq.ColumnChunkMetaData) -> int:
    """Return the bytes of the largest value, at most, that a column chunk holds once for many rows.

    A dictionary is stored once, and so is the common beginning of values with DELTA_BYTE_ARRAY. The average
    of the encoded bytes says nothing about such values.
    """
    if not any("DICTIONARY" in encoding or encoding == "DELTA_BYTE_ARRAY" for encoding in chunk.encodings):
        return 0
    if "DELTA_BYTE_ARRAY" in chunk.encodings or not chunk.has_dictionary_page:
        return chunk.total_uncompressed_size
    dictionary = chunk.data_page_offset - chunk.dictionary_page_offset  # bytes, compressed
    data_pages = chunk.total_compressed_size - dictionary  # a page takes no less once it is decompressed
    return max(dictionary, chunk.total_uncompressed_size - data_pages)
