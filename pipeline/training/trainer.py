"""Train a model with Ray Train: count and check before the workers start, hear from them while they run."""

import contextlib
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from wordsworth.pipeline.cluster.ray_internals import (
    START_TIMEOUT_S,
    WorkerRoom,
    is_without_room,
    make_trainer,
)
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.file_kinds import begun_image_keys
from wordsworth.pipeline.sources.places import check_places, some_objects
from wordsworth.pipeline.sources.source_lists import expand_sources, take_queries
from wordsworth.pipeline.sources.source_names import SourceNames
from wordsworth.pipeline.storage.filesystem import (
    absolute_uri,
    is_local,
    open_filesystem,
    without_credentials,
)
from wordsworth.pipeline.training.class_balance import use_classes
from wordsworth.pipeline.training.classes import check_classes, train_target
from wordsworth.pipeline.training.ending import training_end
from wordsworth.pipeline.training.failure_policy import FailureJudge, error_for_user, worker_errors
from wordsworth.pipeline.training.metrics_log import MetricsLog
from wordsworth.pipeline.training.more_epochs import FinishedTraining, epoch_of_model, find_finished, go_on
from wordsworth.pipeline.training.news import (
    BeginNews,
    DataNews,
    EpochNews,
    NoteNews,
    OnNews,
    TrainNews,
    WaitNews,
)
from wordsworth.pipeline.training.news_channel import NewsChannel, open_news_channel
from wordsworth.pipeline.training.placement import (
    SPARE_CPUS,
    place_when_there,
    with_fitting_batch,
)
from wordsworth.pipeline.training.request import TrainRequest, build_objective, initial_checkpoint
from wordsworth.pipeline.training.settings import (
    RUN,
    SETTINGS,
    begun_settings,
    frozen_settings,
    write_settings,
)
from wordsworth.pipeline.training.survey import Survey
from wordsworth.pipeline.training.train_watch import TrainWatch
from wordsworth.pipeline.training.training_data import TrainingData, find_training_data
from wordsworth.pipeline.training.worker_begin import train_worker
from wordsworth.pipeline.training.worker_setup import WorkerSetup

T = TypeVar("T")

REFUSED_WITHIN_S = 0.3  # seconds that a source has to be refused in, before Ray starts
MAX_FAILURES = 5  # failures of a worker or its machine, after which a training gives up
COLLECTIVE_TIMEOUT_S = 7200  # workers wait this long for each other: one may have all of --val


def train(request: TrainRequest, on_news: OnNews) -> EpochNews:
    """Train and write the model folder, or continue an unfinished training of the same request.

    Args:
        request: what the user asked for.
        on_news: called with each record while the training runs.

    Returns:
        How the last epoch ended.

    Raises:
        UserError: the data cannot be trained on, the workers do not fit, or a loss is not a number.
    """
    # A worker runs in a folder of its own, where a relative path would mean another place.
    output = absolute_uri(*open_filesystem(request.output, request.storage_options))
    request = replace(request, output=output)
    finished = find_finished(request)
    request = _with_begun_image_keys(_with_expanded_sources(request))
    note = partial(_note, on_news)
    found = _begin(lambda: find_training_data(request, note), then=_import_for_training)
    with contextlib.suppress(TimeoutError):
        found.result(timeout=REFUSED_WITHIN_S)
    is_cluster = request.cluster.address or os.environ.get("RAY_ADDRESS")
    on_news(WaitNews(what="joining the Ray cluster" if is_cluster else "starting Ray"))
    with ray_session(request.cluster, note):
        on_news(WaitNews(what="counting the images"))
        setup = _prepare(request, found.result(), finished, on_news)
        on_news(WaitNews(what="starting the workers"))
        return _run(setup, on_news)


def _note(on_news: OnNews, line: str) -> None:
    on_news(NoteNews(message=line))


def _import_for_training() -> None:
    """Import torch and Ray Train, which takes seconds, while Ray's processes start."""
    import ray.train.torch  # noqa: F401 (Python keeps the modules)

    import wordsworth.vit_model.objectives  # noqa: F401


def _begin(call: Callable[[], T], then: Callable[[], None]) -> "Future[T]":
    """Begin a call in a thread of its own, which does not hold up a command that ends before.

    Args:
        call: gives the result.
        then: called behind it, in the same thread.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        else:
            then()

    threading.Thread(target=run, daemon=True, name="sources").start()
    return future


# ---- before the workers start ----


def _with_expanded_sources(request: TrainRequest) -> TrainRequest:
    """Return the request with the sources that its lists and patterns stand for, all without queries."""
    options = request.storage_options
    named = [expand_sources(names, options) for names in (request.sources, request.val, request.probe)]
    all_names, options = take_queries(SourceNames(chain(*named)), options)
    names = iter(all_names)
    sources, val, probe = (tuple(islice(names, len(part))) for part in named)
    return replace(request, sources=sources, val=val, probe=probe, storage_options=options)


def _with_begun_image_keys(request: TrainRequest) -> TrainRequest:
    """Return the request with the extensions of images that its training was begun with."""
    begun = begun_settings(request)
    if begun is None:
        return request
    keys = begun_image_keys(request.image_keys, begun.get("image_keys", ()))
    return replace(request, image_keys=keys)


def _prepare(
    request: TrainRequest, data: TrainingData, finished: FinishedTraining | None, on_news: OnNews
) -> WorkerSetup:
    """Count the data, check that all fits together, and write the settings down."""
    import ray

    check_places(
        lambda: some_objects([*data.train[:1], *data.val[:1], *data.probe[:1]]),
        request.output,
        f"{RUN}/{SETTINGS}",
        request.storage_options,
        partial(_note, on_news),
    )
    train_data = data.survey_train(by_shard=request.balance)
    val_data = data.survey_val()
    probe = data.choose_probe()
    request, target, notes = _with_classes(request, train_data, val_data, data.named_by_table)
    request, smaller_batch = with_fitting_batch(request, train_data)
    if smaller_batch:
        notes.append(smaller_batch)
    start = initial_checkpoint(request)
    build_objective(replace(request, start=start))  # raises now what does not fit together
    class_use, more_notes = use_classes(request, train_data, target, data.reading.unit_rows)
    placement = place_when_there(request, train_data, partial(_note, on_news))
    request = replace(request, workers=placement.workers)
    on_news(
        DataNews(
            samples=train_data.total,
            shards=len(train_data.shards),
            classes=request.config.num_classes,
            val_samples=val_data.total if val_data else 0,
        )
    )
    for note in [*notes, *more_notes, *([probe.describe()] if probe else [])]:
        on_news(NoteNews(message=note))
    settings = frozen_settings(request, train_data, val_data, probe)
    open_end = None
    if finished:
        open_end = go_on(request, settings, finished)
    else:
        write_settings(request, settings)
    return WorkerSetup(
        request=replace(request, start=None),
        decode=data.decode,
        reading=data.reading,
        train=replace(train_data, classes_by_shard={}),
        val=val_data,
        target=target,
        class_use=class_use,
        probe=probe,
        device=placement.device,
        weights=ray.put(start.to_bytes()),  # every node reads the weights once
        settings=settings,
        open_end=open_end,
        is_local=_is_local_ray(request),
    )


def _is_local_ray(request: TrainRequest) -> bool:
    """Return whether Ray is one that was started for this command, on this machine alone.

    A Ray that a Python program has joined may be one node of a cluster to which others come later. Others
    cannot come to a head on loopback.
    """
    import ray

    has_address = bool(request.cluster.address or os.environ.get("RAY_ADDRESS"))
    is_alone = ray.get_runtime_context().gcs_address.startswith("127.") and len(ray.nodes()) == 1
    return not has_address and is_alone


def _with_classes(
    request: TrainRequest,
    train_data: Survey,
    val_data: Survey | None,
    named_by_table: tuple[str, ...] | None,
) -> tuple[TrainRequest, Target | None, list[str]]:
    """Return the request with the labels and the size of the head, what finds a sample's class, and notes."""
    if not request.classified:
        return replace(request, labels=None), None, []
    labels = request.labels or named_by_table
    target, notes = train_target(
        request.target, train_data.classes, labels, of_table=named_by_table is not None
    )
    if val_data:
        check_classes(val_data.classes, target, "--val")
    config = replace(request.config, num_classes=target.classes)
    return replace(request, labels=target.labels, config=config), target, notes


# ---- while the workers run ----


def _run(setup: WorkerSetup, on_news: OnNews) -> EpochNews:
    """Run the workers, log their news, and return the news of the epoch whose model is written.

    Raises:
        KeyboardInterrupt: the training was told to end, and its workers have saved a checkpoint.
    """
    request = setup.request
    watch = TrainWatch(without_credentials(request.output), request.objective, on_news)
    with (
        MetricsLog(request.output, request.storage_options) as log,
        watch,
        training_end(request.cluster.grace, partial(_note, on_news)) as end,
    ):

        def receive(news: TrainNews) -> None:
            if isinstance(news, BeginNews):
                end.has_begun = True
            on_news(news)
            watch.on_news(news)
            log.add(news)

        with open_news_channel(receive, end.is_told) as channel:
            _fit(setup, channel)
        epochs = log.epochs()
        if not epochs or epochs[-1].epoch < request.epochs:
            end.finish()
        note = log.draw()
    if note:
        on_news(NoteNews(message=note))
    written = epoch_of_model(request)
    return next((news for news in epochs if news.epoch == written), epochs[-1])


def _fit(setup: WorkerSetup, channel: NewsChannel) -> None:
    """Run the workers to their end by Ray Train.

    Raises:
        UserError: a worker says what the user can do.
        Exception: what the first worker raised.
    """
    import ray.train
    from ray.train.torch import TorchConfig

    request = setup.request
    wait_s = request.cluster.wait_timeout
    fs, path = open_filesystem(request.output, request.storage_options)
    storage: dict[str, Any] = {"storage_path": path}
    if not is_local(fs):
        import pyarrow.fs

        storage["storage_filesystem"] = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    trainer = make_trainer(
        train_worker,
        FailureJudge(channel),
        WorkerRoom(SPARE_CPUS, wait_s),
        is_local=setup.is_local,
        train_loop_config={"setup": setup, "news": channel},
        torch_config=TorchConfig(backend=_backend(request), timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=request.workers,
            use_gpu=setup.device == "cuda",
            # On CPUs a worker takes the cores of its node; GPUs exchange gradients best within one.
            placement_strategy="PACK" if setup.device == "cuda" else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name=RUN,
            failure_config=ray.train.FailureConfig(
                max_failures=MAX_FAILURES,
                controller_failure_limit=max(MAX_FAILURES, math.ceil(wait_s / START_TIMEOUT_S)),
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=request.keep),
            **storage,
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if is_without_room(error):
            raise _no_room(request) from None
        causes = [error_for_user(error), *worker_errors(error), error]
        raise next(cause for cause in causes if cause is not None) from None


def _no_room(request: TrainRequest) -> UserError:
    """Return the error of a cluster that has lost the room for the workers."""
    import ray

    least = request.workers if isinstance(request.workers, int) else request.workers[0]
    nodes = ray.nodes()
    alive = sum(node["Alive"] for node in nodes)
    workers = "1 worker" if least == 1 else f"{least} workers"
    fewer = "" if least == 1 else f", or with fewer (--workers 1,{least})"
    return UserError(
        f"no room for {workers} for {request.cluster.wait_timeout:,.0f} s (--wait-timeout): "
        f"{alive} of {len(nodes)} nodes of the cluster are alive. The last checkpoint is kept: "
        f"run the same command again when nodes are back{fewer}"
    )


def _backend(request: TrainRequest) -> str | None:
    """Return by what workers exchange gradients; None for Ray's choice, which is NCCL on GPUs.

    One worker exchanges nothing and needs no NCCL.
    """
    if request.workers == 1 and request.sharding != "fsdp":
        return "gloo"
    return None
