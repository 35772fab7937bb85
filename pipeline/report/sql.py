"""Choose rows of a run by SQL: DuckDB reads them through Arrow, and can reach nothing else."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.report.rows import BATCH_ROWS, RunRows

if TYPE_CHECKING:
    import duckdb

VIEW = "rows"
WANTED_SQL = f'give one condition, such as "score < 0.5", or one SELECT over the view {VIEW}'
STATEMENTS = ("select", "with", "from")  # first words of what is more than a condition
# No file, no other database, no variable of this process; and no statement can change that.
CLOSED = ("python_enable_replacements=false", "enable_external_access=false", "lock_configuration=true")
MAX_MEMORY = "memory_limit='2GB'"


def sql_batches(
    run: RunRows, sql: str, columns: Sequence[str], where: pc.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield what SQL selects of the rows of a run.

    Args:
        run: the run.
        sql: a condition, such as score < 0.5, or a SELECT over the view `rows`.
        columns: columns that a condition gives.
        where: which rows the view has; None for all.

    Raises:
        UserError: DuckDB is not installed, or the SQL is wrong or no query.
    """
    duckdb = _duckdb()
    connection = duckdb.connect(":memory:")
    try:
        connection.execute(f"SET {MAX_MEMORY}")
        dataset = run.dataset(_readable(run.schema))
        connection.register(VIEW, dataset if where is None else dataset.filter(where))
        for setting in CLOSED:
            connection.execute(f"SET {setting}")
        relation = connection.sql(_statement(duckdb, connection, sql, columns))
        reader = _reader(relation)
        for batch in reader:
            if batch.num_rows:
                yield batch
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if run.fault is not None:
            raise run.fault from error
        told = str(error).strip().partition("\n\nLINE")[0]
        raise UserError(f"--sql: {' '.join(told.split())}: {WANTED_SQL}", exit_code=2) from error
    finally:
        connection.close()


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise UserError("--sql needs DuckDB: pip install 'wordsworth[sql]'") from error
    return duckdb


def _readable(schema: pa.Schema) -> pa.Schema:
    """Return the schema with float32 in place of float16, which DuckDB does not take from Arrow."""
    fields = []
    for field in schema:
        kind = field.type
        if pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type):
            field = field.with_type(pa.list_(pa.float32(), kind.list_size))
        fields.append(field)
    return pa.schema(fields)


def _statement(duckdb: Any, connection: "duckdb.DuckDBPyConnection", sql: str, columns: Sequence[str]) -> str:
    """Return the one query that the SQL is."""
    words = sql.split(maxsplit=1)
    if not words:
        raise UserError(f"--sql: {WANTED_SQL}", exit_code=2)
    statement = sql
    if words[0].lower() not in STATEMENTS:
        names = ", ".join(f'"{name}"' for name in columns)
        statement = f"SELECT {names} FROM {VIEW} WHERE (\n{sql}\n)"
    found = connection.extract_statements(statement)
    if len(found) != 1 or found[0].type != duckdb.StatementType.SELECT:
        raise UserError(f"--sql: {WANTED_SQL}", exit_code=2)
    return statement


def _reader(relation: Any) -> pa.RecordBatchReader:
    if hasattr(relation, "to_arrow_reader"):
        return relation.to_arrow_reader(BATCH_ROWS)
    return relation.fetch_arrow_reader(BATCH_ROWS)  # before DuckDB 2
