"""Run `wordsworth demo`: pack, pretrain, label and verify scikit-learn's 1,797 handwritten digits.

Expected: held-out accuracy of at least 0.97 within four minutes on two cores.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from wordsworth.jobs.terminal import Terminal
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.errors import UserError

HELD_OUT = 360  # images that the model does not see in training
SIZE = "--width 64 --depth 4 --heads 4 --patch-size 4 --image-size 16"
RECIPE = (
    "--epochs 40 --batch-size 64 --lr 2e-3 --weight-decay 0.05 --label-smoothing 0.1 --crop-scale 0.5 "
    "--no-flip --precision fp32"
)


def demo(
    *,
    output: Annotated[
        Path, Parameter(alias="-o", help="A folder for everything that the demo makes.")
    ] = Path("demo"),
    seed: int = 0,
) -> int:
    """Pack, pretrain, label and verify real handwriting: the whole story in a few minutes on a laptop."""
    console = Terminal()
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty: remove it, or give another --output")
    started = time.monotonic()
    write_digits(output / "images", seed)
    for part in ("train", "heldout"):
        size = 300 if part == "train" else 120
        _run(
            console,
            f"pack {output}/images/{part} --output {output}/shards/{part} --shard-size {size} --seed {seed}",
        )
    with ray_session():  # one local Ray for both commands
        _run(console, f"pretrain {output}/shards/train --output {output}/model {SIZE} {RECIPE} --seed {seed}")
        _run(
            console,
            f"label {output}/shards/heldout --output {output}/labels --model {output}/model --keep cls",
        )
    _run(console, f"verify {output}/labels --source")
    accuracy = _show(console, output, time.monotonic() - started)
    return 0 if accuracy >= 0.97 else 1


def write_digits(folder: Path, seed: int) -> None:
    """Write scikit-learn's digits as 8x8 PNG files: folder/{train,heldout}/DIGIT/NUMBER.png.

    HELD_OUT of the images, chosen by the seed, go to `heldout`.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the demo takes its images from scikit-learn: pip install 'wordsworth[dev]'"
        ) from error
    import numpy as np
    from PIL import Image

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # scikit-learn counts from 0 to 16
    held_out = set(np.random.default_rng(seed).permutation(len(pixels))[:HELD_OUT].tolist())
    for number, (image, digit) in enumerate(zip(pixels, digits.target, strict=True)):
        place = folder / ("heldout" if number in held_out else "train") / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:04d}.png")


def _run(console: Terminal, command: str) -> None:
    from wordsworth.jobs.cli import run

    console.print(f"\n[bold]$ wordsworth {command}[/]")
    code = run(command.split())
    if code:  # the command has said why
        sys.exit(code)


def _show(console: Terminal, output: Path, seconds: float) -> float:
    """Read the Parquet files, compare the labels with the classes in `cls`, and print both tables."""
    import pyarrow.parquet as pq

    rows = pq.read_table(output / "labels" / "predictions").to_pylist()
    summary = json.loads((output / "labels" / "_run" / "summary.json").read_text())
    accuracy = sum(row["label_id"] == int(row["cls"]) for row in rows) / len(rows)
    first = Table(
        "key", "label", "score", "true class", box=None, title="the first predictions", title_justify="left"
    )
    for row in rows[:5]:
        first.add_row(row["key"], row["label"], f"{row['score']:.3f}", row["cls"])
    table = Table(show_header=False, box=None, title="the demo in figures", title_justify="left")
    for name, value in {
        "held-out accuracy": f"{accuracy:.4f}",
        "rows": f"{len(rows):,}",
        "errors": f"{sum(summary['errors'].values()):,}",
        "images/s": f"{summary['last_command']['images_per_second']:,} (with the start of the workers)",
        "time": f"{seconds:.0f} s in all",
        "predictions": f"{output}/labels/predictions/*.parquet",
        "model": f"{output}/model",
    }.items():
        table.add_row(name, value)
    console.print()
    console.print(first)
    console.print()
    console.print(table)
    console.print("\nnext: wordsworth label YOUR_SHARDS --output OUT --model timm:vit_base_patch16_224")
    return accuracy
