"""Freeze what a run is: compare two commands, resolve every `auto`, cut the shards into units."""

import hashlib
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wordsworth.pipeline.cluster.package import package_version
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DECODER, FAST_DECODER
from wordsworth.pipeline.labeling.head_columns import HeadColumns, head_columns
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.prediction_rows import prediction_schema
from wordsworth.pipeline.output.records import SCHEMA_VERSION, JsonObject, ResolvedSettings, RunPlan
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.class_labels import first_class_labels, labels_by_name
from wordsworth.pipeline.sources.kept_columns import output_name, source_name
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.source_names import sorted_names_hash
from wordsworth.pipeline.sources.tar_keys import DEFAULT_KEY_RULE, FIRST_DOT
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    absolute_uri,
    open_filesystem,
    without_credentials,
)
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.inference import resolve_precision

if TYPE_CHECKING:
    from wordsworth.pipeline.prediction.gpu_trial import GpuWay

UNIT_PATCH_BYTES = 96 << 20  # bytes of patches in one unit, at most
OBJECT_STORE_SHARE = 16  # a unit's patches take 1/16 of Ray's object store, at most
MAX_UNIT_ROWS = 4096  # samples in one unit, at most
# On CPUs a source of few images is cut into small units, so that its first rows are there soon and the actors
# end together. A unit takes an actor seconds, and the engine 0.07 CPU-seconds.
FEW_UNITS = 32  # units of a source, at least
LEAST_UNIT_ROWS = 128  # samples in one unit that are not cut further
PHOTOGRAPH_BYTES = 100_000  # bytes of an encoded image: many have less, and then there are more units
CPU_BATCH = 8  # images in one forward pass on a CPU
MAX_SOURCES_NAMED = 1000  # sources that a plan names; of a longer list it holds the hash
# Whether kept columns have the names of classes in place of numbers. The first page of a listing decides it,
# not the command, so it is no difference between two commands.
CLASS_NAMES = "class-names"
KEY_RULE = "key-rule"  # name of an option
MODEL = "model fingerprint"
LABELS = "labels"
EMBEDDING = "embedding"
HEAD = "head"  # kind of the head
UNNAMED: JsonObject = {KEY_RULE: FIRST_DOT, HEAD: "softmax"}  # what a plan means that does not name these
FLAGS = ("embeddings", "normalize", "fast-decode", "include-hidden")  # options without a value
NO_OPTIONS = ("command", "source")  # what is asked for without an option
MOST_NAMED = 6  # differences between two commands in a message
MAX_VALUE_LENGTH = 200  # characters of an option's value in a message


# ---- what was asked -------------------------------------------------------------------------------------


def asked_for(request: LabelRequest, checkpoint: BaseCheckpoint) -> JsonObject:
    """Return the options that make two commands the same run, by their names on the command line.

    Raises:
        UserError: --keep gives a column a name that every row has already, or gives a name twice.
    """
    columns = head_columns(request, checkpoint)
    _check_kept(request, columns)
    asked: JsonObject = {
        "command": request.command,
        "source": _source_names(request),
        "format": request.format,
        MODEL: checkpoint.fingerprint()[:16],
        LABELS: _labels_hash(checkpoint.labels),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "top-k": request.top_k,
        EMBEDDING: request.embedding,
        "normalize": request.normalize,
        "keep": list(request.keep),
        "image-key": list(request.image_keys),
        "precision": request.precision,
        "device": request.device,
    }
    # Plans of earlier versions do not have these options, so they are left out where they are not used.
    rare = {
        "image-column": request.image_column,
        "key": request.key,
        "fast-decode": request.fast_decode,
        "include-hidden": request.include_hidden,
        "follow-links": request.follow_links if request.follow_links != "inside" else None,
    }
    if checkpoint.head.kind != UNNAMED[HEAD]:
        rare[HEAD] = checkpoint.head.kind
    if columns.threshold is not None:
        asked["threshold"] = columns.threshold
    if request.key_rule != FIRST_DOT:  # a plan that names no rule has that of earlier versions
        rare[KEY_RULE] = request.key_rule
    for name, value in rare.items():
        if value:
            asked[name] = value
    return json.loads(json.dumps(asked))  # as plan.json gives it back: a tuple is a list there


def with_class_names(asked: JsonObject, request: LabelRequest, shards: list[Shard]) -> JsonObject:
    """Return `asked`, and in it that names of classes are kept where the first table of `shards` has them."""
    if not request.keep:
        return asked
    kept = {source_name(name).lower() for name in request.keep}
    named = labels_by_name(first_class_labels(shards, request.storage_options))
    return asked | {CLASS_NAMES: True} if kept & named.keys() else asked


def own_columns(request: LabelRequest, columns: HeadColumns) -> list[str]:
    """Return the names of the columns that every row of a run has."""
    chosen = columns.threshold is not None
    schema = prediction_schema(request.top_k, request.embedding, 1, chosen=chosen, value=columns.value)
    return schema.names


def _check_kept(request: LabelRequest, columns: HeadColumns) -> None:
    names: set[str] = set()
    for kept in request.keep:
        name = output_name(kept)
        if name in own_columns(request, columns):
            raise UserError(
                f"--keep {kept}: every row has a column {name} already: "
                f"--keep {source_name(kept)}=NAME keeps it under another name",
                exit_code=2,
            )
        if name in names:
            raise UserError(f"--keep gives two columns the name {name}: COLUMN=NAME renames one", exit_code=2)
        names.add(name)


def _source_names(request: LabelRequest) -> list[str]:
    """Return the sources in order, without credentials; of a long list its length and hash."""
    names = (_source_name(source, request.storage_options) for source in request.sources)
    if len(request.sources) <= MAX_SOURCES_NAMED:
        return sorted(names)
    return [f"{len(request.sources)} sources, sha256 {sorted_names_hash(names)}"]


def _source_name(source: str, options: StorageOptions) -> str:
    fs, path = open_filesystem(source, options)
    return without_credentials(absolute_uri(fs, path))


def _labels_hash(labels: tuple[str, ...] | None) -> str | None:
    return _sha256("\n".join(labels))[:12] if labels else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_another_run(
    run: RunFolder,
    plan: RunPlan,
    asked: JsonObject,
    checkpoint: BaseCheckpoint | None = None,
    model: str | None = None,
) -> None:
    """Check that a command continues the run of a plan.

    Args:
        run: the output.
        plan: of the run that is there.
        asked: as `asked_for` gives it, of this command.
        checkpoint: the model of this command, whose commit on a hub helps to say what differs.
        model: its name.

    Raises:
        UserError: another version of wordsworth made the run, or an option differs.
    """
    if plan.schema_version != SCHEMA_VERSION:
        raise UserError(f"{run.uri} was begun by another version of wordsworth: choose a new --output")
    asked = UNNAMED | asked
    if KEY_RULE not in plan.asked and asked[KEY_RULE] == DEFAULT_KEY_RULE:
        asked[KEY_RULE] = FIRST_DOT  # the run goes on as it began
    before_asked = UNNAMED | plan.asked
    differing = []
    for name in asked | before_asked:
        before = before_asked.get(name)
        now = asked.get(name)
        if before == now or name == CLASS_NAMES:
            continue
        if name == MODEL and model is not None and plan.model != model:
            differing.append(f"model was {_shortened(plan.model)} and is {_shortened(model)}")
        elif name == MODEL:
            its = f"fingerprint was {_shortened(before)} and is {now}"
            differing.append(f"the weights of model {_shortened(plan.model)} differ ({its})")
        else:
            differing += _difference(name, before, now)
    if len(differing) > MOST_NAMED:
        differing[MOST_NAMED:] = [f"and {len(differing) - MOST_NAMED} more"]
    if differing:
        moved = _moved_commit(plan, checkpoint)
        raise UserError(
            f"{run.uri} holds another run: {'; '.join(differing)}. {moved}"
            "Choose a new --output, or repeat the first command"
        )


def _moved_commit(plan: RunPlan, checkpoint: BaseCheckpoint | None) -> str:
    """Return a sentence where the hub's weights are of another commit than those of the plan, or nothing."""
    now = checkpoint.extra.get("commit") if checkpoint else None
    if now is None or plan.commit is None or now == plan.commit:
        return ""
    pinned = f"{plan.model.partition('@')[0]}@{plan.commit}"
    return f"Its weights are of commit {plan.commit}, and are now of {now}: --model {pinned} goes on. "


def key_rule_of(plan: RunPlan) -> str:
    """Return the rule for the keys of tars that a run began with."""
    return plan.asked.get(KEY_RULE, FIRST_DOT)


def has_keys_by_path(plan: RunPlan, request: LabelRequest) -> bool:
    """Return whether the images of a struct are named by its path in a run.

    An earlier version named them by their rows, and its runs go on so. It put no rule for keys into a plan,
    and the version of today leaves out FIRST_DOT alone.
    """
    return KEY_RULE in plan.asked or request.key_rule == FIRST_DOT


def _difference(name: str, before: Any, now: Any) -> list[str]:
    """Return what differs in an option: of one with parts the parts."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [part for part in before | now if before.get(part) != now.get(part)]
        return [_was_and_is(part, before.get(part), now.get(part)) for part in parts]
    if name == LABELS:
        return ["the labels of the model differ"]
    if name == EMBEDDING:
        name = "dtype" if before and now else "embeddings"
    if name in FLAGS:
        return [f"--{name} was {'given' if before else 'not given'} and is {'' if now else 'not '}now"]
    return [_was_and_is(name if name in NO_OPTIONS else f"--{name}", before, now)]


def _was_and_is(name: str, before: Any, now: Any) -> str:
    return f"{name} was {_shortened(before)} and is {_shortened(now)}"


def _shortened(value: Any) -> str:
    if value is None or value == []:
        return "not given"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 3]}..."


# ---- what every `auto` becomes --------------------------------------------------------------------------


def choose_device(request: LabelRequest, cluster: dict[str, float]) -> str:
    """Return "cuda" or "cpu": what `--device` means on a cluster with these resources."""
    if request.device != "auto":
        return request.device
    return "cuda" if cluster.get("GPU") else "cpu"


def make_plan(
    asked: JsonObject,
    request: LabelRequest,
    checkpoint: BaseCheckpoint,
    cluster: dict[str, float],
    gpu: "GpuWay | None" = None,
    source_bytes: float = math.inf,
) -> RunPlan:
    """Return the frozen settings of a run.

    Args:
        asked: as `asked_for` gives it.
        cluster: Ray's resources.
        gpu: what the GPUs of the cluster can do; None plans for CPUs.
        source_bytes: bytes of all shards; infinite where nobody knows.
    """
    resolved = _resolve(request, checkpoint, cluster, gpu, source_bytes)
    plan = RunPlan(
        schema_version=SCHEMA_VERSION,
        package_version=package_version(),
        model=request.model,
        fingerprint=resolved.fingerprint(checkpoint.fingerprint()),
        asked=asked,
        resolved=resolved,
        run_id="",
        commit=checkpoint.extra.get("commit"),
        revision=checkpoint.extra.get("revision"),
    )
    hashed = plan.to_dict()
    del hashed["run_id"]
    return replace(plan, run_id=_sha256(json.dumps(hashed, sort_keys=True))[:16])


def _resolve(
    request: LabelRequest,
    checkpoint: BaseCheckpoint,
    cluster: dict[str, float],
    gpu: "GpuWay | None",
    source_bytes: float,
) -> ResolvedSettings:
    most = max_unit_rows(checkpoint, max_unit_bytes(cluster))
    if gpu:
        device = "cuda"
        precision = gpu.precision
        batch_size = gpu.batch_size
    else:
        device = "cpu"
        precision = resolve_precision(request.precision, "cpu")
        batch_size = request.batch_size or CPU_BATCH
        few = source_bytes / PHOTOGRAPH_BYTES / FEW_UNITS
        most = int(min(most, max(few, batch_size, LEAST_UNIT_ROWS)))
    return ResolvedSettings(
        device=device,
        precision=precision,
        batch_size=batch_size,
        unit_rows=request.unit_rows or _whole_batches(most, batch_size),
        decoder=decoder_of(request),
    )


def decoder_of(request: LabelRequest) -> str:
    """Return the decoder and its version, as the fingerprint and the footers name them."""
    return FAST_DECODER if request.fast_decode else DECODER


# ---- the size of a unit ---------------------------------------------------------------------------------


def max_unit_bytes(cluster: dict[str, float]) -> int:
    """Return the bytes of patches that one unit may have on a cluster with these resources."""
    object_store = cluster.get("object_store_memory", UNIT_PATCH_BYTES * OBJECT_STORE_SHARE)
    return int(min(UNIT_PATCH_BYTES, object_store / OBJECT_STORE_SHARE))


def max_unit_rows(checkpoint: BaseCheckpoint, num_bytes: int) -> int:
    """Return the number of samples whose patches fit into `num_bytes`; at least 1."""
    return max(1, min(MAX_UNIT_ROWS, num_bytes // image_bytes(checkpoint)))


def image_bytes(checkpoint: BaseCheckpoint) -> int:
    """Return the bytes of one image's patches."""
    return checkpoint.config.num_patches * checkpoint.config.patch_dim


def _whole_batches(most: int, batch_size: int) -> int:
    """Return the samples of one unit: whole batches, so that only a shard's last batch is short."""
    return most // batch_size * batch_size or most
