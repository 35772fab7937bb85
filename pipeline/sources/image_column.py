"""Choose the column of images of a table, and find the other columns that are asked for."""

from collections import Counter
from collections.abc import Collection

import pyarrow as pa

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.file_kinds import table_form
from wordsworth.pipeline.sources.nested_fields import (
    Field,
    FieldPath,
    Tree,
    find_field,
    is_list,
    tree_of,
    type_at,
)
from wordsworth.pipeline.sources.path_columns import path_columns
from wordsworth.pipeline.sources.samples import ReadSettings, UnfitTable
from wordsworth.pipeline.sources.table_cells import URI_FIELDS, valid_text

JSON_FORMS = ("jsonl", "json")  # forms of tables whose records have fields of their own
# Names of the column of images, the first one counts. Not used with --image-column, or if only one column
# holds bytes.
NAMES = ("image", "url", "uri", "image_url", "path", "image_path", "file", "filename", "file_name")
MAX_SHOWN = 80  # characters of the name of a column in a message
LISTS = ("images",)  # names of columns of lists; they count where none of NAMES is there


def refuse_unused_columns(image_column: str | None, key: str | None, kinds: Collection[str]) -> None:
    """Refuse columns that are asked for where no shard is a table.

    Args:
        image_column, key: as ReadSettings has them.
        kinds: kinds of the shards.

    Raises:
        UserError: one of the two is given, and no kind is "table".
    """
    if "table" in kinds:
        return
    for option, column in (("--image-column", image_column), ("--key", key)):
        if column is not None:
            raise UserError(
                f"{option} {column} names a column of tables, and the sources hold none: leave it out",
                exit_code=2,
            )


def field_by_name(tree: Tree, path: str, settings: ReadSettings) -> Field:
    """Return the field of images, by its name alone.

    Args:
        tree: columns of the table
        path: name of the table, for the message
        settings: name the column, or not

    Raises:
        UnfitTable: there is no such column.
    """
    if settings.image_column:
        return known_field(settings.image_column, tree, path, "--image-column")
    for name in [*(name for name in tree if name in NAMES), *(name for name in tree if name in LISTS)]:
        return Field(name, (name,))
    raise UnfitTable(
        f"{path} has no column that says where its images are ({_shown(tree)}): name it with --image-column"
    )


def names_images(columns: list[str], settings: ReadSettings) -> bool:
    """Return whether one of the columns is the column of images."""
    wanted = (settings.image_column,) if settings.image_column else NAMES + LISTS
    return any(column in wanted for column in columns)


def field_of_images(schema: pa.Schema, path: str, settings: ReadSettings) -> Field:
    """Return the field of images of a Parquet file.

    It is the one that --image-column names, else the only column with bytes, else the first by NAMES.

    Raises:
        UnfitTable: there is no such column, or it can hold no image.
    """
    binary = [field.name for field in schema if content(field.type) == "bytes"]
    if len(binary) == 1 and not settings.image_column:
        found = Field(binary[0], (binary[0],))
    else:
        found = field_by_name(tree_of(schema), path, settings)
    refuse_repeated(schema.names, found.name, path, settings)
    kind = type_at(schema, found.path or (found.name,))
    if content(kind) is None:
        raise UnfitTable(
            f"{path}: column {found.name} is {kind}, neither bytes nor URIs: give --image-column"
        )
    return found


def refuse_repeated(columns: list[str], image: str, path: str, settings: ReadSettings) -> None:
    """Refuse a table that has a column twice which is asked for: nothing says which of the two counts.

    Args:
        columns: names of the columns, in the order of the file
        image: name of the field of images
        path: name of the table, for the message
        settings: name the other fields

    Raises:
        UnfitTable: it has.
    """
    if len(set(columns)) == len(columns):
        return
    asked = [name.lower() for name in (image, settings.key, *settings.keep) if name]
    for column, count in Counter(columns).items():
        start = column.lower()
        if count > 1 and any(name == start or name.startswith(f"{start}.") for name in asked):
            raise UnfitTable(f"{path} has {count} columns {valid_text(column)}: give each a name of its own")


def path_beside_bytes(schema: pa.Schema, image: Field) -> Field | None:
    """Return the field of names beside the bytes in a struct of images; None without one."""
    kind = type_at(schema, image.path or (image.name,))
    if not pa.types.is_struct(kind):
        return None
    held = {field.name: content(field.type) for field in kind if not pa.types.is_nested(field.type)}
    if held.get("bytes") != "bytes" or held.get("path") != "uri":
        return None
    return Field(f"{image.name}.path", (*(image.path or (image.name,)), "path"))


def content(kind: pa.DataType) -> str | None:
    """Return what a column holds: "bytes", "uri", or None for neither.

    A list counts as its entries; a struct as its bytes, as in datasets of Hugging Face, or as the URI in it.
    """
    kind = getattr(kind, "storage_type", kind)
    while is_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        held = {field.name: content(field.type) for field in kind}
        if held.get("bytes") == "bytes":
            return "bytes"
        return "uri" if any(held.get(name) == "uri" for name in ("bytes", *URI_FIELDS)) else None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "uri"
    return "uri" if pa.types.is_null(kind) else None


def known_field(name: str, tree: Tree, path: str, option: str) -> Field:
    """Return the field that an option names.

    Raises:
        UnfitTable: the table has no such field.
    """
    found = find_field(tree, name)
    if found is not None:
        return Field(name, found if _is_column_of_all(found, path) else None)
    if table_form(path) in JSON_FORMS and any(name.startswith(f"{column}.") for column in tree):
        return Field(name)
    raise UnfitTable(f"{path} has no column {name}, which {option} names ({_shown(tree)})")


def overlap(one: Field, other: Field) -> bool:
    """Return whether two fields are the same, or one is in the other."""
    names = [(field.path or tuple(field.name.lower().split("."))) for field in (one, other)]
    num_shared = min(map(len, names))
    return names[0][:num_shared] == names[1][:num_shared]


def kept_field(name: str, tree: Tree, path: str) -> Field:
    """Return the field that --keep names, in lower case.

    Raises:
        UnfitTable: the table has no such field.
    """
    found = find_field(tree, name, any_case=True)
    if found is not None and _is_column_of_all(found, path):
        return Field(name, found)
    if table_form(path) in JSON_FORMS:
        return Field(name, any_case=True)
    return known_field(name, tree, path, "--keep")


def _is_column_of_all(found: FieldPath, path: str) -> bool:
    """Return whether a field is at the same place in all records of the table at `path`.

    In a JSON object, a name with dots may be a column, and in the next one a field of an object.
    """
    return table_form(path) not in JSON_FORMS or "." not in found[0] or found[0] in path_columns(path)


def _shown(tree: Tree) -> str:
    """Return the columns for a message. A file without a header has its first line in their place."""
    names = [name if len(name) <= MAX_SHOWN else f"a text of {len(name)} characters" for name in tree]
    return f"it has {', '.join(map(valid_text, names[:20]))}" if tree else "it has none"
