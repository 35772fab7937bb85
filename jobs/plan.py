"""Run `wordsworth plan SOURCE... --model MODEL`: say what a run would cost."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators
from rich.filesize import decimal
from rich.table import Table

from wordsworth.jobs.cluster_options import ClusterOptions
from wordsworth.jobs.options import JsonFlag, ModelOptions, PartOptions, SourceOptions, Sources, Threshold
from wordsworth.jobs.terminal import Terminal, data_text
from wordsworth.pipeline.cluster.joining import reach
from wordsworth.pipeline.errors import UserError, plural

if TYPE_CHECKING:
    from wordsworth.pipeline.labeling.forecast import Forecast, Measurement

NAMES = {"read": "reading", "decode": "decoding", "predict": "the model", "write": "writing", "Ray": "Ray"}
POSITIVE = validators.Number(gt=0)


def plan(
    sources: Sources,
    /,
    *,
    model: ModelOptions,
    top_k: Annotated[
        int, Parameter(help="How many classes a row keeps.", validator=validators.Number(gte=1))
    ] = 5,
    threshold: Threshold = None,
    embeddings: Annotated[
        bool, Parameter(help="With embeddings (float16).", negative="", show_default=False)
    ] = False,
    output: Annotated[
        str | None,
        Parameter(
            alias="-o",
            help="The run folder to come: what is said now is kept there, and label says how it turned out.",
        ),
    ] = None,
    source: SourceOptions | None = None,
    part: PartOptions | None = None,
    precision: Annotated[Literal["auto", "fp32", "bf16"], Parameter(help="As for label.")] = "auto",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Parameter(help="auto takes the GPU of this machine, if it has one.")
    ] = "auto",
    cores: Annotated[
        float | None, Parameter(help="CPU cores of the run; else those of this machine.", validator=POSITIVE)
    ] = None,
    gpus: Annotated[
        float | None, Parameter(help="GPUs of the run; else those of this machine.", validator=POSITIVE)
    ] = None,
    images_per_gpu_second: Annotated[
        float | None,
        Parameter(
            help="The model's rate on a GPU, where there is none here to measure it on.", validator=POSITIVE
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None, Parameter(help="What all of it costs an hour.", validator=POSITIVE)
    ] = None,
    seconds: Annotated[float, Parameter(help="For measuring each stage.", validator=POSITIVE)] = 5.0,
    cluster: ClusterOptions | None = None,
    json_: JsonFlag = False,
) -> int:
    """Say what labelling would cost. A few shards go through every stage here, or with --address on a node of
    the cluster; no prediction is written."""
    errors = Terminal(stderr=True)
    source = source or SourceOptions()
    asked_cluster = (cluster or ClusterOptions()).request
    reach(asked_cluster, errors.say)
    source.check(*sources, model.model, model.weights, output=output, is_new=True)
    model.check()
    with errors.status("loading"):
        from wordsworth.pipeline.cluster.address import address_of
        from wordsworth.pipeline.cluster.cores import cores as own_cores
        from wordsworth.pipeline.labeling.cluster_estimate import measure_on_cluster
        from wordsworth.pipeline.labeling.estimate import measure
        from wordsworth.pipeline.labeling.forecast import forecast
        from wordsworth.pipeline.labeling.request import LabelRequest
        from wordsworth.pipeline.output.run_folder import RunFolder

        request = LabelRequest(
            command="label",
            sources=tuple(sources),
            output=output or "nowhere",
            model=model.model,
            top_k=top_k,
            threshold=threshold,
            embedding="float16" if embeddings else None,
            precision=precision,
            device=device,
            cluster=asked_cluster,
            **source.asked(),
            **(part or PartOptions()).asked(),
        )
        checkpoint = model.load(errors.say, source.storage)
        if not address_of(request.cluster):
            run_device, all_gpus = _gpus(device, gpus, images_per_gpu_second)
    with errors.status(f"measuring: up to {4 * seconds:g} seconds"):
        if address_of(request.cluster):
            measured, all_cores, all_gpus = measure_on_cluster(
                request, checkpoint, seconds, images_per_gpu_second, errors.say
            )
            all_gpus = gpus or all_gpus
        else:
            measured = measure(request, checkpoint, run_device, seconds, images_per_gpu_second, errors.say)
            all_cores = own_cores()
    cores = cores or all_cores
    found = forecast(measured, cores, all_gpus)
    money = price_per_hour * found.seconds / 3600 if price_per_hour else None
    told: dict[str, Any] = {
        "measured": asdict(measured) | {"images": measured.images},
        "forecast": asdict(found),
        "cores": cores,
        "gpus": all_gpus,
        "money": money,
    }
    if output:
        RunFolder(output, source.storage).keep_estimate(told)
    if json_:
        print(json.dumps(told, indent=1))
    else:
        _print(measured, found, cores, all_gpus, money)
    return 0


def _gpus(device: str, gpus: float | None, images_per_gpu_second: float | None) -> tuple[str, float]:
    """Return where the model of the run computes, "cpu" or "cuda", and on how many GPUs."""
    from wordsworth.pipeline.prediction.gpu import own_gpus

    asked = [
        name
        for name, value in (("--gpus", gpus), ("--images-per-gpu-second", images_per_gpu_second))
        if value
    ]
    if device == "cpu" or (device == "auto" and not asked and not own_gpus()):
        if asked:
            raise UserError(
                f"{asked[0]} is for GPUs and --device cpu for none: leave one of them out", exit_code=2
            )
        return "cpu", 0
    if not own_gpus() and not images_per_gpu_second:
        raise UserError(
            f"{asked[0] if asked else '--device cuda'}: there is no GPU here to measure the model on: "
            "state its rate with --images-per-gpu-second, or run plan on a machine with such a GPU",
            exit_code=2,
        )
    return "cuda", gpus or own_gpus() or 1


def _print(
    measured: "Measurement", found: "Forecast", cores: float, gpus: float, money: float | None
) -> None:
    console = Terminal()
    stages = Table("stage", "images/s", "of", "busy", box=None, header_style="bold", pad_edge=False)
    for stage, seconds in measured.seconds.items():
        stages.add_row(
            NAMES[stage], f"{1 / seconds:,.0f}", _worker(measured, stage), f"{found.busy[stage]:.0%}"
        )
    stages.add_row(NAMES["Ray"], "", "a core", f"{found.busy['Ray']:.0%}")
    console.print(stages)
    console.print()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(measured, found, cores, gpus, money).items():
        table.add_row(name, data_text(value))
    console.print(table)


def _worker(measured: "Measurement", stage: str) -> str:
    """Name what has the rate of a stage."""
    if stage == "predict" and measured.device == "cuda":
        return "a GPU, as stated" if measured.stated else "a GPU"
    return "a reader" if stage == "read" else "a core"


def _rows(
    measured: "Measurement", found: "Forecast", cores: float, gpus: float, money: float | None
) -> dict[str, str]:
    machines = f"{cores:g} cores" + (f" and {gpus:g} GPUs" if measured.device == "cuda" else "")
    images = plural(measured.images, "image")
    shards = plural(measured.shards, "shard")
    # Where the rate was stated with --images-per-gpu-second, nobody has said the precision.
    precision = "" if measured.precision == "auto" else f", {measured.precision}"
    looked_at = f"{measured.sampled:,} looked at"
    if measured.limit:
        looked_at += f"; the run takes {measured.limit:,} at most"
    busy = f"{found.busy[found.bottleneck]:.0%} of the {_whose(found, measured)}"
    rows = {
        "source": f"about {images}, {decimal(measured.bytes)} in {shards} ({looked_at})",
        "speed": f"about {_rate(found.images_per_second)} images/s on {machines}{precision}",
        "time": f"about {_time(found.seconds)}, the start not counted",
        "bottleneck": f"{NAMES[found.bottleneck]}: {busy}",
        "output": f"about {decimal(round(found.output_bytes))} of Parquet",
    }
    if found.cores_per_gpu is not None:
        rows["balance"] = f"{found.cores_per_gpu:.1f} cores keep one GPU busy"
    if measured.errors:
        rows["errors"] = f"{measured.errors:.2%} of the images looked at have one"
        rows["such as"] = "; ".join(measured.bad_images)
    if money is not None:
        rows["money"] = f"about {money:,.2f}"
    return rows


def _whose(found: "Forecast", measured: "Measurement") -> str:
    return "GPUs" if measured.device == "cuda" and found.bottleneck == "predict" else "cores"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
