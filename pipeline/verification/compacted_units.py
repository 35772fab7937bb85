"""The part of verify that is about compacted files: what the generations name, and the rows of a unit in there."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.compaction.compacted_file import CompactedFile, Damaged, names_in, parse
from wordsworth.pipeline.output.committed import UNIT_NAME
from wordsworth.pipeline.output.run_folder import COMPACTED, FOOTER, GENERATION, PLANNED, RunFolder
from wordsworth.pipeline.verification.report import Report


class CompactedUnits:
    """The units that committed generations name, as one Arrow table, and their rows, of which one row group is kept.

    Works on a run that is being compacted: `again` looks for what was committed since. Faults are added to the report, each once.
    """

    def __init__(self, run: RunFolder, run_is: dict[str, Any], report: Report):
        self.run, self.run_is, self.report = run, run_is, report
        self.units = COMPACTED.empty_table()
        self.planned: dict[int, set[str]] = {}  # by generation, the names of its files
        self.plans: dict[int, pa.Table] = {}  # of those that are not committed yet
        self.committed: set[int] = set()
        self.strays: set[str] = set()  # names in _run/compacted/
        self.faulty: set[Any] = set()  # files, and row groups, that are named already
        self.seen = np.empty(0, bool)
        self._open: tuple[str, CompactedFile | None] = ("", None)
        self._group: tuple[Any, pa.Table | None] = (None, None)
        self._look()

    # ---- the generations ----

    def _look(self) -> None:
        """Read the plans and commits that are not known yet."""
        names = names_in(self.run, "_run", "compacted")
        for name in sorted(set(names) - self.strays):
            if not GENERATION.fullmatch(name):
                self.strays.add(name)
                self.report.add("foreign_file", f"_run/compacted/{name}", "not a name that a run writes")
        there = [
            (int(match["number"]), bool(match["plan"]))
            for name in names
            if (match := GENERATION.fullmatch(name))
        ]
        plans, commits = (
            {number for number, planned in there if planned is which} for which in (True, False)
        )
        for number in sorted((plans | commits) - self.planned.keys() - self.committed):
            self._plan(number, number in plans)
        for number in sorted(commits - self.committed):
            self._commit(number)
        self._index()

    def _plan(self, number: int, there: bool) -> None:
        where = f"_run/compacted/{number:05d}-plan.parquet"
        self.planned[number] = set()
        if not there:
            return self.report.add("wrong_generation", where, "there is a commit and no plan before it")
        plan = self._table(where, PLANNED)
        if plan is not None:
            self.planned[number] = set(plan["into"].unique().to_pylist())
            self.plans[number] = plan

    def _commit(self, number: int) -> None:
        where = f"_run/compacted/{number:05d}.parquet"
        self.committed.add(number)
        units = self._table(where, COMPACTED)
        if units is None:
            return
        strange = not pc.all(pc.match_substring_regex(units["file"], f"^{UNIT_NAME.pattern}$")).as_py()
        known = pc.any(pc.is_in(units["file"], value_set=self.units["file"].combine_chunks())).as_py()
        if strange or known or pc.count_distinct(units["file"]).as_py() < units.num_rows:
            return self.report.add(
                "wrong_generation", where, "it names a file that no run writes, or one that is named before"
            )
        plan = self.plans.pop(number, None)
        if plan is not None and not plan.equals(units.select(PLANNED.names)):
            self.report.add("wrong_generation", where, "it names other units than its plan")
        self.planned[number] |= set(units["into"].unique().to_pylist())
        self.units = pa.concat_tables([self.units, units])

    def _table(self, where: str, schema: pa.Schema) -> pa.Table | None:
        """A record of a generation; None, with its fault, for one that is damaged. One of another run is named and read."""
        table = parse(self.run.fs.cat_file(self.run.path(where)))
        if isinstance(table, Exception) or not table.schema.equals(schema):
            why = (
                f"{type(table).__name__}: {table}"
                if isinstance(table, Exception)
                else "its columns are not what a run writes"
            )
            return self.report.add("unreadable_generation", where, why)
        footer = json.loads((table.schema.metadata or {}).get(FOOTER, b"{}"))
        for name, value in self.run_is.items():
            if footer.get(name) != value:
                self.report.add(
                    "other_run", where, f"{name} is {footer.get(name)} in its metadata and should be {value}"
                )
        return table.replace_schema_metadata(None)

    def _index(self) -> None:
        """Rows by their shard's id: 8 bytes a unit."""
        ids = pc.struct_field(
            pc.extract_regex(self.units["file"], r"-(?P<id>[0-9a-f]{12})-\d{5,}(?:-end)?\.parquet$"), "id"
        )
        values = (int(text, 16) for chunk in ids.chunks for text in chunk.to_pylist())
        numbers = np.fromiter(values, np.uint64, self.units.num_rows)
        self.order = np.argsort(numbers, kind="stable")
        self.ids = numbers[self.order]
        self.seen = np.concatenate([self.seen, np.zeros(self.units.num_rows - len(self.seen), bool)])

    # ---- what verify asks ----

    def of(self, shard_name: str) -> dict[str, int]:
        """Row of every unit of a shard, by the name of its small file."""
        wanted = np.uint64(int(shard_name[-12:], 16))
        begin, end = (int(np.searchsorted(self.ids, wanted, side)) for side in ("left", "right"))
        found = ((self.units["file"][int(row)].as_py(), int(row)) for row in self.order[begin:end])
        rows = {name: row for name, row in found if UNIT_NAME.fullmatch(name)["shard"] == shard_name}
        self.seen[list(rows.values())] = True
        return rows

    def again(self, name: str) -> int | None:
        """The row of a unit whose small file has just gone."""
        self._look()
        return self.of(UNIT_NAME.fullmatch(name)["shard"]).get(name)

    def where(self, row: int) -> str:
        return f"compacted/{self.units['into'][row].as_py()}"

    def footer(self, row: int) -> dict[str, Any]:
        """What is told of a unit, as the footer of its small file did."""
        (unit,) = self.units.slice(row, 1).to_pylist()
        name = {
            "shard_name": UNIT_NAME.fullmatch(unit["file"])["shard"],
            "errors": json.loads(unit["errors"]),
        }
        return unit | name | self.run_is  # the file's own is compared when it is opened

    def rows(self, row: int) -> pa.Table | None:
        """A unit's rows in its compacted file; None where that cannot be read, which is named."""
        (unit,) = self.units.select(["into", "row_group", "first", "rows"]).slice(row, 1).to_pylist()
        file = self._file(unit["into"])
        group = None if file is None else self._row_group(unit["into"], file, unit["row_group"])
        return (
            None
            if group is None
            else group.slice(unit["first"] - int(file.starts[unit["row_group"]]), unit["rows"])
        )

    # ---- the files ----

    def _file(self, name: str) -> CompactedFile | None:
        if self._open[0] != name:
            self._open = (name, self._checked(name))
        return self._open[1]

    def _checked(self, name: str) -> CompactedFile | None:
        """A file that a generation names, if its row groups are those that were committed."""
        where, again = f"compacted/{name}", name in self.faulty
        self.faulty.add(name)  # whatever is wrong is named below, once
        file = self._opened(name, again)
        if file is None:
            return None
        units = self.units.filter(pc.equal(self.units["into"], name))
        groups = units.group_by("row_group", use_threads=False).aggregate([("rows", "sum")])
        if groups["rows_sum"].to_pylist() != file.group_rows:
            if not again:
                told, found = pc.sum(units["rows"]).as_py(), sum(file.group_rows)
                self.report.add(
                    "wrong_rows",
                    where,
                    f"{found} rows in {len(file.group_rows)} row groups, and {told} were committed",
                )
            return None
        if file.size != units["into_bytes"][0].as_py() and not again:
            self.report.add(
                "wrong_size", where, f"{file.size} bytes, and {units['into_bytes'][0]} when it was committed"
            )
        return file

    def _opened(self, name: str, again: bool) -> CompactedFile | None:
        """A file whose footer is compared, once. None where there is none."""
        where = f"compacted/{name}"
        try:
            file = CompactedFile(self.run, name)
        except (FileNotFoundError, Damaged) as error:
            if not again:
                what = "unreadable_file" if isinstance(error, Damaged) else "missing_file"
                self.report.add(
                    what,
                    where,
                    str(error) if isinstance(error, Damaged) else "a generation names it, it is not there",
                )
            return None
        wanted = {"other_run": self.run_is, "wrong_footer": {"file": name, "rows": sum(file.group_rows)}}
        for what, key, value in (
            (what, *item) for what, told in wanted.items() for item in told.items() if not again
        ):
            if file.footer.get(key) != value:
                self.report.add(
                    what, where, f"{key} is {file.footer.get(key)} in its footer and should be {value}"
                )
        return file

    def _row_group(self, name: str, file: CompactedFile, number: int) -> pa.Table | None:
        if self._group[0] != (name, number):
            self._group = (None, None)  # so that two are never held
            try:
                table = file.read(number)
            except Damaged as error:
                table = None
                if (name, number) not in self.faulty:
                    self.faulty.add((name, number))
                    self.report.add("unreadable_file", f"compacted/{name}", f"row group {number}: {error}")
            self._group = ((name, number), table)
        return self._group[1]

    # ---- at the end ----

    def name_strays(self) -> None:
        """Units of no shard of this run."""
        stray = np.flatnonzero(~self.seen)
        if len(stray):
            name = self.units["file"][int(stray[0])]
            self.report.add(
                "foreign_file",
                self.where(int(stray[0])),
                f"{name} belongs to no shard of this run",
                len(stray),
            )

    def check_folder(self) -> None:
        """compacted/ holds what the generations name; files of one that is not committed yet are whole, too."""
        names = names_in(self.run, "compacted")
        self._look()
        for name in sorted(set(names) - set().union(*self.planned.values())):
            self.report.add("foreign_file", f"compacted/{name}", "no generation names it")
        pending = set().union(
            *(files for number, files in self.planned.items() if number not in self.committed)
        )
        for name in sorted(pending.intersection(names)):
            file = self._opened(name, again=False)
            for number in range(len(file.group_rows) if file else 0):
                self._row_group(name, file, number)


def differing(small: pa.Table, merged: pa.Table) -> str | None:
    """Why a small file's rows are not those of its unit in a compacted file; None where they are."""
    if small.num_rows != merged.num_rows or small.column_names != merged.column_names:
        return f"{small.num_rows} rows of {small.num_columns} columns here, {merged.num_rows} of {merged.num_columns} there"
    for name in small.column_names:
        if not _same(small[name], merged[name]):
            return f"{name} is another"
    return None


def _same(left: pa.ChunkedArray, right: pa.ChunkedArray) -> bool:
    if pa.types.is_dictionary(left.type) and pa.types.is_dictionary(right.type):
        left, right = (column.cast(column.type.value_type) for column in (left, right))
    return left.equals(right) or repr(left.to_pylist()) == repr(right.to_pylist())  # the latter: NaN is NaN
