"""Hold what the command sends to the workers of a training."""

from dataclasses import dataclass
from typing import Any

from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.training.class_balance import ClassUse
from wordsworth.pipeline.training.probe_images import ProbeImages
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.settings import Settings
from wordsworth.pipeline.training.survey import Survey


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """Hold what every worker needs.

    Attributes:
        request: what the user asked for, without the start.
        decode: how images become patches.
        reading: how shards are read.
        train: what the sources hold.
        val: what --val holds; None without --val.
        target: finds the class of a sample; None for an objective without classes.
        class_use: how much the classes weigh, and how often their samples are drawn.
        probe: the images of --probe; None without --probe.
        device: "cpu" or "cuda".
        weights: bytes of the initial checkpoint, as a reference into Ray's store.
        settings: what the model folder keeps of the request.
        open_end: name of the checkpoint of a finished training with which this one goes on; None for none.
        is_local: whether the command started a Ray of its own, which is one machine.
    """

    request: TrainRequest
    decode: DecodeSettings
    reading: ReadSettings
    train: Survey
    val: Survey | None
    target: Target | None
    class_use: ClassUse
    probe: ProbeImages | None
    device: str
    weights: Any
    settings: Settings
    open_end: str | None
    is_local: bool
