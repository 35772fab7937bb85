"""Forecast a run: scale what was measured of a source and of one machine to any number of cores and GPUs."""

from dataclasses import dataclass, field

RAY_SECONDS = 0.07  # CPU-seconds that Ray takes for one unit, through all stages (benchmarks/scale.csv)
EFFICIENCY = 0.9  # images/s of a real run, relative to what its stages could do (benchmarks/label.csv)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Hold what was measured of a source and of this machine.

    Attributes:
        shards: shards of the source.
        bytes: bytes of all shards.
        sampled: images that were read.
        image_bytes: bytes of the source for one image, with its part of what else is in a shard.
        output_bytes: bytes of Parquet for one image.
        errors: share of the images that have an error.
        bad_images: `KEY: CODE` of the first of these images.
        device: "cpu" or "cuda".
        precision: precision of the model, as in ResolvedSettings; "auto" where the rate was stated.
        unit_rows: samples in one unit of a run.
        seconds: seconds of each stage for one image, on one core; on one GPU for "predict" on "cuda".
        read_cpu: CPU-seconds of reading one image; most of the seconds of "read" are waiting.
        stated: whether the seconds of "predict" were stated by the user, not measured.
        limit: images after which the run is to stop; None labels all.
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
    bad_images: list[str] = field(default_factory=list)
    stated: bool = False
    limit: int | None = None

    @property
    def images(self) -> int:
        """Return the images of the run, estimated from the bytes of the sampled images."""
        found = max(self.sampled, round(self.bytes / self.image_bytes))
        return min(found, self.limit) if self.limit else found


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Hold what a machine or a cluster would do with a source.

    Attributes:
        images_per_second: images/s of the whole run.
        seconds: seconds of the whole run, its start left out.
        output_bytes: bytes of Parquet.
        bottleneck: the stage that holds the run back.
        busy: share of the cores, or of the GPUs, that each stage keeps busy.
        cores_per_gpu: cores that keep one GPU busy; None without GPUs.
    """

    images_per_second: float
    seconds: float
    output_bytes: float
    bottleneck: str
    busy: dict[str, float]
    cores_per_gpu: float | None


def forecast(measured: Measurement, cores: float, gpus: float) -> Forecast:
    """Scale a measurement to a machine or a cluster with this number of cores and GPUs."""
    on_gpu = measured.device == "cuda"
    predict = measured.seconds["predict"]
    cpu_seconds = _cpu_seconds(measured)
    cpu_seconds_in_all = sum(cpu_seconds.values())
    bottleneck = max(cpu_seconds, key=lambda stage: cpu_seconds[stage])
    rate = cores / cpu_seconds_in_all
    if on_gpu and gpus / predict <= rate:
        bottleneck = "predict"
        rate = gpus / predict
    busy = {stage: rate * seconds / cores for stage, seconds in cpu_seconds.items()}
    if on_gpu:
        busy["predict"] = rate * predict / gpus
    images_per_second = rate * EFFICIENCY
    return Forecast(
        images_per_second=images_per_second,
        seconds=measured.images / images_per_second,
        output_bytes=measured.images * measured.output_bytes,
        bottleneck=bottleneck,
        busy=busy,
        cores_per_gpu=cpu_seconds_in_all / predict if on_gpu else None,
    )


def _cpu_seconds(measured: Measurement) -> dict[str, float]:
    """Return the CPU-seconds of each stage, and of Ray, for one image."""
    images_per_unit = min(measured.unit_rows, measured.images / measured.shards)
    seconds = {
        "read": measured.read_cpu,
        "decode": measured.seconds["decode"],
        "write": measured.seconds["write"],
        "Ray": RAY_SECONDS / images_per_unit,
    }
    if measured.device != "cuda":
        seconds["predict"] = measured.seconds["predict"]
    return seconds
