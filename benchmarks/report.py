"""Measure the report of a run of many rows: its seconds, its memory and the bytes of its page.

    python -m benchmarks.report [--rows 10000 100000 1000000] [--width 384] [--labels 1000] [--folder FOLDER]

The product's own code commits the rows, whose labels, scores and embeddings are made up. Their images are
real: 500 JPEGs of 256x192 in a tar that has 100 names, so the rows are of 100 shards. The report is made in a
process of its own.

peak_mib is the memory that this process held at most, and decoding is in a child whose memory is not in it.
start_mib is what it held once the program was imported.

Expected: 10^6 rows in less than 120 seconds and less than 10 MB, and memory that does not grow with the rows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine, write_rows
from tests.support.many_rows import link_tars, make_many
from tests.support.samples import encoded, photo, write_tar

SHARDS = 100
IMAGES = 500  # of the tar
FIELDS = (
    "rows",
    "labels",
    "width",
    "seconds",
    "peak_mib",
    "start_mib",
    "page_bytes",
    "images",
    "images_missing",
    "run_bytes",
    "machine",
)

MEASURED = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from wordsworth.pipeline.report.page import write_report
def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
start = mib("VmRSS")
told = asdict(write_report(sys.argv[1]))
print(json.dumps(told | {"start_mib": round(start, 1), "peak_mib": round(mib("VmHWM"), 1)}))
"""


def main() -> None:
    """Measure runs of the sizes that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=384, help="length of an embedding")
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the runs go; without it they are removed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        tar = folder / "one.tar"
        write_tar(tar, [(f"{n:05d}.jpg", encoded(photo(n, 256, 192))) for n in range(IMAGES)])
        source = link_tars(tar, folder / "in", SHARDS)
        measured = [measure(folder, source, rows, asked.labels, asked.width) for rows in asked.rows]
    write_rows(Path(__file__).with_suffix(".csv"), measured, FIELDS)


def measure(folder: Path, source: Path, rows: int, num_labels: int, width: int) -> dict:
    """Return what the report of one run took."""
    labels = tuple(f"label {number}" for number in range(num_labels))
    out = make_many(
        folder / f"out-{rows}",
        source,
        rows_per_shard=rows // SHARDS,
        labels=labels,
        num_labels=num_labels,
        width=width,
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(out)], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    row = {
        "rows": told["num_rows"],
        "labels": num_labels,
        "width": width,
        "seconds": told["seconds"],
        "peak_mib": told["peak_mib"],
        "start_mib": told["start_mib"],
        "page_bytes": told["size_bytes"],
        "images": told["num_images"],
        "images_missing": sum(count for _, count in told["missing"]),
        "run_bytes": sum(path.stat().st_size for path in (out / "predictions").iterdir()),
        "machine": machine(),
    }
    print(row)
    return row


if __name__ == "__main__":
    main()
