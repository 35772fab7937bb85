"""wordsworth evaluate SOURCE... --model MODEL: how often a model is right on images whose class is known."""

import contextlib
import json
import tempfile
from statistics import fmean
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from wordsworth.jobs.options import ModelOptions, SourceOptions
from wordsworth.pipeline.errors import UserError


def evaluate(
    sources: Annotated[
        list[str],
        Parameter(
            help="Tar shards, images or tables: files, folders, globs, local or s3://, gs://, az://, hf://."
        ),
    ],
    /,
    *,
    model: ModelOptions,
    target: Annotated[
        str,
        Parameter(
            help="Where a class stands: cls or another sidecar or column, json:FIELD, or folder (the key's last one)."
        ),
    ] = "cls",
    train: Annotated[
        list[str] | None,
        Parameter(help="Labelled images: with them a linear probe on a few of each class, and neighbours."),
    ] = None,
    shots: Annotated[str, Parameter(help="Images of each class that a probe is fitted to.")] = "1,5,10,25",
    output: Annotated[
        str | None, Parameter(help="Keep the predictions there; the same command again continues.")
    ] = None,
    source: SourceOptions | None = None,
    precision: Annotated[Literal["auto", "fp32", "bf16"], Parameter(help="As for label.")] = "auto",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Parameter(help="auto takes the GPUs that Ray has.")
    ] = "auto",
    address: Annotated[
        str | None, Parameter(help="As for label; needs an --output that every node sees.")
    ] = None,
    json_: Annotated[
        bool, Parameter(name="--json", help="Print JSON.", negative="", show_default=False)
    ] = False,
) -> int:
    """Label images whose class is known, each exactly once, and say how often the model is right."""
    from wordsworth.jobs.progress import RunProgress

    if address and not output:
        raise UserError("--address needs an --output, in a place that every node sees", exit_code=2)
    if not all(part.strip().isdecimal() and int(part) for part in shots.split(",")):
        raise UserError(f"--shots {shots}: give numbers from 1 on, such as 1,5,10,25", exit_code=2)
    source = source or SourceOptions()
    with contextlib.ExitStack() as stack:
        place = output or stack.enter_context(tempfile.TemporaryDirectory(prefix="wordsworth-evaluate-"))
        from wordsworth.pipeline.labeling.evaluate import evaluate as run
        from wordsworth.pipeline.labeling.plan import LabelRequest

        request = LabelRequest(
            command="label",
            sources=tuple(sources),
            output=place,
            model=model.model,
            precision=precision,
            device=device,
            address=address,
            **source.asked(),
        )
        checkpoint = model.load(
            lambda said: Console(stderr=True, soft_wrap=True).print(said, markup=False), source.storage
        )
        chosen = tuple(int(part) for part in shots.split(","))
        found = run(
            request,
            checkpoint,
            target,
            lambda name: RunProgress(f"labelling {name}:"),
            tuple(train or ()),
            chosen,
        )
    if json_:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    console, table = (
        Console(soft_wrap=True, highlight=False),
        Table(show_header=False, box=None, pad_edge=False),
    )
    low, high = found["top1_interval"]
    rows = {
        "images": f"{found['images']:,}"
        + (f", and {found['errors']:,} that could not be decoded" if found["errors"] else ""),
        "top-1": f"{found['top1']:.2%} (95% interval {low:.2%} to {high:.2%})",
        "top-5": f"{found['top5']:.2%}",
        "calibration": f"expected error {found['calibration_error']:.4f}",
    }
    for k, values in found.get("few_shot", {}).items():
        spread = f"{min(values):.2%} to {max(values):.2%}"
        rows[f"{k}-shot linear"] = f"{fmean(values):.2%} ({spread} over {len(values)} draws)"
    if "neighbours" in found:
        rows["neighbours"] = f"{found['neighbours']:.2%}, by {found['train_images']:,} training images"
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print()
    worst = Table(
        "worst classes", "images", "right", "taken for", box=None, header_style="bold", pad_edge=False
    )
    for row in found["worst"]:
        others = ", ".join(f"{name} ({count:,})" for name, count in row["taken_for"].items())
        worst.add_row(row["class"], f"{row['images']:,}", f"{row['accuracy']:.1%}", others)
    console.print(worst)


if __name__ == "__main__":
    from wordsworth.jobs.cli import main_of

    main_of("evaluate")
