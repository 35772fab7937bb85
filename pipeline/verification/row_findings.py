"""Check the rows of a unit: their shard, and that each has either a prediction or an error."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import without_credentials

PREDICTIONS = ("label_id", "labels", "value", "embedding")  # columns without a null but for an error


def full_keys(shard: Shard, table: pa.Table) -> pa.ChunkedArray:
    """Return the keys of a shard's rows; of images that were named one by one, their full paths.

    Two such images may have one name, in two folders.
    """
    if shard.kind != "named":
        return table["key"]
    return pc.binary_join_element_wise(table["shard"].cast(pa.string()), table["key"], "/")


def row_findings(table: pa.Table, shard: Shard) -> Iterator[tuple[str, str, int]]:
    """Yield code, detail and count of rows of another shard, and of rows with neither a prediction nor an
    error, or both."""
    uri = without_credentials(shard.uri)
    if shard.kind == "named":
        yield from _named_findings(table, shard, uri)
    else:
        others = [other for other in table["shard"].unique().to_pylist() if other != uri]
        if others:
            yield "wrong_shard", f"has rows of {others[0]}, not only of {uri}", len(others)
    is_failed = pc.is_valid(table["error"]).to_numpy()
    for name in PREDICTIONS:
        if name not in table.schema.names or pa.types.is_string(table.schema.field(name).type):
            continue  # a text is a sidecar that was kept under this name
        is_given = pc.is_valid(table[name]).to_numpy()
        for code, wrong in (
            ("missing_prediction", ~is_given & ~is_failed),
            ("prediction_on_error", is_given & is_failed),
        ):
            if wrong.any():
                index = table["index"][int(wrong.argmax())]
                yield code, f"{name} of the row with index {index}", int(wrong.sum())


def _named_findings(table: pa.Table, shard: Shard, uri: str) -> Iterator[tuple[str, str, int]]:
    """Compare folder and name of each row with the image that the listing has at its index."""
    wrong: list[str] = []
    for index, path in zip(table["index"].to_pylist(), full_keys(shard, table).to_pylist(), strict=True):
        place = -1 if index is None else index - shard.first_index
        is_listed = 0 <= place < len(shard.members)
        if not is_listed or f"{uri}/{shard.members[place]['key']}" != path:
            wrong.append(str(path))
    if wrong:
        yield "wrong_shard", f"{wrong[0]} is not the image of this index", len(wrong)
