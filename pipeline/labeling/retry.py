"""--retry-errors: images that failed are fetched again by their place, and a unit's file is replaced whole, under its name.

The same decode and predict stages run between `fetch_stage` and `merge_stage`; a unit here holds only the samples that failed.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.output.committed import UNIT_NAME, unit_file
from wordsworth.pipeline.output.frozen_listing import FrozenListing
from wordsworth.pipeline.output.prediction_rows import WriteSettings, prediction_table
from wordsworth.pipeline.output.run_folder import FOOTER, RunFolder, parquet, read_footer, receipt_of
from wordsworth.pipeline.sources.reader import ReadSettings, StoreFault, read_image, read_units
from wordsworth.pipeline.sources.shards import LISTING, Shard
from wordsworth.pipeline.storage.filesystem import open_filesystem, patiently, replace
from wordsworth.pipeline.unit import SAMPLE, Unit

LASTING = ("shard_truncated", "missing_image")  # reading the same bytes again cannot change these
RETRY = pa.schema([*LISTING, ("file", pa.string())])
PREDICTED = ("width", "height", "label_id", "label", "score", "topk", "embedding", "error", "error_detail")


def failed_units(run: RunFolder, frozen: FrozenListing) -> Iterator[pa.Table]:
    """One row for each file with errors that another try might end: its shard and its name. Reads the manifest."""
    with run.fs.open(run.path("_run", "manifest.parquet"), "rb") as file:
        manifest = pq.read_table(file, columns=["file", "errors"])
    files: dict[str, list[str]] = {}
    for row in manifest.filter(pc.not_equal(manifest["errors"], "{}")).to_pylist():
        if json.loads(row["errors"]).keys() - set(LASTING):
            files.setdefault(UNIT_NAME.fullmatch(row["file"])["shard"], []).append(row["file"])
    for shard in frozen.shards():
        for name in files.get(shard.name, ()):
            yield pa.Table.from_pylist([{**shard.to_row(), "file": name}], schema=RETRY)


# ---- fetch ----------------------------------------------------------------------------------------------------------------


def fetch_stage(table: pa.Table, settings: ReadSettings, output: str) -> pa.Table:
    """Ray Data's function: a file of the run in, a unit of its failed samples out, their images fetched again."""
    (row,) = table.to_pylist()
    shard, start = Shard.from_row(row), time.perf_counter()
    fs, root = open_filesystem(output, settings.storage_options)
    path = f"{root.rstrip('/')}/predictions/{row['file']}"
    footer = read_footer(fs, path)
    with fs.open(path, "rb") as file:
        rows = pq.read_table(file, columns=["key", "index", "offset", "size", "error"]).to_pylist()
    failed = [row for row in rows if row["error"] and row["error"] not in LASTING]
    fault, encoded = None, {}
    try:
        encoded = dict(
            _fetched(shard, failed, settings, lambda: _read_again(shard, footer, settings, fs, root))
        )
    except (OSError, StoreFault) as error:
        fault, failed = f"{type(error).__name__}: {error}", []
    unit = Unit(
        shard_uri=shard.uri,
        shard_name=shard.name,
        number=footer["unit"],
        last=footer["last"],
        next_offset=footer["next_offset"],
        next_index=footer["next_index"],
        bytes_read=sum(map(len, encoded.values())),
        samples=_samples(failed, encoded, len(settings.keep)),
        payload=np.frombuffer(b"".join(encoded.get(row["index"], b"") for row in failed), np.uint8),
        seconds={"read": time.perf_counter() - start},
        fault=fault,
    )
    return unit.to_arrow()


def _samples(failed: list[dict], encoded: dict[int, bytes], sidecars: int) -> pa.Table:
    """What could not be fetched keeps the error that it had."""
    rows = [
        {
            **{name: row[name] for name in ("key", "index", "offset")},
            "size": len(encoded[row["index"]]) if row["index"] in encoded else row["size"],
            "sidecars": [None] * sidecars,
            "error": None if row["index"] in encoded else row["error"],
            "error_detail": None if row["index"] in encoded else "could not be fetched again",
        }
        for row in failed
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLE)


def _fetched(
    shard: Shard, failed: list[dict], settings: ReadSettings, again: Any
) -> Iterator[tuple[int, bytes]]:
    """Index and bytes of each failed image that is small enough: one range read, one object, or its unit read again."""
    fs, root = open_filesystem(shard.uri, settings.storage_options)
    if shard.kind == "images":
        members = {member["key"]: member for member in shard.members}
        for row in failed:
            if row["size"] <= settings.max_bytes:
                yield row["index"], read_image(fs, f"{root.rstrip('/')}/{row['key']}", members[row["key"]])
    elif all(row["offset"] is not None for row in failed):
        for row in failed:
            if row["size"] <= settings.max_bytes and row["error"] != "sparse_member":
                begin, end = row["offset"], row["offset"] + row["size"]
                yield (
                    row["index"],
                    patiently(lambda begin=begin, end=end: fs.cat_file(root, start=begin, end=end)),
                )
    else:
        wanted = {row["index"] for row in failed}
        yield from ((index, data) for index, data in again() if index in wanted)


def _read_again(
    shard: Shard, footer: dict, settings: ReadSettings, fs: Any, root: str
) -> Iterator[tuple[int, bytes]]:
    """The encoded images of one unit by index, from where the unit before it ended."""
    number, position, index = footer["unit"], 0, 0
    if number:
        before = read_footer(
            fs, f"{root.rstrip('/')}/predictions/{unit_file(shard.name, number - 1, last=False)}"
        )
        position, index = before["next_offset"], before["next_index"]
    unit = next(read_units(shard, settings, number, position, index))
    if unit.fault:
        raise StoreFault(unit.fault)
    begin = 0
    for row in unit.samples.to_pylist():
        if row["error"] is None:
            yield row["index"], unit.payload[begin : begin + row["size"]].tobytes()
            begin += row["size"]


# ---- merge ----------------------------------------------------------------------------------------------------------------


def merge_stage(table: pa.Table, settings: WriteSettings) -> pa.Table:
    """Ray Data's function: a predicted unit of retried samples in; its rows take the place of those in the unit's file."""
    unit, start = Unit.from_arrow(table), time.perf_counter()
    if unit.fault:
        return receipt_of(unit, settings, 0, {}, written=False)
    run = RunFolder(settings.output, settings.storage_options)
    run.refuse_compacted("--retry-errors")  # again: compact may have begun since
    fs, path = run.fs, run.path("predictions", unit_file(unit.shard_name, unit.number, unit.last))
    footer = read_footer(fs, path)
    with fs.open(path, "rb") as file:
        old = pq.read_table(file)
    fresh = prediction_table(unit, settings)
    merged = merge(old, fresh)
    errors = dict(Counter(code for code in merged["error"].to_pylist() if code))
    written = pc.count(fresh["error"]).as_py() < fresh.num_rows  # something got better
    if written:
        merged = merged.replace_schema_metadata({FOOTER: json.dumps(footer | {"errors": errors}).encode()})
        replace(fs, path, parquet(merged).to_pybytes())
    unit.seconds["write"] = time.perf_counter() - start
    still = dict(Counter(code for code in fresh["error"].to_pylist() if code))
    return receipt_of(unit, settings, fresh.num_rows, still, written)


def merge(old: pa.Table, fresh: pa.Table) -> pa.Table:
    """`old` with the predictions of `fresh` in the rows of the same index; all else of a row stays."""
    place = {index: number for number, index in enumerate(old["index"].to_pylist())}
    places = [place[index] for index in fresh["index"].to_pylist()]
    kept = old.take(places)
    columns = [
        fresh[name].cast(kind) if name in PREDICTED else kept[name]
        for name, kind in zip(old.column_names, old.schema.types, strict=True)
    ]
    both = pa.concat_tables([old, pa.Table.from_arrays(columns, schema=old.schema)]).unify_dictionaries()
    order = list(range(old.num_rows))
    for number, at in enumerate(places):
        order[at] = old.num_rows + number
    return both.take(order).combine_chunks().cast(old.schema)
