"""driver: what the driver holds of a run does not grow with its blocks; what it must hold of units is small."""

import time
from collections import deque
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pytest
from ray.util import list_named_actors

from wordsworth.pipeline.cluster import ray_internals as driver
from wordsworth.pipeline.cluster.session import data_context
from wordsworth.pipeline.output.manifest import Tally, footers
from wordsworth.pipeline.output.run_folder import MANIFEST

ONE = {"batch_size": None, "batch_format": "pyarrow"}


def blocks(_: pa.Table, count: int):
    yield from (pa.table({"n": [n]}) for n in range(count))


def slow(table: pa.Table) -> pa.Table:
    time.sleep(0.01)
    return table


@pytest.fixture
def seen(monkeypatch):
    """What Ray Data holds of a stage after each of its steps: blocks that wait, statistics of blocks."""
    from ray.data import DataContext

    found: list[tuple[int, int]] = []

    class Look(driver.ExecutionCallback):
        def on_execution_step(self, executor):
            for stage, state in executor._topology.items():
                found.append(
                    (state.total_enqueued_output_blocks(), len(getattr(stage, "_output_blocks_stats", [])))
                )

    data_context()
    classes = DataContext.get_current().custom_execution_callback_classes
    monkeypatch.setattr(driver, "WAITING", 8)
    monkeypatch.setattr(driver, "KEPT", 5)
    classes.append(Look)
    yield found
    classes.remove(Look)


def numbers(count: int) -> list[int]:
    from ray.data import from_arrow

    dataset = from_arrow(pa.table({"begin": [True]})).map_batches(
        blocks, fn_kwargs={"count": count}, num_cpus=0.1, **ONE
    )
    rows = dataset.map_batches(slow, num_cpus=0.5, **ONE).iter_batches(prefetch_batches=0, **ONE)
    return sorted(row["n"].item() if hasattr(row["n"], "item") else row["n"][0].as_py() for row in rows)


def test_the_driver_keeps_few_blocks_and_few_statistics_of_a_stage(local_ray, seen):
    assert numbers(16) == list(range(16))  # the workers have started
    seen.clear()
    assert numbers(120) == list(range(120))
    waiting, statistics = map(max, zip(*seen, strict=True))
    assert 2 < waiting <= 8 + 16  # what a task had ready when the bound was met comes in yet
    assert statistics == 5


def test_a_local_ray_has_no_process_that_serves_a_cluster_alone(local_ray):
    """Each would take seconds of a small run's start."""
    assert numbers(3) == [0, 1, 2]
    actors = {actor["name"] for actor in list_named_actors(all_namespaces=True)}
    assert not {name for name in actors if "stats" in name.lower() or "autoscaling" in name.lower()}, actors
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    services = ("log_monitor.py", "autoscaler/_private/monitor.py", "dashboard/dashboard.py")
    assert not [command for command in commands if any(service in command for service in services)]


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
    run = SimpleNamespace(compacted=lambda names: None, uncompacted=lambda: names)
    given = list(footers(run, chunk=10))[1:]  # before them, those of compactions
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
    tally = Tally()
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
