"""Prove that a run is whole: every input sample has exactly one row, and every row is one that this run wrote.

Without the source the proof is about the folder: its units are there once each, undamaged, and count without gap or
repetition. That cannot see a sample that the reader never gave. With the source the input is counted again by other means:
tars by Python's own tarfile, loose images by a fresh listing, keys by rules written anew here. No code is shared with the
reader, so a fault of one is not repeated by the other.
"""

import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.output import FOOTER, UNIT_NAME, RunFolder, unit_file
from pipeline.source import LISTING, Shard
from pipeline.storage import open_filesystem, public, version_of


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. detail: one line. where: what it is wrong with; what: a short stable code, which is one of

    a shard's units     missing_unit, missing_end, unit_after_end, two_names
    a file              foreign_file, unreadable_file, wrong_schema, other_run, wrong_footer, wrong_rows, wrong_errors
    a file's rows       repeated_row, missing_row, wrong_shard, missing_prediction, prediction_on_error
    the run's records   incomplete_listing, unreadable_listing, wrong_listing, not_finished, wrong_summary, wrong_manifest
    the source          source_changed, unreadable_source
    rows and source     missing_sample, extra_row, wrong_key, wrong_error, wrong_place (offset or size)
    """

    what: str
    where: str
    detail: str


@dataclass(slots=True)
class Report:
    """What was found. rows, files: in predictions/. errors: rows by error code. recounted: samples in the source, or None."""

    rows: int = 0
    shards: int = 0
    files: int = 0
    errors: Counter = field(default_factory=Counter)
    recounted: int | None = None
    faults: list[Fault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def add(self, what: str, where: str, detail: str, count: int = 1) -> None:
        """One fault for `count` alike, of which `detail` tells the first."""
        more = f" ({count} such here)" if count > 1 else ""
        self.faults.append(Fault(what, where, " ".join(f"{detail}{more}".split())))


def verify(output: str, source: bool = False, storage_options: dict[str, Any] | None = None) -> Report:
    """Check a run folder; with `source`, hold it against its input, which is read once from front to back.

    Everything streams. Memory is bounded by one unit's file, the keys of one shard and one page of the listing; beside them
    stand a name and a number for each file and, with `source`, the names under one prefix of loose images.

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
    except json.JSONDecodeError as error:
        raise UserError(f"cannot verify {public(run.uri)}: _run/plan.json is damaged ({error})") from error


class _Sample(NamedTuple):
    """What a row and a sample of the source have in common. error: of a sample, only what the source alone decides."""

    key: str | None
    offset: int | None  # of the encoded image in its shard, bytes
    size: int | None  # bytes
    error: str | None


# What a row must have for the checks to mean anything.
_TYPES = {
    "key": pa.string(),
    "shard": pa.dictionary(pa.int32(), pa.string()),
    "index": pa.int32(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "error": pa.string(),
}


# ---- the folder -----------------------------------------------------------------------------------------------------------


def _names(run: RunFolder, *parts: str) -> list[str]:
    """What a folder holds, in order. Names with an underscore are leftovers of writers and no reader sees them."""
    run.fs.invalidate_cache()
    folder = "/".join([run.root, *parts])
    try:
        paths = (path.rstrip("/") for path in run.fs.ls(folder, detail=False))
    except FileNotFoundError:
        return []
    return sorted(name for path in paths if path != folder and not (name := path.rpartition("/")[2]).startswith("_"))


def _read(run: RunFolder, *parts: str) -> pa.Table | Exception:
    """A Parquet file with every page's checksum compared, or why it cannot be read. A store's fault is an OSError, raised."""
    data = run.fs.cat_file("/".join([run.root, *parts]))
    try:
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        table.validate(full=True)
        return table
    except Exception as error:  # the bytes are here: whatever they make of the Parquet reader is their fault
        return error


class _Verifier:
    """One pass over a run folder, shard by shard in the order of the listing."""

    def __init__(self, run: RunFolder, plan: dict[str, Any], source: bool, options: dict[str, Any] | None):
        self.run = run
        self.run_is = {name: plan.get(name) for name in ("run_id", "fingerprint")}
        self.report = Report(recounted=0 if source else None)
        self.recount = _Recount(plan, options, self.report) if source else None
        self.rows: dict[str, int | None] = {}  # by file; None for a file that cannot be read
        self.schema: pa.Schema | None = None  # of the first file

    def check(self) -> Report:
        files = self._unit_files()
        for shard in self._shards():
            self._shard(shard, sorted(files.pop(shard.name, [])))
        if self.recount:
            self.recount.close()
        if not any(fault.where.startswith("_run/shards") for fault in self.report.faults):  # else nobody knows what is foreign
            for name in sorted(name for units in files.values() for _, _, name in units):
                self.report.add("foreign_file", name, "belongs to no shard of this run")
        self._totals()
        return self.report

    def _unit_files(self) -> dict[str, list[tuple[int, bool, str]]]:
        """Number, end and name of every unit's file, by shard name."""
        files = defaultdict(list)
        for name in _names(self.run, "predictions"):
            match = UNIT_NAME.fullmatch(name)
            number, last = (int(match["unit"]), bool(match["end"])) if match else (0, False)
            if match and name == unit_file(match["shard"], number, last):
                files[match["shard"]].append((number, last, name))
            else:
                self.report.add("foreign_file", name, "not a name that a run writes")
        return files

    def _shards(self) -> Iterator[Shard]:
        """The frozen listing, one page at a time."""
        names = _names(self.run, "_run", "shards")
        wanted = [f"{number:05d}{'-end' if number == len(names) - 1 else ''}.parquet" for number in range(len(names))]
        if not names or names != wanted:
            self.report.add("incomplete_listing", "_run/shards", f"its pages are {', '.join(names[-3:]) or 'none'}: one is missing")
        for name in names:
            page = _read(self.run, "_run", "shards", name)
            if isinstance(page, Exception) or not set(LISTING.names) <= set(page.column_names):
                self.report.add("unreadable_listing", f"_run/shards/{name}", _why(page))
                continue
            for row in page.to_pylist():
                shard = Shard.from_row(row)
                if shard.id != row["id"]:
                    self.report.add("wrong_listing", f"_run/shards/{name}", f"{public(shard.uri)} is not what its id was made from")
                yield shard

    def _shard(self, shard: Shard, files: list[tuple[int, bool, str]]) -> None:
        self.report.shards += 1
        for what, detail, count in _unit_faults(files):
            self.report.add(what, shard.name, detail, count)
        expected, before, rows = shard.first_index, -1, []
        for number, last, name in files:
            if number > before + 1:
                expected = None  # the missing unit is named already, its rows need no fault of their own
            table = self._file(shard, number, last, name)
            expected = None if table is None else self._indexes(table, expected, name)
            if self.recount and table is not None:
                columns = (table[name].to_pylist() for name in _Sample._fields)
                rows += map(_Sample._make, zip(*columns, strict=True))
            before = number
        if self.recount:
            self.recount.shard(shard, rows)

    def _file(self, shard: Shard, number: int, last: bool, name: str) -> pa.Table | None:
        """Everything about a file but its place among the others. None where its rows cannot be trusted to be rows."""
        table, self.rows[name] = _read(self.run, "predictions", name), None
        self.report.files += 1
        if isinstance(table, Exception):
            self.report.add("unreadable_file", name, _why(table))
            return None
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
        for what, detail in _footer_faults(table, self.run_is, identity, errors):
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
        except ValueError as error:
            return self.report.add("wrong_summary", "_run/summary.json", f"it is damaged: {error}")
        if summary is None:
            return self.report.add("not_finished", "_run/summary.json", "there is no summary: the run has not come to its end")
        found = {name: getattr(self.report, name) for name in ("rows", "files", "shards", "errors")}
        for name, value in (found | self.run_is).items():
            if summary.get(name, None if name == "rows" else value) != value:
                self.report.add("wrong_summary", "_run/summary.json", f"{name}: it says {summary.get(name)}, there are {value}")
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
        wrong = sorted({name for name, count in Counter(files).items() if count > 1} | (told.keys() ^ self.rows.keys()))
        wrong += sorted(name for name in told.keys() & self.rows.keys() if self.rows[name] not in (None, told[name]))
        if wrong:
            detail = f"{wrong[0]} has {self.rows.get(wrong[0], 'no')} rows here and {told.get(wrong[0], 'no')} rows there"
            self.report.add("wrong_manifest", where, detail, len(wrong))


def _why(problem: Any) -> str:
    return f"{type(problem).__name__}: {problem}" if isinstance(problem, Exception) else "its columns are not what a run writes"


def _unit_faults(files: list[tuple[int, bool, str]]) -> Iterator[tuple[str, str, int]]:
    """A shard's units must be 0, 1, ... to one end, each under one name."""
    names = Counter(number for number, _, _ in files)
    ends = [number for number, last, _ in files if last]
    end = min(ends, default=max(names, default=-1))
    if gaps := end + 1 - sum(number <= end for number in names):
        yield "missing_unit", f"unit {next(n for n in range(end) if n not in names):05d} of 0 to {end} is not there", gaps
    if not ends:
        yield "missing_end", f"no unit says that the shard ends with it; {len(names)} are there", 1
    if after := [number for number in names if number > end]:
        yield "unit_after_end", f"unit {min(after):05d} comes after the end, unit {end:05d}", len(after)
    if twice := [number for number, count in names.items() if count > 1]:
        yield "two_names", f"unit {twice[0]:05d} is there with and without -end", len(twice)


def _footer_faults(table: pa.Table, run: dict[str, Any], identity: dict[str, Any], errors: Counter) -> Iterator[tuple[str, str]]:
    """A file's own account of itself against the plan, its name and its rows."""
    try:
        footer = dict(json.loads(table.schema.metadata[FOOTER]))
    except (KeyError, TypeError, ValueError):
        yield "wrong_footer", "its metadata does not say what run and unit it is of"
        return
    counted = {"wrong_rows": {"rows": table.num_rows}, "wrong_errors": {"errors": dict(errors)}}
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
        for what, wrong in (("missing_prediction", ~given & ~failed), ("prediction_on_error", given & failed)):
            if wrong.any():
                yield what, f"{name} of the row with index {table['index'][int(wrong.argmax())]}", int(wrong.sum())


# ---- the source -----------------------------------------------------------------------------------------------------------


class _Changed(Exception):
    """The source is not what it was when the run was planned, so counting it proves nothing."""


class _Recount:
    """Counts the source again, shard by shard, and holds the rows against it."""

    def __init__(self, plan: dict[str, Any], options: dict[str, Any] | None, report: Report):
        self.image_keys, self.sources = plan["asked"]["image-key"], plan["asked"]["source"]
        self.options, self.report = options, report
        self.prefix: str | None = None  # of loose images, with what is under it and has not been met in a page
        self.unmet: dict[str, tuple[int, str]] = {}

    def shard(self, shard: Shard, rows: list[_Sample]) -> None:
        where = public(shard.uri)
        try:
            samples = self._tar(shard) if shard.kind == "tar" else self._page(shard)
        except (_Changed, FileNotFoundError) as error:
            return self.report.add("source_changed", where, str(error) if isinstance(error, _Changed) else "it is gone")
        except OSError as error:
            return self.report.add("unreadable_source", where, _why(error))
        self.report.recounted += sum(sample.error != "shard_truncated" for sample in samples)
        first, counts = {}, Counter()
        for what, detail in _differences(samples, rows):
            first.setdefault(what, detail)
            counts[what] += 1
        for what, detail in first.items():
            self.report.add(what, where, detail, counts[what])

    def _tar(self, shard: Shard) -> list[_Sample]:
        fs, path = open_filesystem(shard.uri, self.options)
        fs.invalidate_cache()
        info = fs.info(path)
        if (info["size"], version_of(info)) != (shard.size, shard.version):
            raise _Changed("it was replaced since the run was planned")
        with fs.open(path, "rb", block_size=8 << 20, cache_type="readahead") as file:
            return _tar_samples(_Whole(file, shard.size), self.image_keys)

    def _page(self, shard: Shard) -> list[_Sample]:
        if self.prefix != public(shard.uri):
            self.close()
            self.unmet, self.prefix = self._find(shard.uri), public(shard.uri)
        now = {member["key"]: self.unmet.pop(member["key"], None) for member in shard.members}
        changed = [member["key"] for member in shard.members if now[member["key"]] != (member["size"], member["version"])]
        if changed:
            raise _Changed(f"{len(changed)} of {len(now)} images were replaced or removed since, first {changed[0]!r}")
        return [_Sample(key, 0, now[key][0], None) for key in sorted(now)]

    def _find(self, uri: str) -> dict[str, tuple[int, str]]:
        """Size and version of the images under a prefix, by their path under it."""
        fs, root = open_filesystem(uri, self.options)
        fs.invalidate_cache()
        found = {path.removeprefix(root).lstrip("/"): info for path, info in fs.find(root, detail=True).items()}
        return {key: (info["size"], version_of(info)) for key, info in found.items() if self._is_image(key)}

    def _is_image(self, key: str) -> bool:
        base = key.split("/")[-1]
        return not base.startswith("._") and "." in base and base.lower().split(".")[-1] in self.image_keys

    def close(self) -> None:
        """Images under a prefix that no page names: a fault where the prefix itself, and nothing below it, was the source."""
        whole = self.prefix in self.sources and not any(other.startswith(f"{self.prefix}/") for other in self.sources)
        if whole and self.unmet:
            detail = f"{min(self.unmet)!r} is not part of this run: it is new since, or was overlooked"
            self.report.add("source_changed", self.prefix, detail, len(self.unmet))
            self.report.recounted += len(self.unmet)
        self.prefix, self.unmet = None, {}


def _differences(samples: list[_Sample], rows: list[_Sample]) -> Iterator[tuple[str, str]]:
    """What differs between the samples of a shard and its rows, both in order: code and detail. Linear in their number."""
    samples_left, rows_left = (Counter(entry.key for entry in entries) for entries in (samples, rows))
    at = place = 0
    while at < len(samples) or place < len(rows):
        sample, row = (entries[i] if i < len(entries) else None for entries, i in ((samples, at), (rows, place)))
        if sample and row and sample.key == row.key:
            yield from _pair_differences(sample, row)
        elif row is None or (sample and samples_left[row.key] and not rows_left[sample.key]):
            yield "missing_sample", f"{_describe(sample)} has no row"
            row = None  # it belongs to a later sample
        elif sample is None or (rows_left[sample.key] and not samples_left[row.key]):
            yield "extra_row", f"{_describe(row)} has a row and is no sample here"
            sample = None
        else:
            yield "wrong_key", f"{_describe(row)} stands where {_describe(sample)} should"
        for entry, left in ((sample, samples_left), (row, rows_left)):
            if entry:
                left[entry.key] -= 1
        at, place = at + (sample is not None), place + (row is not None)


def _pair_differences(sample: _Sample, row: _Sample) -> Iterator[tuple[str, str]]:
    decided = ("missing_image", "shard_truncated")  # errors that the source alone decides; the others are the decoder's
    if sample.error != (row.error if row.error in decided else None):
        yield "wrong_error", f"{_describe(row)} has the error {row.error} and should have {sample.error}"
    elif row.error is None and (row.offset, row.size) != (sample.offset, sample.size):
        at, size = row.offset, row.size
        yield "wrong_place", f"{_describe(row)}: {size} bytes at {at}, in the source {sample.size} at {sample.offset}"


def _describe(entry: _Sample) -> str:
    return "the mark that the tar is cut" if entry.key is None else f"key {entry.key!r}"


# ---- tars, by Python's tarfile --------------------------------------------------------------------------------------------


class _Whole:
    """A file that must not end before its known size: a store that answers short is no cut tar."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        if not data and self.left:
            raise OSError(f"the store ended it {self.left} bytes early")
        return data


def _strict_headers() -> type[tarfile.TarInfo]:
    """tarfile takes any end for the end, and with ignore_zeros steps over damage. But it asks this class about every header
    block up to the object's last: here the end blocks are demanded and damage is not forgiven."""

    class Header(tarfile.TarInfo):
        zeros = 0  # blocks of zeros since the last header
        asked = False  # reset for each member: once it is set, all of that member has gone by

        @classmethod
        def frombuf(cls, buf, encoding, errors):
            cls.asked = True
            blank, full = not buf.strip(b"\0"), len(buf) == tarfile.BLOCKSIZE
            if not (blank and full) and (cls.zeros == 1 or (not full and not (blank and cls.zeros))):
                raise tarfile.ReadError("the end blocks are missing")
            cls.zeros = cls.zeros + 1 if blank else 0
            try:
                header = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                if blank:
                    raise  # tarfile goes on behind it, or ends
                raise tarfile.ReadError(str(error)) from error
            if header.type in b"xXgLK" and header.size > 1 << 20:  # tarfile would hold it in memory
                raise tarfile.ReadError("an extension header that is too large")
            return header

    return Header


def _members(file: _Whole) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar, each once its last block has gone by. Raises tarfile.ReadError at a cut or damage."""
    header, held = _strict_headers(), None
    try:
        names = {"encoding": "utf-8", "errors": "surrogateescape"}
        with tarfile.open(fileobj=file, mode="r|", bufsize=1 << 16, ignore_zeros=True, tarinfo=header, **names) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # or they would pile up
                if held is not None and held.isreg():
                    yield held
                held, header.asked = member, False
    except (tarfile.TarError, ValueError, LookupError) as error:  # a damaged pax header can be any of them
        if held is not None and held.isreg() and header.asked:
            yield held
        raise tarfile.ReadError(str(error)) from error
    if held is not None and held.isreg():
        yield held


def _is_part(name: str) -> bool:
    """Whether a member belongs to a sample: webdataset passes over names without extension, hidden ones, and its own `__x__`."""
    *folders, base = name.split("/")
    top = (folders or [base])[0]
    junk = any(folder == "__MACOSX" or re.fullmatch(r"PaxHeaders?(\.[0-9]+)?", folder) for folder in folders)
    return base.find(".") > 0 and not junk and not (len(top) >= 4 and top.startswith("__") and top.endswith("__"))


def _tar_samples(file: _Whole, image_keys: list[str]) -> list[_Sample]:
    """The samples of a tar in order: members in a row with one key, a repeated extension begins anew.

    A cut is one more, without key; the sample that it goes through counts if its image had gone by.
    """
    samples, key, fields, cut = [], None, {}, False
    try:
        for member in _members(file):
            name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if not _is_part(name):
                continue
            folder, base = name[: name.rfind("/") + 1], name[name.rfind("/") + 1 :]
            stem, extension = base.split(".", 1)
            if fields and (folder + stem != key or extension.lower() in fields):
                samples.append(_sample(key, fields, image_keys))
                fields = {}
            key = folder + stem
            fields[extension.lower()] = member
    except tarfile.ReadError:
        cut = True
    if fields and not (cut and _sample(key, fields, image_keys).error):
        samples.append(_sample(key, fields, image_keys))
    return [*samples, _Sample(None, None, None, "shard_truncated")] if cut else samples


def _sample(key: str, fields: dict[str, tarfile.TarInfo], image_keys: list[str]) -> _Sample:
    """The image is the first of the image keys, else the first field that ends in one, as `v1.2.jpg` does."""
    exact = [name for name in image_keys if name in fields]
    ending = [name for name in fields if name.split(".")[-1] in image_keys]
    image = fields[(exact or ending)[0]] if exact or ending else None
    return _Sample(key, image.offset_data, image.size, None) if image else _Sample(key, None, None, "missing_image")
