"""Build what a worker trains: the objective on its device, wrapped for several workers, and its steps."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from wordsworth.pipeline.cluster.cores import cores
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.gpu import compute_in, find_gpu, gpu_name, is_out_of_memory, reason
from wordsworth.pipeline.training.checkpoints import TrainingState
from wordsworth.pipeline.training.collectives import Collectives
from wordsworth.pipeline.training.optimizer import build_optimizer
from wordsworth.pipeline.training.request import TrainRequest, build_objective
from wordsworth.pipeline.training.speed import SpeedMeter, count_flops, measure_peak
from wordsworth.pipeline.training.step import Step, WeightAverage
from wordsworth.vit_model.cost import num_params
from wordsworth.vit_model.inference import resolve_precision
from wordsworth.vit_model.parallel import parallelize

CHEAP_FLOPS = 1e9  # floating-point operations of an image, below which decoding takes a core about as long
MIN_SHARDED = 1_000_000_000  # parameters from which on "auto" shards weights over the workers


@dataclass(frozen=True, kw_only=True)
class WorkerModel:
    """Hold what one worker trains.

    Attributes:
        state: objective, optimizer and average.
        step: makes optimizer steps.
        speed: makes rates of steps.
        part_batch: images in one pass of this worker.
        local_batch: images of this worker in one step.
        not_compiled: why --compile is left out; empty where it is not.
    """

    state: TrainingState
    step: Step
    speed: SpeedMeter
    part_batch: int
    local_batch: int
    not_compiled: str


def find_device(device: str) -> torch.device:
    """Return the device of this worker.

    Raises:
        UserError: Ray has a GPU that torch cannot use. Ray itself would take the CPU.
    """
    if device == "cpu":
        return torch.device("cpu")
    found = find_gpu()
    if found.type != "cuda":
        return found
    from ray.train.torch import get_device

    return get_device()  # the one among the node's GPUs that this worker has


@contextlib.contextmanager
def memory_errors_for_user(request: TrainRequest, device: str) -> Iterator[None]:
    """Say in one line that a device has too little memory.

    Raises:
        UserError: in place of torch's error. Workers do not start again, because the error would come again.
    """
    import ray.train

    name = gpu_name(find_device(device))
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        num_workers = ray.train.get_context().get_world_size()
        images = request.batch_size // (request.accumulate * num_workers)
        raise UserError(
            f"{name}: its memory is too small for {images} images at a time: "
            "use a larger --accumulate, --activation-checkpointing, or more --workers"
        ) from error


def build_worker_model(
    request: TrainRequest,
    collectives: Collectives,
    workers_on_node: int,
    class_weights: tuple[float, ...] | None = None,
) -> WorkerModel:
    """Build the objective of a request, and all that makes its steps.

    Args:
        request: with the initial checkpoint as `start`.
        collectives: the workers, and the device of this one.
        workers_on_node: workers that share the cores of this machine.
        class_weights: weight of each class in the loss; None where all weigh the same.
    """
    device = collectives.device
    compute_in(resolve_precision(request.precision, device), device)
    part_batch = request.batch_size // (collectives.num_workers * request.accumulate)
    local_batch = part_batch * request.accumulate
    model = build_objective(request).to(device)
    flops = count_flops(model, request.config.patch_dim, request.config.num_patches)
    if device.type == "cpu":
        # Threads wait for each other: where images are cheap to train on, one core is left to decoding.
        free_cores = cores() - 1 if flops < CHEAP_FLOPS else cores()
        torch.set_num_threads(max(1, free_cores // workers_on_node))
    not_compiled = _why_not_compiled(model, request, collectives, part_batch) if request.compile else ""
    wrapped = _distribute(model, request, collectives, compiled=request.compile and not not_compiled)
    optimizer = build_optimizer(wrapped, request)
    average = WeightAverage(wrapped, request.ema) if request.ema else None
    step = Step(wrapped, optimizer, request, device, collectives.rank, class_weights)
    peak = measure_peak(device, torch.bfloat16 if step.bf16 else torch.float32)
    return WorkerModel(
        state=TrainingState(wrapped, optimizer, average),
        step=step,
        speed=SpeedMeter(
            images_per_step=local_batch,
            num_workers=collectives.num_workers,
            flops_per_image=flops,
            peak_flops=peak,
        ),
        part_batch=part_batch,
        local_batch=local_batch,
        not_compiled=not_compiled,
    )


def _why_not_compiled(
    model: nn.Module, request: TrainRequest, collectives: Collectives, part_batch: int
) -> str:
    """Try compiled blocks on a batch of zeros, and say why they do not run; "" if they run on all workers.

    The compiled code is used again by the real model.
    """
    trial = copy.deepcopy(model)
    parallelize(trial, activation_checkpointing=request.activation_checkpointing, compile=True)
    device = collectives.device
    pixels = torch.zeros(part_batch, request.config.num_patches, request.config.patch_dim, device=device)
    classes = torch.zeros(part_batch, dtype=torch.long, device=device)
    bf16 = resolve_precision(request.precision, device) == "bf16"
    why = ""
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _ = trial(pixels, pixels=pixels, classes=classes)
        loss.backward()
    except Exception as error:  # a compiler raises errors of any kind
        why = reason(error)
    if not collectives.any(bool(why)):
        return ""
    return why or "on another worker"


def _distribute(
    model: nn.Module, request: TrainRequest, collectives: Collectives, compiled: bool
) -> nn.Module:
    """Return the model with compiled blocks, and wrapped by FSDP or DDP."""
    from ray.train.torch import prepare_model
    from torch.distributed.device_mesh import init_device_mesh

    is_large = collectives.num_workers > 1 and num_params(request.config) > MIN_SHARDED
    mesh = None
    if request.sharding == "fsdp" or (request.sharding == "auto" and is_large):
        mesh = init_device_mesh(collectives.device.type, (collectives.num_workers,))
    parallelize(
        model,
        activation_checkpointing=request.activation_checkpointing,
        compile=compiled,
        mesh=mesh,
    )
    if mesh is not None:
        return model
    return prepare_model(model, move_to_device=False)
