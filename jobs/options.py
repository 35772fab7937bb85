"""Declare the options that several commands share, in groups. Importing this imports nothing heavy."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import CoercionError, Group, Parameter, Token, validators

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS
from wordsworth.pipeline.sources.tar_keys import DEFAULT_KEY_RULE, KeyRule
from wordsworth.pipeline.storage.allowed_uris import checked_prefixes
from wordsworth.pipeline.storage.client_options import check_places
from wordsworth.pipeline.storage.filesystem import ALLOW_HTTP, ALLOW_URIS
from wordsworth.pipeline.storage.outputs import refuse_no_folder
from wordsworth.pipeline.storage.preflight import check_stores

if TYPE_CHECKING:
    from wordsworth.vit_model.checkpoint import BaseCheckpoint

USUAL = Group("Usual options", sort_key=0)  # those that most commands need; the other groups follow
MODEL = Group("Model", sort_key=1)
SOURCE = Group("Source", sort_key=2)
RUN = Group("Run", sort_key=3)

Flag = Parameter(negative="", show_default=False)  # an option that takes no value
JsonFlag = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="", show_default=False)]
Sources = Annotated[
    list[str],
    Parameter(
        help="""Tar shards, zip archives, images or tables: files, folders, globs, local or s3://, gs://, az://,
        hf://."""
    ),
]
RunOutput = Annotated[
    str, Parameter(alias="-o", group=USUAL, help="The run folder. The same command again continues the run.")
]

Threshold = Annotated[
    float | None,
    Parameter(
        group=RUN,
        help="""A column labels with every class of this score or more. Models whose images have any number of
        classes have it without the option too, by the model's own threshold or 0.5.""",
        validator=validators.Number(gte=0, lte=1),
        show_default=False,
    ),
]


def _three_numbers(type_: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    """Return the numbers of an option that has one for each of red, green and blue.

    Raises:
        CoercionError: they are not three numbers, or are not for pixels in [0, 1].
    """
    try:
        red, green, blue = (float(part) for part in tokens[0].value.split(","))
    except ValueError as error:
        example = "give three numbers with commas between them, such as 0.5,0.5,0.5"
        raise CoercionError(msg=example, token=tokens[0]) from error
    if not all(0 <= number <= 1 for number in (red, green, blue)):
        example = "pixels are in [0, 1] here: give numbers from 0 to 1, such as 0.485,0.456,0.406"
        raise CoercionError(msg=example, token=tokens[0])
    return red, green, blue


Channels = Annotated[
    tuple[float, float, float], Parameter(n_tokens=1, metavar="R,G,B", converter=_three_numbers)
]


def check_page_name(output: str) -> None:
    """Check that an output can be a page.

    Raises:
        UserError: its name ends like another file, or it is a folder.
    """
    if not output.lower().endswith((".html", ".htm")):
        raise UserError(f"--output {output} is no name of a page: name a FILE.html", exit_code=2)


def split_list(text: str, separator: str) -> tuple[str, ...]:
    """Return the parts of a list in one option, in lower case, without empty ones."""
    return tuple(part.strip().lower() for part in text.split(separator) if part.strip())


@Parameter(name="*", group=MODEL)
@dataclass
class WeightsOptions:
    """Choose the weights and the preprocessing."""

    model: Annotated[str, Parameter(alias="-m", group=USUAL)]
    "A model folder or file of weights, timm:NAME, hf:NAME, or a variant such as S/16."
    weights: str | None = None
    """A .safetensors, .npz, .pth or .ckpt file in place of the model's own weights; architecture,
    preprocessing and labels stay."""
    weights_key: str | None = None
    """The set of tensors to take from a file with several, such as state_dict or teacher. Without it: the
    averaged weights where there are any."""
    interpolation: str | None = None
    "Override the model's resampling filter: bicubic, bilinear, lanczos, ..."
    crop_pct: float | None = None
    "Override the share of the resized image that the centre crop keeps."
    crop_mode: Literal["center", "squash"] | None = None
    """Override how an image becomes a square: center keeps its aspect ratio and crops, squash does not."""
    mean: Channels | None = None
    "Override the mean that pixels in [0, 1] are normalised by: 0.5,0.5,0.5."
    std: Channels | None = None
    "Override the standard deviation that pixels in [0, 1] are normalised by."
    exif: Literal["apply", "ignore"] | None = None
    """Turn images upright by their EXIF orientation (the default), or leave them as they are stored, like
    timm."""

    def overrides(self) -> dict[str, Any]:
        """Return the preprocessing that was given, by its field in Preprocessing."""
        names = ("interpolation", "crop_pct", "crop_mode", "mean", "std", "exif")
        named = {name: getattr(self, name) for name in names}
        return {name: value for name, value in named.items() if value is not None}


@Parameter(name="*", group=MODEL)
@dataclass
class ModelOptions(WeightsOptions):
    """Choose the weights, the preprocessing and the head."""

    labels: str | None = None
    "A file with the class names, one a line."
    head: Literal["softmax", "sigmoid", "value"] | None = None
    """Say what the head's outputs are, where the model's files do not say it: softmax for one class an image,
    sigmoid for any number of classes, value for a number (docs/models.md)."""
    classes: str | None = None
    """Classes of your own, without training, for a CLIP, OpenCLIP or SigLIP: "cat,dog,car"; @FILE with one a
    line; or imagenet (docs/models.md)."""
    prompt: str | None = None
    """With --classes: a text with {} in place of the class, as "a photo of a {}" (the default); @FILE with
    one a line, whose mean counts; or imagenet or imagenet-simple."""
    allow_random_weights: Annotated[bool, Flag] = False
    "Let a bare variant run with random weights: to try the pipeline, the labels mean nothing."
    seed: int = 0
    "Seed of random weights."

    def check(self) -> None:
        """Refuse an architecture without weights, before the command loads anything that takes seconds."""
        from wordsworth.pipeline.prediction.model_names import refuse_bare_variant

        has_weights = self.weights is not None or self.classes is not None  # --classes has a line of its own
        refuse_bare_variant(self.model, has_weights=has_weights, allow_random=self.allow_random_weights)

    def load(self, note: Callable[[str], None], storage: dict[str, Any]) -> "BaseCheckpoint":
        """Return the model. `note` gets what the user should know of the model."""
        from wordsworth.pipeline.prediction.load_model import load_model

        return load_model(
            self.model,
            weights=self.weights,
            weights_key=self.weights_key,
            labels=self.labels,
            head=self.head,
            classes=self.classes,
            prompt=self.prompt,
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
    allow_uris: Annotated[list[str], Parameter(negative="", show_default=False)] = field(default_factory=list)
    """A place that tables may name beside their own folder, bucket or server: a folder, s3://BUCKET[/PREFIX]
    or https://HOST[/PATH]. Can be given several times (docs/sources.md)."""
    storage_options: str = "{}"
    """JSON object for the store's client; {"s3://bucket": {...}} for one bucket alone (docs/stores.md).
    Credentials belong in the store's own environment or files, not here."""

    @property
    def storage(self) -> dict[str, Any]:
        """Return the options of the file system.

        Raises:
            UserError: --storage-options is no JSON object, or --allow-uris names no folder, bucket or host.
        """
        try:
            options = json.loads(self.storage_options)
        except (ValueError, RecursionError) as error:
            example = """'{"anon": true}'"""
            raise UserError(
                f"--storage-options is no JSON: {error}: give an object such as {example}", exit_code=2
            ) from error
        if not isinstance(options, dict):
            raise UserError(
                """--storage-options is no JSON object: give one such as '{"anon": true}'""", exit_code=2
            )
        check_places(options)
        if self.allow_http:
            options[ALLOW_HTTP] = True
        if self.allow_uris:
            options[ALLOW_URIS] = checked_prefixes(self.allow_uris)
        return options

    def check(self, *sources: str | None, output: str | None = None, is_new: bool = False) -> None:
        """Ask the stores of these places for an answer, before the command loads anything that takes seconds.

        Args:
            sources: what is read; None stands for none.
            output: a folder that is listed, and perhaps written.
            is_new: whether the command makes the output where it is not there.

        Raises:
            UserError: a store refuses every request, or does not answer, or the output is no folder.
        """
        check_stores(sources, [output], self.storage)
        if is_new and output is not None:
            refuse_no_folder(output, self.storage)


@Parameter(name="*", group=SOURCE)
@dataclass
class SourceOptions(StoreOptions):
    """Say how the source is read."""

    format: Literal["tar", "zip", "images", "table"] | None = None
    "Kind of the source, where its file names leave it open. images takes names without an extension too."
    image_key: str = ",".join(IMAGE_KEYS)
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

    limit: Annotated[int | None, Parameter(group=USUAL, validator=validators.Number(gte=1))] = None
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

    keep: Annotated[str, Parameter(group=USUAL, show_default=False)] = ""
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
    """keep: an image that fails becomes a row with an error. fail: stop at the first one; earlier files
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
    "Seconds without a written file. After them the run says what every stage is doing, and exits with 1."
    unit_rows: Annotated[int, Parameter(show=False)] = 0
    report: Annotated[bool, Flag] = False
    "Write report.html into the run folder at the end: wordsworth report makes it later too."
    json: Annotated[bool, Flag] = False
    "Print the summary as JSON."

    @property
    def kept(self) -> tuple[str, ...]:
        """Return the sidecar fields of --keep, in lower case, but for the names that they get.

        Raises:
            UserError: they are written as a list of another language.
        """
        if self.keep.strip().startswith(("[", "(")) or ";" in self.keep:
            raise UserError(f"--keep {self.keep}: give names with commas between them: json,txt", exit_code=2)
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
