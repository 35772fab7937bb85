"""Read the names of classes that a table of Hugging Face's datasets holds beside its numbers.

A column of the type ClassLabel holds numbers. Their names stand in the metadata of the Parquet schema.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from wordsworth.pipeline.sources.file_kinds import table_form
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table_records import ParquetTable
from wordsworth.pipeline.sources.text_object import TableCut
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_exact

_LISTS = ("Sequence", "List", "LargeList")  # types whose values are lists
# Names of the classes in the order of their numbers, by the path of the column or of the field in it.
ClassLabels = dict[tuple[str, ...], tuple[str, ...]]


def class_labels(schema: pa.Schema) -> ClassLabels:
    """Return the names of the classes of every column of a table that has them."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(_labels_in(told["info"]["features"], ()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # metadata of another form
        return {}


def _labels_in(features: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield the path and the names of every ClassLabel in a description of columns."""
    for name, feature in features.items():
        if not isinstance(feature, dict):
            continue
        if feature.get("_type") in _LISTS and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]
        if feature.get("_type") == "ClassLabel" and feature.get("names"):
            yield (*path, name), tuple(map(str, feature["names"]))
        elif "_type" not in feature:
            yield from _labels_in(feature, (*path, name))


def first_class_labels(shards: Iterable[Shard], storage_options: StorageOptions) -> ClassLabels:
    """Return the names of the classes that the first Parquet table among shards has.

    Raises:
        OSError: the store fails.
    """
    for shard in shards:
        if shard.kind == "table" and table_form(shard.uri) == "parquet":
            fs, path = open_exact(shard.uri, storage_options)
            try:
                return class_labels(ParquetTable(fs, path, shard.size).schema)
            except TableCut:
                return {}
    return {}


def labels_by_name(named: ClassLabels) -> dict[str, tuple[str, ...]]:
    """Return the names by what --keep and --target call the column, in lower case: label, or meta.label."""
    return {".".join(path).lower(): labels for path, labels in named.items()}


def with_names(value: object, labels: tuple[str, ...]) -> object:
    """Return the name of the class that a cell's number counts; other values as they are, such as -1."""
    if isinstance(value, list):
        return [with_names(one, labels) for one in value]
    if isinstance(value, int) and 0 <= value < len(labels):
        return labels[value]
    return value
