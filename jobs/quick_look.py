"""Print the labels of a few images, for `wordsworth label` without --output: nothing is written."""

import dataclasses
import json
from typing import Any

from rich.table import Table

from wordsworth.jobs.options import ModelOptions, PartOptions, RunOptions, SourceOptions
from wordsworth.jobs.terminal import Terminal, data_text
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.errors import UserError, plural

# Options of a run that a look takes too; the others say how a run is written or continued.
TAKEN = (
    "keep",
    "max_error_rate",
    "precision",
    "device",
    "batch_size",
    "max_image_bytes",
    "max_pixels",
    "max_side",
    "decode_timeout",
    "fast_decode",
    "json",
)
RUNNERS_UP = 2  # classes of an image that the table shows beside the best


def look(
    sources: list[str],
    model: ModelOptions,
    source: SourceOptions,
    part: PartOptions,
    run: RunOptions,
    asked: dict[str, Any],
) -> int:
    """Label the first images of the sources in this process, print their rows, and return the exit code.

    Args:
        asked: fields of a LabelRequest that `label` decides.

    Raises:
        UserError: an option is for a run that is written, or a source or the model cannot be used.
    """
    _refuse_options_of_a_run(part, run, asked)
    source.check(*sources, model.model, model.weights)
    model.check()
    errors = Terminal(stderr=True)
    with errors.status("loading PyTorch"):
        from wordsworth.jobs.json_rows import json_rows
        from wordsworth.pipeline.labeling.listing import refuse_missing_sources
        from wordsworth.pipeline.labeling.request import LabelRequest

        request = LabelRequest(
            command="label",
            sources=tuple(sources),
            output="",
            model=model.model,
            keep=run.kept,
            precision=run.precision,
            device=run.device,
            batch_size=run.batch,
            limits=run.limits,
            fast_decode=run.fast_decode,
            limit=part.limit,
            **source.asked(),
            **asked,
        )
        refuse_missing_sources(request)
    with errors.status("loading the model"):
        from wordsworth.pipeline.labeling.quick_look import QuickLook

        quick = QuickLook(request, model.load(errors.say, source.storage), errors.say)
    rows: list[dict[str, Any]] = []
    with errors.status("labelling") as status:
        for table in quick.rows():
            rows += table.to_pylist()
            status.update(f"labelling: {plural(quick.num_images, 'image')}")
            if run.json:
                for row in json_rows(table):
                    print(json.dumps(row), flush=True)
    if not run.json:
        Terminal().print(_table(rows, request.keep))
    return _end(quick.num_images, quick.is_cut, quick.seconds, rows, run, errors)


def _refuse_options_of_a_run(part: PartOptions, run: RunOptions, asked: dict[str, Any]) -> None:
    unlike = [
        name
        for name in (field.name for field in dataclasses.fields(RunOptions) if field.name not in TAKEN)
        if getattr(run, name) != getattr(RunOptions(), name)
    ]
    if part.sample:
        unlike.append("sample")
    if asked.pop("cluster") != ClusterRequest():
        unlike.append("address and the other options of a cluster")
    if unlike:
        option = unlike[0].replace("_", "-", 1 if " " in unlike[0] else -1)
        raise UserError(
            f"--{option}: only with --output: without it, label prints the labels of a few images and writes "
            "nothing",
            exit_code=2,
        )
    if asked["embedding"] and not run.json:
        raise UserError("--embeddings without --output: add --json, which prints vectors too", exit_code=2)


def _table(rows: list[dict[str, Any]], keep: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("image", overflow="fold")
    for name in _columns(rows, keep):
        table.add_column(name, justify="right" if name in ("score", "value") else "left", overflow="fold")
    for row in rows:
        cells = [row["key"] or row["shard"]]
        cells += [_cell(row, name) for name in _columns(rows, keep)]
        table.add_row(*map(data_text, cells))
    return table


def _columns(rows: list[dict[str, Any]], keep: tuple[str, ...]) -> list[str]:
    """Return the columns of the table beside the image's name: those that these rows have something in."""
    kept = [name.rpartition("=")[2] for name in keep]
    columns = ["label", "score", "next"]
    if any(row.get("labels") is not None for row in rows):
        columns = ["labels"]
    if any(row.get("value") is not None for row in rows):
        columns = ["value"]
    if any(row["error"] for row in rows):
        columns.append("error")
    return columns + kept


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "error":
        return f"{row['error']}: {row['error_detail']}" if row["error"] else ""
    if name == "next":
        return _classes((row.get("topk") or [])[1 : 1 + RUNNERS_UP])
    if name == "labels":
        return _classes(row.get("labels") or [])
    value = row.get(name)
    if name == "label" and value is None and row.get("label_id") is not None:
        return f"class {row['label_id']}"
    if value is None:
        return ""
    return f"{value:.3f}" if name == "score" else f"{value:.4g}" if name == "value" else str(value)


def _classes(entries: list[dict[str, Any]]) -> str:
    names = (
        entry["label"] if entry["label"] is not None else f"class {entry['label_id']}" for entry in entries
    )
    return ", ".join(f"{name} {entry['score']:.3f}" for name, entry in zip(names, entries, strict=True))


def _end(
    num_images: int,
    is_cut: bool,
    seconds: float,
    rows: list[dict[str, Any]],
    run: RunOptions,
    errors: Terminal,
) -> int:
    """Say what was done and what was not, and return the exit code."""
    images = plural(num_images, "image")
    more = ", the first of more" if is_cut else ""
    errors.say(
        f"{images}{more} in {seconds:.1f} s; nothing was written: add --output OUT to keep the rows of all"
    )
    rate = sum(row["error"] is not None for row in rows) / max(1, num_images)
    if rate <= run.max_error_rate:
        return 0
    excess = f"{rate:.2%} of the rows have an error, over --max-error-rate {run.max_error_rate}"
    errors.say(excess, level="error", event="errors")
    return 3
