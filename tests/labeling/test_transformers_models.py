"""Models of transformers that are no ViT, through the command: the rows have transformers' own scores."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image

from tests.support.builders import photo, write_tar
from tests.support.transformers_families import CLASSIFIERS, ENCODERS, randomised
from wordsworth.jobs.cli import run

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.ray]

IMAGES = 5
NAMES = ("ant", "bee", "cat", "dog", "elk")
SIZE = (90, 72)  # of the photographs: no margin of the crop is an odd number of pixels


@pytest.fixture
def shards(tmp_path) -> Path:
    images = {f"{number}.png": photo(number, SIZE, "PNG") for number in range(IMAGES)}
    write_tar(tmp_path / "in" / "a.tar", images)
    return tmp_path / "in"


def save(folder: Path, kind: type, config, processor) -> torch.nn.Module:
    """Write a folder of transformers, and return its model."""
    theirs = randomised(kind(config), lambda model, x: model(pixel_values=x), 32)
    theirs.save_pretrained(folder)
    processor.save_pretrained(folder)
    return theirs


def rows(out: Path) -> list[dict]:
    return pq.read_table(out / "predictions").to_pylist()


def as_transformers_sees(processor, number: str) -> torch.Tensor:
    image = Image.open(BytesIO(photo(int(number), SIZE, "PNG")))
    return processor(image, return_tensors="pt")["pixel_values"]


def test_a_convnext_labels_as_transformers_does(tmp_path, shards, capfd):
    kind, make_config, _ = CLASSIFIERS["convnext"]
    config = make_config()
    config.id2label = dict(enumerate(NAMES))
    processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.8)
    theirs = save(tmp_path / "model", kind, config, processor)
    out = tmp_path / "out"
    assert run(["label", str(shards), "--output", str(out), "--model", str(tmp_path / "model")]) == 0
    assert "transformers' ConvNextForImageClassification runs it" in capfd.readouterr().err
    found = rows(out)
    assert len(found) == IMAGES and len({row["score"] for row in found}) == IMAGES
    for row in found:
        with torch.no_grad():
            scores = theirs(pixel_values=as_transformers_sees(processor, row["key"])).logits.softmax(-1)[0]
        best = int(scores.argmax())
        assert (row["label_id"], row["label"]) == (best, NAMES[best])
        assert row["score"] == pytest.approx(float(scores[best]), abs=0.01)  # bf16, and a level of a pixel
    assert run(["verify", str(out)]) == 0


@pytest.mark.long  # in this process: tests/vit_model/foreign/test_transformers_module.py
def test_a_dinov3_embeds_as_transformers_does(tmp_path, shards):
    kind, make_config, _, read = ENCODERS["dinov3_vit"]
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    theirs = save(tmp_path / "model", kind, make_config(), processor)
    out = tmp_path / "out"
    asked = ["--output", str(out), "--model", str(tmp_path / "model"), "--precision", "fp32"]
    assert run(["embed", str(shards), *asked]) == 0
    found = rows(out)
    assert len(found) == IMAGES
    for row in found:
        with torch.no_grad():
            expected = read(theirs, as_transformers_sees(processor, row["key"]))[0].numpy()
        cosine = np.dot(row["embedding"], expected)
        cosine /= np.linalg.norm(row["embedding"]) * np.linalg.norm(expected)
        assert cosine > 0.9999  # a level of a pixel
    assert run(["verify", str(out)]) == 0
