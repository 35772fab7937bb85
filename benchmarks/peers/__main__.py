"""Run Wordsworth beside Daft and clip-retrieval on the same photographs.

    python -m benchmarks.peers --daft PYTHON --clip-retrieval PYTHON [--data FOLDER] [--rounds 2]
        [--arms NAME...] [--parts speed broken killed]

PYTHON is the interpreter of an environment that has the peer (`pip install daft timm torch`;
`pip install clip-retrieval 'setuptools<80'`). FOLDER holds photographs (.jpg); without it they are generated.
All images are loose files in one folder.

Classes: timm's vit_tiny_patch16_224 with the same random weights for "ours" and "daft", both in bf16, which
is also what `wordsworth label` chooses on this machine. Daft has the best of the settings in DAFT, tried on
--few images. Vectors: CLIP ViT-B/32 with the same random weights for "ours, CLIP" and "clip-retrieval", which
computes in fp32 on a CPU; so ours stands there in bf16 (its choice) and in fp32.

speed: two sizes of the folder in turn, so that the rate is (images of the large less those of the small) by
the difference of the seconds, and what is left is the start and the end. broken: 1% of the files are cut off,
empty or no image. killed: every process of the command gets SIGKILL when half of the seconds of an unharmed
run are over; then the same command again. rows: those that can be read in the output; good: with a result;
doubled: images that come twice.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import timm
import torch
from safetensors.torch import save_file

from benchmarks.decode import photographs
from benchmarks.label import run
from benchmarks.machine import machine, write_rows

CSV = Path(__file__).parents[1] / "peers.csv"
CLIP = "ViT-B-32"
DAFT = [
    {"copies": copies, "threads": threads, "batch-size": batch}
    for (copies, threads), batch in product([(1, 2), (2, 1)], (8, 32, 128))
]
CLIP_RETRIEVAL = {"batch_size": 32, "num_prepro_workers": 2}  # the rest is what its page says
ARMS = ["ours", "daft", "ours, CLIP", "ours, CLIP, fp32", "clip-retrieval"]


class Tools:
    """Hold the weights and the commands of all arms."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.daft = options, folder, DAFT[0]
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
        torch.nn.init.normal_(model.head.weight, std=0.02)
        self.tiny = folder / "tiny.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, self.tiny)
        if any("CLIP" in arm or arm == "clip-retrieval" for arm in options.arms):
            self.clip = folder / "clip"
            save_clip(self.clip)

    def command(self, arm: str, images: Path, out: Path, on_error: str = "null") -> list[str]:
        ours = [sys.executable, "-m", "wordsworth"]
        if arm == "ours":
            model = ["--model", "timm:vit_tiny_patch16_224", "--weights", str(self.tiny)]
            return [*ours, "label", str(images), "--output", str(out), *model, "--precision", "bf16"]
        if arm.startswith("ours, CLIP"):
            precision = "fp32" if arm.endswith("fp32") else "auto"
            model = ["--model", str(self.clip), "--normalize", "--dtype", "float16"]
            return [*ours, "embed", str(images), "--output", str(out), *model, "--precision", precision]
        if arm == "daft":
            settings = [text for key, value in self.daft.items() for text in (f"--{key}", str(value))]
            script = str(Path(__file__).with_name("daft_images.py"))
            given = ["--weights", str(self.tiny), "--dtype", "bf16", "--on-error", on_error]
            return [str(self.options.daft), script, str(images), str(out), *settings, *given]
        weights = self.clip / "open_clip_pytorch_model.bin"
        settings = {
            "input_dataset": images,
            "output_folder": out,
            "clip_model": f"open_clip:{CLIP}/{weights}",
            "enable_text": False,
            **CLIP_RETRIEVAL,
        }
        program = str(self.options.clip_retrieval.with_name("clip-retrieval"))
        return [program, "inference", *(f"--{key}={value}" for key, value in settings.items())]


def save_clip(folder: Path) -> None:
    """Write a CLIP of random weights as OpenCLIP's hub folders are."""
    import open_clip

    folder.mkdir()
    about = {
        "model_cfg": open_clip.get_model_config(CLIP),
        "preprocess_cfg": {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    model = open_clip.create_model(CLIP, pretrained=None)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")


# ---- what is labelled, and what came out -------------------------------------------------------------------


def write_images(folder: Path, images: list[bytes], count: int, broken: int = 0) -> Path:
    """Write loose images; `broken` of them cut off, empty, or text, spread evenly."""
    folder.mkdir(parents=True)
    spoilt = {place * count // broken: place for place in range(broken)} if broken else {}
    for number in range(count):
        data = images[number % len(images)]
        if (place := spoilt.get(number)) is not None:
            data = (data[: len(data) // 2], b"", b"<html>not found</html>")[place % 3]
        (folder / f"{number:06d}.jpg").write_bytes(data)
    return folder


def results(arm: str, out: Path) -> dict[str, int]:
    """Return how many rows a person finds in an output, how many have a result, and how many come twice."""
    if arm == "clip-retrieval":
        tables = [pq.read_table(path) for path in sorted(out.glob("metadata/*.parquet"))]
        vectors = sum(len(np.load(path, mmap_mode="r")) for path in out.glob("img_emb/*.npy"))
        keys = [key for table in tables for key in table["image_path"].to_pylist()]
        return {"rows": len(keys), "good": vectors, "doubled": len(keys) - len(set(keys))}
    name = "path" if arm == "daft" else "key"
    result = {"daft": "best", "ours": "label_id"}.get(arm, "embedding")
    files = list(out.glob("*.parquet" if arm == "daft" else "predictions/*.parquet"))
    keys, good = [], 0
    for path in files:
        try:
            table = pq.read_table(path, columns=[name, result])
        except (OSError, ValueError):  # a file that was being written
            continue
        keys += table[name].to_pylist()
        good += len(table) - table[result].null_count
    return {"rows": len(keys), "good": good, "doubled": len(keys) - len(set(keys))}


# ---- the parts ---------------------------------------------------------------------------------------------


def speed(tools: Tools, images: list[bytes]) -> Iterator[dict[str, Any]]:
    options, folder = tools.options, tools.folder
    few = write_images(folder / "few", images, options.few)
    many = write_images(folder / "many", images, options.many)
    if "daft" in options.arms:
        tried = []
        for setting in DAFT:
            tools.daft = setting
            out = folder / f"sweep-{len(tried)}"
            tried.append((run(tools.command("daft", few, out))["seconds"], setting))
            yield {"part": "sweep", "arm": "daft", "settings": json.dumps(setting), "seconds": tried[-1][0]}
        tools.daft = min(tried, key=lambda one: one[0])[1]
    for turn in range(options.rounds):
        shift = turn % len(options.arms)
        for arm in options.arms[shift:] + options.arms[:shift]:
            small, large = (measured(tools, arm, of, f"{arm}-{turn}-{of.name}") for of in (few, many))
            rate = (options.many - options.few) / (large["seconds"] - small["seconds"])
            yield {
                "part": "speed",
                "arm": arm,
                "round": turn,
                "settings": json.dumps(tools.daft) if arm == "daft" else "",
                "images": options.many,
                **large,
                "images_per_second": round(rate, 1),
                "start_and_end": round(large["seconds"] - options.many / rate, 1),
            }


def measured(tools: Tools, arm: str, images: Path, name: str) -> dict[str, Any]:
    out = tools.folder / name
    ran = run(tools.command(arm, images, out))
    return {"seconds": round(ran["seconds"], 1), "cpu": round(ran["cpu"], 1), "mib": ran["mib"]} | results(
        arm, out
    )


def broken(tools: Tools, images: list[bytes]) -> Iterator[dict[str, Any]]:
    options = tools.options
    spoilt = write_images(tools.folder / "broken", images, options.few, options.few // 100)
    for arm in options.arms:
        for on_error in ("raise", "null") if arm == "daft" else ("null",):
            out = tools.folder / f"broken-{arm}-{on_error}"
            ended = subprocess.run(
                tools.command(arm, spoilt, out, on_error), capture_output=True, text=True, env=environment()
            )
            named = f"{arm}, on_error={on_error}" if arm == "daft" else arm
            found = results(arm, out)
            yield {"part": "broken", "arm": named, "images": options.few, "exit": ended.returncode, **found}


def killed(tools: Tools, images: list[bytes]) -> Iterator[dict[str, Any]]:
    """Kill each arm in the middle, and run it again."""
    options = tools.options
    many = tools.folder / "many"
    if not many.exists():
        write_images(many, images, options.many)
    for arm in options.arms:
        out, again = tools.folder / f"killed-{arm}", tools.folder / f"whole-{arm}"
        whole = run(tools.command(arm, many, again))["seconds"]
        command = tools.command(arm, many, out)
        kill_after(whole / 2, command)
        left = results(arm, out)
        begin = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, env=environment())
        after = results(arm, out)
        yield {
            "part": "killed",
            "arm": arm,
            "images": options.many,
            "exit": ended.returncode,
            "seconds": round(time.perf_counter() - begin, 1),
            "seconds_unharmed": round(whole, 1),
            "rows_after_kill": left["rows"],
            **after,
        }


def environment() -> dict[str, str]:
    return os.environ | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}


def kill_after(seconds: float, command: list[str]) -> None:
    """Start a command, and kill it and all that it started."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment(), **quiet)
    time.sleep(seconds)  # the moment of the kill is what is measured
    root = psutil.Process(process.pid)
    for one in [root, *root.children(recursive=True)]:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue
    process.wait()


PARTS: dict[str, Callable[[Tools, list[bytes]], Iterator[dict[str, Any]]]] = {
    "speed": speed,
    "broken": broken,
    "killed": killed,
}


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    for arm in ARMS:
        of_it = [row for row in rows if (row["part"], row["arm"]) == ("speed", arm)]
        if of_it:
            middle = {
                key: statistics.median(float(row[key]) for row in of_it)
                for key in ("images_per_second", "start_and_end", "seconds", "mib")
            }
            yield f"{arm}: " + ", ".join(f"{key} {value:.1f}" for key, value in middle.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--daft", type=Path)
    parser.add_argument("--clip-retrieval", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--few", type=int, default=500)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=CSV)
    options = parser.parse_args()
    images = photographs(options.data, 1000)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        tools = Tools(options, Path(folder))
        for part in options.parts:
            for row in PARTS[part](tools, images):
                rows.append(row | {"machine": machine()})
                print(row, flush=True)
                write_rows(options.output, rows)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
