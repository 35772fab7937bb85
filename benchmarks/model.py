"""Measure the model's forward pass beside timm's, in turn within one process.

    python -m benchmarks.model [--variants B/16 S/16] [--rounds 15] [--batch-size 8] [--device cpu]

Expected: fp32 at most 1.02 of timm's time (the same products, a linear patch embedding in place of a
convolution); uint8 patches in bf16 at least 1.7 times as fast as timm in fp32 where the CPU has AVX512-BF16.

Every round times each arm once, in an order that turns. A ratio is the median over the rounds of timm's time
divided by the arm's in the same round. logits_off: the root of the mean square by which the logits of an arm
differ from timm's in fp32, in standard deviations of those.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from benchmarks.machine import machine, write_rows
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.cost import macs, num_params
from wordsworth.vit_model.inference import prepare
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.patches import patchify
from wordsworth.vit_model.variants import variant

TIMM = {"Ti/16": "vit_tiny_patch16_224", "S/16": "vit_small_patch16_224", "B/16": "vit_base_patch16_224"}
TIMM |= {"L/16": "vit_large_patch16_224", "B/32": "vit_base_patch32_224", "R50+B/16": "vit_base_r50_s16_224"}
FIELDS = (
    "variant",
    "arm",
    "images_per_second",
    "step_ms",
    "times_timm_fp32",
    "batch_size",
    "rounds",
    "image_size",
    "parameters",
)
FIELDS += ("gmacs", "peak_mib", "logits_off", "machine")


def arms(name: str, batch_size: int, device: str) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the arms, which all have the same weights and get the same images."""
    theirs = timm.create_model(TIMM[name]).eval().to(device)
    ours = VisionTransformer(variant(name)).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randint(0, 256, (batch_size, 224, 224, 3), dtype=torch.uint8)
    images = ((pixels / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous().to(device)
    patches = patchify(pixels, ours.config.patch_size).contiguous().to(device)
    fp32, bf16 = (prepare(ours, Preprocessing(), precision, device) for precision in ("fp32", "bf16"))
    half, model = timm.create_model(TIMM[name]).eval().to(device, torch.bfloat16), ours.to(device)
    half.load_state_dict(theirs.state_dict())
    return {
        "timm fp32, images": lambda: theirs(images),
        "ours fp32, images": lambda: model(images),
        "ours fp32, uint8 patches": lambda: fp32(patches)[0],
        "timm bf16, images": lambda: half(images.bfloat16()),
        "ours bf16, uint8 patches": lambda: bf16(patches)[0],
    }


@torch.inference_mode()
def measure(name: str, rounds: int, batch_size: int, device: str) -> list[dict]:
    timed = arms(name, batch_size, device)
    seconds: dict[str, list[float]] = {arm: [] for arm in timed}
    logits = {arm: call().float() for arm, call in timed.items()}  # this warms too
    exact = logits["timm fp32, images"]
    off = {arm: (found - exact).square().mean().sqrt() / exact.std() for arm, found in logits.items()}
    for number in range(rounds):
        names = list(timed)
        for arm in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            timed[arm]()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[arm].append(time.perf_counter() - start)
    baseline, config = seconds["timm fp32, images"], variant(name)
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    return [
        {
            "variant": name,
            "arm": arm,
            "images_per_second": round(batch_size / statistics.median(times), 2),
            "step_ms": round(1000 * statistics.median(times), 1),
            "times_timm_fp32": round(
                statistics.median(b / t for b, t in zip(baseline, times, strict=True)), 3
            ),
            "batch_size": batch_size,
            "rounds": rounds,
            "image_size": 224,
            "parameters": num_params(config),
            "gmacs": round(macs(config) / 1e9, 2),
            "peak_mib": round(peak),
            "logits_off": round(off[arm].item(), 5),
            "machine": machine(),
        }
        for arm, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=TIMM, default=["B/16", "S/16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    rows = []
    for name in options.variants:
        for row in measure(name, options.rounds, options.batch_size, options.device):
            print(
                f"{row['variant']:9} {row['arm']:26} {row['images_per_second']:8} images/s  "
                f"{row['times_timm_fp32']:6} x timm fp32"
            )
            rows.append(row)
    write_rows(options.output, rows, FIELDS)


if __name__ == "__main__":
    main()
