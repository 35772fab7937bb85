"""Tables as sources: a row is a sample, its image stands in a cell or is named there by a URI."""

import json
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa

from wordsworth.pipeline.sources.file_kinds import table_form
from wordsworth.pipeline.sources.samples import MAX_READINGS, EncodedSample, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table_images import fetched
from wordsworth.pipeline.sources.table_records import (
    ParquetTable,
    Record,
    TableCut,
    csv_records,
    json_records,
)
from wordsworth.pipeline.storage.filesystem import open_filesystem, public

# The column of the images where --image-column does not say: the only one with bytes, else the first of these names.
NAMES = ("image", "url", "uri", "image_url", "path", "image_path", "file", "filename", "file_name")


def table_samples(shard: Shard, settings: ReadSettings, position: int) -> Iterator[EncodedSample]:
    """The samples of a table from row `position` on; what is damaged of a Parquet file is one row without a key.

    Raises OSError and StoreFault for a store that fails, for a missing column, and for one that can hold no image.
    """
    fs, path = open_filesystem(shard.uri, settings.storage_options)
    return fetched(_samples(fs, path, shard, settings, position), shard, settings)


def table_rows(shard: Shard, settings: ReadSettings) -> Iterator["Found"]:
    """The samples of a table without what they only name: each with the URI of the image that it lacks."""
    fs, path = open_filesystem(shard.uri, settings.storage_options)
    return _samples(fs, path, shard, settings, 0)


Found = tuple[EncodedSample, str | None]  # a sample, and the URI of the image that it still lacks


def _samples(
    fs: fsspec.AbstractFileSystem, path: str, shard: Shard, settings: ReadSettings, position: int
) -> Iterator[Found]:
    if table_form(path) == "parquet":
        yield from _parquet_samples(fs, path, shard, settings, position)
    else:
        yield from _line_samples(_line_records(fs, path, shard.size), path, settings, position)


def _line_records(fs: fsspec.AbstractFileSystem, path: str, size: int) -> Iterator[Record]:
    form = table_form(path)
    return (
        json_records(fs, path, size)
        if form == "jsonl"
        else csv_records(fs, path, size, "\t" if form == "tsv" else ",")
    )


def _line_samples(
    records: Iterator[Record], path: str, settings: ReadSettings, position: int
) -> Iterator[Found]:
    """There is no way into the middle of such a file: what lies before `position` is read past."""
    maker: _Maker | None = None
    begin = 0
    for row, record in enumerate(records):
        if maker is None and record.values is not None:
            maker = _Maker(list(record.values), _named(list(record.values), path, settings), settings, path)
        if row >= position:
            span = (begin, record.end)
            yield (
                maker.sample(record.values, row, span)
                if record.values is not None
                else (_bad(record, row, span), None)
            )
        begin = record.end


def _bad(record: Record, row: int, span: tuple[int, int]) -> EncodedSample:
    return EncodedSample(str(row), None, None, row + 1, error="bad_record", detail=record.bad, span=span)


def _parquet_samples(
    fs: fsspec.AbstractFileSystem, path: str, shard: Shard, settings: ReadSettings, position: int
) -> Iterator[Found]:
    """A cut counts only when it is met twice at the same row; the readings after the first go row by row."""
    met, row, end = None, position, 0
    for reading in range(MAX_READINGS):
        try:
            table = ParquetTable(fs, path, shard.size)
            end = table.share(row)
            column = _held(table.schema, path, settings)
            maker = _Maker(table.schema.names, column, settings, path)
            for record in table.records(maker.columns, row, one_by_one=reading > 0):
                yield maker.sample(record.values, row, (end, record.end))
                row, end = row + 1, record.end
            return
        except TableCut as cut:
            if met == row:
                yield _cut(str(cut), row, (end, shard.size)), None
                return
            met = row
    raise StoreFault(f"{path} breaks off somewhere else at each of {MAX_READINGS} readings")


def _cut(reason: str, row: int, span: tuple[int, int]) -> EncodedSample:
    return EncodedSample(
        None,
        None,
        None,
        row,
        error="shard_truncated",
        detail=f"{_text(reason)} (row {row} of the table)",
        span=span,
    )


# ---- which column ---------------------------------------------------------------------------------------------------------


def _named(columns: list[str], path: str, settings: ReadSettings) -> str:
    """The column of images by its name alone."""
    if settings.image_column:
        return _exact(settings.image_column, columns, path, "--image-column")
    column = next((name for name in columns if name in NAMES), None)
    if column is None:
        raise StoreFault(
            f"{path} has no column that says where its images are ({_listed(columns)}): name it with --image-column"
        )
    return column


def _held(schema: pa.Schema, path: str, settings: ReadSettings) -> str:
    """The column of images of a Parquet file: the one that was named, the only one with bytes, or one by its name."""
    binary = [field.name for field in schema if _holds(field.type) == "bytes"]
    column = (
        binary[0] if len(binary) == 1 and not settings.image_column else _named(schema.names, path, settings)
    )
    if _holds(schema.field(column).type) is None:
        raise StoreFault(
            f"{path}: column {column} is {schema.field(column).type}, neither bytes nor URIs: give --image-column"
        )
    return column


def _holds(kind: pa.DataType) -> str | None:
    """ "bytes" (a struct with them too, as Hugging Face datasets have it), "uri", or None for what is neither."""
    kind = getattr(kind, "storage_type", kind)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return "bytes" if place >= 0 and _holds(kind.field(place).type) == "bytes" else None
    if any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)):
        return "bytes"
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return "uri" if any(test(kind) for test in texts) or pa.types.is_null(kind) else None


def _exact(name: str, columns: list[str], path: str, option: str) -> str:
    if name not in columns:
        raise StoreFault(f"{path} has no column {name}, which {option} names ({_listed(columns)})")
    return name


def _listed(columns: list[str]) -> str:
    return f"it has {', '.join(map(_text, columns[:20]))}" if columns else "it has none"


# ---- a row ----------------------------------------------------------------------------------------------------------------


class _Maker:
    """Makes samples of rows. columns: those that are needed."""

    def __init__(self, columns: list[str], image: str, settings: ReadSettings, path: str):
        self.image, self.limit, self.path = image, settings.max_bytes, path
        self.key = settings.key
        if self.key:
            _exact(self.key, columns, path, "--key")
        folded = {name.lower(): name for name in reversed(columns)}  # --keep is told in lower case
        self.keep = [name if name in columns else folded.get(name.lower(), name) for name in settings.keep]
        for name in (
            self.keep if table_form(path) != "jsonl" else ()
        ):  # there every line has columns of its own
            _exact(name, columns, path, "--keep")
        wanted = [image, *([self.key] if self.key else []), *self.keep]
        self.columns = [name for name in columns if name in wanted]

    def sample(self, values: dict[str, Any], row: int, span: tuple[int, int]) -> Found:
        data, uri = _image(values.get(self.image))
        key = values.get(self.key) if self.key else public(uri) if uri is not None else None
        kept = [_told(values.get(name)) for name in self.keep]
        made = EncodedSample(
            str(row) if key is None else _told(key), None, None, row + 1, sidecars=kept, span=span
        )
        if data is not None:
            made.size = len(data)
            if made.size > self.limit:
                made.error, made.detail = "too_many_bytes", f"{made.size} bytes"
            else:
                made.data = data
        elif uri is None:
            made.error, made.detail = "missing_image", f"column {_text(self.image)} is empty"
        return made, uri


def _image(cell: Any) -> tuple[bytes | None, str | None]:
    """The bytes or the URI of a cell; neither where it is empty. What is no text in a JSON is taken as it is written."""
    if isinstance(cell, dict):
        data = cell.get("bytes")
        return (data, None) if isinstance(data, bytes) else _image(cell.get("path"))
    if isinstance(cell, bytes):
        return cell, None
    return None, None if cell is None or cell == "" else cell if isinstance(cell, str) else json.dumps(cell)


def _told(value: Any) -> str | None:
    """Text as it is, other types as JSON."""
    if value is None or isinstance(value, str):
        return None if value is None else _text(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return _text(json.dumps(value, ensure_ascii=False, default=_other))


def _other(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _text(text: str) -> str:
    """JSON can say half a surrogate pair, which fits no Arrow string."""
    return text.encode("utf-8", "backslashreplace").decode()
