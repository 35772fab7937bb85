"""wordsworth pretrain SOURCE... --output MODEL_DIR --variant S/16: a Vision Transformer from scratch."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from wordsworth.jobs.options import SourceOptions
from wordsworth.jobs.train_options import RECIPE, DataOptions, RecipeOptions, RunOptions, execute
from wordsworth.pipeline.errors import UserError

ARCHITECTURE = Group("Architecture")


@Parameter(name="*", group=ARCHITECTURE)
@dataclass
class ArchitectureOptions:
    """A variant, or a size of one's own."""

    variant: str | None = None
    "Such as S/16; or leave it out and give --width, --depth, --heads and --patch-size."
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_ratio: float | None = None
    "The MLP's width as a multiple of --width: 4, if not given."
    patch_size: int | None = None
    image_size: int = 224
    "Pixels a side."
    position: Literal["learned-1d", "learned-2d", "sincos-2d", "sincos-2d-mae", "none"] = "learned-1d"
    pool: Literal["token", "avg"] = "token"
    "What the head looks at: the [class] token, or the mean of the patches."


@Parameter(name="*", group=RECIPE)
@dataclass
class DecoderOptions:
    """MAE's decoder, which is thrown away afterwards."""

    decoder_width: int = 512
    "Of the decoder of --objective mae."
    decoder_depth: int = 8
    decoder_heads: int = 16


def pretrain(
    sources: Annotated[
        list[str],
        Parameter(
            help="Tar shards, images or tables: files, folders, globs, local or s3://, gs://, az://, hf://."
        ),
    ],
    /,
    *,
    output: Annotated[
        str, Parameter(help="The model folder; of an unfinished training, the same command goes on with it.")
    ],
    objective: Annotated[
        Literal["supervised", "masked-patch", "mae"],
        Parameter(help="The latter two need no classes; their model has no head."),
    ] = "supervised",
    architecture: ArchitectureOptions | None = None,
    data: DataOptions | None = None,
    recipe: RecipeOptions | None = None,
    decoder: DecoderOptions | None = None,
    source: SourceOptions | None = None,
    run: RunOptions | None = None,
) -> int:
    """Train a Vision Transformer from scratch; what it writes is what `label` and `embed` load."""
    decoder = decoder or DecoderOptions()
    config = _config(architecture or ArchitectureOptions())

    from wordsworth.vit_model.config import Preprocessing

    asked = {
        "output": output,
        "config": config,
        "preprocessing": Preprocessing(crop_pct=1.0),
        "objective": objective,
        "decoder": (decoder.decoder_width, decoder.decoder_depth, decoder.decoder_heads),
    }
    return execute(
        asked,
        sources,
        data or DataOptions(),
        recipe or RecipeOptions(),
        source or SourceOptions(),
        run or RunOptions(),
    )


def _config(options: ArchitectureOptions):
    from wordsworth.vit_model.config import ViTConfig, variant

    free = (options.width, options.depth, options.heads, options.patch_size)
    if options.variant:
        if any(free) or options.mlp_ratio:
            raise UserError(
                "--variant fixes the size: leave out --width, --depth, --heads, --mlp-ratio and --patch-size",
                exit_code=2,
            )
        config = variant(options.variant, image_size=options.image_size)
    elif not all(free):
        raise UserError("give --variant, or all of --width, --depth, --heads and --patch-size", exit_code=2)
    else:
        width, depth, heads, patch_size = free
        config = ViTConfig(
            options.image_size, patch_size, width, depth, heads, round(width * (options.mlp_ratio or 4))
        )
    return replace(config, num_classes=0, position=options.position, pool=options.pool)


if __name__ == "__main__":
    from wordsworth.jobs.cli import main_of

    main_of("pretrain")
