"""Find what stands beside loose images: a row of a folder's metadata file, or a file of the same name."""

import threading
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

import fsspec

from wordsworth.pipeline.sources.file_kinds import base_name, extension_of
from wordsworth.pipeline.sources.image_column import kept_field
from wordsworth.pipeline.sources.lost_objects import loss_of
from wordsworth.pipeline.sources.nested_fields import Field, Tree, column_to_read, find_field, tree_of
from wordsworth.pipeline.sources.samples import ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import NAMED, ListedImage, Shard
from wordsworth.pipeline.sources.table_cells import as_text
from wordsworth.pipeline.sources.table_records import ParquetTable, Record, csv_records, json_records
from wordsworth.pipeline.sources.text_object import TableCut, TextObject
from wordsworth.pipeline.storage.filesystem import join, version_of
from wordsworth.pipeline.storage.objects import object_bytes, object_info
from wordsworth.pipeline.storage.streams import with_retries

# Names of the file about the images of a folder, as Hugging Face's ImageFolder has them; the first counts.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"  # its column with the path of each image, from its own folder on
WHOLE_BYTES = 16 << 20  # a metadata file of this size is held by the process that reads pages of its images
FILES_HELD = 2  # such files in one process
Rows = dict[str, list[str | None]]  # texts of the kept fields, by the path of the image


class ImageSidecars:
    """Find the kept fields of the images of one page.

    A field is a column of the metadata file in the image's folder, or in the next folder above that has one,
    up to the prefix of the page. Where that says nothing, the field is a file of the image's name: of x.jpg
    the field txt is x.txt.

    Memory holds metadata for the images of the page, and whole metadata files up to WHOLE_BYTES. A larger one
    is read once for each page.

    Threads may ask for several images at a time.

    Args:
        fs: file system of the page
        root: path of its prefix
        page: the page
        settings: what to keep
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, page: Shard, settings: ReadSettings):
        self.fs = fs
        self.root = root
        self.page = page
        self.settings = settings
        self._reading = threading.Lock()  # held while metadata are read
        self._rows: dict[str, Rows] = {}  # by the folder of the metadata file
        self._folders: dict[str, str | None] = {}  # folder of the metadata that counts, by folder of images

    def of(self, member: ListedImage) -> list[str | None]:
        """Return the text of each kept field; None for a field that the image lacks.

        Raises:
            StoreFault: a metadata file is damaged.
            OSError: the store fails.
        """
        key = member["key"]
        with self._reading:
            folder = self._metadata_above(key.rpartition("/")[0])
        row = self._rows[folder].get(_below(folder, key)) if folder is not None else None
        texts = row or [None] * len(self.settings.keep)
        named = zip(self.settings.keep, texts, strict=True)
        return [self._text_beside(key, name) if text is None else text for name, text in named]

    def _text_beside(self, key: str, extension: str) -> str | None:
        """Return the text of the file that has the image's name, with another extension."""
        folder, slash, base = key.rpartition("/")
        stem, dot, own = base.rpartition(".")
        path = join(self.root, f"{folder}{slash}{stem if dot else base}.")
        data = _bytes_of(self.fs, path + extension.upper()) if own.isupper() else None
        if data is None:
            data = _bytes_of(self.fs, path + extension)
        if data is None or len(data) > self.settings.max_bytes:
            return None
        return data.decode("utf-8", "backslashreplace")

    def _metadata_above(self, folder: str) -> str | None:
        """Return the folder of the metadata file that counts for a folder of images, and read the file."""
        if folder not in self._folders:
            found: str | None = folder
            if not self._reads_metadata(folder):
                # Named images have the same row whatever else is named, so the page's prefix means nothing.
                is_top = not folder or self.page.kind == NAMED
                found = None if is_top else self._metadata_above(folder.rpartition("/")[0])
            self._folders[folder] = found
        return self._folders[folder]

    def _reads_metadata(self, folder: str) -> bool:
        for name in METADATA:
            path = join(self.root, join(folder, name) if folder else name)
            info = _info_of(self.fs, path)
            if info is None:
                continue
            keep = self.settings.keep
            if info["size"] <= WHOLE_BYTES:
                rows = _whole_file(self.fs, path, info["size"], version_of(info), keep)
            else:
                wanted = {_below(folder, member["key"]) for member in self.page.members}
                rows = _read_rows(self.fs, path, info["size"], keep, wanted)
            if rows is not None:
                self._rows[folder] = rows
                return True
        return False


def _below(folder: str, key: str) -> str:
    """Return what is behind a folder in the key of an image below it."""
    return key[len(folder) + 1 :] if folder else key


def _bytes_of(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    """Return an object; None for one that is not there, or may not be read."""
    try:
        return with_retries(lambda: object_bytes(fs, path))
    except OSError as error:
        if loss_of(error, fs, path) is None:
            raise
        return None


def _info_of(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        info = with_retries(lambda: object_info(fs, path))
    except OSError as error:
        if loss_of(error, fs, path) is None:
            raise
        return None
    return info if info["type"] == "file" else None


# ---- a metadata file --------------------------------------------------------------------------------------


@lru_cache(maxsize=FILES_HELD)
def _whole_file(
    fs: fsspec.AbstractFileSystem, path: str, size: int, version: str, keep: tuple[str, ...]
) -> Rows | None:
    return _read_rows(fs, path, size, keep)


def _read_rows(
    fs: fsspec.AbstractFileSystem,
    path: str,
    size: int,
    keep: tuple[str, ...],
    wanted: Collection[str] | None = None,
) -> Rows | None:
    """Return the rows of a metadata file by the image's path; the first row of an image counts.

    Args:
        fs: file system of the file
        path: path of the file
        size: bytes of the file
        keep: names of the fields
        wanted: paths of the images to return; None for all

    Returns:
        None for a file that is about something else: it has no column FILE_NAME.

    Raises:
        StoreFault: the file is damaged.
        OSError: the store fails.
    """
    rows: Rows = {}
    fields: list[Field | None] | None = None
    try:
        tree, records = _open_table(fs, path, size, keep)
        for record in records:
            values = record.values
            if values is None:
                continue
            if fields is None:
                tree = tree or dict.fromkeys(values)
                if FILE_NAME not in tree:
                    return None
                fields = [_field(name, tree, path) for name in keep]
            name = values.get(FILE_NAME)
            name = name.removeprefix("./") if isinstance(name, str) else None
            if name is not None and name not in rows and (wanted is None or name in wanted):
                rows[name] = [as_text(field.of(values)) if field else None for field in fields]
                if wanted is not None and len(rows) == len(wanted):
                    break
    except TableCut as cut:
        raise StoreFault(f"{path} is damaged, and --keep or --target reads it: mend it ({cut})") from cut
    return rows


def _open_table(
    fs: fsspec.AbstractFileSystem, path: str, size: int, keep: tuple[str, ...]
) -> tuple[Tree | None, Iterator[Record]]:
    """Return the names of the columns and fields, where the file has them in front, and the records."""
    extension = extension_of(base_name(path))
    if extension == "csv":
        return None, csv_records(TextObject(fs, path, size), path, ",;\t|", lambda names: FILE_NAME in names)
    if extension == "jsonl":
        return None, json_records(TextObject(fs, path, size))
    table = ParquetTable(fs, path, size)
    tree = tree_of(table.schema)
    if FILE_NAME not in tree:
        return tree, iter([Record({}, 0)])
    fields = [_field(name, tree, path) for name in keep]
    paths = [field.path for field in fields if field and field.path]
    columns = [column_to_read(table.schema, path) for path in [(FILE_NAME,), *paths]]
    return tree, table.records(list(dict.fromkeys(columns)), 0)


def _field(name: str, tree: Tree, path: str) -> Field | None:
    """Return the field of a name; None where there is none. Objects of JSON have fields of their own."""
    if extension_of(base_name(path)) != "jsonl" and find_field(tree, name, any_case=True) is None:
        return None
    return kept_field(name, tree, path)
