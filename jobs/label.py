"""wordsworth label SOURCE... --output OUT --model MODEL: a label for every image."""

import json
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from wordsworth.jobs.options import ModelOptions, RunOptions, SourceOptions


def label(
    sources: Annotated[
        list[str],
        Parameter(
            help="Tar shards, images or tables: files, folders, globs, local or s3://, gs://, az://, hf://."
        ),
    ],
    /,
    *,
    output: Annotated[str, Parameter(help="The run folder; the same command again continues it.")],
    model: ModelOptions,
    top_k: Annotated[int, Parameter(help="How many classes a row keeps.")] = 5,
    embeddings: Annotated[
        bool,
        Parameter(
            help="Keep what enters the final linear head too (float16).", negative="", show_default=False
        ),
    ] = False,
    source: SourceOptions | None = None,
    run: RunOptions | None = None,
) -> int:
    """Label every image of the sources, each exactly once, into Parquet."""
    asked = {"top_k": top_k, "embedding": "float16" if embeddings else None}
    return execute("label", sources, output, model, source or SourceOptions(), run or RunOptions(), asked)


def execute(
    command: str,
    sources: list[str],
    output: str,
    model: ModelOptions,
    source: SourceOptions,
    run: RunOptions,
    asked: dict[str, Any],
) -> int:
    """Load the model, run the labeler, print the summary: what `label` and `embed` share."""
    from wordsworth.jobs.progress import RunProgress

    with RunProgress("labelling" if command == "label" else "embedding") as progress:
        from wordsworth.pipeline.labeling.labeler import LabelRequest
        from wordsworth.pipeline.labeling.labeler import label as run_labeler

        request = LabelRequest(
            command=command,
            sources=tuple(sources),
            output=output,
            model=model.model,
            keep=run.kept,
            precision=run.precision,
            device=run.device,
            batch_size=run.batch,
            gpu_mode=run.gpu_mode,
            gpus_per_actor=run.gpus_per_actor,
            unit_rows=run.unit_rows,
            address=run.address,
            update=run.update,
            replace_changed=run.replace_changed,
            retry_errors=run.retry_errors,
            on_error=run.on_error,
            max_image_bytes=run.max_image_bytes,
            max_pixels=run.max_pixels,
            max_side=run.max_side,
            decode_timeout=run.decode_timeout,
            fast_decode=run.fast_decode,
            stall_timeout=run.stall_timeout,
            **source.asked(),
            **asked,
        )
        checkpoint = model.load(progress.note, source.storage)
        summary = run_labeler(request, checkpoint, progress)
    _print(summary, output, run.json)
    rate = sum(summary["errors"].values()) / max(1, summary["rows"])
    if rate > run.max_error_rate:
        Console(stderr=True).print(
            f"{rate:.2%} of the rows have an error, over --max-error-rate {run.max_error_rate}"
        )
        return 3
    return 0


def _print(summary: dict[str, Any], output: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    table = Table(show_header=False, box=None)
    errors = ", ".join(f"{count:,} {code}" for code, count in summary["errors"].items()) or "none"
    speed = summary["last_command"]
    shards = "1 shard" if summary["shards"] == 1 else f"{summary['shards']:,} shards"
    rows = {"rows": f"{summary['rows']:,} from {shards}", "errors": errors}
    if speed["images"]:
        spent = f"{speed['images']:,} images in {speed['seconds']:,} s"
        rows["speed"] = (
            f"{speed['images_per_second']:,} images/s ({spent}, the start of the workers included)"
        )
    if gpu := speed.get("gpu"):
        sizes = " and ".join(gpu["batch_sizes"])
        rows["model"] = f"on the GPUs of {gpu['nodes']} nodes" if gpu["nodes"] > 1 else "on a GPU"
        rows["model"] += f" by --gpu-mode {' and '.join(gpu['modes'])}, batches of {sizes}"
    if speed.get("bottleneck"):
        rows["held back by"] = speed["bottleneck"]
    if summary.get("estimate"):
        rows["foretold"] = foretold(**summary["estimate"])
    rows["predictions"] = f"{output.rstrip('/')}/predictions/*.parquet"
    rows["next"] = f"wordsworth verify {output} --source"
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True, highlight=False).print(table)


def foretold(images: list, images_per_second: list, bytes_written: list) -> str:
    """What `wordsworth plan` said, and how far off it was."""
    rate, found = images_per_second
    speed = f"{rate:,} images/s" + (f" (it was {found:,}, {found / rate:.0%})" if found else "")
    size = f"{decimal(bytes_written[0])} of Parquet (it was {decimal(bytes_written[1])})"
    return f"{images[0]:,} images (it was {images[1]:,}), {speed}, {size}"


if __name__ == "__main__":
    from wordsworth.jobs.cli import main_of

    main_of("label")
