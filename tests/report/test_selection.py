"""The rows of a stream that a page shows, whatever the batches are in which they come."""

import numpy as np
import pyarrow as pa
import pytest

from wordsworth.pipeline.report import selection
from wordsworth.pipeline.report.selection import GroupNumbers, Selection

ROWS = 900


def stream(seed: int = 3) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shard = pa.array([f"s{n % 7}" for n in range(ROWS)]).dictionary_encode()
    table = pa.table({"key": [f"k{n}" for n in range(ROWS)], "shard": shard})
    return table, generator.integers(0, 11, ROWS), generator.permutation(ROWS).astype(float)


def chosen_by(batch_rows: int, count: int = 4) -> dict[int, list[str]]:
    table, groups, ranks = stream()
    found = Selection(count, ["key", "shard"])
    for begin in range(0, ROWS, batch_rows):
        part = slice(begin, begin + batch_rows)
        found.add(table.slice(begin, batch_rows), groups[part], ranks[part])
    numbers, _, rows = found.chosen()
    kept: dict[int, list[str]] = {}
    for number, key in zip(numbers.tolist(), rows["key"].to_pylist(), strict=True):
        kept.setdefault(number, []).append(key)
    return kept


@pytest.mark.parametrize("batch_rows", [1, 13, ROWS])
def test_the_best_rows_of_each_group_stay_best_first(batch_rows: int, monkeypatch):
    monkeypatch.setattr(selection, "SLACK", 20)  # rows are sorted out many times
    _, groups, ranks = stream()
    expected = {}
    for group in range(11):
        own = np.flatnonzero(groups == group)
        expected[group] = [f"k{n}" for n in own[np.argsort(-ranks[own])][:4]]
    assert chosen_by(batch_rows) == expected


def test_the_dictionaries_of_batches_may_differ():
    found = Selection(10, ["shard"])
    for names in (["a", "b"], ["c"], ["b", "c"]):
        table = pa.table({"shard": pa.array(names).dictionary_encode()})
        found.add(table, np.zeros(len(names), np.int64), np.arange(len(names), dtype=float))
    assert sorted(found.chosen()[2]["shard"].to_pylist()) == ["a", "b", "b", "c", "c"]


def test_memory_holds_a_few_rows_of_each_group(monkeypatch):
    monkeypatch.setattr(selection, "SLACK", 50)
    found = Selection(2, ["key"])
    most = 0
    for begin in range(0, 20_000, 100):
        table = pa.table({"key": [str(n) for n in range(begin, begin + 100)]})
        found.add(table, np.arange(100) % 5, np.arange(begin, begin + 100, dtype=float))  # each is a new best
        most = max(most, sum(len(table) for table in found._tables))
    assert most <= 2 * 5 + 50 + 100
    assert found.chosen()[1].tolist() == [19995 + g - 5 * n for g in range(5) for n in range(2)]


def test_nothing_to_choose_from_gives_no_rows():
    found = Selection(3, ["key"])
    found.add(pa.table({"key": pa.array([], pa.string())}), np.empty(0, np.int64), np.empty(0))
    assert found.chosen()[2] is None


def test_groups_are_numbered_as_they_come():
    numbers = GroupNumbers()
    assert numbers.of(np.array([9, 4, 9])).tolist() == [1, 0, 1]
    assert numbers.of(np.array([7, 4])).tolist() == [2, 0]
    assert numbers.values == [4, 9, 7]
