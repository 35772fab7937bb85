"""ray_internals: the driver holds no more of a run with more blocks, and a local Ray starts few processes."""

import time

import psutil
import pyarrow as pa
import pytest
from ray.util import list_named_actors

from wordsworth.pipeline.cluster.data_context import configure_ray_data
from wordsworth.pipeline.cluster.ray_internals import driver

ONE = {"batch_size": None, "batch_format": "pyarrow"}


def blocks(_: pa.Table, count: int):
    yield from (pa.table({"n": [n]}) for n in range(count))


def slow(table: pa.Table) -> pa.Table:
    time.sleep(0.1)  # so that blocks wait for it on a busy machine too
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

    configure_ray_data()
    classes = DataContext.get_current().custom_execution_callback_classes
    monkeypatch.setattr(driver, "MAX_WAITING_BLOCKS", 8)
    monkeypatch.setattr(driver, "KEPT_BLOCK_STATS", 5)
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


def test_no_budget_of_ray_data_holds_back_the_last_stage(local_ray, monkeypatch):
    """Once no unit was written for minutes after a cluster had lost a node, while CPUs were free."""
    from ray.data import DataContext
    from ray.data._internal.execution.backpressure_policy import ResourceBudgetBackpressurePolicy as Budgets

    active: list[int] = []

    class Look(driver.ExecutionCallback):
        def on_execution_step(self, executor):
            active.append(list(executor._topology)[-1].num_active_tasks())

    asked: list[str] = []
    monkeypatch.setattr(
        Budgets, "can_add_input", lambda self, op: asked.append(op.name) or "slow" not in op.name
    )
    configure_ray_data()
    classes = DataContext.get_current().custom_execution_callback_classes
    classes.append(Look)
    try:
        assert numbers(60) == list(range(60))
    finally:
        classes.remove(Look)
    assert max(active) > 1  # Ray lets a single task through where nothing else runs
    assert any("blocks" in name for name in asked) and not any("slow" in name for name in asked)


def test_a_local_ray_has_no_process_that_serves_a_cluster_alone(local_ray):
    """Each would take seconds of a small run's start."""
    assert numbers(3) == [0, 1, 2]
    actors = {actor["name"] for actor in list_named_actors(all_namespaces=True)}
    assert not {name for name in actors if "stats" in name.lower() or "autoscaling" in name.lower()}, actors
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    services = ("log_monitor.py", "autoscaler/_private/monitor.py", "dashboard/dashboard.py")
    assert not [command for command in commands if any(service in command for service in services)]
