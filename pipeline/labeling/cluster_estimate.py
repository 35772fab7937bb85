"""Estimate what a run would cost on a cluster: measure on one of its nodes, and count its cores and GPUs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from wordsworth.pipeline.cluster.claims import NoRoom
from wordsworth.pipeline.cluster.nodes import Room, see_room
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.cluster.waiting import scales_to_gpus, wait_for_room
from wordsworth.pipeline.errors import UserError, root_cause
from wordsworth.pipeline.labeling.estimate import measure
from wordsworth.pipeline.labeling.forecast import Measurement
from wordsworth.pipeline.labeling.plan import choose_device
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.foreign.load import checkpoint_from_bytes


class ClusterMeasurement(NamedTuple):
    """Hold what was measured on a node, and what the whole cluster has.

    Attributes:
        measured: of the node.
        cores: CPUs of all nodes.
        gpus: GPUs of all nodes; 0 where the model runs on CPUs.
    """

    measured: Measurement
    cores: float
    gpus: float


def measure_on_cluster(
    request: LabelRequest,
    checkpoint: BaseCheckpoint,
    seconds: float,
    images_per_gpu_second: float | None = None,
    note: Callable[[str], None] = lambda said: None,
) -> ClusterMeasurement:
    """Join a cluster, and measure every stage in a task on one of its nodes; with a GPU, where it has some.

    Args:
        seconds, images_per_gpu_second, note: as for `measure`.

    Raises:
        UserError: the cluster cannot be joined or stays without a free node, or as for `measure`.
    """
    with ray_session(request.cluster, note):
        import ray

        device = request.device
        if device == "auto":
            device = choose_device(request, {"GPU": see_room(request.cluster).total("GPU")})
        if device == "cpu" and request.device == "auto" and scales_to_gpus(request.cluster, note):
            device = "cuda"
        on_gpu = device == "cuda" and not images_per_gpu_second
        room = wait_for_room(lambda room: _with_a_place(room, on_gpu), request.cluster, note)
        claim: dict[str, Any] = {"num_cpus": 0.5, "num_gpus": 1 if on_gpu else 0}
        task = ray.remote(max_calls=1, max_retries=0, **claim)(_measure_here)
        weights = ray.put(checkpoint.to_bytes())
        alone = replace(request, cluster=replace(request.cluster, address=None))
        try:
            measured, notes = ray.get(task.remote(weights, alone, device, seconds, images_per_gpu_second))
        except ray.exceptions.RayError as error:
            cause = root_cause(error, UserError)
            if isinstance(cause, UserError):
                raise UserError(cause.message, cause.exit_code) from None
            raise
        for said in notes:
            note(said)
        gpus = room.total("GPU") if device == "cuda" else 0
        return ClusterMeasurement(measured, room.total("CPU"), gpus)


def _with_a_place(room: Room, on_gpu: bool) -> Room:
    """Return a room that has a place for the measuring task. Raises NoRoom."""
    if not any(node.cpus >= 0.5 and node.gpus >= on_gpu for node in room.nodes):
        lacking = "a GPU" if on_gpu else "a CPU"
        raise NoRoom(
            f"no node of this cluster has {lacking} to measure on: start one, or plan with --device cpu",
            lacking=lacking,
            wanted=[{"GPU": 1} if on_gpu else {"CPU": 1}],
        )
    return room


def _measure_here(
    weights: bytes, request: LabelRequest, device: str, seconds: float, images_per_gpu_second: float | None
) -> tuple[Measurement, list[str]]:
    """Measure on this node: Ray's task. Returns what was measured, and the notes for the user."""
    notes: list[str] = []
    checkpoint = checkpoint_from_bytes(weights)
    return measure(request, checkpoint, device, seconds, images_per_gpu_second, notes.append), notes
