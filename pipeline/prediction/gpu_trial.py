"""Try the model on the GPUs of a cluster before a run begins, and before its output is touched.

What the GPUs can do decides what the run is. A trial is a Ray task on every node with GPUs, with the claims
of an actor. The task loads the model, finds the mode and the batch size, and ends with its process, which
gives the GPU back.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from wordsworth.pipeline.cluster.actors import fits_an_actor
from wordsworth.pipeline.cluster.claims import Claim
from wordsworth.pipeline.cluster.nodes import Node
from wordsworth.pipeline.errors import UserError, root_cause
from wordsworth.pipeline.prediction.actor import Predictor, PredictSettings
from wordsworth.pipeline.prediction.gpu import DeviceLost, find_gpu, reason
from wordsworth.pipeline.prediction.gpu_modes import MODES, GpuBatches
from wordsworth.pipeline.unit import GpuCall
from wordsworth.vit_model.inference import resolve_precision

NOTE_AFTER = 30.0  # seconds without a free GPU, after which the user is told
LOOK = 5.0  # seconds between two looks at the trials
MODE_NAMES = {"graphs": "CUDA graphs", "overlap": "overlapped batches", "plain": "one batch after the other"}


class GpuBusy(UserError):
    """Report that no GPU became free, so none could be tried."""


@dataclass(frozen=True, kw_only=True)
class GpuWay:
    """Hold how the actors of a run predict: what all GPUs of the cluster can do.

    Attributes:
        precision: "fp32" or "bf16".
        modes: the modes that actors may take, the first one first.
        batch_size: images in a forward pass.
        told: a line for the user.
        notes: why the mode is not a faster one, a sentence each.
    """

    precision: str
    modes: tuple[str, ...]
    batch_size: int
    told: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GpuTrial:
    """Hold what one GPU can do.

    Attributes:
        call: how the GPU predicts.
        precision: "fp32" or "bf16".
        rate: images/s of the model alone.
    """

    call: GpuCall
    precision: str
    rate: float


def modes_of(gpu_mode: str) -> tuple[str, ...]:
    """Return the modes that `--gpu-mode` allows."""
    return MODES if gpu_mode == "auto" else (gpu_mode,)


def try_gpus(
    weights: Any,
    settings: PredictSettings,
    claim: Claim,
    nodes: list[Node],
    note: Callable[[str], None],
    patience_s: float,
) -> GpuWay:
    """Try the model on a GPU of every node.

    A mode that takes the GPU down is tried no more: the next mode gets a new process. Where GPUs differ, all
    do what the least of them can.

    Args:
        weights: a reference to `Checkpoint.to_bytes()` in Ray's store.
        settings: an actor's; the precision may be "auto", the batch size None.
        claim: what an actor claims of Ray.
        nodes: of the cluster; those without room for an actor are left out.
        note: gets what the user should know.
        patience_s: seconds to wait for a free GPU.

    Raises:
        UserError: the GPU of a node cannot be used.
        GpuBusy: no GPU becomes free.
    """
    nodes = [node for node in nodes if fits_an_actor(node, claim)]
    where = "the GPU" if len(nodes) == 1 else f"a GPU of each of {len(nodes)} nodes"
    note(f"trying the model on {where}")
    notes: list[str] = []
    while True:
        try:
            trials = list(_run_trials(weights, settings, claim, nodes, note, patience_s))
        except DeviceLost as lost:
            mode, *below = settings.gpu_modes
            if not below:
                raise UserError(
                    f"{lost} with --gpu-mode {mode}: "
                    "look at that GPU (nvidia-smi, dmesg), or leave its node out"
                ) from None
            notes.append(f"{lost} with --gpu-mode {mode}: goes on with {below[0]}")
            settings = replace(settings, gpu_modes=tuple(below))
            continue
        if len({trial.precision for trial in trials}) == 1:
            return _least(trials, settings, notes)
        notes.append("not every GPU of this cluster computes bf16: all use fp32")
        settings = replace(settings, precision="fp32")


def _run_trials(
    weights: Any,
    settings: PredictSettings,
    claim: Claim,
    nodes: list[Node],
    note: Callable[[str], None],
    patience_s: float,
) -> Iterator[GpuTrial]:
    """Run a trial on every node, and yield the trials as they end."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # One call a process, so that the process ends and gives the GPU back.
    amounts = {name: amount for name, amount in claim.items() if name != "label_selector"}
    task = ray.remote(max_calls=1, max_retries=0, **amounts)(try_gpu)
    waiting = []
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        waiting.append(task.options(scheduling_strategy=place).remote({"ref": weights}, settings))
    begun = time.monotonic()
    user_was_told = False
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=LOOK)
            yield from map(_result, done)
            waited_s = time.monotonic() - begun
            if done:
                continue
            if waited_s > patience_s:
                raise GpuBusy(
                    f"no GPU became free for {waited_s:,.0f} s (--stall-timeout): "
                    "wait until other jobs are done"
                )
            if waited_s > NOTE_AFTER and not user_was_told:
                user_was_told = True
                free = ray.available_resources().get("GPU", 0)
                note(
                    f"the model is still being tried on {len(waiting)} nodes; "
                    f"{free:g} GPUs of the cluster are free"
                )
    finally:
        for trial in waiting:
            ray.cancel(trial, force=True)


def _result(trial: Any) -> GpuTrial:
    """Return what a trial found.

    Raises:
        UserError: the GPU cannot be used, or something else went wrong.
        DeviceLost: the GPU or its process was lost, and another mode may help.
    """
    import ray

    try:
        return ray.get(trial)
    except ray.exceptions.RayError as error:
        cause = root_cause(error, UserError, DeviceLost)
        if isinstance(cause, UserError):
            raise UserError(cause.message, cause.exit_code) from None
        if isinstance(cause, DeviceLost):
            raise DeviceLost(str(cause)) from None
        if isinstance(error, ray.exceptions.WorkerCrashedError):
            raise DeviceLost("a GPU, and the process that tried the model on it,") from None
        raise UserError(f"the model could not be tried on a GPU: {reason(cause)}") from error


def try_gpu(weights: dict[str, Any], settings: PredictSettings) -> GpuTrial:
    """Try the model on this node: Ray's task.

    Args:
        weights: as `Predictor` takes them.
        settings: an actor's; the precision may be "auto", the batch size None.
    """
    precision = resolve_precision(settings.precision, find_gpu())
    predictor = Predictor(weights, replace(settings, precision=precision))
    if not isinstance(predictor.batches, GpuBatches):
        raise ValueError("a trial is for a GPU")
    return GpuTrial(call=predictor.gpu_call(predictor.batches), precision=precision, rate=predictor.rate())


def _least(trials: list[GpuTrial], settings: PredictSettings, notes: list[str]) -> GpuWay:
    """Return what all GPUs can do."""
    mode = max((trial.call.mode for trial in trials), key=MODES.index)
    batch_size = min(trial.call.batch_size for trial in trials)
    precision = trials[0].precision
    rate = min(trial.rate for trial in trials)
    names = sorted(trial.call.gpu for trial in trials)
    where = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    all_notes = list(notes)
    for trial in trials:
        all_notes += trial.call.notes
    return GpuWay(
        precision=precision,
        modes=settings.gpu_modes[settings.gpu_modes.index(mode) :],
        batch_size=batch_size,
        told=(
            f"{where}: {precision}, {MODE_NAMES[mode]}, batches of {batch_size}, "
            f"{rate:,.0f} images/s of the model alone"
        ),
        notes=tuple(all_notes),
    )
