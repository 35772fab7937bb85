"""Run `wordsworth convert MODEL --output PATH --format ...`: write a model in another code's form."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from wordsworth.jobs.options import Flag, StoreOptions
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import StorageOptions

if TYPE_CHECKING:
    from wordsworth.vit_model.checkpoint import Checkpoint


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
        bool, Flag, Parameter(help="Let a bare variant have random weights.")
    ] = False,
    image_size: Annotated[
        int | None, Parameter(help="Resample the position table for this many pixels a side.")
    ] = None,
    lossy: Annotated[
        bool,
        Flag,
        Parameter(help="Write also what the form cannot say in full, such as another GELU."),
    ] = False,
    storage_options: Annotated[str, Parameter(help="JSON for the fsspec file system.")] = "{}",
) -> int:
    """Write a model in another form.

    Without --lossy the written model computes the same, and comes back bit-identical.
    """
    from wordsworth.pipeline.prediction.load_model import load_model
    from wordsworth.vit_model.variants import variant_name

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    storage = StoreOptions(storage_options=storage_options).storage
    checkpoint = load_model(
        model,
        weights=weights,
        labels=labels,
        allow_random_weights=allow_random_weights,
        note=console.print,
        storage_options=storage,
    )
    if image_size is not None:
        checkpoint = checkpoint.resized(image_size)
    for note in _write(checkpoint, output, format, lossy, storage):
        console.print(f"note: {note}")
    config = checkpoint.config
    num_params = sum(tensor.numel() for tensor in checkpoint.state.values())
    what = variant_name(config) or f"{config.width} wide, {config.depth} deep"
    size = "x".join(map(str, config.image_size))
    Console(soft_wrap=True, highlight=False).print(
        f"{what} at {size}, {num_params:,} parameters, {config.num_classes:,} classes -> {output} ({format})"
    )
    return 0


def _write(
    checkpoint: "Checkpoint", output: str, format: str, lossy: bool, storage: StorageOptions
) -> list[str]:
    """Write the model to a disk at once, or to a store by way of a scratch folder.

    Returns:
        Notes: what the form does not carry.
    """
    from wordsworth.pipeline.prediction.load_model import publish
    from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem, without_credentials
    from wordsworth.vit_model.foreign.export import export_model
    from wordsworth.vit_model.weights import WEIGHT_SUFFIXES

    fs, path = open_filesystem(output, storage)
    one_file = path.endswith(WEIGHT_SUFFIXES)
    if fs.isfile(path) != one_file and fs.exists(path):
        what = f"is there and is not what {format} would write"
        raise UserError(f"--output {without_credentials(output)} {what}", exit_code=2)
    if is_local(fs):
        return export_model(checkpoint, path, format, lossy)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, path.rpartition("/")[2]) if one_file else Path(scratch)
        notes = export_model(checkpoint, local, format, lossy)
        publish(Path(scratch), output.rpartition("/")[0] if one_file else output, storage)
    return notes
