"""The prediction row: one for every sample, good or not."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.storage.filesystem import public
from wordsworth.pipeline.unit import Unit


@dataclass(frozen=True)
class WriteSettings:
    """What a writer needs to know. provenance: goes into every file's footer; it holds run_id and fingerprint.
    labels: class names by id, or None. embedding: None, "float16" or "float32"; width: its length. on_error: "keep", or "fail" to
    stop the run at the first row with an error. job: names the command, to tell its own files from those of a twin."""

    output: str
    provenance: dict[str, Any]
    labels: tuple[str, ...] | None
    top_k: int
    embedding: str | None
    width: int
    keep: tuple[str, ...] = ()
    on_error: str = "keep"
    storage_options: dict[str, Any] = field(default_factory=dict)
    job: str = ""


def prediction_schema(settings: WriteSettings) -> pa.Schema:
    """The prediction row; plain Arrow types, so that every Parquet reader opens it."""
    fields = [
        pa.field("key", pa.string()),
        pa.field("shard", pa.dictionary(pa.int32(), pa.string())),
        pa.field("index", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
    if settings.top_k:
        entry = pa.struct([("label_id", pa.int32()), ("label", pa.string()), ("score", pa.float32())])
        fields += [
            pa.field("label_id", pa.int32()),
            pa.field("label", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("topk", pa.list_(entry)),
        ]
    if settings.embedding:
        kind = {"float16": pa.float16(), "float32": pa.float32()}[settings.embedding]
        fields.append(pa.field("embedding", pa.list_(kind, settings.width)))
    fields += [pa.field(name, pa.string()) for name in settings.keep]
    return pa.schema([*fields, pa.field("error", pa.string()), pa.field("error_detail", pa.string())])


def prediction_table(unit: Unit, settings: WriteSettings) -> pa.Table:
    """The rows of a predicted unit."""
    samples = unit.samples.combine_chunks()
    columns = {name: samples[name] for name in samples.column_names}
    columns["shard"] = pa.DictionaryArray.from_arrays(
        np.zeros(len(samples), np.int32), [public(unit.shard_uri)]
    )
    if settings.top_k:
        columns |= _label_columns(samples, settings.labels)
    sidecars = samples["sidecars"].to_pylist()
    columns |= {
        name: pa.array([values[place] for values in sidecars], pa.string())
        for place, name in enumerate(settings.keep)
    }
    schema = prediction_schema(settings)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _label_columns(samples: pa.Table, labels: tuple[str, ...] | None) -> dict[str, pa.Array]:
    ids, scores = (samples[name].combine_chunks() for name in ("topk_ids", "topk_scores"))
    flat = ids.flatten()
    names = pa.array(labels, pa.string()).take(flat) if labels else pa.nulls(len(flat), pa.string())
    entries = pa.StructArray.from_arrays([flat, names, scores.flatten()], ["label_id", "label", "score"])
    lengths = ids.value_lengths().fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    topk = pa.ListArray.from_arrays(pa.array(offsets), entries, mask=ids.is_null())
    # The best class comes first; a row without a prediction has no first and takes null.
    first = pa.array(offsets[:-1], mask=lengths == 0)
    return {"topk": topk} | {name: entries.field(name).take(first) for name in ("label_id", "label", "score")}
