"""What every Ray Train worker runs: epochs of steps, validation, checkpoints. Rank 0 writes the model folder and speaks for all."""

import contextlib
import copy
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from wordsworth.pipeline.cluster.session import cores
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.prediction.gpu import compute_in, find_gpu, gpu_name, is_out_of_memory, reason
from wordsworth.pipeline.prediction.load_model import publish
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem, patiently
from wordsworth.pipeline.training.checkpoints import Leg, Progress, going_on, load, save
from wordsworth.pipeline.training.request import (
    SHARDED,
    TrainRequest,
    learning_rate,
    objective_of,
    optimizer_of,
)
from wordsworth.pipeline.training.step import Average, Step, flops_of, matrix_peak
from wordsworth.pipeline.training.step_metrics import Said, Speed, StepWatch
from wordsworth.pipeline.training.stream import (
    READERS,
    Drawing,
    Place,
    ahead,
    epoch_batches,
    good,
    resumed,
    training_dataset,
)
from wordsworth.pipeline.training.survey import Survey, assign
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.checkpoint import Checkpoint, save_folder
from wordsworth.vit_model.config import num_params
from wordsworth.vit_model.inference import resolve_precision
from wordsworth.vit_model.parallel import gathered_state_dict, parallelize

SMALL = 1e9  # floating-point operations of an image, below which decoding it takes a core about as long
SAVED_EVERY = 10.0  # seconds from one checkpoint to one after an epoch
RECIPE = (
    "epochs",
    "batch_size",
    "accumulate",
    "lr",
    "weight_decay",
    "warmup",
    "decay",
    "label_smoothing",
    "loss",
    "clip",
    "seed",
)
RECIPE += ("optimizer", "beta2", "layer_decay", "ema", "dropout", "drop_path", "target")


@dataclass(frozen=True)
class Given:
    """What the driver gives to its workers. weights: those to start from, in Ray's store; asked: the settings, for the model
    folder. alone: this is the only machine."""

    request: TrainRequest
    decode: DecodeSettings
    reading: ReadSettings
    train: Survey
    val: Survey | None
    target: Target | None
    device: str
    weights: Any
    board: Any
    asked: dict[str, Any]
    alone: bool


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's function."""
    from wordsworth.pipeline.cluster.ray_internals import (
        on_one_machine,  # Ray Data's plans are driven from here
    )

    given: Given = config["given"]
    with on_one_machine() if given.alone else contextlib.nullcontext(), _enough_memory(given):
        _Worker(given).run()


@contextlib.contextmanager
def _enough_memory(given: Given) -> Iterator[None]:
    """Say in one line that a device has too little memory. That is not tried again: it would come again."""
    import ray.train

    name = gpu_name(_device(given.device))
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        images = given.request.batch_size // (
            given.request.accumulate * ray.train.get_context().get_world_size()
        )
        raise UserError(
            f"{name}: its memory is too small for {images} images at a time: "
            "use a larger --accumulate, --activation-checkpointing, or more --workers"
        ) from error


def _device(device: str) -> torch.device:
    """Return the device of this worker. Raises UserError where Ray has a GPU that torch cannot use: Ray itself would take the
    CPU."""
    if device == "cpu":
        return torch.device("cpu")
    found = find_gpu()
    if found.type != "cuda":
        return found
    from ray.train.torch import get_device

    return get_device()  # which of the node's


class _Worker:
    def __init__(self, given: Given):
        import ray
        import ray.train

        self.given = given
        context = ray.train.get_context()
        self.rank, self.world, self.device = (
            context.get_world_rank(),
            context.get_world_size(),
            _device(given.device),
        )
        compute_in(resolve_precision(given.request.precision, self.device), self.device)
        self.request = replace(given.request, start=Checkpoint.from_bytes(ray.get(given.weights)))
        self.part = self.request.batch_size // (
            self.world * self.request.accumulate
        )  # images in one pass of this worker
        self.local = self.part * self.request.accumulate
        model = objective_of(self.request).to(self.device)
        flops = flops_of(model, self.request.config.patch_dim, self.request.config.num_patches)
        if (
            self.device.type == "cpu"
        ):  # what decodes small pictures needs a core: threads that wait for each other wait for it too
            torch.set_num_threads(max(1, (cores() - (flops < SMALL)) // context.get_local_world_size()))
        self.eager_because = self._why_not_compiled(model) if self.request.compile else ""
        self.model = self._distributed(model)
        self.optimizer = optimizer_of(self.model, self.request)
        self.average = Average(self.model, self.request.ema) if self.request.ema else None
        self.step = Step(self.model, self.optimizer, self.request, self.device, self.rank)
        self.saved = time.monotonic()
        peak = matrix_peak(self.device, torch.bfloat16 if self.step.bf16 else torch.float32)
        self.speed = Speed(self.local, self.world, flops, peak)
        self.checkpoint: Path | None = None  # that is on its way to the output
        self.kept: set[int] = set()  # epochs whose models a checkpoint calls the best

    def _distributed(self, model: torch.nn.Module) -> torch.nn.Module:
        from ray.train.torch import prepare_model
        from torch.distributed.device_mesh import init_device_mesh

        request, mesh = self.request, None
        if request.sharding == "fsdp" or (
            request.sharding == "auto" and self.world > 1 and num_params(request.config) > SHARDED
        ):
            mesh = init_device_mesh(self.device.type, (self.world,))
        compile = request.compile and not self.eager_because
        parallelize(
            model, activation_checkpointing=request.activation_checkpointing, compile=compile, mesh=mesh
        )
        return model if mesh else prepare_model(model, move_to_device=False)

    def _why_not_compiled(self, model: torch.nn.Module) -> str:
        """Try compiled blocks on a batch of zeros: why they do not run here or on another worker, or "". What was compiled is
        kept."""
        trial, request = copy.deepcopy(model), self.request
        parallelize(trial, activation_checkpointing=request.activation_checkpointing, compile=True)
        pixels = torch.zeros(
            self.part, request.config.num_patches, request.config.patch_dim, device=self.device
        )
        classes = torch.zeros(self.part, dtype=torch.long, device=self.device)
        bf16 = resolve_precision(request.precision, self.device) == "bf16"
        told = ""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                loss, _ = trial(pixels, pixels=pixels, classes=classes)
            loss.backward()
        except Exception as error:  # a compiler's, which can be of any kind
            told = reason(error)
        return (told or "on another worker") if self._most(bool(told)) else ""

    # ---- epochs ----

    def run(self) -> None:
        request, survey = self.request, self.given.train
        progress, leg = going_on(
            self._restored(), list(survey.shards), survey.rows, self.world, self.local, request.seed
        )
        full = Leg.of(survey.shards, survey.rows, self.world, self.local, 0, request.seed)
        if not full.steps:
            assign(list(survey.shards), survey.rows, self.world)  # says it if there are too few shards
            raise UserError(
                f"no worker has the {self.local} samples of its share of a batch: use a smaller --batch-size"
            )
        steps = (
            progress.number + leg.steps - progress.step + (request.epochs - progress.epoch - 1) * full.steps
        )
        used = full.steps * self.local * self.world  # images of an epoch
        begun = {
            "step": progress.number,
            "steps": steps,
            "epoch": progress.epoch,
            "epochs": request.epochs,
            "images": used,
        }
        if self.eager_because:
            self._say("note", message=f"--compile does not work here ({self.eager_because}): goes on without")
        self._say(
            "begin", **begun, workers=self.world, device=self.device.type, batch=self.local * self.world
        )
        units = self._units(progress, leg)
        metrics: dict[str, Any] = {}
        while progress.epoch < request.epochs:
            progress = self._epoch(progress, leg, units, steps)
            metrics = self._epoch_metrics(progress)
            best = self._best(progress, metrics)
            progress = Progress(progress.epoch + 1, progress.number, best=best)
            self._say("epoch", **metrics)
            if progress.epoch < request.epochs and self._most(
                int(time.monotonic() - self.saved > SAVED_EVERY)
            ):
                self._save(progress, metrics)
            progress, leg = going_on(
                progress, list(survey.shards), survey.rows, self.world, self.local, request.seed
            )
        self._write(request.output, metrics)
        self._tidy({progress.best[1]} if progress.best else set())

    def _epoch(self, progress: Progress, leg: Leg, units: Iterator[Unit], steps: int) -> Progress:
        """The steps that are left of a leg."""
        self.lr, self.rates, self.errors = 0.0, {}, progress.places[self.rank].errors
        if progress.step >= leg.steps:
            return progress
        request, place = self.request, progress.places[self.rank]
        most = request.max_error_rate * sum(
            self.given.train.rows[shard.name] for shard in leg.parts[self.rank]
        )
        seed = (request.seed + self.rank, progress.epoch, 1)
        drawing = Drawing(self.given.decode, self.given.target, self.part, seed, most)
        count = (leg.steps - progress.step) * request.accumulate
        batches = ahead(epoch_batches(units, len(leg.parts[self.rank]), count, drawing, place))
        watch = StepWatch(self.speed, steps, progress.epoch, self._say)
        said: Said = []
        for step in range(progress.step, leg.steps):
            parts = []
            with watch.waiting():
                for _ in range(request.accumulate):
                    patches, classes, place = next(batches)
                    parts.append((patches, classes))
            lr = learning_rate(progress.number, steps, request.lr, request.warmup, request.decay)
            loss, metrics = self.step(parts, lr, progress.number)
            if self.average:
                self.average.update()
            said.append({"loss": loss, **metrics})
            progress = replace(progress, number=progress.number + 1, step=step + 1)
            watch.step(said, progress.number, lr)
            if request.save_every and progress.number % request.save_every == 0 and step + 1 < leg.steps:
                progress = self._summed(progress, said, watch)
                sums = dict(zip(progress.sums, self._added(list(progress.sums.values())), strict=True))
                progress = replace(
                    progress, sums={name: value / self.world for name, value in sums.items()}
                )  # all will read these
                self._save(replace(progress, places=self._places(place)), {})
                said = []
        for _ in batches:  # what is over, where other workers have fewer samples
            pass
        self.lr, self.rates, self.errors = lr, watch.rates(), place.errors
        return self._summed(progress, said, watch)

    def _summed(self, progress: Progress, said: Said, watch: StepWatch) -> Progress:
        """What steps said joins the sums of the epoch."""
        if not said:
            return progress
        sums = {
            name: float(torch.stack([one[name].float() for one in said]).double().sum()) for name in said[0]
        }
        watch.check(said, progress.number)
        sums = {name: value + progress.sums.get(name, 0.0) for name, value in sums.items()}
        return replace(progress, sums=sums, count=progress.count + len(said))

    def _epoch_metrics(self, progress: Progress) -> dict[str, Any]:
        """The means over the epoch's steps and all workers, and what --val says."""
        names = list(progress.sums)
        *sums, count, errors = self._added(
            [progress.sums[name] for name in names] + [progress.count, self.errors]
        )
        means = {name: round(value / max(1.0, count), 4) for name, value in zip(names, sums, strict=True)}
        found = {
            "epoch": progress.epoch + 1,
            "step": progress.number,
            **means,
            "lr": self.lr,
            **self.rates,
            "errors": int(errors),
        }
        return found | self._validated()

    # ---- data ----

    def _units(self, progress: Progress, leg: Leg) -> Iterator[Unit]:
        request, survey = self.request, self.given.train
        first = (
            resumed(list(leg.parts[self.rank]), progress.epoch, progress.places[self.rank])
            if leg.parts
            else None
        )
        part = assign(list(survey.shards), survey.rows, self.world)[self.rank]
        first = first if first is not None and leg.steps else resumed([], 0, Place())
        rest = range(progress.epoch + 1, request.epochs)
        return self._stream(first, part, rest, request.augmentation)

    def _stream(self, first, part, epochs: range, augmentation) -> Iterator[Unit]:
        import ray
        from ray.data import DataContext

        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True  # the seed decides the order, not the speed
        available = ray.cluster_resources()
        cpus = available["CPU"] - self.world
        context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
            cpu=max(2.0, cpus / self.world),
            object_store_memory=available["object_store_memory"] / 2 / self.world,
        )
        # On CPUs it is the model that takes them, and every process that reads or decodes too takes seconds of one to start.
        tasks = (
            (READERS, None)
            if self.device.type != "cpu"
            else (1, max(2, int(available["CPU"] / 2 / self.world)))
        )
        with DataContext.current(context):
            dataset = training_dataset(
                first,
                part,
                epochs,
                self.request.seed,
                self.given.decode,
                augmentation,
                self.given.reading,
                tasks,
            )
        return map(
            Unit.from_arrow, dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        )

    def _validated(self) -> dict[str, Any]:
        """Every validation image counted once, whatever the number of workers; of the averaged weights, if there are any."""
        if not self.given.val:
            return {}
        val, decode = self.given.val, self.given.decode
        shards = list(val.shards)
        parts = (
            assign(shards, val.rows, self.world)
            if len(shards) >= self.world
            else [[shard] for shard in shards]
        )
        mine = parts[self.rank] if self.rank < len(parts) else []
        units = self._stream(resumed(mine, 0, Place()), mine, range(0), None) if mine else iter(())
        sums, images, rows = {}, 0, 0

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            nonlocal rows
            for unit in units:
                patches, classes = good(unit, decode, self.given.target)
                rows += len(unit.samples)
                for at in range(0, len(classes), self.part):
                    yield patches[at : at + self.part], classes[at : at + self.part]

        with self.average.applied() if self.average else contextlib.nullcontext():
            for number, (patches, classes, mine) in enumerate(self._together(batches())):
                loss, metrics = self.step.score(patches, classes, number)
                count = len(classes) if mine else 0
                images += count
                for name, value in {"loss": loss, **metrics}.items():
                    sums[name] = sums.get(name, 0.0) + count * float(value)
            if self.step.sharded:
                self.model.reshard()  # the root keeps its weights from a forward pass on: those of the average
        names = ("loss", "accuracy" if self.request.objective != "mae" else "explained")
        *totals, images, rows = self._added([sums.get(name, 0.0) for name in names] + [images, rows])
        if not images:
            raise UserError("no image of --val could be decoded: wordsworth lint says why")
        found = {f"val_{name}": round(total / images, 6) for name, total in zip(names, totals, strict=True)}
        return found | {"val_images": int(images), "val_errors": int(rows - images)}

    def _together(
        self, batches: Iterator[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
        """The batches, and whether they are this worker's own: FSDP gathers weights in every pass, so that with it all workers must
        make as many passes as the one that has the most."""
        nothing = np.zeros((1, *self.given.decode.patches_shape), np.uint8), np.zeros(1, np.int64)
        while True:
            batch = next(batches, None)
            if not (self._most(batch is not None) if self.step.sharded else batch is not None):
                return
            yield *(nothing if batch is None else batch), batch is not None

    # ---- between workers ----

    def _added(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        return total.cpu().tolist()

    def _most(self, value: int) -> int:
        most = torch.tensor(value, device=self.device)
        if self.world > 1:
            dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def _places(self, place: Place) -> tuple[Place, ...]:
        places = [place] * self.world
        if self.world > 1:
            dist.all_gather_object(places, place)
        return tuple(places)

    def _say(self, kind: str, **news: Any) -> None:
        import ray

        if self.rank == 0:
            with contextlib.suppress(
                ray.exceptions.RayActorError
            ):  # a driver that is gone; its controller ends this
                ray.get(self.given.board.put.remote({"kind": kind, **news}))

    # ---- what is kept ----

    def _restored(self) -> Progress:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return Progress()
        with checkpoint.as_directory() as folder:
            return load(self.model, self.optimizer, self.average, folder)

    def _save(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """A checkpoint, which Ray Train uploads while training goes on; one at a time."""
        import ray.train
        from ray.train import Checkpoint as Folder
        from ray.train import CheckpointUploadMode

        while (
            self.checkpoint and self.checkpoint.exists()
        ):  # Ray gives nothing to wait on, and ends this worker if an upload fails
            time.sleep(0.05)
        self.saved = time.monotonic()
        folder = self.checkpoint = save(self.model, self.optimizer, self.average, progress, self.rank)
        ray.train.report(
            metrics,
            checkpoint=Folder.from_directory(folder),
            checkpoint_dir_name=f"step-{progress.number:09d}-epoch-{progress.epoch}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
        best = {progress.best[1]} if progress.best else set()
        self._tidy(self.kept | best)
        self.kept = best

    def _best(self, progress: Progress, metrics: dict[str, Any]) -> tuple[float, int] | None:
        """Keeps the model of the best epoch beside the output, if there is one to tell by."""
        if "val_loss" not in metrics:
            return None
        score = metrics["val_accuracy"] if self.request.classified else -metrics["val_loss"]
        if progress.best and score <= progress.best[0]:
            return progress.best
        self._write(f"{self.request.output}/best-epoch-{metrics['epoch']}", metrics)
        return score, metrics["epoch"]

    def _tidy(self, kept: set[int]) -> None:
        """Models of other epochs than those go: no checkpoint that one could go on from calls them the best."""
        if self.rank:
            return
        fs, path = open_filesystem(self.request.output, self.request.storage_options)
        for folder in fs.glob(f"{path.rstrip('/')}/best-epoch-*"):
            if int(folder.rpartition("-")[2]) not in kept:
                with contextlib.suppress(FileNotFoundError):
                    fs.rm(folder, recursive=True)

    def _write(self, uri: str, metrics: dict[str, Any]) -> None:
        """A model folder, wherever that is. On a cluster the output must be storage that every node sees."""
        with self.average.applied() if self.average else contextlib.nullcontext():
            state = gathered_state_dict(self.model)
            if (
                self.average
            ):  # on a CPU they are the parameters themselves, which will have their own values again
                state = {name: tensor.clone() for name, tensor in state.items()}
        if self.rank:
            return
        request = self.request
        extra = {
            "objective": request.objective,
            "recipe": {name: getattr(request, name) for name in RECIPE},
            "settings": self.given.asked,
            "data": {
                "digest": self.given.train.digest,
                "samples": self.given.train.total,
                "shards": len(self.given.train.shards),
            },
            "versions": {"wordsworth": version("wordsworth"), "torch": torch.__version__},
            "metrics": metrics,
        }
        names = [name for name in state if name.startswith("encoder.")]
        weights = {name.removeprefix("encoder."): state[name].float() for name in names}
        checkpoint = Checkpoint(request.config, request.preprocessing, request.labels, weights, extra)
        fs, path = open_filesystem(uri, request.storage_options)
        if is_local(fs):
            save_folder(path, checkpoint)
            return
        folder = tempfile.mkdtemp()
        try:
            save_folder(folder, checkpoint)
            patiently(lambda: publish(Path(folder), uri, request.storage_options))
        finally:
            shutil.rmtree(folder)
