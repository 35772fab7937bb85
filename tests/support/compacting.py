"""Help the tests of compaction: a run to compact, its visible files, a way to kill it, a way to damage a
file."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.support.labelling import Watcher
from tests.support.runs import build, image_members, write_tar
from wordsworth.pipeline.compaction.compactor import CompactRequest, compact
from wordsworth.pipeline.compaction.file_plan import plan_files
from wordsworth.pipeline.compaction.finished_run import FinishedRun
from wordsworth.pipeline.compaction.merge import merge
from wordsworth.pipeline.output.commit import parquet_bytes
from wordsworth.pipeline.output.records import FOOTER_KEY
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.verification.verifier import verify

ALL = 1 << 40  # bytes; a target size that no file reaches


def make(folder: Path) -> Path:
    """Make a run over five tars, one of them empty, with one sidecar that has no image: 11 units, 34 rows."""
    for number, images in enumerate((9, 3, 0, 17, 4)):
        names = [
            *image_members(images, 100 * number),
            *([("d/lone.json", b"no image")] if number == 1 else []),
        ]
        write_tar(folder / "in" / f"{'zyxab'[number]}.tar", names)
    build(folder / "out", folder / "in")
    return folder


def target(out: Path) -> int:
    """Return a target size that makes about three files."""
    return sum(path.stat().st_size for path in (out / "predictions").iterdir()) // 3


def large_of(out: Path | str) -> Path | str:
    return out.with_name(f"{out.name}-large") if isinstance(out, Path) else f"{out}-large"


def run(out, size: int = ALL, large=None, **asked):
    """Compact a run into a folder beside it."""
    watcher = Watcher()
    request = CompactRequest(run=str(out), output=str(large or large_of(out)), target_size=size, **asked)
    return compact(request, watcher), watcher


def compact_in_place(out: Path, size: int = ALL, *, generation: int = 0, commit: bool = True) -> None:
    """Compact as earlier versions did: write compacted files beside the small ones, generation after
    generation."""
    folder = RunFolder(str(out))
    finished = FinishedRun.read(folder)
    known = pc.is_in(finished.units["file"], value_set=folder.units().recorded()["file"].combine_chunks())
    units = finished.units.filter(pc.invert(known))
    planned = plan_files(units, size)
    names = pc.replace_substring_regex(planned["into"], "^00000", f"{generation:05d}")
    planned = planned.set_column(planned.schema.get_field_index("into"), "into", names)
    id = replace(finished.id, generation=generation)

    def record(name: str, table: pa.Table, **more: int) -> None:
        path = out / "_run" / "compacted" / name
        path.parent.mkdir(exist_ok=True)
        told = {FOOTER_KEY: json.dumps(asdict(id) | more)}
        path.write_bytes(parquet_bytes(table.replace_schema_metadata(told)))

    record(f"{generation:05d}-plan.parquet", planned, target=size)
    merged = []
    for name in planned["into"].unique().to_pylist():
        piece = planned.filter(pc.equal(planned["into"], name))
        places = folder.units().locate(
            units.filter(pc.is_in(units["file"], value_set=piece["file"].combine_chunks()))
        )
        merged.append(merge(folder, folder, id, places, piece))
    if commit:
        record(f"{generation:05d}.parquet", pa.concat_tables(merged))


def delete_small(out: Path) -> None:
    for path in (out / "predictions").iterdir():
        path.unlink()


def rows(*folders: Path) -> list[dict]:
    """Return all rows as any reader of Parquet sees them, sorted."""
    found = [
        row
        for folder in folders
        if any(folder.rglob("*.parquet"))
        for row in pq.read_table(folder).to_pylist()
    ]
    return sorted(found, key=lambda row: (row["shard"], row["index"]))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def state(out: Path) -> dict[str, bytes]:
    """Return the name and the content of every file that is visible in a run folder."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and "_tmp-" not in path.name
    }


def counts(out: Path, source: bool = False) -> tuple:
    report = verify(str(out), source=source)
    assert report.findings == []
    return report.rows, report.shards, report.files, report.errors, report.recounted


# A child that dies, without unwinding anything, once it has put `after` objects.
CHILD = """
import os, sys
from wordsworth.pipeline.compaction import compactor, file_plan, merge
out, large, size, after = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
put, done = merge.put_if_absent, []
def dying(*arguments):
    written = put(*arguments)
    done.append(arguments[1])
    if len(done) == after:
        os._exit(9)
    return written
compactor.put_if_absent = file_plan.put_if_absent = merge.put_if_absent = dying
class Quiet:
    note = waiting = staticmethod(print)
compactor.compact(compactor.CompactRequest(run=out, output=large, target_size=size), Quiet)
"""


def killed(out: Path, size: int, after: int) -> None:
    arguments = [str(out), str(large_of(out)), str(size), str(after)]
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
    told = json.loads(table.schema.metadata[FOOTER_KEY]) | footer
    pq.write_table(
        change(table).replace_schema_metadata({FOOTER_KEY: json.dumps(told)}), path, write_page_checksum=True
    )
