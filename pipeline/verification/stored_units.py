"""Find every copy of the units of a run, and name what is wrong with the files that hold the units.

A unit lies in a file of its own or in a compacted file. In a run that was compacted in place it may lie in
both.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.output.commit import Damaged, footer_dict, read_table
from wordsworth.pipeline.output.committed import UNIT_NAME, shard_name_of, unit_file
from wordsworth.pipeline.output.compacted_file import COMPACTED, PLANNED, RECORD_NAME
from wordsworth.pipeline.output.records import JsonObject
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.output.unit_store import StoredUnit
from wordsworth.pipeline.verification.report import Report


@dataclass(frozen=True, kw_only=True)
class FoundUnit:
    """Say where the copies of a unit are.

    Attributes:
        number: number of the unit in its shard.
        last: whether its name says that the shard ends with it.
        name: name of its own file, now or before it was compacted.
        is_own: whether it lies in a file of its own.
        row: its place among the recorded units; None if no record names it.
    """

    number: int
    last: bool
    name: str
    is_own: bool
    row: int | None


@dataclass(frozen=True, kw_only=True)
class UnitCopy:
    """Hold one copy of a unit.

    Attributes:
        where: name of the file that holds the copy.
        rows: the prediction rows.
        footer: what the file, or the record of its compaction, says of the unit; None where it says nothing.
    """

    where: str
    rows: pa.Table
    footer: JsonObject | None


class StoredUnits:
    """Find and read the units of a run. Findings are added to the report, each once.

    Memory holds a name for each unit, and one row group of a compacted file.
    """

    def __init__(self, run: RunFolder, run_is: JsonObject, report: Report):
        """Read the names of the files, and the records of compactions.

        Args:
            run: the run folder.
            run_is: run_id and fingerprint of the run.
            report: gets the findings.
        """
        self.run = run
        self.run_is = run_is
        self.report = report
        self.reader = run.units().reader
        self.own = self._own_names()
        self.recorded = COMPACTED.empty_table()
        self.planned: set[str] = set()  # names of compacted files
        self.pending: set[str] = set()  # names of compacted files whose compaction was not committed
        self._read_records()
        self._seen = np.zeros(self.recorded.num_rows, bool)
        self._order, self._ids = self._index()
        self._sound: dict[str, bool] = {}  # by compacted file: whether its units can be read
        self._damaged: set[tuple[str, int]] = set()  # row groups that are reported already

    def _own_names(self) -> dict[str, set[str]]:
        """Return the names of the units' own files, by shard name."""
        names = defaultdict(set)
        for name in self.run.names("predictions"):
            match = UNIT_NAME.fullmatch(name)
            if match and name == unit_file(match["shard"], int(match["unit"]), match["end"] is not None):
                names[match["shard"]].add(name)
            else:
                self.report.add("foreign_file", name, "not a name that a run writes")
        return names

    # ---- the records of compactions ----

    def _read_records(self) -> None:
        plans = set()
        commits = set()
        for name in self.run.names("_run", "compacted"):
            match = RECORD_NAME.fullmatch(name)
            if not match:
                self.report.add("foreign_file", f"_run/compacted/{name}", "not a name that a run writes")
            elif match["plan"]:
                plans.add(match["number"])
            else:
                commits.add(match["number"])
        for number in sorted(plans | commits):
            self._read_compaction(number, number in plans, number in commits)

    def _read_compaction(self, number: str, is_planned: bool, is_committed: bool) -> None:
        plan_name = f"_run/compacted/{number}-plan.parquet"
        plan = self._record(plan_name, PLANNED) if is_planned else None
        planned = set() if plan is None else set(plan["into"].unique().to_pylist())
        if not is_planned:
            self.report.add("wrong_generation", plan_name, "there is a commit and no plan before it")
        if is_committed:
            planned |= self._add_commit(f"_run/compacted/{number}.parquet", plan)
        else:
            self.pending |= planned
        self.planned |= planned

    def _add_commit(self, where: str, plan: pa.Table | None) -> set[str]:
        """Add the units of a commit, and return the names of their compacted files."""
        units = self._record(where, COMPACTED)
        if units is None:
            return set()
        strange = not pc.all(pc.match_substring_regex(units["file"], f"^{UNIT_NAME.pattern}$")).as_py()
        known = pc.any(pc.is_in(units["file"], value_set=self.recorded["file"].combine_chunks())).as_py()
        if strange or known or pc.count_distinct(units["file"]).as_py() < units.num_rows:
            why = "it names a file that no run writes, or one that is named before"
            self.report.add("wrong_generation", where, why)
            return set()
        if plan is not None and not plan.equals(units.select(PLANNED.names)):
            self.report.add("wrong_generation", where, "it names other files than its plan")
        self.recorded = pa.concat_tables([self.recorded, units])
        return set(units["into"].unique().to_pylist())

    def _record(self, where: str, schema: pa.Schema) -> pa.Table | None:
        """Return a record; None, with its fault, for a damaged one.

        A record of another run is named and returned.
        """
        try:
            table = read_table(self.run.fs, self.run.path(where))
            if not table.schema.equals(schema):
                raise Damaged("its columns are not what a run writes")
        except Damaged as error:
            self.report.add("unreadable_generation", where, str(error))
            return None
        footer = footer_dict(table.schema) or {}
        for name, value in self.run_is.items():
            if footer.get(name) != value:
                why = f"{name} is {footer.get(name)} in its metadata and should be {value}"
                self.report.add("other_run", where, why)
        return table.replace_schema_metadata(None)

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the recorded units in the order of their shards' ids, and the ids: 8 bytes a unit."""
        pattern = r"-(?P<id>[0-9a-f]{12})-\d{5,}(?:-end)?\.parquet$"
        ids = np.empty(self.recorded.num_rows, np.uint64)
        for number, name in enumerate(pc.extract_regex(self.recorded["file"], pattern).to_pylist()):
            ids[number] = int(name["id"], 16)
        order = np.argsort(ids, kind="stable")
        return order, ids[order]

    # ---- units ----

    def of(self, shard_name: str) -> list[FoundUnit]:
        """Return the units of a shard, in order. The shard counts as known from here on."""
        rows = self._rows_of(shard_name)
        self._seen[list(rows.values())] = True
        own = self.own.pop(shard_name, set())
        units = []
        for match in filter(None, map(UNIT_NAME.fullmatch, own | rows.keys())):
            name = match[0]
            unit = FoundUnit(
                number=int(match["unit"]),
                last=match["end"] is not None,
                name=name,
                is_own=name in own,
                row=rows.get(name),
            )
            units.append(unit)
        return sorted(units, key=lambda unit: (unit.number, unit.last))

    def _rows_of(self, shard_name: str) -> dict[str, int]:
        """Return the places of a shard's units among the recorded ones, by name."""
        wanted = np.uint64(int(shard_name[-12:], 16))
        begin = int(np.searchsorted(self._ids, wanted, "left"))
        end = int(np.searchsorted(self._ids, wanted, "right"))
        rows = {}
        for row in map(int, self._order[begin:end]):
            name = self.recorded["file"][row].as_py()
            if shard_name_of(name) == shard_name:
                rows[name] = row
        return rows

    def copies(self, unit: FoundUnit) -> list[UnitCopy]:
        """Return the copies of a unit that can be read. Damage is named."""
        found = []
        if unit.is_own:
            found += self._copy(unit.name, {"file": unit.name, "into": None})
        if unit.row is not None:
            (place,) = self.recorded.slice(unit.row, 1).to_pylist()
            if self._is_sound(place["into"]):
                found += self._copy(f"compacted/{place['into']}", place)
        return found

    def _copy(self, where: str, unit: JsonObject) -> list[UnitCopy]:
        """Return a copy of a unit, if it can be read."""
        group = (where, unit.get("row_group", 0))
        try:
            stored = self.reader.read(unit)
        except Damaged as error:
            if group not in self._damaged:
                self._damaged.add(group)
                self.report.add("unreadable_file", where, str(error))
            return []
        return [UnitCopy(where=where, rows=stored.rows, footer=self._footer(stored, unit))]

    def _footer(self, stored: StoredUnit, unit: JsonObject) -> JsonObject | None:
        if stored.told is None or unit["into"] is None:
            return stored.told
        return stored.told | self.run_is  # the compacted file's own fields were compared when it was opened

    # ---- compacted files ----

    def _is_sound(self, name: str) -> bool:
        """Return whether units can be read from a compacted file. What is wrong is named once."""
        if name not in self._sound:
            self._sound[name] = self._check_file(name) and self._check_units(name)
        return self._sound[name]

    def _check_file(self, name: str) -> bool:
        """Compare what a compacted file says of itself, and return whether it can be opened."""
        where = f"compacted/{name}"
        try:
            file = self.reader.open(name)
        except FileNotFoundError:
            self.report.add("missing_file", where, "a generation names it, it is not there")
            return False
        except Damaged as error:
            self.report.add("unreadable_file", where, str(error))
            return False
        self._compare("other_run", where, file.footer, self.run_is)
        self._compare("wrong_footer", where, file.footer, {"file": name, "rows": sum(file.group_rows)})
        return True

    def _compare(self, what: str, where: str, footer: JsonObject, wanted: JsonObject) -> None:
        for key, value in wanted.items():
            if footer.get(key) != value:
                why = f"{key} is {footer.get(key)} in its footer and should be {value}"
                self.report.add(what, where, why)

    def _check_units(self, name: str) -> bool:
        """Compare the row groups of a compacted file with those that were committed."""
        where = f"compacted/{name}"
        file = self.reader.open(name)
        units = self.recorded.filter(pc.equal(self.recorded["into"], name))
        groups = units.group_by("row_group", use_threads=False).aggregate([("rows", "sum")])
        if groups["rows_sum"].to_pylist() != file.group_rows:
            found = f"{plural(sum(file.group_rows), 'row')} in {len(file.group_rows)} row groups"
            self.report.add("wrong_rows", where, f"{found}, and {pc.sum(units['rows'])} were committed")
            return False
        size = units["into_bytes"][0].as_py()
        if file.size != size:
            self.report.add("wrong_size", where, f"{file.size} bytes, and {size} when it was committed")
        return True

    # ---- at the end ----

    def name_strays(self) -> None:
        """Name units of no shard of this run."""
        for name in sorted(name for names in self.own.values() for name in names):
            self.report.add("foreign_file", name, "belongs to no shard of this run")
        stray = np.flatnonzero(~self._seen)
        if len(stray):
            (unit,) = self.recorded.slice(int(stray[0]), 1).to_pylist()
            why = f"{unit['file']} belongs to no shard of this run"
            self.report.add("foreign_file", f"compacted/{unit['into']}", why, len(stray))

    def check_folder(self) -> None:
        """Name files in compacted/ that no record names, and damage in files that were not committed."""
        for name in self.run.names("compacted"):
            if name not in self.planned:
                self.report.add("foreign_file", f"compacted/{name}", "no generation names it")
            elif name in self.pending and self._check_file(name):
                file = self.reader.open(name)
                for group in range(len(file.group_rows)):
                    self._check_group(name, group)

    def _check_group(self, name: str, group: int) -> None:
        try:
            self.reader.open(name).read(group)
        except Damaged as error:
            self.report.add("unreadable_file", f"compacted/{name}", f"row group {group}: {error}")


def difference(one: pa.Table, other: pa.Table) -> str | None:
    """Return why two copies of a unit do not have the same rows; None where they do."""
    if one.num_rows != other.num_rows or one.column_names != other.column_names:
        return (
            f"{plural(one.num_rows, 'row')} of {one.num_columns} columns here, "
            f"{other.num_rows} of {other.num_columns} there"
        )
    for name in one.column_names:
        if not _same(one[name], other[name]):
            return f"{name} is another"
    return None


def _same(left: pa.ChunkedArray, right: pa.ChunkedArray) -> bool:
    if pa.types.is_dictionary(left.type) and pa.types.is_dictionary(right.type):
        left = left.cast(left.type.value_type)
        right = right.cast(right.type.value_type)
    return left.equals(right) or repr(left.to_pylist()) == repr(right.to_pylist())  # repr: NaN is NaN
