"""Tell the user which stores do not answer the workers, now and then, and when they answer again."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wordsworth.pipeline.cluster.signs import TROUBLE_AFTER_S, Sign, StoreTries

TOLD_EVERY_S = 10.0  # seconds between two notes on one store
WELL_AFTER_S = 15.0  # seconds without a try again after which a store is taken to answer: no wait is longer


@dataclass
class _Store:
    """Hold what is known of one store.

    Attributes:
        last: when a worker asked it again, by the clock.
        told: when the user was told last; None before the first time, and after it was well again.
        since: when this silence began.
    """

    last: float
    since: float
    told: float | None = None


@dataclass
class StoreWatch:
    """Count how often stores were asked again, from the signs of workers.

    Attributes:
        note: gets a line and its fields.
        clock: returns seconds.
        tries: requests that were asked again, by the store's address.
    """

    note: Callable[..., None]
    clock: Callable[[], float] = time.monotonic
    tries: Counter[str] = field(default_factory=Counter)
    _seen: dict[tuple[bytes, str], int] = field(default_factory=dict)
    _stores: dict[str, _Store] = field(default_factory=dict)

    def look(self, signs: Mapping[bytes, Sign]) -> None:
        """Take the last signs of all workers."""
        now = self.clock()
        troubled: dict[str, list[tuple[Sign, StoreTries]]] = {}
        for worker, sign in signs.items():
            for address, tries in sign.stores.items():
                more = tries.tries - self._seen.get((worker, address), 0)
                self._seen[worker, address] = tries.tries
                if more <= 0:
                    continue
                self.tries[address] += more
                if tries.waited_s >= TROUBLE_AFTER_S:
                    troubled.setdefault(address, []).append((sign, tries))
        for address, workers in troubled.items():
            self._tell(address, workers, now)
        for address, store in self._stores.items():
            if store.told is not None and now - store.last > WELL_AFTER_S:
                silent_s = store.last - store.since
                store.told = None
                self.note(
                    f"{address} answers again, after {silent_s:,.0f} s",
                    event="store",
                    store=address,
                    seconds=round(silent_s),
                )

    def _tell(self, address: str, workers: list[tuple[Sign, StoreTries]], now: float) -> None:
        sign, tries = max(workers, key=lambda one: one[1].waited_s)
        store = self._stores.setdefault(address, _Store(last=now, since=now - tries.waited_s))
        if store.told is None and now - store.last > WELL_AFTER_S:
            store.since = now - tries.waited_s
        store.last = now
        if store.told is not None and now - store.told < TOLD_EVERY_S:
            return
        store.told = now
        others = f" and {len(workers) - 1} more" if len(workers) > 1 else ""
        self.note(
            f"{address} does not answer: {tries.said}. It is asked again, for {now - store.since:,.0f} s now "
            f"(node {sign.node}, pid {sign.pid}{others})",
            level="warning",
            event="store",
            store=address,
            node=sign.node,
            pid=sign.pid,
            workers=len(workers),
            tries=self.tries[address],
            seconds=round(now - store.since),
        )
