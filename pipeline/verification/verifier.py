"""Prove that a run is whole: every input sample has exactly one row, and this run wrote every row.

Without the source, the proof is about the folder: every unit is there once and undamaged, and the indexes
have no gap and no repetition. Such a proof cannot see a sample that the reader never gave. With the source,
the input is counted again by other means: see wordsworth.pipeline.verification.recount.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.commit import Damaged, read_table
from wordsworth.pipeline.output.frozen_listing import FrozenListing
from wordsworth.pipeline.output.records import JsonObject, RunPlan
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.shards import LISTING, Shard
from wordsworth.pipeline.storage.filesystem import without_credentials
from wordsworth.pipeline.verification.recount import Recount, Sample
from wordsworth.pipeline.verification.report import Report
from wordsworth.pipeline.verification.row_findings import full_keys, row_findings
from wordsworth.pipeline.verification.run_part import RunPart
from wordsworth.pipeline.verification.stored_units import FoundUnit, StoredUnits, difference


def verify(output: str, source: bool = False, storage_options: dict[str, Any] | None = None) -> Report:
    """Check a run folder, and with `source` compare it with its input, which is read once from front to back.

    Everything is read as a stream. Memory holds one unit's file, one row group of a compacted file, the keys
    of one shard and one page of the listing; besides, a name and a number for each file and, with `source`,
    the names under one prefix of loose images.

    Raises:
        UserError: there is no run, or the store does not give the files of the run folder.
    """
    run = RunFolder(output, storage_options)
    where = without_credentials(run.uri)
    try:
        plan = run.plan_of_run()
        return _Verifier(run, plan, source, storage_options).check()
    except OSError as error:
        raise UserError(f"cannot verify {where}: {type(error).__name__}: {error}") from error


UNFINISHED = "there is no summary: the run has not come to its end; the same command again continues it"
# Columns that a row must have for the checks to mean anything.
_TYPES = {
    "key": pa.string(),
    "shard": pa.dictionary(pa.int32(), pa.string()),
    "index": pa.int32(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "error": pa.string(),
}


def _replaced_in(run: RunFolder) -> dict[str, int]:
    """Return the number of the page that replaces or drops a shard, by the shard's id. A page that cannot be
    read is reported later."""
    try:
        return FrozenListing(run).replaced_in()
    except (pa.ArrowInvalid, ValueError, TypeError):
        return {}


def _read(run: RunFolder, *parts: str) -> pa.Table | Damaged:
    """Return a Parquet file of the run, or why it cannot be read. What the store raises is raised."""
    try:
        return read_table(run.fs, run.path(*parts))
    except Damaged as error:
        return error


class _Verifier:
    """Go over a run folder once, shard by shard in the order of the listing."""

    def __init__(self, run: RunFolder, plan: RunPlan, source: bool, options: dict[str, Any] | None):
        self.run = run
        self.run_is = {"run_id": plan.run_id, "fingerprint": plan.fingerprint}
        self.report = Report(recounted=0 if source else None)
        self.rows: dict[str, int | None] = {}  # rows by file name; None for a file that cannot be read
        self.schema: pa.Schema | None = None  # schema of the first file
        self.part = RunPart(run)
        self.recount = Recount(plan.asked, options, self.report, self.part.is_part) if source else None
        self.replaced_in = {} if self.part.is_sample else _replaced_in(run)

    def check(self) -> Report:
        """Make every check and return the report."""
        self.units = StoredUnits(self.run, self.run_is, self.report)
        for shard in self._shards():
            self._shard(shard)
        if self.recount:
            self.recount.close()
        is_listing_damaged = any(
            one.where.startswith(f"_run/{self.part.folder}") for one in self.report.findings
        )
        if not is_listing_damaged:  # with a damaged listing, nobody knows what is foreign
            self.units.name_strays()
        self.units.check_folder()
        self._totals()
        return self.report

    def _shards(self) -> Iterator[Shard]:
        """Yield the shards of the frozen listing, but for those that a later page replaces. One page is
        held."""
        folder = self.part.folder
        names = self.run.names("_run", folder)
        bare = [f"{number:05d}.parquet" for number in range(len(names))]
        is_numbered = [name.replace("-end", "") for name in names] == bare
        is_whole = bool(names) and (names[-1].endswith("-end.parquet") or self.part.limit > 0)
        if not is_whole or not is_numbered:
            last = ", ".join(names[-3:]) or "none"
            why = "one is missing" if names else "the run has not begun to list its source"
            self.report.add("incomplete_listing", f"_run/{folder}", f"its pages are {last}: {why}")
        for number, name in enumerate(names):
            page = _read(self.run, "_run", folder, name)
            if isinstance(page, Exception) or not set(LISTING.names) <= set(page.column_names):
                self.report.add("unreadable_listing", f"_run/{folder}/{name}", _why(page))
                continue
            for row in page.to_pylist():
                shard = Shard.from_row(row)
                if shard.id != row["id"]:
                    why = f"{without_credentials(shard.uri)} is not what its id was made from"
                    self.report.add("wrong_listing", f"_run/{folder}/{name}", why)
                if self.replaced_in.get(shard.id, -1) <= number:
                    yield shard

    def _shard(self, shard: Shard) -> None:
        """Check the units of a shard and, with the source, count the shard again."""
        self.report.shards += 1
        units = self.units.of(shard.name)
        is_begun = self.part.limit > 0 and not any(unit.last for unit in units)
        for code, detail, count in _unit_findings(units, is_begun):
            self.report.add(code, shard.name, detail, count)
        expected: int | None = shard.first_index
        before = -1
        rows: list[Sample] = []
        keys: list[pa.ChunkedArray] = []
        for unit in units:
            if unit.number > before + 1:
                expected = None  # the missing unit is reported already: its rows need no finding of their own
            table = self._unit(shard, unit)
            expected = None if table is None else self._indexes(table, expected, unit.name)
            if table is not None:
                keys.append(full_keys(shard, table))
            if self.recount and table is not None:
                columns = [keys[-1], *(table[name] for name in Sample._fields[1:])]
                rows += map(Sample._make, zip(*(column.to_pylist() for column in columns), strict=True))
            before = unit.number
        self._note_repeated(keys, without_credentials(shard.uri))
        if self.recount:
            self.recount.shard(shard, rows, is_begun)

    def _note_repeated(self, keys: list[pa.ChunkedArray], where: str) -> None:
        """Note the keys that several rows of a shard have."""
        given = pa.chunked_array([part for key in keys for part in key.chunks], pa.string()).drop_null()
        count = len(given) - pc.count_distinct(given).as_py()
        if count:
            found = Counter(given.to_pylist())
            key = next(key for key in found if found[key] > 1)
            self.report.add_repeated_keys(where, key, count)

    def _unit(self, shard: Shard, unit: FoundUnit) -> pa.Table | None:
        """Check everything about a unit but its place among the others, and return its rows.

        Returns None where the rows cannot be trusted to be rows.
        """
        self.rows[unit.name] = None
        self.report.files += 1
        copies = self.units.copies(unit)
        if not copies:
            return None  # what is wrong with the file is named already
        first = copies[0]
        for other in copies[1:]:
            detail = difference(first.rows, other.rows)
            if detail:
                detail = f"its rows are not those in {other.where}: {detail}"
                self.report.add("differing_rows", unit.name, detail)
        return self._checked(shard, unit, first.rows, first.footer)

    def _checked(
        self, shard: Shard, unit: FoundUnit, table: pa.Table, footer: JsonObject | None
    ) -> pa.Table | None:
        """Compare a unit's rows with the schema, the footer and the shard; return the rows if they can be
        trusted."""
        name = unit.name
        self.schema = self.schema or table.schema
        missing = [column for column in _TYPES if column not in table.schema.names]
        if missing or not table.schema.equals(self.schema):
            self.report.add("wrong_schema", name, f"its columns are {', '.join(table.schema.names)}")
            return None
        wrong = [column for column, kind in _TYPES.items() if table.schema.field(column).type != kind]
        if wrong:
            self.report.add("wrong_schema", name, f"the type of {', '.join(wrong)} is another")
            return None
        self.rows[name] = table.num_rows
        errors = Counter(table["error"].drop_null().to_pylist())
        self.report.rows += table.num_rows
        self.report.errors.update(errors)
        identity = {
            "shard": without_credentials(shard.uri),
            "shard_name": shard.name,
            "unit": unit.number,
            "last": unit.last,
        }
        wanted: dict[str, JsonObject] = {
            "other_run": self.run_is,
            "wrong_footer": identity,
            "wrong_rows": {"rows": table.num_rows},
            "wrong_errors": {"errors": dict(errors)},
        }
        for code, detail in _footer_findings(footer, wanted):
            self.report.add(code, name, detail)
        for code, detail, count in row_findings(table, shard):
            self.report.add(code, name, detail, count)
        return table

    def _indexes(self, table: pa.Table, expected: int | None, name: str) -> int | None:
        """Check that the indexes count up from `expected` (None: from any) and return the index that comes
        next."""
        index = table["index"].fill_null(-1).to_numpy().astype(np.int64)
        if not len(index):
            return expected
        first = index[0] if expected is None else expected
        before = np.concatenate([[first - 1], index[:-1]])
        for code, wrong in (("repeated_row", index <= before), ("missing_row", index > before + 1)):
            if wrong.any():
                detail = f"index {index[wrong][0]} comes after index {before[wrong][0]}"
                self.report.add(code, name, detail, int(wrong.sum()))
        return int(index[-1]) + 1

    def _totals(self) -> None:
        """Compare the summary and the manifest, which a run writes last, with what is there."""
        where = "_run/summary.json"
        try:
            summary = self.run.read_json("_run", "summary.json")
        except UserError as error:
            self.report.add("wrong_summary", where, str(error))
            return
        if summary is None and self.part.is_part:
            self.report.add(*self.part.finding(self.report.rows))
            return
        if summary is None:
            self.report.add("not_finished", where, UNFINISHED)
            return
        if "rows" not in summary:
            summary = summary | {"rows": None}
        report = self.report
        found = {"rows": report.rows, "files": report.files, "shards": report.shards, "errors": report.errors}
        for name, value in (found | self.run_is).items():
            told = summary.get(name, value)
            if told != value:
                self.report.add("wrong_summary", where, f"{name}: it says {told}, there are {value}")
        self._manifest()

    def _manifest(self) -> None:
        """Compare the files and the rows that the manifest names with those that were found."""
        where = "_run/manifest.parquet"
        table: pa.Table | Exception
        try:
            table = _read(self.run, "_run", "manifest.parquet")
        except FileNotFoundError as error:
            table = error
        if isinstance(table, Exception) or not {"file", "rows"} <= set(table.schema.names):
            self.report.add("wrong_manifest", where, _why(table))
            return
        files = table["file"].to_pylist()
        told = dict(zip(files, table["rows"].to_pylist(), strict=True))
        repeated = {name for name, count in Counter(files).items() if count > 1}
        wrong = sorted(repeated | (told.keys() ^ self.rows.keys()))
        for name in sorted(told.keys() & self.rows.keys()):
            if self.rows[name] not in (None, told[name]):
                wrong.append(name)
        if wrong:
            first = wrong[0]
            detail = (
                f"{first} has {self.rows.get(first, 'no')} rows here and {told.get(first, 'no')} rows there"
            )
            self.report.add("wrong_manifest", where, detail, len(wrong))


def _why(problem: pa.Table | Exception) -> str:
    if isinstance(problem, Damaged):
        return str(problem)
    if isinstance(problem, Exception):
        return f"{type(problem).__name__}: {problem}"
    return "its columns are not what a run writes"


def _unit_findings(units: list[FoundUnit], is_begun: bool) -> Iterator[tuple[str, str, int]]:
    """Yield code, detail and count of what is wrong with a shard's units.

    They must be 0, 1, ... up to one end, each under one name. A shard that is only begun has no end.
    """
    names = Counter(unit.number for unit in units)
    ends = [unit.number for unit in units if unit.last]
    end = min(ends, default=max(names, default=-1))
    missing = [number for number in range(end + 1) if number not in names]
    if missing:
        yield "missing_unit", f"file {missing[0]:05d} of 0 to {end} is not there", len(missing)
    if not ends and not is_begun:
        yield "missing_end", f"no file says that the shard ends with it; {len(names)} are there", 1
    after = [number for number in names if number > end]
    if after:
        yield "unit_after_end", f"file {min(after):05d} comes after the end, file {end:05d}", len(after)
    twice = [number for number, count in names.items() if count > 1]
    if twice:
        yield "two_names", f"file {twice[0]:05d} is there with and without -end", len(twice)


def _footer_findings(footer: JsonObject | None, wanted: dict[str, JsonObject]) -> Iterator[tuple[str, str]]:
    """Yield code and detail of what a unit's footer says wrongly.

    Args:
        footer: the unit's own account of itself; None where there is none.
        wanted: the fields that it should have, by the code of the finding.
    """
    if footer is None:
        yield "wrong_footer", "its metadata does not say what run and shard it is of"
        return
    for code, fields in wanted.items():
        for name, value in fields.items():
            if footer.get(name) != value:
                yield code, f"{name} is {footer.get(name)} in its footer and should be {value}"
