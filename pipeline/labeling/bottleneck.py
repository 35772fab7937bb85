"""Find the stage that holds a run back, while the run goes on, and say what to change."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from wordsworth.pipeline.output.records import Receipt, StageUse
from wordsworth.pipeline.unit import STAGES

BUSY_SHARE = 0.85  # share of the time: a model that is busy for longer holds the run back
MIN_UNITS_PER_ACTOR = 3  # units of each actor before anything is said
MIN_UNITS = 3  # units before a steady rate is told
MIN_RATE_SECONDS = 5.0  # seconds between the first and the last receipt before a steady rate is told
MIN_SECONDS = 20.0  # seconds between the first and the last receipt before anything is said
MIN_SHARE = (
    0.01  # share of the time that the model is taken to be busy at least, where something is divided by it
)


@dataclass
class BottleneckFinder:
    """Sum the seconds of each stage over the receipts of a run, without the first, which takes the start.

    Attributes:
        num_actors: model actors of the plan.
        device: "cpu" or "cuda".
        clock: returns seconds.
        count_actors: returns the actors that live now, which are others than in the plan where nodes join and
            leave; None where nobody can say.
        num_units: receipts so far.
        num_images: images of the receipts behind the first.
        bytes_read: bytes of the source of the receipts behind the first.
        stage_seconds: seconds of each stage over the receipts behind the first.
        most_actors: the largest number of actors that lived at a receipt.
        actor_seconds: seconds of all actors between the first and the last receipt.
        first_at: time of the first receipt.
        last_at: time of the last receipt.
        model_began: when the model began on the first image.
    """

    num_actors: int
    device: str
    clock: Callable[[], float] = time.monotonic
    count_actors: Callable[[], int | None] = lambda: None
    num_units: int = 0
    num_images: int = 0
    bytes_read: int = 0
    stage_seconds: Counter[str] = field(default_factory=Counter)
    most_actors: int = 0
    actor_seconds: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    model_began: float = 0.0

    def add(self, receipt: Receipt) -> None:
        """Count a receipt."""
        now = self.clock()
        self.num_units += 1
        alive = self.count_actors()
        num_actors = self.num_actors if alive is None else alive
        self.most_actors = max(self.most_actors, num_actors)
        if self.num_units == 1:
            self.first_at = self.last_at = now
            self.model_began = now - receipt.seconds.get("predict", 0.0) - receipt.seconds.get("write", 0.0)
            return
        self.actor_seconds += num_actors * (now - self.last_at)
        self.last_at = now
        self.num_images += receipt.rows
        self.bytes_read += receipt.bytes_read
        self.stage_seconds.update(receipt.seconds)

    @property
    def seconds(self) -> float:
        """Return the seconds between the first and the last receipt."""
        return self.last_at - self.first_at

    @property
    def images_per_second(self) -> float | None:
        """Return images/s from the first receipt on; None for few units or seconds."""
        if self.num_units < MIN_UNITS or self.seconds < MIN_RATE_SECONDS:
            return None
        return round(self.num_images / self.seconds, 1)

    @property
    def busy(self) -> dict[str, float]:
        """Return how many workers of each stage were busy on average; {} while it is too early to say."""
        if self.num_units <= MIN_UNITS_PER_ACTOR * self.most_actors or self.seconds < MIN_SECONDS:
            return {}
        return {stage: round(self.stage_seconds[stage] / self.seconds, 2) for stage in STAGES}

    @property
    def model_share(self) -> float:
        """Return the share of the time that the model's actors were busy."""
        return min(1.0, self.stage_seconds["predict"] / max(self.actor_seconds, MIN_SHARE))

    def advice(self) -> str | None:
        """Return a line that names the stage that holds the run back, and what would help; None at first."""
        if not self.busy:
            return None
        if self.model_share >= BUSY_SHARE:
            return self._more_for_the_model()
        waiting = f"the model was busy {self.model_share:.0%}"
        if self.busy["decode"] >= self.busy["read"]:
            more_cores = math.ceil(self.busy["decode"] * (1 / max(self.model_share, MIN_SHARE) - 1))
            return f"decoding, {waiting}: {more_cores} more cores to decode would keep it busy"
        rate = f"the source gave {self.bytes_read / 1e6 / self.seconds:,.0f} MB/s"
        help = "a nearer store or larger shards help, or more CPUs, for more readers"
        return f"reading, {waiting}: {rate}; {help}"

    def _more_for_the_model(self) -> str:
        on_gpu = self.device == "cuda"
        worker = "GPU" if on_gpu else "actor"
        num_actors = round(self.actor_seconds / self.seconds)  # on average
        workers = f"its {worker}" if num_actors == 1 else f"its {num_actors} {worker}s"
        wanted = "GPUs" if on_gpu else "cores"
        return f"the model, {workers} busy {self.model_share:.0%}: more {wanted} make it faster"

    def to_stage_use(self) -> StageUse:
        """Return what the summary says of the stages."""
        return StageUse(
            steady_images_per_second=self.images_per_second, busy=self.busy, bottleneck=self.advice()
        )
