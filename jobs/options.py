"""Options that several commands share, as groups. Importing this imports nothing heavy."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter, validators

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.shards import IMAGE_KEYS
from wordsworth.pipeline.storage.filesystem import ALLOW_HTTP

if TYPE_CHECKING:
    from wordsworth.vit_model.checkpoint import Checkpoint

MODEL = Group("Model")
SOURCE = Group("Source")
RUN = Group("Run")


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(separator) if part.strip())


@Parameter(name="*", group=MODEL)
@dataclass
class ModelOptions:
    """Which weights, and how pictures are brought to them."""

    model: str
    "A model folder or file of weights, timm:NAME, hf:NAME, or a variant such as S/16."
    weights: str | None = None
    "A .safetensors, .npz or .pth file in place of the model's own weights; architecture, preprocessing and labels stay."
    labels: str | None = None
    "A file with the class names, one a line."
    allow_random_weights: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "Let a bare variant run with random weights: to try the pipeline, the labels mean nothing."
    interpolation: str | None = None
    "Override the model's resampling filter: bicubic, bilinear, lanczos, ..."
    crop_pct: float | None = None
    "Override the share of the resized picture that the centre crop keeps."
    mean: tuple[float, float, float] | None = None
    "Override the mean that pixels in [0, 1] are normalised by."
    std: tuple[float, float, float] | None = None
    "Override the standard deviation that pixels in [0, 1] are normalised by."
    exif: Literal["apply", "ignore"] | None = None
    "Turn pictures upright by their EXIF orientation (the default), or leave them as timm does."
    seed: int = 0
    "Seed of random weights."

    def overrides(self) -> dict[str, Any]:
        names = ("interpolation", "crop_pct", "mean", "std", "exif")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def load(self, note: Callable[[str], None], storage: dict[str, Any]) -> "Checkpoint":
        """The model; `note` gets what the user should know of it."""
        from wordsworth.pipeline.prediction.load_model import load_model

        chosen = (
            self.model,
            self.weights,
            self.labels,
            self.allow_random_weights,
            self.seed,
            self.overrides(),
        )
        return load_model(*chosen, note, storage)


@Parameter(name="*", group=SOURCE)
@dataclass
class SourceOptions:
    """How the source is read."""

    format: Literal["tar", "images", "table"] | None = None
    "What the source is, where its names leave it open."
    image_key: str = ";".join(IMAGE_KEYS)
    "Extensions that are images, in order of preference."
    allow_http: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "Read http:// and https:// too."
    image_column: str | None = None
    "Of a table: the column with the images, as bytes or URIs. Else the only one with bytes, or the first named like image or url."
    key: str | None = None
    "Of a table: the column that names a row. Else its URI as given, or its number where the images are bytes."
    storage_options: str = "{}"
    "JSON for the fsspec file system. Credentials belong in the store's own environment or files, not here."

    @property
    def image_keys(self) -> tuple[str, ...]:
        return _split(self.image_key, ";")

    def asked(self) -> dict[str, Any]:
        """For a LabelRequest."""
        names = ("format", "image_keys", "image_column", "key")
        return {name: getattr(self, name) for name in names} | {"storage_options": self.storage}

    @property
    def storage(self) -> dict[str, Any]:
        try:
            options = json.loads(self.storage_options)
        except json.JSONDecodeError as error:
            raise UserError(f"--storage-options is no JSON: {error}", exit_code=2) from error
        if not isinstance(options, dict):
            raise UserError('--storage-options must be a JSON object, such as {"anon": true}', exit_code=2)
        return options | ({ALLOW_HTTP: True} if self.allow_http else {})


@Parameter(name="*", group=RUN)
@dataclass
class RunOptions:
    """Where and how it runs."""

    keep: str = ""
    "Sidecar fields to carry into the output, such as json,txt,cls."
    max_error_rate: float = 1.0
    "Exit 3 when a larger share of the rows has an error; what is good is kept."
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    "auto is bf16 on CUDA and on CPUs that have it."
    device: Literal["auto", "cpu", "cuda"] = "auto"
    "auto takes the GPUs that Ray has."
    batch_size: str = "auto"
    "Images in one forward pass: auto or a number."
    gpu_mode: Literal["auto", "graphs", "overlap", "plain"] = "auto"
    "How a GPU works off its batches: auto takes the fastest way that works there; the others hold to one."
    gpus_per_actor: Annotated[float, Parameter(validator=validators.Number(gt=0, lte=1))] = 1.0
    "Share of a GPU that a model takes: 0.5 puts two on each, for small models that do not fill one."
    update: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "On a run that is there: list the source again and add what is new."
    replace_changed: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "As --update, and label those again that were overwritten since."
    retry_errors: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "Fetch, decode and predict again what failed; only its rows change."
    on_error: Literal["keep", "fail"] = "keep"
    "keep: an image that fails is a row with an error. fail: stop at the first one; what was done before is kept."
    max_image_bytes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 256 << 20
    "A larger encoded image is refused before it is read."
    max_pixels: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 100_000_000
    "A larger picture is refused by its header."
    max_side: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 65_500
    "As max-pixels, for the longer side."
    decode_timeout: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 30.0
    "Seconds that decoding one image may take."
    fast_decode: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "Decode a large JPEG at a half, a quarter or an eighth of its size: faster, and no longer timm's pixels to the last bit."
    stall_timeout: Annotated[float, Parameter(validator=validators.Number(gte=10))] = 1800.0
    "Seconds without a written unit after which the run says what every stage is doing, and exits 1."
    unit_rows: Annotated[int, Parameter(show=False)] = 0
    address: str | None = None
    "Join the Ray cluster at this address (or RAY_ADDRESS); else a local Ray starts and stops with the command."
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "Print the summary as JSON."

    @property
    def kept(self) -> tuple[str, ...]:
        return _split(self.keep, ",")

    @property
    def batch(self) -> int:
        if self.batch_size == "auto":
            return 0
        if not self.batch_size.isdigit() or int(self.batch_size) < 1:
            raise UserError(f"--batch-size {self.batch_size}: give a number from 1 on, or auto", exit_code=2)
        return int(self.batch_size)
