"""Runs made by hand: real tars read by the real reader, predictions made up, committed as a run commits them."""

import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.output.frozen_listing import About, FrozenListing
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.run_folder import MANIFEST, RunFolder, commit, parquet
from wordsworth.pipeline.sources.reader import ReadSettings, read_units
from wordsworth.pipeline.sources.shards import Shard, find_shards
from wordsworth.pipeline.unit import SAMPLE, Unit
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


def pictures(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    """`count` samples of an image and a sidecar; the bytes are never decoded here."""
    generator = random.Random(first)
    names = [(f"d/{i:03d}.jpg", f"d/{i:03d}.json") for i in range(first, first + count)]
    return [
        pair
        for image, side in names
        for pair in ((image, generator.randbytes(50 + 37 * len(image))), (side, b"{}"))
    ]


def predicted(unit: Unit) -> Unit:
    """The unit with two classes and an embedding for every row without an error."""
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
    units = read_units(shard, ReadSettings(UNIT_ROWS, image_keys=KEYS))
    return [row for unit in units for row in unit.samples.to_pylist()]


def units_of(shard: Shard, rows: list[dict]) -> list[Unit]:
    """Rows cut into units, their places counted anew: the folder is consistent, whatever the rows are."""
    cuts = range(0, max(1, len(rows)), UNIT_ROWS)
    batches = [rows[i : i + UNIT_ROWS] for i in cuts]
    units = []
    for number, batch in enumerate(batches):
        first = number * UNIT_ROWS
        batch = [{**row, "index": shard.first_index + first + i} for i, row in enumerate(batch)]
        samples = pa.Table.from_pylist(batch, schema=SAMPLE)
        end, last = first + len(batch), number == len(batches) - 1
        units.append(Unit(shard.uri, shard.name, number, last, 0, end, 0, samples, np.empty(0, np.uint8)))
    return units


def finish(out: Path | str, options: dict | None = None, **changes) -> None:
    """Manifest and summary of what lies in the folder."""
    run = RunFolder(str(out), options)
    manifest = pa.concat_tables([run.compacted(MANIFEST.names), run.manifest(run.uncompacted())]).sort_by(
        "file"
    )
    footers, errors = manifest.to_pylist(), Counter()
    for footer in footers:
        errors.update(json.loads(footer["errors"]))
    plan = run.plan()
    summary = {
        "run_id": plan["run_id"],
        "fingerprint": plan["fingerprint"],
        "shards": sum(row["last"] for row in footers),
    }
    summary |= {"files": len(footers), "rows": sum(row["rows"] for row in footers), "errors": dict(errors)}
    run.finish(parquet(manifest), summary | changes)


def build(out: Path, *sources: Path, reader=read_rows, format: str | None = None) -> Path:
    """A finished run over real files; `reader` says which rows each shard has."""
    run = RunFolder(str(out))
    listing = find_shards([str(source) for source in sources], format, KEYS)
    asked = {"source": sorted(map(str, sources)), "image-key": list(KEYS), "top-k": 2, "embedding": "float16"}
    run.create({"schema_version": 1, "run_id": "0123456789abcdef", "fingerprint": "f" * 64, "asked": asked})
    _label(run, listing.shards, reader)
    return out


def update(out: Path, *sources: Path, format: str | None = None) -> None:
    """Add sources to a finished run, as --update adds what is new."""
    _label(
        RunFolder(str(out)), find_shards([str(source) for source in sources], format, KEYS).shards, read_rows
    )


def _label(run: RunFolder, shards: list[Shard], reader) -> None:
    """Freeze a page of shards and commit their units."""
    frozen = FrozenListing(run)
    frozen.put(len(frozen.files()), shards, True, About())
    provenance = {name: run.plan()[name] for name in ("run_id", "fingerprint")}
    settings = WriteSettings(
        run.root, provenance | {"model": "made up"}, ("a", "b", "c", "d"), 2, "float16", 4
    )
    for shard in shards:
        for unit in units_of(shard, reader(shard)):
            commit(predicted(unit), settings)
    finish(Path(run.root))


def two_tars(folder: Path) -> Path:
    """Tars of 3 units and of 1, and what belongs to them: an image without sidecar, a sidecar without image, a hidden file."""
    write_tar(
        folder / "a.tar", [*pictures(9), ("._x.jpg", b"x"), ("README", b"x"), ("d/lone.txt", b"no image")]
    )
    write_tar(folder / "b.tar", [*pictures(2, 100), ("z.PNG", b"z" * 700)])
    return folder


def whole_run(folder: Path) -> SimpleNamespace:
    """A run over two tars in which nothing is wrong. first, middle, end: the files of the first tar's units."""
    source = two_tars(folder / "in")
    out = build(folder / "out", source)
    first, middle, end, _ = sorted((out / "predictions").iterdir())
    return SimpleNamespace(out=out, source=source, first=first, middle=middle, end=end)


def codes(report: Report) -> set[str]:
    return {fault.what for fault in report.faults}
