"""Find and read the units of a run: in files of their own, or in the large files of a compaction."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.commit import Damaged, footer_dict, parse_table, read_footer, read_table
from wordsworth.pipeline.output.committed import CommittedUnits, shard_name_of
from wordsworth.pipeline.output.compacted_file import COMPACTED, RECORD_NAME, CompactedFile
from wordsworth.pipeline.output.records import MANIFEST, JsonObject, ManifestRow, UnitFooter
from wordsworth.pipeline.storage.filesystem import absolute_uri, version_of
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.storage.walk import list_names
from wordsworth.pipeline.unit import TIMED


@dataclass(frozen=True, kw_only=True)
class StoredUnit:
    """Hold a unit as it was read.

    Attributes:
        rows: the prediction rows, without metadata.
        told: the unit's footer as JSON, which may be damaged; None where there is none.
        size_bytes: bytes of the unit's own file, now or before it was compacted.
    """

    rows: pa.Table
    told: JsonObject | None
    size_bytes: int

    @property
    def footer(self) -> UnitFooter:
        """Return the footer.

        Raises:
            KeyError, TypeError: the footer is damaged.
        """
        return UnitFooter.from_dict(self.told or {})


class UnitStore:
    """Say which units of a run are done and where they lie, and read them.

    The records of compactions are read when they are needed first, and kept.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str):
        self.fs = fs
        self.root = root
        self.reader = UnitReader(fs, root)
        self._recorded: pa.Table | None = None

    def names(self) -> Iterator[str]:
        """Yield the names of units that are done, and other names that lie beside them.

        A name may come twice.

        This is one LIST of predictions/, of which memory holds one answer of the store, and then the
        records of compactions.
        """
        yield from list_names(self.fs, f"{self.root}/predictions")
        for chunk in self._read_records(["file"])["file"].chunks:
            yield from chunk.to_pylist()

    def committed(self) -> CommittedUnits:
        """Return which units are done, by shard name."""
        return CommittedUnits(self.names())

    # ---- where units lie ----

    def record_paths(self, *, plans: bool) -> list[str]:
        """Return the paths of the records of compactions, in order: of the plans, or of the commits."""
        folder = f"{self.root}/_run/compacted"
        paths = []
        for name in list_names(self.fs, folder):
            match = RECORD_NAME.fullmatch(name)
            if match and bool(match["plan"]) == plans:
                paths.append(f"{folder}/{name}")
        return sorted(paths)

    def recorded(self) -> pa.Table:
        """Return the units that lie in compacted files, as COMPACTED."""
        if self._recorded is None:
            self._recorded = self._read_records(COMPACTED.names)
        return self._recorded

    def _read_records(self, columns: list[str]) -> pa.Table:
        wanted = pa.schema([COMPACTED.field(name) for name in columns])
        tables = [wanted.empty_table()]
        for path in self.record_paths(plans=False):
            try:
                table = read_table(self.fs, path, columns)
                tables.append(table.replace_schema_metadata(None).select(columns).cast(wanted))
            except (Damaged, pa.ArrowInvalid, ValueError) as error:
                uri = absolute_uri(self.fs, self.root)
                raise UserError(
                    f"{path} is damaged ({error}): restore it; `wordsworth verify {uri}` says what it names"
                ) from error
        return pa.concat_tables(tables)

    def unrecorded(self) -> list[str]:
        """Return the names of units that lie in files of their own and nowhere else, in order."""
        names = sorted(
            name for name in list_names(self.fs, f"{self.root}/predictions") if name.endswith(".parquet")
        )
        recorded = self._read_records(["file"])["file"].combine_chunks()
        is_known = pc.is_in(pa.array(names, pa.string()), value_set=recorded)
        return pa.array(names, pa.string()).filter(pc.invert(is_known)).to_pylist()

    def row_files(self) -> list[str]:
        """Return the paths of the files that together hold each row once."""
        own = [f"{self.root}/predictions/{name}" for name in self.unrecorded()]
        large = self._read_records(["into"])["into"].unique().to_pylist()
        return own + [f"{self.root}/compacted/{name}" for name in sorted(large)]

    def locate(self, manifest: pa.Table) -> pa.Table:
        """Return rows of the manifest as COMPACTED. More columns are null for a unit in a file of its own."""
        recorded = self.recorded()
        place = pc.index_in(manifest["file"], value_set=recorded["file"].combine_chunks())
        columns = []
        for name in COMPACTED.names:
            columns.append(manifest[name] if name in MANIFEST.names else recorded[name].take(place))
        return pa.table(columns, names=COMPACTED.names).cast(COMPACTED)

    def refuse_change(self, option: str) -> None:
        """Refuse to change units that lie in compacted files: those files are never changed.

        Raises:
            UserError: a compaction has recorded units of this run, or began to.
        """
        if self.record_paths(plans=True) or self.record_paths(plans=False):
            uri = absolute_uri(self.fs, self.root)
            raise UserError(
                f"{option} changes files that `wordsworth compact` has merged, into ones that never change: "
                f"use {option} on the folder that was compacted, and then compact it again; "
                f"{uri} takes --update alone"
            )

    # ---- reading ----

    def footer(self, name: str) -> UnitFooter:
        """Return a unit's footer, by the name of its own file; no row is read."""
        return self.reader.footer(self._place(name))

    def _place(self, name: str) -> JsonObject:
        own = {"file": name, "into": None}
        if self.fs.exists(self.reader.path(own)):
            return own
        recorded = self.recorded()
        found = recorded.filter(pc.equal(recorded["file"], name)).slice(0, 1).to_pylist()
        return found[0] if found else own

    def manifest(self, names: list[str]) -> pa.Table:
        """Return the rows of the manifest for units in files of their own: one read of a footer each."""
        rows = []
        for name in names:
            path = f"{self.root}/predictions/{name}"
            info = self.fs.info(path)
            row = ManifestRow.of(
                file=name,
                footer=read_footer(self.fs, path),
                size_bytes=info["size"],
                version=version_of(info),
            )
            rows.append(row.to_row())
        return pa.Table.from_pylist(rows, schema=MANIFEST)


class UnitReader:
    """Read units of a run. Memory holds one row group of one compacted file, which several threads share."""

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str):
        self.fs = fs
        self.root = root
        self._lock = threading.Lock()
        self._file: tuple[str, CompactedFile] | None = None  # name and file
        self._group: tuple[str, int, pa.Table] | None = None  # name, number and rows

    def __reduce__(self) -> tuple[type, tuple[fsspec.AbstractFileSystem, str]]:
        return UnitReader, (self.fs, self.root)  # what is open stays in this process

    def path(self, unit: JsonObject) -> str:
        """Return the path of the file that holds a unit; `unit` as in `read`."""
        if unit["into"] is None:
            return f"{self.root}/predictions/{unit['file']}"
        return f"{self.root}/compacted/{unit['into']}"

    def read(self, unit: JsonObject) -> StoredUnit:
        """Return a unit, with the checksum of every page compared that holds its rows.

        Args:
            unit: row of COMPACTED, of which `into` is None for a unit in a file of its own.

        Raises:
            Damaged: the file is not a whole Parquet file, or has other rows than were committed.
            OSError: the store does not give the file.
        """
        if unit["into"] is None:
            self.fs.invalidate_cache()
            data = with_retries(lambda: self.fs.cat_file(self.path(unit)))
            table = parse_table(data)
            rows = table.replace_schema_metadata(None)
            return StoredUnit(rows=rows, told=footer_dict(table.schema), size_bytes=len(data))
        with self._lock:
            file = self.open(unit["into"])
            rows = self._rows(file, unit)
        return StoredUnit(rows=rows, told=_footer_of(file.footer, unit), size_bytes=unit["bytes"])

    def footer(self, unit: JsonObject) -> UnitFooter:
        """Return a unit's footer; `unit` as in `read`.

        Raises:
            UserError: the file is not a file of a run.
            OSError: the store does not give the file.
        """
        path = self.path(unit)
        if unit["into"] is None:
            return with_retries(lambda: read_footer(self.fs, path))
        try:
            with self._lock:
                return UnitFooter.from_dict(_footer_of(self.open(unit["into"]).footer, unit))
        except (Damaged, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a file of this run ({error}): move it away") from error

    def open(self, name: str) -> CompactedFile:
        """Return a compacted file, of which one is kept open."""
        if self._file is None or self._file[0] != name:
            self._file = (name, CompactedFile(self.fs, f"{self.root}/compacted/{name}"))
        return self._file[1]

    def _rows(self, file: CompactedFile, unit: JsonObject) -> pa.Table:
        name = unit["into"]
        number = unit["row_group"]
        if number >= len(file.group_rows):
            raise Damaged(
                f"{name} has {len(file.group_rows)} row groups, and row group {number} was committed"
            )
        if self._group is None or self._group[:2] != (name, number):
            self._group = None  # so that two row groups are never held
            self._group = (name, number, file.read(number))
        rows = self._group[2].slice(unit["first"] - int(file.starts[number]), unit["rows"])
        if rows.num_rows != unit["rows"]:
            raise Damaged(f"{name} ends before row {unit['first'] + unit['rows']}, which was committed")
        return rows


def _footer_of(footer: JsonObject, unit: JsonObject) -> JsonObject:
    """Return what a unit's own footer said, from the footer of the compacted file and the record."""
    told = {name: value for name, value in footer.items() if name not in ("generation", "file", "units")}
    for field in fields(UnitFooter):
        if field.name in unit:
            told[field.name] = unit[field.name]
    return told | {
        "shard_name": shard_name_of(unit["file"]),
        "errors": json.loads(unit["errors"]),
        "skipped": json.loads(unit["skipped"]),
        "seconds": {stage: unit[stage] for stage in TIMED},
    }
