"""An image's label depends on the image: not on its batch, the number of workers, or an interruption."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.builders import write_shards
from tests.support.labelling import run
from wordsworth.pipeline.labeling import model_setup
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.usefixtures("local_ray")

SETTINGS = {
    "embedding": "float32",
    "unit_rows": 64,
}  # a full batch of the largest size, and a short one, in each shard


@pytest.fixture(scope="module")
def model(small_model):
    return load_folder(small_model)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("determinism") / "shards"
    write_shards(folder, shards=2, images=70)
    return folder


@pytest.fixture(scope="module")
def usual(tmp_path_factory, model, shards) -> Path:
    """A run of the usual batch size and one predictor that nothing disturbed."""
    place = tmp_path_factory.mktemp("usual")
    run(place, model, shards, batch_size=8, **SETTINGS)
    return place / "out"


def files(out: Path) -> list[Path]:
    return sorted((out / "predictions").glob("*.parquet"))


def same(out: Path, usual: Path) -> bool:
    """The same rows: the labels exactly, scores and embeddings but for the order of sums."""
    one, other = (pq.read_table(folder / "predictions").sort_by("key") for folder in (out, usual))
    exact = [
        "key",
        "shard",
        "index",
        "offset",
        "size",
        "width",
        "height",
        "label_id",
        "label",
        "error",
        "error_detail",
    ]
    assert one.num_rows == other.num_rows == 140 and one.select(exact).equals(other.select(exact))
    a, b = (np.stack(table["embedding"].to_numpy()).astype(np.float64) for table in (one, other))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() >= 0.9999, f"cosine {cosine.min()}"
    assert np.allclose(one["score"].to_numpy(), other["score"].to_numpy(), atol=1e-5)
    assert len(set(one["label"].to_pylist())) > 1, "all images have one label: this would show nothing"
    return True


@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_size_of_a_batch_changes_no_label(tmp_path, model, shards, usual, batch_size):
    run(tmp_path, model, shards, batch_size=batch_size, **SETTINGS)
    assert same(tmp_path / "out", usual)


def test_two_predictors_label_as_one_does(tmp_path, model, shards, usual, monkeypatch):
    plan, planned = model_setup.plan_resources, []

    def two(*args):
        one = plan(*args)
        planned.append(one.predictors)
        return replace(one, predictors=2, predict={**one.predict, "memory": one.predict["memory"] // 2})

    monkeypatch.setattr(model_setup, "plan_resources", two)
    run(tmp_path, model, shards, batch_size=8, **SETTINGS)
    assert set(planned) == {1} and same(tmp_path / "out", usual)


def test_a_resumed_run_is_the_run_that_was_never_interrupted(tmp_path, model, shards, usual):
    out = shutil.copytree(usual, tmp_path / "out")
    first, _, _, last = files(out)
    kept = {path: path.stat().st_mtime_ns for path in files(out) if path not in (first, last)}
    for path in (
        first,
        last,
        out / "_run" / "summary.json",
        out / "_run" / "manifest.parquet",
    ):  # as a kill leaves it
        path.unlink()
    run(tmp_path, model, shards, batch_size=8, **SETTINGS)
    assert same(out, usual) and len(files(out)) == 4 and verify(str(out), source=True).ok
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was there was done again"
