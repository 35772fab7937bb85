"""Declare the options that `pretrain` and `finetune` share, and run a training for them."""

import json
import math
from dataclasses import dataclass, field, fields
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cyclopts import Group, Parameter, validators

from wordsworth.jobs.cluster_options import WorkersOptions
from wordsworth.jobs.options import Flag, SourceOptions
from wordsworth.jobs.terminal import Terminal
from wordsworth.jobs.train_progress import TrainProgress
from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.training.news import EpochNews, Means, quality

if TYPE_CHECKING:
    from wordsworth.pipeline.training.request import TrainRequest

DATA = Group("Data")
RECIPE = Group("Recipe")
RUN = Group("Run")

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Natural = Annotated[int, Parameter(validator=validators.Number(gte=0))]
Positive = Annotated[float, Parameter(validator=validators.Number(gt=0, lt=math.inf))]
NotNegative = Annotated[float, Parameter(validator=validators.Number(gte=0, lt=math.inf))]
Share = Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))]
BelowOne = Annotated[float, Parameter(validator=validators.Number(gte=0, lt=1))]
PositiveShare = Annotated[float, Parameter(validator=validators.Number(gt=0, lte=1))]
Factor = Annotated[float, Parameter(validator=validators.Number(gte=1, lt=math.inf))]
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**63))]
ModelFolder = Annotated[
    str,
    Parameter(alias="-o", help="The model folder. The same command again continues an unfinished training."),
]

# Metadata of options. An option without metadata is the field of that name in TrainRequest.
AUGMENTATION = {"part": "augmentation"}  # a field of Augmentation
MIXING = {"part": "mixing", "needs_classes": True}  # a field of Mixing
NEEDS_CLASSES = {"needs_classes": True}  # means nothing where the image itself is the target
NOT_ASKED = {"asked": False}  # no part of the request


@Parameter(name="*", group=DATA)
@dataclass
class DataOptions:
    """Say what the model learns from, and what it is tried on."""

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
    """Say how the model is trained. --config FILE gives any of it: recipes/ has some."""

    default_batch: ClassVar[int] = 256

    epochs: Count = 90
    "How often the model sees every image."
    batch_size: Count | None = None
    "Images in one step, over all workers: 256, if not given, or fewer where there are fewer images."
    accumulate: Count = 1
    "Parts in which a worker computes its share of a batch."
    optimizer: Literal["adamw", "sgd"] = "adamw"
    "sgd has a momentum of 0.9."
    lr: Positive = 1e-3
    "The peak of the learning rate."
    weight_decay: NotNegative = 0.1
    "Of AdamW and SGD, for matrices alone."
    beta2: BelowOne = 0.999
    "Of AdamW."
    warmup: NotNegative = 0.1
    "The share of the steps in which the learning rate rises; from 1 on, their number."
    decay: Literal["cosine", "linear", "rsqrt", "constant"] = "cosine"
    "How the learning rate falls afterwards."
    clip: NotNegative = 1.0
    "The largest norm of a gradient; 0 for any."
    layer_decay: Positive = 1.0
    "The learning rate of a layer, as a share of that of the layer above it."
    ema: BelowOne = 0.0
    "Average the weights: the share that a step keeps, such as 0.9999. The average is tried and saved."
    dropout: BelowOne = 0.0
    "The share of the activations that is left out in training."
    drop_path: BelowOne = 0.0
    "The share of the last block's branches that is left out; it grows over the depth."
    label_smoothing: BelowOne = field(default=0.0, metadata=NEEDS_CLASSES)
    "The share of a target that is spread over all classes."
    loss: Literal["softmax", "sigmoid"] = field(default="softmax", metadata=NEEDS_CLASSES)
    "softmax for one class an image; sigmoid takes each class for itself."
    class_weights: str = field(default="none", metadata=NEEDS_CLASSES)
    """Weights of the classes in the loss: none for all the same, balanced for each as much as any other, or
    FILE with a line CLASS,WEIGHT for each class."""
    balance: Annotated[bool, Flag] = field(default=False, metadata=NEEDS_CLASSES)
    "Draw images of rare classes several times in an epoch, so that all classes come equally often."
    crop_scale: PositiveShare = field(default=0.35, metadata=AUGMENTATION)
    "The smallest share of an image's area that a random crop covers."
    aspect: Factor = field(default=4 / 3, metadata=AUGMENTATION)
    "The largest change of a crop's aspect ratio."
    flip: bool = field(default=True, metadata=AUGMENTATION)
    "Mirror every second image."
    rand_augment: str | None = field(default=None, metadata=AUGMENTATION)
    "timm's name of a RandAugment, such as rand-m10-n2."
    mixup: NotNegative = field(default=0.0, metadata=MIXING)
    "Alpha of mixup."
    cutmix: NotNegative = field(default=0.0, metadata=MIXING)
    "Alpha of CutMix; with both, one of them for every batch."
    mix_share: Share = field(default=1.0, metadata=MIXING | {"name": "share"})
    "The share of the batches that is mixed."
    erase: Share = field(default=0.0, metadata=MIXING)
    "The share of the images of which a rectangle becomes noise."
    keep_best: Annotated[bool, Flag] = False
    "Take the model of the epoch that is best on --val, not of the last one."
    patience: Natural = 0
    "Stop after so many epochs that are no better on --val than the best one; 0 to make all epochs."
    seed: Seed = 0
    "Decides all that is random: the first weights, the order of the images, their crops."

    def asked(self) -> dict[str, Any]:
        """Return the recipe as fields of a TrainRequest.

        Raises:
            UserError: timm does not know the RandAugment.
        """
        from wordsworth.pipeline.training.augment import Augmentation, rand_augment
        from wordsworth.pipeline.training.request import Mixing

        if self.balance and self.class_weights == "balanced":
            raise UserError(
                "--balance and --class-weights balanced both make up for rare classes: choose one",
                exit_code=2,
            )
        if self.rand_augment:
            rand_augment(self.rand_augment, (128, 128, 128))
        asked: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {"augmentation": {}, "mixing": {}}
        for option in fields(self):
            if not option.metadata.get("asked", True):
                continue
            part = parts.get(option.metadata.get("part", ""), asked)
            part[option.metadata.get("name", option.name)] = getattr(self, option.name)
        asked["batch_size"] = self.batch_size or self.default_batch
        asked["is_batch_asked"] = self.batch_size is not None
        asked["augmentation"] = Augmentation(**parts["augmentation"])
        asked["mixing"] = Mixing(**parts["mixing"])
        return asked

    def check_needed(self, objective: str) -> None:
        """Check that no option is given that means nothing with the objective.

        Raises:
            UserError: an option needs classes, and the objective has none.
        """
        if objective == "supervised":
            return
        for option in fields(self):
            is_given = getattr(self, option.name) != option.default
            if option.metadata.get("needs_classes") and is_given:
                flag = f"--{option.name.replace('_', '-')}"
                raise UserError(
                    f"{flag} has no meaning with --objective {objective}: leave it out", exit_code=2
                )

    def check_val(self, val: list[str] | None) -> None:
        """Check that an option that compares epochs has images to compare them on.

        Raises:
            UserError: there is no --val.
        """
        for flag, is_given in (("--keep-best", self.keep_best), ("--patience", self.patience > 0)):
            if is_given and not val:
                raise UserError(f"{flag} compares epochs on --val SOURCE: give one", exit_code=2)


@Parameter(name="*", group=RUN)
@dataclass
class RunOptions:
    """Say where the training runs."""

    workers: str = "1"
    "Ray Train workers; LEAST,MOST to continue with as many as there is room for."
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    "auto is bf16 on CUDA and on CPUs that have it."
    device: Literal["auto", "cpu", "cuda"] = "auto"
    "auto takes the GPUs that Ray has."
    sharding: Literal["auto", "ddp", "fsdp"] = "auto"
    "fsdp divides the weights among the workers; auto does so from a billion parameters on."
    activation_checkpointing: Annotated[bool, Flag] = False
    "Compute a block's activations again in the backward pass: less memory, a third more time."
    compile: Annotated[bool, Flag] = False
    "torch.compile, block by block."
    save_every: Natural = 1000
    "Write a checkpoint every N steps within an epoch; 0 for none. One is written after an epoch too."
    keep: Count = 2
    "Checkpoints that are kept, the last ones."
    json: Annotated[bool, Flag] = field(default=False, metadata=NOT_ASKED)
    "Print the last epoch's metrics as JSON."

    def asked(self) -> dict[str, Any]:
        """Return the options as fields of a TrainRequest.

        Raises:
            UserError: --workers is neither a number nor two.
        """
        asked = {}
        for option in fields(self):
            if option.metadata.get("asked", True):
                asked[option.name] = getattr(self, option.name)
        return asked | {"workers": self._workers()}

    def _workers(self) -> int | tuple[int, int]:
        parts = [part.strip() for part in self.workers.split(",")]
        numbers = [int(part) for part in parts if part.isdecimal()]
        if len(numbers) == len(parts) and 0 not in numbers:
            if len(numbers) == 1:
                return numbers[0]
            if len(numbers) == 2 and numbers[0] <= numbers[1]:
                return numbers[0], numbers[1]
        raise UserError(
            f"--workers {self.workers}: give a number from 1 on, or LEAST,MOST such as 2,8", exit_code=2
        )


@dataclass(kw_only=True)
class TrainOptions:
    """Hold the options of one training command."""

    data: DataOptions
    recipe: RecipeOptions
    source: SourceOptions
    run: RunOptions
    cluster: WorkersOptions


def train_request(sources: list[str], asked: dict[str, Any], options: TrainOptions) -> "TrainRequest":
    """Return what a training is asked to do.

    Args:
        sources: what the model learns from.
        asked: the fields of a TrainRequest that the command itself decides.
        options: all other fields.
    """
    places = [*sources, *(options.data.val or ()), *asked.get("probe", ())]
    options.source.check(*places, output=asked["output"], is_new=True)
    from wordsworth.pipeline.training.class_balance import read_class_weights
    from wordsworth.pipeline.training.classes import class_names
    from wordsworth.pipeline.training.request import TrainRequest

    objective = asked.get("objective", "supervised")
    options.recipe.check_needed(objective)
    data = options.data
    if data.labels and objective != "supervised":
        raise UserError(f"--labels has no meaning with --objective {objective}: leave it out", exit_code=2)
    options.recipe.check_val(data.val)
    labels = None
    recipe = options.recipe.asked()
    recipe["class_weights"] = read_class_weights(options.recipe.class_weights, options.source.storage)
    if objective == "supervised":
        labels = class_names(data.labels, sources, options.source.storage)
    return TrainRequest(
        sources=tuple(sources),
        val=tuple(data.val or ()),
        target=data.target,
        max_error_rate=data.max_error_rate,
        labels=labels,
        **asked,
        **recipe,
        **options.run.asked(),
        **options.source.asked(),
        cluster=options.cluster.request,
    )


def run_training(request: "TrainRequest", as_json: bool) -> int:
    """Train, show how it goes, print the end, and return the exit code."""
    from wordsworth.vit_model.cost import num_params

    size = f"{num_params(request.config) / 1e6:.2f} M parameters"
    epochs = "1 epoch" if request.epochs == 1 else f"{request.epochs:,} epochs"
    title = f"training {size} for {epochs} ({request.objective})"
    with TrainProgress(title, request.epochs) as progress:
        # Ray Train takes seconds to import: the title stands there before.
        from wordsworth.pipeline.training.metrics_log import can_draw
        from wordsworth.pipeline.training.trainer import train

        last = train(request, progress.on_news)
    if as_json:
        print(json.dumps(last.to_json(), indent=1))
        return 0
    facts = {"model": request.output} | _summary(last) | _left_out(last)
    if can_draw():
        facts["curves"] = f"{request.output}/curves.png"
    command = "label" if request.classified else "embed"
    facts["next"] = f"wordsworth {command} SOURCE --output OUT --model {quote(request.output)}"
    Terminal().print_facts(facts)
    return 0


def _summary(last: EpochNews) -> dict[str, str]:
    """Return how an epoch ended, by names."""
    facts = {"training": f"epoch {last.epoch}, loss {last.means['loss']}, {_quality(last.means)}"}
    if last.validation:
        means = last.validation.means
        balanced = ""
        if "balanced_accuracy" in means:
            balanced = f", balanced {means['balanced_accuracy']:.4f}"
        facts["validation"] = f"{_quality(means)}{balanced} ({plural(last.validation.images, 'image')})"
    if last.probe:
        facts["probe"] = f"linear {last.probe.linear:.4f}, k-NN {last.probe.knn:.4f}"
    return facts


def _left_out(last: EpochNews) -> dict[str, str]:
    """Return how many images could not be decoded; nothing where all could."""
    facts = {}
    if last.errors:
        facts["left out"] = _undecoded(last.errors)
    if last.validation and last.validation.errors:
        facts["left out of --val"] = _undecoded(last.validation.errors)
    return facts


def _undecoded(count: int) -> str:
    return f"{plural(count, 'image')} that could not be decoded: wordsworth label names them"


def _quality(means: Means) -> str:
    name, value = quality(means)
    return f"{name} {value:.4f}"
