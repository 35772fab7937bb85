"""A run whose model is of a hub: its commit is in the plan and in every footer, a moved branch is told."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.builders import make_model, write_shards
from tests.support.hub import Repository, serving_hub, use_hub
from tests.support.labelling import Watcher
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling import labeler
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.records import FOOTER_KEY
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.vit_model.model_folder import load_folder, save_folder

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.ray]

OLD = "a" * 39 + "1"
NEW = "b" * 39 + "2"


def label(model: str, out: Path, source: Path, **asked) -> None:
    checkpoint = load_model(model, note=lambda _: None)
    asked = {"command": "label", "precision": "fp32", "unit_rows": 4} | asked
    request = LabelRequest(sources=(str(source),), output=str(out), model=model, **asked)
    labeler.label(request, checkpoint, Watcher())


def footers(out: Path) -> list[dict]:
    files = sorted((out / "predictions").glob("*.parquet"))
    return [json.loads(pq.read_metadata(path).metadata[FOOTER_KEY]) for path in files]


@pytest.fixture
def repository(tmp_path) -> Repository:
    """A repository of our own model folder; its labels have changed, and then its weights."""
    make_model(tmp_path / OLD)
    model = load_folder(tmp_path / OLD)
    model.state["head.weight"] = model.state["head.weight"] + 1
    save_folder(tmp_path / NEW, model)
    return Repository(commits={OLD: tmp_path / OLD, NEW: tmp_path / NEW}, refs={"main": OLD, "v1": OLD})


@pytest.mark.long
def test_the_commit_is_in_plan_and_footers_and_a_moved_branch_is_refused_with_what_pins_it(
    repository, tmp_path, monkeypatch
):
    write_shards(tmp_path / "in", shards=2, images=6)
    out = tmp_path / "out"
    with serving_hub({"tiny/vit": repository}) as (endpoint, _):
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        label("hf:tiny/vit@v1", out, tmp_path / "in", limit=4)
        plan = json.loads((out / "_run" / "plan.json").read_text())
        assert (plan["commit"], plan["revision"]) == (OLD, "v1")
        repository.refs["v1"] = NEW
        with pytest.raises(UserError) as refused:
            label("hf:tiny/vit@v1", out, tmp_path / "in")
        told = f"Its weights are of commit {OLD}, and are now of {NEW}: --model hf:tiny/vit@{OLD} goes on. "
        assert "model fingerprint was" in str(refused.value) and told in str(refused.value)
        label(f"hf:tiny/vit@{OLD}", out, tmp_path / "in")
    found = footers(out)
    assert sum(footer["rows"] for footer in found) == 12
    assert {(footer["commit"], footer["revision"]) for footer in found} == {(OLD, "v1")}
    assert RunFolder(str(out)).plan().commit == OLD


def test_weights_from_elsewhere_have_no_commit_in_plan_and_footers(repository, tmp_path):
    write_shards(tmp_path / "in", shards=1, images=2)
    label(str(tmp_path / OLD), tmp_path / "out", tmp_path / "in")
    plan = json.loads((tmp_path / "out" / "_run" / "plan.json").read_text())
    assert not {"commit", "revision"} & {*plan, *footers(tmp_path / "out")[0]}
    assert RunFolder(str(tmp_path / "out")).plan().commit is None
