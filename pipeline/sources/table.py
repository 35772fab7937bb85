"""Read tables as sources: a row is a sample, its image stands in a cell or is named there by a URI."""

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import fsspec

from wordsworth.pipeline.sources.class_labels import ClassLabels, class_labels, with_names
from wordsworth.pipeline.sources.file_kinds import table_form
from wordsworth.pipeline.sources.image_column import (
    JSON_FORMS,
    field_by_name,
    field_of_images,
    kept_field,
    known_field,
    names_images,
    overlap,
    refuse_repeated,
)
from wordsworth.pipeline.sources.image_lists import flat, values_beside
from wordsworth.pipeline.sources.image_names import ImageNames, names_beside_bytes
from wordsworth.pipeline.sources.json_array import json_file_records
from wordsworth.pipeline.sources.nested_fields import Field, Tree, column_to_read, tree_of
from wordsworth.pipeline.sources.path_columns import path_columns
from wordsworth.pipeline.sources.picks import picked
from wordsworth.pipeline.sources.samples import MAX_READINGS, EncodedSample, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table_cells import (
    URI_FIELDS,
    CellImage,
    as_text,
    cell_image,
    is_list_of_numbers,
    key_text,
    valid_text,
    without_images,
)
from wordsworth.pipeline.sources.table_images import NamedImage, fetched
from wordsworth.pipeline.sources.table_records import (
    ParquetTable,
    Record,
    csv_records,
    json_records,
)
from wordsworth.pipeline.sources.text_object import TableCut, TextObject
from wordsworth.pipeline.storage.filesystem import open_exact, without_credentials

RECORDS_JUDGED = 100  # records of JSON in which a field is sought that the first one lacks
MAX_FIELDS_NAMED = 8  # fields of an object that a detail names
Span = tuple[int, int]  # bytes of the file that were read before a record, and including the record


def table_samples(
    shard: Shard, settings: ReadSettings, position: int, in_group: int = 0, index: int = 0
) -> Iterator[EncodedSample]:
    """Yield the samples of a table from row `position` on, without the first `in_group` samples of that row.

    Before the first of them come `index` samples of those that count.

    The damaged rest of a table is one row without a key.

    Raises:
        StoreFault: a column is missing, or can hold no image.
        OSError: the store fails.
    """
    fs, path = open_exact(shard.uri, settings.storage_options)
    samples = named_samples(fs, path, shard, settings, Place(position, in_group))
    return fetched(picked(samples, shard.picks, index), shard, settings, lambda: _uris(shard, settings))


def table_rows(shard: Shard, settings: ReadSettings) -> Iterator[NamedImage]:
    """Yield the samples of a table, each with the URI of its image. The images are not fetched."""
    fs, path = open_exact(shard.uri, settings.storage_options)
    return named_samples(fs, path, shard, settings, Place(0))


def _uris(shard: Shard, settings: ReadSettings) -> Iterator[str]:
    """Yield the URIs of a table's images, from its first row on."""
    for _, uri in table_rows(shard, settings):
        if uri is not None:
            yield uri


class Place(NamedTuple):
    """Say where reading begins.

    Attributes:
        row: number of the first row
        in_group: samples of that row that were given before; a row with a list of images has several
    """

    row: int
    in_group: int = 0


def named_samples(
    fs: fsspec.AbstractFileSystem, path: str, shard: Shard, settings: ReadSettings, place: Place
) -> Iterator[NamedImage]:
    """Yield the samples of the table at `path`, from a place on, each with the URI of its image."""
    if table_form(path) == "parquet":
        return _parquet_samples(fs, path, shard, settings, place)
    return _text_samples(fs, path, shard, settings, place)


def _text_samples(
    fs: fsspec.AbstractFileSystem, path: str, shard: Shard, settings: ReadSettings, place: Place
) -> Iterator[NamedImage]:
    """Yield the samples of a table of text.

    There is no way into the middle of such a file: rows before the place are read past. A cut counts only
    when it is met twice at the same row.
    """
    met: int | None = None  # the row where the reading before was cut
    next_row, given = place
    for _ in range(MAX_READINGS):
        end = 0
        try:
            records = _text_records(fs, path, shard, settings)
            for row, (record, maker) in enumerate(_with_makers(records, path, settings)):
                span = (end, record.end)
                end = record.end
                if row < next_row:
                    continue
                next_row = row + 1
                if maker is None or record.values is None:
                    yield _bad(record, row, span), None
                else:
                    yield from islice(maker.samples(record.values, row, span), given, None)
                given = 0
            return
        except TableCut as cut:
            if met == next_row:
                yield _rest(str(cut), next_row, (end, shard.size)), None
                return
            met = next_row
    raise StoreFault(f"{path} breaks off somewhere else at each of {MAX_READINGS} readings")


def _with_makers(
    records: Iterator[Record], path: str, settings: ReadSettings
) -> Iterator[tuple[Record, "_SampleMaker | None"]]:
    """Yield records, each with what makes its samples; None in front of the first that can be read."""
    maker: _SampleMaker | None = None
    for record in records:
        first = [record]
        if maker is None and record.values is not None:
            maker = _maker_of(record.values, first, records, path, settings)
        for taken in first:
            yield taken, maker


def _maker_of(
    values: dict[str, Any], taken: list[Record], more: Iterator[Record], path: str, settings: ReadSettings
) -> "_SampleMaker":
    """Return what makes samples of a table of text, judged by the columns of the first record.

    JSON may leave out fields that are empty. Where the first record lacks one, the next records are judged
    with it, and are added to `taken`.
    """
    tree: Tree = dict.fromkeys(values)
    try:
        return _SampleMaker(tree, field_by_name(tree, path, settings), settings, path)
    except StoreFault:
        if table_form(path) not in JSON_FORMS:
            raise
        with contextlib.suppress(TableCut):
            for record in islice(more, RECORDS_JUDGED):
                taken.append(record)
                tree |= dict.fromkeys(record.values or ())
                with contextlib.suppress(StoreFault):
                    return _SampleMaker(tree, field_by_name(tree, path, settings), settings, path)
        raise


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

    def is_header(columns: list[str]) -> bool:
        if not names_images(columns, settings):
            return False
        refuse_repeated(columns, field_by_name(dict.fromkeys(columns), path, settings).name, path, settings)
        return True

    return csv_records(file, path, delimiters, is_header)


def _bad(record: Record, row: int, span: Span) -> EncodedSample:
    return EncodedSample(key=str(row), next=row + 1, error="bad_record", detail=record.bad, span=span)


def _parquet_samples(
    fs: fsspec.AbstractFileSystem, path: str, shard: Shard, settings: ReadSettings, place: Place
) -> Iterator[NamedImage]:
    """Yield the samples of a Parquet file.

    A cut counts only when it is met twice at the same row. The readings after the first are done row by row.
    """
    met: int | None = None  # the row where the reading before was cut
    row, given = place
    end = 0
    for reading in range(MAX_READINGS):
        try:
            table = ParquetTable(fs, path, shard.size)
            end = table.share(row)
            image = field_of_images(table.schema, path, settings)
            maker = _SampleMaker(tree_of(table.schema), image, settings, path)
            if maker.is_unnamed and settings.keys_by_path:
                maker.names = names_beside_bytes(table, image)
            if settings.class_names:
                maker.class_labels = class_labels(table.schema)
            columns = [column_to_read(table.schema, field) for field in maker.paths]
            for record in table.records(columns, row, one_by_one=reading > 0):
                samples = maker.samples(record.values or {}, row, (end, record.end))
                yield from islice(samples, given, None) if given else samples
                given = 0
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


# ---- a row ------------------------------------------------------------------------------------------------


class _SampleMaker:
    """Make samples from rows.

    Attributes:
        paths: paths of the columns and fields of the file that are needed
        is_unnamed: whether no column was asked for that names the rows
        names: names that stand beside the images, which become keys
        class_labels: names of the classes that stand in place of numbers, by path
    """

    def __init__(self, tree: Tree, image: Field, settings: ReadSettings, path: str):
        self.image = image
        self.class_labels: ClassLabels = {}
        self.max_bytes = settings.max_bytes
        in_path = path_columns(path)
        known = tree | {name: None for name in in_path if name not in tree}
        self.key = known_field(settings.key, known, path, "--key") if settings.key else None
        self.is_unnamed = self.key is None or self.key == image
        self.names: ImageNames | None = None
        self.keep = [kept_field(name, known, path) for name in settings.keep]
        self.of_image = {field.name for field in self.keep if overlap(field, image)}
        wanted = [field.path for field in (image, self.key, *self.keep) if field and field.path]
        self.paths = [path for path in dict.fromkeys(wanted) if path[0] in tree]
        # What the path says of each row. A column of the file itself comes first.
        self.in_path = {path[0]: in_path[path[0]] for path in wanted if path[0] not in tree}

    def samples(self, values: dict[str, Any], row: int, span: Span) -> Iterable[NamedImage]:
        """Return the samples of a row, each with the URI of its image; None where the row holds the image.

        A list gives a sample for each of its images, and an empty list one without an image.
        """
        if self.in_path:
            values = self.in_path | values
        cell = self.image.of(values)
        kept = [field.of(values) for field in self.keep] if self.keep else []
        beside = _Beside(self._own_key(values), kept)
        cells = list(flat(cell)) if isinstance(cell, list) else None
        if cells and not is_list_of_numbers(cells):
            return self._samples_of_list(cells, self._divided(values, beside, len(cells)), row, span)
        return (self._sample(None if cells == [] else cells or cell, beside, row, span),)

    def _samples_of_list(
        self, cells: list[Any], divided: Iterable["_Beside"], row: int, span: Span
    ) -> Iterator[NamedImage]:
        for number, beside in enumerate(divided):
            made, uri = self._sample(cells[number], beside, row, span)
            if number + 1 < len(cells):
                made.next = row
                made.next_in_group = number + 1
                made.span = (span[0], span[0])  # the last one counts the bytes of the row
            yield made, uri

    def _divided(self, values: dict[str, Any], beside: "_Beside", num_images: int) -> Iterator["_Beside"]:
        """Yield what stands beside each image of a row's list."""
        keys = [beside.key] * num_images
        if self.key and not self.is_unnamed:
            keys = [key_text(value) for value in values_beside(values, self.image, self.key)]
        columns = [list(values_beside(values, self.image, field)) for field in self.keep]
        for number, key in enumerate(keys):
            yield _Beside(key, [column[number] for column in columns], number)

    def _sample(self, cell: Any, beside: "_Beside", row: int, span: Span) -> NamedImage:
        image = cell_image(cell, self.max_bytes)
        made = EncodedSample(
            key=self._key(image.uri, beside, row),
            next=row + 1,
            size=image.size,
            data=image.data or b"",
            sidecars=self._all_kept(beside, image) if self.keep else [],
            error=image.error,
            detail=image.detail,
            span=span,
        )
        if image.data is None and image.uri is None and image.error is None:
            made.error = "missing_image"
            made.detail = f"column {valid_text(self.image.name)} {_why_missing(cell)}"
        return made, image.uri

    def _all_kept(self, beside: "_Beside", image: CellImage) -> list[str | None]:
        columns = zip(self.keep, beside.kept, strict=True)
        return [self._kept(field, value, image) for field, value in columns]

    def _own_key(self, values: dict[str, Any]) -> str | None:
        """Return the key in the key column, or beside the image; None for none."""
        if self.key and not self.is_unnamed:
            return key_text(self.key.of(values))
        return self.names.of(values) if self.names else None

    def _key(self, uri: str | None, beside: "_Beside", row: int) -> str:
        """Return the key of a sample: its own, else the image's name, else the number of the row.

        An image in a list has its place there behind that, and no name of its own.
        """
        if beside.number is not None:
            return f"{row if beside.key is None else beside.key}#{beside.number}"
        if beside.key is not None:
            return beside.key
        if uri is not None and self.is_unnamed and self.names is None:
            return valid_text(without_credentials(uri))
        return str(row)

    def _kept(self, field: Field, value: Any, image: CellImage) -> str | None:
        """Return the text of a kept column; of the column of images the URI, or the size of the image."""
        labels = self.class_labels.get(field.path or ())
        if labels:
            return as_text(with_names(value, labels))
        if field.name not in self.of_image:
            return as_text(value)
        if field.name != self.image.name:
            return as_text(without_images(value, self.max_bytes))
        if image.size is not None:
            return f"({image.size} bytes)"
        return None if image.uri is None else as_text(without_credentials(image.uri))


def _why_missing(cell: Any) -> str:
    """Return what to say of a cell that holds no image and names none."""
    if not isinstance(cell, dict) or any(name in cell for name in ("bytes", *URI_FIELDS)):
        return "is empty"
    fields = ", ".join(map(valid_text, list(cell)[:MAX_FIELDS_NAMED])) or "nothing"
    return f"holds neither bytes nor {', '.join(URI_FIELDS)} but {fields}: name a field, as COLUMN.FIELD"


class _Beside(NamedTuple):
    """Hold what stands beside one image.

    Attributes:
        key: the key, None for none
        kept: values of the kept columns
        number: place of the image in the list of its row, None where there is no list
    """

    key: str | None
    kept: list[Any]
    number: int | None = None
