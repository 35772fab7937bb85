"""Read tables as sources: a row is a sample, its image stands in a cell or is named there by a URI."""

from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa

from wordsworth.pipeline.sources.file_kinds import table_form
from wordsworth.pipeline.sources.json_array import json_file_records
from wordsworth.pipeline.sources.path_columns import path_columns
from wordsworth.pipeline.sources.samples import MAX_READINGS, EncodedSample, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table_cells import CellImage, as_text, cell_image, key_text, valid_text
from wordsworth.pipeline.sources.table_images import NamedImage, fetched
from wordsworth.pipeline.sources.table_records import (
    ParquetTable,
    Record,
    csv_records,
    json_records,
)
from wordsworth.pipeline.sources.text_object import TableCut, TextObject
from wordsworth.pipeline.storage.filesystem import open_exact, without_credentials

# Names of the column of images, the first one counts. Not used with --image-column, or if only one column
# holds bytes.
NAMES = ("image", "url", "uri", "image_url", "path", "image_path", "file", "filename", "file_name")
Span = tuple[int, int]  # bytes of the file that were read before a record, and including the record


def table_samples(shard: Shard, settings: ReadSettings, position: int) -> Iterator[EncodedSample]:
    """Yield the samples of a table from row `position` on.

    The damaged rest of a table is one row without a key.

    Raises:
        StoreFault: a column is missing, or can hold no image.
        OSError: the store fails.
    """
    fs, path = open_exact(shard.uri, settings.storage_options)
    return fetched(named_samples(fs, path, shard, settings, position), shard, settings)


def table_rows(shard: Shard, settings: ReadSettings) -> Iterator[NamedImage]:
    """Yield the samples of a table, each with the URI of its image. The images are not fetched."""
    fs, path = open_exact(shard.uri, settings.storage_options)
    return named_samples(fs, path, shard, settings, 0)


def named_samples(
    fs: fsspec.AbstractFileSystem, path: str, shard: Shard, settings: ReadSettings, position: int
) -> Iterator[NamedImage]:
    """Yield the samples of the table at `path`, from row `position` on, each with the URI of its image."""
    if table_form(path) == "parquet":
        return _parquet_samples(fs, path, shard, settings, position)
    return _text_samples(fs, path, shard, settings, position)


def _text_samples(
    fs: fsspec.AbstractFileSystem, path: str, shard: Shard, settings: ReadSettings, position: int
) -> Iterator[NamedImage]:
    """Yield the samples of a table of text.

    There is no way into the middle of such a file: rows before `position` are read past. A cut counts only
    when it is met twice at the same row.
    """
    met: int | None = None  # the row where the reading before was cut
    next_row = position
    for _ in range(MAX_READINGS):
        maker: _SampleMaker | None = None
        end = 0
        try:
            for row, record in enumerate(_text_records(fs, path, shard, settings)):
                span = (end, record.end)
                end = record.end
                if maker is None and record.values is not None:
                    columns = list(record.values)
                    maker = _SampleMaker(columns, _column_by_name(columns, path, settings), settings, path)
                if row < next_row:
                    continue
                next_row = row + 1
                if maker is None or record.values is None:
                    yield _bad(record, row, span), None
                else:
                    yield maker.sample(record.values, row, span)
            return
        except TableCut as cut:
            if met == next_row:
                yield _rest(str(cut), next_row, (end, shard.size)), None
                return
            met = next_row
    raise StoreFault(f"{path} breaks off somewhere else at each of {MAX_READINGS} readings")


def _text_records(
    fs: fsspec.AbstractFileSystem, path: str, shard: Shard, settings: ReadSettings
) -> Iterator[Record]:
    """Return the records of a table of text."""
    form = table_form(path)
    if form == "json":
        return json_file_records(lambda: TextObject(fs, path, shard.size), path)
    file = TextObject(fs, path, shard.size)
    if form == "jsonl":
        return json_records(file)
    delimiters = "\t,;|" if form == "tsv" else ",;\t|"
    return csv_records(file, path, delimiters, lambda columns: _names_images(columns, settings))


def _bad(record: Record, row: int, span: Span) -> EncodedSample:
    return EncodedSample(key=str(row), next=row + 1, error="bad_record", detail=record.bad, span=span)


def _parquet_samples(
    fs: fsspec.AbstractFileSystem, path: str, shard: Shard, settings: ReadSettings, position: int
) -> Iterator[NamedImage]:
    """Yield the samples of a Parquet file.

    A cut counts only when it is met twice at the same row. The readings after the first are done row by row.
    """
    met: int | None = None  # the row where the reading before was cut
    row = position
    end = 0
    for reading in range(MAX_READINGS):
        try:
            table = ParquetTable(fs, path, shard.size)
            end = table.share(row)
            column = _column_of_images(table.schema, path, settings)
            maker = _SampleMaker(table.schema.names, column, settings, path)
            for record in table.records(maker.columns, row, one_by_one=reading > 0):
                yield maker.sample(record.values or {}, row, (end, record.end))
                row += 1
                end = record.end
            return
        except TableCut as cut:
            if met == row:
                yield _rest(str(cut), row, (end, shard.size)), None
                return
            met = row
    raise StoreFault(f"{path} breaks off somewhere else at each of {MAX_READINGS} readings")


def _rest(reason: str, row: int, span: Span) -> EncodedSample:
    """Return the row for all that a damaged table lacks."""
    detail = f"{valid_text(reason)} (row {row} of the table)"
    return EncodedSample(key=None, next=row, error="shard_truncated", detail=detail, span=span)


# ---- the column of images ---------------------------------------------------------------------------------


def _column_by_name(columns: list[str], path: str, settings: ReadSettings) -> str:
    """Return the column of images, by its name alone."""
    if settings.image_column:
        _check_column(settings.image_column, columns, path, "--image-column")
        return settings.image_column
    for name in columns:
        if name in NAMES:
            return name
    raise StoreFault(
        f"{path} has no column that says where its images are ({_shown(columns)}): "
        "name it with --image-column"
    )


def _names_images(columns: list[str], settings: ReadSettings) -> bool:
    """Return whether one of the columns is the column of images."""
    return settings.image_column in columns if settings.image_column else any(c in NAMES for c in columns)


def _column_of_images(schema: pa.Schema, path: str, settings: ReadSettings) -> str:
    """Return the column of images of a Parquet file.

    It is the one that --image-column names, else the only column with bytes, else the first by NAMES.
    """
    binary = [field.name for field in schema if _content(field.type) == "bytes"]
    if len(binary) == 1 and not settings.image_column:
        return binary[0]
    column = _column_by_name(schema.names, path, settings)
    kind = schema.field(column).type
    if _content(kind) is None:
        raise StoreFault(f"{path}: column {column} is {kind}, neither bytes nor URIs: give --image-column")
    return column


def _content(kind: pa.DataType) -> str | None:
    """Return what a column holds: "bytes", "uri", or None for neither.

    A struct with bytes counts as bytes: datasets of Hugging Face have it.
    """
    kind = getattr(kind, "storage_type", kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return "bytes" if place >= 0 and _content(kind.field(place).type) == "bytes" else None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "uri"
    return "uri" if pa.types.is_null(kind) else None


def _check_column(name: str, columns: list[str], path: str, option: str) -> None:
    if name not in columns:
        raise StoreFault(f"{path} has no column {name}, which {option} names ({_shown(columns)})")


def _shown(columns: list[str]) -> str:
    return f"it has {', '.join(map(valid_text, columns[:20]))}" if columns else "it has none"


# ---- a row ------------------------------------------------------------------------------------------------


class _SampleMaker:
    """Make samples from rows.

    Attributes:
        columns: names of the columns that are needed
    """

    def __init__(self, columns: list[str], image: str, settings: ReadSettings, path: str):
        self.image = image
        self.max_bytes = settings.max_bytes
        self.key = settings.key
        in_path = path_columns(path)
        known = [*columns, *(name for name in in_path if name not in columns)]
        if self.key:
            _check_column(self.key, known, path, "--key")
        self.keep = _kept_columns(known, settings.keep)
        if table_form(path) not in ("jsonl", "json"):  # each object has columns of its own
            for name in self.keep:
                _check_column(name, known, path, "--keep")
        wanted = {image, self.key, *self.keep}
        self.columns = [name for name in columns if name in wanted]
        # What the path says of each row. A column of the file itself comes first.
        self.in_path = {name: value for name, value in in_path.items() if name in wanted}

    def sample(self, values: dict[str, Any], row: int, span: Span) -> NamedImage:
        """Return the sample of a row, and the URI of its image; None where the row holds the image itself."""
        if self.in_path:
            values = self.in_path | values
        image = cell_image(values.get(self.image), self.max_bytes)
        made = EncodedSample(
            key=self._key(values, image.uri, row),
            next=row + 1,
            size=image.size,
            data=image.data or b"",
            sidecars=[self._kept(name, values, image) for name in self.keep] if self.keep else [],
            error=image.error,
            detail=image.detail,
            span=span,
        )
        if image.data is None and image.uri is None and image.error is None:
            made.error = "missing_image"
            made.detail = f"column {valid_text(self.image)} is empty"
        return made, image.uri

    def _key(self, values: dict[str, Any], uri: str | None, row: int) -> str:
        """Return the key of a row: the cell of the key column, else the image's URI, else the number."""
        if self.key and self.key != self.image:
            key = key_text(values.get(self.key))
        else:
            key = None if uri is None else valid_text(without_credentials(uri))
        return str(row) if key is None else key

    def _kept(self, name: str, values: dict[str, Any], image: CellImage) -> str | None:
        """Return the text of a kept column; of the column of images the URI, or the size of the image."""
        if name != self.image:
            return as_text(values.get(name))
        if image.size is not None:
            return f"({image.size} bytes)"
        return None if image.uri is None else as_text(without_credentials(image.uri))


def _kept_columns(columns: list[str], keep: tuple[str, ...]) -> list[str]:
    """Return the columns to keep as the table spells their names: --keep is given in lower case."""
    folded = {name.lower(): name for name in reversed(columns)}
    return [name if name in columns else folded.get(name.lower(), name) for name in keep]
