"""The actor: patches -> predictions. One copy of the model for the life of a run, CPU and CUDA by the same code."""

import threading
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from pipeline.batches import InTurn, Overlapped
from pipeline.unit import Unit
from vit_model.checkpoint import Checkpoint
from vit_model.inference import prepare


@dataclass(frozen=True)
class PredictSettings:
    """precision: "fp32" or "bf16". device: "cpu" or "cuda". batch_size: None finds one, on a GPU. top_k: 0 gives no labels.
    embedding: None or "float16" or "float32"."""

    precision: str
    device: str
    batch_size: int | None
    top_k: int = 5
    embedding: str | None = None
    normalize: bool = False


def prediction_fields(settings: PredictSettings, width: int) -> list[pa.Field]:
    """The columns that the actor appends to a unit's samples."""
    fields = []
    if settings.top_k:
        fields += [pa.field("topk_ids", pa.list_(pa.int32())), pa.field("topk_scores", pa.list_(pa.float32()))]
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
        # A batch is a view into the object store, which nobody may write to; nobody does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if settings.device == "cpu":
            torch.set_num_threads(1)  # n one-thread actors do more than one actor of n threads
        checkpoint = weights if isinstance(weights, Checkpoint) else Checkpoint.from_bytes(ray.get(weights["ref"]))
        self.settings = settings
        self.config = config = checkpoint.config
        self.model = prepare(checkpoint.model(), checkpoint.preprocessing, settings.precision, settings.device)
        self.fields = prediction_fields(settings, config.embedding_dim)
        self.lock, self.ended = threading.Lock(), 0.0
        with torch.inference_mode():
            batches = InTurn if settings.device == "cpu" else Overlapped
            self.batches = batches(self._answer, (config.num_patches, config.patch_dim), settings.device, settings.batch_size)

    def __call__(self, table: pa.Table) -> pa.Table:
        unit = Unit.from_arrow(table)
        start = time.perf_counter()
        patches = unit.payload.reshape(-1, self.config.num_patches, self.config.patch_dim)
        unit.samples = self._append(unit.samples, self.predict(patches))
        unit.payload = np.empty(0, np.uint8)
        end = time.perf_counter()
        with self.lock:  # of two units at a time each has the seconds that the other has not
            unit.seconds["predict"], self.ended = end - max(start, self.ended), end
        return unit.to_arrow()

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
            embedding = torch.nn.functional.normalize(embedding, dim=-1) if self.settings.normalize else embedding
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


def _spread(values: np.ndarray | None, good: np.ndarray, kind: pa.DataType) -> pa.Array:
    """(M, k) values into a list column of len(good) rows, null where `good` is False."""
    if values is None:
        return pa.nulls(len(good), kind)
    k, missing = values.shape[1], pa.array(~good)
    if pa.types.is_fixed_size_list(kind):
        full = np.zeros((len(good), k), values.dtype)
        full[good] = values
        return pa.FixedSizeListArray.from_arrays(pa.array(full.reshape(-1), kind.value_type), type=kind, mask=missing)
    offsets = np.concatenate([[0], np.cumsum(good * k)]).astype(np.int32)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind, mask=missing)
