"""Training with Ray Train: one loop that runs on every worker, and the driver that starts it and watches."""

import contextlib
import math
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.cluster import cores, ray_session
from pipeline.decode import DecodeSettings
from pipeline.errors import UserError
from pipeline.models import publish
from pipeline.recipe import TrainRequest, learning_rate, objective_of, optimizer_of, start_of
from pipeline.source import expand_sources, find_shards
from pipeline.storage import full_uri, is_local, open_filesystem
from pipeline.training_data import TARGET, Survey, assign, batches, survey, training_dataset
from pipeline.unit import Unit
from vit_model.checkpoint import Checkpoint, save_folder
from vit_model.inference import resolve_precision
from vit_model.model import VisionTransformer
from vit_model.objectives import Outcome


def train(request: TrainRequest, on_epoch: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train and write the model folder; the last epoch's metrics. `on_epoch` gets those of every epoch as they come.

    Raises UserError for data that cannot be trained on, for workers that do not fit, and for a loss that is not a number.
    """
    # A worker runs in a folder of its own: what is relative here would be somewhere else there.
    request = replace(request, output=full_uri(*open_filesystem(request.output, request.storage_options)))
    _check_output(request.output, request.storage_options)
    sources = expand_sources(request.sources, request.storage_options)
    shards = find_shards(sources, storage_options=request.storage_options).shards
    with ray_session(request.address):
        import ray

        target = TARGET if request.objective == "supervised" else None
        found = survey(shards, request.storage_options, target)
        request = _fit_classes(request, found) if target else replace(request, labels=None)
        objective_of(request)  # what does not fit together is said before any worker starts
        weights = ray.put(start_of(request).to_bytes())
        request = replace(request, start=None)  # every node reads them once from Ray's store
        parts = assign(shards, found.rows, request.workers)
        settings = _worker_settings(request, [sum(found.rows[shard.name] for shard in part) for part in parts])
        device = _device(request, ray.cluster_resources())
        decode = DecodeSettings(request.preprocessing, request.config.image_size, request.config.patch_size)
        # On CPUs it is the model that takes them, and every process that decodes too takes seconds of one to start.
        tasks = None if device == "cuda" else max(2, int(ray.cluster_resources()["CPU"] / 2 / request.workers))
        streams = {
            f"rank-{rank}": training_dataset(
                part, request.epochs, request.seed, decode, request.augmentation, request.storage_options, tasks, target
            )
            for rank, part in enumerate(parts)
        }
        seen: list[dict[str, Any]] = []
        with _board(lambda metrics: (seen.append(metrics), on_epoch(metrics))) as board:
            more = {"board": board, "device": device, "decode": decode, "weights": {"ref": weights}}
            _fit(request, {**settings, **more}, streams, device)
    return seen[-1]


def _check_output(output: str, storage_options: dict[str, Any]) -> None:
    fs, path = open_filesystem(output, storage_options)
    if fs.exists(f"{path.rstrip('/')}/config.json"):
        raise UserError(f"{output} holds a model already: choose a new --output")


def _fit_classes(request: TrainRequest, found: Survey) -> TrainRequest:
    """The head's size: the number of labels if there are any, else the largest class id + 1."""
    largest = max(found.classes)
    classes = len(request.labels) if request.labels else largest + 1
    if largest >= classes:
        raise UserError(f"class {largest} occurs, but there are only {classes} labels: mend the labels or the .cls files")
    if empty := [number for number in range(classes) if not found.classes[number]]:
        raise UserError(f"{len(empty)} of {classes} classes have no sample, first class {empty[0]}: mend the labels or add samples")
    return replace(request, config=replace(request.config, num_classes=classes))


def _worker_settings(request: TrainRequest, rows: list[int]) -> dict[str, Any]:
    local = request.batch_size // request.workers
    steps = min(rows) // max(1, local)
    if local < 1 or steps < 1:
        raise UserError(
            f"--batch-size {request.batch_size} over {request.workers} workers needs at least {request.batch_size} samples, "
            f"there are {sum(rows)}: use a smaller --batch-size"
        )
    return {"request": request, "rows": rows, "local_batch": local, "steps_per_epoch": steps}


def _device(request: TrainRequest, available: dict[str, float]) -> str:
    gpus, cpus = available.get("GPU", 0), available.get("CPU", 0)
    device = request.device if request.device != "auto" else "cuda" if gpus >= request.workers else "cpu"
    if device == "cuda" and gpus < request.workers:
        raise UserError(f"{request.workers} workers need {request.workers} GPUs, Ray has {gpus:g}: use fewer --workers")
    if cpus < request.workers + 2:
        raise UserError(f"{request.workers} workers and their decoding need {request.workers + 2} CPUs, Ray has {cpus:g}")
    return device


def _fit(request: TrainRequest, settings: dict[str, Any], streams: dict[str, Any], device: str) -> None:
    import ray.train
    from ray.data import ExecutionOptions
    from ray.train.torch import TorchTrainer

    ordered = {name: ExecutionOptions(preserve_order=True) for name in streams}  # the seed decides the order, not the speed
    with tempfile.TemporaryDirectory(prefix="wordsworth-train-", ignore_cleanup_errors=True) as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=settings,
            scaling_config=ray.train.ScalingConfig(num_workers=request.workers, use_gpu=device == "cuda"),
            run_config=ray.train.RunConfig(name="pretrain", storage_path=scratch),
            datasets=streams,
            dataset_config=ray.train.DataConfig(datasets_to_split=[], execution_options=ordered),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise next(iter(getattr(error, "worker_failures", {}).values()), error) from None  # what the worker raised says it


# ---- what a person watches ------------------------------------------------------------------------------------------------


class _Board:
    """An actor that workers write an epoch's metrics to."""

    def __init__(self):
        self.news: list[dict[str, Any]] = []

    def put(self, metrics: dict[str, Any]) -> None:
        self.news.append(metrics)

    def take(self) -> list[dict[str, Any]]:
        news, self.news = self.news, []
        return news


@contextlib.contextmanager
def _board(on_epoch: Callable[[dict[str, Any]], None]):
    import ray

    board = ray.remote(num_cpus=0)(_Board).remote()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            for metrics in ray.get(board.take.remote()):
                on_epoch(metrics)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join(timeout=10)
    for metrics in ray.get(board.take.remote()):
        on_epoch(metrics)


# ---- the worker -----------------------------------------------------------------------------------------------------------


def train_worker(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs. Rank 0 writes the model folder and speaks for all."""
    import ray
    import ray.train
    from ray.train.torch import get_device, prepare_model

    request: TrainRequest = settings["request"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if settings["device"] == "cpu":
        torch.set_num_threads(max(1, (cores() - 1) // world))  # one core decodes: threads that wait for each other wait for it too
    request = replace(request, start=Checkpoint.from_bytes(ray.get(settings["weights"]["ref"])))
    model = prepare_model(objective_of(request))
    optimizer = optimizer_of(model, request)
    step = Step(model, optimizer, request, get_device(), rank)
    stream = ray.train.get_dataset_shard(f"rank-{rank}")
    units = map(Unit.from_arrow, stream.iter_batches(batch_size=None, batch_format="pyarrow"))
    steps = settings["steps_per_epoch"]
    data = batches(
        units, settings["decode"], request.epochs, settings["rows"][rank], steps, settings["local_batch"], request.seed + rank
    )
    for epoch in range(request.epochs):
        metrics = _run_epoch(step, data, epoch, steps, steps * request.epochs)
        metrics["images_per_second"] = round(metrics["images_per_second"] * world, 1)
        if rank == 0:
            ray.get(settings["board"].put.remote(metrics))
    if rank == 0:
        _save(request, getattr(model, "module", model).encoder, metrics)


class Step:
    """One optimiser step: patches in, the loss and what the objective says of it out. objective: as in vit_model/objectives.py, or
    what Ray Train made of one."""

    def __init__(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, request: TrainRequest, device: torch.device, rank: int = 0
    ):
        self.objective, self.optimizer, self.request, self.device, self.rank = objective, optimizer, request, device, rank
        self.chance = torch.Generator()
        pixels = request.config.patch_size**2  # channels are fastest in a patch
        self.mean = torch.tensor(request.preprocessing.mean, device=device).repeat(pixels)
        self.std = torch.tensor(request.preprocessing.std, device=device).repeat(pixels)
        self.bf16 = resolve_precision(request.precision, device.type) == "bf16"

    def __call__(self, patches: np.ndarray, classes: np.ndarray, lr: float, number: int) -> Outcome:
        """patches uint8 (B, N, P*P*3), classes (B,), the learning rate, the number of the step: masks are its own."""
        # Hashed: of a seed a CPU's generator takes 32 bits.
        self.chance.manual_seed(int(np.random.SeedSequence([self.request.seed, self.rank, number]).generate_state(1)[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        pixels, classes = (torch.from_numpy(values).to(self.device) for values in (patches, classes))
        inputs = (pixels.float() / 255 - self.mean) / self.std  # (B, N, P*P*3)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, metrics = self.objective(inputs, pixels=pixels, classes=classes, generator=self.chance)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.objective.parameters(), self.request.clip)
        self.optimizer.step()
        return loss.detach(), metrics


def _run_epoch(step: Step, data, epoch: int, steps: int, total_steps: int) -> dict[str, Any]:
    request, start = step.request, time.perf_counter()
    said, images, waited = [], 0, 0.0
    for number in range(epoch * steps, (epoch + 1) * steps):
        asked = time.perf_counter()
        patches, classes = next(data)
        waited += time.perf_counter() - asked
        lr = learning_rate(number, total_steps, request.lr, request.warmup)
        loss, metrics = step(patches, classes, lr, number)
        said.append({"loss": loss, **metrics})
        images += len(classes)
    means = {name: float(torch.stack([one[name] for one in said]).mean()) for name in said[0]}
    if not math.isfinite(means["loss"]):
        raise UserError(f"the loss is not a number in epoch {epoch + 1}: try a lower --lr or a longer --warmup")
    seconds = time.perf_counter() - start
    return {
        "epoch": epoch + 1,
        **{name: round(mean, 4) for name, mean in means.items()},
        "lr": lr,
        "images_per_second": images / seconds,
        "data_wait": round(waited / seconds, 3),
    }


def _save(request: TrainRequest, model: VisionTransformer, metrics: dict[str, Any]) -> None:
    """The model folder at the output, wherever that is. On a cluster the output must be storage that every node sees."""
    names = ("epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "seed", "optimizer", "layer_decay")
    provenance = {name: getattr(request, name) for name in names}
    versions = {"wordsworth": version("wordsworth"), "torch": torch.__version__}
    extra = {"objective": request.objective, "recipe": provenance, "versions": versions, "metrics": metrics}
    state = {name: tensor.float().cpu() for name, tensor in model.state_dict().items()}
    checkpoint = Checkpoint(request.config, request.preprocessing, request.labels, state, extra)
    fs, path = open_filesystem(request.output, request.storage_options)
    if is_local(fs):
        save_folder(path, checkpoint)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_folder(folder, checkpoint)
        publish(Path(folder), request.output, request.storage_options)
