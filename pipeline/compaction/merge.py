"""Make one compacted file: read its units wherever they lie, and write them one after the other."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.commit import Damaged, count_errors, refuse_another
from wordsworth.pipeline.output.committed import shard_name_of
from wordsworth.pipeline.output.compacted_file import (
    COMPACTED,
    PLANNED,
    CompactedFile,
    CompactedFooter,
    CompactionId,
    runs,
)
from wordsworth.pipeline.output.records import FOOTER_KEY, JsonObject, UnitFooter
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.output.unit_store import UnitReader
from wordsworth.pipeline.storage.atomic import put_if_absent
from wordsworth.pipeline.storage.filesystem import absolute_uri

READERS = 8  # units that are fetched at a time


def merge(
    source: RunFolder, large: RunFolder, id: CompactionId, places: pa.Table, planned: pa.Table
) -> pa.Table:
    """Write one compacted file, or find the file there already, and return its units as COMPACTED.

    Args:
        source: the run that is compacted.
        large: the folder of the compacted run.
        id: the compaction.
        places: the units and where they lie in `source`, as `UnitStore.locate` gives them.
        planned: the same units, as PLANNED.

    Raises:
        UserError: a unit is not what the manifest says, or the file that is there is another one.
    """
    reader = UnitReader(source.fs, source.root)
    name = planned["into"][0].as_py()
    path = large.path("compacted", name)
    large.fs.invalidate_cache()
    if large.fs.exists(path):
        with ThreadPoolExecutor(READERS) as pool:
            footers = list(pool.map(partial(_footer, reader), places.to_pylist()))
        size = _check_twin(large, id, planned)
    else:
        data, footers = _merged(reader, id, places, planned)
        size = len(data)
        if not put_if_absent(large.fs, path, data):
            size = _check_twin(large, id, planned)
    more = {
        "next_offset": [footer.next_offset for footer in footers],
        "next_index": [footer.next_index for footer in footers],
        "into_bytes": [size] * planned.num_rows,
    }
    columns = [planned[name] for name in PLANNED.names]
    columns += [pa.array(more[field.name], field.type) for field in list(COMPACTED)[len(PLANNED) :]]
    return pa.table(columns, schema=COMPACTED)


def _merged(
    reader: UnitReader, id: CompactionId, places: pa.Table, planned: pa.Table
) -> tuple[pa.Buffer, list[UnitFooter]]:
    """Return the file in memory, made a row group at a time, and the footers of its units."""
    sink = pa.BufferOutputStream()
    writer: pq.ParquetWriter | None = None
    footers: list[UnitFooter] = []
    with ThreadPoolExecutor(READERS) as pool:
        for place in runs(planned["row_group"]):
            group = places[place].to_pylist()
            read = list(pool.map(partial(_unit, reader, id), group))
            footers += [footer for _, footer in read]
            if writer is None:
                schema = read[0][0].schema
                about = _compacted_footer(id, planned, footers[0]).to_json()
                writer = pq.ParquetWriter(
                    sink,
                    schema.with_metadata({FOOTER_KEY: about}),
                    compression="zstd",
                    write_page_checksum=True,
                )
            for unit, (rows, _) in zip(group, read, strict=True):
                if not rows.schema.equals(schema):
                    raise _refusal(reader, unit, "its columns are not those of the other files")
            table = pa.concat_tables([rows for rows, _ in read]).unify_dictionaries().combine_chunks()
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    if writer:
        writer.close()
    return sink.getvalue(), footers


def _unit(reader: UnitReader, id: CompactionId, unit: JsonObject) -> tuple[pa.Table, UnitFooter]:
    """Return the rows and the footer of a unit, if both are what the manifest says."""
    try:
        stored = reader.read(unit)
        footer = stored.footer
    except FileNotFoundError as error:
        raise _refusal(reader, unit, "it is missing") from error
    except Damaged as error:
        raise _refusal(reader, unit, f"it is damaged ({error})") from error
    except (KeyError, TypeError) as error:
        raise _refusal(reader, unit, "its metadata does not say what it is of") from error
    wanted = {
        "run_id": id.run_id,
        "fingerprint": id.fingerprint,
        "shard_name": shard_name_of(unit["file"]),
        "errors": json.loads(unit["errors"]),
    }
    wanted |= {name: unit[name] for name in ("shard", "unit", "last", "rows", "bytes")}
    found = (stored.told or {}) | {
        "rows": stored.rows.num_rows,
        "errors": count_errors(stored.rows),
        "bytes": stored.size_bytes,
    }
    for name, value in wanted.items():
        if found.get(name) != value:
            why = f"its {name} is {found.get(name)}, not {value} as the run has it"
            raise _refusal(reader, unit, why)
    return stored.rows, footer


def _footer(reader: UnitReader, unit: JsonObject) -> UnitFooter:
    try:
        return reader.footer(unit)
    except FileNotFoundError as error:
        raise _refusal(reader, unit, "it is missing") from error


def _refusal(reader: UnitReader, unit: JsonObject, why: str) -> UserError:
    uri = absolute_uri(reader.fs, reader.root)
    return UserError(
        f"{reader.path(unit)} cannot be merged: {why}. `wordsworth verify {uri}` names all that is wrong"
    )


def _compacted_footer(id: CompactionId, planned: pa.Table, first: UnitFooter) -> CompactedFooter:
    errors: Counter[str] = Counter()
    for text in planned["errors"].to_pylist():
        errors.update(json.loads(text))
    return CompactedFooter(
        provenance=first.provenance,
        job=first.job,
        generation=id.generation,
        file=planned["into"][0].as_py(),
        units=planned.num_rows,
        rows=pc.sum(planned["rows"]).as_py(),
        errors=dict(errors),
    )


def _check_twin(large: RunFolder, id: CompactionId, planned: pa.Table) -> int:
    """Return the bytes of the file that has our name, if it has our rows; it is read to its last page.

    A command that was killed, and a second command at the same time, leave such a file.

    Raises:
        UserError: the file is damaged, or is another one.
    """
    name = planned["into"][0].as_py()
    path = large.path("compacted", name)
    groups = planned.group_by("row_group", use_threads=False).aggregate([("rows", "sum")])
    rows = groups["rows_sum"].to_pylist()
    try:
        file = CompactedFile(large.fs, path)
        for group in range(len(file.group_rows)):
            file.read(group)
    except Damaged as error:
        raise UserError(
            f"{path} exists and is damaged ({error}): move it away and run the same command again"
        ) from error
    wanted = {
        "run_id": id.run_id,
        "fingerprint": id.fingerprint,
        "generation": id.generation,
        "file": name,
        "row groups": rows,
    }
    refuse_another(path, file.footer | {"row groups": file.group_rows}, wanted)
    return file.size
