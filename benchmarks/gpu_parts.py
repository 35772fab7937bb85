"""Run one part of benchmarks/gpu_check.py, which describes each part and starts this module for it."""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu_check import ROOT, Goal, Result

FORWARDED = {"cuda": ("B/16", "L/16", "S/16", "Ti/16"), "cpu": ("Ti/16",)}
CLIMBED = {"cuda": ("B/16", "Ti/16"), "cpu": ("Ti/16",)}
LABELLED, EMBEDDED = {"cuda": "B/16", "cpu": "Ti/16"}, {"cuda": "S/16", "cpu": "Ti/16"}
TRAINED = {"cuda": {"B/16": 2, "L/16": 1}, "cpu": {"": 2}}  # epochs by variant; "" is TINY
TINY = ("--width", "32", "--depth", "2", "--heads", "2", "--patch-size", "16", "--image-size", "64")
TRAINED_BATCH = {"cuda": 256, "cpu": 16}  # images
IMAGES, DISTINCT = {"cuda": 20_000, "cpu": 64}, {"cuda": 256, "cpu": 16}
RUN_SECONDS = {"cuda": 10.0, "cpu": 0.0}  # that the images should take at the best
DECODE_SECONDS = {"cuda": 3.0, "cpu": 1.0}  # for which decoding alone is measured
ROUNDS = {"cuda": 3, "cpu": 1}
ROUND_SECONDS = {"cuda": 0.7, "cpu": 0.3}  # of an arm of the gains
DIFFERENCE = 0.02  # of a score, as a share of it: bf16 is that far from fp32
# Tests that run on a CPU, from the files that have others for a GPU.
REHEARSED = "a_rate_is_measured or a_named_precision or of_several_threads"
BUSY_GOAL = 0.95  # share of the time that the GPU works
MFU_GOAL = 0.45  # share of the GPU's peak operations
WARM_LINES = 2  # of a training's metrics, a line every two seconds, before it is as fast as it becomes

Findings = Iterator[dict[str, Any] | Goal]


class CheckFailed(Exception):
    """Report a condition that must hold and does not."""


@dataclass(frozen=True)
class Context:
    """Give a part its device and the state folder, which has a folder `work` that is removed after the
    part."""

    device: str
    state: Path

    @property
    def work(self) -> Path:
        return self.state / "work"

    def goal(self, what: str, figure: float, least: float | None = None, form: str = "{:.2f}") -> Goal:
        """Hold a figure against the least that it should be; a rehearsal holds none."""
        if least is None or self.device == "cpu":
            return Goal(what, form.format(figure))
        return Goal(what, form.format(figure), f"at least {form.format(least)}", figure >= least)

    def known(self, part: str, name: str, model: str) -> list[float]:
        """Return a figure of an earlier part's rows for this model, in their order."""
        result = Result.read(self.state, part)
        return [row[name] for row in (result.rows if result else []) if row["model"] == model and name in row]


# ---- tests -------------------------------------------------------------------------------------------------


def tests(context: Context) -> Findings:
    """Run every test that is marked gpu; a rehearsal runs other tests of the same files."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    chosen = ["-m", "gpu"] if context.device == "cuda" else ["-m", "not gpu", "-k", REHEARSED]
    report = context.work / "tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        *chosen,
        f"--junitxml={report}",
    ]
    code = subprocess.run([*command, *map(str, files)], cwd=ROOT).returncode
    counts = ElementTree.parse(report).find("testsuite").attrib if report.exists() else {}
    ran, skipped = (int(counts.get(name, 0)) for name in ("tests", "skipped"))
    if code or skipped or not ran:
        raise CheckFailed(
            f"pytest ended with {code}: {ran} tests, {skipped} of them skipped, which a GPU's may not be"
        )
    yield Goal(f"tests of {len(files)} files", f"{ran} passed", "all", True)


# ---- the model ---------------------------------------------------------------------------------------------


def forward(context: Context) -> Findings:
    """Measure the matrix peak, and the whole path and the forward pass alone of each model."""
    from benchmarks import gpu

    products = list(gpu.peaks(context.device))
    yield from products
    peak = max(row["tflops"] for row in products)
    yield context.goal("matrix peak, TFLOP/s", peak, form="{:.3g}")
    for name in FORWARDED[context.device]:
        for row in gpu.forward(name, context.device, 1, peak):
            yield row
            alone = row["arm"] == "no copies"
            what = f"{name}, {'the forward pass alone' if alone else 'the whole path'}"
            yield context.goal(
                f"{what}, share of the peak", row["share_of_peak"], None if alone else gpu.GOALS.get(name)
            )
            yield context.goal(
                f"{what}, images/s, batches of {row['batch_size']}", row["images_per_second"], form="{:,.0f}"
            )
        yield mode(context, name, row)
        gpu.torch.cuda.empty_cache()  # the next model finds the memory free


def mode(context: Context, what: str, row: dict[str, Any]) -> Goal:
    """Return the mode in which a GPU did its work, and the reason why no higher mode was used."""
    told = f"{row['mode']}: {row['note']}" if row["note"] else row["mode"] or "none"
    if context.device == "cpu":
        return Goal(f"{what}, mode", told)
    return Goal(f"{what}, mode", told, "graphs", row["mode"] == "graphs")


def gains(context: Context) -> Findings:
    """Measure the gain of each rung of the ladder."""
    from benchmarks import gpu

    peak = max(context.known("forward", "tflops", model=""), default=math.nan)
    failed = []
    for name in CLIMBED[context.device]:
        for row in gpu.climbed(
            name, context.device, ROUNDS[context.device], peak, ROUND_SECONDS[context.device]
        ):
            yield row
            if "times_beside" in row:
                yield rung(context, row)
            elif "images_per_second" in row:
                yield context.goal(
                    f"{name}, {row['arm']}, images/s", row["images_per_second"], form="{:,.0f}"
                )
            else:
                failed.append(f"{name}, {row['arm']}: {row['note']}")
            if float(row.get("difference", 0)) > DIFFERENCE:
                failed.append(
                    f"{name}, {row['arm']}: a score differs by {row['difference']} from the lowest mode's"
                )
        gpu.torch.cuda.empty_cache()
    if failed:
        raise CheckFailed("; ".join(failed))


def rung(context: Context, row: dict[str, Any]) -> Goal:
    """Judge whether a rung is worth its lines."""
    from benchmarks.gpu import GAIN_GOAL

    found = context.goal(
        f"{row['model']}, {row['arm']}, times the rung below", row["times_beside"], GAIN_GOAL, "{:.3f}"
    )
    return (
        Goal(found.what, f"{found.figure}: to be deleted", found.goal, False) if found.met is False else found
    )


# ---- the labeler -------------------------------------------------------------------------------------------


def label(context: Context) -> Findings:
    """Label every image through Ray."""
    yield from labelled(context, "label", LABELLED[context.device])


def embed(context: Context) -> Findings:
    """Embed every image through Ray."""
    yield from labelled(context, "embed", EMBEDDED[context.device])


def labelled(context: Context, command: str, name: str) -> Findings:
    """Run a labeling command on all images, count its rows, and compare its rate with the rate of the
    machine."""
    from benchmarks import gpu
    from benchmarks import label as labeler

    shards = written_shards(context)
    before = context.known("label", "decode_images_per_second", LABELLED[context.device])
    decode = before[0] if before else decode_rate(context)
    model = forward_rate(context, name)
    copies = max(1, math.ceil(min(decode, model) * RUN_SECONDS[context.device] / IMAGES[context.device]))
    source, out = gpu.link_shards(shards, context.work / "in", copies), context.work / "out"
    precision = "bf16" if context.device == "cuda" else "auto"
    line = [
        *labeler.ours(source, out, name, precision, command),
        "--allow-random-weights",
        "--device",
        context.device,
    ]
    row = {"part": command, "model": name, "arm": f"wordsworth {command}"}
    print(*line, flush=True)
    row |= gpu.through_ray(line, out, min(decode, model), context.device)
    row |= {
        "decode_images_per_second": round(decode, 1),
        "forward_images_per_second": model,
        "data": "generated",
    }
    yield row
    yield counted(out, command, IMAGES[context.device], copies)
    yield context.goal(f"{name}, images/s", row["images_per_second"], form="{:,.0f}")
    yield context.goal(f"{name}, what decoding alone can do, images/s", decode, form="{:,.0f}")
    yield context.goal(f"{name}, what the model alone can do, images/s", model, form="{:,.0f}")
    yield context.goal(f"{name}, share of the lower of both", row["share_of_floor"], gpu.FLOOR_GOAL)
    if context.device == "cuda":  # nothing keeps a GPU busy for which the cores cannot decode enough
        yield context.goal(
            f"{name}, GPU busy, share of the time", row["gpu_busy"], BUSY_GOAL if model <= decode else None
        )
        yield mode(context, name, row)
    yield context.goal(f"{name}, the command with its start, s", row["seconds"], form="{:.0f}")


def written_shards(context: Context) -> Path:
    """Return shards of JPEGs with a class each, which all parts share."""
    from benchmarks import training
    from benchmarks.decode import photographs

    folder, making = context.state / "data", context.work / "data"
    if not folder.exists():  # whole, since it gets its name last
        training.write_shards(
            making, photographs(None, DISTINCT[context.device]), IMAGES[context.device]
        ).rename(folder)
    return folder


def decode_rate(context: Context) -> float:
    """Measure images/s of all cores that do nothing but decode."""
    from benchmarks import gpu
    from benchmarks import label as labeler

    print("decoding alone", flush=True)
    return gpu.decode_rate(labeler.photographs(None, 64), labeler.cores(), DECODE_SECONDS[context.device])


def forward_rate(context: Context, name: str) -> float:
    """Return the images/s of the whole path without Ray; measure them if no earlier part has done so."""
    from benchmarks import gpu

    if known := context.known("forward", "images_per_second", name):
        return known[0]
    print("the model alone", flush=True)
    rate = next(gpu.forward(name, context.device, 1, math.nan))["images_per_second"]
    gpu.torch.cuda.empty_cache()  # the labeler is next
    return rate


def counted(out: Path, command: str, images: int, copies: int) -> Goal:
    """Count the rows.

    Raises:
        CheckFailed: not every image has exactly one row, or a row has an error or no prediction.
    """
    import pyarrow.parquet as pq

    predicted = "embedding" if command == "embed" else "label_id"
    table = pq.read_table(out / "predictions", columns=["shard", "key", "error", predicted])
    names = set(zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True))
    errors, empty = len(table) - table["error"].null_count, table[predicted].null_count
    found = {"rows": len(table), "images": len(names), "keys": len({key for _, key in names})}
    wanted = {"rows": images * copies, "images": images * copies, "keys": images}
    if found != wanted or errors or empty:
        raise CheckFailed(
            f"{command}: {found} and not {wanted}, {errors} errors, {empty} rows without a prediction"
        )
    told = f"{len(table):,} rows = {copies} x {images:,} keys, no errors"
    return Goal("each image exactly once", told, "all", True)


# ---- training ----------------------------------------------------------------------------------------------


def train(context: Context) -> Findings:
    """Train models for some epochs with Ray Train, and read the metrics of each training."""
    from benchmarks import label as labeler

    shards = written_shards(context)
    for name, epochs in TRAINED[context.device].items():
        output = context.work / f"model-{name.replace('/', '-')}"
        command = [
            sys.executable,
            "-m",
            "wordsworth",
            "pretrain",
            str(shards),
            "--output",
            str(output),
            "--lr",
            "1e-4",
        ]
        command += ["--variant", name] if name else TINY
        command += [
            "--batch-size",
            str(TRAINED_BATCH[context.device]),
            "--epochs",
            str(epochs),
            "--save-every",
            "0",
        ]
        command += ["--precision", "bf16" if context.device == "cuda" else "auto", "--device", context.device]
        print(*command, flush=True)
        ran = labeler.run(command)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        row = {"part": "train", "model": name or "tiny", "arm": "wordsworth pretrain", **trained(lines)}
        row |= {
            "goal": MFU_GOAL,
            "batch_size": TRAINED_BATCH[context.device],
            "seconds": round(ran["seconds"], 1),
            "data": "generated",
        }
        yield row
        yield context.goal(f"{row['model']}, MFU", row["mfu"], MFU_GOAL)
        yield context.goal(f"{row['model']}, images/s", row["images_per_second"], form="{:,.0f}")
        yield context.goal(f"{row['model']}, share of the time without a batch", row["data_wait"])
        yield context.goal(
            f"{row['model']}, {row['steps']} steps with their start, s", row["seconds"], form="{:.0f}"
        )


def trained(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the metrics once training is warm; of a short training those of its last
    epoch."""
    said = [line for line in lines if line["kind"] == "step"][WARM_LINES:] or lines[-1:]
    names = ("images_per_second", "mfu", "data_wait")
    medians = {name: round(statistics.median(line[name] for line in said), 3) for name in names}
    return medians | {"steps": lines[-1]["step"], "loss": lines[-1]["loss"]}


# ---- this process ------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[Context], Findings]] = {
    one.__name__: one for one in (tests, forward, gains, label, embed, train)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=FUNCTIONS)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    options = parser.parse_args()
    if options.part != "tests":  # which are a process of their own
        import torch

        torch.set_num_threads(1)  # as Ray has it in an actor
    began = time.monotonic()
    with open(
        options.state / f"{options.part}.found", "w"
    ) as file:  # line by line: what is there stays if the part is ended
        try:
            for found in FUNCTIONS[options.part](Context(options.device, options.state)):
                line = {"goal": asdict(found)} if isinstance(found, Goal) else {"row": found}
                print(json.dumps(line), file=file, flush=True)
                print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)
        except CheckFailed as failed:
            sys.exit(f"{options.part}: {failed}")


if __name__ == "__main__":
    main()
