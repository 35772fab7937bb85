"""Probe the encoder that a training without classes makes: are the images of --probe told apart by it?

Every worker embeds the images of its shards. The embeddings are added up in one matrix, in which every image
has a row of its own: so it does not matter which worker has an image, and memory holds one matrix of at most
MOST_IMAGES rows. Rank 0 fits the probes. Nothing here draws a random number or changes a weight.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
import torch
from torch.nn import functional

from wordsworth.pipeline.errors import NAMES_THE_IMAGES, UserError
from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.batches import decoded
from wordsworth.pipeline.training.collectives import Collectives
from wordsworth.pipeline.training.news import NOT_A_NUMBER, Probe
from wordsworth.pipeline.training.probe_images import ProbeImages
from wordsworth.pipeline.training.step import Step
from wordsworth.pipeline.training.validation import in_step, shards_of_worker
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.few_shot import best_l2, fit_probe
from wordsworth.vit_model.neighbours import NearestNeighbours

_Batch = tuple[np.ndarray, np.ndarray]  # patches uint8 (B, N, P*P*3), rows (B,)


class Prober:
    """Probe the encoder with the images of all workers."""

    def __init__(self, images: ProbeImages, decode: DecodeSettings, step: Step, collectives: Collectives):
        """Prepare.

        Args:
            images: the images of the probe.
            decode: gives the shape of an image's patches.
            step: embeds.
            collectives: the workers. All must make the same calls.
        """
        self.images = images
        self.decode = decode
        self.step = step
        self.collectives = collectives

    def is_due(self, epoch: int, is_last: bool) -> bool:
        """Return whether an epoch, from 1, is probed: every N-th and the last; 0 is before the first step."""
        return is_last or epoch % self.step.request.probe_every == 0

    def shards(self) -> list[Shard]:
        """Return the shards that this worker embeds; none where there are fewer shards than workers."""
        return shards_of_worker(self.images.survey, self.collectives)

    def probe(self, units: Iterator[Unit], batch_size: int) -> Probe:
        """Return how well the embeddings tell the classes apart.

        Args:
            units: the decoded units of this worker's shards.
            batch_size: images that are embedded at a time.

        Raises:
            UserError: an embedding is not a number, or no image could be decoded.
        """
        embeddings, is_there = self._embeddings(self._batches(units, batch_size))
        held_out = self.images.held_out
        if not (is_there & held_out).any() or not (is_there & ~held_out).any():
            raise UserError(f"too few images of --probe could be decoded: {NAMES_THE_IMAGES}")
        if not embeddings.isfinite().all():
            raise UserError(
                f"an embedding of --probe {NOT_A_NUMBER}; the last good checkpoint is kept: "
                "try a lower --lr or a longer --warmup"
            )
        accuracies = [0.0, 0.0]
        if self.collectives.rank == 0:
            accuracies = self._accuracies(embeddings.cpu().numpy(), is_there)
        linear, knn = self.collectives.sums(accuracies)
        return Probe(
            linear=round(linear, 6),
            knn=round(knn, 6),
            images=int((is_there & held_out).sum()),
            errors=int((~is_there).sum()),
        )

    def _accuracies(self, embeddings: np.ndarray, is_there: np.ndarray) -> list[float]:
        """Return the accuracies of the linear probe and of the neighbours, for embeddings (N, D)."""
        learnt = is_there & ~self.images.held_out
        tried = is_there & self.images.held_out
        classes = self.images.classes
        l2 = best_l2(embeddings[learnt], classes[learnt])
        linear = fit_probe(embeddings[learnt], classes[learnt], l2)
        neighbours = NearestNeighbours(embeddings[learnt], classes[learnt], int(classes.max()) + 1)
        predicted = linear.predict(embeddings[tried]).numpy(), neighbours.predict(embeddings[tried])
        return [float((one == classes[tried]).mean()) for one in predicted]

    # ---- embeddings ----

    def _embeddings(self, batches: Iterator["_Batch"]) -> tuple[torch.Tensor, np.ndarray]:
        """Embed the images of all workers.

        Returns:
            Embeddings float32 (N, D) on the device, in which the row of an image that could not be decoded is
            zeros; and (N,) whether an image could be decoded.
        """
        device = self.step.device
        width = self.step.request.config.embedding_dim
        matrix = torch.zeros(len(self.images.classes), width + 1, device=device)
        nobody = np.zeros((1, *self.decode.patches_shape), np.uint8), np.zeros(0, np.int64)
        for batch in in_step(batches, self.collectives, self.step.sharded):
            patches, rows = batch or nobody
            embedded = self.step.embed(patches)[: len(rows)]
            # The last column says that the row is there.
            matrix[torch.from_numpy(rows).to(device)] = functional.pad(embedded, (0, 1), value=1.0)
        self.collectives.add_up(matrix)
        return matrix[:, :-1], (matrix[:, -1] > 0).cpu().numpy()

    def _batches(self, units: Iterator[Unit], batch_size: int) -> Iterator["_Batch"]:
        """Yield the decoded images in batches."""
        row_of_first = {}
        for shard, row in zip(self.images.survey.shards, self.images.first_rows, strict=True):
            row_of_first[shard.name] = row - shard.first_index
        for unit in units:
            patches, _ = decoded(unit, self.decode, None)
            good = unit.samples.filter(pc.is_null(unit.samples["error"]))
            rows = row_of_first[unit.shard_name] + good["index"].to_numpy().astype(np.int64)
            for begin in range(0, len(rows), batch_size):
                yield patches[begin : begin + batch_size], rows[begin : begin + batch_size]
