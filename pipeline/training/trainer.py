"""Training with Ray Train: what the driver does before, while and after the workers run pipeline/training/worker.py."""

import asyncio
import json
import os
from dataclasses import asdict, replace
from typing import Any

from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import expand_sources, find_shards
from wordsworth.pipeline.storage.filesystem import full_uri, is_local, open_filesystem
from wordsworth.pipeline.training.failure_policy import Trainer, inner, meant
from wordsworth.pipeline.training.metrics_log import Journal
from wordsworth.pipeline.training.news import Watch, board
from wordsworth.pipeline.training.request import TrainRequest, objective_of, start_of
from wordsworth.pipeline.training.stream import reading
from wordsworth.pipeline.training.survey import Survey, assign, check_classes, classes_of, paged, survey
from wordsworth.pipeline.training.worker import Given, train_worker

FAILURES = 5  # of a worker or its machine, after which a training gives up
WAIT = 7200  # seconds that workers wait for each other: one may have all of --val in its shards
RUN = "_train"  # in the output: checkpoints, and what was asked for
FREE = {
    "output",
    "start",
    "workers",
    "address",
    "storage_options",
    "device",
    "save_every",
    "keep",
    "sources",
    "val",
    "max_error_rate",
}


def train(request: TrainRequest, watch: Watch) -> dict[str, Any]:
    """Train and write the model folder; the last epoch's metrics. `watch` gets news as they come: dicts whose `kind` is "data"
    (what was found), "begin" (workers start, or go on), "note" (a message for the user), "step" (every few seconds) or "epoch".

    An output with an unfinished training of the same request goes on from its last checkpoint.
    Raises UserError for data that cannot be trained on, for workers that do not fit, and for a loss that is not a number.
    """
    # A worker runs in a folder of its own: what is relative here would be somewhere else there.
    request = replace(request, output=full_uri(*open_filesystem(request.output, request.storage_options)))
    _check_output(request)
    with ray_session(request.address):
        import ray

        decode = DecodeSettings(request.preprocessing, request.config.image_size, request.config.patch_size)
        target = request.target if request.classified else None
        options = {
            name: getattr(request, name) for name in ("image_keys", "image_column", "key", "storage_options")
        }
        settings = reading(decode, target, **options)
        train_data = _surveyed(request.sources, request, settings, target)
        val_data = _surveyed(request.val, request, settings, target) if request.val else None
        request, known = _classified(request, train_data, val_data)
        objective_of(request)  # what does not fit together is said before any worker starts
        device, workers = _check_size(request, train_data, ray.cluster_resources())
        request = replace(request, workers=workers)
        watch(_found(train_data, val_data, request))
        asked = _settings(request, train_data, val_data)
        _check_settings(request, asked)
        weights = ray.put(start_of(request).to_bytes())  # every node reads them once from Ray's store
        request = replace(request, start=None)
        last: dict[str, Any] = {}
        with Journal(request.output, request.storage_options) as journal:

            def hear(news: dict[str, Any]) -> None:
                if news["kind"] == "epoch":
                    last.update(news)
                watch(news)
                journal.add(news)

            with board(hear) as news_board:
                given = Given(
                    request,
                    decode,
                    settings,
                    train_data,
                    val_data,
                    known,
                    device,
                    weights,
                    news_board,
                    asked,
                    _alone(request),
                )
                _fit(request, given)
            journal.draw()
    return last


# ---- before ---------------------------------------------------------------------------------------------------------------


def _check_output(request: TrainRequest) -> None:
    fs, path = open_filesystem(request.output, request.storage_options)
    if fs.exists(f"{path.rstrip('/')}/config.json"):
        raise UserError(f"{request.output} holds a model already: choose a new --output")


def _surveyed(
    sources: tuple[str, ...], request: TrainRequest, settings: ReadSettings, target: str | None
) -> Survey:
    storage = request.storage_options
    listing = find_shards(
        expand_sources(sources, storage), request.format, request.image_keys, storage_options=storage
    )
    return survey(paged(listing.shards), settings, target)


def _classified(
    request: TrainRequest, train_data: Survey, val_data: Survey | None
) -> tuple[TrainRequest, Target | None]:
    """The head's size, the labels, and how a sample's class is found."""
    if not request.classified:
        return replace(request, labels=None), None
    labels, classes = classes_of(train_data, request.labels)
    if val_data:
        check_classes(val_data, {name: number for number, name in enumerate(labels or ())}, classes)
    request = replace(request, labels=labels, config=replace(request.config, num_classes=classes))
    return request, Target(request.target, labels, classes)


def _check_size(
    request: TrainRequest, data: Survey, available: dict[str, float]
) -> tuple[str, int | tuple[int, int]]:
    """The device, and the workers that there can be. Raises UserError where data or machines are too few."""
    least, most = (request.workers, request.workers) if isinstance(request.workers, int) else request.workers
    batch, parts = request.batch_size, least * request.accumulate
    if batch < parts or data.total < batch:
        raise UserError(
            f"--batch-size {batch} over {least} workers needs at least {max(batch, parts)} samples in a batch and there are "
            f"{data.total}: use a smaller --batch-size or fewer --workers"
        )
    if least == most and batch % parts:
        raise UserError(
            f"--batch-size {batch} cannot be divided by {parts}, the workers and the parts of each (--accumulate)"
        )
    steps = request.epochs * (data.total // batch)
    if request.warmup >= 1 and request.warmup >= steps:
        raise UserError(
            f"--warmup {request.warmup:g}: there are {steps:,} steps in all, so the learning rate would never fall: "
            "give fewer, or a share of the steps such as 0.1"
        )
    assign(list(data.shards), data.rows, least)  # says it if there are too few shards
    gpus, cpus = available.get("GPU", 0), available.get("CPU", 0)
    device = request.device if request.device != "auto" else "cuda" if gpus else "cpu"
    if device == "cuda" and gpus < least:
        raise UserError(
            f"{least} workers need {least} GPUs, Ray has {gpus:g}: use fewer --workers, or --device cpu"
        )
    if cpus < least + 2:
        raise UserError(
            f"{least} workers and their decoding need {least + 2} CPUs, Ray has {cpus:g}: use fewer --workers"
        )
    if least == most:
        return device, least
    # Ray would let workers on CPUs take all of them and leave none to decode.
    room = min(len(data.shards), batch // request.accumulate, int(cpus) - 2 if device == "cpu" else most)
    return device, (least, max(least, min(most, room)))


def _found(train_data: Survey, val_data: Survey | None, request: TrainRequest) -> dict[str, Any]:
    found = {
        "kind": "data",
        "samples": train_data.total,
        "shards": len(train_data.shards),
        "classes": request.config.num_classes,
    }
    return found | {"val_samples": val_data.total if val_data else 0}


def _settings(request: TrainRequest, train_data: Survey, val_data: Survey | None) -> dict[str, Any]:
    """What decides what is learnt: a training goes on only with the same."""
    start = request.start.fingerprint() if request.start else None
    return {name: _plain(value) for name, value in vars(request).items() if name not in FREE} | {
        "start": start,
        "data": train_data.digest,
        "val_data": val_data.digest if val_data else None,
    }


def _plain(value: Any) -> Any:
    return json.loads(
        json.dumps(value, default=lambda one: one.to_dict() if hasattr(one, "to_dict") else asdict(one))
    )


def _check_settings(request: TrainRequest, asked: dict[str, Any]) -> None:
    """Write down what is asked for. Raises UserError where a training with other settings is under way."""
    fs, path = open_filesystem(request.output, request.storage_options)
    run = f"{path.rstrip('/')}/{RUN}"
    if fs.exists(f"{run}/checkpoint_manager_snapshot.json"):  # Ray Train goes on from it
        before = json.loads(fs.cat_file(f"{run}/settings.json"))
        other = [name for name in asked if asked[name] != before.get(name)]
        if other:
            shown = ", ".join(
                f"{name} {before.get(name)!r} there, {asked[name]!r} here" for name in other[:3]
            )
            raise UserError(
                f"{request.output} holds an unfinished training with other settings ({shown}): "
                "give the same to continue it, or choose another --output"
            )
        return
    fs.makedirs(run, exist_ok=True)
    fs.pipe_file(f"{run}/settings.json", json.dumps(asked, indent=1).encode())


# ---- while ----------------------------------------------------------------------------------------------------------------


def _alone(request: TrainRequest) -> bool:
    """Whether Ray is a local one, on this machine only, and this thread is free to look after the workers: in a notebook it has
    a loop of its own."""
    import ray

    return (
        not asyncio._get_running_loop()
        and not (request.address or os.environ.get("RAY_ADDRESS"))
        and len(ray.nodes()) == 1
    )


def _backend(request: TrainRequest) -> str | None:
    """Return what workers exchange gradients by, None for Ray's choice: NCCL on GPUs. One worker exchanges nothing and needs no
    NCCL."""
    return "gloo" if request.workers == 1 and request.sharding != "fsdp" else None


def _fit(request: TrainRequest, given: Given) -> None:
    import ray.train
    from ray.train.torch import TorchConfig

    fs, path = open_filesystem(request.output, request.storage_options)
    storage = {"storage_path": path}
    if not is_local(fs):
        import pyarrow.fs

        storage["storage_filesystem"] = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    trainer = Trainer(
        train_worker,
        train_loop_config={"given": given},
        alone=given.alone,
        torch_config=TorchConfig(backend=_backend(request), timeout_s=WAIT),
        scaling_config=ray.train.ScalingConfig(num_workers=request.workers, use_gpu=given.device == "cuda"),
        run_config=ray.train.RunConfig(
            name=RUN,
            failure_config=ray.train.FailureConfig(max_failures=FAILURES, controller_failure_limit=FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=request.keep),
            **storage,
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        causes = [inner(one) for one in getattr(error, "worker_failures", {}).values()]
        raise meant(error) or next(iter(causes), error) from None  # what the worker raised says it
