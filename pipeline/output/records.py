"""Define every record that a run writes or sends: its fields, its Arrow schema, and how it becomes bytes.

RunPlan      _run/plan.json: the frozen settings
UnitFooter   in the metadata of each predictions/*.parquet
Receipt      a row of the last stage: what one unit left behind
ManifestRow  a row of _run/manifest.parquet: one file of the run
Summary      _run/summary.json: totals of the run, written last
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import pyarrow as pa

from wordsworth.pipeline.unit import STAGES, TIMED

SCHEMA_VERSION = 1  # of plan.json and of the Parquet files: another version is another run
FOOTER_KEY = b"wordsworth"  # key of a record of ours in a Parquet file's metadata

JsonObject = dict[str, Any]  # a JSON object whose fields nothing here depends on
OF_A_HUB = ("commit", "revision")  # fields of a plan that only weights of a hub have


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings:
    """Hold what every `auto` became when the run was planned.

    Attributes:
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16".
        batch_size: images in one forward pass.
        unit_rows: samples in one unit, at most.
        decoder: decoder and version; part of the fingerprint.
    """

    device: str
    precision: str
    batch_size: int
    unit_rows: int
    decoder: str

    def fingerprint(self, checkpoint: str) -> str:
        """Return the fingerprint of a run with these settings.

        Args:
            checkpoint: fingerprint of the model.
        """
        comparable = [checkpoint, self.device, self.precision, self.decoder]
        return hashlib.sha256("|".join(comparable).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Hold the frozen settings of a run.

    Attributes:
        schema_version: SCHEMA_VERSION of the code that made the run.
        package_version: version of wordsworth that made the run.
        model: the model's name in messages and footers.
        fingerprint: sha256 over weights, device, precision and decoder.
        asked: every option that makes two commands the same run, by its name on the command line.
        resolved: what every `auto` became.
        run_id: 16 hex digits over all of the above.
        commit: commit of the weights on a hub; None for weights from elsewhere, and in plans of earlier
            versions.
        revision: the branch, tag or commit of the hub that was asked for, if one was.
    """

    schema_version: int
    package_version: str
    model: str
    fingerprint: str
    asked: JsonObject
    resolved: ResolvedSettings
    run_id: str
    commit: str | None = None
    revision: str | None = None

    def to_dict(self) -> JsonObject:
        """Return the object of plan.json. Weights that are of no hub leave out what only a hub has."""
        told = asdict(self)
        for name in OF_A_HUB:
            if told[name] is None:
                del told[name]
        return told

    def to_json(self) -> bytes:
        """Return the bytes of plan.json."""
        return json.dumps(self.to_dict(), indent=1).encode()

    @classmethod
    def from_dict(cls, told: JsonObject) -> Self:
        """Return the plan that plan.json holds.

        Raises:
            KeyError, TypeError: a field is missing, or is of another type.
        """
        resolved = ResolvedSettings(**told["resolved"])
        own = [f.name for f in fields(cls) if f.name in told or f.name not in OF_A_HUB]
        return cls(**{name: told[name] for name in own} | {"resolved": resolved})


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Say of a file which run wrote it, with which model and which preprocessing.

    Attributes:
        head: how the model's logits became scores: "softmax", "sigmoid" or "value".
        threshold: score from which on a class stands in `labels`; None for files without this column.
        others: as in RunPlan and ResolvedSettings; dtype is the precision.
    """

    run_id: str
    fingerprint: str
    model: str
    package_version: str
    schema_version: int
    preprocessing: JsonObject
    decoder: str
    dtype: str
    head: str = "softmax"
    threshold: float | None = None
    commit: str | None = None
    revision: str | None = None

    def to_dict(self) -> JsonObject:
        """Return a JSON object without the fields that have their default, as earlier versions wrote it."""
        told = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                told[f.name] = value
        return told

    @classmethod
    def from_dict(cls, told: JsonObject) -> Self:
        """Return what `to_dict` wrote; other fields are left out.

        Raises:
            TypeError: a field is missing.
        """
        return cls(**{f.name: told[f.name] for f in fields(cls) if f.name in told})


@dataclass(frozen=True, kw_only=True)
class UnitFooter:
    """Describe one unit's file, in the file itself: its own receipt, which outlives the job that wrote it.

    Attributes:
        provenance: the run, the model and the preprocessing.
        job: token of the command that wrote the file.
        shard: URI of the shard, without credentials.
        shard_name: stem of the names of the shard's files.
        unit: number of the unit in its shard, from 0.
        last: whether the shard ends with this unit.
        rows: rows in the file.
        errors: rows with an error, by code.
        skipped: what a tar has beside the samples, by kind, as in Unit.
        bytes_read: bytes of the source that the unit took.
        next_offset: place in the shard where the next unit begins, in bytes or in entries.
        next_index: index of the next unit's first sample in the shard.
        seconds: seconds of the stages before the write, by stage.
        next_in_group: samples from `next_offset` on that come before the next unit; as in Unit.
    """

    provenance: Provenance
    job: str
    shard: str
    shard_name: str
    unit: int
    last: bool
    rows: int
    errors: dict[str, int]
    skipped: dict[str, int]
    bytes_read: int
    next_offset: int
    next_index: int
    seconds: dict[str, float]
    next_in_group: int = 0

    def to_json(self) -> bytes:
        """Return the value of FOOTER_KEY: one flat object, with the fields of the provenance first.

        The footer of a unit that ends at a whole group or row is that of earlier versions.
        """
        told = asdict(self)
        if not self.next_in_group:
            del told["next_in_group"]
        del told["provenance"]
        return json.dumps(self.provenance.to_dict() | told).encode()

    @classmethod
    def from_dict(cls, told: JsonObject) -> Self:
        """Return the footer that a file's metadata hold. Fields that are not known are left out.

        Raises:
            KeyError, TypeError: a field is missing.
        """
        known: JsonObject = {"skipped": {}, "provenance": Provenance.from_dict(told)}
        known |= {f.name: told[f.name] for f in fields(cls) if f.name in told}
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Report one unit that went through the pipeline.

    Receipts drive the progress display and the metrics, nothing else.

    Attributes:
        shard: URI of the shard, without credentials.
        file: name of the unit's file.
        rows: rows in the file; 0 for a unit with a fault.
        errors: rows with an error, by code.
        bytes_read: bytes of the source that the unit took.
        written: whether this command wrote the file, and did not find it there.
        twin: whether another job had written the file.
        last: whether the shard ends with this unit.
        fault: what the store did wrong, or None; a unit with a fault writes nothing.
        prediction: how a GPU predicted the unit, as JSON of `unit.GpuCall`; None on CPUs.
        repeated_key: a key that two rows of the unit have, or None.
        skipped: a JSON object: what a tar has beside the samples, by kind, as in Unit.
        seconds: seconds of each stage in STAGES.
    """

    shard: str
    file: str
    rows: int
    errors: dict[str, int]
    bytes_read: int
    written: bool
    twin: bool
    last: bool
    fault: str | None
    prediction: str | None
    repeated_key: str | None = None
    skipped: str = "{}"
    seconds: dict[str, float]

    def to_arrow(self) -> pa.Table:
        """Return the receipt as a table of one row, as RECEIPT."""
        told = asdict(self)
        seconds = told.pop("seconds")
        row = (
            told | {"errors": json.dumps(self.errors)} | {stage: seconds.get(stage, 0.0) for stage in STAGES}
        )
        return pa.Table.from_pylist([row], schema=RECEIPT)

    @classmethod
    def from_row(cls, row: JsonObject) -> Self:
        """Return the receipt of a row of RECEIPT."""
        row = dict(row)
        seconds = {stage: row.pop(stage) or 0.0 for stage in STAGES}
        return cls(**row | {"errors": json.loads(row["errors"])}, seconds=seconds)


RECEIPT = pa.schema(
    [
        ("shard", pa.string()),
        ("file", pa.string()),
        ("rows", pa.int64()),
        ("errors", pa.string()),  # a JSON object
        ("bytes_read", pa.int64()),
        ("written", pa.bool_()),
        ("twin", pa.bool_()),
        ("last", pa.bool_()),
        ("fault", pa.string()),
        ("prediction", pa.string()),
        ("repeated_key", pa.string()),
        ("skipped", pa.string()),  # a JSON object
        *[(stage, pa.float64()) for stage in STAGES],  # seconds
    ]
)


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """Describe one file of a complete run.

    Attributes:
        file: name of the unit's file.
        bytes: size of the file.
        version: etag or time of modification of the file.
        others: as in UnitFooter.
    """

    file: str
    shard: str
    unit: int
    last: bool
    rows: int
    errors: dict[str, int]
    skipped: dict[str, int]
    bytes_read: int
    bytes: int
    version: str
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, file: str, footer: UnitFooter, size_bytes: int, version: str) -> Self:
        """Return the row of a file with this footer."""
        same = ("shard", "unit", "last", "rows", "errors", "skipped", "bytes_read", "seconds")
        return cls(
            file=file, bytes=size_bytes, version=version, **{name: getattr(footer, name) for name in same}
        )

    def to_row(self) -> JsonObject:
        """Return the row as MANIFEST has it."""
        told = asdict(self)
        seconds = told.pop("seconds")
        told |= {"errors": json.dumps(self.errors), "skipped": json.dumps(self.skipped)}
        return told | {stage: seconds.get(stage, 0.0) for stage in TIMED}


MANIFEST = pa.schema(
    [
        ("file", pa.string()),
        ("shard", pa.string()),
        ("unit", pa.int32()),
        ("last", pa.bool_()),
        ("rows", pa.int64()),
        ("errors", pa.string()),  # a JSON object
        ("skipped", pa.string()),  # a JSON object
        ("bytes_read", pa.int64()),
        ("bytes", pa.int64()),
        ("version", pa.string()),
        *[(stage, pa.float64()) for stage in TIMED],  # seconds
    ]
)


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """Say how GPUs worked for one command.

    Attributes:
        nodes: number of GPU nodes that predicted.
        modes: units by `prediction.gpu_modes.MODES`.
        batch_sizes: units by images in a batch.
        notes: why a mode or a batch size is not the fastest one.
    """

    nodes: int
    modes: dict[str, int]
    batch_sizes: dict[str, int]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class StageUse:
    """Say how the stages of one command worked, its start left out.

    Attributes:
        steady_images_per_second: images/s from the first receipt on, or None for fewer than three units.
        busy: workers of each stage that were busy on average; empty for a short command.
        bottleneck: the stage that held the command back, in words, or None.
    """

    steady_images_per_second: float | None
    busy: dict[str, float]
    bottleneck: str | None


@dataclass(frozen=True, kw_only=True)
class LastCommand:
    """Say what the command did that wrote the summary.

    Attributes:
        images: images that it labelled.
        seconds: seconds that it took, its start included.
        images_per_second: images/s, its start included.
        stages: how the stages worked; None where nothing was left to do.
        gpu: how GPUs worked; None on CPUs.
        store_retries: requests that stores were asked again, by the store's address; {} for none.
        start_seconds: seconds from its begin to the model's first image; None where it labelled nothing.
        finished: when it had labelled its last image, in UTC as ISO 8601; None where an earlier version wrote
            this.
    """

    images: int
    seconds: float
    images_per_second: float
    stages: StageUse | None = None
    gpu: GpuUse | None = None
    store_retries: dict[str, int] = field(default_factory=dict)
    start_seconds: float | None = None
    finished: str | None = None

    def to_dict(self) -> JsonObject:
        """Return the object in summary.json: the fields of `stages` stand beside the others."""
        told = asdict(self)
        stages, gpu = told.pop("stages"), told.pop("gpu")
        if not self.store_retries:
            del told["store_retries"]
        for name in ("start_seconds", "finished"):
            if told[name] is None:
                del told[name]
        return told | (stages or {}) | ({"gpu": gpu} if gpu else {})

    @classmethod
    def from_dict(cls, told: JsonObject) -> Self:
        """Return what `to_dict` wrote."""
        own = {name: told[name] for name in ("images", "seconds", "images_per_second")}
        stages = StageUse(**{f.name: told[f.name] for f in fields(StageUse)}) if "busy" in told else None
        gpu = GpuUse(**told["gpu"]) if told.get("gpu") else None
        return cls(
            **own,
            stages=stages,
            gpu=gpu,
            store_retries=told.get("store_retries", {}),
            start_seconds=told.get("start_seconds"),
            finished=told.get("finished"),
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Hold the totals of a complete run.

    Attributes:
        run_id, model, fingerprint: as in RunPlan.
        shards: shards of the run.
        files: units of the run.
        rows: rows of all files.
        errors: rows with an error, by code, the most frequent first.
        skipped_members: members of tars and zips that are no part of a sample, by kind.
        ignored: files of the sources that are neither shards nor images, by extension.
        bytes_read: bytes of the sources that were read.
        bytes_written: bytes of all files.
        stage_seconds: seconds of each stage in TIMED, over all units.
        last_command: what the command did that wrote this.
        estimate: [foretold, found] by figure, where `wordsworth plan` was asked for an estimate.
        skipped_names: files and folders of the sources that were skipped by their names, by kind.
        left_out: links to folders that were not followed, and special files: 1 by "KIND: path -> target".
        limit: images after which the command was to stop; None where the run is complete.
        sample: images that were drawn; None where the run is complete.
    """

    run_id: str
    model: str
    fingerprint: str
    shards: int
    files: int
    rows: int
    errors: dict[str, int]
    skipped_members: dict[str, int]
    ignored: dict[str, int]
    bytes_read: int
    bytes_written: int
    stage_seconds: dict[str, float]
    last_command: LastCommand
    estimate: dict[str, list[Any]] | None = None
    skipped_names: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    limit: int | None = None
    sample: int | None = None

    def to_dict(self) -> JsonObject:
        """Return the object of summary.json."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        told["last_command"] = self.last_command.to_dict()
        for name in ("estimate", "limit", "sample"):
            if told[name] is None:
                del told[name]
        for name in ("skipped_names", "left_out"):
            if not told[name]:
                del told[name]
        return told

    @classmethod
    def from_dict(cls, told: JsonObject) -> Self:
        """Return the summary that summary.json holds.

        Raises:
            KeyError, TypeError: a field is missing, or is of another type.
        """
        known = {f.name: told[f.name] for f in fields(cls) if f.name in told}
        return cls(**known | {"last_command": LastCommand.from_dict(told["last_command"])})
