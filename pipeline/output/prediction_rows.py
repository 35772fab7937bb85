"""Make the prediction rows: one for every sample, whether it could be labelled or not."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.output.records import Provenance
from wordsworth.pipeline.storage.filesystem import StorageOptions, without_credentials
from wordsworth.pipeline.unit import FOLDER, Unit

EMBEDDING_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


@dataclass(frozen=True, kw_only=True)
class WriteSettings:
    """Hold the settings of the write stage.

    Attributes:
        output: the run folder.
        provenance: stands in every file's footer.
        labels: class names by id, or None for a model without class names.
        top_k: classes in a row; 0 leaves the columns of the best classes out.
        chosen: whether rows have the column `labels`.
        value: whether rows have the column `value`.
        embedding: "float16" or "float32"; None leaves the column out.
        width: length of an embedding.
        keep: names of the sidecar columns.
        on_error: "keep", or "fail" to stop the run at the first row with an error.
        storage_options: for fsspec.
        job: token of the command, which tells its own files from those of another job.
    """

    output: str
    provenance: Provenance
    labels: tuple[str, ...] | None
    top_k: int
    embedding: str | None
    width: int
    chosen: bool = False
    value: bool = False
    keep: tuple[str, ...] = ()
    on_error: str = "keep"
    storage_options: StorageOptions = field(default_factory=dict)
    job: str = ""


ENTRY = pa.struct([("label_id", pa.int32()), ("label", pa.string()), ("score", pa.float32())])


def prediction_schema(
    top_k: int,
    embedding: str | None,
    width: int,
    keep: tuple[str, ...] = (),
    chosen: bool = False,
    value: bool = False,
) -> pa.Schema:
    """Return the columns of a prediction row.

    They are plain Arrow types, so that every Parquet reader opens the files.

    Args:
        top_k, embedding, width, keep, chosen, value: as in WriteSettings.
    """
    fields = [
        pa.field("key", pa.string()),
        pa.field("shard", pa.dictionary(pa.int32(), pa.string())),
        pa.field("index", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
    if top_k:
        fields += [*ENTRY, pa.field("topk", pa.list_(ENTRY))]
    if chosen:
        fields.append(pa.field("labels", pa.list_(ENTRY)))
    if value:
        fields.append(pa.field("value", pa.float32()))
    if embedding:
        fields.append(pa.field("embedding", pa.list_(EMBEDDING_TYPES[embedding], width)))
    fields += [pa.field(name, pa.string()) for name in keep]
    return pa.schema([*fields, pa.field("error", pa.string()), pa.field("error_detail", pa.string())])


def prediction_table(unit: Unit, settings: WriteSettings) -> pa.Table:
    """Return the rows of a predicted unit, with the columns of `prediction_schema`."""
    samples = unit.samples.combine_chunks()
    columns = {name: samples[name] for name in samples.column_names}
    columns["shard"] = _shard_column(unit)
    if settings.top_k:
        columns |= _best_columns(_entries(samples, "topk_ids", "topk_scores", settings.labels))
    if settings.chosen:
        columns["labels"] = _entries(samples, "label_ids", "label_scores", settings.labels)
    sidecars = samples["sidecars"].to_pylist()
    for place, name in enumerate(settings.keep):
        columns[name] = pa.array([values[place] for values in sidecars], pa.string())
    schema = prediction_schema(
        settings.top_k,
        settings.embedding,
        settings.width,
        settings.keep,
        chosen=settings.chosen,
        value=settings.value,
    )
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _shard_column(unit: Unit) -> pa.DictionaryArray:
    if FOLDER not in unit.samples.column_names:
        shard = without_credentials(unit.shard_uri)
        return pa.DictionaryArray.from_arrays(np.zeros(len(unit.samples), np.int32), [shard])
    folders = [without_credentials(folder) for folder in unit.samples[FOLDER].to_pylist()]
    return pa.array(folders, pa.dictionary(pa.int32(), pa.string()))


def _entries(samples: pa.Table, ids: str, scores: str, labels: tuple[str, ...] | None) -> pa.ListArray:
    """Return the lists of classes in two columns as one column of lists of ENTRY."""
    lists = samples[ids].combine_chunks()
    flat_ids = lists.flatten()
    names = pa.nulls(len(flat_ids), pa.string())
    if labels:
        names = pa.array(labels, pa.string()).take(flat_ids)
    flat_scores = samples[scores].combine_chunks().flatten()
    entries = pa.StructArray.from_arrays([flat_ids, names, flat_scores], fields=list(ENTRY))
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), entries, mask=lists.is_null())


def _best_columns(topk: pa.ListArray) -> dict[str, pa.Array]:
    """Return `topk`, and its first entries as columns of their own."""
    # The best class comes first. A row without a prediction has no first entry and takes null.
    lengths = topk.value_lengths().fill_null(0).to_numpy()
    first = pa.array(topk.offsets.to_numpy()[:-1], mask=lengths == 0)
    entries = topk.values
    return {field.name: entries.field(field.name).take(first) for field in ENTRY} | {"topk": topk}
