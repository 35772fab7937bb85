"""wordsworth convert MODEL --output PATH --format timm|hf|npz|safetensors: a model in the form that other code opens."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from wordsworth.pipeline.errors import UserError


def convert(
    model: Annotated[
        str,
        Parameter(help="A model folder or file of weights, timm:NAME, hf:NAME, or a variant such as B/16."),
    ],
    /,
    *,
    output: Annotated[
        str, Parameter(help="A folder; for npz a file that ends in .npz; for safetensors either.")
    ],
    format: Annotated[
        Literal["safetensors", "timm", "hf", "npz"],
        Parameter(help="safetensors is our own: a model folder, or one file."),
    ] = "safetensors",
    weights: Annotated[str | None, Parameter(help="A file in place of the model's own weights.")] = None,
    labels: Annotated[str | None, Parameter(help="A file with the class names, one a line.")] = None,
    allow_random_weights: Annotated[
        bool, Parameter(help="Let a bare variant have random weights.", negative="", show_default=False)
    ] = False,
    image_size: Annotated[
        int | None, Parameter(help="Resample the position table for this many pixels a side.")
    ] = None,
    lossy: Annotated[
        bool,
        Parameter(
            help="Write also what the form cannot say in full, such as another GELU.",
            negative="",
            show_default=False,
        ),
    ] = False,
    storage_options: Annotated[str, Parameter(help="JSON for the fsspec file system.")] = "{}",
) -> int:
    """Write a model in another form. Without --lossy it computes the same there, and comes back bit-identical."""
    from wordsworth.jobs.options import SourceOptions
    from wordsworth.pipeline.prediction.load_model import load_model
    from wordsworth.vit_model.config import variant_name

    console, storage = (
        Console(stderr=True, soft_wrap=True, highlight=False),
        SourceOptions(storage_options=storage_options).storage,
    )
    checkpoint = load_model(
        model, weights, labels, allow_random_weights, note=console.print, storage_options=storage
    )
    if image_size is not None:
        checkpoint = checkpoint.resized(image_size)
    for note in _write(checkpoint, output, format, lossy, storage):
        console.print(f"note: {note}")
    config, count = checkpoint.config, sum(tensor.numel() for tensor in checkpoint.state.values())
    what = variant_name(config) or f"{config.width} wide, {config.depth} deep"
    size = "x".join(map(str, config.image_size))
    Console(soft_wrap=True, highlight=False).print(
        f"{what} at {size}, {count:,} parameters, {config.num_classes:,} classes -> {output} ({format})"
    )
    return 0


def _write(checkpoint: Any, output: str, format: str, lossy: bool, storage: dict[str, Any]) -> list[str]:
    """On this disk at once; for a store into a scratch folder first."""
    from wordsworth.pipeline.prediction.load_model import publish
    from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem, public
    from wordsworth.vit_model.checkpoint import WEIGHT_SUFFIXES
    from wordsworth.vit_model.foreign.export import convert as write

    fs, path = open_filesystem(output, storage)
    if fs.isfile(path) != path.endswith(WEIGHT_SUFFIXES) and fs.exists(path):
        raise UserError(
            f"--output {public(output)} is there and is not what {format} would write", exit_code=2
        )
    if is_local(fs):
        return write(checkpoint, path, format, lossy)
    with tempfile.TemporaryDirectory() as scratch:
        one_file = path.endswith(WEIGHT_SUFFIXES)
        notes = write(
            checkpoint, Path(scratch, path.rpartition("/")[2]) if one_file else scratch, format, lossy
        )
        publish(Path(scratch), output.rpartition("/")[0] if one_file else output, storage)
    return notes


if __name__ == "__main__":
    from wordsworth.jobs.cli import main_of

    main_of("convert")
