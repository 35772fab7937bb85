"""The run folder: predictions as Parquet, and the commits that make every image appear exactly once.

The output object is the commit record. A unit's file is named by its shard's identity and its number alone, is built in memory, and
appears whole or not at all; so a unit that runs twice meets its own rows, and what is there is what is done. A unit that a
committed compaction names is done too, whether its own file is still there or not: see wordsworth.pipeline.compaction.compactor.
"""

import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.committed import UNIT_NAME, Done, unit_file
from wordsworth.pipeline.output.prediction_rows import WriteSettings, prediction_table
from wordsworth.pipeline.storage.filesystem import (
    full_uri,
    is_local,
    open_filesystem,
    public,
    put_if_absent,
    replace,
    version_of,
)
from wordsworth.pipeline.storage.walk import names
from wordsworth.pipeline.unit import STAGES, TIMED, Unit

SCHEMA_VERSION = 1
GENERATION = re.compile(r"(?P<number>\d{5,})(?P<plan>-plan)?\.parquet")  # of a compaction, in _run/compacted/
FOOTER = b"wordsworth"  # the key of our JSON in a Parquet file's metadata
GROUP = 16384  # rows in a row group of a file that is written as its rows come


# ---- commit ---------------------------------------------------------------------------------------------------------------


def commit(unit: Unit, settings: WriteSettings) -> dict[str, Any]:
    """Write a unit's file, or meet it; the receipt either way. A unit with a fault writes nothing."""
    if unit.fault:
        return _receipt(unit, settings, rows=0, errors={}, written=False)
    start = time.perf_counter()
    table = prediction_table(unit, settings)
    errors = dict(Counter(code for code in table["error"].to_pylist() if code))
    if errors and settings.on_error == "fail":
        raise _failed(table)
    if table.num_rows != len(unit.samples):
        raise AssertionError(
            f"{unit.shard_name} unit {unit.number}: {len(unit.samples)} samples became {table.num_rows} rows"
        )
    fs, root = open_filesystem(settings.output, settings.storage_options)
    path = f"{root}/predictions/{unit_file(unit.shard_name, unit.number, unit.last)}"
    footer = _footer(unit, settings, table.num_rows, errors)
    found = footer
    table = table.replace_schema_metadata({FOOTER: json.dumps(footer).encode()})
    written = put_if_absent(fs, path, parquet(table))
    if not written:
        found = _check_twin(fs, path, footer)
    unit.seconds["write"] = time.perf_counter() - start
    return _receipt(unit, settings, table.num_rows, errors, written, found.get("job") != settings.job)


def _failed(table: pa.Table) -> UserError:
    row = next(
        row for row in table.select(["shard", "key", "error", "error_detail"]).to_pylist() if row["error"]
    )
    what = "the end of the tar" if row["key"] is None else repr(row["key"])
    return UserError(f"{row['shard']}: {what}: {row['error']}: {row['error_detail']} (--on-error fail)")


def write_stage(table: pa.Table, settings: WriteSettings) -> pa.Table:
    """Ray Data's function: a predicted unit in, the receipt of its file out."""
    return pa.Table.from_pylist([commit(Unit.from_arrow(table), settings)], schema=RECEIPT)


def receipt_of(
    unit: Unit, settings: WriteSettings, rows: int, errors: dict[str, int], written: bool
) -> pa.Table:
    """The receipt of a unit's file as a row."""
    return pa.Table.from_pylist([_receipt(unit, settings, rows, errors, written)], schema=RECEIPT)


def _footer(unit: Unit, settings: WriteSettings, rows: int, errors: dict[str, int]) -> dict[str, Any]:
    return {
        **settings.provenance,
        "job": settings.job,
        "shard": public(unit.shard_uri),
        "shard_name": unit.shard_name,
        "unit": unit.number,
        "last": unit.last,
        "rows": rows,
        "errors": errors,
        "skipped": json.loads(unit.skipped),
        "bytes_read": unit.bytes_read,
        "next_offset": unit.next_offset,
        "next_index": unit.next_index,
        "seconds": {stage: round(seconds, 6) for stage, seconds in unit.seconds.items()},
    }


def parquet(table: pa.Table) -> pa.Buffer:
    """A whole Parquet file in memory, every page with its checksum."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def parquet_of(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Buffer:
    """The same of tables that come one after another: beside the file itself, memory holds one row group."""
    sink, group = pa.BufferOutputStream(), []
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            group.append(table)
            if sum(table.num_rows for table in group) >= GROUP:
                writer.write_table(pa.concat_tables(group))
                group = []
        if group:
            writer.write_table(pa.concat_tables(group))
    return sink.getvalue()


def read_footer(fs, path: str) -> dict[str, Any]:
    """Our JSON in a committed file. Raises UserError for a file that is none of ours."""
    try:
        with fs.open(path, "rb") as file:
            metadata = pq.ParquetFile(file).schema_arrow.metadata or {}
        return json.loads(metadata[FOOTER])
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a file of this run ({type(error).__name__}): move it away") from error


def _check_twin(fs, path: str, footer: dict[str, Any]) -> dict[str, Any]:
    """Something has our name: its footer. The same rows (a lost acknowledgement, a twin) are success, others are not."""
    found = read_footer(fs, path)
    differing = [
        name for name in ("run_id", "shard_name", "unit", "last", "rows") if found.get(name) != footer[name]
    ]
    if differing:
        raise UserError(
            f"{path} exists and was written by another run ({', '.join(differing)} differ): use another --output"
        )
    return found


RECEIPT = pa.schema(
    [
        ("shard", pa.string()),
        ("file", pa.string()),
        ("rows", pa.int64()),
        ("errors", pa.string()),
        ("bytes_read", pa.int64()),
        ("written", pa.bool_()),
        ("twin", pa.bool_()),  # another job had written it
        ("last", pa.bool_()),
        ("fault", pa.string()),
        ("prediction", pa.string()),  # of a GPU: `Predictor.way` as JSON
        *[(stage, pa.float64()) for stage in STAGES],
    ]
)


def _receipt(
    unit: Unit, settings: WriteSettings, rows: int, errors: dict[str, int], written: bool, twin: bool = False
) -> dict[str, Any]:
    return {
        "shard": public(unit.shard_uri),
        "file": unit_file(unit.shard_name, unit.number, unit.last),
        "rows": rows,
        "errors": json.dumps(errors),
        "bytes_read": unit.bytes_read,
        "written": written,
        "twin": twin,
        "last": unit.last,
        "fault": unit.fault,
        "prediction": unit.prediction,
        **{stage: unit.seconds.get(stage, 0.0) for stage in STAGES},
    }


# One row a file: what the run knows of itself when it is complete.
MANIFEST = pa.schema(
    [
        ("file", pa.string()),
        ("shard", pa.string()),
        ("unit", pa.int32()),
        ("last", pa.bool_()),
        ("rows", pa.int64()),
        ("errors", pa.string()),
        ("skipped", pa.string()),
        ("bytes_read", pa.int64()),
        ("bytes", pa.int64()),
        ("version", pa.string()),
        *[(stage, pa.float64()) for stage in TIMED],
    ]
)

# The same of a unit in a compacted file. into: that file; row_group: which holds all its rows; first: its first row in the file.
PLANNED = pa.schema([*MANIFEST, ("into", pa.string()), ("row_group", pa.int32()), ("first", pa.int64())])
# And what is known once it is there: the rest of the unit's footer, and the size of the compacted file.
COMPACTED = pa.schema(
    [*PLANNED, ("next_offset", pa.int64()), ("next_index", pa.int32()), ("into_bytes", pa.int64())]
)


# ---- the folder -----------------------------------------------------------------------------------------------------------


class RunFolder:
    """OUT: predictions/*.parquet, compacted/*.parquet, and what the run knows of itself in _run/."""

    def __init__(self, output: str, storage_options: dict[str, Any] | None = None):
        self.fs, self.root = open_filesystem(output, storage_options)
        self.root = self.root.rstrip("/")
        self.uri = full_uri(self.fs, self.root)

    def path(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def read_json(self, *parts: str) -> dict[str, Any] | None:
        path = self.path(*parts)
        try:
            return json.loads(self.fs.cat_file(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): restore it, or choose a new --output") from error

    def plan(self) -> dict[str, Any] | None:
        return self.read_json("_run", "plan.json")

    def create(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Freeze a plan, or find the one that another job froze a moment before."""
        foreign = self.fs.exists(self.root) and any(
            not self._own(path) for path in self.fs.ls(self.root, detail=False)
        )
        if foreign and self.plan() is None:  # in this order: a plan is older than all that its run writes
            raise UserError(f"{self.uri} is not empty and holds no run: choose a new folder as --output")
        data = json.dumps(plan, indent=1).encode()
        put_if_absent(self.fs, self.path("_run", "plan.json"), data)
        return self.plan() or plan

    def keep_estimate(self, estimate: dict[str, Any]) -> None:
        """What `wordsworth plan` foretold, for the summary to be held against."""
        replace(self.fs, self.path("_run", "estimate.json"), json.dumps(estimate, indent=1).encode())

    def estimate(self) -> dict[str, Any] | None:
        return self.read_json("_run", "estimate.json")

    def _own(self, path: str) -> bool:
        return path.rstrip("/").rpartition("/")[2] == "_run"

    def parquet_files(self, *parts: str) -> list[str]:
        """Paths of the Parquet files in a folder of the run."""
        folder = self.path(*parts)
        return [f"{folder}/{name}" for name in names(self.fs, folder) if name.endswith(".parquet")]

    def remove_shards(self, ids: set[str]) -> int:
        """Remove the units of shards that are no longer part of the run; how many there were."""
        if not ids:
            return 0
        named = ((path, UNIT_NAME.fullmatch(path.rpartition("/")[2])) for path in self.prediction_files())
        files = [path for path, match in named if match and match["shard"][-12:] in ids]
        self.remove(files)
        return len(files)

    def remove(self, paths: list[str]) -> None:
        """Remove files, of which some may be gone already; on an object store by one call for all."""
        if not is_local(self.fs):
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(paths)
                return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(path)

    def prediction_files(self) -> list[str]:
        """Paths of predictions/*.parquet in order: one LIST."""
        return sorted(self.parquet_files("predictions"))

    def committed(self) -> Done:
        """By shard name, what is done: the units in predictions/, by one LIST of which memory holds no more than one answer of the
        store, and those of committed compactions."""
        return Done(chain(names(self.fs, self.path("predictions")), self._compacted_names()))

    def _compacted_names(self) -> Iterator[str]:
        """After the LIST, and not before: what is deleted meanwhile is named here."""
        for chunk in self.compacted(["file"])["file"].chunks:
            yield from chunk.to_pylist()

    def footers(self, paths: list[str]) -> list[dict[str, Any]]:
        """A row of the manifest for each file."""
        rows = []
        for path in paths:
            footer, info = read_footer(self.fs, path), self.fs.info(path)
            rows.append(
                {
                    "file": path.rpartition("/")[2],
                    **{name: footer[name] for name in ("shard", "unit", "last", "rows", "bytes_read")},
                    "errors": json.dumps(footer["errors"]),
                    "skipped": json.dumps(footer.get("skipped", {})),
                    "bytes": info["size"],
                    "version": version_of(info),
                    **{stage: footer["seconds"].get(stage, 0.0) for stage in TIMED},
                }
            )
        return rows

    def manifest(self, paths: list[str]) -> pa.Table:
        """The same as a table, which takes a tenth of the memory."""
        return pa.Table.from_pylist(self.footers(paths), schema=MANIFEST)

    def generations(self, planned: bool = False) -> list[str]:
        """Paths of what the committed compactions contain, in order; with `planned`, of the plans of all that were begun."""
        paths = (
            (path, GENERATION.fullmatch(path.rpartition("/")[2]))
            for path in self.parquet_files("_run", "compacted")
        )
        return sorted(path for path, match in paths if match and bool(match["plan"]) == planned)

    def compacted(self, columns: list[str] | None = None) -> pa.Table:
        """The units of every committed compaction, as COMPACTED."""
        wanted = pa.schema([COMPACTED.field(name) for name in columns or COMPACTED.names])
        tables = [wanted.empty_table()]
        for path in self.generations():
            try:
                with self.fs.open(path, "rb") as file:
                    tables.append(pq.read_table(file, columns=wanted.names).select(wanted.names).cast(wanted))
            except (pa.ArrowInvalid, KeyError, ValueError) as error:
                raise UserError(
                    f"{path} is damaged ({error}): restore it; `wordsworth verify {self.uri}` says what it names"
                ) from error
        return pa.concat_tables(tables)

    def refuse_compacted(self, option: str) -> None:
        """Compacted files are never changed, so what changes units comes before them."""
        if self.generations(planned=True):
            raise UserError(
                f"{option} changes units that `wordsworth compact` has merged, or is merging, into files that are never changed: "
                f"use {option} before compact; {self.uri} takes --update alone now, all else needs a new --output"
            )

    def uncompacted(self) -> list[str]:
        """Paths of the units' files that are in no committed compaction, in order."""
        files, compacted = self.prediction_files(), self.compacted(["file"])["file"].combine_chunks()
        known = pc.is_in(
            pa.array([path.rpartition("/")[2] for path in files], pa.string()), value_set=compacted
        )
        return [path for path, there in zip(files, known.to_pylist(), strict=True) if not there]

    def sweep(self, older_than: float = 3600.0) -> None:
        """Remove temporary files that a killed writer left on a local disk, once no living one can own them (seconds)."""
        if is_local(self.fs):
            for folder in map(
                self.path, ("predictions", "compacted", "_run", "_run/shards", "_run/compacted")
            ):
                for name in names(self.fs, folder):
                    with contextlib.suppress(FileNotFoundError):
                        if (
                            name.startswith("_tmp-")
                            and time.time() - os.stat(f"{folder}/{name}").st_mtime > older_than
                        ):
                            os.unlink(f"{folder}/{name}")

    def finish(self, manifest: pa.Buffer, summary: dict[str, Any]) -> None:
        """The manifest, a file in memory, and after it the summary: the run is complete."""
        replace(self.fs, self.path("_run", "manifest.parquet"), manifest)
        replace(self.fs, self.path("_run", "summary.json"), json.dumps(summary, indent=1).encode())

    def summary(self) -> dict[str, Any] | None:
        return self.read_json("_run", "summary.json")
