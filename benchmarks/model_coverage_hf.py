"""Try every family of image models of transformers: our own ViT, transformers' class, or refused and why.

    python -m benchmarks.model_coverage_hf [--families swin convnext ...] [--table docs/models.md]

Expected: no difference above 1e-4. Nothing is downloaded: the models are tiny, every parameter is random, and
`save_pretrained` writes them. The difference is that of logits, or embeddings, from those of transformers,
relative to the largest number.

A family is a model_type. Families of transformers' lists without a tiny model here are "not tried".
--table writes a line for each family into a page, between the markers that are there.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from benchmarks.machine import write_between, write_rows
from tests.support.transformers_families import CLASSIFIERS, ENCODERS, OURS, blotches, randomised
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.load import from_folder
from wordsworth.vit_model.foreign.transformers_classes import class_for, their_config
from wordsworth.vit_model.patches import patchify

FIELDS = ("family", "class", "way", "why", "difference", "transformers")
BEGIN = "<!-- begin: python -m benchmarks.model_coverage_hf -->"
END = "<!-- end: model_coverage_hf -->"


def logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=images).logits


def tiny_models() -> list[tuple[type, Callable, int, Callable]]:
    """Return (class, config, image size, how its answer is read) of every tiny model."""
    classifiers = [(*entry, logits) for entry in CLASSIFIERS.values()]
    return [*classifiers, *ENCODERS.values(), *OURS.values()]


def tried(families: list[str]) -> Iterator[dict]:
    """Yield a row for each tiny model of the families; of all families for an empty list."""
    for kind, make_config, size, read in tiny_models():
        config = make_config()
        if families and config.model_type not in families:
            continue
        row = {"family": config.model_type, "class": kind.__name__, "transformers": transformers.__version__}
        yield row | way_of(kind, config, size, read)


@torch.no_grad()
def way_of(kind: type, config: Any, size: int, read: Callable) -> dict[str, str]:
    """Return which code runs a model, and how far its numbers are from transformers' own."""
    theirs = randomised(kind(config), read, size)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        try:
            found = from_folder(folder, lambda note: None)
        except ModelError as error:
            return {"way": "refused", "why": str(error).replace(folder, "it")}
    pixels = blotches(found.config.image_size[0])
    mean, std = torch.tensor(found.preprocessing.mean), torch.tensor(found.preprocessing.std)
    expected = read(theirs, ((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    scores, embedding = found.for_inference("fp32", "cpu")(patchify(pixels, found.config.patch_size))
    answer = embedding if scores is None else scores
    difference = float((answer - expected).abs().max() / expected.abs().max())
    return {
        "way": "ours" if isinstance(found, Checkpoint) else "transformers",
        "difference": f"{difference:.0e}",
    }


def not_tried(families: set[str]) -> Iterator[dict]:
    """Yield a row for each family of transformers' lists that is not among those."""
    listed: dict[str, Any] = {
        **MODEL_FOR_IMAGE_MAPPING_NAMES,
        **MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        **MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    for family, names in sorted(listed.items()):
        if family in families or family == "timm_wrapper":  # its config.json names timm's architecture
            continue
        name = names if isinstance(names, str) else names[0]
        row = {"family": family, "class": name, "way": "not tried", "transformers": transformers.__version__}
        about = {"model_type": family, "architectures": [name]}
        try:
            class_for(about, their_config(about, "it"), Path("it"))
        except ModelError as error:
            row |= {"way": "refused", "why": str(error)}
        yield row


def table(rows: list[dict]) -> str:
    """Return a line for each model that was tried, and the names of the others, as Markdown."""
    lines = ["| family (`model_type`) | class | runs as | difference |", "|---|---|---|---|"]
    for row in rows:
        if row.get("difference"):
            lines.append(f"| {row['family']} | `{row['class']}` | {row['way']} | {row['difference']} |")
    lines.append("")
    for row in rows:
        if row["way"] == "refused":
            lines.append(f"* `{row['class']}` is refused: {row['why']}")
    untried = ", ".join(row["family"] for row in rows if row["way"] == "not tried")
    lines.append(f"* Not tried here, but looked for in the same lists: {untried}")
    return "\n".join([summary(rows), "", *lines])


def summary(rows: list[dict]) -> str:
    """Return how many families run, as a sentence."""
    counts = {way: 0 for way in ("ours", "transformers", "refused", "not tried")}
    for row in rows:
        counts[row["way"]] += 1
    return (
        f"transformers {transformers.__version__}: {counts['ours']} classes run as our own ViT, "
        f"{counts['transformers']} by transformers' own class, {counts['refused']} are refused, "
        f"{counts['not tried']} were not tried."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=[])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    rows = []
    for row in tried(options.families):
        rows.append(row)
        print(f"{row['family']:25} {row['class']:45} {row['way']:12} {row.get('difference')}", flush=True)
    if not options.families:
        rows += not_tried({row["family"] for row in rows})
    write_rows(options.output, rows, FIELDS)
    if options.table:
        write_between(options.table, BEGIN, END, table(rows))
    print(summary(rows))


if __name__ == "__main__":
    main()
