"""Measure the time until the first row is written, beside the steps that nobody can do without.

    python -m benchmarks.start [--rounds 5]

Each round in turn: `wordsworth label` of four small shards by a ViT-Ti/16, to its first file and to its end;
and in one process, one after the other, import torch, ray.init without changes, and loading that model.

Expected: the first file within twice the sum of these steps.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine, write_rows
from tests.support.builders import make_model, write_shards

CSV = Path(__file__).with_suffix(".csv")
ENV = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
PARTS = """
import sys, time
now = [time.perf_counter()]
import torch; now.append(time.perf_counter())
import ray
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
now.append(time.perf_counter())
from wordsworth.vit_model.model_folder import load_folder
load_folder(sys.argv[1]).model()
now.append(time.perf_counter())
print(*(after - before for before, after in zip(now, now[1:])))
"""


def round_of(source: Path, model: Path, out: Path) -> dict[str, float]:
    begin = time.time()
    command = [
        sys.executable,
        "-m",
        "wordsworth",
        "label",
        str(source),
        "--output",
        str(out),
        "--model",
        str(model),
    ]
    subprocess.run(command, capture_output=True, check=True, env=os.environ | ENV)
    seconds = time.time() - begin
    first = min(path.stat().st_mtime for path in out.glob("predictions/*.parquet")) - begin
    said = subprocess.run(
        [sys.executable, "-c", PARTS, str(model)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | ENV,
    )
    torch, ray, loading = map(float, said.stdout.split())
    found = {
        "first_file": first,
        "whole": seconds,
        "import_torch": torch,
        "ray_init": ray,
        "load_model": loading,
    }
    return {
        name: round(value, 2) for name, value in (found | {"ratio": first / (torch + ray + loading)}).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        folder = Path(name)
        write_shards(folder / "in", shards=4, images=8)
        model = make_model(folder / "model", width=192, depth=12, heads=3, mlp_dim=768)
        for turn in range(options.rounds):
            rows.append(
                {
                    "round": turn,
                    **round_of(folder / "in", model, folder / f"out-{turn}"),
                    "machine": machine(),
                }
            )
            print({key: value for key, value in rows[-1].items() if key != "machine"}, flush=True)
            write_rows(CSV, rows)
    ratio = statistics.median(row["ratio"] for row in rows)
    print(f"first file / (import torch + ray.init + load): {ratio:.2f}")


if __name__ == "__main__":
    main()
