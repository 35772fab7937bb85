"""Make runs by hand: the real reader reads real tars, predictions are made up, and units are committed as
in a run."""

import io
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.output.commit import commit, parquet_bytes
from wordsworth.pipeline.output.frozen_listing import FrozenListing, PageMetadata
from wordsworth.pipeline.output.manifest import ManifestTotals
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.records import (
    MANIFEST,
    SCHEMA_VERSION,
    LastCommand,
    Provenance,
    ResolvedSettings,
    RunPlan,
    Summary,
)
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.source_names import SourceNames
from wordsworth.pipeline.unit import FOLDER, SAMPLE, Unit
from wordsworth.pipeline.verification.report import Report

KEYS = ("jpg", "jpeg", "png")
UNIT_ROWS = 4


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def image_members(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    """Return `count` samples of an image and a sidecar; the bytes are never decoded."""
    generator = random.Random(first)
    names = [(f"d/{i:03d}.jpg", f"d/{i:03d}.json") for i in range(first, first + count)]
    return [
        pair
        for image, side in names
        for pair in ((image, generator.randbytes(50 + 37 * len(image))), (side, b"{}"))
    ]


def predicted(unit: Unit) -> Unit:
    """Return the unit with two classes and an embedding for every row without an error."""
    good = [error is None for error in unit.samples["error"].to_pylist()]
    ids = pa.array([[3, 1] if ok else None for ok in good], pa.list_(pa.int32()))
    scores = pa.array([[0.75, 0.25] if ok else None for ok in good], pa.list_(pa.float32()))
    embedding = pa.array([np.ones(4, np.float16) if ok else None for ok in good], pa.list_(pa.float16(), 4))
    side = pa.array([8 if ok else None for ok in good], pa.int32())
    columns = {"width": side, "height": side, "topk_ids": ids, "topk_scores": scores, "embedding": embedding}
    for name, column in columns.items():
        unit.samples = unit.samples.append_column(name, column)
    return unit


def read_rows(shard: Shard) -> list[dict]:
    units = read_units(shard, ReadSettings(unit_rows=UNIT_ROWS, image_keys=KEYS))
    return [row for unit in units for row in unit.samples.to_pylist()]


def units_of(shard: Shard, rows: list[dict]) -> list[Unit]:
    """Cut rows into units, with new places: the folder is consistent, whatever the rows are."""
    cuts = range(0, max(1, len(rows)), UNIT_ROWS)
    batches = [rows[i : i + UNIT_ROWS] for i in cuts]
    units = []
    for number, batch in enumerate(batches):
        first = number * UNIT_ROWS
        batch = [{**row, "index": shard.first_index + first + i} for i, row in enumerate(batch)]
        samples = pa.Table.from_pylist(batch, schema=SAMPLE)
        if batch and FOLDER in batch[0]:
            samples = samples.append_column(FOLDER, pa.array([row[FOLDER] for row in batch], pa.string()))
        end, last = first + len(batch), number == len(batches) - 1
        unit = Unit(
            shard_uri=shard.uri,
            shard_name=shard.name,
            number=number,
            last=last,
            next_offset=0,
            next_index=end,
            bytes_read=0,
            samples=samples,
            payload=np.empty(0, np.uint8),
        )
        units.append(unit)
    return units


def made_up_plan(asked: dict, run_id: str = "0123456789abcdef") -> RunPlan:
    """Return the plan of a run over a model that does not exist."""
    resolved = ResolvedSettings(
        device="cpu", precision="fp32", batch_size=8, unit_rows=UNIT_ROWS, decoder="made up"
    )
    return RunPlan(
        schema_version=SCHEMA_VERSION,
        package_version="0",
        model="made up",
        fingerprint="f" * 64,
        asked=asked,
        resolved=resolved,
        run_id=run_id,
    )


def provenance_of(plan: RunPlan) -> Provenance:
    return Provenance(
        run_id=plan.run_id,
        fingerprint=plan.fingerprint,
        model=plan.model,
        package_version=plan.package_version,
        schema_version=plan.schema_version,
        preprocessing={},
        decoder="made up",
        dtype="fp32",
    )


def finish(out: Path | str, options: dict | None = None, **changes) -> None:
    """Write the manifest and the summary of the files in the folder."""
    run = RunFolder(str(out), options)
    units = run.units()
    own = units.manifest(units.unrecorded())
    manifest = pa.concat_tables([units.recorded().select(MANIFEST.names), own]).sort_by("file")
    totals = ManifestTotals()
    totals.add(manifest)
    plan = run.plan()
    summary = Summary(
        run_id=plan.run_id,
        model=plan.model,
        fingerprint=plan.fingerprint,
        shards=totals.sums["last"],
        files=totals.files,
        rows=totals.sums["rows"],
        errors=dict(totals.errors),
        skipped_members=dict(totals.skipped),
        ignored={},
        bytes_read=totals.sums["bytes_read"],
        bytes_written=totals.sums["bytes"],
        stage_seconds={},
        last_command=LastCommand(images=0, seconds=0.0, images_per_second=0.0),
    )
    run.finish(parquet_bytes(manifest), replace(summary, **changes))


def build(
    out: Path,
    *sources: Path | SourceNames,
    reader=read_rows,
    format: str | None = None,
    image_keys: tuple[str, ...] = KEYS,
    shards: list[Shard] | None = None,
) -> Path:
    """Make a finished run over real files; `reader` returns the rows of each shard."""
    run = RunFolder(str(out))
    names = sources[0] if isinstance(sources[0], SourceNames) else list(map(str, sources))
    listing = find_shards(names, format=format, image_keys=image_keys)
    asked = {"source": sorted(names), "image-key": list(image_keys), "key-rule": "auto"}
    asked |= {"format": format, "top-k": 2, "embedding": "float16"}
    run.create(made_up_plan(asked))
    _label(run, listing.shards if shards is None else shards, reader)
    return out


def update(out: Path, *sources: Path, format: str | None = None) -> None:
    """Add sources to a finished run, as --update adds new shards."""
    found = find_shards([str(source) for source in sources], format=format, image_keys=KEYS)
    _label(RunFolder(str(out)), found.shards, read_rows)


def _label(run: RunFolder, shards: list[Shard], reader) -> None:
    """Freeze a page of shards and commit their units."""
    frozen = FrozenListing(run)
    frozen.put(len(frozen.files()), shards, last=True, metadata=PageMetadata())
    commit_shards(run, shards, reader)


def commit_shards(run: RunFolder, shards: list[Shard], reader=read_rows) -> None:
    """Commit the units of shards that are in the listing, and finish the run."""
    settings = WriteSettings(
        output=run.root,
        provenance=provenance_of(run.plan()),
        labels=("a", "b", "c", "d"),
        top_k=2,
        embedding="float16",
        width=4,
    )
    for shard in shards:
        for unit in units_of(shard, reader(shard)):
            commit(predicted(unit), settings)
    finish(Path(run.root))


def two_tars(folder: Path) -> Path:
    """Make tars of 3 units and of 1 unit, with an image without sidecar, a sidecar without image and a
    hidden file."""
    write_tar(
        folder / "a.tar",
        [*image_members(9), ("._x.jpg", b"x"), ("README", b"x"), ("d/lone.txt", b"no image")],
    )
    write_tar(folder / "b.tar", [*image_members(2, 100), ("z.PNG", b"z" * 700)])
    return folder


def whole_run(folder: Path) -> SimpleNamespace:
    """Make a run over two tars in which nothing is wrong. first, middle and end are files of the first
    tar's units."""
    source = two_tars(folder / "in")
    out = build(folder / "out", source)
    first, middle, end, _ = sorted((out / "predictions").iterdir())
    return SimpleNamespace(out=out, source=source, first=first, middle=middle, end=end)


def codes(report: Report) -> set[str]:
    return {fault.code for fault in report.findings}
