"""Tell the command how a training goes: typed records that workers send, and the channel that brings them.

The channel also tells the workers that the command is told to end.

Importing this imports nothing heavy, because the command and the actor behind the channel start with it.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from wordsworth.pipeline.errors import shown

POLL_S = 0.5  # seconds between two looks at what workers have sent
NOT_A_NUMBER = "is not a number"  # part of the message about the loss that ends a training

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
    """

    kind: ClassVar[str] = "epoch"
    epoch: int
    step: int
    means: Means
    lr: float
    rates: Rates | None
    errors: int
    validation: Validation | None

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
        fields = {name: left.pop(name) for name in ("epoch", "step", "lr", "errors")}
        return cls(**fields, means=left, rates=rates, validation=validation)


TrainNews = DataNews | BeginNews | NoteNews | WaitNews | StepNews | EpochNews
OnNews = Callable[[TrainNews], None]


# ---- the channel ----


class _NewsBox:
    """Hold news until the command takes them: an actor."""

    def __init__(self) -> None:
        self.news: list[TrainNews] = []
        self.is_ending = False

    def put(self, news: TrainNews) -> None:
        self.news.append(news)

    def take(self, is_ending: bool) -> list[TrainNews]:
        """Return the news since the last call, and keep whether the command is told to end."""
        self.is_ending = is_ending
        news = self.news
        self.news = []
        return news

    def tell_ending(self) -> bool:
        """Return whether the command is told to end."""
        return self.is_ending


class NewsChannel:
    """Send news from any process of the cluster to the command that opened the channel."""

    def __init__(self, box: Any):
        self.box = box

    def send(self, news: TrainNews) -> None:
        """Send a record. Where the command is gone nothing is sent: Ray ends this worker soon."""
        import ray

        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(self.box.put.remote(news))

    def is_ending(self) -> bool:
        """Tell whether the command is told to end."""
        import ray

        with contextlib.suppress(ray.exceptions.RayActorError):
            return ray.get(self.box.tell_ending.remote())
        return False

    def post(self, news: TrainNews) -> None:
        """Send a record and do not wait: for a process that must not wait, such as Ray Train's controller."""
        self.box.put.remote(news)


@contextlib.contextmanager
def open_news_channel(
    on_news: OnNews, is_ending: Callable[[], bool] = lambda: False
) -> Iterator[NewsChannel]:
    """Open a channel for the length of a block: an actor on this machine, and a thread that asks for news.

    Args:
        on_news: called in this process with each record, in order. If a call fails, a warning says so and the
            training continues.
        is_ending: tells whether the command is told to end, for the workers.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = {"max_restarts": -1, "max_task_retries": 3}  # a killed box loses half a second of news
    box = ray.remote(num_cpus=0, scheduling_strategy=here, **lasting)(_NewsBox).remote()
    stop = threading.Event()

    def take() -> None:
        """Hand on what was sent. Where the actor is not there, or Ray is gone, there is no news: the training
        itself ends with what happened."""
        try:
            sent = ray.get(box.take.remote(is_ending()))
        except (ray.exceptions.RayError, ConnectionError):
            return
        for news in sent:
            try:
                on_news(news)
            except Exception as error:
                warnings.warn(shown(f"news of the training could not be kept: {error}"), stacklevel=1)

    def listen() -> None:
        while not stop.wait(POLL_S):
            take()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield NewsChannel(box)
    finally:
        stop.set()
        thread.join(timeout=10)
    take()
