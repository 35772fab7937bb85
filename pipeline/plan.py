"""What a run is: the request, the frozen plan, and when a second command is the same run."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pipeline.decode import DECODER
from pipeline.errors import UserError
from pipeline.output import SCHEMA_VERSION, RunFolder
from pipeline.rows import WriteSettings, prediction_schema
from pipeline.source import IMAGE_KEYS, Listing
from pipeline.storage import full_uri, open_filesystem, public
from vit_model.checkpoint import Checkpoint
from vit_model.inference import resolve_precision

UNIT_PATCH_BYTES = 96 << 20  # patches in one unit, at most; and at most 1/16 of the object store
MAX_UNIT_ROWS = 4096


@dataclass(frozen=True)
class LabelRequest:
    """What the user asked for. model: how the model is called in messages and footers. batch_size: 0 chooses one."""

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
    unit_rows: int = 0
    address: str | None = None
    storage_options: dict[str, Any] = field(default_factory=dict)
    image_column: str | None = None
    key: str | None = None


def asked_for(request: LabelRequest, checkpoint: Checkpoint) -> dict[str, Any]:
    """What makes two commands the same run."""
    settings = WriteSettings("", {}, None, request.top_k, request.embedding, 1)
    if taken := set(request.keep) & set(prediction_schema(settings).names):
        name = min(taken)
        raise UserError(f"--keep {name}: every row has a column of that name already, so this one would need another", exit_code=2)
    columns = {"image-column": request.image_column, "key": request.key}
    asked = {
        "command": request.command,
        "source": sorted(public(full_uri(*open_filesystem(source, request.storage_options))) for source in request.sources),
        "format": request.format,
        "model fingerprint": checkpoint.fingerprint()[:16],
        "labels": hashlib.sha256("\n".join(checkpoint.labels).encode()).hexdigest()[:12] if checkpoint.labels else None,
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "top-k": request.top_k,
        "embedding": request.embedding,
        "normalize": request.normalize,
        "keep": list(request.keep),
        "image-key": list(request.image_keys),
        "precision": request.precision,
        "device": request.device,
    }
    return asked | {name: column for name, column in columns.items() if column}  # of tables alone: other plans have neither


def make_plan(asked: dict, request: LabelRequest, checkpoint: Checkpoint, available: dict[str, float]) -> dict[str, Any]:
    """The frozen settings: what was asked, and what every `auto` became."""
    device = request.device if request.device != "auto" else "cuda" if available.get("GPU") else "cpu"
    precision = resolve_precision(request.precision, device)
    batch_size = request.batch_size or (256 if device == "cuda" else 8)
    store = available.get("object_store_memory", UNIT_PATCH_BYTES * 16)
    unit_rows = request.unit_rows or _unit_rows(checkpoint, batch_size, int(min(UNIT_PATCH_BYTES, store / 16)))
    resolved = {
        "device": device,
        "precision": precision,
        "batch_size": batch_size,
        "unit_rows": unit_rows,
        "decoder": DECODER,
    }
    comparable = [checkpoint.fingerprint(), device, precision, DECODER]
    plan = {
        "schema_version": SCHEMA_VERSION,
        "package_version": version("wordsworth"),
        "model": request.model,
        "fingerprint": hashlib.sha256("|".join(comparable).encode()).hexdigest(),
        "asked": json.loads(json.dumps(asked)),
        "resolved": resolved,
    }
    return plan | {"run_id": hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]}


def _unit_rows(checkpoint: Checkpoint, batch_size: int, budget: int) -> int:
    """Samples in a unit: as many batches as fit the budget of bytes, so that only a shard's last batch is short."""
    rows = min(MAX_UNIT_ROWS, budget // (checkpoint.config.num_patches * checkpoint.config.patch_dim))
    return max(1, rows // batch_size) * batch_size


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
        raise UserError(f"{run.uri} holds another run: {'; '.join(differing)}. Choose a new --output, or repeat the first command")


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def notes(listing: Listing) -> Iterator[str]:
    if listing.ignored:
        names = ", ".join(f"{count} {name}" for name, count in listing.ignored.most_common(5))
        yield f"ignored {sum(listing.ignored.values())} files of other kinds: {names}"


def check_sources(run: RunFolder, listing: Listing) -> Iterator[str]:
    """The source as it is now against the source as it was frozen; yields what the user should know."""
    now, then = (dict(_objects(shards)) for shards in (listing.shards, run.frozen_shards()))
    changed = [uri for uri, identity in then.items() if now.get(uri, identity) != identity]
    if changed:
        raise UserError(
            f"{changed[0]} was replaced since {run.uri} was planned ({len(changed)} such in all): "
            "label into a new --output, or put the old object back"
        )
    if new := len(now.keys() - then.keys()):
        yield f"{new} shards or images are new since this run was planned and are not part of it"


def _objects(shards) -> Iterator[tuple[str, tuple[int, str]]]:
    for shard in shards:
        if shard.kind != "images":
            yield shard.uri, (shard.size, shard.version)
        for member in shard.members:
            yield f"{shard.uri}/{member['key']}", (member["size"], member["version"])
