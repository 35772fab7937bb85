"""Measure the model and the whole labeler on a CUDA GPU, beside the rate of its matrix units.

    python -m benchmarks.gpu [FOLDER] [--only peak forward gains label] [--models Ti/16 S/16 B/16 L/16]
        [--rounds 5]

The benchmark uses one GPU. On a machine with several, show it only one (CUDA_VISIBLE_DEVICES=0). Weights and
pixels are random, images 224 by 224. `make gpu-check` (benchmarks/gpu_check.py) measures the most important
parts, and training, in six minutes.

peak: large bf16 matrix products by CUDA events, medians of 30. The highest rate is the peak of the other
parts.

forward: `prepare` and `GpuBatches` as an actor has them: uint8 patches in host memory, in units of 512 from
two threads, with one CPU thread for torch, to classes and scores in host memory. "no copies" is the model
alone. Operations are twice `macs`. Expected: B/16 and L/16 at least 0.60 of the peak, with CUDA graphs.

gains: one step after the other, each with all steps before it, from host memory to host memory and in the
batch size that `GpuBatches` finds. First float32 images in fp32 (no TF32) and in bf16. Then the modes of
`--gpu-mode`, called the rungs of a ladder, on uint8 patches with the normalisation folded: one batch after
the other; batches copied while others are computed, from pageable memory, then from pinned memory; CUDA
graphs; two units at a time, the whole path. Beside these: the whole path with torch.compile, and timm's model
in bf16 and channels-last, which gets its images in this form from pinned memory. Every round times each arm
once, in an order that turns. times_beside is the median over the rounds of the arm's rate divided by that of
the arm `beside`. difference is the largest difference of the best class's score from that of the first arm,
as a share of it. Expected: 1.03 for every rung; a rung that brings less is not worth its lines.

label: the command on JPEGs of FOLDER, or on generated ones, in shards that are linked until three quarters of
the images take 20 s. floor: the lower of two rates: all cores decoding at once, each with its child, and the
forward rate just measured. gpu_busy: the share of the steady time, as in benchmarks.label, in which any
kernel ran, by `busy_by`. Expected: 0.95 of the floor, for B/16 and Ti/16.

Rows that are not measured now, or were measured on another machine, stay in the file. `--device cpu` tries
peak, forward and some of the gains without a GPU, in fp32, and writes a file only where --output names one.
"""

import argparse
import contextlib
import copy
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from benchmarks.machine import machine, merge_rows
from wordsworth.pipeline.prediction.gpu_batches import UNITS_IN_FLIGHT, BatchSlot
from wordsworth.pipeline.prediction.gpu_modes import MODES, GpuBatches
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.cost import macs
from wordsworth.vit_model.inference import PRECISIONS, prepare
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.patches import unpatchify
from wordsworth.vit_model.variants import variant

CSV = Path(__file__).with_suffix(".csv")
PARTS, MODELS, LABELLED = (
    ("peak", "forward", "gains", "label"),
    ("Ti/16", "S/16", "B/16", "L/16"),
    ("B/16", "Ti/16"),
)
GOALS = {"B/16": 0.60, "L/16": 0.60}  # of the peak
FLOOR_GOAL = 0.95  # of the floor
GAIN_GOAL = 1.03  # the least rate of a rung, in multiples of the rate of the rung below
SIDES = {"cuda": (4096, 8192, 16384), "cpu": (512, 1024)}  # of the matrices
SHAPE = (196, 768)  # N, P*P*3 of all the models
UNIT = {"cuda": 512, "cpu": 16}  # images; 512 is what the labeler makes of this shape
BATCH = {"cuda": None, "cpu": 8}  # None: the fastest batch size is searched
PRECISION = {"cuda": "bf16", "cpu": "fp32"}  # not every CPU computes bf16
LADDER = {"cuda": MODES, "cpu": MODES[1:]}  # a CPU has no graphs
SHARD, STEADY = 2048, 25.0  # images in a shard; and seconds that the steady part of a run should take
FIRST, WHOLE = "fp32, images", "two units at a time: the whole path"
Run = Callable[[int], dict[str, np.ndarray]]  # all images so many times -> the answers of the last time
Arms = dict[str, Callable[[], Run]]


def peaks(device: str = "cuda") -> Iterator[dict[str, Any]]:
    """Measure large matrix products, one row a size."""
    for side in SIDES[device]:
        a, b = (torch.randn(side, side, device=device, dtype=PRECISIONS[PRECISION[device]]) for _ in range(2))
        seconds = statistics.median(_times(lambda a=a, b=b: a @ b.T, device))  # as nn.Linear multiplies
        yield {
            "part": "peak",
            "model": "",
            "arm": f"{side} x {side} x {side}",
            "tflops": round(2 * side**3 / seconds / 1e12, 2),
        }


def _times(work: Callable[[], Any], device: str) -> list[float]:
    """Return the seconds of 30 calls, after some calls that warm up."""
    if device == "cpu":
        marks = []
        for _ in range(36):
            work()
            marks.append(time.perf_counter())
        return [after - before for before, after in pairwise(marks[5:])]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(36)]
    for event in events:
        work()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(events[5:])]


# ---- the model ---------------------------------------------------------------------------------------------


def top5(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the actor takes from the model's outputs: classes and scores of the best five."""
    scores, ids = logits.float().softmax(-1).topk(5)
    return {"ids": ids.to(torch.int32), "scores": scores}


def joined(answers: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def in_turn(whole: torch.Tensor, size: int, answer: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> Run:
    """Make the arm in which a batch comes in, is computed and goes out, before the next batch."""

    def run(times: int) -> dict[str, np.ndarray]:
        for _ in range(times):
            answers = [
                {name: values.cpu().numpy() for name, values in answer(part).items()}
                for part in whole.split(size)
            ]
        return joined(answers)

    return run


def units_of(patches: torch.Tensor, batches: GpuBatches, threads: int = UNITS_IN_FLIGHT) -> Run:
    """Make the arm that sends two units through the ladder, again and again."""
    units, one = [part.numpy() for part in patches.chunk(2)], torch.inference_mode()(batches.__call__)

    def run(times: int) -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(threads) as pool:
            return joined(list(pool.map(one, units * times))[-len(units) :])

    return run


def ladder(
    network: nn.Module, device: str, size: int | None, modes: tuple[str, ...] | None = None
) -> GpuBatches:
    """Make an actor's ladder of this model.

    Args:
        modes: the modes that may be taken; None for all that the device has.
    """
    with torch.inference_mode():
        return GpuBatches(
            lambda patches: top5(network(patches)[0]),
            SHAPE,
            torch.device(device),
            size,
            modes or LADDER[device],
        )


def rungs(network: nn.Module, patches: torch.Tensor, device: str, size: int) -> Arms:
    """Return the arms of the ladder from the lowest rung up, each with all steps before it."""

    def rung(mode: str, threads: int = 1, pinned: bool = True) -> Callable[[], Run]:
        def build() -> Run:
            with (
                contextlib.nullcontext()
                if pinned
                else patch.object(BatchSlot, "_pinned", lambda lane, tensor: tensor)
            ):
                return units_of(patches, ladder(network, device, size, (mode,)), threads)

        return build

    arms = {
        "plain: one batch after the other": rung("plain"),
        "overlap, from pageable memory": rung("overlap", pinned=False),
        "overlap, from pinned memory": rung("overlap"),
        "CUDA graphs": rung("graphs"),
        WHOLE: rung("graphs", UNITS_IN_FLIGHT),
    }
    if device == "cpu":  # where nothing is pinned
        del arms["overlap, from pageable memory"], arms["CUDA graphs"]
        arms[WHOLE] = rung("overlap", UNITS_IN_FLIGHT)
    return arms


@torch.inference_mode()
def rates(arms: Arms, images: int, rounds: int, seconds: float) -> tuple[dict, dict]:
    """Return the images/s of every round by arm, and the arms' answers, or the exception of an arm that
    cannot run."""
    times, answers = {}, {}
    for arm, build in arms.items():
        try:
            run = build()
            answers[arm] = run(1)  # warm
        except Exception as error:  # most often an error of a compiler: the other arms continue
            answers[arm] = error
            continue
        begin = time.perf_counter()
        run(1)
        times[arm] = run, max(1, math.ceil(seconds / (time.perf_counter() - begin)))
    found: dict[str, list[float]] = {arm: [] for arm in times}
    for number in range(rounds):
        names = list(times)
        for arm in names[number % len(names) :] + names[: number % len(names)]:
            run, count = times[arm]
            begin = time.perf_counter()
            run(count)
            found[arm].append(images * count / (time.perf_counter() - begin))
    return found, answers


def figures(part: str, name: str, arm: str, found: list[float], peak: float, size: int) -> dict[str, Any]:
    rate = statistics.median(found)
    tflops = rate * 2 * macs(variant(name)) / 1e12
    row = {
        "part": part,
        "model": name,
        "arm": arm,
        "images_per_second": round(rate, 1),
        "tflops": round(tflops, 3),
    }
    return row | {"share_of_peak": round(tflops / peak, 3), "batch_size": size, "rounds": len(found)}


def compared(  # noqa: PLR0913  (each is a column of the table or decides one)
    name: str,
    arms: Arms,
    before: dict[str, str],
    images: int,
    rounds: int,
    peak: float,
    size: int,
    seconds: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """Time arms beside each other, one row each.

    Args:
        before: by arm, the arm that it is compared with.
    """
    found, answers = rates(arms, images, rounds, seconds)
    first = answers[next(iter(arms))]
    for arm, answer in answers.items():
        if isinstance(answer, Exception):
            told = f"{type(answer).__name__}: {str(answer).strip().partition(chr(10))[0]}"
            yield {"part": "gains", "model": name, "arm": arm, "note": told[:200]}
            continue
        row = figures("gains", name, arm, found[arm], peak, size)
        if (other := before.get(arm)) in found:
            ratio = statistics.median(mine / its for mine, its in zip(found[arm], found[other], strict=True))
            row |= {"beside": other, "times_beside": round(ratio, 3)}
        if not isinstance(first, Exception):
            row["difference"] = f"{np.abs(answer['scores'][:, 0] / first['scores'][:, 0] - 1).max():.2g}"
        yield row


def pixels(device: str) -> torch.Tensor:
    """Return the patches of two units, in host memory."""
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2 * UNIT[device], *SHAPE), dtype=np.uint8)
    )


def random_model(name: str, device: str) -> VisionTransformer:
    """Make a model whose classes do not all tie."""
    with torch.device(device):
        model = VisionTransformer(variant(name)).eval()
    nn.init.normal_(model.head.weight, std=0.05)
    return model


def prepared(model: VisionTransformer, device: str) -> nn.Module:
    """Prepare a model as an actor does."""
    return prepare(model, Preprocessing(), PRECISION[device], device)


def forward(name: str, device: str, rounds: int, peak: float) -> Iterator[dict[str, Any]]:
    """Measure the whole path of an actor without Ray, and the model alone."""
    patches, network = pixels(device), prepared(random_model(name, device), device)
    batches = ladder(network, device, BATCH[device])
    found, answers = rates({WHOLE: lambda: units_of(patches, batches)}, len(patches), rounds, seconds=3)
    if isinstance(answers[WHOLE], Exception):
        raise answers[WHOLE]
    way = {"mode": batches.mode, "note": "; ".join(batches.notes)}
    yield (
        figures("forward", name, WHOLE, found[WHOLE], peak, batches.batch_size)
        | {"goal": GOALS.get(name)}
        | way
    )
    with torch.inference_mode():
        alone = [batches.current.rate(16) for _ in range(rounds)]
    yield figures("forward", name, "no copies", alone, peak, batches.batch_size) | way


def climbed(
    name: str, device: str, rounds: int, peak: float, seconds: float = 1.0
) -> Iterator[dict[str, Any]]:
    """Measure the gain of each rung of the ladder, and nothing else of `gains`."""
    patches, folded = pixels(device), prepared(random_model(name, device), device)
    size = ladder(folded, device, BATCH[device]).batch_size
    arms = rungs(folded, patches, device, size)
    yield from compared(name, arms, one_after_the_other(arms), len(patches), rounds, peak, size, seconds)


def one_after_the_other(arms: Arms) -> dict[str, str]:
    """Return, for each arm, the arm before it."""
    return {arm: other for other, arm in pairwise(arms)}


def gains(name: str, device: str, rounds: int, peak: float) -> Iterator[dict[str, Any]]:
    """Measure the gain of each step, from float32 images to the whole path, and the rates of other code."""
    import timm  # here: what is above needs none

    from benchmarks.model import TIMM

    with torch.device(device):
        theirs, ours = timm.create_model(TIMM[name]).eval(), VisionTransformer(variant(name)).eval()
    nn.init.normal_(theirs.head.weight, std=0.05)
    ours.load_state_dict(theirs.state_dict())  # all arms have the same weights
    patches = pixels(device)
    images = ((unpatchify(patches, (14, 14), 16) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous()
    half, folded = copy.deepcopy(ours).bfloat16(), prepared(ours, device)
    size = ladder(folded, device, BATCH[device]).batch_size

    def plain(whole: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Run]:
        return lambda: in_turn(whole, size, lambda part: top5(network(part.to(device, non_blocking=True))))

    arms = {FIRST: plain(images, ours), "bf16, images": plain(images, lambda part: half(part.bfloat16()))}
    arms |= rungs(folded, patches, device, size)
    before = one_after_the_other(arms)
    if device == "cuda":
        packed = images.to(torch.bfloat16, memory_format=torch.channels_last).pin_memory()
        last = copy.deepcopy(theirs).to(torch.bfloat16, memory_format=torch.channels_last)
        fast = copy.deepcopy(last)
        fast.compile(dynamic=False)
        for mode in ("default", "max-autotune-no-cudagraphs"):
            network = prepared(ours, device)
            network.compile(fullgraph=True, dynamic=False, mode=mode)
            arms[f"whole path, compiled: {mode}"] = lambda network=network: units_of(
                patches, ladder(network, device, size)
            )
        arms["timm bf16, channels-last"] = plain(packed, last)
        arms["timm bf16, channels-last, compiled"] = plain(packed, fast)
        before |= {arm: WHOLE for arm in arms if arm not in before and arm != FIRST}
    yield from compared(name, arms, before, len(patches), rounds, peak, size)


# ---- the labeler -------------------------------------------------------------------------------------------


def decoding(images: list[bytes], ready: threading.Barrier, seconds: float) -> float:
    """Return the images/s of this process and its child, while the other processes do the same."""
    from benchmarks.decode import SETTINGS, unit_of
    from wordsworth.pipeline.images.decode import decode_unit
    from wordsworth.pipeline.images.resize import end_warm_up
    from wordsworth.pipeline.images.sandbox import Sandbox

    end_warm_up()
    sandbox, unit, times = Sandbox(SETTINGS.sandbox_settings), unit_of(images), 0
    decode_unit(copy.copy(unit), SETTINGS, sandbox=sandbox)  # warm
    ready.wait()
    begin = time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        decode_unit(copy.copy(unit), SETTINGS, sandbox=sandbox)
        times += 1
    sandbox.close()
    return times * len(images) / spent


def decode_rate(images: list[bytes], cores: int, seconds: float = 5.0) -> float:
    """Return the images/s of all cores at once."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(cores, mp_context=context) as pool:
        return sum(pool.map(decoding, [images] * cores, [manager.Barrier(cores)] * cores, [seconds] * cores))


class Busy(threading.Thread):
    """Look twice a second at the share of the last moments in which any kernel ran: (time, percentage)."""

    def __init__(self):
        super().__init__(daemon=True)
        self.by, self.look, self.seen, self.ended = "pynvml", torch.cuda.utilization, [], threading.Event()
        try:
            self.look()
        except Exception:  # there is no pynvml, or it does not know this GPU
            self.by, self.look = "nvidia-smi", self._asked
        self.start()

    def _asked(self) -> float:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        command = ["nvidia-smi", "-i", gpu, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        return float(subprocess.check_output(command, text=True))

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.seen.append((time.time(), self.look()))

    def share(self, begin: float, end: float) -> float:
        """Return the share between two times. After this call, nobody looks any more."""
        self.ended.set()
        self.join()
        return round(
            statistics.fmean(
                [percent / 100 for at, percent in self.seen if begin <= at <= end] or [math.nan]
            ),
            3,
        )


def link_shards(shards: Path, folder: Path, copies: int) -> Path:
    """Make a folder with many links to each shard; the disk holds each shard once."""
    folder.mkdir(parents=True)
    for copy_number in range(copies):
        for shard in shards.iterdir():
            os.link(shard, folder / f"{copy_number:03d}-{shard.name}")
    return folder


def through_ray(command: list[str], out: Path, floor: float, device: str) -> dict[str, Any]:
    """Run a labeling command, and return its rate, the rate as a share of the floor, and how busy the GPU
    was."""
    from benchmarks import label as labeler  # here: what is above needs no Ray

    busy = Busy() if device == "cuda" else None
    ran = labeler.run(command)
    done = labeler.done_by_file(out, ran["begin"])
    begin, end = next(at for at, count in done if count >= done[-1][1] / 4), done[-1][0]
    row, summary = labeler.figures(done, ran), json.loads((out / "_run" / "summary.json").read_text())
    steady, last = row.pop("steady_images_per_second"), summary["last_command"]
    found = {"images_per_second": steady, "share_of_floor": round(steady / floor, 3), "goal": FLOOR_GOAL}
    found["steady_seconds"] = round(end - begin, 1)
    if busy:
        found |= {"gpu_busy": busy.share(ran["begin"] + begin, ran["begin"] + end), "busy_by": busy.by}
    how = last.get("gpu") or {"modes": {}, "batch_sizes": {}, "notes": []}
    found |= {
        "mode": " ".join(how["modes"]),
        "batch_size": " ".join(how["batch_sizes"]),
        "note": "; ".join(how["notes"]),
    }
    found["bottleneck"] = last.get("bottleneck")
    return found | {"errors": sum(summary["errors"].values())} | row


def label(
    models: tuple[str, ...], photographs: Path | None, rounds: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Measure the command on a GPU, beside the rates of decoding and of the model alone."""
    from benchmarks import label as labeler
    from wordsworth.vit_model.checkpoint import random_checkpoint
    from wordsworth.vit_model.model_folder import save_folder

    images = labeler.photographs(photographs, 1000)
    decoded = decode_rate(images[:64], labeler.cores())
    shards = labeler.write_shards(folder / "shards", images, labeler.SHARDS * SHARD)
    for number, name in enumerate(models):
        rate = next(forward(name, "cuda", rounds, math.inf))["images_per_second"]
        torch.cuda.empty_cache()  # the labeler is next
        floor = min(decoded, rate)
        source, out, model = (folder / f"{what}-{number}" for what in ("in", "out", "model"))
        link_shards(shards, source, math.ceil(floor * STEADY / 0.75 / (labeler.SHARDS * SHARD)))
        save_folder(model, random_checkpoint(variant(name), Preprocessing(), 0))
        command = [*labeler.ours(source, out, model, "bf16"), "--device", "cuda"]
        row = {
            "part": "label",
            "model": name,
            "arm": "wordsworth label",
            **through_ray(command, out, floor, "cuda"),
        }
        row |= {"decode_images_per_second": round(decoded, 1), "forward_images_per_second": rate}
        yield row | {"data": photographs.name if photographs else "generated"}


# ---- everything --------------------------------------------------------------------------------------------


def measured(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    found = list(peaks(options.device)) if options.only != ["label"] else []
    peak = max((row["tflops"] for row in found), default=math.nan)
    yield from found if "peak" in options.only else ()
    for part, measure in (("forward", forward), ("gains", gains)):
        for name in options.models or MODELS if part in options.only else ():
            yield from measure(name, options.device, options.rounds, peak)
            torch.compiler.reset()  # it compiles one function for a few models and not for more
            torch.cuda.empty_cache()
    if "label" in options.only and options.device == "cuda":
        yield from label(options.models or LABELLED, options.folder, options.rounds, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "no CUDA GPU that torch can use: run this on a machine with one, or try it with --device cpu"
        )
    if options.device == "cpu":
        print(
            "left out on a CPU: label, and of the gains graphs, pinned memory, torch.compile and timm",
            file=sys.stderr,
        )
    torch.set_num_threads(1)  # as Ray has it in an actor
    output, here = options.output or (CSV if options.device == "cuda" else None), machine()
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        for row in measured(options, Path(folder)):
            row["machine"] = here
            print(
                {name: value for name, value in row.items() if value not in (None, "") and name != "machine"},
                flush=True,
            )
            if output:
                merge_rows(output, [row])


if __name__ == "__main__":
    main()
