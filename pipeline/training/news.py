"""Tell the command how a training goes: typed records that workers send by `news_channel`.

Importing this imports nothing heavy, because the command and the actor behind the channel start with it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

NOT_A_NUMBER = "is not a number"  # part of the message about the loss that ends a training
PROBE = "probe_"  # what the names of a probe's figures begin with

Means = dict[str, float]  # figures of an objective: loss, accuracy or explained, gradient_norm


def quality(means: Means) -> tuple[str, float]:
    """Return name and value of the figure that stands beside the loss."""
    name = "accuracy" if "accuracy" in means else "explained"
    return name, means[name]


# ---- records ----


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Hold how fast steps were.

    Attributes:
        images_per_second: images of all workers.
        mfu: share of one worker's peak of floating-point operations that the model used.
        data_wait: share of the time in which a worker had no batch.
    """

    images_per_second: float
    mfu: float
    data_wait: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Hold what the images of --val gave after an epoch.

    Attributes:
        means: loss and quality, over all images; with classes the balanced accuracy too.
        images: images that were tried.
        errors: images that could not be decoded.
        recall: share of the images of each class that was found, in the order of the classes; None for a
            class without an image. None for an objective without classes.
    """

    means: Means
    images: int
    errors: int
    recall: tuple[float | None, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Hold what the images of --probe tell of the encoder. Accuracies are shares of the images tried.

    Attributes:
        linear: accuracy of a linear classifier of the embeddings.
        knn: accuracy of the vote of the nearest neighbours.
        images: images that were tried.
        errors: images of the probe that could not be decoded, tried or not.
    """

    linear: float
    knn: float
    images: int
    errors: int

    def figures(self) -> dict[str, Any]:
        """Return the figures by the names that they have in metrics.jsonl."""
        return {f"{PROBE}{name}": value for name, value in asdict(self).items()}

    @classmethod
    def take(cls, values: dict[str, Any]) -> Self | None:
        """Take the figures out of a record; None where it has none."""
        if f"{PROBE}linear" not in values:
            return None
        figures = {field.name: values.pop(f"{PROBE}{field.name}") for field in fields(cls)}
        if not all(isinstance(value, int | float) for value in figures.values()):
            raise TypeError("a figure is no number")
        return cls(**figures)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Give a record its name and its JSON form."""

    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Return the record as one flat JSON object: the kind, then the figures."""
        return {"kind": self.kind, **self.figures()}

    def figures(self) -> dict[str, Any]:
        """Return the fields by name, without nesting."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DataNews(_Record):
    """Tell what the sources hold, before any worker starts.

    Attributes:
        samples: samples to learn from.
        shards: shards that hold them.
        classes: number of classes, 0 for an objective without classes.
        val_samples: samples of --val.
    """

    kind: ClassVar[str] = "data"
    samples: int
    shards: int
    classes: int
    val_samples: int


@dataclass(frozen=True, kw_only=True)
class BeginNews(_Record):
    """Tell that workers start, or that they continue from a checkpoint.

    Attributes:
        step: steps that were done before.
        steps: steps of the whole training.
        epoch: the epoch that begins or continues, from 0.
        epochs: epochs of the whole training.
        images: images of one epoch.
        workers: number of workers.
        device: torch's name of their device, such as "cpu".
        batch: images of one step, over all workers.
    """

    kind: ClassVar[str] = "begin"
    step: int
    steps: int
    epoch: int
    epochs: int
    images: int
    workers: int
    device: str
    batch: int


@dataclass(frozen=True, kw_only=True)
class NoteNews(_Record):
    """Tell the user something.

    Attributes:
        message: one line.
    """

    kind: ClassVar[str] = "note"
    message: str


@dataclass(frozen=True, kw_only=True)
class WaitNews(_Record):
    """Tell what the training waits for.

    Attributes:
        what: such as "starting Ray".
    """

    kind: ClassVar[str] = "wait"
    what: str


@dataclass(frozen=True, kw_only=True)
class StepNews(_Record):
    """Tell how the last few seconds of steps went.

    Attributes:
        step: steps done so far.
        steps: steps of the whole training.
        epoch: the epoch under way, from 1.
        lr: learning rate of the last step.
        means: figures of the objective, over these steps.
        rates: how fast these steps were.
    """

    kind: ClassVar[str] = "step"
    step: int
    steps: int
    epoch: int
    lr: float
    means: Means
    rates: Rates

    def figures(self) -> dict[str, Any]:
        """Return the fields by name, without nesting."""
        return {
            "step": self.step,
            "steps": self.steps,
            "epoch": self.epoch,
            "lr": self.lr,
            **self.means,
            **asdict(self.rates),
        }


@dataclass(frozen=True, kw_only=True)
class ValidationNews(_Record):
    """Tell how far the validation after an epoch is.

    Attributes:
        epoch: the epoch that was validated, from 1.
        images: images that this worker has tried.
        of_images: images that it tries in all.
        all_images: images that all workers try.
    """

    kind: ClassVar[str] = "validation"
    epoch: int
    images: int
    of_images: int
    all_images: int


@dataclass(frozen=True, kw_only=True)
class EpochNews(_Record):
    """Tell how an epoch ended.

    Attributes:
        epoch: the epoch, from 1.
        step: steps done so far.
        means: figures of the objective, over the steps of the epoch and all workers.
        lr: learning rate of the last step; 0 where these workers made no step.
        rates: how fast the steps were; None where these workers made no step.
        errors: images of the epoch that could not be decoded.
        validation: what --val gave; None without --val.
        probe: what --probe gave; None where the epoch has no probe.
    """

    kind: ClassVar[str] = "epoch"
    epoch: int
    step: int
    means: Means
    lr: float
    rates: Rates | None
    errors: int
    validation: Validation | None
    probe: Probe | None = None

    def figures(self) -> dict[str, Any]:
        """Return the fields by name, without nesting: the metrics of a model folder and a checkpoint."""
        values: dict[str, Any] = {"epoch": self.epoch, "step": self.step, **self.means, "lr": self.lr}
        if self.rates:
            values |= asdict(self.rates)
        values["errors"] = self.errors
        if self.validation:
            for name, mean in self.validation.means.items():
                values[f"val_{name}"] = mean
            values["val_images"] = self.validation.images
            values["val_errors"] = self.validation.errors
            if self.validation.recall is not None:
                values["val_recall"] = list(self.validation.recall)
        if self.probe:
            values |= self.probe.figures()
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the record of a line of metrics.jsonl; names of no field are figures of the objective."""
        left = dict(values)
        for name in ("kind", "time"):
            left.pop(name, None)
        rates = None
        if "mfu" in left:
            rates = Rates(**{name: left.pop(name) for name in ("images_per_second", "mfu", "data_wait")})
        validation = None
        if "val_images" in left:
            images = left.pop("val_images")
            errors = left.pop("val_errors")
            recall = left.pop("val_recall", None)
            names = [name for name in left if name.startswith("val_")]
            means = {name.removeprefix("val_"): left.pop(name) for name in names}
            validation = Validation(
                means=means,
                images=images,
                errors=errors,
                recall=None if recall is None else tuple(recall),
            )
        probe = Probe.take(left)
        known = {name: left.pop(name) for name in ("epoch", "step", "lr", "errors")}
        return cls(**known, means=left, rates=rates, validation=validation, probe=probe)


@dataclass(frozen=True, kw_only=True)
class ProbeNews(_Record):
    """Tell what --probe gives before the first step: of random weights, the line to beat.

    Attributes:
        probe: the figures.
    """

    kind: ClassVar[str] = "probe"
    probe: Probe
    epoch: int = 0
    step: int = 0

    def figures(self) -> dict[str, Any]:
        """Return the fields by name, without nesting."""
        return {"epoch": self.epoch, "step": self.step, **self.probe.figures()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the record of a line of metrics.jsonl.

        Raises:
            KeyError, TypeError: it is no such record.
        """
        probe = Probe.take(dict(values))
        if probe is None:
            raise KeyError(f"{PROBE}linear")
        return cls(probe=probe)


TrainNews = DataNews | BeginNews | NoteNews | WaitNews | StepNews | ValidationNews | EpochNews | ProbeNews
OnNews = Callable[[TrainNews], None]
