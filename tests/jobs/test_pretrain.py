"""pretrain from the command line: recipes, what it prints and leaves, and that it continues after a kill."""

import json
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from tests.jobs.test_resume import kill
from tests.support.trainings import write_classes
from wordsworth.jobs.cli import run
from wordsworth.pipeline.training.news import EpochNews
from wordsworth.vit_model.model_folder import load_folder

RECIPES = Path(__file__).parents[2] / "recipes"
SIZE = [
    "--width",
    "32",
    "--depth",
    "2",
    "--heads",
    "2",
    "--patch-size",
    "8",
    "--image-size",
    "32",
    "--batch-size",
    "16",
]


@pytest.fixture
def requests(monkeypatch) -> list:
    """Return what is asked of wordsworth.pipeline.training.trainer.train, which is not done."""
    asked = []

    def train(request, on_news):
        asked.append(request)
        means = {"loss": 0.5, "accuracy": 1.0}
        return EpochNews(epoch=1, step=1, means=means, lr=0.0, rates=None, errors=0, validation=None)

    monkeypatch.setattr("wordsworth.pipeline.training.trainer.train", train)
    return asked


@pytest.mark.parametrize(
    "recipe", sorted(path.name for path in RECIPES.glob("*.toml") if not path.name.startswith("finetune"))
)
def test_every_recipe_is_one_that_pretrain_takes(tmp_path, requests, recipe, capsys):
    values = tomllib.loads((RECIPES / recipe).read_text())
    code = run(["pretrain", "SHARDS", "--output", str(tmp_path / "model"), "--config", str(RECIPES / recipe)])
    assert code == 0, capsys.readouterr().err
    (asked,) = requests
    assert (asked.epochs, asked.batch_size, asked.lr) == (
        values["epochs"],
        values["batch-size"],
        values.get("lr", 1e-3),
    )
    assert asked.config.width == (values.get("width") or {"B/16": 768, "S/16": 384}[values["variant"]])
    assert f"--config recipes/{recipe}" in (RECIPES / recipe).read_text(), (
        "its own command stands in the header"
    )


@pytest.mark.parametrize(
    ("arguments", "position"),
    [
        ([], "learned-1d"),
        (["--objective", "masked-patch"], "sincos-2d-mae"),
        (["--objective", "mae"], "sincos-2d-mae"),
        (["--objective", "mae", "--position", "learned-1d"], "learned-1d"),
    ],
)
def test_without_classes_positions_are_fixed_unless_others_are_asked_for(
    tmp_path, requests, arguments, position
):
    assert run(["pretrain", "SHARDS", "--output", str(tmp_path / "model"), *SIZE, *arguments]) == 0
    assert requests[0].config.position == position


@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("finetune*.toml")))
def test_every_recipe_for_fine_tuning_is_one_that_finetune_takes(
    tmp_path, requests, small_model, recipe, capsys
):
    values = tomllib.loads((RECIPES / recipe).read_text())
    command = ["finetune", "SHARDS", "--model", str(small_model), "--output", str(tmp_path / "model")]
    code = run([*command, "--config", str(RECIPES / recipe)])
    assert code == 0, capsys.readouterr().err
    (asked,) = requests
    assert (asked.epochs, asked.optimizer, asked.lr) == (values["epochs"], values["optimizer"], values["lr"])
    assert asked.config.image_size == (values.get("image-size", 32),) * 2
    assert f"--config recipes/{recipe}" in (RECIPES / recipe).read_text()


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("label-smothing = 0.1", [], "label-smoothing"),
        ("width = 32", ["--workers", "none"], "--workers none: give a number from 1 on, or LEAST,MOST"),
        ("width = 32", ["--workers", "4,2"], "--workers 4,2: give a number"),
        ("width = 32", ["--clip", "-1"], "--clip"),
        ("width = 32", ["--epochs", "0"], "--epochs"),
        ("width = 32", ["--variant", "B/16"], "--variant fixes the size"),
        ("mixup = 0.2", ["--objective", "mae"], "--mixup has no meaning with --objective mae: leave it out"),
        ("width = 32", ["--rand-augment", "cubism"], "--rand-augment cubism: timm knows no such one"),
    ],
)
def test_a_typo_in_a_recipe_is_one_line_with_the_nearest_name(
    tmp_path, requests, capsys, text, arguments, message
):
    (tmp_path / "recipe.toml").write_text(text + "\n")
    command = [
        "pretrain",
        "SHARDS",
        "--output",
        str(tmp_path / "o"),
        *SIZE,
        "--config",
        str(tmp_path / "recipe.toml"),
    ]
    assert run([*command, *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and not requests


EPOCHS, STEPS = 8, 12


def killed(command: list[str], output: Path, log: Path) -> None:
    """Run the command until it has its second checkpoint, and kill its driver."""
    began = time.time()
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "wordsworth", *command], stdout=file, stderr=file, start_new_session=True
        )
    while (
        len(list((output / "_train").glob("step-*"))) < 2
        and process.poll() is None
        and time.time() < began + 120
    ):
        time.sleep(0.02)
    assert process.poll() is None, log.read_text()
    kill(process)
    assert not (output / "config.json").exists()


@pytest.mark.long  # that a second driver goes on: tests/training/test_trainer.py, a loss that is not a number
@pytest.mark.parametrize("workers", ["1", "1,2"])
def test_a_command_whose_driver_was_killed_goes_on_where_it_was(tmp_path, wordsworth, workers):
    """Elastic workers too: the second command has as many as there is room for."""
    write_classes(tmp_path / "shards", shards=3, images=64)
    common = [
        "pretrain",
        str(tmp_path / "shards"),
        *SIZE,
        "--epochs",
        str(EPOCHS),
        "--save-every",
        "5",
        "--mixup",
        "0.2",
    ]
    command = [*common, "--output", str(tmp_path / "model")]
    killed(command, tmp_path / "model", tmp_path / "log")
    again = wordsworth(*command, "--workers", workers)
    assert again.returncode == 0, again.stderr
    step = int(re.search(r"workers? goe?s? on from step (\d+)", again.stderr)[1])
    assert 0 < step < EPOCHS * STEPS and (step % 5 == 0 or step % STEPS == 0)
    assert re.search(
        r"epoch   8/8  loss \d\.\d+  accuracy .* images/s  MFU \d+%  data wait \d+%", again.stderr
    ), again.stderr
    assert "model in" in again.stdout and "next: wordsworth label" in again.stdout
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == list(range(1, EPOCHS + 1)), (
        "none twice, none lost"
    )
    assert load_folder(tmp_path / "model").extra["metrics"]["accuracy"] > 0.5


@pytest.mark.long  # the same after the worker was killed: tests/training/test_training_resumed.py
def test_a_command_whose_driver_was_killed_changes_no_bit(tmp_path, wordsworth):
    write_classes(tmp_path / "shards", shards=3, images=64)
    common = [
        "pretrain",
        str(tmp_path / "shards"),
        *SIZE,
        "--epochs",
        str(EPOCHS),
        "--save-every",
        "5",
        "--mixup",
        "0.2",
    ]
    killed([*common, "--output", str(tmp_path / "again")], tmp_path / "again", tmp_path / "log")
    for name in ("again", "whole"):
        done = wordsworth(*common, "--output", tmp_path / name)
        assert done.returncode == 0, done.stderr
    one, other = load_folder(tmp_path / "whole"), load_folder(tmp_path / "again")
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
