"""The training stream: every worker's shards, epoch after epoch, in a seeded order, as batches of patches and classes."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.cluster import RETRIES, data_context
from pipeline.decode import DecodeSettings, decode_unit
from pipeline.errors import UserError
from pipeline.reader import ReadSettings, read_units, tar_samples
from pipeline.source import LISTING, Shard, listing_table
from pipeline.storage import open_filesystem, public
from pipeline.unit import Unit

TARGET = "cls"
UNIT_ROWS = 512
SURVEYED = 8  # shards in one task: a process that counts takes two seconds to start
BUFFER_ROWS = 8192  # samples that a worker shuffles among themselves


@dataclass(frozen=True)
class Augmentation:
    """Inception-style crops. crop_scale: the smallest share of the picture's area that a crop covers; aspect: the largest change of
    its aspect ratio, as a factor. flip: mirror every second picture."""

    crop_scale: float = 1.0
    aspect: float = 4 / 3
    flip: bool = False


@dataclass(frozen=True)
class Survey:
    """What the training shards hold: samples by shard name, and samples by class id."""

    rows: dict[str, int]
    classes: Counter


# ---- before training ------------------------------------------------------------------------------------------------------


def survey(shards: list[Shard], storage_options: dict[str, Any], target: str | None = TARGET) -> Survey:
    """Count samples and classes in Ray tasks. target: the sidecar with the class; None where none is needed. Raises UserError for a
    sample without a class, naming it."""
    import ray

    others = [shard.uri for shard in shards if shard.kind != "tar"]
    if others:
        raise UserError(f"{others[0]} is no tar: training reads WebDataset shards (wordsworth pack makes them)")
    task = ray.remote(num_cpus=0.5, **RETRIES)(_survey_shards)
    parts = [shards[at : at + SURVEYED] for at in range(0, len(shards), SURVEYED)]
    counts = [count for part in ray.get([task.remote(part, storage_options, target) for part in parts]) for count in part]
    classes = sum((counter for _, counter in counts), Counter())
    return Survey({shard.name: rows for shard, (rows, _) in zip(shards, counts, strict=True)}, classes)


def _survey_shards(shards: list[Shard], storage_options: dict[str, Any], target: str | None) -> list[tuple[int, Counter]]:
    return [_survey_shard(shard, storage_options, target) for shard in shards]


def _reading(storage_options: dict[str, Any], target: str | None) -> ReadSettings:
    return ReadSettings(UNIT_ROWS, keep=(target,) if target else (), storage_options=storage_options)


def _survey_shard(shard: Shard, storage_options: dict[str, Any], target: str | None = TARGET) -> tuple[int, Counter]:
    settings = _reading(storage_options, target)  # as training reads: the same rows
    rows, classes = 0, Counter()
    for sample in tar_samples(shard, settings, 0):
        rows += 1
        if sample.error == "shard_truncated" or not target:
            continue
        text = sample.sidecars[0]
        if text is None or not text.strip().isdecimal():
            raise UserError(f"{shard.uri}: sample {sample.key} has no class: .{target} is {text!r}, a number from 0 on is needed")
        classes[int(text)] += 1
    return rows, classes


def class_names(labels: str | None, sources: list[str], storage_options: dict[str, Any]) -> tuple[str, ...] | None:
    """The class names of a file, else of labels.txt beside the first source, else None."""
    beside = [f"{base}/labels.txt" for base in (sources[0].rstrip("/"), sources[0].rpartition("/")[0] or ".")]
    for uri in [labels] if labels else beside:
        fs, path = open_filesystem(uri, storage_options)
        if fs.isfile(path):
            return tuple(fs.cat_file(path).decode().splitlines())
    if labels:
        raise UserError(f"--labels {public(labels)}: no such file", exit_code=2)
    return None


def assign(shards: list[Shard], rows: dict[str, int], workers: int) -> list[list[Shard]]:
    """The shards of each worker: the largest first, each to the worker that has the fewest samples."""
    if len(shards) < workers:
        raise UserError(
            f"{workers} workers need at least {workers} shards, there are {len(shards)}: pack smaller ones (--shard-size)"
        )
    parts: list[list[Shard]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for shard in sorted(shards, key=lambda shard: (-rows[shard.name], shard.name)):
        worker = loads.index(min(loads))
        parts[worker].append(shard)
        loads[worker] += rows[shard.name]
    return parts


# ---- the stream -----------------------------------------------------------------------------------------------------------


def training_dataset(
    shards: list[Shard],
    epochs: int,
    seed: int,
    decode: DecodeSettings,
    augmentation: Augmentation,
    storage_options: dict[str, Any],
    decode_tasks: int | None = None,
    target: str | None = TARGET,
):
    """One worker's stream of decoded units over all epochs, as one execution: an epoch costs no new start.

    decode_tasks: at most so many at a time. target: as for `survey`.
    """
    from ray.data import TaskPoolStrategy, from_blocks

    data_context()
    one = {"batch_size": None, "batch_format": "pyarrow", **RETRIES}
    read = _reading(storage_options, target)
    return (
        from_blocks([listing_table(shards)])
        .map_batches(_epochs_stage, fn_kwargs={"epochs": epochs, "seed": seed}, num_cpus=0.1, **one)
        .map_batches(_read_stage, fn_kwargs={"settings": read}, num_cpus=0.2, compute=TaskPoolStrategy(4), **one)
        .map_batches(
            _decode_stage,
            fn_kwargs={"settings": decode, "augmentation": augmentation, "seed": seed},
            compute=TaskPoolStrategy(decode_tasks),
            num_cpus=0.5,
            **one,
        )
    )


def _epochs_stage(table: pa.Table, epochs: int, seed: int) -> Iterator[pa.Table]:
    """The listing -> a shard a block, every shard once an epoch, in the order that seed and epoch give."""
    schema = pa.schema([*LISTING, ("epoch", pa.int32())])
    for epoch in range(epochs):
        for row in np.random.default_rng([seed, epoch]).permutation(table.num_rows):
            one = table.slice(int(row), 1)
            yield one.append_column("epoch", pa.array([epoch], pa.int32())).cast(schema)


def _read_stage(table: pa.Table, settings: ReadSettings) -> Iterator[pa.Table]:
    (row,) = table.to_pylist()
    for unit in read_units(Shard.from_row(row), settings):
        if unit.fault:
            raise UserError(f"{unit.shard_uri} could not be read: {unit.fault}")
        yield unit.to_arrow().append_column("epoch", table["epoch"])


def _decode_stage(table: pa.Table, settings: DecodeSettings, augmentation: Augmentation, seed: int) -> pa.Table:
    unit = Unit.from_arrow(table)
    # A retried task makes the same crops: the seed is what is decoded, not when or where.
    name = f"{seed}|{table['epoch'][0].as_py()}|{unit.shard_name}|{unit.number}"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    return decode_unit(unit, settings, lambda image: random_crop(image, settings, augmentation, rng)).to_arrow()


def random_crop(image: np.ndarray, settings: DecodeSettings, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """uint8 (h, w, 3) -> a crop of random area, aspect ratio and place, resized: uint8 (H, W, 3) (Inception; the paper's code)."""
    from pipeline.loops import region  # Numba: only where it is used

    height, width = image.shape[:2]
    area = width * height * rng.uniform(augmentation.crop_scale, 1.0)
    aspect = math.exp(rng.uniform(-1, 1) * math.log(augmentation.aspect))
    crop_width, crop_height = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    pixels = region(image, box, settings.image_size, settings.preprocessing.interpolation)
    return pixels[:, ::-1] if augmentation.flip and rng.random() < 0.5 else pixels


# ---- batches --------------------------------------------------------------------------------------------------------------


Batch = tuple[np.ndarray, np.ndarray]


def batches(
    units: Iterator[Unit],
    decode: DecodeSettings,
    epochs: int,
    rows_per_epoch: int,
    steps_per_epoch: int,
    batch_size: int,
    seed: int,
) -> Iterator[Batch]:
    """Shuffled batches: uint8 patches (B, N, P*P*3) and int64 classes (B,), exactly `steps_per_epoch` an epoch.

    Every good sample of an epoch is drawn at most once, unless so many could not be decoded that batches must be repeated.
    """
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch, 1])
        yield from _epoch(units, decode, rows_per_epoch, steps_per_epoch, batch_size, rng)


def _epoch(
    units: Iterator[Unit], decode: DecodeSettings, rows: int, steps: int, batch_size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """All units of one epoch, shuffled BUFFER_ROWS at a time; what is left of one buffer goes into the next."""
    held: list[Batch] = []
    last: tuple[np.ndarray, np.ndarray, list[np.ndarray]] | None = None  # the last buffer that gave batches, and which
    seen = emitted = 0
    while seen < rows:
        unit = next(units)
        held.append(_good(unit, decode))
        seen += len(unit.samples)
        if sum(len(classes) for _, classes in held) < BUFFER_ROWS and seen < rows:
            continue
        patches, classes = (np.concatenate(parts) for parts in zip(*held, strict=True))
        order = rng.permutation(len(classes))
        full = len(order) - len(order) % batch_size
        drawn = [order[at : at + batch_size] for at in range(0, full, batch_size)][: steps - emitted]
        for batch in drawn:
            yield patches[batch], classes[batch]
        emitted += len(drawn)
        last = (patches, classes, drawn) if drawn else last
        held = [(patches[order[full:]], classes[order[full:]])]
    if emitted < steps and last is None:
        raise UserError("fewer images than one batch could be decoded: label the same shards to see their errors")
    for number in range(steps - emitted):
        patches, classes, drawn = last
        batch = drawn[number % len(drawn)]
        yield patches[batch], classes[batch]


def _good(unit: Unit, decode: DecodeSettings) -> Batch:
    """The decoded samples of a unit and their classes; where none is read, 0."""
    errors, sidecars = unit.samples["error"].to_pylist(), unit.samples["sidecars"].to_pylist()
    classes = [int(sidecar[0]) if sidecar else 0 for error, sidecar in zip(errors, sidecars, strict=True) if error is None]
    return unit.payload.reshape(len(classes), *decode.patches_shape), np.asarray(classes, np.int64)
