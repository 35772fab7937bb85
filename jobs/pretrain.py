"""wordsworth pretrain SOURCE... --output MODEL_DIR --variant S/16: train a Vision Transformer anew."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter, validators

from wordsworth.jobs.cluster_options import WorkersOptions
from wordsworth.jobs.live import LiveDisplay, first_wait
from wordsworth.jobs.options import SourceOptions, Sources
from wordsworth.jobs.train_options import (
    DATA,
    RECIPE,
    Count,
    DataOptions,
    ModelFolder,
    RecipeOptions,
    RunOptions,
    TrainOptions,
    run_training,
    train_request,
)
from wordsworth.pipeline.cluster.joining import reach
from wordsworth.pipeline.errors import UserError

if TYPE_CHECKING:
    from wordsworth.pipeline.training.request import TrainRequest
    from wordsworth.vit_model.config import ViTConfig

ARCHITECTURE = Group("Architecture")
# By objective. A masked patch is told from another by its position alone, and learned positions begin so
# small that the patches drown them.
DEFAULT_POSITION = {"masked-patch": "sincos-2d-mae", "mae": "sincos-2d-mae"}


@Parameter(name="*", group=ARCHITECTURE)
@dataclass
class ArchitectureOptions:
    """Choose a variant, or a size of your own."""

    variant: str | None = None
    "Such as S/16; or leave it out and give --width, --depth, --heads and --patch-size."
    width: int | None = None
    "Length of the vector that stands for each patch, such as 384."
    depth: int | None = None
    "Number of Transformer blocks, such as 12."
    heads: int | None = None
    "Attention heads of a block, such as 6; --width is a multiple of it."
    mlp_ratio: float | None = None
    "The MLP's width as a multiple of --width: 4, if not given."
    patch_size: int | None = None
    "Pixels a side of a patch, such as 16; --image-size is a multiple of it."
    image_size: int = 224
    "Pixels a side."
    position: Literal["learned-1d", "learned-2d", "sincos-2d", "sincos-2d-mae", "none"] | None = None
    "learned-1d, if not given; without classes sincos-2d-mae."
    pool: Literal["token", "avg"] = "token"
    "What the head looks at: the [class] token, or the mean of the patches."
    representation_size: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0
    "Width of a hidden layer with tanh in the head, as in the paper's pre-training; 0 for a linear head."


@Parameter(name="*", group=DATA)
@dataclass
class ProbeOptions:
    """Say with what a training without classes is probed."""

    probe: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None
    "Sources with classes (--target) that show what a model without classes sees so far."
    probe_every: Count = 1
    "Epochs from one probe to the next; the last epoch is probed too."

    def asked(self, objective: str) -> dict[str, Any]:
        """Return the options as fields of a TrainRequest.

        Raises:
            UserError: an option means nothing here.
        """
        if self.probe_every > 1 and not self.probe:
            raise UserError("--probe-every has no meaning without --probe SOURCE", exit_code=2)
        if self.probe and objective == "supervised":
            raise UserError(
                "--probe is for --objective mae and masked-patch: with classes --val SOURCE says how the "
                "model does",
                exit_code=2,
            )
        return {"probe": tuple(self.probe or ()), "probe_every": self.probe_every}


@Parameter(name="*", group=RECIPE)
@dataclass
class DecoderOptions:
    """Choose the size of MAE's decoder, which the model folder does not keep."""

    decoder_width: int = 512
    "Width of the decoder of --objective mae."
    decoder_depth: int = 8
    "Its number of blocks."
    decoder_heads: int = 16
    "Its attention heads."


def pretrain(
    sources: Sources,
    /,
    *,
    output: ModelFolder,
    objective: Annotated[
        Literal["supervised", "masked-patch", "mae"],
        Parameter(help="supervised learns classes; masked-patch and mae need none and make no head."),
    ] = "supervised",
    architecture: ArchitectureOptions | None = None,
    data: DataOptions | None = None,
    probe: ProbeOptions | None = None,
    recipe: RecipeOptions | None = None,
    decoder: DecoderOptions | None = None,
    source: SourceOptions | None = None,
    run: RunOptions | None = None,
    cluster: WorkersOptions | None = None,
) -> int:
    """Train a Vision Transformer from scratch; `label` and `embed` load what it writes."""
    run = run or RunOptions()
    cluster = cluster or WorkersOptions()
    with LiveDisplay() as display:
        display.wait_for(first_wait([*sources, *((data and data.val) or ()), output]))
        reach(cluster.request, display.note)
        request = pretrain_request(
            sources,
            output=output,
            objective=objective,
            architecture=architecture,
            data=data,
            probe=probe,
            recipe=recipe,
            decoder=decoder,
            source=source,
            run=run,
            cluster=cluster,
        )
    return run_training(request, run.json)


def pretrain_request(
    sources: list[str],
    *,
    output: str,
    objective: str,
    architecture: ArchitectureOptions | None,
    data: DataOptions | None,
    probe: ProbeOptions | None,
    recipe: RecipeOptions | None,
    decoder: DecoderOptions | None,
    source: SourceOptions | None,
    run: RunOptions | None,
    cluster: WorkersOptions | None,
) -> "TrainRequest":
    """Return what `pretrain` asks for; the arguments are those of the command."""
    from wordsworth.vit_model.config import Preprocessing

    decoder = decoder or DecoderOptions()
    architecture = architecture or ArchitectureOptions()
    if architecture.representation_size and objective != "supervised":
        raise UserError(
            f"--representation-size has no meaning with --objective {objective}: leave it out", exit_code=2
        )
    asked = {
        "output": output,
        "config": _config(architecture, objective),
        "preprocessing": Preprocessing(crop_pct=1.0),
        "objective": objective,
        "decoder": (decoder.decoder_width, decoder.decoder_depth, decoder.decoder_heads),
        **(probe or ProbeOptions()).asked(objective),
    }
    options = TrainOptions(
        data=data or DataOptions(),
        recipe=recipe or RecipeOptions(),
        source=source or SourceOptions(),
        run=run or RunOptions(),
        cluster=cluster or WorkersOptions(),
    )
    return train_request(sources, asked, options)


def _config(options: ArchitectureOptions, objective: str) -> "ViTConfig":
    """Return the architecture without a head: the data says how many classes there are."""
    from wordsworth.vit_model.variants import variant

    if options.variant:
        sizes = (options.width, options.depth, options.heads, options.patch_size, options.mlp_ratio)
        if any(sizes):
            raise UserError(
                "--variant fixes the size: leave out --width, --depth, --heads, --mlp-ratio and --patch-size",
                exit_code=2,
            )
        config = variant(options.variant, image_size=options.image_size)
    else:
        config = _own_size(options)
    return replace(
        config,
        num_classes=0,
        position=options.position or DEFAULT_POSITION.get(objective, config.position),
        pool=options.pool,
        representation_size=options.representation_size,
    )


def _own_size(options: ArchitectureOptions) -> "ViTConfig":
    from wordsworth.vit_model.config import ModelError, ViTConfig

    if not (options.width and options.depth and options.heads and options.patch_size):
        raise UserError("give --variant, or all of --width, --depth, --heads and --patch-size", exit_code=2)
    try:
        return ViTConfig(
            image_size=(options.image_size, options.image_size),
            patch_size=options.patch_size,
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            mlp_dim=round(options.width * (options.mlp_ratio or 4)),
        )
    except ModelError as error:
        raise UserError(f"these sizes make no model: {error}", exit_code=2) from error
