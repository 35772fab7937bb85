"""What `compact` wrote, read back: by itself where a name is taken, and by verify."""

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wordsworth.pipeline.output.run_folder import FOOTER, RunFolder
from wordsworth.pipeline.storage.filesystem import patiently


def names_in(run: RunFolder, *parts: str) -> list[str]:
    """What a folder holds, in order. Names with an underscore are leftovers of writers and no reader sees them."""
    run.fs.invalidate_cache()
    folder = run.path(*parts)
    try:
        paths = (path.rstrip("/") for path in run.fs.ls(folder, detail=False))
    except FileNotFoundError:
        return []
    return sorted(
        {name for path in paths if path != folder and not (name := path.rpartition("/")[2]).startswith("_")}
    )


def sizes_in(run: RunFolder, *parts: str) -> pa.Table:
    """Name and size of the Parquet files in a folder of the run: one LIST."""
    run.fs.invalidate_cache()
    try:
        found = [
            info for info in run.fs.ls(run.path(*parts), detail=True) if info["name"].endswith(".parquet")
        ]
    except FileNotFoundError:
        found = []
    sizes = {
        info["name"].rpartition("/")[2]: info["size"] for info in found
    }  # a store may name one twice: pipeline/storage/walk.py
    return pa.table({"name": pa.array(sizes, pa.string()), "size": pa.array(sizes.values(), pa.int64())})


def parse(data: bytes) -> pa.Table | Exception:
    """A Parquet file with every page's checksum compared, or why it cannot be read."""
    try:
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        table.validate(full=True)
        return table
    except Exception as error:  # the bytes are here: whatever they make of the Parquet reader is their fault
        return error


class Damaged(Exception):
    """The bytes of a compacted file are not what a Parquet file has. A store's fault is an OSError instead."""


class CompactedFile:
    """A compacted file, read one row group at a time, every page's checksum compared.

    Raises Damaged for bytes that are none of a Parquet file; what the store raises is raised as it is.
    """

    def __init__(self, run: RunFolder, name: str):
        self._object = _Object(run, run.path("compacted", name))
        self.size = self._object.size
        self._file = self._sound(
            lambda: pq.ParquetFile(
                pa.PythonFile(self._object, mode="r"), page_checksum_verification=True, pre_buffer=True
            )
        )
        metadata = self._file.metadata
        self.group_rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(self.group_rows)]).astype(np.int64)
        try:
            self.footer = dict(json.loads(self._file.schema_arrow.metadata[FOOTER]))
        except (KeyError, TypeError, ValueError):
            self.footer = {}

    def read(self, group: int) -> pa.Table:
        """The rows of a row group: whole units, one after the other."""
        table = self._sound(lambda: self._file.read_row_group(group))
        self._sound(lambda: table.validate(full=True))
        return table

    def _sound(self, call: Any) -> Any:
        try:
            return call()
        except Exception as error:
            if self._object.fault is not None:
                raise self._object.fault from error
            raise Damaged(f"{type(error).__name__}: {error}") from error


class _Object(io.RawIOBase):
    """An object for pyarrow to seek in. Remembers a fault of the store, which pyarrow would blur with damage."""

    def __init__(self, run: RunFolder, path: str):
        self.fs, self.path, self.position = run.fs, path, 0
        self.fault: Exception | None = None
        self.size = patiently(lambda: run.fs.info(path))["size"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer) -> int:
        end = min(self.size, self.position + len(buffer))
        if end <= self.position:
            return 0
        try:
            data = patiently(lambda: self.fs.cat_file(self.path, start=self.position, end=end))
        except Exception as error:
            self.fault = error
            raise
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
