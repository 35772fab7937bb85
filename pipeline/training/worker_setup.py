"""Hold what the command sends to the workers of a training, and begin a worker.

The command and Ray Train's controller import this module too, and need none of what a worker imports.
"""

from dataclasses import dataclass
from typing import Any

from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.training.class_balance import ClassUse
from wordsworth.pipeline.training.news import WaitNews
from wordsworth.pipeline.training.news_channel import NewsChannel
from wordsworth.pipeline.training.probe_images import ProbeImages
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.settings import Settings
from wordsworth.pipeline.training.stream import start_stream_processes
from wordsworth.pipeline.training.survey import Survey


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """Hold what every worker needs.

    Attributes:
        request: what the user asked for, without the start.
        decode: how images become patches.
        reading: how shards are read.
        train: what the sources hold.
        val: what --val holds; None without --val.
        target: finds the class of a sample; None for an objective without classes.
        class_use: how much the classes weigh, and how often their samples are drawn.
        probe: the images of --probe; None without --probe.
        device: "cpu" or "cuda".
        weights: bytes of the initial checkpoint, as a reference into Ray's store.
        settings: what the model folder keeps of the request.
        open_end: name of the checkpoint of a finished training with which this one goes on; None for none.
        is_local: whether the command started a Ray of its own, which is one machine.
    """

    request: TrainRequest
    decode: DecodeSettings
    reading: ReadSettings
    train: Survey
    val: Survey | None
    target: Target | None
    class_use: ClassUse
    probe: ProbeImages | None
    device: str
    weights: Any
    settings: Settings
    open_end: str | None
    is_local: bool


def train_worker(config: dict[str, Any]) -> None:
    """Train on one worker: the function that Ray Train runs.

    Args:
        config: "setup", a WorkerSetup, and "news", a NewsChannel.
    """
    import ray.train

    setup: WorkerSetup = config["setup"]
    news: NewsChannel = config["news"]
    if ray.train.get_context().get_world_rank() == 0:
        news.send(WaitNews(what="building the model"))
    if setup.is_local:
        start_stream_processes()
    from wordsworth.pipeline.training.worker import run_worker

    run_worker(setup, news)
