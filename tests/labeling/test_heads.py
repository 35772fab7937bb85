"""Heads of every kind through the command: the rows have the scores that transformers gives."""

import json
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image

from tests.support.builders import photo, write_tar
from wordsworth.jobs.cli import run
from wordsworth.pipeline.images.decode import crop_for_evaluation
from wordsworth.vit_model.foreign.load import from_folder

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.ray]

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
NAMES = {1: "ant", 2: "bee", 3: "cat", 4: "dog", 5: "elk"}  # as many files have them: from 1 on
IMAGES = 9


def save(folder: Path, **about) -> transformers.ViTForImageClassification:
    """Write a folder of transformers, every parameter random, and return the model."""
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZE, **about)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        theirs.classifier.weight.mul_(5)
    theirs.save_pretrained(folder)
    return theirs


def logits_of(theirs, folder: Path, data: bytes) -> torch.Tensor:
    """Return what transformers' model gives for an image, on the crop that the labeler makes."""
    ours = from_folder(folder)
    pixels = crop_for_evaluation(Image.open(BytesIO(data)), ours.preprocessing, ours.config.image_size)
    mean, std = torch.tensor(ours.preprocessing.mean), torch.tensor(ours.preprocessing.std)
    images = ((torch.from_numpy(pixels.copy()) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        return theirs(pixel_values=images).logits[0]


@pytest.fixture
def shards(tmp_path) -> Path:
    images = {f"{number}.jpg": photo(number) for number in range(IMAGES)}
    write_tar(tmp_path / "in" / "a.tar", images | {"bad.jpg": photo(0)[:700]})
    return tmp_path / "in"


def rows(out: Path) -> dict[str, dict]:
    return {row["key"]: row for row in pq.read_table(out / "predictions").to_pylist()}


def label(shards: Path, out: Path, model: Path, *more: str) -> int:
    asked = ["--output", str(out), "--model", str(model), "--precision", "fp32", *more]
    return run(["label", str(shards), *asked])


def test_a_multi_label_model_of_transformers_gives_its_labels_and_is_resumed(tmp_path, shards, capfd):
    theirs = save(tmp_path / "model", num_labels=5, problem_type="multi_label_classification")
    about = json.loads((tmp_path / "model" / "config.json").read_text())
    about |= {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(about))
    out = tmp_path / "out"
    assert label(shards, out, tmp_path / "model", "--limit", "4") == 0
    said = capfd.readouterr().err
    assert "scores are sigmoids, of each class for itself: problem_type is multi_label" in said
    assert "id2label counts from 1 to 5 for 5 classes" in said
    assert label(shards, out, tmp_path / "model", "--threshold", "0.6") == 1
    assert "threshold was 0.5 and is 0.6" in capfd.readouterr().err
    assert label(shards, out, tmp_path / "model") == 0
    found = rows(out)
    assert len(found) == IMAGES + 1
    bad = found.pop("bad")
    assert bad["error"] and bad["labels"] is bad["topk"] is bad["score"] is None
    names = list(NAMES.values())
    counts = set()
    for key, row in found.items():
        scores = logits_of(theirs, tmp_path / "model", photo(int(key))).sigmoid()
        order = scores.argsort(descending=True).tolist()
        expected = [(number, names[number]) for number in order if scores[number] >= 0.5]
        assert [(one["label_id"], one["label"]) for one in row["labels"]] == expected
        assert [one["label_id"] for one in row["topk"]] == order
        for entries in (row["labels"], row["topk"]):
            torch.testing.assert_close(
                torch.tensor([one["score"] for one in entries]),
                scores[order[: len(entries)]],
                atol=1e-5,
                rtol=0,
            )
        assert row["score"] == row["topk"][0]["score"] and row["label"] == names[order[0]]
        softmax = logits_of(theirs, tmp_path / "model", photo(int(key))).softmax(-1)
        assert abs(row["score"] - float(softmax.max())) > 1e-3
        counts.add(len(expected))
    assert len(counts) > 1
    asked = json.loads((out / "_run" / "plan.json").read_text())["asked"]
    assert (asked["head"], asked["threshold"]) == ("sigmoid", 0.5)
    for path in (out / "predictions").iterdir():
        footer = json.loads(pq.read_schema(path).metadata[b"wordsworth"])
        assert (footer["head"], footer["threshold"]) == ("sigmoid", 0.5)
    assert run(["verify", str(out), "--source"]) == 0
    assert run(["compact", str(out), "--output", str(tmp_path / "large")]) == 0
    assert run(["verify", str(tmp_path / "large"), "--source"]) == 0
    (large,) = (tmp_path / "large" / "compacted").iterdir()
    assert pq.read_table(large).sort_by("key").equals(pq.read_table(out / "predictions").sort_by("key"))


def test_a_regression_gives_its_value(tmp_path, shards):
    theirs = save(tmp_path / "model", num_labels=1, problem_type="regression")
    assert label(shards, tmp_path / "out", tmp_path / "model", "--embeddings") == 0
    found = rows(tmp_path / "out")
    assert found.pop("bad")["value"] is None
    values = []
    for key, row in found.items():
        expected = logits_of(theirs, tmp_path / "model", photo(int(key)))
        torch.testing.assert_close(torch.tensor([row["value"]]), expected, atol=1e-5, rtol=0)
        values.append(row["value"])
        assert "label" not in row and "topk" not in row and len(row["embedding"]) == 32
    assert max(values) - min(values) > 1e-3 and max(map(abs, values)) > 1e-3
    assert run(["verify", str(tmp_path / "out"), "--source"]) == 0


def test_a_model_with_one_output_does_not_give_1_to_every_image(tmp_path, shards):
    theirs = save(tmp_path / "model", num_labels=1)
    assert label(shards, tmp_path / "out", tmp_path / "model") == 0
    found = rows(tmp_path / "out")
    del found["bad"]
    for key, row in found.items():
        expected = float(logits_of(theirs, tmp_path / "model", photo(int(key))).sigmoid())
        assert row["score"] == pytest.approx(expected, abs=1e-5) and row["score"] < 1
        assert len(row["labels"]) == (expected >= 0.5)


def test_labels_of_images_that_failed_are_filled_in_by_another_try(tmp_path):
    save(tmp_path / "model", num_labels=5, problem_type="multi_label_classification")
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(photo(number))
        (folder / f"{number}.txt").write_text(f"kept {number}")
    (folder / "1.jpg").unlink()
    (folder / "1.jpg").symlink_to(tmp_path / "away")
    out = tmp_path / "out"
    keep = ("--threshold", "0", "--keep", "txt=value")
    label(folder, out, tmp_path / "model", *keep)
    before = rows(out)
    assert before["1.jpg"]["error"] == "not_found" and before["1.jpg"]["labels"] is None
    (tmp_path / "away").write_bytes(photo(1))
    assert label(folder, out, tmp_path / "model", *keep, "--retry-errors") == 0
    after = rows(out)
    assert [len(row["labels"]) for row in after.values()] == [5, 5, 5]
    assert after["1.jpg"]["value"] == "kept 1"  # a sidecar under the name of a prediction
    assert after["0.jpg"] == before["0.jpg"]
    assert run(["verify", str(out)]) == 0
