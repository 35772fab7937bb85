"""Feed made-up receipts and made-up answers of a store to the driver's own code: parts of benchmarks.scale.

The receipts are those of 1,000 actors on 125 nodes. They come as Ray Data gives them, one table of one row
after the other, and pass the code that a run has: the thread that draws them, the counter, the display, the
metrics, and the listing's totals. The store answers LIST by code, in a process of its own, so that what is
measured is the client.
"""

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from tests.support.serving import Quiet, serving

ACTORS = 1000
ACTORS_ON_NODE = 8
ROWS = 512  # images in a unit
ERRORS_EVERY = 100  # units: one in this many has an image that could not be decoded
WORKERS = 64  # of a training
KEYS = 1000  # in an answer of the store

Figure = dict[str, Any]
Measured = Callable[[Callable[[], Any]], Figure]


def made_receipts(fault: str | None = None) -> list[pa.Table]:
    """Return a receipt from each of 1,000 actors, as the last stage gives it."""
    from wordsworth.pipeline.output.records import Receipt
    from wordsworth.pipeline.unit import GpuCall

    tables = []
    for number in range(ACTORS):
        gpu = f"NVIDIA H100 80GB HBM3, node {number // ACTORS_ON_NODE:032x}"
        receipt = Receipt(
            shard=f"s3://bucket/shards/part-{number:07d}.tar",
            file=f"part-{number:07d}-{number * 7919:012x}-00000-end.parquet",
            rows=0 if fault else ROWS,
            errors={} if number % ERRORS_EVERY else {"decode_error": 1},
            bytes_read=ROWS * 100_000,
            written=not fault,
            twin=False,
            last=True,
            fault=fault,
            prediction=None if fault else GpuCall(gpu=gpu, mode="graphs", batch_size=256, notes=[]).to_json(),
            seconds={"read": 1.0, "decode": 0.7, "predict": 0.2, "write": 0.1},
        )
        tables.append(receipt.to_arrow())
    return tables


def take_receipts(tables: list[pa.Table], out: str, num_receipts: int) -> Any:
    """Let the code of a run take receipts, and return the counter, which then holds what a run holds."""
    from wordsworth.jobs.progress import RunProgress
    from wordsworth.pipeline.cluster.metrics import RunMetrics
    from wordsworth.pipeline.cluster.stall import with_stall_timeout
    from wordsworth.pipeline.labeling.bottleneck import BottleneckFinder
    from wordsworth.pipeline.labeling.dataset import _receipts
    from wordsworth.pipeline.labeling.progress import ListingTotals, ReceiptCounter
    from wordsworth.pipeline.labeling.refused_images import RefusedImages
    from wordsworth.pipeline.labeling.run_watch import RunWatch
    from wordsworth.pipeline.output.committed import CommittedUnits
    from wordsworth.pipeline.output.frozen_listing import FrozenListing
    from wordsworth.pipeline.output.run_folder import RunFolder

    blocks = SimpleNamespace(iter_batches=lambda **_: islice(cycle(tables), num_receipts))
    folder = RunFolder(out)
    totals = ListingTotals(FrozenListing(folder), CommittedUnits())
    with contextlib.redirect_stderr(io.StringIO()), RunProgress("labelling") as progress:
        progress.planned(shards=num_receipts, shards_done=0, bytes_total=num_receipts << 20, bytes_done=0)
        counter = ReceiptCounter(progress, BottleneckFinder(ACTORS, "cuda"))
        refused = RefusedImages(SimpleNamespace(folder=folder, progress=progress))
        watch = RunWatch(progress, RunMetrics(out, "label"))  # without its thread, which asks the workers
        for receipt in with_stall_timeout(_receipts(blocks), 600.0, progress.note):
            counter.add(receipt)
            watch.receipt(receipt)
            refused.look(receipt)
            totals.refresh()
    return counter


def receipts(measured: Measured, out: str, num_receipts: str) -> Iterator[tuple[str, Figure]]:
    """Measure the driver's work on this number of good receipts, and of receipts of a store that is away."""
    held: dict[str, Any] = {}

    def take(name: str, tables: list[pa.Table]) -> str:
        held[name] = take_receipts(tables, out, int(num_receipts))
        return f"{held[name].num_images} images, {len(held[name].faults)} faults"

    good, faulty = made_receipts(), made_receipts("connection_error: the store does not answer")
    take_receipts(good, out, ACTORS)  # modules are loaded
    yield "receipts: counted", measured(partial(take, "good", good))
    yield "receipts: every shard has a fault", measured(partial(take, "faulty", faulty))
    yield "receipts: the message of all faults", measured(partial(_refusal, held["faulty"]))


def _refusal(counter: Any) -> str:
    from wordsworth.pipeline.errors import UserError

    try:
        counter.refuse_faults()
    except UserError as error:
        return f"{len(str(error))} characters"
    raise AssertionError("no fault was refused")


# ---- a store that answers LIST ----------------------------------------------------------------------------


def shard_key(number: int) -> str:
    return f"shards/part-{number:07d}.tar"


def unit_key(number: int) -> str:
    return f"out/predictions/part-{number:07d}-{number * 7919:012x}-00000-end.parquet"


class ListedBucket(Quiet):
    """Answer LIST of S3 by code, for a bucket of shards and of units.

    Attributes:
        entries: keys under a prefix.
    """

    entries = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix = asked.get("prefix", "")
        key_of = unit_key if prefix.startswith("out/") else shard_key
        entries = self.entries if key_of(0).startswith(prefix) else 0
        first = int(asked.get("continuation-token", 0))
        last = min(first + int(asked.get("max-keys", KEYS)), entries)
        more = last < entries
        token = f"<NextContinuationToken>{last}</NextContinuationToken>" if more else ""
        keys = "".join(
            f"<Contents><Key>{key_of(number)}</Key><Size>10240</Size><ETag>&quot;{number:032x}&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass>"
            "</Contents>"
            for number in range(first, last)
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
            f"<KeyCount>{last - first}</KeyCount><MaxKeys>{KEYS}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{keys}</ListBucketResult>"
        )
        self.send(200, body.encode(), {"Content-Type": "application/xml"})

    def do_HEAD(self) -> None:
        self.send(404, b"", {}, body=False)


@contextlib.contextmanager
def listed_bucket(entries: int) -> Iterator[str]:
    """Serve the bucket in a process of its own, and give its address."""
    command = [sys.executable, "-m", "benchmarks.scale_driver", str(entries)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()  # which ends it


def store(measured: Measured, entries: str) -> Iterator[tuple[str, Figure]]:
    """Measure what the client of S3 takes to list shards and units."""
    from wordsworth.pipeline.output.run_folder import RunFolder
    from wordsworth.pipeline.sources.finder import Finder

    with listed_bucket(int(entries)) as address:
        options = {"endpoint_url": address, "key": "k", "secret": "s"}
        finder = Finder(["s3://bucket/shards/"], storage_options=options)
        next(finder.shards())  # modules are loaded
        yield (
            "S3, shards of the source: LIST",
            measured(lambda: f"{sum(1 for _ in finder.shards())} shards"),
        )
        run = RunFolder("s3://bucket/out", options)
        yield (
            "S3, committed: LIST of predictions/",
            measured(lambda: f"{run.committed().units} units"),
        )


def training(measured: Measured, num_shards: str) -> Iterator[tuple[str, Figure]]:
    """Measure what the driver of a training holds of its shards, sends to every worker, and divides."""
    import pickle
    from collections import Counter

    from wordsworth.pipeline.sources.shards import Shard
    from wordsworth.pipeline.training.survey import Survey, assign

    held: dict[str, Any] = {}

    def hold() -> None:
        shards = tuple(
            Shard(kind="tar", uri=f"s3://bucket/{shard_key(number)}", size=10240, version=f"{number:032x}")
            for number in range(int(num_shards))
        )
        rows = {shard.name: 1000 for shard in shards}
        held["survey"] = Survey(shards=shards, rows=rows, classes=Counter(map(str, range(1000))))

    def send() -> str:
        held["sent"] = pickle.dumps(held["survey"], 5)
        return f"{len(held['sent'])} bytes"

    yield "training: all shards in memory", measured(hold)
    yield "training: shards, pickled for a worker", measured(send)
    yield "training: shards, in a worker", measured(lambda: held.update(worker=pickle.loads(held["sent"])))
    survey = held["survey"]
    divide = partial(assign, list(survey.shards), survey.rows, WORKERS)
    yield f"training: divided among {WORKERS} workers", measured(lambda: f"{len(divide())} parts")


def main() -> None:
    """Serve a bucket of so many keys until stdin ends."""
    ListedBucket.entries = int(sys.argv[1])
    with serving(ListedBucket) as address:
        print(address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
