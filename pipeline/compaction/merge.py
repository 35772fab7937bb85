"""One compacted file: the task that makes it of small ones, and the check of one that is there already."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.compaction.compacted_file import CompactedFile, Damaged, parse
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.committed import UNIT_NAME
from wordsworth.pipeline.output.run_folder import COMPACTED, FOOTER, RunFolder, read_footer
from wordsworth.pipeline.storage.filesystem import patiently, put_if_absent

READERS = 8  # small files that are fetched at a time
OF_A_UNIT = (
    "shard",
    "shard_name",
    "unit",
    "last",
    "rows",
    "errors",
    "skipped",
    "bytes_read",
    "next_offset",
    "next_index",
    "seconds",
)


@dataclass(frozen=True)
class Identity:
    """What a file of a compaction is of."""

    run_id: str
    fingerprint: str
    generation: int

    def metadata(self, **more: Any) -> dict[bytes, bytes]:
        return {FOOTER: json.dumps(asdict(self) | more).encode()}

    @classmethod
    def of(cls, metadata: dict[bytes, bytes] | None) -> "Identity | None":
        """As a file's own metadata says; None where it does not."""
        try:
            told = json.loads((metadata or {})[FOOTER])
            return cls(told["run_id"], told["fingerprint"], told["generation"])
        except (KeyError, TypeError, ValueError):
            return None


def merge(run: RunFolder, identity: Identity, units: pa.Table) -> pa.Table:
    """Write the compacted file that some planned units go to, or meet it. Returns them as COMPACTED.

    Raises UserError for a small file that is not what the manifest says, and where the file that is there is another.
    """
    name = units["into"][0].as_py()
    path = run.path("compacted", name)
    run.fs.invalidate_cache()
    if run.fs.exists(path):
        footers, met = _footers(run, units), True
    else:
        data, footers = _merged(run, identity, units)
        met = not put_if_absent(run.fs, path, data)
    if met:
        _check_twin(run, identity, name, units)
    run.fs.invalidate_cache()
    size = run.fs.info(path)["size"]
    more = {name: [footer.get(name) for footer in footers] for name in ("next_offset", "next_index")}
    more["into_bytes"] = [size] * units.num_rows
    arrays = [
        pa.array(more[name], COMPACTED.field(name).type) if name in more else units[name]
        for name in COMPACTED.names
    ]
    return pa.table(arrays, schema=COMPACTED)


def _merged(run: RunFolder, identity: Identity, units: pa.Table) -> tuple[pa.Buffer, list[dict[str, Any]]]:
    """The file in memory, a row group at a time, and the footers of its units."""
    sink, writer, footers = pa.BufferOutputStream(), None, []
    with ThreadPoolExecutor(READERS) as pool:
        for group in _row_groups(units):
            read = list(pool.map(partial(_unit, run, identity), group))
            footers += [footer for _, footer in read]
            if writer is None:
                schema = read[0][0].schema
                about = _footer(identity, units, footers[0])
                writer = pq.ParquetWriter(
                    sink, schema.with_metadata(about), compression="zstd", write_page_checksum=True
                )
            if strange := next(
                (row for row, (table, _) in zip(group, read, strict=True) if not table.schema.equals(schema)),
                None,
            ):
                raise _refused(run, strange, "its columns are not those of the other files")
            table = pa.concat_tables([table for table, _ in read]).unify_dictionaries().combine_chunks()
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    writer.close()
    return sink.getvalue(), footers


def _row_groups(units: pa.Table) -> Iterator[list[dict[str, Any]]]:
    ends = pc.run_end_encode(units["row_group"].combine_chunks()).run_ends.to_pylist()
    for begin, end in zip([0, *ends], ends, strict=False):
        yield units.slice(begin, end - begin).to_pylist()


def _unit(run: RunFolder, identity: Identity, row: dict[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and the footer of a small file, every page's checksum compared, if it is the one that the manifest tells of."""
    try:
        data = patiently(lambda: run.fs.cat_file(run.path("predictions", row["file"])))
    except FileNotFoundError as error:
        raise _refused(run, row, "it is missing") from error
    table = parse(data)
    if isinstance(table, Exception):
        raise _refused(run, row, f"it is damaged ({type(table).__name__}: {' '.join(str(table).split())})")
    try:
        footer = dict(json.loads(table.schema.metadata[FOOTER]))
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(run, row, "its metadata does not say what it is of") from error
    told = {"run_id": identity.run_id, "fingerprint": identity.fingerprint}
    told |= {"shard_name": UNIT_NAME.fullmatch(row["file"])["shard"], "errors": json.loads(row["errors"])}
    told |= {name: row[name] for name in ("shard", "unit", "last", "rows", "bytes")}
    there = footer | {
        "rows": table.num_rows,
        "errors": dict(Counter(table["error"].drop_null().to_pylist())),
        "bytes": len(data),
    }
    for name, value in told.items():
        if there.get(name) != value:
            raise _refused(run, row, f"its {name} is {there.get(name)}, not {value} as the run has it")
    return table.replace_schema_metadata(None), footer


def _refused(run: RunFolder, row: dict[str, Any], why: str) -> UserError:
    path = run.path("predictions", row["file"])
    return UserError(
        f"{path} cannot be merged: {why}. Nothing was removed; `wordsworth verify {run.uri}` names all that is wrong"
    )


def _footer(identity: Identity, units: pa.Table, first: dict[str, Any]) -> dict[bytes, bytes]:
    """A compacted file's account of itself, with the provenance that its first unit tells."""
    errors = sum((Counter(json.loads(text)) for text in units["errors"].to_pylist()), Counter())
    provenance = {name: value for name, value in first.items() if name not in OF_A_UNIT}
    counts = {
        "file": units["into"][0].as_py(),
        "units": units.num_rows,
        "rows": pc.sum(units["rows"]).as_py(),
        "errors": dict(errors),
    }
    return {FOOTER: json.dumps(provenance | asdict(identity) | counts).encode()}


# ---- what is there already ----------------------------------------------------------------------------------------------------


def _footers(run: RunFolder, units: pa.Table) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(partial(_small_footer, run), units.select(["file"]).to_pylist()))


def _small_footer(run: RunFolder, row: dict[str, Any]) -> dict[str, Any]:
    try:
        return patiently(lambda: read_footer(run.fs, run.path("predictions", row["file"])))
    except FileNotFoundError as error:
        raise _refused(run, row, "it is missing") from error


def _check_twin(run: RunFolder, identity: Identity, name: str, units: pa.Table) -> None:
    """Something has our name: our own rows, of a command that was killed or a twin, are success. Read from front to back."""
    rows = units.group_by("row_group", use_threads=False).aggregate([("rows", "sum")])["rows_sum"].to_pylist()
    if differing := _differing(run, name, asdict(identity) | {"rows": sum(rows)}, rows):
        raise UserError(
            f"{run.path('compacted', name)} exists and is not what this compaction writes ({differing}): "
            "move it away and run the same command again"
        )


def check_compacted(run: RunFolder, identity: dict[str, Any], name: str, size: int) -> None:
    """A compacted file must be there, of this run, and as large as it was when it was committed."""
    if differing := _differing(run, name, identity, size=size):
        raise UserError(
            f"{run.path('compacted', name)} is not what was committed ({differing}): "
            f"run `wordsworth verify {run.uri}`; nothing was removed"
        )


def _differing(
    run: RunFolder, name: str, footer: dict[str, Any], rows: list[int] | None = None, size: int | None = None
) -> str:
    """What is another in a compacted file. With `rows`, those of each row group, every page is read."""
    try:
        file = CompactedFile(run, name)
        for group in range(len(rows or ())):
            file.read(group)
    except (Damaged, FileNotFoundError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    wrong = [key for key, value in (footer | {"file": name}).items() if file.footer.get(key) != value]
    wrong += ["rows"] * (rows not in (None, file.group_rows)) + ["size"] * (size not in (None, file.size))
    return ", ".join(wrong)
