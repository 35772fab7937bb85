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
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.gpu import DeviceLost, compute_in, find_gpu, gpu_name
from wordsworth.pipeline.prediction.gpu_batches import SequentialBatches
from wordsworth.pipeline.prediction.gpu_modes import BATCH_SIZES, MODES, GpuBatches
from wordsworth.pipeline.unit import GpuCall, Unit
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.inference import prepare


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Hold the settings of an actor.

    Attributes:
        precision: "fp32" or "bf16".
        device: "cpu", or "cuda" for the GPU that Ray gives to the actor.
        batch_size: images in a forward pass; None finds the fastest, on a GPU alone.
        top_k: classes that are kept; 0 gives no labels.
        embedding: None, "float16" or "float32".
        normalize: divide embeddings by their length.
        gpu_modes: the modes that a GPU's actor may take, the first one first.
        largest_batch: images in the largest batch that is tried when the fastest is looked for.
    """

    precision: str
    device: str
    batch_size: int | None
    top_k: int = 5
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

    def __init__(self, weights: dict[str, Any] | Checkpoint, settings: PredictSettings):
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
            self.model = prepare(checkpoint.model(), checkpoint.preprocessing, settings.precision, device)
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
            "ids" (M, k), "scores" (M, k) and "embedding" (M, D), as far as asked for; nothing for M = 0.
        """
        return self.batches(patches)

    def _forward(self, patches: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the same for one batch on the device: uint8 (B, N, P*P*3)."""
        logits, embedding = self.model(patches)
        output: dict[str, torch.Tensor] = {}
        if self.settings.top_k:
            scores, ids = logits.softmax(-1).topk(min(self.settings.top_k, logits.shape[-1]))
            output["ids"] = ids.to(torch.int32)
            output["scores"] = scores
        if self.settings.embedding:
            if self.settings.normalize:
                embedding = torch.nn.functional.normalize(embedding, dim=-1)
            output["embedding"] = embedding.to(getattr(torch, self.settings.embedding))
        return output

    def _append(self, samples: pa.Table, predicted: dict[str, np.ndarray]) -> pa.Table:
        """Return the samples with predictions in the rows without an error, and nulls in all other rows."""
        good = samples["error"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
        sources = {"topk_ids": "ids", "topk_scores": "scores", "embedding": "embedding"}
        for field in self.fields:
            values = predicted.get(sources[field.name])
            samples = samples.append_column(field, _spread(values, good, field.type))
        return samples


def _fetch(weights: dict[str, Any]) -> Checkpoint:
    return Checkpoint.from_bytes(ray.get(weights["ref"]))


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


def _spread(values: np.ndarray | None, good: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Return values as a list column, null where a row has an error.

    Args:
        values: (M, k), one row for every True in `good`; None for no row.
        good: (rows,), True for a row without an error.
        kind: the column's type: a list, or a list of fixed size.
    """
    if values is None:
        return pa.nulls(len(good), kind)
    k = values.shape[1]
    missing = pa.array(~good)
    if pa.types.is_fixed_size_list(kind):
        full = np.zeros((len(good), k), values.dtype)
        full[good] = values
        flat = pa.array(full.reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=missing)
    lengths = np.where(good, k, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind, mask=missing)


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
