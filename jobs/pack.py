"""Run `wordsworth pack FOLDER --output SHARDS`: write the images of class folders into WebDataset shards."""

from typing import Annotated

from cyclopts import Parameter, validators
from rich.console import Console


def pack(
    folder: Annotated[
        str, Parameter(help="Images in class folders (FOLDER/CLASS/image.jpg), or without classes.")
    ],
    /,
    *,
    output: Annotated[str, Parameter(help="Folder or URL that gets the shards.")],
    shard_size: Annotated[
        int, Parameter(help="Images in a shard.", validator=validators.Number(gte=1))
    ] = 1000,
    seed: Annotated[int, Parameter(help="Seed of the order of the images.")] = 0,
    include_hidden: Annotated[
        bool, Parameter(help="Take the names too that are skipped (docs/sources.md).", negative="")
    ] = False,
) -> int:
    """Pack images into WebDataset shards: the class of an image in `.cls`, the class names in labels.txt."""
    from wordsworth.pipeline.sources.pack import pack as run
    from wordsworth.pipeline.sources.skipped_names import skipped_note

    packed = run(folder, output, shard_size, seed, include_hidden=include_hidden)
    console = Console(soft_wrap=True, highlight=False)
    classes = f" of {len(packed.classes)} classes" if packed.classes else ""
    ignored = f"; {packed.ignored} other files ignored" if packed.ignored else ""
    console.print(
        f"packed {packed.images:,} images{classes} into {len(packed.shards)} shards in {output}{ignored}"
    )
    if packed.skipped:
        console.print(skipped_note(packed.skipped))
    return 0
