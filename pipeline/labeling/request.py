"""Define what the user asks for. Imports nothing heavy: the command line reads its defaults here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS
from wordsworth.pipeline.sources.model_target import ModelTarget
from wordsworth.pipeline.sources.passed_over import ListingRules
from wordsworth.pipeline.sources.tar_keys import DEFAULT_KEY_RULE
from wordsworth.pipeline.storage.filesystem import StorageOptions


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """Hold what one command asks for.

    Attributes:
        command: "label" or "embed".
        sources: files, folders and globs.
        output: the run folder.
        model: the model's name in messages and footers.
        format: "tar", "zip", "images" or "table" for all sources; None lets their names say so.
        image_keys: extensions that are images, in order of preference.
        image_column: column of a table that holds the images; None lets the table's columns say so.
        key: column of a table that names a row; None takes the URI or the number of the row.
        keep: sidecar fields, or columns of a table, that the rows carry; "label=given" under another name.
        target: finds the class of an image, for `evaluate`; its sidecar is one of `keep`.
        include_hidden: take the names too that are skipped.
        follow_links: "inside", or "outside" to follow links to folders out of the sources.
        key_rule: how the names of a tar's members become keys: a rule of `sources.tar_groups`.
        storage_options: for fsspec.
        top_k: classes in a row; 0 gives no labels.
        threshold: score from which on a class stands in the column `labels`; None leaves the column to models
            whose images have any number of classes, with the model's own threshold.
        embedding: "float16" or "float32"; None gives no embeddings.
        normalize: scale every embedding to length 1.
        on_error: "keep" makes a row of an image that fails; "fail" ends the run at the first.
        limits: what one image may cost before it is refused.
        fast_decode: decode a large JPEG at a fraction of its size.
        precision: "fp32", "bf16" or "auto".
        device: "cpu", "cuda" or "auto".
        batch_size: images in one forward pass; 0 chooses.
        gpu_mode: "auto", or the one mode of `prediction.gpu_modes.MODES` that a GPU may work in.
        gpus_per_actor: GPUs that one model actor claims; above 0, at most 1.
        unit_rows: samples in one unit, at most; 0 chooses.
        cluster: which Ray the run works on, and what it takes of it.
        update: add the shards and images that are new in the source to a run that is there.
        replace_changed: update, and label again the shards and images whose content changed.
        drop_missing: update, and drop the shards and images that are gone from the source, and their rows.
        retry_errors: fetch, decode and predict again the images that failed.
        limit: images after which the command stops; the run can be continued. None labels all.
        sample: images that are drawn from the whole source, and labelled alone; None draws none.
        sample_seed: another seed draws others.
        stall_timeout: seconds without a written unit after which the run gives up.
        began: when the command began, by time.monotonic.
    """

    command: str
    sources: Sequence[str]
    output: str
    model: str
    format: str | None = None
    image_keys: tuple[str, ...] = IMAGE_KEYS
    image_column: str | None = None
    key: str | None = None
    keep: tuple[str, ...] = ()
    target: ModelTarget | None = None
    include_hidden: bool = False
    follow_links: str = "inside"
    key_rule: str = DEFAULT_KEY_RULE
    storage_options: StorageOptions = field(default_factory=dict)
    top_k: int = 5
    threshold: float | None = None
    embedding: str | None = None
    normalize: bool = False
    on_error: str = "keep"
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    fast_decode: bool = False
    precision: str = "auto"
    device: str = "auto"
    batch_size: int = 0
    gpu_mode: str = "auto"
    gpus_per_actor: float = 1.0
    unit_rows: int = 0
    cluster: ClusterRequest = field(default_factory=ClusterRequest)
    update: bool = False
    replace_changed: bool = False
    drop_missing: bool = False
    retry_errors: bool = False
    limit: int | None = None
    sample: int | None = None
    sample_seed: int = 0
    stall_timeout: float = 1800.0
    began: float = field(default_factory=time.monotonic, compare=False)

    @property
    def rules(self) -> ListingRules:
        """Return what a listing takes."""
        return ListingRules(include_hidden=self.include_hidden, follow_links=self.follow_links)
