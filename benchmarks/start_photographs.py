"""Measure where the seconds of a small labelling go, and what a person sees, beside a DataLoader loop.

    python -m benchmarks.start_photographs FOLDER [--images 3000] [--rounds 3] [--before CHECKOUT]

Each round in turn, on the same 8 tars of the photographs (.jpg) of FOLDER: the loop of peers/loader.py with
its best setting, in bf16; `wordsworth label` by a ViT-Ti/16 with random weights, on a terminal of 80 columns;
and the same of an earlier checkout. Rounds are added to start_photographs.csv, to be measured one by one.

    first_line     until the first words on the screen
    first_move     until the screen counts images
    first_row      until the first file of predictions lies on the disk, of the loop: its first batch is done
    whole          until the command has ended

and the parts of the command, by what the screen says and by the times of its files:

    command        the interpreter, the command line and a look at the sources
    torch_model    import of PyTorch and of the pipeline, and the model
    ray            a local Ray, as far as the model was there before it, and the plan
    workers        until the first image is decoded: workers and actors start
    first_file     until the first file
    steady         until the last file
    end            the summary, and the end of Ray and of the interpreter

Expected, on two cores: the first words within 1 s, the first rows within 15 s, the whole command within 0.8
of the loop's time.
"""

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.decode import photographs
from benchmarks.label import USUAL, done_by_line, peer, run, write_shards
from benchmarks.machine import machine, write_rows
from benchmarks.screen import first, record

CSV = Path(__file__).with_suffix(".csv")
ENV = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
PARTS = ("command", "torch_model", "ray", "workers", "first_file", "steady", "end")
SEEN = ("first_line", "first_move", "first_row", "whole")
WORDS = r"[a-z]{4}"
COUNTS = r"\d images? (are |is )?decoded|\d images,"
TORCH = r"loading (PyTorch|the program)"
RAY = r"starting Ray|planning the run"
PLANNED = r"labelling \d+ shards"


def loop(shards: Path, out: Path) -> dict[str, Any]:
    ran = run(peer("loader", shards, out, "Ti/16", {**USUAL["loader"], "dtype": "bf16"}))
    return {"first_row": done_by_line(ran["lines"])[0][0], "whole": ran["seconds"]}


def label(checkout: Path, shards: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "wordsworth", "label", str(shards), "--output", str(out)]
    command += ["--model", "Ti/16", "--allow-random-weights"]
    begin = time.time()
    pieces = record(command, os.environ | ENV | {"PYTHONPATH": str(checkout)}, checkout)
    whole = time.time() - begin
    files = sorted(path.stat().st_mtime - begin for path in out.glob("predictions/*.parquet"))
    moves = first(pieces, COUNTS) or files[0]
    ends = (
        *(first(pieces, TORCH), first(pieces, RAY), first(pieces, PLANNED), moves),
        *(files[0], files[-1], whole),
    )
    parts = {}
    before = 0.0
    for part, end in zip(PARTS, ends, strict=True):
        parts[part] = (end or before) - before
        before = end or before
    seen = {"first_line": first(pieces, WORDS), "first_move": moves, "first_row": files[0], "whole": whole}
    return {**seen, **parts, "files": len(files)}


def read_rows() -> list[dict[str, Any]]:
    if not CSV.exists():
        return []
    with open(CSV, newline="") as file:
        return list(csv.DictReader(file))


def medians(rows: list[dict[str, Any]]) -> None:
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        told = {}
        for name in (*SEEN, *PARTS):
            values = [float(row[name]) for row in mine if row.get(name)]
            if values:
                told[name] = round(statistics.median(values), 1)
        print(arm, told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path)
    options = parser.parse_args()
    rows = read_rows()
    begin = 1 + max((int(row["round"]) for row in rows), default=-1)
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        folder = Path(name)
        shards = write_shards(folder / "in", photographs(options.folder, 1000), options.images)
        arms = {"loop": None, "today": Path.cwd()} | ({"before": options.before} if options.before else {})
        for turn in range(begin, begin + options.rounds):
            for arm, checkout in list(arms.items())[:: 1 if turn % 2 else -1]:
                out = folder / f"{arm}-{turn}"
                found = label(checkout, shards, out) if checkout else loop(shards, out)
                seconds = {key: round(value, 2) for key, value in found.items()}
                rows.append(
                    {"arm": arm, "round": turn, "images": options.images, **seconds, "machine": machine()}
                )
                print({key: value for key, value in rows[-1].items() if key != "machine"}, flush=True)
                write_rows(CSV, rows, ["arm", "round", "images", *SEEN, *PARTS, "files", "machine"])
    medians(rows)


if __name__ == "__main__":
    main()
