"""A finished training goes on where its learning rate needs no end; else one line says what to do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.trainings import request, write_classes
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.training.learning_rate import learning_rate
from wordsworth.pipeline.training.more_epochs import OPEN_END, find_finished, go_on, shared_steps
from wordsworth.pipeline.training.news import BeginNews
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.trainer import train
from wordsworth.vit_model.model_folder import load_folder

OPEN = {"decay": "constant", "warmup": 3}


def test_an_output_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(UserError, match=r"^--output \S+/model is a file: give a folder$"):
        find_finished(request(tmp_path))


@pytest.mark.parametrize("decay", ["cosine", "linear", "rsqrt", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.1, 7])
def test_the_steps_that_are_shared_have_the_same_rate_however_many_follow(tmp_path, decay, warmup):
    asked = request(tmp_path, decay=decay, warmup=warmup)
    for steps in (1, 19, 100, 1003):
        shared = shared_steps(asked, steps)
        assert 0 <= shared <= steps
        for more in (steps + 1, 3 * steps):
            for step in range(shared):
                rates = [learning_rate(step, total, 1.0, warmup, decay) for total in (steps, more)]
                assert rates[0] == rates[1], (steps, more, step)
    is_open = decay in ("rsqrt", "constant") and warmup != 0.1
    assert (shared_steps(asked, 1000) >= 900) == is_open
    assert shared_steps(asked, 1000) == {"rsqrt": 900, "constant": 1000}.get(decay, 0) * is_open


# ---- what is asked of an output that holds a model ----


def finished(folder: Path, open_end: bool = True, **changes) -> TrainRequest:
    """Write what a finished training of three epochs leaves, and return its request."""
    asked = request(folder, **(OPEN | changes))
    run = folder / "model" / "_train"
    run.mkdir(parents=True)
    settings = {"epochs": 3, "lr": 1e-3, "decay": asked.decay}
    (run / "settings.json").write_text(json.dumps(settings))
    (run / "checkpoint_manager_snapshot.json").write_text("{}")
    (run / "step-000000012-epoch-2").mkdir()
    if open_end:
        (run / f"{OPEN_END}000000018").mkdir()
        (run / f"{OPEN_END}000000018" / "progress.json").write_text("{}")
    (folder / "model" / "config.json").write_text(json.dumps({"extra": {"settings": settings}}))
    return asked


def asked_to_go_on(asked: TrainRequest, **changes) -> str:
    settings = {"epochs": asked.epochs, "lr": 1e-3, "decay": asked.decay} | changes
    found = find_finished(asked)
    assert found is not None
    return go_on(asked, settings, found)


def test_raised_epochs_go_on_from_the_open_end_also_when_the_command_was_cut_off(tmp_path):
    asked = replace(finished(tmp_path), epochs=5)
    run = tmp_path / "model" / "_train"
    for _ in range(2):
        assert asked_to_go_on(asked) == f"{OPEN_END}000000018"
        assert sorted(path.name for path in run.iterdir()) == [f"{OPEN_END}000000018", "settings.json"]
        assert json.loads((run / "settings.json").read_text())["epochs"] == 5
    with pytest.raises(
        UserError, match=r"an unfinished training with other settings \(epochs 5 there, 6 here\)"
    ):
        asked_to_go_on(replace(asked, epochs=6))
    assert (tmp_path / "model" / "config.json").exists(), "the model of before stays until there is another"


@pytest.mark.parametrize("epochs", [2, 3])
def test_no_more_epochs_than_there_were_are_refused(tmp_path, epochs):
    with pytest.raises(UserError, match="holds a model already: choose a new --output"):
        find_finished(replace(finished(tmp_path), epochs=epochs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"decay": "cosine"},
            "the learning rate of --decay cosine has come to its end; --decay constant has",
        ),
        (
            {"warmup": 0.05},
            "--warmup 0.05 is a share of the steps; 0 or a number of steps would let it go on",
        ),
        ({}, "it stopped early, or an earlier version made it"),
    ],
)
def test_a_training_that_cannot_go_on_says_why_and_what_to_do(tmp_path, changes, message):
    asked = replace(finished(tmp_path, open_end=False, **changes), epochs=5)
    with pytest.raises(UserError) as error:
        asked_to_go_on(asked)
    said = str(error.value)
    assert message in said and f"wordsworth finetune --model {asked.output} --output NEW" in said
    assert "\n" not in said and (tmp_path / "model" / "_train" / "checkpoint_manager_snapshot.json").exists()


def test_other_settings_than_the_epochs_are_refused_by_name(tmp_path):
    asked = replace(finished(tmp_path), epochs=5)
    with pytest.raises(UserError, match=r"a training with other settings \(lr 0.001 there, 0.1 here\)"):
        asked_to_go_on(asked, lr=0.1)
    with pytest.raises(UserError, match=r"other settings \(balance not given there, True here\)"):
        asked_to_go_on(asked, balance=True)
    assert (tmp_path / "model" / "_train" / "step-000000012-epoch-2").exists(), "nothing was changed"


def test_a_model_that_no_training_made_is_refused(tmp_path):
    asked = finished(tmp_path)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a model already"):
        find_finished(replace(asked, epochs=99))


@pytest.mark.long  # four trainings; what decides: above
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("decay", ["constant", "rsqrt"])
def test_two_epochs_and_two_more_are_four_to_the_bit(tmp_path, decay):
    """rsqrt goes on in the middle of an epoch, where its last steps to zero began."""
    write_classes(tmp_path / "shards", shards=4, images=40)
    asked = request(
        tmp_path,
        epochs=2,
        decay=decay,
        warmup=3,
        ema=0.9,
        dropout=0.1,
        val=(str(tmp_path / "shards" / "0.tar"),),
    )
    train(asked, lambda news: None)
    first = load_folder(tmp_path / "model")
    seen = []
    last = train(replace(asked, epochs=4), seen.append)
    begun = next(news for news in seen if isinstance(news, BeginNews))
    assert begun.step == {"constant": 20, "rsqrt": 18}[decay] and last.epoch == 4
    train(replace(asked, epochs=4, output=str(tmp_path / "whole")), lambda news: None)
    whole, again = (load_folder(tmp_path / name) for name in ("whole", "model"))
    assert all(torch.equal(whole.state[name], again.state[name]) for name in whole.state)
    assert not torch.equal(first.state["head.weight"], again.state["head.weight"])
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3, 4]
