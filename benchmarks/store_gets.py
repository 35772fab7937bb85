"""Measure many small GETs by s3fs and by obstore, and write the rows into stores.csv.

    pip install obstore
    python -m benchmarks.store_gets [--rounds 3] [--gets 2000]

Objects of 100 kB from tests/support/counting_store.py, which shares the cores. Each client in threads, as the
readers ask, and in coroutines; each measurement is a process of its own, in turn.

Expected: obstore, whose requests are made in Rust, takes half of the CPU of s3fs.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.store_reading import STORE, Server, merge

OBJECT_BYTES = 100_000
ARMS = ("s3fs threads", "s3fs coroutines", "obstore threads", "obstore coroutines")


def s3fs_arm(url: str, names: list[str], at_once: int, in_threads: bool) -> Callable[[], int]:
    """Return a function that gets all objects and returns their bytes."""
    from fsspec.asyn import sync

    from wordsworth.pipeline.storage.filesystem import open_filesystem
    from wordsworth.pipeline.storage.objects import object_bytes

    options = {"key": "K", "secret": "S", "endpoint_url": url, "config_kwargs": {"max_pool_connections": 64}}
    fs, _ = open_filesystem("s3://b", options)
    object_bytes(fs, f"b/{names[0]}")  # connects

    async def one(turn: asyncio.Semaphore, name: str) -> int:
        async with turn:
            answer = await fs._call_s3("get_object", Bucket="b", Key=name)
            return len(await answer["Body"].read())

    async def every() -> int:
        turn = asyncio.Semaphore(at_once)
        return sum(await asyncio.gather(*(one(turn, name) for name in names)))

    if in_threads:
        return lambda: threaded(lambda name: len(object_bytes(fs, f"b/{name}")), names, at_once)
    return lambda: sync(fs.loop, every)


def obstore_arm(url: str, names: list[str], at_once: int, in_threads: bool) -> Callable[[], int]:
    """Return a function that gets all objects and returns their bytes."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        "b",
        access_key_id="K",
        secret_access_key="S",
        endpoint=url,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    obstore.get(store, names[0]).bytes()  # connects

    async def one(turn: asyncio.Semaphore, name: str) -> int:
        async with turn:
            return len(bytes(await (await obstore.get_async(store, name)).bytes_async()))

    async def every() -> int:
        turn = asyncio.Semaphore(at_once)
        return sum(await asyncio.gather(*(one(turn, name) for name in names)))

    if in_threads:
        return lambda: threaded(lambda name: len(bytes(obstore.get(store, name).bytes())), names, at_once)
    return lambda: asyncio.run(every())


def threaded(get: Callable[[str], int], names: list[str], at_once: int) -> int:
    with ThreadPoolExecutor(at_once) as pool:
        return sum(pool.map(get, names))


def measure_here(arm: str, url: str, count: int, at_once: int) -> dict[str, float]:
    """Get all objects in this process."""
    client, how = arm.split()
    make = {"s3fs": s3fs_arm, "obstore": obstore_arm}[client]
    names = [f"{number:06d}" for number in range(count)]
    get = make(url, names, at_once, how == "threads")
    begin, cpu = time.perf_counter(), time.process_time()
    assert get() == count * OBJECT_BYTES
    return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}


def measure(latency_s: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each arm, with medians of the rounds."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory(prefix="gets-") as name:
        bucket = Path(name, "b")
        bucket.mkdir()
        data = os.urandom(OBJECT_BYTES)
        for number in range(options.gets):
            (bucket / f"{number:06d}").write_bytes(data)
        server = Server(Path(name), latency_s)
        try:
            cpu = server.counts()["cpu_s"]
            for _ in range(options.rounds):
                for arm in ARMS:
                    more = ["--arm", arm, "--url", server.url, "--gets", str(options.gets)]
                    command = [sys.executable, "-m", "benchmarks.store_gets", *more]
                    took = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
                    after = server.counts()["cpu_s"]
                    found[arm].append({**took, "server": after - cpu})
                    cpu = after
                    print(1000 * latency_s, arm, found[arm][-1], flush=True)
        finally:
            server.close()
    return [row_of(arm, took, latency_s, options) for arm, took in found.items()]


def row_of(
    arm: str, took: list[dict[str, float]], latency_s: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Return a row of stores.csv."""

    def median(name: str) -> float:
        return statistics.median(one[name] for one in took)

    each = 1000 / options.gets
    note = (
        f"gets: {options.gets} of 100 kB, {options.at_once} at once; {each * median('cpu'):.2f} CPU-ms each, "
        f"{each * median('server'):.2f} of the server; {machine()}"
    )
    return {
        "store": STORE,
        "fault": "none",
        "latency_ms": 1000 * latency_s,
        "source": f"GETs by {arm}",
        "rounds": len(took),
        "rows_exact": True,
        "seconds": round(median("seconds"), 1),
        "requests_per_image": 1,
        "rate": round(options.gets / median("seconds"), 1),
        "ratio_to_disk": "",
        "note": note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gets", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--arm", choices=ARMS, help="measure one client in this process")
    parser.add_argument("--url", help="of the server, for --arm")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure_here(options.arm, options.url, options.gets, options.at_once)))
        return
    for latency_s in (0.0, 0.05):
        merge(measure(latency_s, options))


if __name__ == "__main__":
    main()
