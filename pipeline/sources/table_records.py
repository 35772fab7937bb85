"""The records of a table file, one after the other: CSV and JSONL as streams, Parquet by batches of a row group."""

import csv
import io
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from wordsworth.pipeline.sources.samples import StoreFault
from wordsworth.pipeline.storage.filesystem import ObjectStream, patiently

MAX_LINE = 16 << 20  # bytes; a longer line is no record and is never held
MAX_LINES = 256 << 10  # bytes of a CSV record that goes over more than one line
_BATCH_BYTES = 8 << 20  # of Parquet decoded at once, by the row group's own average


@dataclass(slots=True)
class Record:
    """values by column, or None and why the record is `bad`. end: bytes of the file that lie before the next record."""

    values: dict[str, Any] | None
    end: int
    bad: str | None = None


class TableCut(Exception):
    """A Parquet file breaks off; what lay before was whole and has been given."""


# ---- lines ----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Line:
    text: str
    size: int
    bad: str | None = None


class _Lines:
    """The lines of an object, decoded, with a place to put some back."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int):
        self._file = io.BufferedReader(ObjectStream(fs, path, size, 0), 1 << 20)
        self._back: deque[_Line] = deque()
        self.position = 0  # bytes before the next line
        self._first = True

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> _Line:
        line = self._back.popleft() if self._back else self._read()
        self.position += line.size
        return line

    def put_back(self, lines: list[_Line]) -> None:
        self._back.extendleft(reversed(lines))
        self.position -= sum(line.size for line in lines)

    def _read(self) -> _Line:
        data = self._file.readline(MAX_LINE + 1)
        if not data:
            raise StopIteration
        if len(data) > MAX_LINE:
            return _Line("", len(data) + self._pass(data), f"a line of more than {MAX_LINE} bytes")
        first, self._first = self._first, False
        try:
            return _Line(data.decode("utf-8-sig" if first else "utf-8"), len(data))
        except UnicodeDecodeError as error:
            return _Line("", len(data), f"not UTF-8: {error.reason} at byte {error.start} of the line")

    def _pass(self, data: bytes) -> int:
        """Reads to the end of the line; how many bytes that were."""
        passed = 0
        while data and not data.endswith(b"\n"):
            data = self._file.readline(1 << 20)
            passed += len(data)
        return passed

    def close(self) -> None:
        self._file.close()


# ---- CSV ------------------------------------------------------------------------------------------------------------------


def csv_records(fs: fsspec.AbstractFileSystem, path: str, size: int, delimiter: str) -> Iterator[Record]:
    """The records behind the header; empty lines are none. A field that is not there is None, like an empty one.

    A record that is malformed costs its first line only: reading goes on with the next, so that a stray quote, which would swallow
    all lines up to another quote, neither loses nor shifts what follows. Raises StoreFault for a header that cannot be read.
    """
    csv.field_size_limit(MAX_LINE)
    lines = _Lines(fs, path, size)
    try:
        header = _csv_record(lines, delimiter, None)
        if header is None:
            return
        if header.bad:
            raise StoreFault(f"{path}: its header cannot be read: {header.bad}")
        names = list(header.values.values())
        while (record := _csv_record(lines, delimiter, names)) is not None:
            yield record
    finally:
        lines.close()


def _csv_record(lines: _Lines, delimiter: str, names: list[str] | None) -> Record | None:
    """The next record; None at the end. Without names, for the header itself, its columns are numbered."""
    while True:
        taken, fields, bad = [], None, None
        try:
            fields = next(csv.reader(_pulled(lines, taken), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            bad = str(error)
        if not taken:
            return None
        bad = taken[0].bad or bad
        if bad or fields:  # else an empty line
            break
    if bad is None and names is not None and len(fields) != len(names):
        bad = f"{len(fields)} fields where the header has {len(names)}"
    if bad:
        lines.put_back(taken[1:])
        return Record(None, lines.position, bad)
    names = names if names is not None else range(len(fields))
    return Record({name: field or None for name, field in zip(names, fields, strict=True)}, lines.position)


def _pulled(lines: _Lines, taken: list[_Line]) -> Iterator[str]:
    """Lines for the csv module, which takes as many as an open quote needs."""
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


# ---- JSONL ----------------------------------------------------------------------------------------------------------------


def json_records(fs: fsspec.AbstractFileSystem, path: str, size: int) -> Iterator[Record]:
    """An object a line; empty lines are no records."""
    lines = _Lines(fs, path, size)
    try:
        for line in lines:
            if line.bad or line.text.strip():
                yield _json_record(line, lines.position)
    finally:
        lines.close()


def _json_record(line: _Line, end: int) -> Record:
    if line.bad:
        return Record(None, end, line.bad)
    try:
        values = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        return Record(None, end, f"no JSON: {error}")
    return (
        Record(values, end)
        if isinstance(values, dict)
        else Record(None, end, "a JSON value that is no object")
    )


# ---- Parquet --------------------------------------------------------------------------------------------------------------


class _ObjectFile(io.RawIOBase):
    """An object for pyarrow to seek in. Remembers a fault of the store, which pyarrow would blur with damage."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int):
        self._fs, self._path, self._size, self._at = fs, path, size, 0
        self.fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        if end <= self._at:
            return b""
        try:
            data = patiently(lambda: self._whole(end))
        except Exception as error:
            self.fault = error
            raise
        self._at = end
        return data

    def _whole(self, end: int) -> bytes:
        data = self._fs.cat_file(self._path, start=self._at, end=end)
        if len(data) != end - self._at:
            raise OSError(f"{self._path} gave {len(data)} of {end - self._at} bytes")
        return data


class ParquetTable:
    """A Parquet file. Everything it raises is either what the store raised, or TableCut."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int):
        self._object, self._size = _ObjectFile(fs, path, size), size
        self._file = self._sound(
            lambda: pq.ParquetFile(
                self._object, buffer_size=4 << 20, pre_buffer=False, page_checksum_verification=True
            )
        )
        self.schema: pa.Schema = self._sound(lambda: self._file.schema_arrow)

    def _sound(self, read):
        try:
            return read()
        except Exception as error:  # damaged bytes can raise anything that pyarrow knows
            if self._object.fault is not None:
                raise self._object.fault from error
            raise TableCut(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error

    def records(self, columns: list[str], position: int, one_by_one: bool = False) -> Iterator[Record]:
        """From row `position` on. one_by_one: rows before damage are given that a whole batch would take down with it."""
        begin = 0
        for group in range(self._file.metadata.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if position < begin + rows:
                yield from self._group(group, columns, max(0, position - begin), begin, one_by_one)
            begin += rows

    def _group(
        self, group: int, columns: list[str], skip: int, begin: int, one_by_one: bool
    ) -> Iterator[Record]:
        about = self._file.metadata.row_group(group)
        average = max(1, about.total_byte_size // max(1, about.num_rows))
        batch_size = 1 if one_by_one else max(1, min(1024, _BATCH_BYTES // average))
        batches = self._sound(
            lambda: self._file.iter_batches(
                batch_size, row_groups=[group], columns=columns, use_threads=False
            )
        )
        row = 0
        while (batch := self._sound(lambda: next(batches, None))) is not None:
            if row + batch.num_rows > skip:
                for values in self._sound(lambda: _plain(batch, max(0, skip - row))):  # noqa: B023 (called at once)
                    yield Record(values, self.share(begin + max(row, skip) + 1))
                    skip += 1
            row += batch.num_rows

    def share(self, rows: int) -> int:
        """Bytes of the file that so many rows stand for: what was read of which column no reader tells."""
        return self._size * rows // max(1, self._file.metadata.num_rows)


def _plain(batch: pa.RecordBatch, first: int) -> list[dict[str, Any]]:
    return batch.slice(first).to_pylist()
