"""Watch a training from the driver: its metrics for Prometheus, and stores that do not answer its workers."""

import contextlib
import threading
import time
from typing import Any, Self

from wordsworth.pipeline.cluster.metrics import RunMetrics
from wordsworth.pipeline.cluster.session import SIGNS_THREAD, is_local
from wordsworth.pipeline.cluster.signs import find_signs, look_every_s, remove_signs
from wordsworth.pipeline.cluster.store_watch import StoreWatch
from wordsworth.pipeline.errors import ClusterGone, UserError
from wordsworth.pipeline.training.news import (
    NOT_A_NUMBER,
    BeginNews,
    EpochNews,
    NoteNews,
    OnNews,
    Probe,
    ProbeNews,
    StepNews,
    TrainNews,
)

TICK_S = 5.0  # seconds between two settings of the gauges: Ray forgets one after 20
STOP_S = 15.0  # seconds that the end waits for a look that is under way


class TrainWatch:
    """Follow a training by its news: a context inside a Ray session."""

    def __init__(self, output: str, objective: str, on_news: OnNews):
        """Prepare to watch.

        Args:
            output: the training's output.
            objective: of the training, the tag `command`.
            on_news: gets notes about stores.
        """
        self.metrics = None if is_local() else RunMetrics(output, objective)
        self.stores = StoreWatch(lambda message, **fields: on_news(NoteNews(message=message)))
        self._gauges: dict[str, float | None] = {"running": 1}
        self._batch = 0  # images of one step
        self._step: int | None = None  # steps that were counted
        self._last_step = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name=SIGNS_THREAD)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if self.metrics and isinstance(error, UserError) and NOT_A_NUMBER in str(error):
            self.metrics.add("train_bad_losses", 1)
        self._stop.set()
        self._thread.join(STOP_S)
        if self._thread.is_alive() or (kind and issubclass(kind, ClusterGone)):
            return
        with contextlib.suppress(Exception):  # the notes are of use to nobody any more
            remove_signs()

    def on_news(self, news: TrainNews) -> None:
        """Take one record."""
        with self._lock:
            match news:
                case BeginNews():
                    self._batch = news.batch
                    self._step = news.step
                    self._gauges["train_workers"] = news.workers
                    self._gauges["batch_size"] = news.batch
                case StepNews():
                    self._count_steps(news.step)
                    self._take(news)
                    self._gauges["train_progress"] = news.step / news.steps
                case EpochNews():
                    self._count_steps(news.step)
                    self._take(news)
                    if news.validation:
                        self._gauges["train_validation_loss"] = news.validation.means.get("loss")
                    self._take_probe(news.probe)
                case ProbeNews():
                    self._take_probe(news.probe)

    def _take(self, news: StepNews | EpochNews) -> None:
        self._gauges["train_loss"] = news.means.get("loss")
        self._gauges["train_gradient_norm"] = news.means.get("gradient_norm")
        self._gauges["train_learning_rate"] = news.lr
        if news.rates:
            self._gauges["train_images_per_second"] = news.rates.images_per_second
            self._gauges["train_data_wait"] = news.rates.data_wait
            self._gauges["train_mfu"] = news.rates.mfu

    def _take_probe(self, probe: Probe | None) -> None:
        if probe:
            self._gauges["train_probe_linear"] = probe.linear
            self._gauges["train_probe_knn"] = probe.knn

    def _count_steps(self, step: int) -> None:
        num_steps = step - (self._step or 0)
        self._step = step
        self._last_step = time.monotonic()
        if self.metrics and num_steps > 0:
            self.metrics.add("train_steps", num_steps)
            self.metrics.add("train_images", num_steps * self._batch)

    # ---- the thread ----

    def _watch(self) -> None:
        every_s = look_every_s()
        looked = 0.0
        while not self._stop.wait(TICK_S):
            if time.monotonic() - looked >= every_s:
                looked = time.monotonic()
                with contextlib.suppress(Exception):  # a cluster that is short of breath answers later
                    self.stores.look(find_signs())
            if self.metrics:
                self._measure(self.metrics)

    def _measure(self, metrics: RunMetrics) -> None:
        with self._lock:
            gauges: dict[str, Any] = dict(self._gauges)
        gauges["train_seconds_since_step"] = time.monotonic() - self._last_step
        metrics.set_all(gauges)
        for address, tries in self.stores.tries.items():
            metrics.add_up_to("store_retries", tries, store=address)
