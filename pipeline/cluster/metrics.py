"""Give a run's figures to Ray's metrics, from which Prometheus takes them: names `wordsworth_*`.

The driver alone records: it has every receipt of a labelling and all news of a training, so no worker does
anything for a metric. Ray's agent on the driver's node serves them as `ray_wordsworth_*`, counters with
`_total`. A gauge must be set again every few seconds: Ray forgets a gauge of which it hears nothing.
A local Ray has no such agent, and nothing is recorded there.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

TAG_LENGTH = 40  # characters of an output's name in the tag of a run

# Every metric, by its name without `wordsworth_`: what it counts, and the tags beside `run` and `command`.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "images": ("Images of written units.", ()),
    "bytes_read": ("Bytes of the source that written units took.", ()),
    "units": ("Units that were written.", ()),
    "errors": ("Rows with an error, by code.", ("code",)),
    "stage_seconds": ("Seconds that workers spent in a stage, over written units.", ("stage",)),
    "shard_faults": ("Shards that a store did not give to their end.", ()),
    "store_retries": ("Requests that a store was asked again, by the store's address.", ("store",)),
    "failed_tasks": ("Tasks and calls of actors that failed, by stage.", ("stage",)),
    "actor_restarts": ("Model actors that were started again.", ()),
    "train_steps": ("Steps of a training.", ()),
    "train_images": ("Images that a training has learned from.", ()),
    "train_bad_losses": ("Trainings that ended because a loss or a gradient was not a number.", ()),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "running": ("1 while the command runs.", ()),
    "progress": ("Share of the run that is done, from 0 to 1.", ()),
    "seconds_left": ("Seconds that the run will take at the rate of the last minutes.", ()),
    "images_per_second": ("Images a second over the last minutes, of units under way too.", ()),
    "seconds_since_unit": ("Seconds since a unit was written.", ()),
    "queue_depth": ("Units, or shards, that wait for a stage.", ("stage",)),
    "tasks": ("Tasks, or calls of actors, that run in a stage.", ("stage",)),
    "actors": ("Model actors, by state: alive, pending, restarting.", ("state",)),
    "model_busy": ("Share of the time that a model actor was busy, over the last minutes.", ()),
    "batch_size": ("Images in one forward pass.", ()),
    "train_loss": ("Loss over the last steps.", ()),
    "train_validation_loss": ("Loss on the images of --val after the last epoch.", ()),
    "train_probe_linear": ("Accuracy of a linear probe of the encoder on the images of --probe.", ()),
    "train_probe_knn": ("Accuracy of the nearest neighbours on the images of --probe.", ()),
    "train_gradient_norm": ("Norm of the gradient over the last steps.", ()),
    "train_learning_rate": ("Learning rate of the last step.", ()),
    "train_images_per_second": ("Images a second over all workers.", ()),
    "train_data_wait": ("Share of the time in which a worker had no batch.", ()),
    "train_mfu": ("Share of a worker's peak of floating-point operations that the model used.", ()),
    "train_progress": ("Share of the training's steps that are done, from 0 to 1.", ()),
    "train_workers": ("Workers of the training.", ()),
    "train_seconds_since_step": ("Seconds since news of a step came.", ()),
}
RUN_TAGS = ("run", "command")


def run_tag(output: str) -> str:
    """Return a short name of an output for the tag `run`: its last part, and six digits that tell two apart.

    The place itself stands in no metric.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", output.rstrip("/").rpartition("/")[2])[:TAG_LENGTH]
    return f"{name or 'run'}-{hashlib.sha256(output.rstrip('/').encode()).hexdigest()[:6]}"


class RunMetrics:
    """Record the figures of one command."""

    def __init__(self, output: str, command: str):
        """Make the metrics known to Ray.

        Args:
            output: the run's output; only `run_tag` of it is told.
            command: such as "label".
        """
        self._tags = {"run": run_tag(output), "command": command}
        self._metrics: dict[str, Any] = {}
        self._totals: dict[tuple[str, str], float] = {}  # what a counter was told so far

    def add(self, name: str, amount: float, **tags: str) -> None:
        """Add to a counter; nothing where the amount is 0."""
        if amount > 0:
            self._metric(name).inc(amount, tags=self._tags | tags)

    def add_up_to(self, name: str, total: float, **tags: str) -> None:
        """Add to a counter what a total has grown by since it was told last."""
        key = (name, repr(sorted(tags.items())))
        self.add(name, total - self._totals.get(key, 0), **tags)
        self._totals[key] = max(total, self._totals.get(key, 0))

    def set(self, name: str, value: float | None, **tags: str) -> None:
        """Set a gauge; None is no value, and the gauge is forgotten after a while."""
        if value is not None:
            self._metric(name).set(float(value), tags=self._tags | tags)

    def set_all(self, values: Mapping[str, float | None]) -> None:
        """Set several gauges without further tags."""
        for name, value in values.items():
            self.set(name, value)

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            from ray.util import metrics

            kind, known = (metrics.Counter, COUNTERS) if name in COUNTERS else (metrics.Gauge, GAUGES)
            told, tags = known[name]
            self._metrics[name] = kind(f"wordsworth_{name}", told, tag_keys=(*RUN_TAGS, *tags))
        return self._metrics[name]
