"""Ask the head what jobs hold for good, and how far its autoscaler can go."""

import json
from typing import Any, NamedTuple

from wordsworth.pipeline.cluster.ray_internals.gate import ray_is_known

LIVING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "ALIVE", "RESTARTING")  # states of an actor
OWN_TYPE = "node_"  # begin of a node's type, on a cluster that nobody scales
SHARED = ("CPU", "GPU", "memory")  # resources that jobs divide among themselves


class Holding(NamedTuple):
    """Say what an actor or a part of a placement group holds as long as it lives.

    Attributes:
        job: id of its job.
        node_id: where it is; "" while it waits for a place.
        resources: amounts by Ray's names, of CPU, GPU and memory alone.
    """

    job: str
    node_id: str
    resources: dict[str, float]


def holdings() -> list[Holding]:
    """Return what the actors and placement groups of all jobs hold, also of those that wait for a place.

    Saves a job from planning with what another one keeps to its end; a task's CPUs come back by themselves.
    Fails with AttributeError where Ray has renamed what is asked. Stock Ray says nothing: every job plans
    with the whole cluster, and a job that finds no free CPU ends after --stall-timeout.
    """
    if not ray_is_known():
        return []
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    accessor = state._connect_and_get_accessor()
    found = []
    for name in LIVING:
        for data in accessor.get_actor_table(None, name):
            actor = gcs_pb2.ActorTableData.FromString(data)
            node = actor.address.node_id.hex() if name == "ALIVE" else ""
            found.append(Holding(actor.job_id.hex(), node, _shared(actor.required_resources)))
    groups = gcs_pb2.PlacementGroupTableData
    for data in accessor.get_placement_group_table():
        group = groups.FromString(data)
        if group.state in (groups.PREPARED, groups.CREATED, groups.RESCHEDULING):
            for bundle in group.bundles:
                node = bundle.node_id.hex()
                found.append(Holding(group.creator_job_id.hex(), node, _shared(bundle.unit_resources)))
    return [holding for holding in found if holding.resources]


def _shared(resources: Any) -> dict[str, float]:
    """Return the amounts that count; an actor inside a placement group has other names for them."""
    return {name: amount for name, amount in resources.items() if name in SHARED and amount > 0}


class AutoscalerState(NamedTuple):
    """Say what the cluster's autoscaler is about to do.

    Attributes:
        version: counts the rounds of the second autoscaler; 0 for the first one, which says less.
        launching: number of nodes that it starts.
        refused: resources of the bundles that no type of node has, or has room for: of the second one alone.
    """

    version: int
    launching: int
    refused: list[dict[str, float]]


def autoscaler_state() -> AutoscalerState | None:
    """Return what the autoscaler is about to do; None where the cluster has none.

    Saves a run from freezing what the nodes of this moment can do where others come on request, and from
    waiting for what never comes. Fails with AttributeError where Ray has renamed what is asked. Stock Ray
    says None: a run waits for what --wait-for names alone.
    """
    if not ray_is_known():
        return None
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    status = internal_kv_get_gcs_client().get_cluster_status()
    state = GetClusterStatusReply.FromString(status).autoscaling_state
    if not state.autoscaler_state_version:
        return _first_autoscaler()
    launching = len(state.pending_instances)
    launching += sum(request.count for request in state.pending_instance_requests)
    groups = [*state.infeasible_gang_resource_requests, *state.infeasible_cluster_resource_constraints]
    refused = [dict(request.resources_bundle) for group in groups for request in _requests(group)]
    refused += [dict(request.resources_bundle) for request in state.infeasible_resource_requests]
    return AutoscalerState(state.autoscaler_state_version, launching, refused)


def _requests(group: Any) -> list[Any]:
    """Return the requests of a placement group, or those of a constraint, which stand beside their counts."""
    if not hasattr(group, "requests"):
        return [counted.request for counted in group.resource_requests]
    return [*group.requests, *(one for part in group.bundle_selectors for one in part.resource_requests)]


def _first_autoscaler() -> AutoscalerState | None:
    """Return what the first autoscaler reports. On a cluster that nobody scales it reports too: then each
    node has a type of its own, named after it."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental import internal_kv

    status = internal_kv._internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = json.loads(status).get("autoscaler_report") if status else None
    if not report or any(name.startswith(OWN_TYPE) for name in report["active_nodes"]):
        return None
    launching = len(report["pending_nodes"]) + sum((report["pending_launches"] or {}).values())
    return AutoscalerState(0, launching, [])


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are soon taken away: a spot node with notice, a node that Ray's
    autoscaler ends.

    Saves a run from planning with such a node. Fails with AttributeError where Ray has renamed what is asked.
    Stock Ray says none: the node counts until it is gone.
    """
    if not ray_is_known():
        return set()
    from ray._private.state import state

    return set(state.get_draining_nodes())
