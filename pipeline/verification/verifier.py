"""Prove that a run is whole: every input sample has exactly one row, and every row is one that this run wrote.

Without the source the proof is about the folder: its units are there once each, undamaged, and count without gap or
repetition. That cannot see a sample that the reader never gave. With the source the input is counted again, by other means:
see wordsworth.pipeline.verification.recount.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.compaction.compacted_file import names_in, parse
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.committed import UNIT_NAME, unit_file
from wordsworth.pipeline.output.frozen_listing import FrozenListing
from wordsworth.pipeline.output.run_folder import FOOTER, RunFolder
from wordsworth.pipeline.sources.shards import LISTING, Shard
from wordsworth.pipeline.storage.filesystem import public
from wordsworth.pipeline.verification.compacted_units import CompactedUnits, differing
from wordsworth.pipeline.verification.recount import Recount, Sample
from wordsworth.pipeline.verification.report import Report


def verify(output: str, source: bool = False, storage_options: dict[str, Any] | None = None) -> Report:
    """Check a run folder; with `source`, hold it against its input, which is read once from front to back.

    Everything streams. Memory is bounded by one unit's file, one row group of a compacted one, the keys of one shard and one page
    of the listing; beside them stand a name and a number for each file and, with `source`, the names under one prefix of loose
    images.

    Raises UserError where there is no run, and where the store does not give what the run folder consists of.
    """
    run = RunFolder(output, storage_options)
    try:
        plan = run.plan()
        if plan is None:
            raise UserError(f"{public(run.uri)} holds no run: _run/plan.json is missing")
        return _Verifier(run, plan, source, storage_options).check()
    except OSError as error:
        raise UserError(f"cannot verify {public(run.uri)}: {type(error).__name__}: {error}") from error


# What a row must have for the checks to mean anything.
_TYPES = {
    "key": pa.string(),
    "shard": pa.dictionary(pa.int32(), pa.string()),
    "index": pa.int32(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "error": pa.string(),
}


def _replaced(run: RunFolder) -> set[str]:
    """Ids of shards that an update has replaced. A page that cannot be read is named later."""
    try:
        return FrozenListing(run).replaced()
    except (pa.ArrowInvalid, ValueError, TypeError):
        return set()


def _read(run: RunFolder, *parts: str) -> pa.Table | Exception:
    """A Parquet file of the run, or why it cannot be read. A store's fault is an OSError, raised."""
    return parse(run.fs.cat_file(run.path(*parts)))


class _Verifier:
    """One pass over a run folder, shard by shard in the order of the listing."""

    def __init__(self, run: RunFolder, plan: dict[str, Any], source: bool, options: dict[str, Any] | None):
        self.run = run
        self.run_is = {name: plan.get(name) for name in ("run_id", "fingerprint")}
        self.report = Report(recounted=0 if source else None)
        self.recount = Recount(plan, options, self.report) if source else None
        self.rows: dict[str, int | None] = {}  # by file; None for a file that cannot be read
        self.schema: pa.Schema | None = None  # of the first file
        self.replaced = _replaced(run)

    def check(self) -> Report:
        files = self._unit_files()
        self.compacted = CompactedUnits(
            self.run, self.run_is, self.report
        )  # after it: what is deleted meanwhile is named here
        for shard in self._shards():
            self._shard(shard, files.pop(shard.name, []))
        if self.recount:
            self.recount.close()
        if not any(
            fault.where.startswith("_run/shards") for fault in self.report.faults
        ):  # else nobody knows what is foreign
            for name in sorted(name for units in files.values() for _, _, name in units):
                self.report.add("foreign_file", name, "belongs to no shard of this run")
            self.compacted.name_strays()
        self.compacted.check_folder()
        self._totals()
        return self.report

    def _unit_files(self) -> dict[str, list[tuple[int, bool, str]]]:
        """Number, end and name of every unit's file, by shard name."""
        files = defaultdict(list)
        for name in names_in(self.run, "predictions"):
            match = UNIT_NAME.fullmatch(name)
            number, last = (int(match["unit"]), bool(match["end"])) if match else (0, False)
            if match and name == unit_file(match["shard"], number, last):
                files[match["shard"]].append((number, last, name))
            else:
                self.report.add("foreign_file", name, "not a name that a run writes")
        return files

    def _shards(self) -> Iterator[Shard]:
        """The frozen listing, one page at a time; shards that a later page replaces are not part of the run."""
        names = names_in(self.run, "_run", "shards")
        bare = [f"{number:05d}.parquet" for number in range(len(names))]
        if (
            not names
            or [name.replace("-end", "") for name in names] != bare
            or not names[-1].endswith("-end.parquet")
        ):
            self.report.add(
                "incomplete_listing",
                "_run/shards",
                f"its pages are {', '.join(names[-3:]) or 'none'}: one is missing",
            )
        for name in names:
            page = _read(self.run, "_run", "shards", name)
            if isinstance(page, Exception) or not set(LISTING.names) <= set(page.column_names):
                self.report.add("unreadable_listing", f"_run/shards/{name}", _why(page))
                continue
            for row in page.to_pylist():
                shard = Shard.from_row(row)
                if shard.id != row["id"]:
                    self.report.add(
                        "wrong_listing",
                        f"_run/shards/{name}",
                        f"{public(shard.uri)} is not what its id was made from",
                    )
                if shard.id not in self.replaced:
                    yield shard

    def _shard(self, shard: Shard, small: list[tuple[int, bool, str]]) -> None:
        self.report.shards += 1
        merged = self.compacted.of(shard.name)  # row by name
        files = sorted({*small, *map(_triple, merged)})
        for what, detail, count in _unit_faults(files):
            self.report.add(what, shard.name, detail, count)
        expected, before, rows, names = shard.first_index, -1, [], {name for _, _, name in small}
        for number, last, name in files:
            if number > before + 1:
                expected = None  # the missing unit is named already, its rows need no fault of their own
            table = self._unit(shard, number, last, name, name in names, merged.get(name))
            expected = None if table is None else self._indexes(table, expected, name)
            if self.recount and table is not None:
                columns = (table[name].to_pylist() for name in Sample._fields)
                rows += map(Sample._make, zip(*columns, strict=True))
            before = number
        if self.recount:
            self.recount.shard(shard, rows)

    def _unit(
        self, shard: Shard, number: int, last: bool, name: str, small: bool, merged: int | None
    ) -> pa.Table | None:
        """Everything about a unit but its place among the others. None where its rows cannot be trusted to be rows.

        It lies in a small file, in a compacted one (the number of its row there), or in both, which then must agree."""
        self.rows[name] = None
        self.report.files += 1
        table = None
        if small:
            try:
                table = _read(self.run, "predictions", name)
            except FileNotFoundError:  # it was listed: merged and removed since, or lost
                merged = self.compacted.again(name)
                if merged is None:
                    raise
        there = None if merged is None else self.compacted.rows(merged)
        if isinstance(table, Exception):
            self.report.add("unreadable_file", name, _why(table))
            return None
        if table is not None and there is not None and (detail := differing(table, there)):
            self.report.add(
                "differing_rows", name, f"its rows are not those in {self.compacted.where(merged)}: {detail}"
            )
        if table is None and there is None:
            return None  # the compacted file is named already
        footer = _footer_of(table) if table is not None else self.compacted.footer(merged)
        return self._checked(shard, number, last, name, there if table is None else table, footer)

    def _checked(
        self, shard: Shard, number: int, last: bool, name: str, table: pa.Table, footer: dict | None
    ) -> pa.Table | None:
        """A unit's rows against what they must be and what is told of them."""
        self.schema = self.schema or table.schema
        if not table.schema.equals(self.schema) or any(name not in table.schema.names for name in _TYPES):
            self.report.add("wrong_schema", name, f"its columns are {', '.join(table.schema.names)}")
            return None
        if wrong := [name for name, kind in _TYPES.items() if table.schema.field(name).type != kind]:
            self.report.add("wrong_schema", name, f"the type of {', '.join(wrong)} is another")
            return None
        self.rows[name] = table.num_rows
        errors = Counter(table["error"].drop_null().to_pylist())
        self.report.rows += table.num_rows
        self.report.errors.update(errors)
        identity = {"shard": public(shard.uri), "shard_name": shard.name, "unit": number, "last": last}
        for what, detail in _footer_faults(footer, table.num_rows, self.run_is, identity, errors):
            self.report.add(what, name, detail)
        for what, detail, count in _row_faults(table, public(shard.uri)):
            self.report.add(what, name, detail, count)
        return table

    def _indexes(self, table: pa.Table, expected: int | None, name: str) -> int | None:
        """Compare the places with their count from `expected` on, None for any; returns the place that comes next."""
        index = table["index"].fill_null(-1).to_numpy().astype(np.int64)
        if not len(index):
            return expected
        before = np.concatenate([[index[0] - 1 if expected is None else expected - 1], index[:-1]])
        for what, wrong in (("repeated_row", index <= before), ("missing_row", index > before + 1)):
            if wrong.any():
                detail = f"index {index[wrong][0]} comes after index {before[wrong][0]}"
                self.report.add(what, name, detail, int(wrong.sum()))
        return int(index[-1]) + 1

    def _totals(self) -> None:
        """Manifest and summary, the last that a run writes, against what is there."""
        try:
            summary = self.run.summary()
        except UserError as error:
            return self.report.add("wrong_summary", "_run/summary.json", str(error))
        if summary is None:
            return self.report.add(
                "not_finished", "_run/summary.json", "there is no summary: the run has not come to its end"
            )
        found = {name: getattr(self.report, name) for name in ("rows", "files", "shards", "errors")}
        for name, value in (found | self.run_is).items():
            if summary.get(name, None if name == "rows" else value) != value:
                self.report.add(
                    "wrong_summary",
                    "_run/summary.json",
                    f"{name}: it says {summary.get(name)}, there are {value}",
                )
        self._manifest()

    def _manifest(self) -> None:
        where = "_run/manifest.parquet"
        try:
            table = _read(self.run, "_run", "manifest.parquet")
        except FileNotFoundError as error:
            table = error
        if isinstance(table, Exception) or not {"file", "rows"} <= set(table.schema.names):
            return self.report.add("wrong_manifest", where, _why(table))
        files, rows = table["file"].to_pylist(), table["rows"].to_pylist()
        told = dict(zip(files, rows, strict=True))
        wrong = sorted(
            {name for name, count in Counter(files).items() if count > 1} | (told.keys() ^ self.rows.keys())
        )
        wrong += sorted(
            name for name in told.keys() & self.rows.keys() if self.rows[name] not in (None, told[name])
        )
        if wrong:
            detail = f"{wrong[0]} has {self.rows.get(wrong[0], 'no')} rows here and {told.get(wrong[0], 'no')} rows there"
            self.report.add("wrong_manifest", where, detail, len(wrong))


def _why(problem: Any) -> str:
    return (
        f"{type(problem).__name__}: {problem}"
        if isinstance(problem, Exception)
        else "its columns are not what a run writes"
    )


def _unit_faults(files: list[tuple[int, bool, str]]) -> Iterator[tuple[str, str, int]]:
    """A shard's units must be 0, 1, ... to one end, each under one name."""
    names = Counter(number for number, _, _ in files)
    ends = [number for number, last, _ in files if last]
    end = min(ends, default=max(names, default=-1))
    if gaps := end + 1 - sum(number <= end for number in names):
        yield (
            "missing_unit",
            f"unit {next(n for n in range(end) if n not in names):05d} of 0 to {end} is not there",
            gaps,
        )
    if not ends:
        yield "missing_end", f"no unit says that the shard ends with it; {len(names)} are there", 1
    if after := [number for number in names if number > end]:
        yield "unit_after_end", f"unit {min(after):05d} comes after the end, unit {end:05d}", len(after)
    if twice := [number for number, count in names.items() if count > 1]:
        yield "two_names", f"unit {twice[0]:05d} is there with and without -end", len(twice)


def _triple(name: str) -> tuple[int, bool, str]:
    """Number, end and name, as of a file in predictions/."""
    match = UNIT_NAME.fullmatch(name)
    return int(match["unit"]), bool(match["end"]), name


def _footer_of(table: pa.Table) -> dict[str, Any] | None:
    try:
        return dict(json.loads(table.schema.metadata[FOOTER]))
    except (KeyError, TypeError, ValueError):
        return None


def _footer_faults(
    footer: dict[str, Any] | None, rows: int, run: dict[str, Any], identity: dict[str, Any], errors: Counter
) -> Iterator[tuple[str, str]]:
    """What is told of a unit against the plan, its name and its rows."""
    if footer is None:
        yield "wrong_footer", "its metadata does not say what run and unit it is of"
        return
    counted = {"wrong_rows": {"rows": rows}, "wrong_errors": {"errors": dict(errors)}}
    for what, wanted in {"other_run": run, "wrong_footer": identity, **counted}.items():
        for name, value in wanted.items():
            if footer.get(name) != value:
                yield what, f"{name} is {footer.get(name)} in its footer and should be {value}"


def _row_faults(table: pa.Table, uri: str) -> Iterator[tuple[str, str, int]]:
    """Rows of another shard; rows that have neither a prediction nor an error, or both."""
    if others := [other for other in table["shard"].unique().to_pylist() if other != uri]:
        yield "wrong_shard", f"has rows of {others[0]}, not only of {uri}", len(others)
    failed = pc.is_valid(table["error"]).to_numpy()
    for name in ("label_id", "embedding"):
        given = pc.is_valid(table[name]).to_numpy() if name in table.schema.names else ~failed
        for what, wrong in (
            ("missing_prediction", ~given & ~failed),
            ("prediction_on_error", given & failed),
        ):
            if wrong.any():
                yield (
                    what,
                    f"{name} of the row with index {table['index'][int(wrong.argmax())]}",
                    int(wrong.sum()),
                )
