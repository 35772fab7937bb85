"""Run `wordsworth pack FOLDER --output SHARDS`: write the images of class folders into WebDataset shards."""

from typing import Annotated, Literal

from cyclopts import Parameter, validators

from wordsworth.jobs.options import StoreOptions
from wordsworth.jobs.terminal import Terminal
from wordsworth.pipeline.errors import plural


def pack(
    folder: Annotated[
        str, Parameter(help="Images in class folders (FOLDER/CLASS/image.jpg), or without classes.")
    ],
    /,
    *,
    output: Annotated[str, Parameter(alias="-o", help="Folder or URL that gets the shards.")],
    shard_size: Annotated[
        int, Parameter(help="Images in a shard.", validator=validators.Number(gte=1))
    ] = 1000,
    seed: Annotated[int, Parameter(help="Seed of the order of the images.")] = 0,
    follow_links: Annotated[
        Literal["inside", "outside"],
        Parameter(help="outside: follow links to folders out of FOLDER (docs/sources.md)."),
    ] = "inside",
    include_hidden: Annotated[
        bool, Parameter(help="Take the names too that are skipped (docs/sources.md).", negative="")
    ] = False,
    storage_options: Annotated[
        str, Parameter(help="JSON object for the stores' clients (docs/stores.md).")
    ] = "{}",
) -> int:
    """Pack images into WebDataset shards: the class of an image in `.cls`, the class names in labels.txt."""
    stores = StoreOptions(storage_options=storage_options)
    stores.check(folder, output=output, is_new=True)
    from wordsworth.pipeline.sources.pack import pack as run
    from wordsworth.pipeline.sources.passed_over import ListingRules

    rules = ListingRules(include_hidden=include_hidden, follow_links=follow_links)
    with Terminal(stderr=True).status("packing"):
        packed = run(folder, output, shard_size, seed, rules, stores.storage)
    console = Terminal()
    classes = f" of {plural(len(packed.classes), 'class', 'classes')}" if packed.classes else ""
    ignored = f"; {plural(packed.ignored, 'other file')} ignored" if packed.ignored else ""
    images, shards = plural(packed.images, "image"), plural(len(packed.shards), "shard")
    console.say(f"packed {images}{classes} into {shards} in {output}{ignored}")
    if not packed.is_indexed:
        console.say("the shards are too many for an index of their classes: a training counts them itself")
    for name in packed.alike:
        console.say(f"class {name} is folders in several Unicode forms: taken as one class")
    for note in packed.passed_over.serious_notes():
        console.say(note)
    return 0
