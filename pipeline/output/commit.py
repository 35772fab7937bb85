"""Commit units: a unit's file appears whole or not at all, and is the record that the unit is done.

A file is named by its shard's identity and its number alone, and is built in memory. So a unit that runs
twice meets its own rows.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.committed import unit_file
from wordsworth.pipeline.output.prediction_rows import WriteSettings, prediction_table
from wordsworth.pipeline.output.records import FOOTER_KEY, JsonObject, Receipt, UnitFooter
from wordsworth.pipeline.storage.atomic import put_if_absent
from wordsworth.pipeline.storage.filesystem import open_filesystem, without_credentials
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.unit import FOLDER, Unit

GROUP_ROWS = 16384  # rows in a row group of a file that is written table by table


def commit(unit: Unit, settings: WriteSettings) -> Receipt:
    """Write a unit's file, or find the file there already, and return the receipt.

    A unit with a fault writes nothing.

    Raises:
        UserError: the name is taken by a file of another run, or a row has an error and `on_error` is "fail".
    """
    if unit.fault:
        return make_receipt(unit, rows=0, errors={}, written=False)
    start = time.perf_counter()
    table = prediction_table(unit, settings)
    errors = count_errors(table)
    if errors and settings.on_error == "fail":
        raise _first_error(table)
    if table.num_rows != len(unit.samples):
        raise AssertionError(
            f"{unit.shard_name} unit {unit.number}: {len(unit.samples)} samples became {table.num_rows} rows"
        )
    fs, root = open_filesystem(settings.output, settings.storage_options)
    path = f"{root}/predictions/{unit_file(unit.shard_name, unit.number, unit.last)}"
    footer = _footer(unit, settings, table.num_rows, errors)
    written = put_if_absent(
        fs, path, parquet_bytes(table.replace_schema_metadata({FOOTER_KEY: footer.to_json()}))
    )
    twin = False
    if not written:
        twin = _check_twin(fs, path, footer).job != settings.job
    unit.seconds["write"] = time.perf_counter() - start
    return make_receipt(unit, rows=table.num_rows, errors=errors, written=written, twin=twin)


def count_errors(rows: pa.Table) -> dict[str, int]:
    """Return the number of rows with an error, by code, in the order in which the codes come."""
    return dict(Counter(rows["error"].drop_null().to_pylist()))


def _first_error(rows: pa.Table) -> UserError:
    columns = rows.select(["shard", "key", "error", "error_detail"])
    row = columns.filter(columns["error"].is_valid()).slice(0, 1).to_pylist()[0]
    what = "the end of the tar" if row["key"] is None else repr(row["key"])
    return UserError(f"{row['shard']}: {what}: {row['error']}: {row['error_detail']} (--on-error fail)")


def make_receipt(
    unit: Unit, *, rows: int, errors: dict[str, int], written: bool, twin: bool = False
) -> Receipt:
    """Return the receipt of a unit's file; the arguments are fields of Receipt."""
    return Receipt(
        shard=without_credentials(unit.shard_uri),
        file=unit_file(unit.shard_name, unit.number, unit.last),
        rows=rows,
        errors=errors,
        bytes_read=unit.bytes_read,
        written=written,
        twin=twin,
        last=unit.last,
        fault=unit.fault,
        prediction=unit.prediction,
        repeated_key=_repeated_key(unit.samples),
        skipped=unit.skipped,
        seconds=unit.seconds,
    )


def _repeated_key(samples: pa.Table) -> str | None:
    """Return the first key that comes twice in one shard; None if each comes once."""
    keys = samples["key"].drop_null()
    if FOLDER in samples.column_names:  # images that were named one by one are each named once
        return None
    if pc.count_distinct(keys).as_py() == len(keys):
        return None
    counts = Counter(keys.to_pylist())
    return next(key for key in counts if counts[key] > 1)


def _footer(unit: Unit, settings: WriteSettings, rows: int, errors: dict[str, int]) -> UnitFooter:
    return UnitFooter(
        provenance=settings.provenance,
        job=settings.job,
        shard=without_credentials(unit.shard_uri),
        shard_name=unit.shard_name,
        unit=unit.number,
        last=unit.last,
        rows=rows,
        errors=errors,
        skipped=json.loads(unit.skipped),
        bytes_read=unit.bytes_read,
        next_offset=unit.next_offset,
        next_index=unit.next_index,
        seconds={stage: round(seconds, 6) for stage, seconds in unit.seconds.items()},
        next_in_group=unit.next_in_group,
    )


def _check_twin(fs: fsspec.AbstractFileSystem, path: str, footer: UnitFooter) -> UnitFooter:
    """Return the footer of the file that has a unit's name.

    Raises:
        UserError: the file has other rows than a lost acknowledgement or a second job would leave.
    """
    found = read_footer(fs, path)
    refuse_another(path, _identity(found), _identity(footer))
    return found


def _identity(footer: UnitFooter) -> JsonObject:
    same = {name: getattr(footer, name) for name in ("shard_name", "unit", "last", "rows")}
    return {"run_id": footer.provenance.run_id} | same


def refuse_another(path: str, found: JsonObject, wanted: JsonObject) -> None:
    """Refuse a file that has the name of a file of ours and says something else of itself.

    Raises:
        UserError: a field of `wanted` is another one in `found`.
    """
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    if differing:
        raise UserError(
            f"{path} exists and was written by another run ({', '.join(differing)} differ): "
            "use another --output"
        )


# ---- Parquet ----------------------------------------------------------------------------------------------


class Damaged(Exception):
    """Say that the bytes of an object are not a whole Parquet file of ours.

    A store's fault is an OSError instead.
    """


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """Return a whole Parquet file in memory, every page with its checksum."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def parquet_bytes_of(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Buffer:
    """Return a whole Parquet file of tables that come one after another.

    Memory holds the file and one row group.
    """
    sink = pa.BufferOutputStream()
    group: list[pa.Table] = []
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            group.append(table)
            if sum(table.num_rows for table in group) >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(group))
                group = []
        if group:
            writer.write_table(pa.concat_tables(group))
    return sink.getvalue()


def read_table(fs: fsspec.AbstractFileSystem, path: str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of a Parquet file, with every page's checksum compared; the file is read whole.

    Raises:
        Damaged: the bytes are not a whole Parquet file, or a column is missing.
        OSError: the store does not give the object.
    """
    fs.invalidate_cache()
    data = with_retries(lambda: fs.cat_file(path))
    return parse_table(data, columns)


def parse_table(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of a Parquet file in memory, with every page's checksum compared.

    Raises:
        Damaged: the bytes are not a whole Parquet file, or a column is missing.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        missing = set(columns or ()) - set(file.schema_arrow.names)
        if missing:
            raise KeyError(f"it has no column {min(missing)}")
        table = file.read(columns)
        table.validate(full=True)
        return table
    except Exception as error:  # the bytes are here: whatever the Parquet reader raises is their fault
        raise Damaged(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def footer_dict(schema: pa.Schema) -> JsonObject | None:
    """Return the record of ours in a file's metadata; None where there is none."""
    try:
        return dict(json.loads(schema.metadata[FOOTER_KEY]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def read_footer(fs: fsspec.AbstractFileSystem, path: str) -> UnitFooter:
    """Return the footer of a unit's file; no row is read.

    Raises:
        UserError: the file is not a file of a run.
    """
    try:
        with fs.open(path, "rb") as file:
            metadata = pq.ParquetFile(file).schema_arrow.metadata or {}
        return UnitFooter.from_dict(json.loads(metadata[FOOTER_KEY]))
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a file of this run ({type(error).__name__}): move it away") from error
