"""Which stage holds a run back, measured as it runs, and what to change."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wordsworth.pipeline.unit import STAGES

BUSY = 0.85  # a model that works so much of the time is what holds the run back
ENOUGH = 3  # units for each actor, before anything is said,
LEAST = 20.0  # and seconds


@dataclass
class Balance:
    """Sums what receipts say of each stage's seconds, from the first receipt on: the start is no matter of balance.

    actors: of the model. device: "cpu" or "cuda".
    """

    actors: int
    device: str
    clock: Callable[[], float] = time.monotonic
    units: int = 0
    seconds: Counter = field(default_factory=Counter)
    bytes: int = 0
    images: int = 0
    began: float = 0.0
    ended: float = 0.0

    def receipt(self, receipt: dict[str, Any]) -> None:
        self.ended, self.units = self.clock(), self.units + 1
        if self.units == 1:
            self.began = self.ended
            return
        self.bytes += receipt["bytes_read"]
        self.images += receipt["rows"]
        self.seconds.update({stage: receipt[stage] or 0.0 for stage in STAGES})

    @property
    def rate(self) -> float | None:
        """Images/s without the start; None for a single unit."""
        return round(self.images / (self.ended - self.began), 1) if self.ended > self.began else None

    @property
    def busy(self) -> dict[str, float]:
        """How many workers of each stage were busy on average; {} as long as that cannot be said."""
        window = self.ended - self.began
        if self.units <= ENOUGH * self.actors or window < LEAST:
            return {}
        return {stage: round(self.seconds[stage] / window, 2) for stage in STAGES}

    @property
    def share(self) -> float:
        """Of the time that the model's actors were busy."""
        return min(1.0, self.busy["predict"] / self.actors)

    def advice(self) -> str | None:
        """One line for a person: what holds the run back, and what would help."""
        busy = self.busy
        if not busy:
            return None
        what = "GPU" if self.device == "cuda" else "actor"
        actors = f"its {what}" if self.actors == 1 else f"its {self.actors} {what}s"
        if self.share >= BUSY:
            return f"the model, {actors} busy {self.share:.0%}: more {'GPUs' if self.device == 'cuda' else 'cores'} make it faster"
        waiting = f"the model was busy {self.share:.0%}"
        if busy["decode"] >= busy["read"]:
            more = math.ceil(busy["decode"] * (1 / max(self.share, 0.01) - 1))
            return f"decoding, {waiting}: {more} more cores to decode would keep it busy"
        rate = f"the source gave {self.bytes / 1e6 / (self.ended - self.began):,.0f} MB/s"
        return f"reading, {waiting}: {rate}; a nearer store or larger shards help, or more CPUs, for more readers"
