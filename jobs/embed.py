"""wordsworth embed SOURCE... --output OUT --model MODEL: a vector for every image."""

from typing import Annotated, Literal

from cyclopts import Parameter

from wordsworth.jobs.label import execute
from wordsworth.jobs.options import ModelOptions, RunOptions, SourceOptions


def embed(
    sources: Annotated[
        list[str],
        Parameter(
            help="Tar shards, images or tables: files, folders, globs, local or s3://, gs://, az://, hf://."
        ),
    ],
    /,
    *,
    output: Annotated[str, Parameter(help="The run folder; the same command again continues it.")],
    model: ModelOptions,
    dtype: Annotated[Literal["float16", "float32"], Parameter(help="Of the vectors in Parquet.")] = "float16",
    normalize: Annotated[
        bool, Parameter(help="Scale every vector to length 1.", negative="", show_default=False)
    ] = False,
    source: SourceOptions | None = None,
    run: RunOptions | None = None,
) -> int:
    """Embed every image of the sources, each exactly once, into Parquet: what enters the model's final linear head."""
    asked = {"top_k": 0, "embedding": dtype, "normalize": normalize}
    return execute("embed", sources, output, model, source or SourceOptions(), run or RunOptions(), asked)


if __name__ == "__main__":
    from wordsworth.jobs.cli import main_of

    main_of("embed")
