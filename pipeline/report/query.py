"""Choose rows of a run by what a person asks for, in one pass over the rows and in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.report.listed_images import WANTED
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.sql import sql_batches

SHOWN = ("label_id", "label", "score", "value", "width", "height", "error", "error_detail")
EMBEDDING = "embedding"
SIMILARITY = "similarity"  # column of the cosine of a row's embedding and that of the named image
NO_LABELS = "has no labels: `wordsworth label` makes them"
NO_EMBEDDINGS = "has no embeddings: `wordsworth embed` or `wordsworth label --embeddings` makes them"


@dataclass(frozen=True, kw_only=True)
class Query:
    """Say which rows are wanted. What is given must all hold.

    Attributes:
        label: best class of the rows; of a model without class names its number.
        errors: rows with an error alone.
        key: key of the rows.
        nearest: key of an image: the rows come by the cosine of their embeddings with that of the image.
        sql: a condition of SQL, or a SELECT over the view `rows`.
        limit: rows, at most.
        seed: draws the rows at random; None takes the first ones, or the nearest ones.
    """

    label: str | None = None
    errors: bool = False
    key: str | None = None
    nearest: str | None = None
    sql: str | None = None
    limit: int = 20
    seed: int | None = None

    @property
    def has_condition(self) -> bool:
        """Return whether some rows may be left out that are not over the limit."""
        return self.errors or any(part is not None for part in (self.label, self.key, self.sql))

    @property
    def is_key_alone(self) -> bool:
        """Return whether a key is all that is asked for."""
        return self.key is not None and self == Query(key=self.key, limit=self.limit)

    def check(self) -> None:
        """Check that the conditions can hold together.

        Raises:
            UserError: two of them exclude each other.
        """
        for name, is_given in (("--label", self.label is not None), ("--nearest", self.nearest is not None)):
            if self.errors and is_given:
                has = "label" if name == "--label" else "embedding"
                raise UserError(
                    f"--errors and {name} exclude each other: a row with an error has no {has}", exit_code=2
                )
        if self.seed is not None and self.nearest is not None:
            raise UserError("--seed and --nearest exclude each other: give one of them", exit_code=2)

    def __str__(self) -> str:
        """Return the query in words, for a title; it holds what the user gave as it is."""
        parts = []
        if self.label is not None:
            parts.append(f"label {self.label}")
        if self.errors:
            parts.append("errors")
        if self.key is not None:
            parts.append(f"key {self.key}")
        if self.sql is not None:
            parts.append(" ".join(self.sql.split()))
        if self.nearest is not None:
            parts.append(f"nearest to {self.nearest}")
        if self.seed is not None:
            parts.append(f"drawn with seed {self.seed}")
        return ", ".join(parts) or "all rows"


def choose_rows(run: RunRows, query: Query) -> pa.Table:
    """Return the rows that a query asks for, at most `query.limit`.

    Returns:
        The columns that say where the image lies, those of SHOWN that the run has and, for the nearest rows,
        SIMILARITY; of a SELECT the columns that it selects.

    Raises:
        UserError: the run lacks what the query needs, no image has the named key, or the SQL is wrong.
    """
    query.check()
    where = _condition(run, query)
    target = _embedding_of(run, query.nearest) if query.nearest is not None else None
    columns = [*WANTED, *(name for name in SHOWN if run.has(name))]
    if target is not None:
        columns.append(EMBEDDING)
    if query.sql is None:
        batches = run.batches(columns, where)
    else:
        batches = sql_batches(run, query.sql, columns, where)
    if target is not None:
        rows = _nearest(batches, target, query.limit)
    elif query.seed is not None:
        rows = _drawn(batches, np.random.default_rng(query.seed), query.limit)
    else:
        rows = _first(batches, query.limit)
    if not rows.num_rows:
        return _no_rows(run, columns)
    return rows


def _no_rows(run: RunRows, columns: list[str]) -> pa.Table:
    schema = pa.schema([run.schema.field(name) for name in columns if name != EMBEDDING])
    return schema.empty_table()


def _condition(run: RunRows, query: Query) -> pc.Expression | None:
    conditions = []
    if query.label is not None:
        conditions.append(_has_label(run, query.label))
    if query.errors:
        conditions.append(pc.field("error").is_valid())
    if query.key is not None:
        conditions.append(pc.field("key") == query.key)
    where: pc.Expression | None = None
    for condition in conditions:
        where = condition if where is None else where & condition
    return where


def _has_label(run: RunRows, label: str) -> pc.Expression:
    if not run.has("label"):
        raise UserError(f"--label: {run.output} {NO_LABELS}")
    named = pc.field("label") == label
    if label.isascii() and label.isdecimal() and int(label) < 1 << 31:
        return named | (pc.field("label").is_null() & (pc.field("label_id") == int(label)))
    return named


def _embedding_of(run: RunRows, key: str) -> np.ndarray:
    """Return the embedding of the first row with a key, of length 1: float32 (D,)."""
    if not run.has(EMBEDDING):
        raise UserError(f"--nearest: {run.output} {NO_EMBEDDINGS}")
    is_it = pc.field("key") == key
    rows = _table(list(run.batches(["shard", "index", "error"], is_it))).to_pylist()
    if not rows:
        raise UserError(f"--nearest: no row of {run.output} has the key {key!r}")
    good = [row for row in rows if row["error"] is None]
    if not good:
        raise UserError(f"--nearest: the image {key!r} has no embedding, but the error {rows[0]['error']}")
    # Its shard and its index pass over the embeddings of all other files.
    is_it &= (pc.field("shard") == good[0]["shard"]) & (pc.field("index") == good[0]["index"])
    found = _table(list(run.batches([EMBEDDING], is_it)))
    vector = np.array(found[EMBEDDING][0].as_py(), np.float32)
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


# ---- what is kept of a stream -----------------------------------------------------------------------------


def _first(batches: Iterator[pa.RecordBatch], limit: int) -> pa.Table:
    kept = []
    for batch in batches:
        kept.append(batch.slice(0, limit))
        limit -= kept[-1].num_rows
        if limit <= 0:
            break
    return _table(kept)


class _Best:
    """Keep the rows of a stream with the largest values. Memory holds twice as many as are wanted."""

    def __init__(self, limit: int):
        self.limit = limit
        self.rows: pa.Table | None = None
        self.values = np.empty(0, np.float64)

    def add(self, batch: pa.RecordBatch, values: np.ndarray) -> None:
        """Add rows with their values."""
        rows = _table([batch])
        if self.rows is not None:
            rows = pa.concat_tables([self.rows, rows])
            values = np.concatenate([self.values, values])
        best = np.sort(np.argsort(-values, kind="stable")[: self.limit])
        self.rows = rows.take(best).combine_chunks()
        self.values = values[best]


def _nearest(batches: Iterator[pa.RecordBatch], target: np.ndarray, limit: int) -> pa.Table:
    best = _Best(limit)
    for batch in batches:
        if EMBEDDING not in batch.schema.names:
            raise UserError(f"--nearest needs the column {EMBEDDING}: SELECT it too", exit_code=2)
        batch = batch.filter(batch[EMBEDDING].is_valid())
        if batch.num_rows:
            best.add(batch.drop_columns([EMBEDDING]), _cosines(batch[EMBEDDING], target))
    if best.rows is None:
        return _table([])
    order = np.argsort(-best.values, kind="stable")
    rows = best.rows.take(order)
    return rows.append_column(SIMILARITY, pa.array(best.values[order], pa.float32()))


def _cosines(embeddings: pa.Array, target: np.ndarray) -> np.ndarray:
    """Return the cosine of each embedding, float [N, D] without nulls, and the target, float32 (D,)."""
    vectors = embeddings.flatten().to_numpy(zero_copy_only=False).reshape(len(embeddings), -1)
    vectors = vectors.astype(np.float32)
    if vectors.shape[1] != len(target):
        raise UserError(f"an embedding has {vectors.shape[1]} numbers, another one {len(target)}")
    return vectors @ target / np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)


def _drawn(batches: Iterator[pa.RecordBatch], random: np.random.Generator, limit: int) -> pa.Table:
    best = _Best(limit)
    for batch in batches:
        best.add(batch, random.random(batch.num_rows))
    return _table([]) if best.rows is None else best.rows


def _table(batches: list[pa.RecordBatch]) -> pa.Table:
    """Return batches as one table, the dictionary of each as plain text."""
    if not batches:
        return pa.table({})
    return pa.Table.from_batches([_plain(batch) for batch in batches])


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = []
    for column in batch.columns:
        columns.append(column.dictionary_decode() if pa.types.is_dictionary(column.type) else column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
