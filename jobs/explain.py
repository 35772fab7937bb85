"""Run `wordsworth explain IMAGE... --model M --output DIR`: the paper's figures for a model and images."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from wordsworth.jobs.options import JsonFlag, ModelOptions, StoreOptions
from wordsworth.jobs.terminal import Terminal
from wordsworth.pipeline.errors import UserError, shown

if TYPE_CHECKING:
    from wordsworth.pipeline.report.explanation import Explanation


def explain(
    images: Annotated[list[str], Parameter(help="At most 64 images: files, or s3://, gs://, az://, hf://.")],
    /,
    *,
    model: ModelOptions,
    output: Annotated[
        str,
        Parameter(
            alias="-o", help="A folder for the figures and explain.html; files of these names are replaced."
        ),
    ],
    layer: Annotated[
        int | None,
        Parameter(
            help="""Layer whose heads are drawn: from 1 on, or -1 for the last. Without it: the attention pool
            of a model that has one, else the last layer.""",
            show_default=False,
        ),
    ] = None,
    storage: StoreOptions | None = None,
    precision: Annotated[Literal["auto", "fp32", "bf16"], Parameter(help="As for label.")] = "auto",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Parameter(help="auto takes a GPU where torch has one.")
    ] = "auto",
    json_: JsonFlag = False,
) -> int:
    """Draw the paper's figures for a model and images: PNG files and one HTML page."""
    from wordsworth.pipeline.report.figure_frame import check_can_draw
    from wordsworth.pipeline.sources.model_inputs import find_images

    if not images:
        raise UserError("explain needs an image: wordsworth explain IMAGE... --model M", exit_code=2)
    check_can_draw()
    storage = storage or StoreOptions()
    storage.check(*images, model.model, model.weights, output=output, is_new=True)
    model.check()
    found_images = find_images(images, storage.storage)
    console = Terminal(stderr=True)
    with console.status("loading the model") as status:
        checkpoint = model.load(console.say, storage.storage)
        from wordsworth.pipeline.report.explanation import ExplainSettings
        from wordsworth.pipeline.report.explanation import explain as run
        from wordsworth.pipeline.report.write_figures import write_explanation

        status.update("running the model on the images")
        settings = ExplainSettings(model=model.model, layer=layer, precision=precision, device=device)
        found = run(checkpoint, found_images, settings)
        status.update("drawing the figures")
        files = write_explanation(found, output, storage.storage)
    if json_:
        print(json.dumps(_told(found, files), indent=1))
        return 0
    for note in found.notes:
        console.say(f"note: {note}")
    terminal = Terminal()
    for image in found.images:
        terminal.say(f"{shown(image.name)}: {image.told}")
    for file in files:
        terminal.say(file)
    return 0


def _told(found: "Explanation", files: list[str]) -> dict[str, object]:
    """Return what --json prints."""
    return {
        "model": found.model,
        "images": [
            {
                "image": image.name,
                "width": image.width,
                "height": image.height,
                "best": [{"label": name, "score": score} for name, score in image.best],
                "figures": [figure.file for figure in image.figures],
            }
            for image in found.images
        ],
        "model_figures": [figure.file for figure in found.model_figures],
        "notes": found.notes,
        "files": files,
    }
