"""What a run would cost: some units of the source go through every stage on this machine, in one process and without Ray."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import decode_unit
from wordsworth.pipeline.images.resize import start_loops
from wordsworth.pipeline.labeling.labeler import predict_settings, stage_settings
from wordsworth.pipeline.labeling.plan import CPU_BATCH, LabelRequest, asked_for, make_plan
from wordsworth.pipeline.output.prediction_rows import prediction_table
from wordsworth.pipeline.output.run_folder import RunFolder, parquet
from wordsworth.pipeline.prediction.actor import Predictor, PredictSettings
from wordsworth.pipeline.prediction.gpu import DeviceLost, find_gpu
from wordsworth.pipeline.prediction.gpu_trial import GpuWay, modes_of
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.shards import Finder, Shard, expand_sources
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.inference import resolve_precision

SHARDS = 4  # are looked into
UNIT_ROWS = 64  # small, so that a stage can be stopped when its time is over
ENGINE = 0.07  # CPU-seconds that Ray takes for a unit on its way through all stages (benchmarks/scale.csv)
SHARE = 0.9  # of what the stages could do is what a run does (benchmarks/label.csv)


@dataclass(frozen=True)
class Measured:
    """What was seen of the source and of this machine.

    image_bytes: of the source for an image, with its share of what else is in a shard. output_bytes: of Parquet for an image.
    seconds: of each stage for an image, on one core; of "predict" on one GPU where the device is "cuda". stated: that one was not
    measured, but given. read_cpu: reading is mostly waiting, this is what it takes of a core. errors: their share.
    """

    shards: int
    bytes: int
    sampled: int
    image_bytes: float
    output_bytes: float
    errors: float
    device: str
    precision: str
    unit_rows: int
    seconds: dict[str, float]
    read_cpu: float
    stated: bool = False

    @property
    def images(self) -> int:
        """By the bytes of the sample: an estimate."""
        return max(self.sampled, round(self.bytes / self.image_bytes))


@dataclass(frozen=True)
class Forecast:
    """What so many cores and GPUs would do with it. busy: each stage's share of the cores that work, or of the GPUs'.
    cores_per_gpu: what keeps one GPU busy; None without GPUs."""

    images_per_second: float
    seconds: float
    output_bytes: float
    bottleneck: str
    busy: dict[str, float]
    cores_per_gpu: float | None


def forecast(measured: Measured, cores: float, gpus: float) -> Forecast:
    """Scale what was measured to a machine or a cluster of such cores and GPUs."""
    cpu = {
        "read": measured.read_cpu,
        "decode": measured.seconds["decode"],
        "write": measured.seconds["write"],
    }
    cpu["Ray"] = ENGINE / min(measured.unit_rows, measured.images / measured.shards)
    predict, on_gpu = measured.seconds["predict"], measured.device == "cuda"
    if not on_gpu:
        cpu["predict"] = predict
    rate = cores / sum(cpu.values())
    bottleneck = max(cpu, key=cpu.get)
    if on_gpu and gpus / predict <= rate:
        rate, bottleneck = gpus / predict, "predict"
    busy = {stage: rate * seconds / cores for stage, seconds in cpu.items()}
    if on_gpu:
        busy["predict"] = rate * predict / gpus
    rate *= SHARE
    return Forecast(
        images_per_second=rate,
        seconds=measured.images / rate,
        output_bytes=measured.images * measured.output_bytes,
        bottleneck=bottleneck,
        busy=busy,
        cores_per_gpu=sum(cpu.values()) / predict if on_gpu else None,
    )


def measure(
    request: LabelRequest,
    checkpoint: Checkpoint,
    device: str,
    seconds: float,
    images_per_gpu_second: float | None = None,
) -> Measured:
    """List the whole source, read a few of its shards, and run every stage for about `seconds`.

    Args:
        device: "cpu", or "cuda" for the GPU of this machine.
        images_per_gpu_second: the model's rate on a GPU that is not here; in its place the model runs on this CPU for a moment, so
            that there is something to write.

    Raises:
        UserError: the source cannot be read, no image of the sample can be decoded, or torch has no GPU here.
    """
    sources = expand_sources(request.sources, request.storage_options)
    finder = Finder(sources, request.format, request.image_keys, request.storage_options)
    count, size, shards = _choose(finder.shards())
    gpu, predicting_settings = _model_settings(request, checkpoint, device, images_per_gpu_second)
    plan = make_plan(asked_for(request, checkpoint), request, checkpoint, {}, gpu)
    settings = stage_settings(RunFolder(request.output, request.storage_options), plan, request, checkpoint)
    small = replace(settings["read"], unit_rows=UNIT_ROWS)
    start_loops()
    for unit in islice(_units(shards[:1], small), 1):  # warm: libraries, the store's connection, the child
        decode_unit(unit, settings["decode"])
    busy = time.process_time()
    reading, units = _timed(_units(shards, small), seconds)
    read_cpu = time.process_time() - busy
    decoding, decoded = _timed((decode_unit(unit, settings["decode"]) for unit in units), seconds)
    rows = _rows(decoded)
    good = sum(unit.samples["error"].null_count for unit in decoded)
    if not good:
        raise UserError(
            f"none of {rows} images could be decoded, first shard {shards[0].uri}: wordsworth lint says what is wrong"
        )
    try:
        predictor = Predictor(checkpoint, predicting_settings)
    except DeviceLost as lost:
        raise UserError(str(lost)) from lost
    predictor(decoded[0].to_arrow())  # warm
    given = 0.0 if images_per_gpu_second else seconds
    predicting, predicted = _timed((Unit.from_arrow(predictor(unit.to_arrow())) for unit in decoded), given)
    model_seconds = predicting / _rows(predicted)
    if device == "cuda":  # a GPU is fast in batches that are larger than the units here
        model_seconds = 1 / (images_per_gpu_second or predictor.rate())
    writing, files = _timed(
        (parquet(prediction_table(unit, settings["write"])).size for unit in predicted), seconds
    )
    return Measured(
        shards=count,
        bytes=size,
        sampled=_rows(units),
        image_bytes=sum(unit.bytes_read for unit in units) / _rows(units),
        output_bytes=sum(files) / _rows(predicted[: len(files)]),
        errors=1 - good / rows,
        device=plan["resolved"]["device"],
        precision=plan["resolved"]["precision"],
        unit_rows=plan["resolved"]["unit_rows"],
        seconds={
            "read": reading / _rows(units),
            "decode": decoding / rows,
            "predict": model_seconds,
            "write": writing / _rows(predicted[: len(files)]),
        },
        read_cpu=read_cpu / _rows(units),
        stated=images_per_gpu_second is not None,
    )


def _model_settings(
    request: LabelRequest, checkpoint: Checkpoint, device: str, images_per_gpu_second: float | None
) -> tuple[GpuWay | None, PredictSettings]:
    """Return what GPUs do, None without them, and what the model here is told."""
    on_cpu = predict_settings(
        request, checkpoint, "cpu", resolve_precision(request.precision, "cpu"), CPU_BATCH
    )
    if device == "cpu":
        return None, on_cpu
    modes, batch_size = modes_of(request.gpu_mode), request.batch_size or UNIT_ROWS
    if images_per_gpu_second:
        return GpuWay(request.precision, modes, batch_size), on_cpu
    precision = resolve_precision(request.precision, find_gpu())
    settings = predict_settings(request, checkpoint, device, precision, request.batch_size or None)
    return GpuWay(precision, modes, batch_size), replace(settings, gpu_modes=modes)


def _rows(units: list[Unit]) -> int:
    return sum(len(unit.samples) for unit in units)


def _choose(shards: Iterator[Shard]) -> tuple[int, int, list[Shard]]:
    """How many there are, their bytes, and a few of them, drawn evenly while the listing goes by (reservoir sampling)."""
    chance, count, size, chosen = random.Random(0), 0, 0, []
    for shard in shards:
        count, size = count + 1, size + shard.size
        if len(chosen) < SHARDS:
            chosen.append(shard)
        elif (place := chance.randrange(count)) < SHARDS:
            chosen[place] = shard
    return count, size, chosen


def _units(shards: list[Shard], settings: Any) -> Iterator[Unit]:
    """From every shard in turn: one of them may be unlike the others."""
    streams = [read_units(shard, settings) for shard in shards]
    while streams:
        for stream in list(streams):
            unit = next(stream, None)
            if unit is None:
                streams.remove(stream)
            elif unit.fault:
                raise UserError(f"{unit.shard_uri} could not be read: {unit.fault}")
            elif len(unit.samples):
                yield unit


def _timed(results: Iterator[Any], seconds: float) -> tuple[float, list[Any]]:
    """The seconds that the results took, and those that came within the time given; at least one."""
    start, found = time.perf_counter(), []
    for result in results:
        found.append(result)
        if time.perf_counter() - start > seconds:
            break
    return time.perf_counter() - start, found
