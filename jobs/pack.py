"""wordsworth pack FOLDER --output SHARDS: images in class folders become WebDataset shards."""

from typing import Annotated

from cyclopts import Parameter, validators
from rich.console import Console


def pack(
    folder: Annotated[
        str, Parameter(help="Images in class folders (FOLDER/CLASS/image.jpg), or without classes.")
    ],
    /,
    *,
    output: Annotated[str, Parameter(help="Where the shards go.")],
    shard_size: Annotated[
        int, Parameter(help="Images in a shard.", validator=validators.Number(gte=1))
    ] = 1000,
    seed: Annotated[int, Parameter(help="Of the order of the images.")] = 0,
) -> int:
    """Pack images into WebDataset shards, with the class of each as `.cls` and the class names in labels.txt."""
    from wordsworth.pipeline.sources.pack import pack as run

    packed = run(folder, output, shard_size, seed)
    console = Console(soft_wrap=True, highlight=False)
    classes = f" of {len(packed.classes)} classes" if packed.classes else ""
    ignored = f"; {packed.ignored} other files ignored" if packed.ignored else ""
    console.print(
        f"packed {packed.images:,} images{classes} into {len(packed.shards)} shards in {output}{ignored}"
    )
    return 0


if __name__ == "__main__":
    from wordsworth.jobs.cli import main_of

    main_of("pack")
