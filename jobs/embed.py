"""Run `wordsworth embed SOURCE... --output OUT --model MODEL`: write a vector for every image."""

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from wordsworth.jobs.cluster_options import PoolOptions
from wordsworth.jobs.label import report, run_labeler
from wordsworth.jobs.options import ModelOptions, PartOptions, RunOptions, RunOutput, SourceOptions, Sources
from wordsworth.pipeline.errors import UserError


def embed(
    sources: Sources,
    /,
    *,
    output: RunOutput,
    model: ModelOptions,
    dtype: Annotated[
        Literal["float16", "float32"], Parameter(help="Type of the vectors in Parquet.")
    ] = "float16",
    normalize: Annotated[
        bool, Parameter(help="Scale every vector to length 1.", negative="", show_default=False)
    ] = False,
    source: SourceOptions | None = None,
    part: PartOptions | None = None,
    run: RunOptions | None = None,
    cluster: PoolOptions | None = None,
) -> int:
    """Embed every image of the sources, each exactly once, into Parquet.

    An embedding is the vector that enters the model's final linear head.
    """
    from wordsworth.jobs.progress import RunProgress

    if model.classes or model.prompt:
        raise UserError(
            "wordsworth embed gives vectors, which do not depend on classes: leave --classes and --prompt "
            "out, or use wordsworth label --embeddings",
            exit_code=2,
        )
    source, run = source or SourceOptions(), run or RunOptions()
    asked = embed_request(dtype, normalize) | (part or PartOptions()).asked()
    asked["cluster"] = (cluster or PoolOptions()).request
    with RunProgress("embedding") as progress:
        summary = run_labeler("embed", sources, output, model, source, run, asked, progress)
    return report(summary, output, run, source)


def embed_request(dtype: str, normalize: bool) -> dict[str, Any]:
    """Return the fields of a LabelRequest that `embed` asks for."""
    return {"top_k": 0, "embedding": dtype, "normalize": normalize}
