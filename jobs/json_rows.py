"""Make rows of a table what JSON can hold, each number as short as its type allows."""

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa


def json_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows: a float32 as 0.001, not as the 0.0010000000474974513 of float64, and what is no finite
    number as None, because JSON knows no other."""
    types = {field.name: field.type for field in table.schema}
    for row in table.to_pylist():
        yield {name: _json_value(value, types[name]) for name, value in row.items()}


def _json_value(value: Any, type_: pa.DataType) -> Any:
    if pa.types.is_floating(type_) and value is not None:
        if not math.isfinite(value):
            return None
        return value if pa.types.is_float64(type_) else float(str(type_.to_pandas_dtype()(value)))
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        if value is None:
            return None
        return [_json_value(one, type_.value_type) for one in value]
    if pa.types.is_struct(type_) and value is not None:
        return {name: _json_value(one, type_.field(name).type) for name, one in value.items()}
    return value
