"""Read what a compaction wrote: large files of many units, and the records that say where each unit lies.

    compacted/00000-00000.parquet ...   whole units one after the other
    _run/compacted/00000-plan.parquet   the plan: which unit goes where
    _run/compacted/00000.parquet        the commit: the same, once all files are written

`compact` writes number 00000 alone. Runs that an earlier version compacted in place have the numbers of
several compactions.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Self, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.output.commit import Damaged, footer_dict
from wordsworth.pipeline.output.records import MANIFEST, Provenance
from wordsworth.pipeline.storage.seekable import SeekableObject
from wordsworth.pipeline.storage.streams import with_retries

Result = TypeVar("Result")

RECORD_NAME = re.compile(r"(?P<number>\d{5,})(?P<plan>-plan)?\.parquet")  # in _run/compacted/

# A row of a plan: the row of the manifest, and where the unit goes.
PLANNED = pa.schema(
    [
        *MANIFEST,
        ("into", pa.string()),  # name of the compacted file
        ("row_group", pa.int32()),  # number of the row group that holds all rows of the unit
        ("first", pa.int64()),  # number of the unit's first row in the file
    ]
)
# A row of a commit: the row of the plan, more of the unit's footer, and the bytes of the compacted file.
COMPACTED = pa.schema(
    [*PLANNED, ("next_offset", pa.int64()), ("next_index", pa.int32()), ("into_bytes", pa.int64())]
)


def runs(column: pa.ChunkedArray) -> Iterator[slice]:
    """Yield where each run of equal values lies in a column."""
    begin = 0
    for end in pc.run_end_encode(column.combine_chunks()).run_ends.to_pylist():
        yield slice(begin, end)
        begin = end


@dataclass(frozen=True, kw_only=True)
class CompactionId:
    """Say which compaction a file belongs to.

    Attributes:
        run_id, fingerprint: as in RunPlan.
        generation: number of the compaction; 0, but for runs that were compacted in place.
    """

    run_id: str
    fingerprint: str
    generation: int = 0

    @classmethod
    def of(cls, schema: pa.Schema) -> Self | None:
        """Return what the metadata of a file say; None where they do not."""
        told = footer_dict(schema) or {}
        try:
            return cls(run_id=told["run_id"], fingerprint=told["fingerprint"], generation=told["generation"])
        except KeyError:
            return None


@dataclass(frozen=True, kw_only=True)
class CompactedFooter:
    """Describe one compacted file, in the file itself.

    Attributes:
        provenance: as in the footers of its units.
        job: token of the command that wrote the file's first unit.
        generation: as in CompactionId.
        file: name of the file.
        units: units in the file.
        rows: rows in the file.
        errors: rows with an error, by code.
    """

    provenance: Provenance
    job: str
    generation: int
    file: str
    units: int
    rows: int
    errors: dict[str, int]

    def to_json(self) -> bytes:
        """Return the value of FOOTER_KEY: one flat object, with the fields of the provenance first."""
        told = asdict(self)
        del told["provenance"]
        return json.dumps(self.provenance.to_dict() | told).encode()


class CompactedFile:
    """Read a compacted file, one row group at a time, with every page's checksum compared.

    Attributes:
        size: bytes of the file.
        group_rows: rows of each row group.
        starts: number of the first row of each row group in the file.
        footer: the file's own account of itself; empty where there is none.

    Raises:
        Damaged: the bytes are not a whole Parquet file.
        OSError: the store does not give the object.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str):
        fs.invalidate_cache()
        self.size = with_retries(lambda: fs.info(path))["size"]
        self._object = SeekableObject(fs, path, self.size)
        source = pa.PythonFile(self._object, mode="r")
        self._file = self._call(
            lambda: pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True)
        )
        metadata = self._file.metadata
        self.group_rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(self.group_rows)]).astype(np.int64)
        self.footer = footer_dict(self._file.schema_arrow) or {}

    def read(self, group: int) -> pa.Table:
        """Return the rows of a row group: whole units, one after the other."""
        return self._call(lambda: self._read_sound(group))

    def _read_sound(self, group: int) -> pa.Table:
        table = self._file.read_row_group(group)
        table.validate(full=True)
        return table.replace_schema_metadata(None)

    def _call(self, call: Callable[[], Result]) -> Result:
        """Return what pyarrow returns, and tell a fault of the store from damage."""
        try:
            return call()
        except Exception as error:
            if self._object.fault is not None:
                raise self._object.fault from error
            raise Damaged(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
