"""Choose rows of a stream: of each group those with the highest ranks. Memory grows with the groups alone."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

SLACK = 20_000  # rows beyond those to keep that wait until they are sorted out


class GroupNumbers:
    """Number the values of a column from 0 on, in the order in which they first come.

    Attributes:
        values: the values by their number.
    """

    def __init__(self) -> None:
        self.values: list[int | str] = []
        self._numbers: dict[int | str, int] = {}

    def __len__(self) -> int:
        return len(self.values)

    def of(self, column: np.ndarray) -> np.ndarray:
        """Return the number of each value, int64; new values get the next numbers."""
        uniques, inverse = np.unique(column, return_inverse=True)
        numbers = np.empty(len(uniques), np.int64)
        for place, value in enumerate(uniques.tolist()):
            if value not in self._numbers:
                self._numbers[value] = len(self.values)
                self.values.append(value)
            numbers[place] = self._numbers[value]
        return numbers[inverse.reshape(-1)]


class Selection:
    """Keep the rows with the highest ranks of each group.

    With random numbers as ranks, the rows are a random sample of each group.

    Args:
        count: rows to keep of a group.
        columns: names of the columns to keep.
    """

    def __init__(self, count: int, columns: Sequence[str]):
        self.count = count
        self.columns = list(columns)
        self._least = np.empty(0)  # by group: a row of a lower rank is none of the group's best
        self._groups: list[np.ndarray] = []
        self._ranks: list[np.ndarray] = []
        self._tables: list[pa.Table] = []
        self._waiting = 0
        self._kept = 0

    def add(self, rows: pa.Table, groups: np.ndarray, ranks: np.ndarray) -> None:
        """Look at more rows.

        Args:
            rows: (M,) with the columns to keep.
            groups: (M,) int64 from 0 on.
            ranks: (M,) of which none is NaN.
        """
        if not len(groups):
            return
        missing = int(groups.max()) + 1 - len(self._least)
        if missing > 0:
            self._least = np.concatenate([self._least, np.full(max(missing, len(self._least)), -np.inf)])
        is_candidate = np.flatnonzero((ranks > self._least[groups]) | (self._least[groups] == -np.inf))
        if not len(is_candidate):
            return
        self._groups.append(groups[is_candidate])
        self._ranks.append(ranks[is_candidate])
        self._tables.append(_plain(rows.select(self.columns).take(pa.array(is_candidate))))
        self._waiting += len(is_candidate)
        if self._waiting > self._kept + SLACK:
            self._sort_out()

    def chosen(self) -> tuple[np.ndarray, np.ndarray, pa.Table | None]:
        """Return groups, ranks and rows, group by group, the highest rank first; None instead of no row."""
        if not self._tables:
            return np.empty(0, np.int64), np.empty(0), None
        self._sort_out()
        return self._groups[0], self._ranks[0], self._tables[0]

    def _sort_out(self) -> None:
        groups, ranks = np.concatenate(self._groups), np.concatenate(self._ranks)
        order = np.lexsort((-ranks, groups))
        sorted_groups = groups[order]
        begins = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]])
        lengths = np.diff(np.r_[begins, len(order)])
        within = np.arange(len(order)) - np.repeat(begins, lengths)
        keep = order[within < self.count]
        is_last = within == self.count - 1
        self._least[sorted_groups[is_last]] = ranks[order[is_last]]
        table = pa.concat_tables(self._tables).take(pa.array(keep)).combine_chunks()
        self._groups, self._ranks, self._tables = [groups[keep]], [ranks[keep]], [table]
        self._waiting = self._kept = len(keep)


def _plain(rows: pa.Table) -> pa.Table:
    """Return rows whose dictionaries are plain columns, which tables of other batches can follow."""
    schema = rows.schema
    for place, field in enumerate(schema):
        if pa.types.is_dictionary(field.type):
            schema = schema.set(place, pa.field(field.name, field.type.value_type))
    return rows.cast(schema)
