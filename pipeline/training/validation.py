"""Try the model on the images of --val: every image is counted once, whatever the number of workers."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from wordsworth.pipeline.errors import NAMES_THE_IMAGES, UserError
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.batches import decoded
from wordsworth.pipeline.training.collectives import Collectives
from wordsworth.pipeline.training.news import TrainNews, Validation, ValidationNews
from wordsworth.pipeline.training.step import Part, Step
from wordsworth.pipeline.training.step_metrics import REPORT_EVERY_S
from wordsworth.pipeline.training.survey import Survey, assign
from wordsworth.pipeline.training.worker_setup import WorkerSetup
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.recall import ClassRecall

Item = TypeVar("Item")


def shards_of_worker(val: Survey, collectives: Collectives) -> list[Shard]:
    """Return the shards that this worker validates; none where there are fewer shards than workers."""
    shards = list(val.shards)
    if len(shards) >= collectives.num_workers:
        return assign(shards, val.rows, collectives.num_workers)[collectives.rank]
    return shards[collectives.rank : collectives.rank + 1]


def validation_report(
    send: Callable[[TrainNews], None], val: Survey, shards: list[Shard], epoch: int
) -> Callable[[int], None]:
    """Tell that a validation begins, and return what tells, every few seconds, how far a worker's part is.

    Args:
        send: takes the news.
        val: what --val holds.
        shards: of it, those of this worker.
        epoch: the epoch that is validated, from 1.

    Returns:
        A function of the number of images that the worker has tried.
    """
    of_images = sum(val.rows[shard.name] for shard in shards)
    sent = -REPORT_EVERY_S

    def report(images: int) -> None:
        nonlocal sent
        if time.monotonic() - sent >= REPORT_EVERY_S:
            sent = time.monotonic()
            tell(images)

    def tell(images: int) -> None:
        send(ValidationNews(epoch=epoch, images=images, of_images=of_images, all_images=val.total))

    tell(0)  # its first batch may take seconds to come
    return report


class Validator:
    """Score the validation images of one worker, and add up the scores of all workers."""

    def __init__(
        self,
        setup: WorkerSetup,
        step: Step,
        collectives: Collectives,
        batch_size: int,
        on_images: Callable[[int], None],
    ):
        """Keep the arguments.

        Args:
            setup, step, collectives: of the worker.
            batch_size: images in one pass.
            on_images: told after each pass how many images this worker has tried.
        """
        self.on_images = on_images
        self.setup = setup
        self.step = step
        self.collectives = collectives
        self.batch_size = batch_size
        self.rows = 0  # samples that were read

    def validate(self, units: Iterator[Unit]) -> Validation:
        """Return the means over the images of all workers.

        Args:
            units: the decoded units of this worker's validation shards.

        Raises:
            UserError: no image could be decoded.
        """
        self.rows = 0
        images = 0
        sums: dict[str, float] = {}
        num_classes = self.setup.request.config.num_classes
        recall = ClassRecall(np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64))
        empty = np.zeros((1, *self.setup.decode.patches_shape), np.uint8), np.zeros(1, np.int64)
        for number, batch in enumerate(in_step(self._batches(units), self.collectives, self.step.sharded)):
            patches, classes = batch or empty
            loss, metrics = self.step.score(patches, classes, number)
            count = len(classes) if batch else 0
            images += count
            self.on_images(images)
            right = metrics.pop("right", None)
            if right is not None and batch:
                recall.add(classes, right.cpu().numpy())
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + count * float(value)
        names = ["loss", "explained" if self.setup.request.objective == "mae" else "accuracy"]
        own = [sums.get(name, 0.0) for name in names]
        *totals, all_images, all_rows = self.collectives.sums([*own, images, self.rows])
        if not all_images:
            raise UserError(f"no image of --val could be decoded: {NAMES_THE_IMAGES}")
        means = {name: round(total / all_images, 6) for name, total in zip(names, totals, strict=True)}
        shares = None
        if num_classes:
            recall = self._of_all_workers(recall)
            means["balanced_accuracy"] = round(recall.balanced_accuracy, 6)
            shares = recall.shares
        return Validation(
            means=means, images=int(all_images), errors=int(all_rows - all_images), recall=shares
        )

    def _of_all_workers(self, recall: ClassRecall) -> ClassRecall:
        images = self.collectives.sums(recall.images.tolist())
        right = self.collectives.sums(recall.right.tolist())
        return ClassRecall(np.array(images, np.int64), np.array(right, np.int64))

    def _batches(self, units: Iterator[Unit]) -> Iterator[Part]:
        """Yield the decoded samples in batches, and count all samples."""
        for unit in units:
            patches, classes = decoded(unit, self.setup.decode, self.setup.target)
            self.rows += len(unit.samples)
            for begin in range(0, len(classes), self.batch_size):
                end = begin + self.batch_size
                yield patches[begin:end], classes[begin:end]


def in_step(batches: Iterator[Item], collectives: Collectives, sharded: bool) -> Iterator[Item | None]:
    """Yield a worker's batches; where FSDP gathers weights in every pass, as often as the other workers.

    With FSDP all workers make as many passes as the one with the most batches. A worker that has no batch
    left gets None, and passes an empty image.
    """
    while True:
        batch = next(batches, None)
        is_own = batch is not None
        goes_on = collectives.any(is_own) if sharded else is_own
        if not goes_on:
            return
        yield batch
