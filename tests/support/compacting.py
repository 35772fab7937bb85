"""Compactions in the tests: a run to compact, what is visible of it, how to kill one, how to damage a file."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.labelling import Watcher
from tests.support.runs import build, pictures, write_tar
from wordsworth.pipeline.compaction.compactor import CompactRequest, compact
from wordsworth.pipeline.output.run_folder import FOOTER
from wordsworth.pipeline.verification.verifier import verify

ALL = 1 << 40  # a target that nothing reaches


def make(folder: Path) -> Path:
    """A run over five tars, one of them empty, and one image without a picture beside it: 11 units, 34 rows."""
    for number, images in enumerate((9, 3, 0, 17, 4)):
        names = [*pictures(images, 100 * number), *([("d/lone.json", b"no image")] if number == 1 else [])]
        write_tar(folder / "in" / f"{'zyxab'[number]}.tar", names)
    build(folder / "out", folder / "in")
    return folder


def target(out: Path) -> int:
    """A size that makes three files or so."""
    return sum(path.stat().st_size for path in (out / "predictions").iterdir()) // 3


def run(out, size: int = ALL, **asked):
    watcher = Watcher()
    return compact(CompactRequest(str(out), size, **asked), watcher), watcher


def rows(*folders: Path) -> list[dict]:
    """All rows as any reader of Parquet sees them, in one order."""
    found = [
        row
        for folder in folders
        if any(folder.glob("*.parquet"))
        for row in pq.read_table(folder).to_pylist()
    ]
    return sorted(found, key=lambda row: (row["shard"], row["index"]))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def state(out: Path) -> dict[str, bytes]:
    """Everything that is visible in a run folder."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and "_tmp-" not in path.name
    }


def counts(out: Path, source: bool = False) -> tuple:
    report = verify(str(out), source=source)
    assert report.faults == []
    return report.rows, report.shards, report.files, report.errors, report.recounted


# A child that dies, without unwinding anything, once it has put `after` objects or removed `removed` files.
CHILD = """
import os, sys
from wordsworth.pipeline.compaction import compactor as compact
from wordsworth.pipeline.compaction import merge as merging
from wordsworth.pipeline.output import run_folder as output
out, size, after, removed, delete = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "True"
done = {"put": 0, "removed": 0}
def dying(call, what, limit):
    def counted(*arguments):
        result = call(*arguments)
        done[what] += 1
        if done[what] == limit:
            os._exit(9)
        return result
    return counted
compact.put_if_absent = merging.put_if_absent = dying(merging.put_if_absent, "put", after)
run = output.RunFolder
run.remove = lambda self, paths, rm=run.remove: [dying(rm, "removed", removed)(self, [path]) for path in paths]
class Quiet:
    note = staticmethod(print)
compact.compact(compact.CompactRequest(out, size, delete), Quiet)
"""


def killed(out: Path, size: int, after: int = 0, removed: int = 0, delete: bool = False) -> None:
    arguments = [str(out), str(size), str(after), str(removed), str(delete)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 9, done.stderr


def flipped(path: Path) -> None:
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0x10
    path.write_bytes(data)


def retold(path: Path, change=lambda table: table, **footer) -> None:
    """Put a changed file in a file's place."""
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[FOOTER]) | footer
    pq.write_table(
        change(table).replace_schema_metadata({FOOTER: json.dumps(told)}), path, write_page_checksum=True
    )
