"""Runs whose model is timm's own module: its labels and embeddings in exact rows, to the end and again."""

from io import BytesIO
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from benchmarks.model_coverage import randomised
from tests.support.builders import photo, write_shards
from tests.support.labelling import rows, run
from wordsworth.pipeline.images.decode import crop_for_evaluation
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.foreign.load import from_timm

pytestmark = pytest.mark.usefixtures("local_ray")

NAME = "test_convnext"


@pytest.fixture
def theirs() -> torch.nn.Module:
    return randomised(timm.create_model(NAME))


@pytest.fixture
def model(theirs: torch.nn.Module, tmp_path: Path):
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    return from_timm(NAME, tmp_path / "w.pth", lambda note: None)


def image_of(model, key: str) -> torch.Tensor:
    """Return an image of `write_shards` as timm's module takes it: (1, 3, H, W)."""
    shard, number = map(int, key.split("/"))
    image = Image.open(BytesIO(photo(shard * 100_000 + number, (96, 72))))
    pixels = torch.from_numpy(crop_for_evaluation(image, model.preprocessing, model.config.image_size).copy())
    mean, std = torch.tensor(model.preprocessing.mean), torch.tensor(model.preprocessing.std)
    return ((pixels / 255 - mean) / std).permute(2, 0, 1)[None]


@torch.no_grad()
def test_rows_have_timms_classes_and_scores_and_a_run_goes_on_with_the_same_model(tmp_path, model, theirs):
    write_shards(tmp_path / "shards", shards=1, images=5)
    run(tmp_path, model, tmp_path / "shards", top_k=3)
    first = {row["key"]: row for row in rows(tmp_path)}
    keys = write_shards(tmp_path / "two", shards=2, images=5)
    (tmp_path / "two" / "part-001.tar").rename(tmp_path / "shards" / "part-001.tar")
    run(tmp_path, model, tmp_path / "shards", top_k=3, update=True)
    found = {row["key"]: row for row in rows(tmp_path)}
    assert sorted(found) == sorted(keys) and all(found[key] == row for key, row in first.items())
    for key in keys:
        scores, ids = theirs(image_of(model, key)).softmax(-1)[0].topk(3)
        assert [entry["label_id"] for entry in found[key]["topk"]] == ids.tolist()
        assert [entry["score"] for entry in found[key]["topk"]] == pytest.approx(scores.tolist(), rel=1e-4)
        assert found[key]["label"] == model.labels[int(ids[0])]
    report = verify(str(tmp_path / "out"), source=True)
    assert report.ok, report.findings


@torch.no_grad()
def test_embeddings_are_timms_pre_logits(tmp_path, model, theirs):
    keys = write_shards(tmp_path / "shards", shards=1, images=3)
    run(tmp_path, model, tmp_path / "shards", command="embed", top_k=0, embedding="float32")
    found = {row["key"]: row["embedding"] for row in rows(tmp_path)}
    assert sorted(found) == sorted(keys)
    for key in keys:
        features = theirs.forward_features(image_of(model, key))
        expected = theirs.forward_head(features, pre_logits=True)[0]
        torch.testing.assert_close(torch.tensor(found[key]), expected, rtol=1e-4, atol=1e-5)
