"""Downloads: one commit of a repository, what is fetched of it, and the answer where there is no network."""

import json
import time

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from tests.support.hub import Repository, closed_port, serving_hub, silent_server
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign import hub, hub_cache, huggingface

OLD = "a" * 39 + "1"
NEW = "b" * 39 + "2"
USELESS = ("modeling.py", "tf_model.h5", "flax_model.msgpack", "model.onnx", "README.md", "rust_model.ot")


@pytest.fixture
def two_commits(tmp_path) -> Repository:
    """A repository whose branch main has moved from OLD to NEW."""
    for commit in (OLD, NEW):
        folder = tmp_path / commit
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "vit", "commit": commit}))
        (folder / "model.safetensors").write_bytes(commit.encode())
        for name in USELESS:
            (folder / name).write_bytes(b"x")
    refs = {"main": NEW, "v1.0": OLD, "a/branch": OLD, "refs/pr/1": OLD}
    return Repository(commits={OLD: tmp_path / OLD, NEW: tmp_path / NEW}, refs=refs)


def refusal(name: str) -> str:
    with pytest.raises(ModelError) as refused:
        huggingface.download(name)
    message = str(refused.value)
    assert "\n" not in message
    return message


# ---- revisions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revision", "commit"),
    [
        (None, NEW),
        ("main", NEW),
        ("v1.0", OLD),
        ("a/branch", OLD),
        ("refs/pr/1", OLD),
        (OLD, OLD),
        (OLD[:7], OLD),
        (NEW[:12], NEW),
    ],
)
def test_a_revision_is_one_commit_and_the_commit_is_kept(connect, two_commits, revision, commit):
    name = "tiny/vit" if revision is None else f"tiny/vit@{revision}"
    with serving_hub({"tiny/vit": two_commits}) as (endpoint, requests):
        connect(endpoint)
        found = huggingface.download(name)
    assert (found.commit, found.revision, found.folder.name) == (commit, revision, commit)
    assert json.loads((found.folder / "config.json").read_text())["commit"] == commit
    assert (found.folder / "model.safetensors").read_bytes() == commit.encode()
    assert requests.downloaded == ["config.json", "model.safetensors"]
    asked = {} if revision is None else {"revision": revision}
    assert found.provenance() == {"repository": "tiny/vit", "commit": commit} | asked


def test_files_that_the_cache_has_are_not_fetched_again_and_a_moved_branch_is_followed(connect, two_commits):
    with serving_hub({"tiny/vit": two_commits}) as (endpoint, requests):
        connect(endpoint)
        for _ in range(2):
            assert huggingface.download("tiny/vit").commit == NEW
        assert requests.downloaded == ["config.json", "model.safetensors"]
        assert requests.questions == ["info"] * 2  # one question a command
        two_commits.refs["main"] = OLD
        assert huggingface.download("tiny/vit").commit == OLD


def test_a_revision_that_is_not_there_is_refused_with_those_that_are(connect, two_commits):
    with serving_hub({"tiny/vit": two_commits}) as (endpoint, _):
        connect(endpoint)
        message = refusal("tiny/vit@v2.0")
        assert message == ("hf:tiny/vit@v2.0: no branch, tag or commit 'v2.0'; it has main, v1.0, a/branch")
        assert "no branch, tag or commit 'ccccccc'" in refusal("tiny/vit@ccccccc")
        assert "'../../x' is no name of a branch" in refusal("tiny/vit@../../x")
        assert "'' is no name of a branch" in refusal("tiny/vit@")


# ---- files -----------------------------------------------------------------------------------------------


def sharded(folder, form: str) -> dict[str, torch.Tensor]:
    """Write weights in two parts with an index. Returns the tensors."""
    state = {"one": torch.randn(3), "two": torch.randn(2)}
    stem, end = ("pytorch_model", "bin") if form == "bin" else ("model", "safetensors")
    save = torch.save if form == "bin" else safetensors.torch.save_file
    names = {}
    for number, (name, tensor) in enumerate(state.items(), start=1):
        names[name] = f"{stem}-{number:05d}-of-00002.{end}"
        save({name: tensor}, folder / names[name])
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": names}))
    return state


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_the_parts_of_sharded_weights_are_fetched_and_read(connect, two_commits, form):
    folder = two_commits.commits[NEW]
    (folder / "model.safetensors").unlink()
    state = sharded(folder, form)
    with serving_hub({"tiny/vit": two_commits}) as (endpoint, requests):
        connect(endpoint)
        found = huggingface.download("tiny/vit")
    assert len(requests.downloaded) == 4 and not set(requests.downloaded) & set(USELESS)
    _, read = huggingface.read_weights(found.folder)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }
    connect(closed_port())
    assert huggingface.download("tiny/vit", note=lambda _: None) == found
    (found.folder / next(name for name in requests.downloaded if "00002-of" in name)).unlink()
    assert "has no copy" in refusal("tiny/vit")  # a part is missing


def test_the_table_of_a_tagger_is_fetched_with_the_weights(connect, two_commits):
    (two_commits.commits[NEW] / "selected_tags.csv").write_text("tag_id,name\n1,cat\n")
    with serving_hub({"tiny/vit": two_commits}) as (endpoint, requests):
        connect(endpoint)
        found = huggingface.download("tiny/vit")
    assert requests.downloaded == ["config.json", "selected_tags.csv", "model.safetensors"]
    assert (found.folder / "selected_tags.csv").is_file()


def test_weights_in_forms_that_are_not_read_are_named_and_not_fetched(connect, two_commits):
    (two_commits.commits[NEW] / "model.safetensors").unlink()
    with serving_hub({"tiny/vit": two_commits}) as (endpoint, requests):
        connect(endpoint)
        message = refusal("tiny/vit")
    assert message.endswith(": it has flax_model.msgpack, model.onnx, tf_model.h5")
    assert requests.downloaded == []


def test_an_index_may_not_name_files_outside_of_its_folder(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for weight_map in ({"a": "../x.safetensors"}, {}, None):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ModelError, match=r"names (no )?files"):
            hub_cache.parts_of(index)


# ---- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "gated_files", "told"),
    [
        (
            403,
            "GatedRepo",
            False,
            "is gated: accept its conditions at {endpoint}/tiny/vit; `hf auth login` or",
        ),
        (
            401,
            "GatedRepo",
            True,
            "is gated: accept its conditions at {endpoint}/tiny/vit; `hf auth login` or",
        ),
        (404, "RepoNotFound", False, "{endpoint} has no repository tiny/vit, or it is private: look at"),
        (401, "", False, "{endpoint} wants a token that it accepts (401); `hf auth login` or HF_TOKEN"),
        (403, "", False, "{endpoint} wants a token that it accepts (403); `hf auth login` or HF_TOKEN"),
        (500, "", False, "{endpoint} has a fault ("),
    ],
)
def test_each_refusal_of_the_hub_has_its_own_line(connect, two_commits, status, error, gated_files, told):
    two_commits.status, two_commits.error, two_commits.gated_files = status, error, gated_files
    with serving_hub({"tiny/vit": two_commits}) as (endpoint, _):
        connect(endpoint)
        assert told.format(endpoint=endpoint) in refusal("tiny/vit")


# ---- without a network -----------------------------------------------------------------------------------


def no_network(kind: str):
    if kind == "silent":
        return silent_server()
    return closed_port() if kind == "closed" else "http://no-such-host.invalid"


@pytest.mark.parametrize("kind", ["closed", "unknown"])
def test_without_a_network_the_answer_says_at_once_what_to_fetch_and_where_it_goes(connect, kind, tmp_path):
    connect(no_network(kind))
    begun = time.monotonic()
    message = refusal("tiny/vit@v1.0")
    assert time.monotonic() - begun < hub.REACH_SECONDS + 1
    assert "cannot be reached" in message
    assert f"{tmp_path / 'cache' / 'models--tiny--vit'} has no copy" in message
    command = "hf download tiny/vit --revision v1.0 config.json preprocessor_config.json model.safetensors"
    assert f"`{command} --local-dir FOLDER`; bring FOLDER here and give --model FOLDER" in message


def test_without_a_network_the_files_of_a_tokenizer_are_named_too(connect):
    connect(closed_port())
    with pytest.raises(ModelError, match=r"model\.safetensors tokenizer\.json vocab\.json --local-dir"):
        huggingface.download("tiny/clip", also=("tokenizer.json", "vocab.json"))


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up(connect, monkeypatch):
    with silent_server() as endpoint:
        connect(endpoint)
        begun = time.monotonic()
        assert "cannot be reached" in refusal("tiny/vit")
        assert time.monotonic() - begun < hub.REACH_SECONDS + 1
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
        begun = time.monotonic()
        assert "cannot be reached" in refusal("tiny/vit")
        assert time.monotonic() - begun < 2.5


def test_a_call_without_a_timeout_of_its_own_is_left_behind():
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.1 seconds"):
        hub.within(0.1, lambda: time.sleep(5))
    assert time.monotonic() - begun < 2
    assert hub.within(5, lambda: 7) == 7
    with pytest.raises(KeyError):
        hub.within(5, lambda: {}["x"])


@pytest.mark.parametrize("revision", [None, "v1.0", OLD, OLD[:9], "refs/pr/1"])
def test_a_filled_cache_works_without_a_network_and_says_so_unless_that_was_asked(
    connect, two_commits, monkeypatch, revision
):
    name = "tiny/vit" if revision is None else f"tiny/vit@{revision}"
    with serving_hub({"tiny/vit": two_commits}) as (endpoint, _):
        connect(endpoint)
        online = huggingface.download(name)
    notes: list[str] = []
    connect(closed_port())
    assert huggingface.download(name, notes.append) == online
    [note] = notes
    assert "cannot be reached" in note and note.endswith(f"is used, commit {online.commit}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert huggingface.download(name, notes.append) == online and len(notes) == 1
    assert "HF_HUB_OFFLINE is set, and" in refusal("tiny/vit@v3")


def test_a_cache_without_the_weights_is_no_copy(connect, two_commits, monkeypatch):
    with serving_hub({"tiny/vit": two_commits}) as (endpoint, _):
        connect(endpoint)
        found = huggingface.download("tiny/vit")
    (found.folder / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "has no copy" in refusal("tiny/vit")
