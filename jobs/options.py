"""Declare the options that several commands share, in groups. Importing this imports nothing heavy."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter, validators

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS
from wordsworth.pipeline.sources.tar_keys import DEFAULT_KEY_RULE, KeyRule
from wordsworth.pipeline.storage.filesystem import ALLOW_HTTP

if TYPE_CHECKING:
    from wordsworth.vit_model.checkpoint import Checkpoint

MODEL = Group("Model")
SOURCE = Group("Source")
RUN = Group("Run")

Flag = Parameter(negative="", show_default=False)  # an option that takes no value
JsonFlag = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="", show_default=False)]
Sources = Annotated[
    list[str],
    Parameter(
        help="""Tar shards, zip archives, images or tables: files, folders, globs, local or s3://, gs://, az://,
        hf://."""
    ),
]
RunOutput = Annotated[str, Parameter(help="The run folder. The same command again continues the run.")]


def split_list(text: str, separator: str) -> tuple[str, ...]:
    """Return the parts of a list in one option, in lower case, without empty ones."""
    return tuple(part.strip().lower() for part in text.split(separator) if part.strip())


@Parameter(name="*", group=MODEL)
@dataclass
class ModelOptions:
    """Choose the weights and the preprocessing."""

    model: str
    "A model folder or file of weights, timm:NAME, hf:NAME, or a variant such as S/16."
    weights: str | None = None
    """A .safetensors, .npz or .pth file in place of the model's own weights; architecture, preprocessing
    and labels stay."""
    labels: str | None = None
    "A file with the class names, one a line."
    allow_random_weights: Annotated[bool, Flag] = False
    "Let a bare variant run with random weights: to try the pipeline, the labels mean nothing."
    interpolation: str | None = None
    "Override the model's resampling filter: bicubic, bilinear, lanczos, ..."
    crop_pct: float | None = None
    "Override the share of the resized image that the centre crop keeps."
    mean: tuple[float, float, float] | None = None
    "Override the mean that pixels in [0, 1] are normalised by."
    std: tuple[float, float, float] | None = None
    "Override the standard deviation that pixels in [0, 1] are normalised by."
    exif: Literal["apply", "ignore"] | None = None
    """Turn images upright by their EXIF orientation (the default), or leave them as they are stored, like
    timm."""
    seed: int = 0
    "Seed of random weights."

    def overrides(self) -> dict[str, Any]:
        """Return the preprocessing that was given, by its field in Preprocessing."""
        named = {name: getattr(self, name) for name in ("interpolation", "crop_pct", "mean", "std", "exif")}
        return {name: value for name, value in named.items() if value is not None}

    def load(self, note: Callable[[str], None], storage: dict[str, Any]) -> "Checkpoint":
        """Return the model. `note` gets what the user should know of the model."""
        from wordsworth.pipeline.prediction.load_model import load_model

        return load_model(
            self.model,
            weights=self.weights,
            labels=self.labels,
            allow_random_weights=self.allow_random_weights,
            seed=self.seed,
            overrides=self.overrides(),
            note=note,
            storage_options=storage,
        )


@Parameter(name="*", group=SOURCE)
@dataclass
class StoreOptions:
    """Say how the stores are opened that a command reads and writes."""

    allow_http: Annotated[bool, Flag] = False
    "Read http:// and https:// too."
    storage_options: str = "{}"
    """JSON object for the fsspec file system. Credentials belong in the store's own environment or files,
    not here."""

    @property
    def storage(self) -> dict[str, Any]:
        """Return the options of the file system.

        Raises:
            UserError: --storage-options is not a JSON object.
        """
        try:
            options = json.loads(self.storage_options)
        except json.JSONDecodeError as error:
            raise UserError(f"--storage-options is no JSON: {error}", exit_code=2) from error
        if not isinstance(options, dict):
            raise UserError('--storage-options must be a JSON object, such as {"anon": true}', exit_code=2)
        if self.allow_http:
            options[ALLOW_HTTP] = True
        return options


@Parameter(name="*", group=SOURCE)
@dataclass
class SourceOptions(StoreOptions):
    """Say how the source is read."""

    format: Literal["tar", "zip", "images", "table"] | None = None
    "Kind of the source, where its file names leave it open. images takes names without an extension too."
    image_key: str = ";".join(IMAGE_KEYS)
    "Extensions that are images, in order of preference."
    image_column: str | None = None
    """Column of a table with the images, as bytes or URIs. Without it: the only column with bytes, or the
    first one that is named like image or url."""
    follow_links: Literal["inside", "outside"] = "inside"
    """Links to folders: inside leaves out those that lead out of the source, and names them; outside follows
    them (docs/sources.md)."""
    include_hidden: Annotated[bool, Flag] = False
    """Take the names too that are skipped: .names, thumbnails, trash, checkpoints, a table's own _records
    (docs/sources.md)."""
    key_rule: KeyRule = DEFAULT_KEY_RULE
    """Where the key of a tar's member ends. first-dot: as in webdataset. auto: likewise, but images that only
    their dots tell apart, as 22.01.png and 22.02.png, are a sample each (docs/sources.md)."""
    key: str | None = None
    """Column of a table that names its rows. Without it: the image's URI as given, or the row's number where
    the images are bytes."""

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Return the extensions that are images."""
        return split_list(self.image_key.replace(",", ";"), ";")

    def asked(self) -> dict[str, Any]:
        """Return the fields of a LabelRequest that say how the source is read."""
        names = ("format", "image_keys", "image_column", "key", "include_hidden", "follow_links", "key_rule")
        return {name: getattr(self, name) for name in names} | {"storage_options": self.storage}


@Parameter(name="*", group=SOURCE)
@dataclass
class PartOptions:
    """Say which part of the source comes first."""

    limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None
    "Stop after the first N images. The same command without it labels the rest."
    sample: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None
    """Take N images, drawn from all with the same chance for each. Tars and tables are read to count theirs.
    The same command without it labels all."""
    sample_seed: int = 0
    "Seed of --sample: another one draws others."

    def asked(self) -> dict[str, Any]:
        """Return the fields of a LabelRequest that say which part of the source is labelled."""
        return {"limit": self.limit, "sample": self.sample, "sample_seed": self.sample_seed}


@Parameter(name="*", group=RUN)
@dataclass
class RunOptions:
    """Say where and how the run works."""

    keep: str = ""
    """Sidecar fields, or columns of a table or of metadata.csv, that the output rows carry, such as
    json,txt,cls. label=given keeps the column label as given."""
    max_error_rate: float = 1.0
    "Exit with 3 when a larger share of the rows has an error. All rows are kept."
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    "auto is bf16 on CUDA and on CPUs that have it."
    device: Literal["auto", "cpu", "cuda"] = "auto"
    "auto takes the GPUs that Ray has."
    batch_size: str = "auto"
    "Images in one forward pass: auto or a number."
    gpu_mode: Literal["auto", "graphs", "overlap", "plain"] = "auto"
    "How a GPU computes its batches: auto takes the fastest mode that works there."
    gpus_per_actor: Annotated[float, Parameter(validator=validators.Number(gt=0, lte=1))] = 1.0
    "Share of a GPU that one model takes. With 0.5, two small models share a GPU."
    update: Annotated[bool, Flag] = False
    "Continue an existing run: list the source again and label what is new."
    replace_changed: Annotated[bool, Flag] = False
    "Like --update, and label again what was overwritten in the source."
    drop_missing: Annotated[bool, Flag] = False
    "Like --update, and drop from the run what is gone from the source, with its rows."
    retry_errors: Annotated[bool, Flag] = False
    "Fetch, decode and predict the failed images again. Only their rows change."
    on_error: Literal["keep", "fail"] = "keep"
    """keep: an image that fails becomes a row with an error. fail: stop at the first one; earlier units
    are kept."""
    max_image_bytes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = DecodeLimits.max_bytes
    "Bytes of an encoded image. A larger one is refused before it is read."
    max_pixels: Annotated[int, Parameter(validator=validators.Number(gte=1))] = DecodeLimits.max_pixels
    "Pixels of an image. A larger one is refused by its header."
    max_side: Annotated[int, Parameter(validator=validators.Number(gte=1))] = DecodeLimits.max_side
    "Pixels of an image's longer side. A larger one is refused by its header."
    decode_timeout: Annotated[float, Parameter(validator=validators.Number(gt=0))] = DecodeLimits.timeout_s
    "Seconds that decoding one image may take."
    fast_decode: Annotated[bool, Flag] = False
    """Decode a large JPEG at a half, a quarter or an eighth of its size. It is faster; the pixels differ
    slightly from timm's."""
    stall_timeout: Annotated[float, Parameter(validator=validators.Number(gte=10))] = 1800.0
    "Seconds without a written unit. After them the run says what every stage is doing, and exits with 1."
    unit_rows: Annotated[int, Parameter(show=False)] = 0
    address: str | None = None
    """Address of a Ray cluster to join (or RAY_ADDRESS). Without it, a local Ray starts and stops with
    the command."""
    json: Annotated[bool, Flag] = False
    "Print the summary as JSON."

    @property
    def kept(self) -> tuple[str, ...]:
        """Return the sidecar fields of --keep, in lower case, but for the names that they get."""
        kept = []
        for part in self.keep.split(","):
            name, separator, renamed = part.strip().rpartition("=")
            kept.append(f"{name.lower()}={renamed}" if separator else renamed.lower())
        return tuple(name for name in kept if name)

    @property
    def limits(self) -> DecodeLimits:
        """Return what one image may cost."""
        return DecodeLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_pixels,
            max_side=self.max_side,
            timeout_s=self.decode_timeout,
        )

    @property
    def batch(self) -> int:
        """Return the images in one forward pass; 0 for auto.

        Raises:
            UserError: --batch-size is neither auto nor a number.
        """
        if self.batch_size == "auto":
            return 0
        if not self.batch_size.isdigit() or int(self.batch_size) < 1:
            raise UserError(f"--batch-size {self.batch_size}: give a number from 1 on, or auto", exit_code=2)
        return int(self.batch_size)
