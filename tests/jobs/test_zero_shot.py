"""Label with classes that are texts, through the commands: a tiny CLIP that has learned coloured shapes."""

import io
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from tests.jobs.test_resume import finished_shards, kill, start
from tests.support.builders import write_tar
from tests.support.dual_encoders import SIDE, save_clip

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COLOURS = {
    "red circle": (220, 40, 40),
    "green square": (40, 200, 60),
    "blue circle": (50, 70, 220),
    "yellow square": (230, 220, 40),
}
CLASSES = list(COLOURS)
SHARDS, IMAGES = 24, 6
PROMPT = "a photo of a {}"


def drawing(name: str, seed: int) -> Image.Image:
    """Draw a shape of some size at some place, on grey noise."""
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(90, 160, (SIDE, SIDE, 3), dtype=np.uint8))
    side = int(generator.integers(14, 22))
    x, y = (int(v) for v in generator.integers(1, SIDE - side - 1, 2))
    draw = ImageDraw.Draw(image)
    outline = draw.ellipse if name.endswith("circle") else draw.rectangle
    outline((x, y, x + side, y + side), fill=COLOURS[name])
    return image


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def train(folder: Path) -> None:
    """Train a tiny CLIP on the shapes for some seconds, and write it as transformers does."""
    from transformers import CLIPImageProcessor, CLIPTokenizer

    model = save_clip(folder)
    tokens = CLIPTokenizer.from_pretrained(folder)(
        [PROMPT.format(name) for name in CLASSES], padding=True, return_tensors="pt"
    )
    processor = CLIPImageProcessor.from_pretrained(folder)
    numbers = torch.arange(24 * len(CLASSES)) % len(CLASSES)
    drawings = [drawing(CLASSES[number], seed) for seed, number in enumerate(numbers.tolist(), 10**6)]
    pixels = processor(drawings, return_tensors="pt")["pixel_values"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(40):
        batch = torch.randperm(len(numbers), generator=generator)[:32]
        logits = model(pixel_values=pixels[batch], **tokens).logits_per_image
        F.cross_entropy(logits, numbers[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> tuple[Path, dict[str, Image.Image]]:
    """The folder of the shards, and each image by its key, whose folder is the class."""
    folder = tmp_path_factory.mktemp("shapes")
    images = {}
    for shard in range(SHARDS):
        members = {}
        for number in range(IMAGES):
            name = CLASSES[(shard + number) % len(CLASSES)]
            key = f"{name.replace(' ', '_')}/{shard:03d}-{number}"
            images[key] = drawing(name, shard * IMAGES + number)
            members[f"{key}.png"] = as_png(images[key])
            members[f"{key}.cls"] = name.encode()
        write_tar(folder / f"part-{shard:03d}.tar", members)
    return folder, images


def library_labels(clip: Path, images: dict[str, Image.Image]) -> dict[str, tuple[str, float]]:
    """Return the best label and its score, as transformers' own pipeline has them."""
    import transformers

    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(clip))
    told = pipeline(
        list(images.values()), candidate_labels=CLASSES, hypothesis_template=PROMPT, batch_size=32
    )
    return {key: (best[0]["label"], best[0]["score"]) for key, best in zip(images, told, strict=True)}


def rows_of(output: Path) -> list[dict]:
    return pq.read_table(output / "predictions").to_pylist()


@pytest.mark.long  # with a model of our own: tests/faults/test_cluster_killed.py, and test_resume.py (long)
def test_a_run_that_was_killed_has_the_labels_of_the_library(clip, shapes, tmp_path, wordsworth):
    source, images = shapes
    output = tmp_path / "out"
    asked = ["--model", str(clip), "--classes", ",".join(CLASSES), "--precision", "fp32"]
    command = [sys.executable, "-m", "wordsworth", "label", str(source), "--output", str(output), *asked]
    began = time.time()
    process = start(command, {}, tmp_path / "log")
    while not finished_shards(output) and process.poll() is None and time.time() < began + 240:
        time.sleep(0.02)
    assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
    kill(process)
    kept = len(finished_shards(output))
    assert 0 < kept < SHARDS

    again = wordsworth("label", source, "--output", output, *asked)
    assert again.returncode == 0, again.stderr
    rows = rows_of(output)
    assert Counter(row["key"] for row in rows) == Counter(images.keys())
    expected = library_labels(clip, images)
    for row in rows:
        label, score = expected[row["key"]]
        assert row["label"] == label and row["score"] == pytest.approx(score, abs=1e-4)
    right = sum(row["label"].replace(" ", "_") == row["key"].split("/")[0] for row in rows)
    assert right > 0.9 * len(rows), "the tiny CLIP has learned nothing"
    proof = wordsworth("verify", output, "--source")
    assert proof.returncode == 0, proof.stdout + proof.stderr

    # The converted model needs no text tower, and its rows may join the run: it has the same fingerprint.
    made = wordsworth("convert", clip, "--classes", ",".join(CLASSES), "--output", tmp_path / "ours")
    assert made.returncode == 0, made.stderr
    same = wordsworth(
        "label", source, "--output", output, "--model", tmp_path / "ours", "--precision", "fp32"
    )
    assert same.returncode == 0, same.stderr
    other = wordsworth("label", source, "--output", output, *asked[:3], "red circle,blue square")
    assert other.returncode == 1 and "Traceback" not in other.stderr


@pytest.mark.long  # names as classes are those of any model: tests/labeling/test_evaluate.py
def test_evaluate_finds_the_classes_by_their_names(clip, shapes, tmp_path, wordsworth):
    import json

    source, _ = shapes
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(CLASSES))
    found = wordsworth(
        "evaluate", source, "--model", clip, "--classes", f"@{path}", "--target", "cls", "--json"
    )
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["images"] == SHARDS * IMAGES and told["top1"] > 0.9


def test_what_the_commands_refuse_is_one_line(clip, tmp_path, wordsworth):
    def refused(*arguments) -> str:
        done = wordsworth(*arguments)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        return " ".join(done.stderr.split())

    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    base = [tmp_path / "a.png", "--output", tmp_path / "out", "--model", clip]
    assert "--classes" in refused("label", *base) and "wordsworth embed" in refused("label", *base)
    assert "do not depend on classes" in refused("embed", *base, "--classes", "a,b")
    assert "has no option --classes" in refused("finetune", *base, "--classes", "a,b")
    assert "leave --labels out" in refused("label", *base, "--classes", "a,b", "--labels", "x")
    assert "--prompt needs --classes" in refused("label", *base, "--prompt", "a {}")
    assert not (tmp_path / "out").exists()
