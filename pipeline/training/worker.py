"""Train on one Ray Train worker: epochs of steps, validation, checkpoints. Rank 0 sends the news."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pyarrow as pa
import torch

from wordsworth.pipeline.cluster.ray_internals import without_cluster_actors
from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.batches import (
    MOST_NAMED,
    Batch,
    BatchSettings,
    ErrorTally,
    ShardCursor,
    epoch_batches,
    prefetched,
)
from wordsworth.pipeline.training.checkpoints import EpochPlan, EpochPlanner, TrainingProgress
from wordsworth.pipeline.training.collectives import Collectives
from wordsworth.pipeline.training.ending import EndWatch
from wordsworth.pipeline.training.indexed import ContentCheck
from wordsworth.pipeline.training.learning_rate import learning_rate
from wordsworth.pipeline.training.model_folder import ModelFolders, best_after
from wordsworth.pipeline.training.more_epochs import shared_steps
from wordsworth.pipeline.training.news import (
    BeginNews,
    EpochNews,
    NoteNews,
    Probe,
    ProbeNews,
    Rates,
    TrainNews,
    Validation,
    WaitNews,
)
from wordsworth.pipeline.training.news_channel import NewsChannel
from wordsworth.pipeline.training.probe import Prober
from wordsworth.pipeline.training.saving import Checkpoints
from wordsworth.pipeline.training.step import Part
from wordsworth.pipeline.training.step_metrics import StepMetrics, StepReporter
from wordsworth.pipeline.training.stream import StreamSettings, remaining_rows, stream_units
from wordsworth.pipeline.training.survey import assign
from wordsworth.pipeline.training.validation import Validator, shards_of_worker, validation_report
from wordsworth.pipeline.training.worker_model import build_worker_model, find_device, memory_errors_for_user
from wordsworth.pipeline.training.worker_setup import WorkerSetup
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.checkpoint import Checkpoint


def run_worker(setup: WorkerSetup, news: NewsChannel) -> None:
    """Train on one worker, from the last checkpoint or from the beginning to the end.

    Args:
        setup: what the command sends.
        news: brings what happens to the command.
    """
    # The workers drive Ray Data plans of their own.
    ray_data = without_cluster_actors() if setup.is_local else contextlib.nullcontext()
    with memory_errors_for_user(setup.request, setup.device), ray_data:
        _Worker(setup, news).run()


@dataclass
class _Epoch:
    """Hold what this worker has done in an epoch since it started.

    Attributes:
        progress: how far the training is.
        errors: samples of this worker that could not be decoded.
        lr: learning rate of the last step; 0 before the first.
        rates: how fast the steps were; None before the first.
        is_cut: whether the training ends before the end of the epoch, with a checkpoint.
    """

    progress: TrainingProgress
    errors: ErrorTally
    lr: float = 0.0
    rates: Rates | None = None
    is_cut: bool = False


class _Worker:
    """Train on one worker of a set."""

    def __init__(self, setup: WorkerSetup, news: NewsChannel):
        import ray
        import ray.train

        context = ray.train.get_context()
        self.setup = setup
        self.news = news
        self.collectives = Collectives(
            context.get_world_rank(), context.get_world_size(), find_device(setup.device)
        )
        self.rank = self.collectives.rank
        self.request = replace(setup.request, start=Checkpoint.from_bytes(ray.get(setup.weights)))
        self.model = build_worker_model(
            self.request, self.collectives, context.get_local_world_size(), setup.class_use.weights
        )
        self.state = self.model.state
        self.step = self.model.step
        self.folders = ModelFolders(setup, self.state, self.rank)
        self.planner = EpochPlanner(
            shards=setup.train.shards,
            rows=setup.class_use.drawn,
            num_workers=self.collectives.num_workers,
            local_batch=self.model.local_batch,
            seed=self.request.seed,
        )
        self.whole_epoch = self.planner.whole_epoch()
        self.end = EndWatch(self.collectives, news.is_ending)
        self.checkpoints = Checkpoints(setup, self.state, self.folders, self.collectives)
        self.has_named_lost = False
        self.prober = None
        if setup.probe:
            self.prober = Prober(setup.probe, setup.decode, self.step, self.collectives)

    # ---- epochs ----

    def run(self) -> None:
        """Train from the last checkpoint, or from the beginning, to the end, or until told to end."""
        progress, plan = self.planner.resume(self.checkpoints.restored())
        total_steps = self._total_steps(progress, plan)
        self._announce(progress, total_steps)
        if not progress.number:
            self._probe_before()
        units = self._training_units(progress, plan)
        metrics: dict[str, Any] = {}
        while not self._has_ended(progress):
            epoch = self._train_epoch(progress, plan, units, total_steps)
            if epoch.is_cut:
                return
            news = self._epoch_news(epoch)
            metrics = news.figures()
            best = self.folders.write_if_best(epoch.progress.best, news)
            progress = TrainingProgress(epoch=news.epoch, number=epoch.progress.number, best=best)
            self._send(news)
            if progress.number == shared_steps(self.request, total_steps):
                self.checkpoints.save_open_end(progress)
            if not self._has_ended(progress) and (self.end.look() or self.checkpoints.is_late()):
                self.checkpoints.save(progress, metrics)
                if self.end.is_told:
                    return
            progress, plan = self.planner.resume(progress)
        self._note_early_end(progress)
        self.folders.write_last(metrics, progress.best)
        self.folders.remove_others({progress.best[1]} if progress.best else set())

    def _has_ended(self, progress: TrainingProgress) -> bool:
        """Tell whether all epochs are made, or so many without a better one that the training stops early."""
        if progress.epoch >= self.request.epochs:
            return True
        if not self.request.patience or not progress.best:
            return False
        return progress.epoch - progress.best[1] >= self.request.patience

    def _note_early_end(self, progress: TrainingProgress) -> None:
        if progress.best and progress.epoch < self.request.epochs:
            since = f"on --val none is better since epoch {progress.best[1]}"
            patience = f"--patience {self.request.patience}"
            self._send(NoteNews(message=f"stops after epoch {progress.epoch}: {since} ({patience})"))

    def _total_steps(self, progress: TrainingProgress, plan: EpochPlan) -> int:
        """Count the steps of the whole training: those done, those left of this epoch, and whole epochs."""
        if not self.whole_epoch.steps:
            # The first call raises where there are too few shards.
            assign(list(self.planner.shards), self.planner.rows, self.planner.num_workers)
            raise UserError(
                f"no worker has the {self.model.local_batch} samples of its share of a batch: "
                "use a smaller --batch-size"
            )
        later_epochs = self.request.epochs - progress.epoch - 1
        return progress.number + plan.steps - progress.step + later_epochs * self.whole_epoch.steps

    def _announce(self, progress: TrainingProgress, total_steps: int) -> None:
        if self.model.not_compiled:
            why = self.model.not_compiled
            self._send(NoteNews(message=f"--compile does not work here ({why}): goes on without"))
        batch = self.model.local_batch * self.collectives.num_workers
        self._send(
            BeginNews(
                step=progress.number,
                steps=total_steps,
                epoch=progress.epoch,
                epochs=self.request.epochs,
                images=self.whole_epoch.steps * batch,
                workers=self.collectives.num_workers,
                device=self.collectives.device.type,
                batch=batch,
            )
        )
        self._send(WaitNews(what="waiting for the first batch"))

    def _train_epoch(
        self, progress: TrainingProgress, plan: EpochPlan, units: Iterator[Unit], total_steps: int
    ) -> _Epoch:
        """Make the steps that are left of an epoch, or fewer where the training is told to end."""
        request = self.request
        cursor = progress.places[self.rank]
        epoch = _Epoch(progress, ErrorTally(cursor.errors))
        if progress.step >= plan.steps:
            return epoch
        batches = self._batches(progress, plan, units, epoch.errors)
        reporter = StepReporter(self.model.speed, total_steps, progress.epoch, self._send)
        metrics: list[StepMetrics] = []
        for step in range(progress.step, plan.steps):
            with reporter.waiting():
                parts, cursor = _next_parts(batches, request.accumulate)
            epoch.lr = learning_rate(progress.number, total_steps, request.lr, request.warmup, request.decay)
            loss, others = self.step(parts, epoch.lr, progress.number)
            if self.state.average:
                self.state.average.update()
            metrics.append({"loss": loss, **others})
            progress = replace(progress, number=progress.number + 1, step=step + 1)
            reporter.step(metrics, progress.number, epoch.lr)
            is_due = request.save_every and progress.number % request.save_every == 0
            is_open_end = progress.number == shared_steps(request, total_steps)
            if (self.end.step() or is_due or is_open_end) and step + 1 < plan.steps:
                progress = self._save_within_epoch(_summed(progress, metrics, reporter), cursor, is_open_end)
                metrics = []
                if self.end.is_told:
                    epoch.is_cut = True
                    return epoch
        for _ in batches:  # batches are left over where other workers have fewer samples
            pass
        epoch.rates = reporter.rates()
        epoch.progress = _summed(progress, metrics, reporter)
        return epoch

    def _save_within_epoch(
        self, progress: TrainingProgress, cursor: ShardCursor, is_open_end: bool
    ) -> TrainingProgress:
        """Save a checkpoint with the places of all workers, and return the progress that they share."""
        totals = self.collectives.sums(list(progress.sums.values()))
        # Each worker that continues reads the same sums, so each gets the mean over the workers.
        means = {}
        for name, total in zip(progress.sums, totals, strict=True):
            means[name] = total / self.collectives.num_workers
        progress = replace(progress, sums=means)
        with_places = replace(progress, places=self.collectives.gather(cursor))
        self.checkpoints.save(with_places, {})
        if is_open_end:
            self.checkpoints.save_open_end(with_places)
        return progress

    def _epoch_news(self, epoch: _Epoch) -> EpochNews:
        """Return the means over the epoch's steps and all workers, and what --val gives."""
        progress = epoch.progress
        *totals, count, errors = self.collectives.sums(
            [*progress.sums.values(), progress.count, epoch.errors.count]
        )
        self._name_lost(int(errors), epoch.errors.first)
        means = {}
        for name, total in zip(progress.sums, totals, strict=True):
            means[name] = round(total / max(1.0, count), 4)
        number = progress.epoch + 1
        validation = self._validate(number)
        best = best_after(self.request, progress.best, number, validation)
        is_last = self._has_ended(replace(progress, epoch=number, best=best))
        return EpochNews(
            epoch=number,
            step=progress.number,
            means=means,
            lr=epoch.lr,
            rates=epoch.rates,
            errors=int(errors),
            validation=validation,
            probe=self._probe(number, is_last),
        )

    def _name_lost(self, count: int, first: list[str]) -> None:
        """Name the first images that could not be decoded, after the first epoch that has some."""
        if not count or self.has_named_lost:
            return
        self.has_named_lost = True
        names = list(chain(*self.collectives.gather(first)))[:MOST_NAMED]
        more = "" if count <= len(names) else f", and {count - len(names):,} more: wordsworth label names all"
        what = plural(count, "image could not be decoded and is", "images could not be decoded and are")
        self._send(NoteNews(message=f"{what} left out: {', '.join(names)}{more}"))

    def _validate(self, epoch: int) -> Validation | None:
        """Try the model on --val after an epoch, from 1; the average of the weights, if there is one."""
        if not self.setup.val:
            return None
        shards = shards_of_worker(self.setup.val, self.collectives)
        report = validation_report(self._send, self.setup.val, shards, epoch)
        validator = Validator(self.setup, self.step, self.collectives, self.model.part_batch, report)
        with self.state.averaged():
            return validator.validate(self._units_once(shards))

    def _probe(self, epoch: int, is_last: bool = False) -> Probe | None:
        """Probe the encoder after an epoch whose turn it is; the average of the weights, if there is one.

        Args:
            epoch: from 1; 0 is before the first step.
            is_last: whether no epoch follows.
        """
        if not self.prober or not self.prober.is_due(epoch, is_last):
            return None
        with self.state.averaged():
            return self.prober.probe(self._units_once(self.prober.shards()), self.model.part_batch)

    def _probe_before(self) -> None:
        probe = self._probe(0)
        if probe:
            self._send(ProbeNews(probe=probe))

    # ---- data ----

    def _training_units(self, progress: TrainingProgress, plan: EpochPlan) -> Iterator[Unit]:
        """Yield the units of this worker: the rest of this epoch, and then all later epochs."""
        first = remaining_rows([], 0, ShardCursor())
        if plan.steps:
            first = remaining_rows(list(plan.parts[self.rank]), progress.epoch, progress.places[self.rank])
        part = assign(list(self.planner.shards), self.planner.rows, self.planner.num_workers)[self.rank]
        later_epochs = range(progress.epoch + 1, self.request.epochs)
        return self._units(first, part, later_epochs, for_training=True)

    def _units_once(self, shards: list[Shard]) -> Iterator[Unit]:
        """Yield the units of shards once, as the labeler would see their images."""
        if not shards:
            return iter(())
        return self._units(remaining_rows(shards, 0, ShardCursor()), shards, range(0), for_training=False)

    def _units(self, first: pa.Table, part: list[Shard], epochs: range, for_training: bool) -> Iterator[Unit]:
        settings = StreamSettings(
            seed=self.request.seed,
            decode=self.setup.decode,
            reading=self.setup.reading,
            augmentation=self.request.augmentation if for_training else None,
            balance=self.setup.class_use.balance if for_training else None,
            check=self._check(),
        )
        device_type = self.collectives.device.type
        return stream_units(first, part, epochs, settings, self.collectives.num_workers, device_type)

    def _check(self) -> ContentCheck:
        """Return what indexes said of shards, which reading them is to confirm."""
        said = self.setup.train.indexed | (self.setup.val.indexed if self.setup.val else {})
        return ContentCheck(target=self.request.target if self.request.classified else None, digests=said)

    def _batches(
        self, progress: TrainingProgress, plan: EpochPlan, units: Iterator[Unit], errors: ErrorTally
    ) -> Iterator[Batch]:
        """Yield this worker's batches of the rest of an epoch, and count what could not be decoded."""
        part = plan.parts[self.rank]
        samples = sum(self.setup.class_use.drawn[shard.name] for shard in part)
        settings = BatchSettings(
            decode=self.setup.decode,
            target=self.setup.target,
            batch_size=self.model.part_batch,
            seed=(self.request.seed + self.rank, progress.epoch, 1),
            max_errors=self.request.max_error_rate * samples,
        )
        num_batches = (plan.steps - progress.step) * self.request.accumulate
        cursor = progress.places[self.rank]
        return prefetched(epoch_batches(units, len(part), num_batches, settings, cursor, errors))

    # ---- news and checkpoints ----

    def _send(self, news: TrainNews) -> None:
        if self.rank == 0:
            self.news.send(news)


def _next_parts(batches: Iterator[Batch], count: int) -> tuple[list[Part], ShardCursor]:
    """Return the parts of a worker's next batch, and the cursor behind them."""
    drawn = [next(batches) for _ in range(count)]
    return [(batch.patches, batch.classes) for batch in drawn], drawn[-1].cursor


def _summed(
    progress: TrainingProgress, metrics: list[StepMetrics], reporter: StepReporter
) -> TrainingProgress:
    """Return the progress with the metrics of steps in the sums of the epoch.

    Raises:
        UserError: a loss or a gradient is not a number.
    """
    if not metrics:
        return progress
    reporter.check(metrics, progress.number)
    sums = {}
    for name in metrics[0]:
        total = float(torch.stack([step[name].float() for step in metrics]).double().sum())
        sums[name] = total + progress.sums.get(name, 0.0)
    return replace(progress, sums=sums, count=progress.count + len(metrics))
