"""Measure how the driver's memory, the time to resume and the cost of LIST grow with a run's units.

    python -m benchmarks.scale [--real 1000 4000 16000] [--simulated 10000 100000 1000000]
        [--receipts 10000 100000 1000000] [--store 10000 100000 1000000] [--requests 50 200]
        [--training 10000 100000 1000000] [--actors 1 8 32] [--rows 128 256 512]

Every size is measured in a process of its own; a part without sizes is left out.

    real        this number of tars with one small JPEG each, the hard case of one unit a shard, labelled by
                the smallest model on a local Ray. Then the last unit is removed and the same command resumes.
                Then the command finds the run finished
    simulated   a run folder of this number of empty files and the frozen listing of their shards, and the
                driver's steps over the folder
    receipts    this number of receipts from 1,000 actors, taken by the driver's code beside the listing of as
                many shards
    store       LIST of this number of shards and units, from a server that makes its answers by code
    training    this number of shards, as a training holds, sends and divides them
    requests    requests by kind, of a run over this number of tars
    actors      the driver's CPU for a unit, beside this number of model actors that do nothing
    rows        bytes of a unit's file of this number of rows

added_mib is the memory that the driver held at most beyond its memory before the step. The slopes are those
from the size before: CPU in microseconds a unit, and memory in bytes a unit. CPU of a real run is that of Ray
and all its workers too.

Expected: slopes that do not grow with the units, and less than 2 KiB a unit in all. Rows of sizes that are
not measured now stay in the file.
"""

import argparse
import csv
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import scale_actors, scale_driver, scale_requests
from benchmarks.machine import machine, write_rows
from benchmarks.scale_real import MiB, make_tars, measured, real

PAGE = 1000  # shards in a page of the listing
FIELDS = (
    "what",
    "units",
    "seconds",
    "cpu_seconds",
    "peak_mib",
    "added_mib",
    "cpu_us_slope",
    "bytes_slope",
    "more",
    "machine",
)


# ---- simulated: steps of the driver over a made-up folder --------------------------------------------------


def make_folder(out: Path, units: int) -> None:
    """Make the files' names of a finished run of one unit a shard, and its listing."""
    from wordsworth.pipeline.output.commit import parquet_bytes
    from wordsworth.pipeline.output.committed import unit_file
    from wordsworth.pipeline.output.frozen_listing import FrozenListing, PageMetadata
    from wordsworth.pipeline.output.run_folder import RunFolder
    from wordsworth.pipeline.sources.shards import Shard, listing_table

    frozen = FrozenListing(RunFolder(str(out)))
    (out / "predictions").mkdir(parents=True)
    (out / "_run" / "shards").mkdir(parents=True)
    for begin in range(0, units, PAGE):
        end = min(begin + PAGE, units)
        shards = [
            Shard(kind="tar", uri=f"s3://bucket/shards/part-{n:07d}.tar", size=10240, version=f"{n:032x}")
            for n in range(begin, end)
        ]
        if end == units:
            frozen.put(begin // PAGE, shards, last=True, metadata=PageMetadata())
        else:
            path = out / "_run" / "shards" / f"{begin // PAGE:05d}.parquet"
            page = listing_table(shards).replace_schema_metadata({b"wordsworth": b"{}"})
            path.write_bytes(parquet_bytes(page))
        for shard in shards:
            (out / "predictions" / unit_file(shard.name, 0, True)).touch()


def manifest_rows(units: int) -> Iterator[pa.Table]:
    """Return the rows that tasks make from the footers of this number of files."""
    from wordsworth.pipeline.output.records import MANIFEST

    for begin in range(0, units, 256):
        rows = [
            {
                "file": f"part-{number:07d}-{number * 7919:012x}-00000-end.parquet",
                "shard": f"s3://bucket/shards/part-{number:07d}.tar",
                **{
                    "unit": 0,
                    "last": True,
                    "rows": 1,
                    "errors": "{}",
                    "skipped": "{}",
                    "bytes_read": 10240,
                    "bytes": 5000,
                },
                **{
                    "version": f"{number * 104729:032x}",
                    "read": number / 7,
                    "decode": number / 11,
                    "predict": number / 13,
                },
            }
            for number in range(begin, min(begin + 256, units))
        ]
        yield pa.Table.from_pylist(rows, schema=MANIFEST)


def simulated(out: str, units: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the steps that the driver takes over this folder, from a resume to the end."""
    from wordsworth.pipeline.labeling.progress import ListingTotals
    from wordsworth.pipeline.output.commit import parquet_bytes_of
    from wordsworth.pipeline.output.committed import CommittedUnits
    from wordsworth.pipeline.output.frozen_listing import FrozenListing, open_pages
    from wordsworth.pipeline.output.manifest import ManifestTotals
    from wordsworth.pipeline.output.records import MANIFEST
    from wordsworth.pipeline.output.run_folder import RunFolder

    run = RunFolder(out)
    frozen, held = FrozenListing(run), {}
    for page in frozen.pages():  # the libraries are loaded, the listing is in the system's cache
        held["page"] = page.num_rows

    def keep(**values: Any) -> None:
        held.update(values)

    yield "sweep: LIST of predictions/", measured(run.sweep)
    yield "committed: LIST of predictions/", measured(lambda: keep(done=run.committed()))
    yield (
        "what is committed, pickled",
        measured(lambda: keep(bytes=pickle.dumps(held["done"], 5)) or f"{len(held['bytes'])} bytes"),
    )
    yield "what is committed, unpickled", measured(lambda: keep(again=pickle.loads(held["bytes"])))
    totals = ListingTotals(frozen, held["done"])
    yield "totals: every page", measured(lambda: totals.refresh(every_s=0) and f"{totals.shards_done} done")
    yield "totals: looked at again", measured(lambda: totals.refresh(every_s=0))
    yield "what was ignored: every page", measured(lambda: keep(ignored=frozen.passed_over()))
    yield (
        "open shards: all are done",
        measured(lambda: f"{sum(1 for _ in open_pages(frozen, held['done']))} open"),
    )
    nothing = CommittedUnits()
    yield (
        "open shards: none is done",
        measured(lambda: f"{sum(1 for _ in open_pages(frozen, nothing))} open"),
    )
    yield "files of the manifest: LIST and sort", measured(lambda: keep(files=run.prediction_files()))
    keep(files=[])
    tally = ManifestTotals()
    whole = lambda: parquet_bytes_of(map(tally.add, manifest_rows(int(units))), MANIFEST)  # noqa: E731
    yield "manifest: rows to a file in memory", measured(lambda: f"{whole().size} bytes")


# ---- rows --------------------------------------------------------------------------------------------------


class Table:
    """Hold the rows of the CSV file, and write each row when it is known."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        if path.exists():
            with open(path, newline="") as file:
                self.rows = {(row["what"], int(row["units"])): row for row in csv.DictReader(file)}

    def add(self, what: str, units: int, figure: dict[str, Any]) -> None:
        row = {
            "what": what,
            "units": units,
            "machine": machine(),
            "more": json.dumps(figure["more"]) if figure["more"] else "",
        }
        row |= {
            name: round(figure[name], 3 if "seconds" in name else 4)
            for name in ("seconds", "cpu_seconds", "peak_mib", "added_mib")
        }
        self.rows[what, units] = row
        self._slopes(what)
        write_rows(self.path, self.rows.values(), FIELDS)
        print(
            f"{what:36} {units:8} {row['seconds']:9.2f} s {row['cpu_seconds']:9.2f} CPU-s "
            f"{row['added_mib']:8.1f} MiB {row['more']}"
        )

    def _slopes(self, what: str) -> None:
        sizes = sorted(units for name, units in self.rows if name == what)
        for small, large in pairwise(sizes):
            a, b = self.rows[what, small], self.rows[what, large]
            for slope, name, times in (
                ("cpu_us_slope", "cpu_seconds", 1e6),
                ("bytes_slope", "added_mib", MiB),
            ):
                b[slope] = round((float(b[name]) - float(a[name])) * times / (large - small), 1)

    def words(self) -> Iterator[str]:
        """Return the slope of each step between its two largest sizes, in words."""
        for what in dict.fromkeys(name for name, _ in self.rows):
            units = max(size for name, size in self.rows if name == what)
            row = self.rows[what, units]
            if row.get("bytes_slope") not in (None, ""):
                slopes = f"{row['cpu_us_slope']} us of CPU and {row['bytes_slope']} bytes a unit"
                yield f"{what}: {slopes}, up to {units:,} units"


PARTS: dict[str, Callable[..., Iterator[tuple[str, dict[str, Any]]]]] = {
    "simulated": simulated,
    "receipts": partial(scale_driver.receipts, measured),
    "store": partial(scale_driver.store, measured),
    "training": partial(scale_driver.training, measured),
    "requests": scale_requests.requests,
    "actors": scale_actors.actors,
    "rows": scale_requests.rows,
    "real": real,
}


def child(*arguments: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the figures that a process of its own prints, a line of JSON for each."""
    command = [sys.executable, "-m", "benchmarks.scale", "--child", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield from (json.loads(line) for line in process.stdout if line.startswith("["))
    if process.returncode:
        raise SystemExit(f"the process that measured {' '.join(map(str, arguments))} failed")


def forget_last_unit(out: Path) -> None:
    last = max((out / "predictions").iterdir())
    for path in (last, out / "_run" / "manifest.parquet", out / "_run" / "summary.json"):
        path.unlink()


def over_folder(table: Table, part: str, units: int) -> None:
    """Measure a part over a made-up run folder."""
    with tempfile.TemporaryDirectory() as scratch:
        make_folder(Path(scratch, "out"), units)
        for what, figure in child(part, Path(scratch, "out"), units):
            table.add(what, units, figure)


def over_tars(table: Table, units: int) -> None:
    """Measure real commands over small tars: the run, its resume, and one that finds nothing to do."""
    with tempfile.TemporaryDirectory() as scratch:
        make_tars(Path(scratch, "tars"), units)
        for turn in ("label", "resume", "nothing to do"):
            if turn == "resume":
                forget_last_unit(Path(scratch, "out"))
            for what, figure in child("real", scratch):
                table.add(what, units, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=int, nargs="*", default=[1000, 4000, 16000])
    parser.add_argument("--simulated", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--receipts", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--store", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--training", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--requests", type=int, nargs="*", default=[50, 200])
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--rows", type=int, nargs="*", default=[128, 256, 512])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        part, *arguments = options.child
        for figure in PARTS[part](*arguments):
            print(json.dumps(figure), flush=True)
        return
    table = Table(options.output)
    for units in options.simulated:
        over_folder(table, "simulated", units)
    for units in options.receipts:
        over_folder(table, "receipts", units)
    for part in ("store", "training", "requests", "actors", "rows"):
        for units in getattr(options, part):
            for what, figure in child(part, units):
                table.add(what, units, figure)
    for units in options.real:
        over_tars(table, units)
    print(*table.words(), sep="\n")


if __name__ == "__main__":
    main()
