"""Run `wordsworth convert MODEL --output PATH --format ...`: write a model in another code's form."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from wordsworth.jobs.options import Flag, StoreOptions
from wordsworth.jobs.terminal import Terminal
from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.storage.filesystem import StorageOptions

if TYPE_CHECKING:
    from wordsworth.vit_model.checkpoint import BaseCheckpoint


def convert(
    model: Annotated[
        str,
        Parameter(help="A model folder or file of weights, timm:NAME, hf:NAME, or a variant such as B/16."),
    ],
    /,
    *,
    output: Annotated[
        str, Parameter(alias="-o", help="A folder; for npz a file that ends in .npz; for safetensors either.")
    ],
    format: Annotated[
        Literal["safetensors", "timm", "hf", "npz"],
        Parameter(help="safetensors is our own: a model folder, or one file."),
    ] = "safetensors",
    weights: Annotated[str | None, Parameter(help="A file in place of the model's own weights.")] = None,
    weights_key: Annotated[
        str | None, Parameter(help="The set of tensors to take from a file with several.")
    ] = None,
    labels: Annotated[str | None, Parameter(help="A file with the class names, one a line.")] = None,
    head: Annotated[
        Literal["softmax", "sigmoid", "value"] | None,
        Parameter(help="What the head's outputs are, where the model's files do not say it."),
    ] = None,
    classes: Annotated[
        str | None, Parameter(help="As for label: the model that is written has them.")
    ] = None,
    prompt: Annotated[str | None, Parameter(help="As for label.")] = None,
    allow_random_weights: Annotated[
        bool, Flag, Parameter(help="Let a bare variant have random weights.")
    ] = False,
    image_size: Annotated[
        int | None,
        Parameter(
            help="Resample the position table for this many pixels a side.",
            validator=validators.Number(gte=1),
        ),
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
    stores = StoreOptions(storage_options=storage_options)
    stores.check(model, weights, output=output)
    if os.path.realpath(output) == os.path.realpath(model):
        raise UserError(f"--output {output} is the model itself: name another folder or file", exit_code=2)
    storage = stores.storage
    console = Terminal(stderr=True)
    with console.status("loading the model"):
        from wordsworth.pipeline.prediction.load_model import load_model
        from wordsworth.vit_model.checkpoint import own_model
        from wordsworth.vit_model.config import ModelError

        checkpoint = load_model(
            model,
            weights=weights,
            weights_key=weights_key,
            labels=labels,
            head=head,
            classes=classes,
            prompt=prompt,
            allow_random_weights=allow_random_weights,
            note=console.say,
            storage_options=storage,
        )
    if image_size is not None:
        try:
            checkpoint = own_model(checkpoint, "--image-size").resized(image_size)
        except ModelError as error:
            raise UserError(f"--image-size {image_size}: {error}", exit_code=2) from error
    for note in _write(checkpoint, output, format, lossy, storage):
        console.say(f"note: {note}")
    config = checkpoint.config
    num_params = sum(tensor.numel() for tensor in checkpoint.state.values())
    what = checkpoint.variant or f"a model with embeddings of {config.embedding_dim}"
    size = "x".join(map(str, config.image_size))
    classes = plural(config.num_classes, "class", "classes")
    Terminal().say(f"{what} at {size}, {num_params:,} parameters, {classes} -> {output} ({format})")
    return 0


def _write(
    checkpoint: "BaseCheckpoint", output: str, format: str, lossy: bool, storage: StorageOptions
) -> list[str]:
    """Write the model to a disk at once, or to a store by way of a scratch folder.

    Returns:
        Notes: what the form does not carry.
    """
    from wordsworth.pipeline.prediction.model_files import publish
    from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem, without_credentials
    from wordsworth.pipeline.storage.refusals import naming
    from wordsworth.vit_model.file_kinds import WEIGHT_SUFFIXES
    from wordsworth.vit_model.foreign.export import export_model

    fs, path = open_filesystem(output, storage)
    one_file = path.endswith(WEIGHT_SUFFIXES)
    if fs.isfile(path) != one_file and fs.exists(path):
        wanted = "a file" if one_file else "a folder"
        told = f"{without_credentials(output)} is there and is not {wanted}"
        raise UserError(f"--output {told}, as {format} would write it: give another name", exit_code=2)
    if is_local(fs):
        return export_model(checkpoint, path, format, lossy)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, path.rpartition("/")[2]) if one_file else Path(scratch)
        notes = export_model(checkpoint, local, format, lossy)
        with naming(output):
            publish(Path(scratch), output.rpartition("/")[0] if one_file else output, storage)
    return notes
