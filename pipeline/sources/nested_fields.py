"""Find a field of a record by name: a column, or a dotted path through structs, JSON objects and lists."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

Tree = dict[str, "Tree | None"]  # the columns by name, with the fields of a struct or of a list of structs
FieldPath = tuple[str, ...]  # name of a column, and of the field in each struct below it


@dataclass(frozen=True)
class Field:
    """Name a field of the records of one table.

    Attributes:
        name: as it was asked for: a column, or a field as `column.field`
        path: where it is; None in tables whose records have fields of their own, such as JSON
        any_case: the name was given in lower case
    """

    name: str
    path: FieldPath | None = None
    any_case: bool = False

    def of(self, record: Any) -> Any:
        """Return the value in a record; None where it has none. Below a list it is a list."""
        if self.path is None:
            return lookup(record, self.name, self.any_case)
        if len(self.path) == 1 and isinstance(record, dict):
            return record.get(self.path[0])
        return _value_at(record, self.path)

    def first_step(self, record: dict[str, Any]) -> "tuple[str, Field | None] | None":
        """Return the column of a record that the field is in, and the field in that; None for no column."""
        if self.path is None:
            step = _first_step(record, self.name, self.any_case)
            return step and (step[0], Field(step[1], None, self.any_case) if step[1] else None)
        return self.path[0], Field(self.name, self.path[1:]) if self.path[1:] else None


def lookup(value: Any, name: str, any_case: bool = False) -> Any:
    """Return the field of that name in a record; None where it has none. Below a list it is a list.

    A column whose name holds the dots comes before a field of a struct.
    """
    if isinstance(value, list):
        return [lookup(one, name, any_case) for one in value]
    if not isinstance(value, dict):
        return None
    step = _first_step(value, name, any_case)
    if step is None:
        return None
    return lookup(value[step[0]], step[1], any_case) if step[1] else value[step[0]]


def _first_step(record: dict[str, Any], name: str, any_case: bool) -> tuple[str, str] | None:
    """Return the column that a name means or begins with, and the rest of the name; None for no column.

    The longest column counts.
    """
    path = find_field(dict.fromkeys(record), name, any_case)
    if path is not None:
        return path[0], ""
    for own in sorted(record, key=len, reverse=True):
        if _is_same(own, name[: len(own)], any_case) and name[len(own) : len(own) + 1] == ".":
            return own, name[len(own) + 1 :]
    return None


def find_field(tree: Tree, name: str, any_case: bool = False) -> FieldPath | None:
    """Return the path of a field; None where there is none.

    A column whose name holds the dots comes before a field of a struct.

    Args:
        tree: names of columns and fields
        name: name of a column, or of a field as `column.field`
        any_case: take a field whose name differs in its letters' case, if no other has this name
    """
    path = _find(tree, name, any_case=False)
    return path if path is not None or not any_case else _find(tree, name, any_case=True)


def _find(tree: Tree, name: str, any_case: bool) -> FieldPath | None:
    for own in tree:
        if _is_same(own, name, any_case):
            return (own,)
    for own, below in sorted(tree.items(), key=lambda item: len(item[0]), reverse=True):
        if below and _is_same(own, name[: len(own)], any_case) and name[len(own) : len(own) + 1] == ".":
            path = _find(below, name[len(own) + 1 :], any_case)
            if path is not None:
                return (own, *path)
    return None


def _is_same(own: str, name: str, any_case: bool) -> bool:
    return own == name or (any_case and own.lower() == name.lower())


def _value_at(value: Any, path: FieldPath) -> Any:
    for depth, name in enumerate(path):
        if isinstance(value, list):
            return [_value_at(one, path[depth:]) for one in value]
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


# ---- schemas ----------------------------------------------------------------------------------------------


def tree_of(schema: Iterable[pa.Field]) -> Tree:
    """Return the names of the columns of a schema and of all fields below them."""
    return {field.name: _tree_of_type(field.type) for field in schema}


def _tree_of_type(kind: pa.DataType) -> Tree | None:
    while is_list(kind):
        kind = kind.value_type
    return tree_of(kind) if pa.types.is_struct(kind) else None


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds lists."""
    types = pa.types
    return (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def type_at(schema: pa.Schema, path: FieldPath) -> pa.DataType:
    """Return the type of the field at a path, in as many lists as are on the way to it."""
    kind = schema.field(path[0]).type
    return _type_below(kind, path[1:])


def _type_below(kind: pa.DataType, path: FieldPath) -> pa.DataType:
    if is_list(kind):
        return pa.list_(_type_below(kind.value_type, path))
    return _type_below(kind.field(path[0]).type, path[1:]) if path else kind


def column_to_read(schema: pa.Schema, path: FieldPath) -> str:
    """Return what a Parquet reader is asked for: a field alone, or a column whole if lists are on the way."""
    kind = schema.field(path[0]).type
    for name in path[1:]:
        if is_list(kind):
            return path[0]
        kind = kind.field(name).type
    return ".".join(path)
