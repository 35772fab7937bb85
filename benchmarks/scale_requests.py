"""Count the requests to a store that a run makes, and the bytes that it writes: parts of benchmarks.scale.

A server of S3's protocol writes a line for every request. The command reads tars of one unit from it, and
writes the run into it.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.servers import free_port
from tests.support.builders import make_model, photo, write_tar

NOTHING = {"image_size": 32, "patch_size": 16, "width": 8, "depth": 1, "heads": 1, "mlp_dim": 8}
LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP')
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # the server's log has some
KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_EC2_METADATA_DISABLED": "true"}
IMAGES = 4  # in a tar
START_S = 30.0  # seconds in which the server must answer

Figure = dict[str, Any]


@contextlib.contextmanager
def logged_store(log: Path) -> Iterator[str]:
    """Serve a store with a bucket, log its requests, and give its address."""
    import socket

    import s3fs

    port = free_port()
    with open(log, "w") as out:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            end = time.monotonic() + START_S
            while time.monotonic() < end:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)  # nothing tells when the server listens
            address = f"http://127.0.0.1:{port}"
            s3fs.S3FileSystem(key="k", secret="s", endpoint_url=address).mkdir("/bucket")
            yield address
        finally:
            server.kill()
            server.wait()


def counted(lines: list[str]) -> Counter[str]:
    """Count requests by their kind and what they are for."""
    found: Counter[str] = Counter()
    for match in filter(None, (LINE.search(COLOUR.sub("", line)) for line in lines)):
        method, path = match["method"], match["path"]
        if method == "GET" and ("list-type=2" in path or path.rstrip("/") == "/bucket"):
            method = "LIST"
        place = "run" if "out" in path else "source"
        if "predictions" in path:
            place = "units"
        found[f"{method} {place}"] += 1
    return found


def requests(tars: str) -> Iterator[tuple[str, Figure]]:
    """Return the requests of a run over this number of tars, and of a command that finds it finished."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, log = Path(scratch), Path(scratch, "log")
        images = {f"{number}.jpg": photo(number, (64, 64)) for number in range(IMAGES)}
        for number in range(int(tars)):
            write_tar(folder / "in" / f"{number:05d}.tar", images)
        model = make_model(folder / "model", **NOTHING)
        with logged_store(log) as address:
            import s3fs

            store = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=address)
            store.put(f"{folder}/in/", "bucket/in/", recursive=True)
            for what in ("requests of a run", "requests of a command with nothing to do"):
                skipped = len(log.read_text().splitlines())
                begin = time.monotonic()
                command = ["label", "s3://bucket/in", "--output", "s3://bucket/out", "--model", str(model)]
                subprocess.run(
                    [sys.executable, "-m", "wordsworth", *command],
                    env=os.environ | KEYS | {"AWS_ENDPOINT_URL": address},
                    check=True,
                    capture_output=True,
                )
                seconds = time.monotonic() - begin
                found = counted(log.read_text().splitlines()[skipped:])
                figure = {"seconds": seconds, "cpu_seconds": 0.0, "peak_mib": 0.0, "added_mib": 0.0}
                yield what, figure | {"more": dict(sorted(found.items()))}


def rows(num_rows: str) -> Iterator[tuple[str, Figure]]:
    """Return the bytes of a unit's file of this number of rows: labels, and embeddings of 768 numbers."""
    import numpy as np
    import pyarrow as pa

    from wordsworth.pipeline.output.commit import parquet_bytes
    from wordsworth.pipeline.output.prediction_rows import WriteSettings, prediction_table
    from wordsworth.pipeline.unit import SAMPLE, Unit

    count, rng = int(num_rows), np.random.default_rng(0)
    samples = pa.Table.from_pylist(
        [
            {"key": f"{place:09d}", "index": place, "offset": place * 102_400, "size": 100_000 + place % 977}
            | {"sidecars": [], "error": None, "error_detail": None}
            for place in range(count)
        ],
        schema=SAMPLE,
    )
    sides = pa.array(rng.integers(300, 700, count), pa.int32())
    ids = rng.integers(0, 1000, (count, 5))
    scores = np.sort(rng.dirichlet(np.ones(5), count).astype(np.float32))[:, ::-1]
    vectors = rng.standard_normal((count, 768)).astype(np.float16)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 768)
    for name, column in (
        ("width", sides),
        ("height", sides),
        ("topk_ids", pa.array(ids.tolist(), pa.list_(pa.int32()))),
        ("topk_scores", pa.array(scores.tolist(), pa.list_(pa.float32()))),
        ("embedding", flat),
    ):
        samples = samples.append_column(name, column)
    unit = Unit(
        shard_uri="s3://bucket/shards/part-0000000.tar",
        shard_name="part-0000000-0123456789ab",
        number=0,
        last=True,
        next_offset=0,
        next_index=count,
        bytes_read=count * 100_000,
        samples=samples,
        payload=np.empty(0, np.uint8),
    )
    names = tuple(f"class {number} of a thousand" for number in range(1000))
    for what, asked in (
        ("labels", {"labels": names, "top_k": 5, "embedding": None}),
        ("embeddings", {"labels": None, "top_k": 0, "embedding": "float16"}),
    ):
        settings = WriteSettings(output="", provenance=None, width=768, **asked)  # the footer is left out
        size = parquet_bytes(prediction_table(unit, settings)).size
        figure = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mib": 0.0, "added_mib": size / (1 << 20)}
        yield f"file of a unit: {what}", figure | {"more": f"{size} bytes"}
