"""Label a few images in this process alone: without Ray, and without an output folder."""

import time
from collections.abc import Callable, Iterator

import pyarrow as pa

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import decode_unit
from wordsworth.pipeline.labeling.listing import with_expanded_sources
from wordsworth.pipeline.labeling.local_labeler import LocalLabeler
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.checkpoint import BaseCheckpoint

MAX_IMAGES = 512  # of one look: what a table on a screen can show, and minutes of one core


class QuickLook:
    """Label the first images of sources, in the order of the listing.

    The images go through the same functions as in a run, so a row here is the row of a run.

    Attributes:
        num_images: rows that were given so far.
        seconds: seconds that they took, from the first request of the listing on.
        is_cut: whether the sources have more images than were taken.
    """

    def __init__(self, request: LabelRequest, checkpoint: BaseCheckpoint, note: Callable[[str], None]):
        """Load the model.

        Args:
            request: with `limit`, at most MAX_IMAGES, or None for MAX_IMAGES.
            note: gets what the listing passed over.

        Raises:
            UserError: --device cuda, and torch has no GPU here.
        """
        self.request = with_expanded_sources(request)
        self.limit = min(request.limit or MAX_IMAGES, MAX_IMAGES)
        self.num_images = 0
        self.seconds = 0.0
        self.is_cut = False
        self._note = note
        self._labeler = LocalLabeler(self.request, checkpoint)

    def rows(self) -> Iterator[pa.Table]:
        """Yield the prediction rows, some at a time.

        Raises:
            UserError: the sources cannot be listed or read.
        """
        began = time.monotonic()
        for unit in self._units():
            rows = self._labeler.rows(decode_unit(unit, self._labeler.settings.decode))
            left = self.limit - self.num_images
            self.is_cut = len(rows) > left
            self.num_images += min(left, len(rows))
            self.seconds = time.monotonic() - began
            yield rows.slice(0, left)
            if self.is_cut:
                return

    def _units(self) -> Iterator[Unit]:
        """Yield units of encoded images. A unit behind the limit tells that there are more."""
        finder = self._labeler.settings.listing.finder()
        finder.most_images = self.limit + 1
        for shard in finder.shards():
            for unit in read_units(shard, self._labeler.settings.read):
                if unit.fault:
                    raise UserError(f"{unit.shard_uri} could not be read: {unit.fault}")
                if not len(unit.samples):
                    continue
                if self.num_images == self.limit:
                    self.is_cut = True
                    return
                yield unit
        for said in finder.passed_over.notes():
            self._note(said)
