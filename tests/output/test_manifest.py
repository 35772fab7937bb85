"""manifest: footers of units become rows in order, few tasks at a time; the rows add up as they come."""

from collections import deque
from types import SimpleNamespace

import pyarrow as pa

from wordsworth.pipeline.output.manifest import ManifestTotals, read_footers
from wordsworth.pipeline.output.records import MANIFEST


def test_footers_are_read_by_few_tasks_at_a_time_and_come_in_the_order_of_the_files(monkeypatch):
    import ray

    names, begun, most = [f"{n:05d}.parquet" for n in range(5000)], deque(), []

    def remote(_, files):
        begun.append(files)
        most.append(len(begun))
        return files

    def get(files):
        begun.remove(files)
        return files

    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=remote))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    nothing = pa.Table.from_pylist([], schema=MANIFEST)
    units = SimpleNamespace(recorded=lambda: nothing, unrecorded=lambda: names)
    run = SimpleNamespace(units=lambda: units)
    given = list(read_footers(run, files_per_task=10))[1:]  # before them, those of compactions
    assert [name for files in given for name in files] == names
    assert max(most) == 18 and not begun


def test_the_manifest_adds_up_as_its_rows_come():
    rows = [
        {
            "last": number % 2 == 0,
            "rows": number,
            "errors": '{"empty": 2, "corrupt": 1}' if number % 3 == 0 else "{}",
            "skipped": "{}",
        }
        | {"bytes_read": 10, "bytes": 5, "read": 0.5, "decode": 0.25, "predict": None}
        for number in range(10)
    ]
    tally = ManifestTotals()
    for begin in (0, 7):
        given = pa.Table.from_pylist(rows[begin : begin + 7], schema=MANIFEST)
        assert tally.add(given) is given
    assert tally.files == 10 and tally.errors == {"empty": 8, "corrupt": 4} and tally.skipped == {}
    assert tally.sums == {
        "last": 5,
        "rows": 45,
        "bytes_read": 100,
        "bytes": 50,
        "read": 5.0,
        "decode": 2.5,
        "predict": 0,
    }
