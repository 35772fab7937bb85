"""What a run is: the request, the frozen plan, and when a second command is the same run."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DECODER, FAST_DECODER
from wordsworth.pipeline.output.frozen_listing import Changes
from wordsworth.pipeline.output.prediction_rows import WriteSettings, prediction_schema
from wordsworth.pipeline.output.run_folder import SCHEMA_VERSION, RunFolder
from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.shards import IMAGE_KEYS
from wordsworth.pipeline.storage.filesystem import full_uri, open_filesystem, public
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.inference import resolve_precision

if TYPE_CHECKING:
    from wordsworth.pipeline.prediction.gpu_trial import GpuWay

UNIT_PATCH_BYTES = 96 << 20  # patches in one unit, at most; and at most 1/16 of the object store
MAX_UNIT_ROWS = 4096
CPU_BATCH = 8  # images
SOURCES_NAMED = 1000  # in a plan; of more it holds the hash


@dataclass(frozen=True)
class LabelRequest:
    """What the user asked for. model: how the model is called in messages and footers. batch_size: 0 chooses one.
    update: add shards and images that are new in the source; replace_changed: label those again that are others now.
    retry_errors: fetch, decode and predict again what failed. on_error: "keep" its row, or "fail" at the first.
    gpu_mode: "auto", or one way of `wordsworth.pipeline.prediction.gpu_modes.MODES`. gpus_per_actor: above 0, 1 at most.
    stall_timeout: seconds without a written unit after which the run gives up. target: a class that every image must have; its
    sidecar is in `keep`."""

    command: str
    sources: tuple[str, ...]
    output: str
    model: str
    format: str | None = None
    top_k: int = 5
    embedding: str | None = None
    normalize: bool = False
    keep: tuple[str, ...] = ()
    image_keys: tuple[str, ...] = IMAGE_KEYS
    precision: str = "auto"
    device: str = "auto"
    batch_size: int = 0
    gpu_mode: str = "auto"
    gpus_per_actor: float = 1.0
    unit_rows: int = 0
    address: str | None = None
    update: bool = False
    replace_changed: bool = False
    retry_errors: bool = False
    on_error: str = "keep"
    max_image_bytes: int = 256 << 20
    max_pixels: int = 100_000_000
    max_side: int = 65_500
    decode_timeout: float = 30.0
    stall_timeout: float = 1800.0
    storage_options: dict[str, Any] = field(default_factory=dict)
    image_column: str | None = None
    key: str | None = None
    fast_decode: bool = False
    target: Target | None = None


def asked_for(request: LabelRequest, checkpoint: Checkpoint) -> dict[str, Any]:
    """What makes two commands the same run."""
    settings = WriteSettings("", {}, None, request.top_k, request.embedding, 1)
    if taken := set(request.keep) & set(prediction_schema(settings).names):
        name = min(taken)
        raise UserError(
            f"--keep {name}: every row has a column of that name already, so this one would need another",
            exit_code=2,
        )
    rare = {"image-column": request.image_column, "key": request.key, "fast-decode": request.fast_decode}
    asked = {
        "command": request.command,
        "source": _sources(request),
        "format": request.format,
        "model fingerprint": checkpoint.fingerprint()[:16],
        "labels": hashlib.sha256("\n".join(checkpoint.labels).encode()).hexdigest()[:12]
        if checkpoint.labels
        else None,
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "top-k": request.top_k,
        "embedding": request.embedding,
        "normalize": request.normalize,
        "keep": list(request.keep),
        "image-key": list(request.image_keys),
        "precision": request.precision,
        "device": request.device,
    }
    return asked | {name: value for name, value in rare.items() if value}  # other plans have none of them


def _sources(request: LabelRequest) -> list[str]:
    """The sources by name, in order; of a long list its length and hash."""
    names = sorted(
        public(full_uri(*open_filesystem(source, request.storage_options))) for source in request.sources
    )
    if len(names) <= SOURCES_NAMED:
        return names
    return [f"{len(names)} sources, sha256 {hashlib.sha256(chr(10).join(names).encode()).hexdigest()}"]


def choose_device(request: LabelRequest, available: dict[str, float]) -> str:
    """Return "cuda" or "cpu": what `--device auto` is on a cluster with these resources."""
    return request.device if request.device != "auto" else "cuda" if available.get("GPU") else "cpu"


def make_plan(
    asked: dict,
    request: LabelRequest,
    checkpoint: Checkpoint,
    available: dict[str, float],
    gpu: "GpuWay | None" = None,
) -> dict[str, Any]:
    """Return the frozen settings: what was asked, and what every `auto` became.

    Args:
        asked: as `asked_for`.
        available: Ray's resources.
        gpu: what the cluster's GPUs can do; None plans for CPUs.
    """
    device, precision = (
        ("cuda", gpu.precision) if gpu else ("cpu", resolve_precision(request.precision, "cpu"))
    )
    batch_size = gpu.batch_size if gpu else request.batch_size or CPU_BATCH
    unit_rows = request.unit_rows or _unit_rows(checkpoint, batch_size, unit_budget(available))
    resolved = {
        "device": device,
        "precision": precision,
        "batch_size": batch_size,
        "unit_rows": unit_rows,
        "decoder": (decoder := FAST_DECODER if request.fast_decode else DECODER),
    }
    comparable = [checkpoint.fingerprint(), device, precision, decoder]
    plan = {
        "schema_version": SCHEMA_VERSION,
        "package_version": version("wordsworth"),
        "model": request.model,
        "fingerprint": hashlib.sha256("|".join(comparable).encode()).hexdigest(),
        "asked": json.loads(json.dumps(asked)),
        "resolved": resolved,
    }
    return plan | {"run_id": hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]}


def unit_budget(available: dict[str, float]) -> int:
    """Return the bytes of patches that a unit may have."""
    return int(min(UNIT_PATCH_BYTES, available.get("object_store_memory", UNIT_PATCH_BYTES * 16) / 16))


def most_rows(checkpoint: Checkpoint, budget: int) -> int:
    """Return the samples whose patches fit into so many bytes."""
    return max(1, min(MAX_UNIT_ROWS, budget // (checkpoint.config.num_patches * checkpoint.config.patch_dim)))


def _unit_rows(checkpoint: Checkpoint, batch_size: int, budget: int) -> int:
    """Samples in a unit: as many batches as fit the budget of bytes, so that only a shard's last batch is short."""
    most = most_rows(checkpoint, budget)
    return most // batch_size * batch_size or most


def refuse_another_run(run: RunFolder, plan: dict, asked: dict) -> None:
    if plan.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{run.uri} was begun by another version of wordsworth: choose a new --output")
    asked = json.loads(json.dumps(asked))
    differing = [
        f"{name} was {_short(plan['asked'].get(name))} and is {_short(asked.get(name))}"
        for name in asked | plan["asked"]
        if plan["asked"].get(name) != asked.get(name)
    ]
    if differing:
        raise UserError(
            f"{run.uri} holds another run: {'; '.join(differing)}. Choose a new --output, or repeat the first command"
        )


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def change_notes(found: Changes, updating: bool) -> Iterator[str]:
    """What the user should know of a source that is not what it was."""
    if found.new and not updating:
        yield f"{found.new} shards or images are new since this run was planned and are not part of it: --update labels them"
    if updating:
        changed = f", {len(found.changed)} changed" if found.changed else ""
        kept = " (--replace-changed labels those again)" if found.changed and not found.replaces else ""
        yield f"update: {found.new} new shards or images{changed}{kept}"
