"""Begin a worker of a training.

The command and Ray Train's controller import this module too, and need none of what a worker imports.
"""

from typing import Any

from wordsworth.pipeline.training.news import WaitNews
from wordsworth.pipeline.training.news_channel import NewsChannel
from wordsworth.pipeline.training.stream import start_stream_processes
from wordsworth.pipeline.training.worker_setup import WorkerSetup


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
