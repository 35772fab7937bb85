"""Decide the device and the number of workers of a training, and refuse what cannot work."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from wordsworth.pipeline.cluster.claims import NoRoom
from wordsworth.pipeline.cluster.nodes import Room, see_room
from wordsworth.pipeline.cluster.waiting import scales_to_gpus, wait_for_room
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.survey import Survey, assign

SPARE_CPUS = 2  # CPUs beside the workers, which read and decode
# CPUs for reading and decoding where a worker on a GPU claims none: one, and a part for each further worker.
GPU_SPARE_CPUS = 1.0
CPUS_PER_GPU_WORKER = 0.25


class Placement(NamedTuple):
    """Say where a training runs.

    Attributes:
        device: "cpu" or "cuda".
        workers: number of workers, or the least and the most.
    """

    device: str
    workers: int | tuple[int, int]


def place_when_there(request: TrainRequest, data: Survey, note: Callable[[str], None]) -> Placement:
    """Return the device and the workers of a training, once the cluster has room for them.

    On a cluster whose autoscaler adds GPUs, --device auto waits for one.

    Args:
        request, data: as for `place`.
        note: gets a line every few seconds while nodes are waited for.

    Raises:
        UserError: there is too little data, or the cluster stays too small.
    """

    def plan(room: Room) -> Placement:
        return place(request, data, room.amounts)

    if request.device == "auto":
        device = "cuda" if see_room(request.cluster).total("GPU") else "cpu"
        if device == "cpu" and scales_to_gpus(request.cluster, note):
            note("the autoscaler of this cluster adds GPUs: waiting for them (--device cpu trains on CPUs)")
            device = "cuda"
        request = replace(request, device=device)
    return wait_for_room(plan, request.cluster, note)


def with_fitting_batch(request: TrainRequest, data: Survey) -> tuple[TrainRequest, str | None]:
    """Return the request with batches that the data has images for, and a note where they became smaller.

    A size that the user asked for stays. The number of images alone decides a smaller one, so a training
    continues with the same. An epoch then has two steps or more, also where some images cannot be decoded.
    """
    default = request.batch_size
    if request.is_batch_asked or data.total >= default:
        return request, None
    batch = 1 << max(0, (data.total // 2).bit_length() - 1)
    note = f"--batch-size {batch}: the default of {default} is more than there are images ({data.total:,})"
    return replace(request, batch_size=batch), note


def place(request: TrainRequest, data: Survey, available: dict[str, float]) -> Placement:
    """Return the device and the workers of a training.

    Args:
        request: what the user asked for.
        data: what the sources hold.
        available: resources that the cluster has for this job, as Ray names them.

    Raises:
        UserError: there is too little data, or the cluster is too small.
    """
    least, most = _bounds(request.workers)
    _check_batch(request, data, least, most)
    _check_warmup(request, data)
    assign(list(data.shards), data.rows, least)  # raises where there are too few shards
    device = request.device
    if device == "auto":
        device = "cuda" if available.get("GPU") else "cpu"
    _check_cluster(device, least, available)
    if least == most:
        return Placement(device, least)
    fitting = min(most, len(data.shards), request.batch_size // request.accumulate)
    if device == "cpu":
        # Ray would let workers take all CPUs and leave none to decode.
        fitting = min(fitting, int(available.get("CPU", 0)) - SPARE_CPUS)
    return Placement(device, (least, max(least, fitting)))


def _bounds(workers: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(workers, int):
        return workers, workers
    return workers


def _check_batch(request: TrainRequest, data: Survey, least: int, most: int) -> None:
    batch = request.batch_size
    parts = least * request.accumulate
    if batch < parts:
        raise UserError(
            f"--batch-size {batch} is less than {parts}, an image for each worker and each of its parts "
            "(--accumulate): use a larger --batch-size or fewer --workers"
        )
    if data.total < batch:
        raise UserError(
            f"--batch-size {batch} is more than there are images ({data.total:,}): use a smaller one"
        )
    if least == most and batch % parts:
        raise UserError(
            f"--batch-size {batch} cannot be divided by {parts}, "
            "the workers and the parts of each (--accumulate)"
        )


def _check_warmup(request: TrainRequest, data: Survey) -> None:
    steps = request.epochs * (data.total // request.batch_size)
    if request.warmup >= 1 and request.warmup >= steps:
        raise UserError(
            f"--warmup {request.warmup:g}: there are {steps:,} steps in all, so the learning rate would "
            "never fall: give fewer, or a share of the steps such as 0.1"
        )


def _check_cluster(device: str, least: int, available: dict[str, float]) -> None:
    gpus = available.get("GPU", 0)
    cpus = available.get("CPU", 0)
    if device == "cuda" and gpus < least:
        raise NoRoom(
            f"{least} workers need {least} GPUs, Ray has {gpus:g}: use fewer --workers, or --device cpu",
            lacking="a GPU" if least == 1 else f"{least} GPUs",
            wanted=[{"GPU": 1}] * least,
        )
    needed: float = least + SPARE_CPUS
    if device == "cuda":  # Ray Train claims no CPU for a worker that has a GPU
        needed = GPU_SPARE_CPUS + CPUS_PER_GPU_WORKER * (least - 1)
    if cpus < needed:
        raise NoRoom(
            f"{least} workers and their decoding need {needed:g} CPUs, Ray has {cpus:g}: use fewer --workers",
            lacking=f"{needed:g} CPUs",
            wanted=[{"CPU": 1}] * math.ceil(needed),
        )
