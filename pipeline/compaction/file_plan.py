"""Plan a compaction: which unit goes to which file, row group and row.

The plan is frozen before anything is merged.
"""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.cluster.claims import MiB
from wordsworth.pipeline.compaction.finished_run import FinishedRun
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.commit import Damaged, parquet_bytes, read_table
from wordsworth.pipeline.output.compacted_file import PLANNED, CompactionId
from wordsworth.pipeline.output.records import FOOTER_KEY, MANIFEST
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.storage.atomic import put_if_absent

GROUP_BYTES = 16 * MiB  # bytes of units in a row group, at most: what a reader of one unit decodes
GROUP_ROWS = 1 << 18  # rows in a row group, at most
PLAN = ("_run", "compacted", "00000-plan.parquet")


def freeze_plan(run: FinishedRun, large: RunFolder, target_size: int) -> pa.Table:
    """Freeze the plan of the compaction, and return it, or the plan that this folder has already, as PLANNED.

    Raises:
        UserError: the folder holds something else.
    """
    if not large.exists(*PLAN):
        foreign = large.foreign()
        # Looked for again, and after that: a plan is older than all that its compaction writes.
        if foreign and not large.exists(*PLAN):
            raise UserError(f"{large.uri} {foreign}")
        planned = plan_files(run.units, target_size)
        told = json.dumps(asdict(run.id) | {"target": target_size}).encode()
        put_if_absent(
            large.fs, large.path(*PLAN), parquet_bytes(planned.replace_schema_metadata({FOOTER_KEY: told}))
        )
    try:
        frozen = read_table(large.fs, large.path(*PLAN), PLANNED.names)
    except Damaged as error:
        raise UserError(
            f"{large.path(*PLAN)} is damaged ({error}): choose a new folder as --output"
        ) from error
    if CompactionId.of(frozen.schema) != run.id:
        raise UserError(f"{large.uri} is a compaction of another run: choose a new folder as --output")
    frozen = frozen.replace_schema_metadata(None).cast(PLANNED)
    if not frozen.select(MANIFEST.names).equals(run.units):
        raise UserError(
            f"{large.uri} is a compaction of {run.folder.uri} as it was before its last change: "
            "choose a new folder as --output"
        )
    return frozen


def plan_files(units: pa.Table, target_bytes: int) -> pa.Table:
    """Return units in their order as PLANNED: with the file, the row group and the first row of each.

    Args:
        units: rows of MANIFEST.
        target_bytes: bytes of units in a file, at most, unless one unit is larger.
    """
    packer = FilePacker(target_bytes)
    places = np.empty((units.num_rows, 3), np.int64)
    sizes = zip(units["bytes"].to_pylist(), units["rows"].to_pylist(), strict=True)
    for number, (size_bytes, num_rows) in enumerate(sizes):
        places[number] = packer.add(size_bytes, num_rows)
    names = pa.array([f"00000-{number:05d}.parquet" for number in range(packer.file + 1)], pa.string())
    columns = [units[name] for name in MANIFEST.names]
    columns += [names.take(pa.array(places[:, 0])), pa.array(places[:, 1]), pa.array(places[:, 2])]
    return pa.table(columns, names=PLANNED.names).cast(PLANNED)


class FilePacker:
    """Choose a place for each unit, in order. A row group or a file ends where the next unit does not fit."""

    def __init__(self, target_bytes: int):
        self.target_bytes = target_bytes
        self.file = 0  # number of the file
        self.file_bytes = 0
        self.row = 0  # rows in the file
        self.group = 0  # number of the row group in the file
        self.group_bytes = 0
        self.group_rows = 0

    def add(self, size_bytes: int, num_rows: int) -> tuple[int, int, int]:
        """Add a unit, and return its file, its row group and its first row in the file."""
        if self.file_bytes and self.file_bytes + size_bytes > self.target_bytes:
            self._begin_file()
        elif self.group_bytes and not self._fits_group(size_bytes, num_rows):
            self._begin_group(self.group + 1)
        place = (self.file, self.group, self.row)
        self.file_bytes += size_bytes
        self.row += num_rows
        self.group_bytes += size_bytes
        self.group_rows += num_rows
        return place

    def _fits_group(self, size_bytes: int, num_rows: int) -> bool:
        return self.group_bytes + size_bytes <= GROUP_BYTES and self.group_rows + num_rows <= GROUP_ROWS

    def _begin_file(self) -> None:
        self.file += 1
        self.file_bytes = 0
        self.row = 0
        self._begin_group(0)

    def _begin_group(self, number: int) -> None:
        self.group = number
        self.group_bytes = 0
        self.group_rows = 0
