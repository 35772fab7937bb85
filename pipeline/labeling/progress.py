"""What watches a run: receipts and the frozen listing drive the progress, and nothing else."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.bottleneck import Balance
from wordsworth.pipeline.output.committed import Done
from wordsworth.pipeline.output.frozen_listing import FrozenListing, shard_names, without


class Progress(Protocol):
    """What watches a run. Receipts drive it and nothing else."""

    def planned(
        self, shards: int, shards_done: int, bytes_total: int, bytes_done: int, listed: bool
    ) -> None: ...
    def listed(self, shards: int, bytes_total: int) -> None: ...
    def note(self, message: str) -> None: ...
    def receipt(self, receipt: dict[str, Any]) -> None: ...


@dataclass
class Totals:
    """What the frozen pages say there is to do; looked at again while the listing goes on."""

    frozen: FrozenListing
    done: Done
    counts: Counter = field(
        default_factory=lambda: Counter(shards=0, shards_done=0, bytes_total=0, bytes_done=0)
    )
    pages: int = 0
    looked: float = 0.0

    def look(self, every: float = 5.0) -> dict[str, int] | None:
        """The counts, where there are new pages; None where there are none or it was looked at a moment ago."""
        if time.monotonic() - self.looked < every:
            return None
        files, self.looked = self.frozen.files(), time.monotonic()
        fresh, self.pages = files[self.pages :], len(files)
        gone = self.frozen.replaced() if fresh else set()
        for path in fresh:
            self._add(without(self.frozen.read(path)[0], gone))
        return dict(self.counts) if fresh else None

    def _add(self, page: pa.Table) -> None:
        complete, sizes = self.done.complete(shard_names(page)), page["size"].to_numpy()
        self.counts.update(shards=len(sizes), shards_done=int(complete.sum()))
        self.counts.update(bytes_total=int(sizes.sum()), bytes_done=int(sizes[complete].sum()))


@dataclass
class Watch:
    """Counts receipts, and keeps those of shards that the store did not give."""

    progress: Progress
    began: float = field(default_factory=time.perf_counter)
    balance: Balance | None = None
    images: int = 0
    twins: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    gpu_nodes: set[str] = field(default_factory=set)  # their GPUs' names with those of the nodes
    modes: Counter = field(default_factory=Counter)  # units by how GPUs predicted them
    batch_sizes: Counter = field(default_factory=Counter)
    gpu_notes: list[str] = field(default_factory=list)

    def receipt(self, receipt: dict[str, Any]) -> None:
        self.images += receipt["rows"]
        if receipt["prediction"]:
            self._predicted(**json.loads(receipt["prediction"]))
        self.faults += [receipt] if receipt["fault"] else []
        self.progress.receipt(receipt)
        if self.balance:
            self.balance.receipt(receipt)
        self.twins += receipt["twin"]
        if self.twins == 1 and receipt["twin"]:
            self.progress.note(
                "another job is at work on this output: harmless, each unit stays once, but what both do is done twice over"
            )

    def _predicted(self, gpu: str, mode: str, batch_size: int, notes: list[str]) -> None:
        self.gpu_nodes.add(gpu)
        self.modes[mode] += 1
        self.batch_sizes[str(batch_size)] += 1
        for note in notes:
            if note not in self.gpu_notes:
                self.gpu_notes.append(note)
                self.progress.note(note)

    def figures(self) -> dict[str, Any]:
        """What this command did, for the summary. steady: without the start. busy: workers of each stage, on average. bottleneck:
        for a person, or None. gpu: units by mode and by batch size, and why they are not others."""
        seconds = time.perf_counter() - self.began
        balance = {}
        if one := self.balance:
            balance = {"steady_images_per_second": one.rate, "busy": one.busy, "bottleneck": one.advice()}
        rate = round(self.images / max(seconds, 1e-9), 1)
        if self.gpu_nodes:
            modes, sizes = dict(self.modes), dict(self.batch_sizes)
            balance["gpu"] = {
                "nodes": len(self.gpu_nodes),
                "modes": modes,
                "batch_sizes": sizes,
                "notes": self.gpu_notes,
            }
        return {"images": self.images, "seconds": round(seconds, 2), "images_per_second": rate, **balance}

    def refuse_faults(self) -> None:
        if self.faults:
            raise UserError(
                f"{len(self.faults)} shards could not be read to their end, first {self.faults[0]['shard']}: "
                f"{self.faults[0]['fault']}. What is done is kept: run the same command again"
            )


def note_ignored(frozen: FrozenListing, progress: Progress) -> None:
    if ignored := frozen.ignored():
        names = ", ".join(f"{count} {name}" for name, count in ignored.most_common(5))
        progress.note(f"ignored {sum(ignored.values())} files of other kinds: {names}")
