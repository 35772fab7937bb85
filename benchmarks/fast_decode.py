"""Measure what --fast-decode changes: the labels of a trained model, and the cost of decoding.

    python -m benchmarks.fast_decode FOLDER [--image-size 96]

FOLDER has train/CLASS/*.jpg and test/CLASS/*.jpg. A small model is trained on train with the exact decoder.
test is labelled twice, exactly and fast. libjpeg reduces an image only where its shorter side is at least
twice the model's input, so a smaller --image-size reduces more.

flips: images whose best class changed. wilson: the 95% interval of their share. decode_ms: milliseconds of
one image, in all decoding tasks together. The order is exact, fast, fast, exact; both runs of a kind must
give the same labels.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.machine import machine, write_rows
from wordsworth.pipeline.output.intervals import wilson_interval

CSV = Path(__file__).with_suffix(".csv")
SIZE = ["--width", "128", "--depth", "4", "--heads", "4", "--patch-size", "8"]
RECIPE = ["--epochs", "30", "--batch-size", "64", "--lr", "1e-3", "--label-smoothing", "0.1"]


def wordsworth(*arguments: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "wordsworth", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


def labelled(source: Path, model: Path, output: Path, fast: bool) -> tuple[dict[str, str], float]:
    """Return the label of every image by its key, and the milliseconds that decoding one image took."""
    wordsworth("label", source, "--output", output, "--model", model, *(["--fast-decode"] if fast else []))
    rows = pq.read_table(output / "predictions", columns=["key", "label"]).to_pylist()
    seconds = json.loads((output / "_run" / "summary.json").read_text())["stage_seconds"]["decode"]
    return {row["key"]: row["label"] for row in rows}, 1000 * seconds / len(rows)


def measured(folder: Path, image_size: int, work: Path) -> dict[str, Any]:
    model = work / "model"
    data = [folder / "train", "--target", "folder", "--val", folder / "test"]
    wordsworth("pretrain", *data, "--output", model, *SIZE, "--image-size", image_size, *RECIPE)
    runs = [
        (fast, *labelled(folder / "test", model, work / f"labels-{turn}", fast))
        for turn, fast in enumerate((0, 1, 1, 0))
    ]
    exact, fast = ([labels for kind, labels, _ in runs if kind == wanted] for wanted in (0, 1))
    assert exact[0] == exact[1] and fast[0] == fast[1], "the same decoder gives the same labels"
    flips = sum(exact[0][key] != fast[0][key] for key in exact[0])
    right = [
        sum(Path(key).parts[-2] == label for key, label in labels.items()) for labels in (exact[0], fast[0])
    ]
    low, high = wilson_interval(flips, len(exact[0]))
    return {
        "images": len(exact[0]),
        "image_size": image_size,
        "flips": flips,
        "flip_rate": round(flips / len(exact[0]), 4),
        "wilson": f"{low:.4f} to {high:.4f}",
        "right_exact": right[0],
        "right_fast": right[1],
        "decode_ms_exact": round(sum(ms for kind, _, ms in runs if not kind) / 2, 2),
        "decode_ms_fast": round(sum(ms for kind, _, ms in runs if kind) / 2, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, nargs="+", default=[96])
    parser.add_argument("--output", type=Path, default=CSV)
    options = parser.parse_args()
    rows = []
    for image_size in options.image_size:
        with tempfile.TemporaryDirectory(prefix="fast-decode-") as work:
            rows.append(
                measured(options.folder, image_size, Path(work))
                | {"data": options.folder.name, "machine": machine()}
            )
        print(rows[-1], flush=True)
        write_rows(options.output, rows)


if __name__ == "__main__":
    main()
