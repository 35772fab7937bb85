"""Predict units of patches: an actor that keeps one copy of the model, on a CPU or a GPU, by the same
code."""

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import ray
import torch

from wordsworth.pipeline.cluster.ray_internals import find_notes, leave_note
from wordsworth.pipeline.cluster.signs import UnitUnderWay
from wordsworth.pipeline.cluster.worker_exit import leave_at_exit
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.chosen_classes import chosen_classes, rows_at_a_time
from wordsworth.pipeline.prediction.gpu import DeviceLost, compute_in, find_gpu, gpu_name
from wordsworth.pipeline.prediction.gpu_batches import SequentialBatches, joined
from wordsworth.pipeline.prediction.gpu_modes import BATCH_SIZES, MODES, GpuBatches
from wordsworth.pipeline.unit import GpuCall, Unit
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.foreign.load import checkpoint_from_bytes


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Hold the settings of an actor.

    Attributes:
        precision: "fp32" or "bf16".
        device: "cpu", or "cuda" for the GPU that Ray gives to the actor.
        batch_size: images in a forward pass; None finds the fastest, on a GPU alone.
        top_k: classes that are kept; 0 gives no labels.
        head: how logits become scores, one of HEAD_KINDS.
        threshold: score from which on a class is one of an image's labels; None gives none of these.
        value: give the head's output as a number.
        embedding: None, "float16" or "float32".
        normalize: divide embeddings by their length.
        gpu_modes: the modes that a GPU's actor may take, the first one first.
        largest_batch: images in the largest batch that is tried when the fastest is looked for.
    """

    precision: str
    device: str
    batch_size: int | None
    top_k: int = 5
    head: str = "softmax"
    threshold: float | None = None
    value: bool = False
    embedding: str | None = None
    normalize: bool = False
    gpu_modes: tuple[str, ...] = MODES
    largest_batch: int = BATCH_SIZES[-1]


def prediction_fields(settings: PredictSettings, width: int) -> list[pa.Field]:
    """Return the columns that the actor appends to a unit's samples.

    Args:
        settings: of the actor.
        width: length of an embedding.
    """
    fields = []
    if settings.top_k:
        fields.append(pa.field("topk_ids", pa.list_(pa.int32())))
        fields.append(pa.field("topk_scores", pa.list_(pa.float32())))
    if settings.threshold is not None:
        fields.append(pa.field("label_ids", pa.list_(pa.int32())))
        fields.append(pa.field("label_scores", pa.list_(pa.float32())))
    if settings.value:
        fields.append(pa.field("value", pa.float32()))
    if settings.embedding:
        kind = {"float16": pa.float16(), "float32": pa.float32()}[settings.embedding]
        fields.append(pa.field("embedding", pa.list_(kind, width)))
    return fields


class Predictor:
    """Predict units, a unit a call: Ray Data's actor, or without Ray an object of this process.

    A decoded unit comes in; the same unit with predictions and without patches goes out.

    Attributes:
        name: of the GPU and its node, or of the CPU's node, for messages.
        notes: why this actor was started again.
        batches: what runs a unit's patches through the model.
        is_actor: whether Ray can start this object again in another process.
    """

    def __init__(self, weights: dict[str, Any] | BaseCheckpoint, settings: PredictSettings):
        """Load the model and try it.

        Args:
            weights: {"ref": ObjectRef of Checkpoint.to_bytes()}. The reference stands inside a dict so that
                an
                actor that is started again fetches the bytes again. Ray keeps one copy a node, which every
                actor of the node reads. Without Ray, the checkpoint itself.
            settings: of the actor.

        Raises:
            UserError: there is no GPU that torch can use, or the model does not fit into its memory.
            DeviceLost: the GPU answers nothing any more, in this process.
        """
        # A batch is a view into the object store, which nobody may write to; nobody does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if settings.device == "cpu":
            torch.set_num_threads(1)  # n one-thread actors do more than one actor of n threads
        self.is_actor = isinstance(weights, dict)
        if self.is_actor:
            leave_at_exit()
        checkpoint = _fetch(weights) if isinstance(weights, dict) else weights
        self.settings = settings
        self.config = checkpoint.config
        device = torch.device("cpu") if settings.device == "cpu" else find_gpu()
        self.name = gpu_name(device)
        self.notes: list[str] = []
        if self.is_actor and device.type != "cpu":
            self.notes = restart_notes()
        compute_in(settings.precision, device)
        with _naming_full_memory(self.name):
            self.model = checkpoint.for_inference(settings.precision, device)
            self.fields = prediction_fields(settings, self.config.embedding_dim)
            self.lock = threading.Lock()
            self.last_end = 0.0  # when the last unit was done, by the clock of `time.perf_counter`
            with torch.inference_mode():
                self.batches = self._make_batches(device)

    def _make_batches(self, device: torch.device) -> SequentialBatches | GpuBatches:
        settings = self.settings
        shape = (self.config.num_patches, self.config.patch_dim)
        if device.type != "cpu":
            return GpuBatches(
                self._forward,
                shape,
                device,
                batch_size=settings.batch_size,
                modes=settings.gpu_modes,
                largest_batch=settings.largest_batch,
            )
        if settings.batch_size is None:
            raise ValueError("only a GPU's actor finds the fastest batch size")
        return SequentialBatches(self._forward, shape, device, settings.batch_size)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Predict one unit.

        Raises:
            ValueError: the table is not one unit.
            UserError: the GPU cannot go on, and in another process it could not either.
        """
        unit = Unit.from_arrow(table)
        begin = time.perf_counter()
        patches = unit.payload.reshape(-1, self.config.num_patches, self.config.patch_dim)
        self._follow(unit, len(patches))
        try:
            unit.samples = self._append(unit.samples, self.predict(patches))
        except DeviceLost as lost:
            if not self.is_actor:
                raise UserError(str(lost)) from lost
            end_process(lost)
        unit.payload = np.empty(0, np.uint8)
        end = time.perf_counter()
        with self.lock:  # of two units at a time each has the seconds that the other has not
            unit.seconds["predict"] = end - max(begin, self.last_end)
            self.last_end = end
        if isinstance(self.batches, GpuBatches):
            unit.prediction = self.gpu_call(self.batches).to_json()
        return unit.to_arrow()

    def _follow(self, unit: Unit, num_images: int) -> None:
        """Let the driver hear how far a unit is. A GPU is done with one before that is worth a note."""
        if not self.is_actor or not isinstance(self.batches, SequentialBatches):
            return
        sign = UnitUnderWay("predict", unit.name, len(unit.samples), unit.bytes_read)
        num_done = 0

        def done(num_more: int) -> None:
            nonlocal num_done
            num_done += num_more
            sign.reached(num_done, num_images)

        self.batches.done = done

    def gpu_call(self, batches: GpuBatches) -> GpuCall:
        """Return how this actor's GPU predicts now, and why it does not predict faster."""
        return GpuCall(
            gpu=self.name,
            mode=batches.mode,
            batch_size=batches.batch_size,
            notes=[*self.notes, *batches.notes],
        )

    @torch.inference_mode()
    def rate(self) -> float:
        """Measure images/s of the model alone."""
        return self.batches.rate()

    @torch.inference_mode()
    def predict(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """Return what the settings ask for.

        Args:
            patches: uint8 (M, N, P*P*3).

        Returns:
            "ids" (M, k), "scores" (M, k), "value" (M,), "embedding" (M, D), and what `chosen_classes` gives,
            as far as asked for; nothing for M = 0.
        """
        if self.settings.threshold is None:
            return self.batches(patches)
        # The scores of all classes are as many as a unit's patches: they are never held for a whole unit.
        rows = rows_at_a_time(self.config.num_classes, self.batches.batch_size)
        parts = []
        for begin in range(0, len(patches), rows):
            part = self.batches(patches[begin : begin + rows])
            parts.append(part | chosen_classes(part.pop("all_scores"), self.settings.threshold))
        return joined(parts)

    def _forward(self, patches: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the same for one batch on the device, uint8 (B, N, P*P*3), in shapes that do not depend on
        the images: "all_scores" (B, K) in place of the chosen classes."""
        logits, embedding = self.model(patches)
        output: dict[str, torch.Tensor] = {}
        if self.settings.value:
            output["value"] = logits[:, 0]
        if self.settings.top_k:
            output |= self._best(logits)
        if self.settings.threshold is not None:
            output["all_scores"] = logits.sigmoid() if self.settings.head == "sigmoid" else logits.softmax(-1)
        if self.settings.embedding:
            if self.settings.normalize:
                embedding = torch.nn.functional.normalize(embedding, dim=-1)
            output["embedding"] = embedding.to(getattr(torch, self.settings.embedding))
        return output

    def _best(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return "ids" (B, k) and "scores" (B, k) of the best classes, the best one first."""
        k = min(self.settings.top_k, logits.shape[-1])
        if self.settings.head == "sigmoid":
            best, ids = logits.topk(k)  # of logits: several scores may round to 1
            return {"ids": ids.to(torch.int32), "scores": best.sigmoid()}
        scores, ids = logits.softmax(-1).topk(k)
        return {"ids": ids.to(torch.int32), "scores": scores}

    def _append(self, samples: pa.Table, predicted: dict[str, np.ndarray]) -> pa.Table:
        """Return the samples with predictions in the rows without an error, and nulls in all other rows."""
        good = samples["error"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
        sources = {"topk_ids": "ids", "topk_scores": "scores"}
        for field in self.fields:
            values = predicted.get(sources.get(field.name, field.name))
            if values is None:
                column = pa.nulls(len(good), field.type)
            elif field.name in ("label_ids", "label_scores"):
                column = _spread_lists(values, predicted["label_counts"], good, field.type)
            else:
                column = _spread(values, good, field.type)
            samples = samples.append_column(field, column)
        return samples


def _fetch(weights: dict[str, Any]) -> BaseCheckpoint:
    return checkpoint_from_bytes(ray.get(weights["ref"]))


@contextlib.contextmanager
def _naming_full_memory(name: str) -> Iterator[None]:
    """Say in one line that a model's weights do not fit into a GPU's memory.

    Raises:
        UserError: in place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{name}: its memory is too small for the model's weights: use --precision bf16 or --device cpu"
        ) from error


def _spread(values: np.ndarray, good: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Return values as a column, null where a row has an error.

    Args:
        values: (M, k) or (M,), one row for every True in `good`.
        good: (rows,), True for a row without an error.
        kind: the column's type: a list, a list of fixed size, or a number.
    """
    if pa.types.is_list(kind):
        counts = np.full(len(values), values.shape[1], np.int32)
        return _spread_lists(np.ascontiguousarray(values).reshape(-1), counts, good, kind)
    full = np.zeros((len(good), *values.shape[1:]), values.dtype)
    full[good] = values
    missing = pa.array(~good)
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(full, kind, mask=~good)
    flat = pa.array(full.reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=missing)


def _spread_lists(
    values: np.ndarray, counts: np.ndarray, good: np.ndarray, kind: pa.DataType
) -> pa.ListArray:
    """Return values as a column of lists, null where a row has an error.

    Args:
        values: those of all lists, one after the other.
        counts: (M,) values in the list of every True in `good`.
        good: (rows,), True for a row without an error.
        kind: the column's type.
    """
    lengths = np.zeros(len(good), np.int32)
    lengths[good] = counts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = pa.array(values, kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind, mask=pa.array(~good))


# ---- a GPU that is lost -----------------------------------------------------------------------------------

LOST_KEY = b"wordsworth-lost:"  # and the ids of a job and an actor: the key of a note to the next process


def end_process(lost: DeviceLost) -> NoReturn:
    """End this process at once.

    Ray starts the actor again in another process, which can have the GPU anew, and gives it the units again.
    """
    print(lost, file=sys.stderr, flush=True)
    leave_note(_key_of_actor(), str(lost))
    os._exit(1)


def restart_notes() -> list[str]:
    """Return why this actor was started again, in a list that is empty for an actor that was not."""
    told = find_notes(_key_of_actor())
    return [f"{reason}; its actor was started again" for reason in told.values()]


def lost_gpus() -> dict[bytes, str]:
    """Return why actors of this job were started again, by actor."""
    return find_notes(_key_of_job())


def _key_of_job() -> bytes:
    return LOST_KEY + f"{ray.get_runtime_context().get_job_id()}:".encode()


def _key_of_actor() -> bytes:
    actor = ray.get_runtime_context().get_actor_id() or "none"  # a trial is no actor and never looks back
    return _key_of_job() + actor.encode()
