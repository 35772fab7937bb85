"""Try every model of timm's: does our own ViT run it, does timm's module, or is it refused and why.

    python -m benchmarks.model_coverage [--families convnext swin_transformer ...] [--table docs/models.md]

Expected: at least 95% of timm's pretrained classifiers label. Nothing is downloaded. Every pretrained tag
counts as a model, and every architecture without one. A model counts as a classifier if its tag has
classes and is no CLIP tower (`is_projection`). What decides is what `--model timm:NAME` does: the configs and
a forward pass on torch's meta device, which knows shapes and no numbers. A small architecture of every
family that timm's module runs is computed in earnest too: every parameter and every statistic random, logits
beside those of timm's own `create_model(...)(images)`.

A family is a file of timm's. The CSV beside this file has a line for each model; --table writes a line for
each family into a page, between the markers that are there. Models that the CSV has for this version of timm
are not tried again: it takes an hour on a core, and goes on where it was stopped.
"""

import argparse
import collections
import csv
import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import nn

from benchmarks.machine import write_between, write_rows
from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.foreign.module import UnfilledParameters
from wordsworth.vit_model.foreign.timm import (
    TIMM_MODULES,
    NotOurs,
    build_net,
    is_projection,
    preprocessing_of,
    timm_config,
)
from wordsworth.vit_model.foreign.timm_module import described, load_timm_module
from wordsworth.vit_model.patches import patchify

FIELDS = ("name", "family", "kind", "way", "why", "difference", "timm")
BEGIN = "<!-- begin: python -m benchmarks.model_coverage -->"
END = "<!-- end -->"


def names() -> list[str]:
    """Return every pretrained tag, and every architecture without one."""
    tags = timm.list_pretrained()
    with_tag = {tag.split(".")[0] for tag in tags}
    return sorted({*tags, *(name for name in timm.list_models() if name not in with_tag)})


def family_of(name: str) -> str:
    """Return the file of timm's that a model is written in, such as "convnext"."""
    return timm.models.model_entrypoint(name.split(".")[0]).__module__.rpartition(".")[2]


def kind_of(name: str) -> str:
    """Return what a model's pretrained weights are for; "no weights" for an architecture alone."""
    cfg = timm.get_pretrained_cfg(name)
    if not cfg.has_weights:
        return "no weights"
    if not cfg.num_classes:
        return "embedder"
    return "CLIP tower" if is_projection(name, cfg.to_dict()) else "classifier"


def way_of(name: str) -> tuple[str, str]:
    """Return "ours", "timm" or "refused", and why it is refused."""
    try:
        if f"timm.models.{family_of(name)}" in TIMM_MODULES:
            our_config(name)
            return "ours", ""
    except NotOurs:
        pass
    except ModelError as error:
        return "refused", str(error)
    try:
        described(name)
    except ModelError as error:
        return "refused", str(error)
    return "timm", ""


def our_config(name: str) -> ViTConfig:
    """Return the config of a model for our own ViT. Raises ModelError where it does not run it."""
    preprocessing_of(name, timm.get_pretrained_cfg(name).to_dict())
    return timm_config(name)


def tried(families: list[str], before: dict[str, dict] | None = None) -> Iterator[dict]:
    """Yield a row for every model.

    Args:
        families: the families whose models are tried; all for an empty list.
        before: rows of an earlier attempt, by name: these models are not tried again.
    """
    before = before or {}
    known: dict[tuple, tuple[str, str]] = {}  # tags that differ in weights alone are tried once
    for name in names():
        family = family_of(name)
        if families and family not in families:
            continue
        if name in before:
            yield before[name]
            continue
        cfg = timm.get_pretrained_cfg(name).to_dict()
        what = [cfg.get(entry) for entry in ("num_classes", "input_size", "fixed_input_size", "crop_mode")]
        key = (name.split(".")[0], str(what), kind_of(name))
        if key not in known:
            known[key] = way_of(name)
        way, why = known[key]
        row = {"name": name, "family": family, "kind": kind_of(name), "way": way, "why": why}
        yield row | {"difference": "", "timm": timm.__version__}


def rows_before(path: Path) -> dict[str, dict]:
    """Return the rows that an earlier attempt wrote, by name: those of this version of timm."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file) if row["timm"] == timm.__version__}


@torch.no_grad()
def difference(name: str) -> float:
    """Return how far our logits, or embeddings, are from timm's, relative to the largest one."""
    theirs = randomised(timm.create_model(name))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder, "w.pth"))
        found = load_timm_module(name, Path(folder, "w.pth"))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, *found.config.image_size, 3), dtype=torch.uint8, generator=generator)
    mean, std = torch.tensor(found.preprocessing.mean), torch.tensor(found.preprocessing.std)
    expected = theirs(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    logits, embedding = found.for_inference("fp32", "cpu")(patchify(pixels, found.config.patch_size))
    return relative_difference(embedding if logits is None else logits, expected)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest expected number."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Make every parameter and every statistic of a BatchNorm random, and return the net in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return net.eval()


def smallest(rows: list[dict]) -> list[dict]:
    """Return the row of the smallest model of every family that timm's module runs, if none was computed."""
    done = {row["family"] for row in rows if row["difference"]}
    best: dict[str, tuple[int, dict]] = {}
    for row in rows:
        if row["way"] != "timm" or row["family"] in done:
            continue
        size = num_parameters(row["name"].split(".")[0])
        if row["family"] not in best or size < best[row["family"]][0]:
            best[row["family"]] = (size, row)
    return [row for _, row in best.values()]


@functools.cache
def num_parameters(architecture: str) -> int:
    with UnfilledParameters():
        return sum(parameter.numel() for parameter in build_net(architecture).parameters())


def table(rows: list[dict]) -> str:
    """Return a line for each family, and what is refused, as Markdown."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for row in rows:
        counts[row["family"]][row["way"]] += 1
        counts["all"][row["way"]] += 1
    lines = ["| family (file of timm's) | our own ViT | timm's module | refused |", "|---|---|---|---|"]
    for family, count in sorted(counts.items(), key=lambda item: (item[0] != "all", item[0])):
        numbers = [str(count[way] or "") for way in ("ours", "timm", "refused")]
        lines.append(f"| {family} | {' | '.join(numbers)} |")
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    for row in rows:
        if row["way"] == "refused":
            reasons[row["why"].replace(f"timm:{row['name']}", "it")].append(row["name"])
    lines.append("")
    for why, refused in sorted(reasons.items(), key=lambda item: -len(item[1])):
        lines.append(f'* Refused, "{why}": {", ".join(f"`{name}`" for name in refused)}')
    return "\n".join([summary(rows), "", *lines])


def summary(rows: list[dict]) -> str:
    """Return how many of timm's pretrained models run, as a sentence."""
    parts = []
    for kind, what in (
        ("classifier", "pretrained classifiers label"),
        ("embedder", "pretrained models without classes embed"),
        ("CLIP tower", "CLIP towers embed"),
        ("no weights", "architectures without pretrained weights run with a file"),
    ):
        ways = [row["way"] for row in rows if row["kind"] == kind]
        good = sum(way != "refused" for way in ways)
        parts.append(f"{good} of {len(ways)} {what}" + (f" ({good / len(ways):.1%})" if ways else ""))
    return f"timm {timm.__version__}: {'; '.join(parts)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=[])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    before = rows_before(options.output)
    rows = []
    for row in tried(options.families, before):
        rows.append(row)
        if row["name"] not in before:
            print(f"{time.strftime('%H:%M:%S')} {row['name']:60} {row['way']:8} {row['why']}", flush=True)
            write_rows(options.output, list((before | {row["name"]: row for row in rows}).values()), FIELDS)
    for row in smallest(rows):
        row["difference"] = f"{difference(row['name']):.1e}"
        print(f"{row['family']:30} {row['name']:50} {row['difference']}", flush=True)
        write_rows(options.output, list((before | {row["name"]: row for row in rows}).values()), FIELDS)
    if options.table:
        write_between(options.table, BEGIN, END, table(rows))
    print(summary(rows))


if __name__ == "__main__":
    main()
