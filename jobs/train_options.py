"""What `pretrain` and `finetune` share: the recipe and the run as options, and what a person sees while it goes."""

import json
import threading
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, validators
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from wordsworth.jobs.options import SourceOptions
from wordsworth.jobs.progress import LINE_EVERY, duration
from wordsworth.pipeline.errors import UserError

DATA = Group("Data")
RECIPE = Group("Recipe")
RUN = Group("Run")
Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Natural = Annotated[int, Parameter(validator=validators.Number(gte=0))]
Positive = Annotated[float, Parameter(validator=validators.Number(gt=0))]
NotNegative = Annotated[float, Parameter(validator=validators.Number(gte=0))]
Share = Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))]


@Parameter(name="*", group=DATA)
@dataclass
class DataOptions:
    """What is learnt from, and what it is tried on."""

    target: str = "cls"
    "Where a class stands: cls or another sidecar or column, json:FIELD, or folder (the key's last one)."
    labels: str | None = None
    "Class names, one a line; else labels.txt beside the shards, if there."
    val: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None
    "Sources that the model is tried on after every epoch, each image once."
    max_error_rate: Share = 0.05
    "Stop when a larger share of an epoch's images cannot be decoded; fewer are skipped and counted."


@Parameter(name="*", group=RECIPE)
@dataclass
class RecipeOptions:
    """How it is trained. --config FILE gives any of it: recipes/ has some."""

    epochs: Count = 90
    batch_size: Count = 256
    "Images in one step, over all workers."
    accumulate: Count = 1
    "Parts in which a worker computes its share of a batch."
    optimizer: Literal["adamw", "sgd"] = "adamw"
    "sgd has a momentum of 0.9."
    lr: Positive = 1e-3
    "The peak of the learning rate."
    weight_decay: NotNegative = 0.1
    beta2: Share = 0.999
    "Of AdamW."
    warmup: NotNegative = 0.1
    "The share of the steps in which the learning rate rises; from 1 on, their number."
    decay: Literal["cosine", "linear", "rsqrt"] = "cosine"
    "How it falls afterwards."
    clip: NotNegative = 1.0
    "The largest norm of a gradient; 0 for any."
    layer_decay: Positive = 1.0
    "The learning rate of a layer, as a share of that of the layer above it."
    ema: Share = 0.0
    "Average the weights: the share that a step keeps, such as 0.9999. The average is what is tried and saved."
    dropout: Share = 0.0
    drop_path: Share = 0.0
    "The share of the last block's branches that is left out; it grows over the depth."
    label_smoothing: Share = 0.0
    loss: Literal["softmax", "sigmoid"] = "softmax"
    crop_scale: Share = 0.35
    "The smallest share of a picture's area that a random crop covers."
    aspect: float = 4 / 3
    "The largest change of a crop's aspect ratio."
    flip: bool = True
    "Mirror every second picture."
    rand_augment: str | None = None
    "timm's name of a RandAugment, such as rand-m10-n2."
    mixup: NotNegative = 0.0
    "Alpha of mixup."
    cutmix: NotNegative = 0.0
    "Alpha of CutMix; with both, one of them for every batch."
    mix_share: Share = 1.0
    "The share of the batches that is mixed."
    erase: Share = 0.0
    "The share of the pictures of which a rectangle becomes noise."
    seed: Natural = 0

    def asked(self) -> dict[str, Any]:
        """For a TrainRequest."""
        from wordsworth.pipeline.training.augment import Augmentation, rand_augment
        from wordsworth.pipeline.training.request import Mixing

        if self.rand_augment:
            rand_augment(self.rand_augment, (128, 128, 128))  # an unknown name is said at once
        names = (
            "epochs",
            "batch_size",
            "accumulate",
            "optimizer",
            "lr",
            "weight_decay",
            "beta2",
            "warmup",
            "decay",
            "clip",
        )
        names += ("layer_decay", "ema", "dropout", "drop_path", "label_smoothing", "loss", "seed")
        return {name: getattr(self, name) for name in names} | {
            "augmentation": Augmentation(self.crop_scale, self.aspect, self.flip, self.rand_augment),
            "mixing": Mixing(self.mixup, self.cutmix, self.mix_share, self.erase),
        }


@Parameter(name="*", group=RUN)
@dataclass
class RunOptions:
    """Where it runs."""

    workers: str = "1"
    "Ray Train workers; LEAST,MOST to go on with as many as there are room for."
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    "auto is bf16 on CUDA and on CPUs that have it."
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sharding: Literal["auto", "ddp", "fsdp"] = "auto"
    "fsdp divides the weights among the workers; auto does so from a billion parameters on."
    activation_checkpointing: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "Compute a block's activations again in the backward pass: less memory, a third more time."
    compile: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "torch.compile, block by block."
    save_every: Natural = 1000
    "Steps between checkpoints within an epoch; one follows an epoch too, ten seconds after another."
    keep: Count = 2
    "Checkpoints that are kept, the last ones."
    address: str | None = None
    "Join the Ray cluster at this address (or RAY_ADDRESS); else a local Ray starts and stops with the command."
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "Print the last epoch's metrics as JSON."

    def asked(self) -> dict[str, Any]:
        """For a TrainRequest."""
        numbers = [part.strip() for part in self.workers.split(",")]
        if (
            not all(part.isdecimal() and int(part) for part in numbers)
            or len(numbers) > 2
            or int(numbers[0]) > int(numbers[-1])
        ):
            raise UserError(
                f"--workers {self.workers}: give a number from 1 on, or LEAST,MOST such as 2,8", exit_code=2
            )
        names = (
            "precision",
            "device",
            "sharding",
            "activation_checkpointing",
            "compile",
            "save_every",
            "keep",
            "address",
        )
        workers = int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))
        return {name: getattr(self, name) for name in names} | {"workers": workers}


def execute(
    asked: dict[str, Any],
    sources: list[str],
    data: DataOptions,
    recipe: RecipeOptions,
    source: SourceOptions,
    run: RunOptions,
) -> int:
    """Train, show it and say the end. asked: what the command itself decides of a TrainRequest."""
    from wordsworth.pipeline.training.request import TrainRequest
    from wordsworth.pipeline.training.survey import class_names
    from wordsworth.vit_model.config import num_params

    _refuse_idle(asked.get("objective", "supervised"), recipe)
    request = TrainRequest(
        sources=tuple(sources),
        val=tuple(data.val or ()),
        target=data.target,
        max_error_rate=data.max_error_rate,
        labels=class_names(data.labels, sources, source.storage)
        if asked.get("objective", "supervised") == "supervised"
        else None,
        **asked,
        **recipe.asked(),
        **run.asked(),
        **source.asked(),
    )
    size = f"{num_params(request.config) / 1e6:.2f} M parameters"
    with TrainProgress(
        f"training {size} for {request.epochs} epochs ({request.objective})", request.epochs
    ) as progress:
        from wordsworth.pipeline.training.trainer import (
            train,  # Ray Train takes seconds to import: the title stands before that
        )

        metrics = train(request, progress.hear)
    if run.json:
        print(json.dumps(metrics, indent=1))
        return 0
    command = "label" if request.classified else "embed"
    tried = (
        f", validation {_quality(metrics, 4, 'val_')} ({metrics['val_images']:,} images)"
        if "val_images" in metrics
        else ""
    )
    Console(highlight=False, soft_wrap=True).print(
        f"model in {request.output}: loss {metrics['loss']}, training {_quality(metrics, 4)}{tried}\n"
        f"curves: {request.output}/curves.png\n"
        f"next: wordsworth {command} SOURCE --output OUT --model {request.output}"
    )
    return 0


def _refuse_idle(objective: str, recipe: RecipeOptions) -> None:
    """What changes classes, or a picture after it became the target, means nothing where the picture itself is the target."""
    names = ("loss", "label_smoothing", "mixup", "cutmix", "mix_share", "erase")
    idle = [name for name in names if getattr(recipe, name) != getattr(type(recipe)(), name)]
    if idle and objective != "supervised":
        raise UserError(
            f"--{idle[0].replace('_', '-')} has no meaning with --objective {objective}: leave it out",
            exit_code=2,
        )


class TrainProgress:
    """Follows a training by its news: a live line on a terminal, one every ten seconds elsewhere, and one an epoch. A context."""

    def __init__(self, title: str, epochs: int):
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.title, self.epochs = title, epochs
        self.begin: tuple[float, int] = (time.monotonic(), 0)
        self.steps = 0
        self.said = 0.0
        self.lock = threading.Lock()
        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
        )
        self.bar = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self.task = self.bar.add_task("the workers start", total=1.0)

    def __enter__(self) -> "TrainProgress":
        self.console.print(self.title, markup=False)
        self.bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self.bar.stop()

    def hear(self, news: dict[str, Any]) -> None:
        """wordsworth.pipeline.training.trainer's Watch."""
        with self.lock:
            hear = {
                "data": self._data,
                "begin": self._begin,
                "note": self._note,
                "step": self._step,
                "epoch": self._epoch,
            }
            hear[news["kind"]](news)

    def _data(self, news: dict[str, Any]) -> None:
        of = f" of {news['classes']:,} classes" if news["classes"] else ""
        tried = f", tried on {news['val_samples']:,}" if news["val_samples"] else ""
        shards = "1 shard" if news["shards"] == 1 else f"{news['shards']:,} shards"
        self.console.print(f"{news['samples']:,} images{of} in {shards}{tried}")

    def _begin(self, news: dict[str, Any]) -> None:
        if not self.steps:
            workers = (
                f"{news['workers']} worker{'s' if news['workers'] > 1 else ''} on {news['device'].upper()}"
            )
            self.console.print(f"{workers}, batches of {news['batch']:,}: {news['images']:,} images an epoch")
        again = f" from step {news['step']:,} (epoch {news['epoch'] + 1})" if news["step"] else ""
        if again or self.steps:
            self.console.print(
                f"{news['workers']} {'worker goes' if news['workers'] == 1 else 'workers go'} on{again}"
            )
        self.begin, self.steps = (time.monotonic(), news["step"]), news["steps"]

    def _note(self, news: dict[str, Any]) -> None:
        self.console.print(news["message"], markup=False)

    def _step(self, news: dict[str, Any]) -> None:
        line = self._line(news)
        if not self.console.is_terminal and time.monotonic() - self.said >= LINE_EVERY:
            self.said = time.monotonic()
            self.console.print(f"{news['step'] / self.steps:4.0%}  {line}")

    def _line(self, news: dict[str, Any]) -> str:
        began, first = self.begin
        left = (time.monotonic() - began) / max(1, news["step"] - first) * (self.steps - news["step"])
        line = f"{duration(left)} left  epoch {news['epoch']}/{self.epochs}  {_figures(news)}"
        self.bar.update(self.task, completed=news["step"] / self.steps, description=line)
        return line

    def _epoch(self, news: dict[str, Any]) -> None:
        self.said = time.monotonic()
        self._line(news)
        tried = (
            f"  validation loss {news['val_loss']:.3f} {_quality(news, 3, 'val_')}"
            if "val_loss" in news
            else ""
        )
        broken = f"  {news['errors']:,} images could not be decoded" if news["errors"] else ""
        self.console.print(f"epoch {news['epoch']:>3}/{self.epochs}  {_figures(news)}{tried}{broken}")


def _figures(news: dict[str, Any]) -> str:
    parts = [f"loss {news['loss']:.3f}", _quality(news, 3), f"lr {news['lr']:.2g}"]
    if "images_per_second" in news:
        parts += [
            f"{news['images_per_second']:,.0f} images/s",
            f"MFU {news['mfu']:.0%}",
            f"data wait {news['data_wait']:.0%}",
        ]
    return "  ".join(parts)


def _quality(metrics: dict[str, Any], digits: int, prefix: str = "") -> str:
    """What the objective says beside its loss: the share of right answers, or of the variance that is explained."""
    name = next(name for name in ("accuracy", "explained") if prefix + name in metrics)
    return f"{name} {metrics[prefix + name]:.{digits}f}"
