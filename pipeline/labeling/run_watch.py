"""Watch a run while its receipts come: tell the display and the metrics how it goes, every few seconds."""

import contextlib
import threading
import time
from collections import deque
from typing import Self

from wordsworth.pipeline.cluster.metrics import RunMetrics
from wordsworth.pipeline.cluster.ray_internals import ExecutorProbe, StageFigures
from wordsworth.pipeline.cluster.session import SIGNS_THREAD
from wordsworth.pipeline.cluster.signs import find_signs, look_every_s, remove_signs
from wordsworth.pipeline.cluster.store_watch import StoreWatch
from wordsworth.pipeline.errors import ClusterGone
from wordsworth.pipeline.labeling.pace import Pace, RunFigures
from wordsworth.pipeline.labeling.progress import ListingTotals, Progress
from wordsworth.pipeline.output.records import Receipt
from wordsworth.pipeline.unit import GpuCall

TICK_S = 0.5  # seconds between two looks at the figures
METRICS_EVERY_S = 5.0  # seconds between two settings of the gauges: Ray forgets one after 20
BUSY_WINDOW_S = 120.0  # seconds over which it is told how busy the model was
STOP_S = 15.0  # seconds that the end waits for a look that is under way


class RunWatch:
    """Follow a run from its first task to its last receipt: a context inside a Ray session.

    Attributes:
        pace: how far the run is.
        stores: which stores do not answer.
    """

    def __init__(
        self,
        progress: Progress,
        metrics: RunMetrics | None = None,
        batch_size: int = 0,
        totals: ListingTotals | None = None,
    ):
        """Keep the arguments.

        Args:
            progress: shows the user how the run goes.
            metrics: of the run; None records nothing.
            batch_size: images in one forward pass, as the plan has it.
            totals: the listing of the run, which may go on; None where its size is of no use.
        """
        self.progress = progress
        self.metrics = metrics
        self.batch_size = batch_size
        self.totals = totals
        self.pace = Pace(total=totals.known_bytes if totals else 0)
        self.stores = StoreWatch(progress.note)
        self._busy: deque[tuple[float, float]] = deque()  # (time, seconds of predict so far)
        self._restarting = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name=SIGNS_THREAD)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._stop.set()
        self._thread.join(STOP_S)
        if self._thread.is_alive() or (kind and issubclass(kind, ClusterGone)):
            return
        with contextlib.suppress(Exception):  # the notes are of use to nobody any more
            self._look()
            remove_signs()

    def receipt(self, receipt: Receipt) -> None:
        """Count a unit that is done, or that the store did not give."""
        self.pace.receipt(receipt)
        if self.metrics is None:
            return
        self.metrics.add("images", receipt.rows)
        self.metrics.add("bytes_read", receipt.bytes_read)
        self.metrics.add("units", not receipt.fault)
        self.metrics.add("shard_faults", bool(receipt.fault))
        for code, count in receipt.errors.items():
            self.metrics.add("errors", count, code=code)
        for stage, seconds in receipt.seconds.items():
            self.metrics.add("stage_seconds", seconds, stage=stage)
        if receipt.prediction:
            self.batch_size = GpuCall.from_json(receipt.prediction).batch_size

    # ---- the thread ----

    def _watch(self) -> None:
        every_s = look_every_s()
        looked = measured = 0.0
        while not self._stop.wait(TICK_S):
            now = time.monotonic()
            if now - looked >= every_s:
                looked = now
                with contextlib.suppress(Exception):  # a cluster that is short of breath answers later
                    self._look()
            with contextlib.suppress(Exception):  # a store that is away gives the pages later
                self._follow_listing()
            stages: list[StageFigures] = []
            with contextlib.suppress(Exception):  # an execution that ends takes its stages apart meanwhile
                stages = ExecutorProbe.figures()
            figures = self.pace.figures()
            if self.pace.has_begun:
                self.progress.working(figures)
            else:
                self.progress.waiting(_awaited(stages))
            if self.metrics and now - measured >= METRICS_EVERY_S:
                measured = now
                self._measure(self.metrics, figures, stages)

    def _follow_listing(self) -> None:
        if self.totals and self.totals.refresh():
            self.pace.total = self.totals.known_bytes
            self.progress.listed(shards=self.totals.shards, bytes_total=self.totals.bytes_total)

    def _look(self) -> None:
        signs = find_signs()
        self.pace.signs((worker, sign.unit) for worker, sign in signs.items())
        self.stores.look(signs)

    def _measure(self, metrics: RunMetrics, figures: RunFigures, stages: list[StageFigures]) -> None:
        metrics.set_all(
            {
                "running": 1,
                "progress": figures.share,
                "seconds_left": figures.seconds_left,
                "images_per_second": figures.images_per_second,
                "seconds_since_unit": figures.seconds_since_unit,
                "batch_size": self.batch_size or None,
            }
        )
        for address, tries in self.stores.tries.items():
            metrics.add_up_to("store_retries", tries, store=address)
        num_actors = 0
        for stage in stages:
            metrics.set("queue_depth", stage.waiting, stage=stage.name)
            metrics.set("tasks", stage.running, stage=stage.name)
            metrics.add_up_to("failed_tasks", stage.failed, stage=stage.name)
            if stage.name != "predict":
                continue
            num_actors = stage.actors
            for state in ("actors", "pending", "restarting"):
                metrics.set("actors", getattr(stage, state), state="alive" if state == "actors" else state)
            metrics.add("actor_restarts", stage.restarting - self._restarting)
            self._restarting = stage.restarting
        metrics.set("model_busy", self._model_busy(figures, num_actors))

    def _model_busy(self, figures: RunFigures, num_actors: int) -> float | None:
        """Return the share of the last minutes in which a model actor was busy; None while nobody knows."""
        now = time.monotonic()
        seconds = figures.stage_seconds.get("predict", 0.0)
        if not seconds:
            return None
        self._busy.append((now, seconds))
        while now - self._busy[0][0] > BUSY_WINDOW_S:
            self._busy.popleft()
        began, before = self._busy[0]
        if not num_actors or now - began < BUSY_WINDOW_S / 4:
            return None
        return min(1.0, (seconds - before) / (now - began) / num_actors)


def _awaited(stages: list[StageFigures]) -> str:
    """Say what is waited for before the first image is decoded."""
    for stage in stages:
        if stage.pending and not stage.actors:
            return (
                f"starting {stage.pending} model actors"
                if stage.pending > 1
                else "starting the model's actor"
            )
    return "reading the first images" if stages else "starting the workers"
