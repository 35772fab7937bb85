"""Follow a run: receipts and the frozen listing drive the display and the summary of a command."""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.labeling.bottleneck import BottleneckFinder
from wordsworth.pipeline.labeling.pace import RunFigures
from wordsworth.pipeline.output.committed import CommittedUnits
from wordsworth.pipeline.output.frozen_listing import FrozenListing, drop_shards, shard_names
from wordsworth.pipeline.output.records import GpuUse, LastCommand, Receipt
from wordsworth.pipeline.sources.lost_objects import LOSSES
from wordsworth.pipeline.unit import GpuCall

MAX_KEY_LENGTH = 200  # characters of a key that a note shows
REFRESH_S = 5.0  # seconds between two looks at a listing that goes on
MAX_SHARDS_NAMED = 5  # shards that a message names
# What a note says once of a tar whose samples have several images, by kind of Unit.skipped.
SEVERAL_IMAGES = {
    "dotted_key": (
        "has images that only their dots tell apart: each is a row, keyed up to the last dot "
        "(--key-rule first-dot labels one of each sample)"
    ),
    "other_image": (
        "has samples with several images: one of each is labelled, the others are counted as other_image "
        "(--image-key chooses, `wordsworth lint` names them)"
    ),
}
# What to do about an open shard, by the code that its fault begins with.
ADVICE = {
    "not_found": "put back what is gone",
    "forbidden": "allow reading what is forbidden",
    "archived": "restore what is archived",
    "unreadable": "check the disk or the credentials",
    "unfit_table": "mend the table and add --replace-changed, or name its columns with a new --output",
}


class ShardFault(NamedTuple):
    """Name a unit that could not be read. A store that is away gives as many as a run has shards.

    Attributes:
        shard: URI of the shard.
        file: name that the unit's file would have.
        fault: what the store did wrong.
    """

    shard: str
    file: str
    fault: str


class Progress(Protocol):
    """Show a person how a run goes."""

    def planned(
        self, *, shards: int, shards_done: int, bytes_total: int, bytes_done: int, listed: bool
    ) -> None:
        """Begin: the size of the run as far as it is listed, and whether the listing is complete."""

    def listed(self, *, shards: int, bytes_total: int) -> None:
        """Show the size of the run after more shards were listed."""

    def note(self, message: str, **fields: Any) -> None:
        """Show a line that the user should know; a log of JSON has the fields too."""

    def waiting(self, what: str) -> None:
        """Show what is waited for, until the next figures come."""

    def working(self, figures: RunFigures) -> None:
        """Show how far the run is, about once a second."""

    def receipt(self, receipt: Receipt) -> None:
        """Hear of a unit that is done, or of one that the store did not give."""


@dataclass
class ListingTotals:
    """Add up the frozen pages of a run, again and again while the listing goes on.

    Attributes:
        frozen: the pages.
        committed: the units that were committed when the command began.
        shards: shards of the run, as far as they are listed.
        shards_done: shards that were complete when the command began.
        bytes_total: bytes of all shards.
        bytes_done: bytes of the complete shards.
        is_complete: whether the listing has ended, as far as is known.
    """

    frozen: FrozenListing
    committed: CommittedUnits
    shards: int = 0
    shards_done: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    is_complete: bool = False
    _num_pages: int = 0
    _refreshed_at: float = 0.0

    @property
    def known_bytes(self) -> int:
        """Return the bytes of all shards; 0 while the listing goes on and nobody knows."""
        return self.bytes_total if self.is_complete else 0

    def refresh(self, every_s: float = REFRESH_S) -> bool:
        """Add the pages that are new, at most once in `every_s` seconds, and return whether that is news.

        After the end of the listing this asks nothing more.
        """
        if self.is_complete or time.monotonic() - self._refreshed_at < every_s:
            return False
        self._refreshed_at = time.monotonic()
        self.is_complete = self.frozen.complete  # before the pages are read, so that none can be missed
        files = self.frozen.files()
        first_new = self._num_pages
        new_pages = files[first_new:]
        self._num_pages = len(files)
        if not new_pages:
            return self.is_complete
        replaced_in = self.frozen.replaced_in()
        for number, path in enumerate(new_pages, first_new):
            self._add(drop_shards(self.frozen.read(path), number, replaced_in))
        return True

    def _add(self, page: pa.Table) -> None:
        complete = self.committed.complete(shard_names(page))
        sizes = page["size"].to_numpy()
        self.shards += len(sizes)
        self.shards_done += int(complete.sum())
        self.bytes_total += int(sizes.sum())
        self.bytes_done += int(sizes[complete].sum())


@dataclass
class ReceiptCounter:
    """Count the receipts of one command, and hand each to the display.

    Attributes:
        progress: the display.
        bottleneck: gets every receipt too; None where nothing is left to do.
        began: when the command began, by time.monotonic.
        num_images: images of all receipts.
        num_twins: files that another job had written.
        repeated_key: whether a unit with two rows of one key was met.
        faults: units that could not be read.
        noted_tars: kind of SEVERAL_IMAGES and shard of the notes that were shown.
        gpus: names of GPUs with the names of their nodes.
        gpu_modes: units by the mode in which a GPU predicted them.
        gpu_batch_sizes: units by the images in one forward pass.
        gpu_notes: why a mode or a batch size is not the fastest one.
        store_retries: requests that stores were asked again, by the store's address.
        rows_left: images after which the command stops; None where it goes on to the end.
    """

    progress: Progress
    bottleneck: BottleneckFinder | None = None
    began: float = field(default_factory=time.monotonic)
    num_images: int = 0
    num_twins: int = 0
    repeated_key: bool = False
    faults: list[ShardFault] = field(default_factory=list)
    noted_tars: set[tuple[str, str]] = field(default_factory=set)
    gpus: set[str] = field(default_factory=set)
    gpu_modes: Counter[str] = field(default_factory=Counter)
    gpu_batch_sizes: Counter[str] = field(default_factory=Counter)
    gpu_notes: list[str] = field(default_factory=list)
    store_retries: dict[str, int] = field(default_factory=dict)
    rows_left: int | None = None

    def add(self, receipt: Receipt) -> None:
        """Count a receipt."""
        self.num_images += receipt.rows
        if receipt.prediction:
            self._add_gpu_call(GpuCall.from_json(receipt.prediction))
        if receipt.fault:
            self.faults.append(ShardFault(receipt.shard, receipt.file, sys.intern(receipt.fault)))
        self.progress.receipt(receipt)
        if self.bottleneck:
            self.bottleneck.add(receipt)
        if receipt.twin:
            self._add_twin()
        if receipt.skipped != "{}":
            self._note_several_images(receipt)
        if receipt.repeated_key is not None and not self.repeated_key:
            self.repeated_key = True
            self.progress.note(
                f"{receipt.shard} has the key {receipt.repeated_key[:MAX_KEY_LENGTH]!r} more than once: "
                "each is a row of its own; `wordsworth verify` counts such rows"
            )

    def _note_several_images(self, receipt: Receipt) -> None:
        """Say of a tar, once, that its samples have several images; of further tars once for all."""
        skipped = json.loads(receipt.skipped)
        for kind, told in SEVERAL_IMAGES.items():
            num_noted = sum(noted == kind for noted, _ in self.noted_tars)
            is_noted = (kind, receipt.shard) in self.noted_tars or num_noted > MAX_SHARDS_NAMED
            if kind not in skipped or is_noted:
                continue
            self.noted_tars.add((kind, receipt.shard))
            if num_noted < MAX_SHARDS_NAMED:
                self.progress.note(f"{receipt.shard} {told}")
            else:
                self.progress.note(f"more shards do so: skipped_members of summary.json counts {kind}")

    def _add_twin(self) -> None:
        self.num_twins += 1
        if self.num_twins == 1:
            self.progress.note(
                "another job is at work on this output: harmless, each image stays once, but what both do is "
                "done twice over"
            )

    def _add_gpu_call(self, call: GpuCall) -> None:
        self.gpus.add(call.gpu)
        self.gpu_modes[call.mode] += 1
        self.gpu_batch_sizes[str(call.batch_size)] += 1
        for note in call.notes:
            if note not in self.gpu_notes:
                self.gpu_notes.append(note)
                self.progress.note(note)

    def refuse_faults(self) -> None:
        """Check that every shard was read to its end.

        Raises:
            UserError: the store did not give one.
        """
        if self.faults:
            raise UserError(_open_shards_message(self.faults))

    def to_last_command(self) -> LastCommand:
        """Return what the summary says of this command."""
        seconds = time.monotonic() - self.began
        start = None
        if self.bottleneck and self.bottleneck.num_units:
            start = round(self.bottleneck.model_began - self.began, 2)
        return LastCommand(
            images=self.num_images,
            seconds=round(seconds, 2),
            images_per_second=round(self.num_images / max(seconds, 1e-9), 1),
            stages=self.bottleneck.to_stage_use() if self.bottleneck else None,
            gpu=self._gpu_use() if self.gpus else None,
            store_retries=self.store_retries,
            start_seconds=start,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _gpu_use(self) -> GpuUse:
        return GpuUse(
            nodes=len(self.gpus),
            modes=dict(self.gpu_modes),
            batch_sizes=dict(self.gpu_batch_sizes),
            notes=self.gpu_notes,
        )


def _open_shards_message(faults: list[ShardFault]) -> str:
    """Return a line that names the shards that are open, and says what to do about them."""
    first = faults[0]
    others = [fault.shard for fault in faults[1:MAX_SHARDS_NAMED]]
    if len(faults) > MAX_SHARDS_NAMED:
        others.append(f"{len(faults) - MAX_SHARDS_NAMED} more")
    told = f"; then {', '.join(others)}" if others else ""
    codes = {fault.fault.partition(":")[0] for fault in faults}
    advice = ", ".join(text for code, text in ADVICE.items() if code in codes)
    first_step = f"{advice}, then " if advice else ""
    drop = "; --update --drop-missing drops from the run what cannot be had" if codes & set(LOSSES) else ""
    return (
        f"{plural(len(faults), 'shard')} could not be read to the end, "
        f"first {first.shard}: {first.fault}{told}. "
        f"What is done is kept: {first_step}run the same command again, which reads only these{drop}"
    )


def note_passed_over(frozen: FrozenListing, progress: Progress) -> None:
    """Tell the user what the listing passed over: other kinds of files, skipped names, links."""
    for note in frozen.passed_over().notes():
        progress.note(note)
