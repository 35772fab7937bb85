"""The actor: patches -> predictions. One copy of the model for the life of a run, CPU and CUDA by the same code."""

import contextlib
import json
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

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.gpu import DeviceLost, compute_in, find_gpu, gpu_name
from wordsworth.pipeline.prediction.gpu_batches import Plain
from wordsworth.pipeline.prediction.gpu_modes import MODES, SIZES, Ladder
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.inference import prepare


@dataclass(frozen=True)
class PredictSettings:
    """Tell an actor how to predict.

    precision: "fp32" or "bf16".
    device: "cpu", or "cuda" for the GPU that Ray gives to the actor.
    batch_size: images in a forward pass; None finds the fastest, on a GPU.
    top_k: classes that are kept; 0 gives no labels.
    embedding: None, "float16" or "float32".
    normalize: divide embeddings by their length.
    gpu_modes: the ways that a GPU's actor may take, the first one first.
    largest_batch: images in the largest batch that is tried when the fastest is looked for.
    """

    precision: str
    device: str
    batch_size: int | None
    top_k: int = 5
    embedding: str | None = None
    normalize: bool = False
    gpu_modes: tuple[str, ...] = MODES
    largest_batch: int = SIZES[-1]


def prediction_fields(settings: PredictSettings, width: int) -> list[pa.Field]:
    """The columns that the actor appends to a unit's samples."""
    fields = []
    if settings.top_k:
        fields += [
            pa.field("topk_ids", pa.list_(pa.int32())),
            pa.field("topk_scores", pa.list_(pa.float32())),
        ]
    if settings.embedding:
        kind = {"float16": pa.float16(), "float32": pa.float32()}[settings.embedding]
        fields.append(pa.field("embedding", pa.list_(kind, width)))
    return fields


class Predictor:
    """Ray Data's callable: a decoded unit in, the same unit with predictions and without patches out.

    weights: {"ref": ObjectRef of Checkpoint.to_bytes()}. The reference stands inside a dict so that a restarted actor fetches it
    again; Ray keeps one copy a node, which every actor of the node reads. Or, without Ray, the checkpoint itself.
    """

    def __init__(self, weights: dict[str, Any] | Checkpoint, settings: PredictSettings):
        """Load the model and try it.

        Raises:
            UserError: there is no GPU that torch can use, or the model does not fit into its memory.
            DeviceLost: the GPU answers nothing any more, in this process.
        """
        # A batch is a view into the object store, which nobody may write to; nobody does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if settings.device == "cpu":
            torch.set_num_threads(1)  # n one-thread actors do more than one actor of n threads
        self.acts = isinstance(weights, dict)
        checkpoint = Checkpoint.from_bytes(ray.get(weights["ref"])) if self.acts else weights
        self.settings = settings
        self.config = config = checkpoint.config
        device = torch.device("cpu") if settings.device == "cpu" else find_gpu()
        self.name = gpu_name(device)
        self.notes = lost_before() if self.acts and device.type != "cpu" else []
        compute_in(settings.precision, device)
        with telling(self.name):
            self.model = prepare(checkpoint.model(), checkpoint.preprocessing, settings.precision, device)
            self.fields = prediction_fields(settings, config.embedding_dim)
            self.lock, self.ended = threading.Lock(), 0.0
            shape = config.num_patches, config.patch_dim
            with torch.inference_mode():
                if device.type == "cpu":
                    self.batches = Plain(self._answer, shape, device, settings.batch_size)
                else:
                    limits = settings.batch_size, settings.gpu_modes, settings.largest_batch
                    self.batches = Ladder(self._answer, shape, device, *limits)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Predict one unit.

        Raises:
            ValueError: the table is not one unit.
            UserError: the GPU cannot go on, and another process could not either.
        """
        unit = Unit.from_arrow(table)
        start = time.perf_counter()
        patches = unit.payload.reshape(-1, self.config.num_patches, self.config.patch_dim)
        try:
            unit.samples = self._append(unit.samples, self.predict(patches))
        except DeviceLost as lost:
            if not self.acts:
                raise UserError(str(lost)) from lost
            end_process(lost)
        unit.payload = np.empty(0, np.uint8)
        end = time.perf_counter()
        with self.lock:  # of two units at a time each has the seconds that the other has not
            unit.seconds["predict"], self.ended = end - max(start, self.ended), end
        if self.settings.device != "cpu":
            unit.prediction = json.dumps(self.way())
        return unit.to_arrow()

    def way(self) -> dict[str, Any]:
        """Say how this actor predicts: its GPU and node, the way, the batch, and why it is not another."""
        notes = [*self.notes, *self.batches.notes]
        return {
            "gpu": self.name,
            "mode": self.batches.mode,
            "batch_size": self.batches.batch_size,
            "notes": notes,
        }

    @torch.inference_mode()
    def rate(self) -> float:
        """Measure images/s of the model alone."""
        return self.batches.rate()

    @torch.inference_mode()
    def predict(self, patches: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (M, N, P*P*3) -> {"ids" (M, k), "scores" (M, k), "embedding" (M, D)}, as far as asked for."""
        return self.batches(patches)

    def _answer(self, patches: torch.Tensor) -> dict[str, torch.Tensor]:
        logits, embedding = self.model(patches)
        out = {}
        if self.settings.top_k:
            scores, ids = logits.softmax(-1).topk(min(self.settings.top_k, logits.shape[-1]))
            out |= {"ids": ids.to(torch.int32), "scores": scores}
        if self.settings.embedding:
            embedding = (
                torch.nn.functional.normalize(embedding, dim=-1) if self.settings.normalize else embedding
            )
            out["embedding"] = embedding.to(getattr(torch, self.settings.embedding))
        return out

    def _append(self, samples: pa.Table, predicted: dict[str, np.ndarray]) -> pa.Table:
        """Predictions stand in the rows without an error; the others get nulls."""
        good = samples["error"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
        sources = {"topk_ids": "ids", "topk_scores": "scores", "embedding": "embedding"}
        for field in self.fields:
            values = predicted.get(sources[field.name])
            samples = samples.append_column(field, _spread(values, good, field.type))
        return samples


@contextlib.contextmanager
def telling(name: str) -> Iterator[None]:
    """Say in one line that a model does not even load into a GPU's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{name}: its memory is too small for the model's weights: use --precision bf16 or --device cpu"
        ) from error


LOST = b"wordsworth-lost:"  # and the ids of a job and an actor: a key in the cluster's own store, for its next process


def end_process(lost: DeviceLost) -> NoReturn:
    """End this process at once: Ray starts the actor in another one, which can have the GPU anew, and gives it the units again."""
    from ray.experimental import internal_kv

    print(lost, file=sys.stderr, flush=True)
    internal_kv._internal_kv_put(_lost_key(), str(lost).encode())
    os._exit(1)


def lost_before() -> list[str]:
    """Return why this actor was started again, in a list that is empty for one that was not."""
    from ray.experimental import internal_kv

    said = internal_kv._internal_kv_get(_lost_key())
    return [f"{said.decode()}; its actor was started again"] if said else []


def lost_gpus() -> dict[bytes, str]:
    """Return why actors of this job were started again, by actor."""
    from ray.experimental import internal_kv

    return {
        key: internal_kv._internal_kv_get(key).decode()
        for key in internal_kv._internal_kv_list(_lost_key(of_all=True))
    }


def _lost_key(of_all: bool = False) -> bytes:
    context = ray.get_runtime_context()
    actor = "" if of_all else context.get_actor_id() or "none"  # a trial is no actor and never looks back
    return LOST + f"{context.get_job_id()}:{actor}".encode()


def _spread(values: np.ndarray | None, good: np.ndarray, kind: pa.DataType) -> pa.Array:
    """(M, k) values into a list column of len(good) rows, null where `good` is False."""
    if values is None:
        return pa.nulls(len(good), kind)
    k, missing = values.shape[1], pa.array(~good)
    if pa.types.is_fixed_size_list(kind):
        full = np.zeros((len(good), k), values.dtype)
        full[good] = values
        return pa.FixedSizeListArray.from_arrays(
            pa.array(full.reshape(-1), kind.value_type), type=kind, mask=missing
        )
    offsets = np.concatenate([[0], np.cumsum(good * k)]).astype(np.int32)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind, mask=missing)
