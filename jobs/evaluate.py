"""Run `wordsworth evaluate SOURCE... --model MODEL`: say how often a model is right."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import fmean
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from wordsworth.jobs.cluster_options import PoolOptions
from wordsworth.jobs.options import JsonFlag, ModelOptions, PartOptions, SourceOptions, Sources
from wordsworth.jobs.terminal import Terminal, data_text
from wordsworth.pipeline.cluster.joining import reach
from wordsworth.pipeline.errors import UserError

DOING = {"test": "labelling the images", "train": "labelling the images of --train"}  # by the name of a run


def evaluate(
    sources: Sources,
    /,
    *,
    model: ModelOptions,
    target: Annotated[
        str,
        Parameter(
            help="Where an image's class stands: cls or another sidecar or column, json:FIELD, or folder."
        ),
    ] = "cls",
    train: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            help="Labelled images: with them a linear probe on a few of each class, and neighbours.",
        ),
    ] = None,
    shots: Annotated[str, Parameter(help="Images of each class that a probe is fitted to.")] = "1,5,10,25",
    output: Annotated[
        str | None,
        Parameter(alias="-o", help="Keep the predictions there; the same command again continues."),
    ] = None,
    source: SourceOptions | None = None,
    part: PartOptions | None = None,
    precision: Annotated[Literal["auto", "fp32", "bf16"], Parameter(help="As for label.")] = "auto",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Parameter(help="auto takes the GPUs that Ray has.")
    ] = "auto",
    cluster: PoolOptions | None = None,
    json_: JsonFlag = False,
) -> int:
    """Label images whose class is known, and say how often the model is right."""
    from wordsworth.jobs.progress import RunProgress

    found = evaluate_sources(
        sources,
        model=model,
        target=target,
        train=train,
        shots=shots,
        output=output,
        source=source,
        part=part,
        precision=precision,
        device=device,
        cluster=cluster,
        progress_of=lambda name: RunProgress(f"{DOING.get(name, name)}:"),
    )
    if json_:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0


def evaluate_sources(
    sources: list[str],
    *,
    model: ModelOptions,
    target: str,
    train: list[str] | None,
    shots: str,
    output: str | None,
    source: SourceOptions | None,
    part: PartOptions | None,
    precision: str,
    device: str,
    cluster: PoolOptions | None,
    progress_of: Callable[[str], AbstractContextManager[Any]],
) -> dict[str, Any]:
    """Label the sources, in a temporary folder unless `output` is given, and return how often the model is
    right.

    Args:
        progress_of: makes the display of a run from its name.
    """
    asked_cluster = (cluster or PoolOptions()).request
    if asked_cluster.address and not output:
        raise UserError("--address needs an --output, in a place that every node sees", exit_code=2)
    if not all(part.strip().isdecimal() and int(part) for part in shots.split(",")):
        raise UserError(f"--shots {shots}: give numbers from 1 on, such as 1,5,10,25", exit_code=2)
    source = source or SourceOptions()
    part = part or PartOptions()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_of("the session"))
        reach(asked_cluster, progress.note)
        source.check(*sources, *(train or ()), model.model, model.weights, output=output, is_new=True)
        model.check()
        if part.limit:
            progress.note(
                "--limit takes the first images, which may be of few classes: --sample draws from all"
            )
        place = output or stack.enter_context(tempfile.TemporaryDirectory(prefix="wordsworth-evaluate-"))
        progress.waiting("loading PyTorch")
        from wordsworth.pipeline.labeling.evaluate import evaluate as run
        from wordsworth.pipeline.labeling.request import LabelRequest

        request = LabelRequest(
            command="label",
            sources=tuple(sources),
            output=place,
            model=model.model,
            precision=precision,
            device=device,
            cluster=asked_cluster,
            **source.asked(),
            **part.asked(),
        )
        progress.waiting("loading the model" + ("" if model.classes is None else " and its classes"))
        checkpoint = model.load(progress.note, source.storage)
        chosen = tuple(int(part) for part in shots.split(","))
        progress.waiting("counting what is right")
        return run(request, checkpoint, target, progress_of, tuple(train or ()), chosen)


def _print(found: dict[str, Any]) -> None:
    console = Terminal()
    table = Table(show_header=False, box=None, pad_edge=False)
    low, high = found["top1_interval"]
    images = f"{found['images']:,}"
    if found["errors"]:
        images += f", and {found['errors']:,} that could not be decoded"
    rows = {
        "images": images,
        "top-1": f"{found['top1']:.2%} (95% interval {low:.2%} to {high:.2%})",
        "top-5": f"{found['top5']:.2%}",
        "balanced": f"{found['balanced_accuracy']:.2%}, the mean recall of {len(found['recall']):,} classes",
        "calibration": f"expected error {found['calibration_error']:.4f}",
    }
    for k, values in found.get("few_shot", {}).items():
        spread = f"{min(values):.2%} to {max(values):.2%}"
        rows[f"{k}-shot linear"] = f"{fmean(values):.2%} ({spread} over {len(values)} draws)"
    if "neighbours" in found:
        rows["neighbours"] = f"{found['neighbours']:.2%}, by {found['train_images']:,} training images"
    for name, value in rows.items():
        table.add_row(name, data_text(value))
    console.print(table)
    console.say(f"classes: {found['classes']}")
    if "train_classes" in found:
        console.say(f"classes of --train: {found['train_classes']}")
    console.print()
    worst = Table(
        "worst classes", "images", "recall", "taken for", box=None, header_style="bold", pad_edge=False
    )
    for row in found["worst"]:
        others = ", ".join(f"{name} ({count:,})" for name, count in row["taken_for"].items())
        worst.add_row(
            data_text(row["class"]), f"{row['images']:,}", f"{row['accuracy']:.1%}", data_text(others)
        )
    console.print(worst)
