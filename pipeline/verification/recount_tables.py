"""Count tables again for verify, without code of the reader of tables.

The rules for a record, for the column with the images and for the name of a row are written a second time,
from their description; recount_lines.py reads CSV and JSONL. Where the reader and the recount differ, one of
them is wrong. The images that a table names by URI are not fetched again: of such a
row the key and the order are compared, not the size.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from wordsworth.pipeline.storage.filesystem import without_credentials
from wordsworth.pipeline.verification.recount_cells import (
    cell_of,
    cells_beside,
    image_cell,
    is_row_of_numbers,
    key_text,
    leaves,
)
from wordsworth.pipeline.verification.recount_compressed import ExpandedFile
from wordsworth.pipeline.verification.recount_json import Broken, json_file_records
from wordsworth.pipeline.verification.recount_lines import (
    CsvRecord,
    JsonRecord,
    Unusable,
    csv_records,
    json_records,
)

_WITHOUT_IMAGES = 100  # records in front of the first one with a column of images
_LIST = "images"  # name of a column with lists of images, which counts where none of _IMAGES is there
_MAX_DECODED_BYTES = 64 << 20  # bytes of Parquet decoded at once
# Names of columns that hold images.
_IMAGES = {"image", "url", "uri", "image_url", "path", "image_path", "file", "filename", "file_name"}


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


def table_rows(
    file: TableFile, name: str, image_column: str | None, key: str | None, by_number: bool = False
) -> Iterator[Row]:
    """Yield the rows of a table in order.

    The column with the images is no key of its own: the rows are named as without a key.

    Args:
        file: the table.
        name: its URI, whose ending says what kind of table it is.
        image_column: column with the images; None finds it.
        key: column that names the rows, or None.
        by_number: rows of Parquet whose cells hold images are named by their numbers alone, as they were
            before the names beside the images counted.

    Raises:
        Unusable: there is no column with images.
        OSError: the store failed.
    """
    in_path = _in_path(name)
    if name.lower().endswith(".parquet"):
        yield from _parquet_rows(file, image_column, key, in_path, by_number)
        return
    wanted = {image_column} if image_column else {*_IMAGES, _LIST}
    records = _text_records(file, name.lower(), wanted)
    for number, (column, record) in enumerate(_with_column(records, image_column)):
        if isinstance(record, Broken):
            yield Row(None, None, "shard_truncated")
            return
        if record is None:
            yield Row(str(number), None, "bad_record")
        else:
            yield from _rows(number, {**in_path, **record}, column, key)


def _with_column(
    records: Iterator[JsonRecord | CsvRecord | Broken | None], column: str | None
) -> Iterator[tuple[str, JsonRecord | CsvRecord | Broken | None]]:
    """Yield the records with the column of images: that of the first record which has one, or of the columns
    up to that record."""
    waiting: list[JsonRecord | CsvRecord | Broken | None] = []
    columns: list[str] = []
    for record in records:
        waiting.append(record)
        if column is None and isinstance(record, dict):
            columns += record
            column = next((name for name in columns if name in _IMAGES), None)
            if column is None and _LIST in columns:
                column = _LIST
        if column is None and columns and len(waiting) > _WITHOUT_IMAGES:
            break
        if column is not None or not columns:
            for one in waiting:
                yield column or "", one
            waiting = []
    if waiting:
        raise Unusable("no column says where its images are")


def _text_records(
    file: TableFile, name: str, wanted: set[str]
) -> Iterator[JsonRecord | CsvRecord | Broken | None]:
    """Yield the records of a table of text; None for one that cannot be read, and Broken where the rest is
    lost."""
    parts = name.split(".")
    is_packed = parts[-1] in ("gz", "zst")
    form = parts[-2] if is_packed else parts[-1]
    opened: list[TableFile | ExpandedFile] = []

    def rewound() -> TableFile:
        file.seek(0)
        return file

    def open_text() -> TableFile | ExpandedFile:
        opened.append(ExpandedFile(rewound, name) if is_packed else rewound())
        return opened[-1]

    if form == "json":
        yield from json_file_records(open_text)
    elif form in ("jsonl", "ndjson"):
        yield from json_records(open_text())
    else:
        yield from csv_records(open_text(), "\t,;|" if form == "tsv" else ",;\t|", wanted)
    if getattr(opened[-1], "broken", False):
        yield Broken()


def _in_path(uri: str) -> CsvRecord:
    """Return the cells that the folders of a partitioned table hold, such as `label=cat`."""
    found: CsvRecord = {}
    for name, value in re.findall(r"(?<=/)([^/=]+)=([^/]*)(?=/)", uri):
        found[_unescaped(name)] = _unescaped(value) if value != "__HIVE_DEFAULT_PARTITION__" else None
    return found


def _unescaped(text: str) -> str:
    """Return text in which `%3A` and the like stand for bytes."""
    plain, *escaped = text.encode("utf-8", "surrogatepass").split(b"%")
    for part in escaped:
        is_byte = re.match(rb"[0-9A-Fa-f]{2}", part)
        plain += bytes.fromhex(part[:2].decode()) + part[2:] if is_byte else b"%" + part
    return plain.decode("utf-8", "replace")


def _rows(number: int, record: JsonRecord | CsvRecord, column: str, key: str | None) -> Iterator[Row]:
    """Yield the rows of a record: one, or one for each image of its list.

    Args:
        number: of the record in the table, from 0.
        record: its cells.
        column: the column with the images.
        key: column that names the rows, or None.
    """
    cell = cell_of(record, column)
    name = key_text(cell_of(record, key)) if key is not None and key != column else None
    entries = list(leaves(cell)) if isinstance(cell, list) else []
    if is_row_of_numbers(entries):
        cell = {"bytes": entries}
    if not isinstance(cell, list):
        image = image_cell(cell)
        if name is None and image.name is not None and key in (None, column):
            name = key_text(without_credentials(image.name))
        yield Row(str(number) if name is None else name, image.size, image.error)
        return
    images = [image_cell(entry) for entry in entries]
    names = [name] * len(images)
    if key is not None and key != column:
        names = [key_text(own) for own in cells_beside(record, key, column)]
    for at, (image, own) in enumerate(zip(images, names, strict=True)):
        yield Row(f"{number if own is None else own}#{at}", image.size, image.error)
    if not images:
        yield Row(str(number) if name is None else name, None, "missing_image")


# ---- Parquet --------------------------------------------------------------------------------------------


def _parquet_rows(
    file: TableFile, image_column: str | None, key: str | None, in_path: CsvRecord, by_number: bool
) -> Iterator[Row]:
    """Yield the rows in batches, and where a batch fails one by one: every row counts that can be read."""
    number = 0
    for batch_size in (256, 1):
        try:
            table = pq.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True)
            column = image_column or _image_column(table.schema_arrow)
            tops = {_top(name, {*table.schema_arrow.names, *in_path}) for name in (column, key or column)}
            names = _names(file, table, column, by_number) if key in (None, column) else None
            for row in _records_from(number, table, batch_size, sorted(tops)):
                found = _rows(number, {**in_path, **row}, column, key)
                if names is not None:
                    own = names.get(cell_of(row, f"{column}.path")) or str(number)
                    found = (one._replace(key=own) for one in list(found))
                yield from found
                number += 1
            return
        except Unusable:
            raise
        except Exception:  # pyarrow raises anything for damaged bytes; the second round says how far they go
            if file.failed:
                raise
    yield Row(None, None, "shard_truncated")


def _is_struct_of_images(schema: pa.Schema, column: str) -> bool:
    """Return whether the cells of a column hold images as `bytes`, with their names as `path`."""
    found: pa.DataType = pa.struct(list(schema))
    while column and isinstance(found, pa.StructType):
        fields = {field.name: field.type for field in found}
        parts = column.split(".")
        starts = [".".join(parts[:num_parts]) for num_parts in range(len(parts), 0, -1)]
        name = next((start for start in starts if start in fields), None)
        if name is None:
            return False
        found = fields[name]
        column = column[len(name) + 1 :]
    if not isinstance(found, pa.StructType):
        return False
    held = {field.name: str(field.type).removeprefix("dictionary<values=") for field in found}
    if any("<" in held.get(name, "<") for name in ("bytes", "path")):
        return False
    return held["bytes"].startswith(("binary", "large_binary")) and "string" in held["path"]


def _names(
    file: TableFile, table: pq.ParquetFile, column: str, by_number: bool
) -> dict[str | None, str | None] | None:
    """Return the keys by the names that stand beside images, of names that only one row has.

    None where the cells are no structs of images and names. Where a name cannot be read, none counts.
    """
    if not _is_struct_of_images(table.schema_arrow, column):
        return None
    if by_number:
        return {}
    try:
        counts = Counter(
            cell_of(row, f"{column}.path")
            for batch in table.iter_batches(1024, columns=[f"{column}.path"], use_threads=False)
            for row in batch.to_pylist()
        )
    except Exception:
        if file.failed:
            raise
        return {}
    single = [name for name, count in counts.items() if name and count == 1]
    return {name: key_text(without_credentials(name)) for name in single}


def _top(name: str, columns: set[str]) -> str:
    """Return the column that a name means, or that holds the field that a dotted name means."""
    while name not in columns:
        if "." not in name:
            raise Unusable("it lacks a column that was asked for")
        name = name.rpartition(".")[0]
    return name


def _records_from(
    first: int, table: pq.ParquetFile, batch_size: int, columns: list[str]
) -> Iterator[JsonRecord]:
    """Yield the records of a Parquet file from number `first` on."""
    for group in range(table.num_row_groups):
        num_rows = table.metadata.row_group(group).num_rows
        if first >= num_rows:
            first -= num_rows
            continue
        rows_at_once = min(batch_size, max(1, _MAX_DECODED_BYTES // _largest_row(table, group)))
        for batch in table.iter_batches(rows_at_once, [group], columns, use_threads=False):
            yield from batch.to_pylist()[first:]
            first = max(0, first - batch.num_rows)


def _largest_row(table: pq.ParquetFile, group: int) -> int:
    """Return the most bytes of a row with lists of average length.

    No value is larger than its column in the file, however often it counts.
    """
    about = table.metadata.row_group(group)
    most = 1
    for at in range(about.num_columns):
        column = about.column(at)
        values_per_row = max(1, round(column.num_values / max(1, about.num_rows)))
        most = max(most, column.total_uncompressed_size * values_per_row)
    return most


def _image_column(schema: pa.Schema) -> str:
    """Return the column with the images: the only one with bytes, or else the first one that is named so."""
    cells = [field.name for field in schema if _has_bytes(field.type)]
    if len(cells) == 1:
        return cells[0]
    return _named(schema.names)


def _named(columns: list[str]) -> str:
    """Return the first column that has the name of a column with images."""
    named = [name for name in columns if name in _IMAGES]
    if not named and _LIST not in columns:
        raise Unusable("no column says where its images are")
    return named[0] if named else _LIST


def _has_bytes(kind: pa.DataType) -> bool:
    if "list" in type(kind).__name__.lower():
        return _has_bytes(kind.value_type)
    if isinstance(kind, pa.StructType):
        return any(field.name == "bytes" and _has_bytes(field.type) for field in kind)
    value = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    return str(value) in ("binary", "large_binary", "binary_view")
