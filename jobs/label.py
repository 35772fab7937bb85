"""Run `wordsworth label SOURCE... --output OUT --model MODEL`: write a label for every image.

Without --output it prints the labels of a few images (jobs/quick_look.py).
"""

import contextlib
import json
from datetime import datetime
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators
from rich.filesize import decimal

from wordsworth.jobs.cluster_options import PoolOptions
from wordsworth.jobs.options import (
    USUAL,
    Flag,
    ModelOptions,
    PartOptions,
    RunOptions,
    SourceOptions,
    Sources,
    Threshold,
)
from wordsworth.jobs.terminal import Terminal
from wordsworth.pipeline.cluster.joining import reach
from wordsworth.pipeline.errors import plural

if TYPE_CHECKING:
    from wordsworth.pipeline.labeling.progress import Progress
    from wordsworth.pipeline.labeling.request import LabelRequest
    from wordsworth.pipeline.output.records import Summary

WORK = {"decode": "decoding", "predict": "the model"}  # stages whose seconds are told, and their names
MOST_OF_NAME = 42  # characters of a model's name beside the bar
NOT_SKIPPED = ("dotted_key", "directory")  # kinds of skipped_members: rows of their own, and no loss


def label(
    sources: Sources,
    /,
    *,
    output: Annotated[
        str | None,
        Parameter(
            alias="-o",
            group=USUAL,
            help="""The run folder. The same command again continues the run. Without it: a table of the first
            images, made in this process alone, and nothing is written.""",
            show_default=False,
        ),
    ] = None,
    model: ModelOptions,
    top_k: Annotated[
        int, Parameter(group=USUAL, help="Number of classes in a row.", validator=validators.Number(gte=1))
    ] = 5,
    threshold: Threshold = None,
    embeddings: Annotated[
        bool, Flag, Parameter(group=USUAL, help="Keep the embedding of each image too (float16).")
    ] = False,
    source: SourceOptions | None = None,
    part: PartOptions | None = None,
    run: RunOptions | None = None,
    cluster: PoolOptions | None = None,
) -> int:
    """Label every image of the sources, each exactly once, into Parquet."""
    source, part, run = source or SourceOptions(), part or PartOptions(), run or RunOptions()
    asked = label_request(top_k, embeddings, threshold)
    asked["cluster"] = (cluster or PoolOptions()).request
    if output is None:
        from wordsworth.jobs.quick_look import look

        return look(sources, model, source, part, run, asked)

    from wordsworth.jobs.progress import RunProgress

    asked |= part.asked()
    with RunProgress("labelling") as progress:
        summary = run_labeler("label", sources, output, model, source, run, asked, progress)
    return report(summary, output, run, source)


def label_request(top_k: int, embeddings: bool, threshold: float | None) -> dict[str, Any]:
    """Return the fields of a LabelRequest that `label` asks for."""
    return {"top_k": top_k, "embedding": "float16" if embeddings else None, "threshold": threshold}


def run_labeler(
    command: str,
    sources: list[str],
    output: str,
    model: ModelOptions,
    source: SourceOptions,
    run: RunOptions,
    asked: dict[str, Any],
    progress: "Progress",
) -> "Summary":
    """Load the model, label the sources and return the run's summary.

    Args:
        command: "label" or "embed"; part of what makes two commands the same run.
        asked: fields of a LabelRequest that the command decides.
        progress: is told how the run goes.
    """
    reach(asked["cluster"], progress.note)
    source.check(*sources, model.model, model.weights, output=output, is_new=True)
    model.check()
    progress.waiting("looking at the sources")
    from wordsworth.pipeline.labeling.listing import refuse_missing_sources
    from wordsworth.pipeline.labeling.request import LabelRequest

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
        update=run.update,
        replace_changed=run.replace_changed,
        drop_missing=run.drop_missing,
        retry_errors=run.retry_errors,
        on_error=run.on_error,
        limits=run.limits,
        fast_decode=run.fast_decode,
        stall_timeout=run.stall_timeout,
        **source.asked(),
        **asked,
    )
    refuse_missing_sources(request)
    with _ray_beside(request, progress):
        progress.waiting("loading PyTorch")
        from wordsworth.pipeline.labeling.labeler import label as label_sources

        classes = "" if model.classes is None else " and its classes"
        progress.waiting(f"loading {_short_name(model.model)}{classes}")
        return label_sources(request, model.load(progress.note, source.storage), progress)


def _ray_beside(request: "LabelRequest", progress: "Progress") -> contextlib.AbstractContextManager[None]:
    """Start a local Ray while the model is loaded, unless the run is complete, and needs none.

    A display with a file of its own loses no line meanwhile.
    """
    from wordsworth.jobs.live import LiveDisplay
    from wordsworth.pipeline.cluster.session import ray_beside
    from wordsworth.pipeline.output.run_folder import RunFolder

    is_heard = isinstance(progress, LiveDisplay) and progress.file is not None
    if not is_heard or RunFolder(request.output, request.storage_options).exists("_run", "summary.json"):
        return contextlib.nullcontext()
    return ray_beside(request.cluster, progress.note)


def report(summary: "Summary", output: str, run: RunOptions, source: SourceOptions) -> int:
    """Print the summary, write the report that --report asks for, and return the exit code: 3 where too many
    rows have an error, else 0."""
    _print(summary, output, run.json)
    if run.report:
        _write_page(output, source)
    excess = too_many_errors(summary, run.max_error_rate)
    if excess is None:
        return 0
    Terminal(stderr=True, dated=Terminal.has_dated).say(excess, level="error", event="errors")
    return 3


def too_many_errors(summary: "Summary", max_error_rate: float) -> str | None:
    """Return a line for the user where more rows have an error than allowed; None where it is fine."""
    rate = sum(summary.errors.values()) / max(1, summary.rows)
    if rate <= max_error_rate:
        return None
    return f"{rate:.2%} of the rows have an error, over --max-error-rate {max_error_rate}"


def _write_page(output: str, source: SourceOptions) -> None:
    from wordsworth.jobs.report import tell_missing
    from wordsworth.pipeline.report.page import write_report

    errors = Terminal(stderr=True, dated=Terminal.has_dated)
    written = write_report(output, storage_options=source.storage)
    tell_missing(written, errors)
    errors.say(f"report: {written.path} ({decimal(written.size_bytes)}, {written.seconds:g} s)")


def _print(summary: "Summary", output: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary.to_dict(), indent=1))
        return
    from wordsworth.pipeline.output.run_folder import ROW_FILES

    errors = ", ".join(f"{count:,} {code}" for code, count in summary.errors.items()) or "none"
    command = summary.last_command
    shards = plural(summary.shards, "shard")
    rows = {"rows": f"{summary.rows:,} from {shards}", "errors": errors}
    skipped = {kind: count for kind, count in summary.skipped_members.items() if kind not in NOT_SKIPPED}
    if skipped:
        rows["skipped in tars"] = ", ".join(f"{count:,} {kind}" for kind, count in skipped.items())
    rows |= _speed(summary)
    if command.gpu:
        gpu = command.gpu
        sizes = " and ".join(gpu.batch_sizes)
        rows["model"] = f"on the GPUs of {gpu.nodes} nodes" if gpu.nodes > 1 else "on a GPU"
        rows["model"] += f" by --gpu-mode {' and '.join(gpu.modes)}, batches of {sizes}"
    if command.stages and command.stages.bottleneck:
        rows["held back by"] = command.stages.bottleneck
    if summary.estimate:
        rows["foretold"] = foretold(**summary.estimate)
    if summary.limit:
        rows["limited"] = f"to --limit {summary.limit}: the same command without it labels the rest"
    if summary.sample:
        rows["sampled"] = f"by --sample {summary.sample}: the same command without it labels all"
    rows["predictions"] = f"{output.rstrip('/')}/{ROW_FILES}"
    if summary.errors:
        rows["see errors"] = f"wordsworth show {quote(output)} --errors"
    rows["next"] = f"wordsworth verify {quote(output)} --source"
    rows["see it"] = f"wordsworth report {quote(output)}"
    Terminal().print_facts(rows)


def _speed(summary: "Summary") -> dict[str, str]:
    """Return how fast the run was; of a run of several commands, its work, and what the last one did."""
    from wordsworth.jobs.live import duration
    from wordsworth.jobs.progress import rate

    command = summary.last_command
    rows = {}
    if command.finished and not summary.limit and not summary.sample:
        finished = datetime.fromisoformat(command.finished).astimezone()
        rows["finished"] = f"{finished:%Y-%m-%d %H:%M:%S}"
    if not command.images:
        return rows
    spent = f"{plural(command.images, 'image')} in {duration(command.seconds)}"
    steady = command.stages.steady_images_per_second if command.stages else None
    if steady is not None and command.start_seconds is not None:
        spent = f"start {duration(command.start_seconds)}, then {rate(steady)} ({spent})"
    if command.images == summary.rows:
        return rows | {"speed": spent}
    work = {name: summary.stage_seconds.get(stage) for stage, name in WORK.items()}
    told = ", ".join(f"{name} {duration(seconds)}" for name, seconds in work.items() if seconds)
    if told:
        rows["worker time"] = f"of all commands together: {told}"
    return rows | {"last command": spent}


def _short_name(model: str) -> str:
    """Return the end of a model's name, so that a line on a screen has room for it."""
    return model if len(model) <= MOST_OF_NAME else f"...{model[3 - MOST_OF_NAME :]}"


def foretold(images: list[int], images_per_second: list[Any], bytes_written: list[int]) -> str:
    """Return what `wordsworth plan` had said, and what came of it: each argument is [foretold, found]."""
    rate, found = images_per_second
    speed = f"{rate:,} images/s"
    if found:
        speed += f" (it was {found:,}, {found / rate:.0%})"
    size = f"{decimal(bytes_written[0])} of Parquet (it was {decimal(bytes_written[1])})"
    return f"{plural(images[0], 'image')} (it was {images[1]:,}), {speed}, {size}"
