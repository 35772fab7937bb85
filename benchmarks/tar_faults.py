"""Plant one read error, or one cut, at many places of a small tar, and see what each reader makes of it.

    python -m benchmarks.tar_faults [--ray-places 60]

Expected: ours is exact at every read error and reports every cut. The other readers read some cut tars short
without a word; Ray, and webdataset told to continue, do so at some read errors too.

The tar (tests/support/faulty.py) has ustar, pax, GNU and base-256 headers. The file system raises the error,
once, when a read reaches that byte; the bytes before it arrive. The error reads like the AWS error that Ray's
default settings retry. `buffer` is the number of bytes that a reader asks of the store at once: 16 KiB is to
this tar what Ray's 32 MiB is to a shard of 240 MB. With 32 MiB the whole tar would be one read, which no
large shard is. Ours always asks for 1 MiB (tests/sources/test_tar_faults.py varies this). Ray is tried at a
random sample of the places. Cuts are made at every 97th byte up to the end of the tar's two end blocks.

exact: all samples, equal. raised: an error; for ours at a cut, the row `shard_truncated`. silently_short:
neither.
"""

import argparse
import io
import logging
import os
import random
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ["WDS_SECURE"] = "1"  # webdataset reads it when it is imported
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import webdataset

from benchmarks.machine import machine, write_rows
from tests.support.faulty import FaultyFileSystem, multi_format_tar, places
from tests.support.tars import END
from wordsworth.pipeline.sources import tar_reader
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.tar_groups import read_samples

FIELDS = ("fault", "reader", "buffer", "places", "exact", "raised", "silently_short", "versions", "machine")
NEVER = -1
Rows = list[dict]  # a sample each: __key__ and its fields
SCALED, WHOLE = 16 << 10, 32 << 20
SAMPLES = 8  # of each of the four kinds


class Said(Exception):
    """Report that the reader said that something is missing."""


def ours(fs: FaultyFileSystem, buffer: int) -> Rows:
    """Read by the labeler's reader."""
    tar_reader.open_exact = lambda uri, options=None: (fs, uri)
    made = []
    shard = Shard(kind="tar", uri="s.tar", size=len(fs.data), version="1")
    for unit in read_units(shard, ReadSettings(unit_rows=4, keep=("json",))):
        if unit.fault:
            raise StoreFault(unit.fault)
        payload, at = unit.payload.tobytes(), 0
        for row in unit.samples.to_pylist():
            if row["error"]:
                raise Said(row["error"])
            made.append(
                {
                    "__key__": row["key"],
                    "jpg": payload[at : at + row["size"]],
                    "json": row["sidecars"][0].encode(),
                }
            )
            at += row["size"]
    return made


def reraise(error: Exception) -> bool:
    raise error


def carry_on(error: Exception) -> bool:
    return True


def webdataset_reader(handler: Callable[[Exception], bool]) -> Callable[[FaultyFileSystem, int], Rows]:
    """Read by webdataset's tar reader; its handlers decide whether an error ends the shard with or without
    a word."""

    def read(fs: FaultyFileSystem, buffer: int) -> Rows:
        stream = io.BufferedReader(fs.open("s.tar"), buffer)
        files = webdataset.tariterators.tar_file_expander(
            [{"url": "s.tar", "stream": stream}], handler=handler
        )
        samples = list(webdataset.tariterators.group_by_keys(files, handler=handler))
        return [{name: value for name, value in sample.items() if name != "__url__"} for sample in samples]

    return read


def ray_reader(fs: FaultyFileSystem, buffer: int) -> Rows:
    """Read by ray.data.read_webdataset, without its decoder."""
    import ray
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    found = ray.data.read_webdataset(
        "s.tar",
        filesystem=PyFileSystem(FSSpecHandler(fs)),
        arrow_open_stream_args={"buffer_size": buffer},
        decoder=None,
        override_num_blocks=1,
    )
    return [
        {name: value for name, value in row.items() if isinstance(value, str | bytes) and name != "__url__"}
        for row in found.take_all()
    ]


def outcome(
    read: Callable[[FaultyFileSystem, int], Rows], fs: FaultyFileSystem, buffer: int, whole: Rows
) -> str:
    try:
        rows = read(fs, buffer)
    except Exception:
        return "raised"
    return "exact" if rows == whole else "silently_short"


def measure(
    name: str, read: Callable, faults: dict[str, list[FaultyFileSystem]], buffer: int, whole: Rows
) -> list[dict]:
    assert read(FaultyFileSystem(multi_format_tar(SAMPLES), NEVER), buffer) == whole, (
        f"{name} does not read the whole tar"
    )
    made = []
    for fault, systems in faults.items():
        counts = Counter(outcome(read, fs, buffer, whole) for fs in systems)
        row = {"fault": fault, "reader": name, "buffer": buffer, "places": len(systems)}
        row |= {kind: counts[kind] for kind in ("exact", "raised", "silently_short")}
        packages = ("ray", "webdataset")
        made.append(
            row | {"versions": ", ".join(f"{one} {version(one)}" for one in packages), "machine": machine()}
        )
        print(f"{fault:11} {name:34} {buffer:>9} {dict(counts)}", flush=True)
    return made


def planted(shard: bytes, most: int | None = None) -> dict[str, list[FaultyFileSystem]]:
    """Return read errors at four places of each block, and cuts at every 97th byte before the end blocks
    are whole; or `most` of each."""
    last = list(read_samples(io.BytesIO(shard)))[-1].end + len(END)
    errors, cuts = places(shard), list(range(0, last, 97))
    if most is not None:
        errors, cuts = (
            sorted(random.Random(0).sample(all_, min(most, len(all_)))) for all_ in (errors, cuts)
        )
    return {
        "read error": [FaultyFileSystem(shard, place) for place in errors],
        "cut": [FaultyFileSystem(shard[:length], NEVER) for length in cuts],
    }


def ray_rows(shard: bytes, most: int, whole: Rows) -> list[dict]:
    import ray

    ray.init(
        num_cpus=4,
        object_store_memory=256 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        faults = planted(shard, most)
        made = measure("ray.data.read_webdataset", ray_reader, faults, SCALED, whole)
        return made + measure(
            "ray.data.read_webdataset",
            ray_reader,
            {"read error": planted(shard, most // 4)["read error"]},
            WHOLE,
            whole,
        )
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray-places", type=int, default=60, help="of each fault; 0 leaves Ray out")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    shard = multi_format_tar(SAMPLES)
    samples = read_samples(io.BytesIO(shard))
    whole = [
        {"__key__": sample.key} | {name: member.data for name, member in sample.fields.items()}
        for sample in samples
    ]
    rows = measure("wordsworth", ours, planted(shard), 1 << 20, whole)
    rows += measure("webdataset", webdataset_reader(reraise), planted(shard), SCALED, whole)
    rows += measure(
        "webdataset, warn_and_continue", webdataset_reader(carry_on), planted(shard), SCALED, whole
    )
    if options.ray_places:
        rows += ray_rows(shard, options.ray_places, whole)
    write_rows(options.output, rows, FIELDS)


if __name__ == "__main__":
    main()
