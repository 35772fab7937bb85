"""Run Ray Data on one machine without the actors that only a cluster has a use for."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from wordsworth.pipeline.cluster.ray_internals.gate import ray_is_known, replaced

if TYPE_CHECKING:
    from ray.data import ExecutionResources


def import_ray_data() -> None:
    """Import Ray Data and what `without_cluster_actors` replaces: in a thread, while Ray starts processes.

    Saves 2 seconds of a start. Stock Ray is imported without its private modules.
    """
    import ray.data

    if ray_is_known():
        import ray.data._internal.execution.operators.actor_pool_map_operator
        import ray.data._internal.execution.streaming_executor
        import ray.data._internal.stats  # noqa: F401 (Python keeps the modules)


@contextlib.contextmanager
def without_cluster_actors() -> Iterator[None]:
    """Run Ray Data without three actors that a Ray of one machine has no use for.

    Saves up to 9 CPU-seconds of a start: one actor asks for more machines, one keeps figures for a dashboard,
    and one knows on which machine an actor is. Fails with AttributeError where Ray has renamed what is
    replaced. Stock Ray starts the three actors.
    """
    if not ray_is_known():
        yield
        return
    from ray.data._internal import stats
    from ray.data._internal.execution import streaming_executor
    from ray.data._internal.execution.operators import actor_pool_map_operator

    silent: dict[str, Any] = {}
    for name in vars(stats._StatsManager):
        if name.startswith(("update_", "register_")):
            silent[name] = staticmethod(lambda *_, **__: None)
    silent["gen_dataset_id_from_stats_actor"] = staticmethod(lambda: uuid4().hex)
    with (
        replaced(stats._StatsManager, **silent),
        replaced(streaming_executor, create_cluster_autoscaler=lambda *_, **__: FixedSizeCluster()),
        replaced(
            actor_pool_map_operator,
            get_or_create_actor_location_tracker=NoActorLocations,
            get_actor_locations=lambda _: {},
        ),
    ):
        yield


class FixedSizeCluster:
    """Stand for Ray Data's autoscaler of a cluster that cannot grow."""

    def __init__(self) -> None:
        import ray
        from ray.data import ExecutionResources

        self._all = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        """Ask for nothing."""

    def on_executor_shutdown(self) -> None:
        """Give nothing back."""

    def get_total_resources(self) -> "ExecutionResources":
        """Return all that the cluster has."""
        return self._all


class NoActorLocations:
    """Stand for Ray Data's actor that is told where other actors are; on one machine that is no news."""

    class update_actor_location:
        remote = staticmethod(lambda *_: None)
