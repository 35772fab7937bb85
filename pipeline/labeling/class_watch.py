"""Say early that images have no class: an evaluation finds out for certain only when all are labelled."""

from typing import Any

import pyarrow.parquet as pq

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.labeling.pace import RunFigures
from wordsworth.pipeline.labeling.progress import Progress
from wordsworth.pipeline.output.records import Receipt
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.model_target import ModelTarget


class ClassWatch:
    """Pass a run's progress on to a display, and add a note if no image of the first unit has a class.

    Args:
        display: gets everything.
        run: the run.
        target: finds the class of an image.
    """

    def __init__(self, display: Progress, run: RunFolder, target: ModelTarget):
        self.display = display
        self.run = run
        self.target = target
        self._looked = False

    def planned(
        self, *, shards: int, shards_done: int, bytes_total: int, bytes_done: int, listed: bool
    ) -> None:
        """Pass it on."""
        self.display.planned(
            shards=shards,
            shards_done=shards_done,
            bytes_total=bytes_total,
            bytes_done=bytes_done,
            listed=listed,
        )

    def listed(self, *, shards: int, bytes_total: int) -> None:
        """Pass it on."""
        self.display.listed(shards=shards, bytes_total=bytes_total)

    def note(self, message: str, **fields: Any) -> None:
        """Pass it on."""
        self.display.note(message, **fields)

    def waiting(self, what: str) -> None:
        """Pass it on."""
        self.display.waiting(what)

    def working(self, figures: RunFigures) -> None:
        """Pass it on."""
        self.display.working(figures)

    def receipt(self, receipt: Receipt) -> None:
        """Pass it on; look for a class in the first file with rows."""
        self.display.receipt(receipt)
        if receipt.rows and not self._looked:
            self._looked = True
            self._look(receipt)

    def _look(self, receipt: Receipt) -> None:
        with self.run.fs.open(self.run.path("predictions", receipt.file), "rb") as file:
            names = self.target.names(pq.read_table(file, columns=[self.target.column]))
        if names[None] == names.total():
            self.display.note(
                f"none of the first {plural(names.total(), 'image')} ({receipt.shard}) has a class: "
                f"--target {self.target.where} gives none, or -1"
            )
