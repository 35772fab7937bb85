"""News from the workers to the driver of a training. The actor's process imports this and nothing heavy."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ray

Watch = Callable[[dict[str, Any]], None]


class _Board:
    """An actor that workers write their news to."""

    def __init__(self) -> None:
        self.news: list[dict[str, Any]] = []

    def put(self, news: dict[str, Any]) -> None:
        self.news.append(news)

    def take(self) -> list[dict[str, Any]]:
        news, self.news = self.news, []
        return news


@contextlib.contextmanager
def board(hear: Watch) -> Iterator[Any]:
    """The actor, on this machine: it lives as long as the driver. `hear` gets in this process what is put there; where that fails,
    a warning says so, and the training goes on."""
    here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
    actor = ray.remote(num_cpus=0, label_selector=here)(_Board).remote()
    stop = threading.Event()

    def take() -> None:
        for news in ray.get(actor.take.remote()):
            try:
                hear(news)
            except Exception as error:
                warnings.warn(f"what the training said could not be kept: {error}", stacklevel=1)

    def listen() -> None:
        while not stop.wait(0.5):
            take()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        stop.set()
        thread.join(timeout=10)
    take()
