"""The run folder: predictions as Parquet, and the commits that make every image appear exactly once.

The output object is the commit record. A unit's file is named by its shard's identity and its number alone, is built in memory, and
appears whole or not at all; so a unit that runs twice meets its own rows, and what is there is what is done. A unit that a
committed compaction names is done too, whether its own file is still there or not: see pipeline.compact.
"""

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.rows import WriteSettings, prediction_table
from pipeline.storage import full_uri, is_local, open_filesystem, public, put_if_absent, replace, version_of
from pipeline.unit import STAGES, TIMED, Unit

SCHEMA_VERSION = 1
UNIT_NAME = re.compile(r"(?P<shard>.+-[0-9a-f]{12})-(?P<unit>\d{5,})(?P<end>-end)?\.parquet")
GENERATION = re.compile(r"(?P<number>\d{5,})(?P<plan>-plan)?\.parquet")  # of a compaction, in _run/compacted/
FOOTER = b"wordsworth"  # the key of our JSON in a Parquet file's metadata


def unit_file(shard_name: str, number: int, last: bool) -> str:
    return f"{shard_name}-{number:05d}{'-end' if last else ''}.parquet"


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
        raise AssertionError(f"{unit.shard_name} unit {unit.number}: {len(unit.samples)} samples became {table.num_rows} rows")
    fs, root = open_filesystem(settings.output, settings.storage_options)
    path = f"{root}/predictions/{unit_file(unit.shard_name, unit.number, unit.last)}"
    footer = _footer(unit, settings, table.num_rows, errors)
    table = table.replace_schema_metadata({FOOTER: json.dumps(footer).encode()})
    written = put_if_absent(fs, path, parquet(table))
    if not written:
        _check_twin(fs, path, footer)
    unit.seconds["write"] = time.perf_counter() - start
    return _receipt(unit, settings, table.num_rows, errors, written)


def _failed(table: pa.Table) -> UserError:
    row = next(row for row in table.select(["shard", "key", "error", "error_detail"]).to_pylist() if row["error"])
    what = "the end of the tar" if row["key"] is None else repr(row["key"])
    return UserError(f"{row['shard']}: {what}: {row['error']}: {row['error_detail']} (--on-error fail)")


def write_stage(table: pa.Table, settings: WriteSettings) -> pa.Table:
    """Ray Data's function: a predicted unit in, the receipt of its file out."""
    return pa.Table.from_pylist([commit(Unit.from_arrow(table), settings)], schema=RECEIPT)


def receipt_of(unit: Unit, settings: WriteSettings, rows: int, errors: dict[str, int], written: bool) -> pa.Table:
    """The receipt of a unit's file as a row."""
    return pa.Table.from_pylist([_receipt(unit, settings, rows, errors, written)], schema=RECEIPT)


def _footer(unit: Unit, settings: WriteSettings, rows: int, errors: dict[str, int]) -> dict[str, Any]:
    return {
        **settings.provenance,
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


def read_footer(fs, path: str) -> dict[str, Any]:
    """Our JSON in a committed file. Raises UserError for a file that is none of ours."""
    try:
        with fs.open(path, "rb") as file:
            metadata = pq.ParquetFile(file).schema_arrow.metadata or {}
        return json.loads(metadata[FOOTER])
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a file of this run ({type(error).__name__}): move it away") from error


def _check_twin(fs, path: str, footer: dict[str, Any]) -> None:
    """Something has our name. Our own rows (an acknowledgement that got lost, a twin) are success; anything else is not."""
    found = read_footer(fs, path)
    differing = [name for name in ("run_id", "shard_name", "unit", "last", "rows") if found.get(name) != footer[name]]
    if differing:
        raise UserError(f"{path} exists and was written by another run ({', '.join(differing)} differ): use another --output")


RECEIPT = pa.schema(
    [
        ("shard", pa.string()),
        ("file", pa.string()),
        ("rows", pa.int64()),
        ("errors", pa.string()),
        ("bytes_read", pa.int64()),
        ("written", pa.bool_()),
        ("last", pa.bool_()),
        ("fault", pa.string()),
        *[(stage, pa.float64()) for stage in STAGES],
    ]
)


def _receipt(unit: Unit, settings: WriteSettings, rows: int, errors: dict[str, int], written: bool) -> dict[str, Any]:
    return {
        "shard": public(unit.shard_uri),
        "file": unit_file(unit.shard_name, unit.number, unit.last),
        "rows": rows,
        "errors": json.dumps(errors),
        "bytes_read": unit.bytes_read,
        "written": written,
        "last": unit.last,
        "fault": unit.fault,
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
COMPACTED = pa.schema([*PLANNED, ("next_offset", pa.int64()), ("next_index", pa.int32()), ("into_bytes", pa.int64())])


# ---- the folder -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Committed:
    """What a shard already has: the numbers of its units, and whether its end is among them."""

    units: set[int] = field(default_factory=set)
    ended: bool = False

    @property
    def complete(self) -> bool:
        return self.ended and len(self.units) == max(self.units) + 1

    @property
    def prefix(self) -> int:
        """How many units from the first on are there without a gap."""
        return next(number for number in range(len(self.units) + 1) if number not in self.units)


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
        foreign = self.fs.exists(self.root) and any(not self._own(path) for path in self.fs.ls(self.root, detail=False))
        if foreign and self.plan() is None:  # in this order: a plan is older than all that its run writes
            raise UserError(f"{self.uri} is not empty and holds no run: choose a new folder as --output")
        data = json.dumps(plan, indent=1).encode()
        put_if_absent(self.fs, self.path("_run", "plan.json"), data)
        return self.plan() or plan

    def _own(self, path: str) -> bool:
        return path.rstrip("/").rpartition("/")[2] == "_run"

    def parquet_files(self, *parts: str) -> list[str]:
        """Paths of the Parquet files in a folder of the run."""
        self.fs.invalidate_cache()
        try:
            return [path for path in self.fs.ls(self.path(*parts), detail=False) if path.endswith(".parquet")]
        except FileNotFoundError:
            return []

    def remove_shards(self, ids: set[str]) -> int:
        """Remove the units of shards that are no longer part of the run; how many there were."""
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

    def committed(self) -> dict[str, Committed]:
        """By shard name, what is done: the units in predictions/ and those of committed compactions."""
        done: dict[str, Committed] = {}
        small = (path.rpartition("/")[2] for path in self.prediction_files())  # first: what is deleted meanwhile is named below
        compacted = (name for chunk in self.compacted(["file"])["file"].chunks for name in chunk.to_pylist())
        for name in chain(small, compacted):
            if match := UNIT_NAME.fullmatch(name):
                entry = done.setdefault(match["shard"], Committed())
                entry.units.add(int(match["unit"]))
                entry.ended |= match["end"] is not None
        return done

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

    def generations(self, planned: bool = False) -> list[str]:
        """Paths of what the committed compactions contain, in order; with `planned`, of the plans of all that were begun."""
        paths = ((path, GENERATION.fullmatch(path.rpartition("/")[2])) for path in self.parquet_files("_run", "compacted"))
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

    def manifest(self, footers: Callable[[list[str]], list[dict[str, Any]]]) -> pa.Table:
        """One row a unit, in the order of the names. footers: `RunFolder.footers`, or what asks it in parallel."""
        files = self.prediction_files()
        compacted = self.compacted(MANIFEST.names)
        names = pa.array([path.rpartition("/")[2] for path in files], pa.string())
        known = pc.is_in(names, value_set=compacted["file"].combine_chunks()).to_pylist()
        rows = footers([path for path, there in zip(files, known, strict=True) if not there])
        return pa.concat_tables([compacted, pa.Table.from_pylist(rows, schema=MANIFEST)]).sort_by("file")

    def sweep(self, older_than: float = 3600.0) -> None:
        """Remove temporary files that a killed writer left on a local disk, once no living one can own them (seconds)."""
        if is_local(self.fs):
            root = Path(self.root)
            for path in chain(*(root.joinpath(name).rglob("_tmp-*") for name in ("predictions", "compacted", "_run"))):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > older_than:
                        path.unlink()

    def finish(self, manifest: pa.Table, summary: dict[str, Any]) -> None:
        """The manifest, and after it the summary: the run is complete."""
        replace(self.fs, self.path("_run", "manifest.parquet"), parquet(manifest).to_pybytes())
        replace(self.fs, self.path("_run", "summary.json"), json.dumps(summary, indent=1).encode())

    def summary(self) -> dict[str, Any] | None:
        return self.read_json("_run", "summary.json")
