"""Bring news from the workers of a training to the command: an actor holds them, and a thread asks for them.

The channel also tells the workers that the command is told to end. Importing this imports nothing heavy,
because the actor starts with it.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from wordsworth.pipeline.errors import shown
from wordsworth.pipeline.training.news import OnNews, TrainNews

POLL_S = 0.5  # seconds between two looks at what workers have sent


class _NewsBox:
    """Hold news until the command takes them: an actor."""

    def __init__(self) -> None:
        self.news: list[TrainNews] = []
        self.is_ending = False

    def put(self, news: TrainNews) -> None:
        self.news.append(news)

    def take(self, is_ending: bool) -> list[TrainNews]:
        """Return the news since the last call, and keep whether the command is told to end."""
        self.is_ending = is_ending
        news = self.news
        self.news = []
        return news

    def tell_ending(self) -> bool:
        """Return whether the command is told to end."""
        return self.is_ending


class NewsChannel:
    """Send news from any process of the cluster to the command that opened the channel."""

    def __init__(self, box: Any):
        self.box = box

    def send(self, news: TrainNews) -> None:
        """Send a record. Where the command is gone nothing is sent: Ray ends this worker soon."""
        import ray

        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(self.box.put.remote(news))

    def is_ending(self) -> bool:
        """Tell whether the command is told to end."""
        import ray

        with contextlib.suppress(ray.exceptions.RayActorError):
            return ray.get(self.box.tell_ending.remote())
        return False

    def post(self, news: TrainNews) -> None:
        """Send a record and do not wait: for a process that must not wait, such as Ray Train's controller."""
        self.box.put.remote(news)


@contextlib.contextmanager
def open_news_channel(
    on_news: OnNews, is_ending: Callable[[], bool] = lambda: False
) -> Iterator[NewsChannel]:
    """Open a channel for the length of a block: an actor on this machine, and a thread that asks for news.

    Args:
        on_news: called in this process with each record, in order. If a call fails, a warning says so and the
            training continues.
        is_ending: tells whether the command is told to end, for the workers.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = {"max_restarts": -1, "max_task_retries": 3}  # a killed box loses half a second of news
    box = ray.remote(num_cpus=0, scheduling_strategy=here, **lasting)(_NewsBox).remote()
    stop = threading.Event()

    def take() -> None:
        """Hand on what was sent. Where the actor is not there, or Ray is gone, there is no news: the training
        itself ends with what happened."""
        try:
            sent = ray.get(box.take.remote(is_ending()))
        except (ray.exceptions.RayError, ConnectionError):
            return
        for news in sent:
            try:
                on_news(news)
            except Exception as error:
                warnings.warn(shown(f"news of the training could not be kept: {error}"), stacklevel=1)

    def listen() -> None:
        while not stop.wait(POLL_S):
            take()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield NewsChannel(box)
    finally:
        stop.set()
        thread.join(timeout=10)
    take()
