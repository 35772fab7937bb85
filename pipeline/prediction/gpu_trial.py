"""Try the model on the GPUs of a cluster before a run begins: what a run is, is decided by what they can do, and before OUT is
touched.

A trial is a Ray task on every node with GPUs, with the claims of an actor. It loads the model, finds the way and the batch size,
and ends with its process, which gives the GPU back.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from wordsworth.pipeline.cluster.session import GpuNode, fits_an_actor
from wordsworth.pipeline.errors import UserError, root_cause
from wordsworth.pipeline.prediction.actor import Predictor, PredictSettings
from wordsworth.pipeline.prediction.gpu import DeviceLost, find_gpu, reason
from wordsworth.pipeline.prediction.gpu_modes import MODES
from wordsworth.vit_model.inference import resolve_precision

SAID_AFTER = 30.0  # seconds without a free GPU, after which the user is told


@dataclass(frozen=True)
class GpuWay:
    """How the actors of a run predict: what all GPUs of the cluster can do.

    Attributes:
        precision: "fp32" or "bf16".
        modes: the ways that actors may take, the first one first.
        batch_size: images in a forward pass.
        told: a line for the user.
        notes: why it is not a faster way, a sentence each.
    """

    precision: str
    modes: tuple[str, ...]
    batch_size: int
    told: str = ""
    notes: tuple[str, ...] = ()


def modes_of(gpu_mode: str) -> tuple[str, ...]:
    """Return the ways that `--gpu-mode` allows."""
    return MODES if gpu_mode == "auto" else (gpu_mode,)


def try_gpus(
    weights: Any,
    settings: PredictSettings,
    claim: dict[str, Any],
    nodes: list[GpuNode],
    note: Callable[[str], None],
    patience: float,
) -> GpuWay:
    """Try the model on a GPU of every node.

    A way that takes the GPU down with it is tried no more: the next one gets a new process. Where GPUs differ, all do what the
    least of them can.

    Args:
        weights: a reference to `Checkpoint.to_bytes()` in Ray's store.
        settings: an actor's; its precision may be "auto", its batch_size None.
        claim: what an actor claims of Ray.
        nodes: as `cluster.gpu_nodes()`.
        note: gets what the user should know.
        patience: seconds to wait for a GPU that is free.

    Raises:
        UserError: a node whose GPU cannot be used, or none that becomes free.
    """
    nodes = [node for node in nodes if fits_an_actor(node, claim["num_gpus"])]
    note(f"trying the model on {'the GPU' if len(nodes) == 1 else f'a GPU of each of {len(nodes)} nodes'}")
    notes: list[str] = []
    while True:
        try:
            found = list(_tried(weights, settings, claim, nodes, note, patience))
        except DeviceLost as lost:
            mode, *below = settings.gpu_modes
            if not below:
                raise UserError(
                    f"{lost} with --gpu-mode {mode}: look at that GPU (nvidia-smi, dmesg), or leave its node out"
                ) from None
            notes.append(f"{lost} with --gpu-mode {mode}: goes on with {below[0]}")
            settings = replace(settings, gpu_modes=tuple(below))
            continue
        if len({one["precision"] for one in found}) == 1:
            return _least(found, settings, notes)
        notes.append("not every GPU of this cluster computes bf16: all use fp32")
        settings = replace(settings, precision="fp32")


def _tried(
    weights: Any,
    settings: PredictSettings,
    claim: dict[str, Any],
    nodes: list[GpuNode],
    note: Callable[[str], None],
    patience: float,
) -> Iterator[dict[str, Any]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(max_calls=1, max_retries=0, **claim)(
        try_gpu
    )  # one call, so that its process ends and gives the GPU back
    places = [NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes]
    waiting = [task.options(scheduling_strategy=place).remote({"ref": weights}, settings) for place in places]
    begun, said = time.monotonic(), False
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=5)
            yield from map(_answer, done)
            waited = time.monotonic() - begun
            if not done and waited > patience:
                raise UserError(
                    f"no GPU became free for {waited:,.0f} s (--stall-timeout): wait until other jobs are done"
                )
            if not done and not said and waited > SAID_AFTER:
                said = True
                free = ray.available_resources().get("GPU", 0)
                note(
                    f"the model is still being tried on {len(waiting)} nodes; {free:g} GPUs of the cluster are free"
                )
    finally:
        for one in waiting:
            ray.cancel(one, force=True)


def _answer(done: Any) -> dict[str, Any]:
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        cause = root_cause(error, UserError, DeviceLost)
        if isinstance(cause, UserError):
            raise UserError(cause.message, cause.exit_code) from None
        if isinstance(cause, DeviceLost):
            raise DeviceLost(str(cause)) from None
        if isinstance(error, ray.exceptions.WorkerCrashedError):
            raise DeviceLost("a GPU, and the process that tried the model on it,") from None
        raise UserError(f"the model could not be tried on a GPU: {reason(cause)}") from error


def try_gpu(weights: dict[str, Any], settings: PredictSettings) -> dict[str, Any]:
    """Run a trial on this node: how the GPU predicts, and how fast the model alone is. Ray's task."""
    precision = resolve_precision(settings.precision, find_gpu())
    predictor = Predictor(weights, replace(settings, precision=precision))
    return predictor.way() | {"precision": precision, "rate": predictor.rate()}


def _least(found: list[dict[str, Any]], settings: PredictSettings, notes: list[str]) -> GpuWay:
    lowest = max((one["mode"] for one in found), key=MODES.index)
    modes = settings.gpu_modes[settings.gpu_modes.index(lowest) :]
    batch_size, precision = min(one["batch_size"] for one in found), found[0]["precision"]
    names = sorted(one["gpu"] for one in found)
    where = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    rate = min(one["rate"] for one in found)
    how = {"graphs": "CUDA graphs", "overlap": "overlapped batches", "plain": "one batch after the other"}[
        lowest
    ]
    notes = [*notes, *(note for one in found for note in one["notes"])]
    told = f"{where}: {precision}, {how}, batches of {batch_size}, {rate:,.0f} images/s of the model alone"
    return GpuWay(precision, modes, batch_size, told, tuple(notes))
