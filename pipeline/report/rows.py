"""Read the rows of a run, compacted or not, as a stream in bounded memory."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Self

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.prediction_rows import prediction_schema
from wordsworth.pipeline.output.records import RunPlan, Summary
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.storage.filesystem import StorageOptions, is_local
from wordsworth.pipeline.storage.refusals import naming
from wordsworth.pipeline.storage.seekable import SeekableObject
from wordsworth.pipeline.storage.streams import with_retries

BATCH_ROWS = 4096  # rows in a batch, at most
BATCHES_AHEAD = 4  # batches of one file that are read before they are asked for
FILES_AHEAD = 2  # files that are open at once
FOOTERS_AT_ONCE = 16  # footers that are read at once


class RunRows:
    """Hold one run as its rows.

    Attributes:
        output: the run folder, as it was given.
        folder: the run folder.
        storage_options: options of the stores of the run and of its sources.
        plan: the frozen settings.
        summary: the totals; None for a run that is not complete.
        fs: file system of the run folder.
        files: paths in `fs` of the files that together hold each row once, as they were when the run was
            opened.
        schema: the columns of a row; `shard` is a dictionary, which differs from batch to batch.
    """

    def __init__(self, folder: RunFolder, plan: RunPlan, output: str, storage_options: StorageOptions):
        self.output = output
        self.folder = folder
        self.storage_options = storage_options
        self.plan = plan
        self.summary: Summary | None = folder.summary()
        self.fs = folder.fs
        self._units = folder.units()
        with naming(folder.uri):
            self.files: list[str] = self._units.row_files()
        self._reader = _RangeFiles(folder.fs)
        self.schema: pa.Schema = self._read_schema()

    @classmethod
    def open(cls, output: str, storage_options: StorageOptions | None = None) -> Self:
        """Return the run in a folder, complete or not.

        Args:
            output: the run folder, a path or a URI.
            storage_options: options of the stores of the run and of its sources.

        Raises:
            UserError: there is no run, or one of its records or files is damaged.
        """
        folder = RunFolder(output, storage_options)
        plan = folder.plan_of_run()
        return cls(folder, plan, output, storage_options or {})

    @cached_property
    def num_rows(self) -> int:
        """Return the number of rows: by the summary and the records of compactions where these count all
        files, else by the footers of the files."""
        recorded = self._units.recorded()
        own = self._units.unrecorded()
        if self.summary and self.summary.files == recorded.num_rows + len(own):
            return self.summary.rows
        paths = [self.folder.path("predictions", name) for name in own]
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            return sum(pool.map(self._count_rows, paths)) + (pc.sum(recorded["rows"]).as_py() or 0)

    @property
    def fault(self) -> Exception | None:
        """Return the last error of the store, while a file was read; None where there was none."""
        return self._reader.fault

    def has(self, column: str) -> bool:
        """Return whether the rows have a column of this name."""
        return column in self.schema.names

    def batches(
        self, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the order of the files. Memory holds a few batches and their row groups.

        Args:
            columns: names of the columns to give and to read; None gives all.
            where: which rows to give; its columns are read too, and row groups are passed over whose
                statistics say that they have no such row.

        Raises:
            UserError: there is no such column, `where` cannot be evaluated, or a file is damaged or gone.
            OSError: the store fails.
        """
        names = list(self.schema.names if columns is None else columns)
        unknown = [name for name in names if not self.has(name)]
        if unknown:
            known = ", ".join(self.schema.names)
            raise UserError(f"the rows of {self.output} have no column {unknown[0]}: they have {known}")
        if not self.files:
            return
        scan = self._scanner(names, where).to_batches()
        while (batch := self._next(scan)) is not None:
            if batch.num_rows:
                yield batch

    def dataset(self, schema: pa.Schema | None = None) -> ds.Dataset:
        """Return the rows as a dataset, which can be scanned several times.

        Args:
            schema: types to which the columns are cast as they are read; None keeps those of the files.
        """
        if not self.files:
            return ds.dataset((schema or self.schema).empty_table())
        options = ds.ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
        return ds.dataset(
            self.files,
            schema=schema or self.schema,
            format=ds.ParquetFileFormat(default_fragment_scan_options=options),
            filesystem=self._reader.arrow,
        )

    def _scanner(self, columns: list[str], where: pc.Expression | None) -> ds.Scanner:
        try:
            return self.dataset().scanner(
                columns=columns,
                filter=where,
                batch_size=BATCH_ROWS,
                batch_readahead=BATCHES_AHEAD,
                fragment_readahead=FILES_AHEAD,
            )
        except (pa.ArrowException, ValueError, TypeError) as error:
            told = " ".join(str(error).split())
            raise UserError(f"the rows of {self.output} cannot be chosen so: {told}") from error

    def _next(self, scan: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
        with naming(self.folder.uri):
            return self._sound(lambda: next(scan, None))

    def _read_schema(self) -> pa.Schema:
        """Return the schema of the first file; of a run without files the columns that its plan tells."""
        if self.files:
            with naming(self.folder.uri):
                metadata = self._sound(lambda: self._metadata(self.files[0]))
            return metadata.schema.to_arrow_schema().remove_metadata()
        asked = self.plan.asked
        return prediction_schema(asked.get("top-k") or 0, None, 0)

    def _metadata(self, path: str) -> pq.FileMetaData:
        with self._reader.arrow.open_input_file(path) as file:
            return pq.read_metadata(file)

    def _count_rows(self, path: str) -> int:
        with naming(self.folder.uri):
            return self._sound(lambda: self._metadata(path)).num_rows

    def _sound(self, read: Any) -> Any:
        """Return what `read` gives.

        Raises:
            UserError: a file is damaged, or gone since the run was opened.
            OSError: the store fails.
        """
        try:
            return read()
        except FileNotFoundError as error:
            raise UserError(
                f"a file of {self.output} is gone since the run was opened ({error}): run the command again"
            ) from error
        except Exception as error:
            if self._reader.fault is not None:
                raise self._reader.fault from error
            told = " ".join(str(error).split())
            raise UserError(
                f"a file of {self.output} is damaged ({told}): `wordsworth verify {self.output}` says which"
            ) from error


class _RangeFiles:
    """Let Arrow read files of a store by ranges that are tried again.

    Attributes:
        arrow: the file system for Arrow.
        fault: the last error of the store. Arrow raises damage and faults alike.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem):
        self.fault: Exception | None = None
        self.arrow = LocalFileSystem() if is_local(fs) else PyFileSystem(_Handler(fs, self))


class _Handler(FSSpecHandler):
    """Open files for `_RangeFiles`."""

    def __init__(self, fs: fsspec.AbstractFileSystem, files: _RangeFiles):
        super().__init__(fs)
        self.files = files

    def open_input_file(self, path: str) -> pa.PythonFile:
        size = with_retries(lambda: self.fs.info(path))["size"]
        return pa.PythonFile(_Object(self.fs, path, size, self.files), mode="r")


class _Object(SeekableObject):
    """Read one file, and tell `_RangeFiles` when the store fails."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int, files: _RangeFiles):
        super().__init__(fs, path, size)
        self.files = files

    def read(self, size: int = -1) -> bytes:
        try:
            return super().read(size)
        except Exception as error:
            self.files.fault = error
            raise
