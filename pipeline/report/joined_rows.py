"""Join the rows of two runs by shard and key, in bounded memory: through files on disk."""

import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from errno import ENOSPC
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.report.html import bytes_of
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.selection import GroupNumbers
from wordsworth.pipeline.report.truth import TruthNames

PART_BYTES = 48 << 20  # bytes of a run's rows in one file, about: this much of each run is in memory
MOST_PARTS = 400  # files that are open at once
WAITING_BYTES = 48 << 20  # bytes of rows that wait until they are written, a batch to each file
ROW_BYTES = 160  # of a row without its embedding, about
PAIRS_AT_ONCE = 8192  # joined rows of one table
INDEX_RANGE = 1 << 31  # more than any index
PLACE = ("key", "shard", "index", "offset", "size")  # columns that every run has
LABELS = ("label_id", "label", "score")  # columns that a run without classes does not have
ERRORS = ("error", "error_detail")


class SharedNames:
    """Number the shards and the labels of two runs, so that equal texts have equal numbers.

    Attributes:
        shards: the shards.
        labels: the labels by their text.
        classes: text by the number of the class in the model, for each run.
        truth: numbers the names of the right classes, by the run in whose rows they stand: 0 or 1; empty
            where labels are not compared with classes.
    """

    def __init__(self) -> None:
        self.truth: dict[int, TruthNames] = {}
        self.shards = GroupNumbers()
        self.labels: list[str] = []
        self.classes: tuple[dict[int, str], dict[int, str]] = ({}, {})
        self._codes: dict[str, int] = {}

    def of_shards(self, column: pa.Array) -> np.ndarray:
        """Return the number of each row's shard."""
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        values = np.array(encoded.dictionary.to_pylist(), object)
        return self.shards.of(values)[encoded.indices.to_numpy(zero_copy_only=False)]

    def of_labels(self, side: int, ids: pa.Array, names: pa.Array) -> pa.Array:
        """Return the number of each row's label; null where it has none.

        Args:
            side: 0 for the first run, 1 for the second.
            ids: (M,) the best class by its number in the model, or null.
            names: (M,) its name, or null; a class without a name is called by its number.
        """
        values, first, inverse = np.unique(
            ids.fill_null(-1).to_numpy(zero_copy_only=False), return_index=True, return_inverse=True
        )
        codes = np.empty(len(values), np.int32)
        classes = self.classes[side]
        for place, (value, row) in enumerate(zip(values.tolist(), first.tolist(), strict=True)):
            if value not in classes:
                name = names[row].as_py()
                classes[value] = f"class {value}" if name is None else name
            codes[place] = self.code(classes[value]) if value >= 0 else -1
        return pa.array(codes[inverse.reshape(-1)], mask=np.asarray(ids.is_null()))

    def add_label(self, name: str) -> int:
        """Return a number for a label that is none of either run, whatever its text."""
        self.labels.append(name)
        return len(self.labels) - 1

    def code(self, name: str) -> int:
        """Return the number of a label."""
        code = self._codes.setdefault(name, len(self.labels))
        if code == len(self.labels):
            self.labels.append(name)
        return code

    def have_conflict(self) -> bool:
        """Return whether a class that occurs in both runs has another name or another number there."""
        a, b = ({id: name for id, name in side.items() if id >= 0} for side in self.classes)
        other_name = any(b.get(id, name) != name for id, name in a.items())
        ids_of_b = {name: id for id, name in b.items()}
        return other_name or any(ids_of_b.get(name, id) != id for id, name in a.items())


class JoinedPart(NamedTuple):
    """Hold what came of joining a part of two runs.

    Attributes:
        a, b: the rows of each run in this part, with numbers of `SharedNames` for shard and label.
        pairs: (M, 2) places of rows in `a` and `b` that belong together.
        only_a, only_b: places of the other rows.
        num_by_index: pairs whose key stands several times in its shard, so that the index told them apart.
        num_unclear: other rows whose key the other run has too, several times, but with another index.
    """

    a: pa.Table
    b: pa.Table
    pairs: np.ndarray
    only_a: np.ndarray
    only_b: np.ndarray
    num_by_index: int
    num_unclear: int

    def chunks(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield the rows that belong together, as tables of equal length."""
        for begin in range(0, len(self.pairs), PAIRS_AT_ONCE):
            chosen = self.pairs[begin : begin + PAIRS_AT_ONCE]
            yield self.a.take(pa.array(chosen[:, 0])), self.b.take(pa.array(chosen[:, 1]))


def join_runs(
    a: RunRows, b: RunRows, folder: Path, names: SharedNames, with_embeddings: bool
) -> Iterator[JoinedPart]:
    """Yield all rows of two runs, part by part.

    The rows of each run are written to files by a hash of shard and key, so that rows that belong together
    lie in files of the same number. Memory holds one file of each run. Rows of one key in one shard lie in
    one file, however many they are.

    Args:
        a, b: the runs.
        folder: an empty folder on a disk, for the files; it takes about the size of the rows.
        names: gets the shards and labels.
        with_embeddings: read the embeddings too.

    Raises:
        UserError: a file of a run is damaged, or there is no room in the folder.
    """
    sizes = [_estimated_bytes(run, with_embeddings) for run in (a, b)]
    free = shutil.disk_usage(folder).free
    if sum(sizes) > free:
        raise UserError(_no_room(folder, f"the rows take {bytes_of(sum(sizes))}, {bytes_of(free)} are free"))
    num_parts = min(MOST_PARTS, max(1, -(-max(sizes) // PART_BYTES)))
    try:
        for side, run in enumerate((a, b)):
            _write_parts(run, side, folder, names, num_parts, with_embeddings)
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        raise UserError(_no_room(folder, "it is full")) from error
    for number in range(num_parts):
        sides = [_read_part(_part_path(folder, side, number)) for side in (0, 1)]
        yield _joined(*sides)


def _no_room(folder: Path, why: str) -> str:
    return f"no room in {folder.parent} for the join: {why}: set TMPDIR to a folder on a disk with room"


def _estimated_bytes(run: RunRows, with_embeddings: bool) -> int:
    width = 0
    if with_embeddings:
        kind = run.schema.field("embedding").type
        width = kind.list_size * kind.value_type.bit_width // 8
    return run.num_rows * (ROW_BYTES + width)


# ---- files ----------------------------------------------------------------------------------------------


def _part_path(folder: Path, side: int, number: int) -> Path:
    return folder / f"{side}-{number:03d}.arrow"


def _write_parts(
    run: RunRows, side: int, folder: Path, names: SharedNames, num_parts: int, with_embeddings: bool
) -> None:
    """Write the rows of a run to the files of its side."""
    more = [*ERRORS, *(["embedding"] if with_embeddings else [])]
    fields = [run.schema.field(name) for name in (*PLACE, *more) if name != "shard"]
    own = [("shard", pa.int32()), ("label", pa.int32()), ("score", pa.float32()), ("truth", pa.int32())]
    schema = pa.schema([*map(pa.field, *zip(*own, strict=True)), *fields])
    truth = names.truth.get(side)
    columns = [*PLACE, *(LABELS if run.has("label") else ()), *more, *([truth.column] if truth else [])]
    with ExitStack() as stack:
        writers = []
        for number in range(num_parts):
            file = stack.enter_context(open(_part_path(folder, side, number), "wb"))
            writers.append(stack.enter_context(pa.ipc.new_stream(file, schema)))
        waiting: list[pa.Table] = []
        waiting_bytes = 0
        for batch in run.batches(list(dict.fromkeys(columns))):
            rows = _numbered(batch, side, names, schema)
            waiting.append(rows)
            waiting_bytes += rows.nbytes
            if waiting_bytes > WAITING_BYTES:
                _flush(waiting, writers)
                waiting, waiting_bytes = [], 0
        if waiting:
            _flush(waiting, writers)


def _numbered(batch: pa.RecordBatch, side: int, names: SharedNames, schema: pa.Schema) -> pa.Table:
    columns = {name: batch.column(name) for name in batch.schema.names}
    columns["truth"] = pa.nulls(batch.num_rows, pa.int32())
    if side in names.truth:
        columns["truth"] = pa.array(names.truth[side].of(batch), pa.int32())
    if "label" in columns:
        columns["label"] = names.of_labels(side, columns["label_id"], columns["label"])
    else:
        columns |= {name: pa.nulls(batch.num_rows, schema.field(name).type) for name in ("label", "score")}
    columns["shard"] = pa.array(names.of_shards(columns["shard"]), pa.int32())
    columns["key"] = columns["key"].fill_null("")
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _flush(waiting: list[pa.Table], writers: list[pa.RecordBatchStreamWriter]) -> None:
    """Write rows to the files of their hashes, one batch to a file."""
    rows = pa.concat_tables(waiting)
    if len(writers) == 1:
        writers[0].write_table(rows.combine_chunks())
        return
    keys = rows["key"].cast(pa.binary()).to_pylist()
    hashes = np.fromiter(map(zlib.crc32, keys, rows["shard"].to_pylist()), np.uint32, len(keys))
    parts = hashes % len(writers)
    order = np.argsort(parts, kind="stable")
    rows = rows.take(pa.array(order)).combine_chunks()
    ends = np.cumsum(np.bincount(parts, minlength=len(writers)))
    for begin, end, writer in zip([0, *ends[:-1].tolist()], ends.tolist(), writers, strict=True):
        if end > begin:
            writer.write_table(rows.slice(begin, end - begin))


def _read_part(path: Path) -> pa.Table:
    with pa.OSFile(os.fspath(path)) as file, pa.ipc.open_stream(file) as reader:
        rows = reader.read_all().combine_chunks()
    path.unlink()
    return rows


# ---- matches --------------------------------------------------------------------------------------------


def _joined(a: pa.Table, b: pa.Table) -> JoinedPart:
    """Match rows by shard and key, and by the index too where a key stands several times in its shard."""
    num_a = a.num_rows
    both = pa.concat_tables([table.select(["shard", "key", "index"]) for table in (a, b)])
    encoded = pc.dictionary_encode(both["key"].combine_chunks())
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    shards = both["shard"].to_numpy().astype(np.int64)
    keys = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    names, places = np.unique(shards * max(1, len(encoded.dictionary)) + keys, return_inverse=True)
    places = places.reshape(-1).astype(np.int64)
    of_a, of_b = places[:num_a], places[num_a:]
    counts_a, counts_b = (np.bincount(of, minlength=len(names)) for of in (of_a, of_b))
    is_repeated = (counts_a > 1) | (counts_b > 1)
    index = pc.fill_null(both["index"], 0).to_numpy().astype(np.int64)
    codes = places * INDEX_RANGE + np.where(is_repeated[places], index, 0)
    unique_a, first_a = np.unique(codes[:num_a], return_index=True)
    unique_b, first_b = np.unique(codes[num_a:], return_index=True)
    _, at_a, at_b = np.intersect1d(unique_a, unique_b, assume_unique=True, return_indices=True)
    pairs = np.stack([first_a[at_a], first_b[at_b]], axis=1)
    pairs = pairs[np.argsort(pairs[:, 0])]
    only_a, only_b = _others(num_a, pairs[:, 0]), _others(b.num_rows, pairs[:, 1])
    unclear_a = is_repeated & (counts_b > 0)
    unclear_b = is_repeated & (counts_a > 0)
    return JoinedPart(
        a=a,
        b=b,
        pairs=pairs,
        only_a=only_a,
        only_b=only_b,
        num_by_index=int(is_repeated[of_a[pairs[:, 0]]].sum()),
        num_unclear=int(unclear_a[of_a[only_a]].sum() + unclear_b[of_b[only_b]].sum()),
    )


def _others(count: int, chosen: np.ndarray) -> np.ndarray:
    is_other = np.ones(count, bool)
    is_other[chosen] = False
    return np.flatnonzero(is_other)
