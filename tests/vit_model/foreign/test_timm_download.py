"""timm's weights: from the hub at one commit, from an address, and the answer where there is no network."""

import time
from dataclasses import replace

import pytest
import timm
import torch
from huggingface_hub import constants

from tests.support.hub import Repository, closed_port, serving_hub, silent_server
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign import timm_download
from wordsworth.vit_model.foreign.load import from_hub, from_timm

REPOSITORY = "timm/test_vit.r160_in1k"
OLD = "a" * 39 + "1"
NEW = "b" * 39 + "2"


@pytest.fixture
def two_commits(tmp_path, randomised):
    """timm's repository of test_vit with a safe file, and before with another; the state of each commit."""
    states = {}
    for seed, commit in enumerate((OLD, NEW)):
        (tmp_path / commit).mkdir()
        model = randomised(timm.create_model("test_vit"), seed)
        states[commit] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        timm.models.save_for_hf(model, tmp_path / commit, safe_serialization=commit == NEW)
        (tmp_path / commit / "README.md").write_text("x")
    (tmp_path / NEW / "pytorch_model.bin").write_bytes(b"not taken beside a safe file")
    commits = {commit: tmp_path / commit for commit in states}
    return Repository(commits=commits, refs={"main": NEW, "v1": OLD}), states


def same(found, state) -> bool:
    return all(torch.equal(found.state[name], tensor) for name, tensor in state.items())


@pytest.mark.slow
def test_weights_of_timm_are_those_of_one_commit_of_its_repository(connect, two_commits, monkeypatch):
    repository, states = two_commits
    with serving_hub({REPOSITORY: repository}) as (endpoint, requests):
        connect(endpoint)
        new, old = from_timm("test_vit"), from_timm("test_vit.r160_in1k@v1")
        assert requests.downloaded == ["model.safetensors", "pytorch_model.bin"]
        as_repository = from_hub(f"{REPOSITORY}@{NEW}")
        with pytest.raises(ModelError, match=r"timm:test_vit@v7: no branch, tag or commit 'v7'; it has main"):
            from_timm("test_vit@v7")
    assert same(new, states[NEW]) and same(old, states[OLD]) and same(as_repository, states[NEW])
    assert (new.extra["commit"], new.extra["repository"]) == (NEW, REPOSITORY)
    assert "revision" not in new.extra and (old.extra["commit"], old.extra["revision"]) == (OLD, "v1")
    assert as_repository.extra["commit"] == NEW
    assert as_repository.extra["timm"] == f"hf-hub:{REPOSITORY}@{NEW}"  # and no folder of this machine
    notes: list[str] = []
    connect(closed_port())
    assert same(from_timm("test_vit", note=notes.append), states[NEW])
    assert len(notes) == 1 and notes[0].endswith(f"the copy in the cache is used, commit {NEW}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(from_timm("test_vit@v1", note=notes.append), states[OLD]) and len(notes) == 1


def test_without_a_network_the_weights_of_timm_are_named_at_once(connect, tmp_path):
    connect(closed_port())
    with pytest.raises(ModelError) as refused:
        timm_download.download_weights("test_vit", "v1")
    message = str(refused.value)
    assert message.startswith("timm:test_vit@v1: http://127.0.0.1:") and "\n" not in message
    assert f"{tmp_path / 'cache' / 'models--timm--test_vit.r160_in1k'} has no copy" in message
    assert f"`hf download {REPOSITORY} --revision v1 model.safetensors --local-dir FOLDER`" in message
    assert message.endswith("give --weights FOLDER/model.safetensors")


def test_a_repository_without_weights_of_timm_is_named(connect, two_commits):
    repository, _ = two_commits
    (repository.commits[OLD] / "pytorch_model.bin").unlink()
    with serving_hub({REPOSITORY: repository}) as (endpoint, _):
        connect(endpoint)
        with pytest.raises(ModelError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
            timm_download.download_weights("test_vit", "v1")


# ---- weights at an address -------------------------------------------------------------------------------


@pytest.fixture
def at_address(monkeypatch, tmp_path):
    """A function that gives test_vit's weights an address in place of a repository."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cfg = timm.get_pretrained_cfg("test_vit")

    def place(url: str | None) -> None:
        placed = replace(cfg, hf_hub_id=None, url=url)
        monkeypatch.setattr(timm_download, "_pretrained_cfg", lambda name: placed)

    return place


@pytest.mark.parametrize("kind", ["closed", pytest.param("silent", marks=pytest.mark.slow)])
def test_an_address_that_gives_no_answer_is_given_up_unless_the_file_is_there(at_address, kind, tmp_path):
    with silent_server() as silent:
        url = f"{silent if kind == 'silent' else closed_port()}/w-01234567.pth"
        at_address(url)
        begun = time.monotonic()
        with pytest.raises(ModelError) as refused:
            timm_download.download_weights("test_vit")
    assert time.monotonic() - begun < 7
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "w-01234567.pth"
    assert f"`curl -LO {url}`; bring w-01234567.pth here and give --weights w-01234567.pth" in str(
        refused.value
    )
    assert str(refused.value).endswith(f"or put it to {cached}")
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    timm_download._check_reach("test_vit", url)


def test_weights_at_an_address_have_no_revisions_and_a_model_may_have_none(at_address):
    at_address("http://127.0.0.1:9/w.pth")
    with pytest.raises(ModelError, match="are not on the hub, and have no revisions"):
        timm_download.download_weights("test_vit", "v1")
    at_address(None)
    with pytest.raises(ModelError, match="timm has no weights of test_vit: pass a file with --weights FILE"):
        timm_download.download_weights("test_vit")
