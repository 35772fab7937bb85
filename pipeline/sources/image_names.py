"""Name images by the names that stand beside their bytes, as in the structs of Hugging Face's datasets."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from wordsworth.pipeline.sources.image_column import path_beside_bytes
from wordsworth.pipeline.sources.nested_fields import Field, column_to_read
from wordsworth.pipeline.sources.table_cells import key_text
from wordsworth.pipeline.sources.table_records import ParquetTable
from wordsworth.pipeline.sources.text_object import TableCut
from wordsworth.pipeline.storage.filesystem import without_credentials


@dataclass(frozen=True)
class ImageNames:
    """Name the images of a table.

    Attributes:
        field: the field of the names
        repeated: hashes of names that come more than once; None where no name counts
    """

    field: Field
    repeated: frozenset[int] | None

    def of(self, values: dict[str, Any]) -> str | None:
        """Return the name of a row's image; None where it has none of its own."""
        name = self.field.of(values)
        if self.repeated is None or not isinstance(name, str) or not name or hash(name) in self.repeated:
            return None
        return key_text(without_credentials(name))


def names_beside_bytes(table: ParquetTable, image: Field) -> ImageNames | None:
    """Return the names of a table's images; None where the column of images is no struct with both.

    The names are read once in advance: one that comes again names no image. Where they cannot be read to
    their end, none counts. So the key of a row is the same wherever a reading begins.
    """
    field = path_beside_bytes(table.schema, image)
    if field is None:
        return None
    column = column_to_read(table.schema, field.path or ())
    if table.is_empty(column):
        return ImageNames(field, None)
    try:
        names = (field.of(record.values or {}) for record in table.records([column], 0))
        hashes, counts = np.unique(np.fromiter(map(hash, names), np.int64), return_counts=True)
    except TableCut:
        return ImageNames(field, None)
    return ImageNames(field, frozenset(hashes[counts > 1].tolist()))
