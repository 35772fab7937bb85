"""Estimate what a run would cost: put a few units through every stage on this machine, without Ray."""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.images.decode import DecodeSettings, decode_unit
from wordsworth.pipeline.images.resize import end_warm_up
from wordsworth.pipeline.labeling.forecast import Measurement
from wordsworth.pipeline.labeling.listing import list_settings, with_expanded_sources
from wordsworth.pipeline.labeling.plan import CPU_BATCH, asked_for, make_plan
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.labeling.settings import (
    StageSettings,
    predict_settings,
    stage_settings,
)
from wordsworth.pipeline.output.commit import parquet_bytes
from wordsworth.pipeline.output.prediction_rows import WriteSettings, prediction_table
from wordsworth.pipeline.output.records import RunPlan
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.prediction.actor import Predictor, PredictSettings
from wordsworth.pipeline.prediction.gpu import DeviceLost, find_gpu
from wordsworth.pipeline.prediction.gpu_trial import GpuWay, modes_of
from wordsworth.pipeline.sources.lost_objects import LOSSES
from wordsworth.pipeline.sources.passed_over import PassedOver
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.inference import resolve_precision

NUM_SHARDS = 4  # shards that are sampled
MAX_BAD_NAMED = 3  # images with an error that are named
UNIT_ROWS = 64  # samples in a unit: few, so that a stage can be stopped when its time is over


def measure(
    request: LabelRequest,
    checkpoint: BaseCheckpoint,
    device: str,
    seconds: float,
    images_per_gpu_second: float | None = None,
    note: Callable[[str], None] = lambda said: None,
) -> Measurement:
    """List the whole source, read a few of its shards, and measure every stage.

    Args:
        device: "cpu", or "cuda" for a GPU.
        seconds: seconds for each stage.
        images_per_gpu_second: images/s of the model on a GPU that is not here. The model then predicts one
            unit on this CPU, so that there is something to write.
        note: gets what the listing passed over.

    Raises:
        UserError: the source cannot be read, no image of the sample can be decoded, or torch has no GPU here.
    """
    request = with_expanded_sources(request)
    sample = _sample_shards(request)
    for said in sample.passed_over.notes():
        note(said)
    source_bytes = math.inf if sample.is_cut else sample.num_bytes
    plan, settings = plan_here(request, checkpoint, device, images_per_gpu_second, source_bytes)
    read = _measure_reading(sample.shards, settings, seconds)
    image_bytes = sum(unit.bytes_read for unit in read.units) / read.num_images
    num_bytes = sample.num_bytes
    if sample.is_cut and request.limit:
        num_bytes = max(num_bytes, round(request.limit * image_bytes))
    decoded = _measure_decoding(read.units, settings.decode, seconds)
    predicted, predict_seconds = _measure_model(
        checkpoint, settings.predict, decoded.units, seconds, images_per_gpu_second
    )
    written, output_bytes = _measure_writing(predicted.units, settings.write, seconds)
    return Measurement(
        shards=sample.num_shards,
        bytes=num_bytes,
        sampled=read.num_images,
        image_bytes=image_bytes,
        output_bytes=output_bytes,
        errors=1 - _count_good(decoded.units) / decoded.num_images,
        bad_images=_bad_images(decoded.units),
        device=plan.resolved.device,
        precision=plan.resolved.precision,
        unit_rows=plan.resolved.unit_rows,
        seconds={
            "read": read.seconds_per_image,
            "decode": decoded.seconds_per_image,
            "predict": predict_seconds,
            "write": written.seconds_per_image,
        },
        read_cpu=read.cpu_seconds / read.num_images,
        stated=images_per_gpu_second is not None,
        limit=request.limit or request.sample,
    )


@dataclass(frozen=True, kw_only=True)
class ShardSample:
    """Hold some shards of a source, the size of what was listed, and what the listing passed over.

    Attributes:
        is_cut: whether the listing ended early, at the shards that hold the first images.
    """

    num_shards: int
    num_bytes: int
    shards: list[Shard]
    passed_over: PassedOver
    is_cut: bool


def _sample_shards(request: LabelRequest) -> ShardSample:
    """List the sources, and draw a few shards evenly while the listing goes by (reservoir sampling).

    With a limit, list no more than the first shards.
    """
    finder = list_settings(request).finder()
    rng = random.Random(0)
    num_shards = 0
    num_bytes = 0
    chosen: list[Shard] = []
    images_left = request.limit or 0
    if request.limit:
        finder.most_images = request.limit
    is_cut = False
    for shard in finder.shards():
        is_cut = bool(request.limit) and (images_left <= 0 or num_shards == NUM_SHARDS)
        if is_cut:
            break
        num_shards += 1
        num_bytes += shard.size
        images_left -= len(shard.members)
        if len(chosen) < NUM_SHARDS:
            chosen.append(shard)
            continue
        place = rng.randrange(num_shards)
        if place < NUM_SHARDS:
            chosen[place] = shard
    return ShardSample(
        num_shards=num_shards,
        num_bytes=num_bytes,
        shards=chosen,
        passed_over=finder.passed_over,
        is_cut=is_cut,
    )


def plan_here(
    request: LabelRequest,
    checkpoint: BaseCheckpoint,
    device: str,
    images_per_gpu_second: float | None = None,
    source_bytes: float = math.inf,
) -> tuple[RunPlan, StageSettings]:
    """Return the plan of the run, and the settings of its stages on this machine."""
    precision = resolve_precision(request.precision, "cpu")
    predict = predict_settings(request, checkpoint, "cpu", precision, CPU_BATCH)
    gpu = None
    if device == "cuda":
        modes = modes_of(request.gpu_mode)
        precision = request.precision
        if not images_per_gpu_second:
            precision = resolve_precision(request.precision, find_gpu())
            predict = predict_settings(request, checkpoint, device, precision, request.batch_size or None)
            predict = replace(predict, gpu_modes=modes)
        gpu = GpuWay(precision=precision, modes=modes, batch_size=request.batch_size or UNIT_ROWS)
    asked = asked_for(request, checkpoint)
    plan = make_plan(asked, request, checkpoint, cluster={}, gpu=gpu, source_bytes=source_bytes)
    folder = RunFolder(request.output, request.storage_options)
    settings = stage_settings(folder, plan, request, checkpoint)
    return plan, replace(settings, predict=predict)


# ---- the stages, timed ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Hold the units that went through a stage, and the seconds and CPU-seconds that the stage took."""

    units: list[Unit]
    seconds: float
    cpu_seconds: float

    @property
    def num_images(self) -> int:
        """Return the images of the units, good or not."""
        return sum(len(unit.samples) for unit in self.units)

    @property
    def seconds_per_image(self) -> float:
        """Return the seconds that the stage took for one image."""
        return self.seconds / self.num_images


def _time_stage(units: Iterator[Unit], seconds: float) -> StageTime:
    """Take units from a stage until the seconds are over; at least one unit."""
    taken = []
    began = time.perf_counter()
    cpu_began = time.process_time()
    for unit in units:
        taken.append(unit)
        if time.perf_counter() - began > seconds:
            break
    return StageTime(
        units=taken, seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - cpu_began
    )


def _measure_reading(shards: list[Shard], settings: StageSettings, seconds: float) -> StageTime:
    reading = replace(settings.read, unit_rows=UNIT_ROWS)
    # Not timed: libraries are loaded, and the store and the decoder answer for the first time.
    end_warm_up()
    for unit in islice(_read_in_turn(shards[:1], reading), 1):
        decode_unit(unit, settings.decode)
    return _time_stage(_read_in_turn(shards, reading), seconds)


def _read_in_turn(shards: list[Shard], settings: ReadSettings) -> Iterator[Unit]:
    """Yield a unit of each shard in turn, because one shard may be unlike another."""
    streams = [read_units(shard, settings) for shard in shards]
    while streams:
        for stream in list(streams):
            unit = next(stream, None)
            if unit is None:
                streams.remove(stream)
            elif unit.fault and unit.fault.partition(":")[0] in LOSSES and len(streams) > 1:
                streams.remove(stream)  # the run names it; the other shards tell how fast it will be
            elif unit.fault:
                raise UserError(f"{unit.shard_uri} could not be read: {unit.fault}")
            elif len(unit.samples):
                yield unit


def _measure_decoding(units: list[Unit], settings: DecodeSettings, seconds: float) -> StageTime:
    decoded = _time_stage((decode_unit(unit, settings) for unit in units), seconds)
    if not _count_good(decoded.units):
        raise UserError(
            f"none of {plural(decoded.num_images, 'image')} could be decoded, first shard "
            f"{units[0].shard_uri}: {'; '.join(_bad_images(decoded.units))}: mend them, or name other sources"
        )
    return decoded


def _bad_images(units: list[Unit]) -> list[str]:
    """Return `KEY: CODE` of the first images that have an error."""
    bad = []
    for unit in units:
        for row in unit.samples.select(["key", "error"]).to_pylist():
            if row["error"]:
                key = "the rest of a shard" if row["key"] is None else row["key"]
                bad.append(f"{key}: {row['error']}")
            if len(bad) == MAX_BAD_NAMED:
                return bad
    return bad


def _count_good(units: list[Unit]) -> int:
    return sum(unit.samples["error"].null_count for unit in units)


def _measure_model(
    checkpoint: BaseCheckpoint,
    settings: PredictSettings,
    units: list[Unit],
    seconds: float,
    images_per_gpu_second: float | None,
) -> tuple[StageTime, float]:
    """Return the predicted units, and the seconds of the model for one image."""
    try:
        model = Predictor(checkpoint, settings)
    except DeviceLost as lost:
        raise UserError(str(lost)) from lost
    model(units[0].to_arrow())  # not timed: the first batch of a model is slow
    if images_per_gpu_second:
        seconds = 0.0
    predicted = _time_stage((Unit.from_arrow(model(unit.to_arrow())) for unit in units), seconds)
    if images_per_gpu_second:
        return predicted, 1 / images_per_gpu_second
    if settings.device == "cuda":
        return predicted, 1 / model.rate()  # a GPU is fast in batches that are larger than the units here
    return predicted, predicted.seconds_per_image


def _measure_writing(units: list[Unit], settings: WriteSettings, seconds: float) -> tuple[StageTime, float]:
    """Return how long Parquet takes to make, in memory, and the bytes of Parquet for one image."""
    sizes = []

    def make_files() -> Iterator[Unit]:
        for unit in units:
            sizes.append(parquet_bytes(prediction_table(unit, settings)).size)
            yield unit

    written = _time_stage(make_files(), seconds)
    return written, sum(sizes) / written.num_images
