"""pretrain from the command line: recipes, what it prints and leaves, and that it continues after a kill."""

import json
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import transformers

from tests.jobs.test_resume import kill
from tests.support.hub import hub, use_hub
from tests.support.npz_files import original
from tests.support.taggers import tagger
from tests.support.trainings import write_classes
from wordsworth.jobs.cli import run
from wordsworth.pipeline.training.news import EpochNews, Validation
from wordsworth.pipeline.training.request import build_objective, initial_checkpoint
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.model import PreLogits
from wordsworth.vit_model.model_folder import load_folder
from wordsworth.vit_model.variants import variant

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
    "recipe",
    sorted(path.name for path in RECIPES.glob("*.toml") if not path.name.startswith(("finetune", "label"))),
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


@pytest.mark.parametrize(
    ("arguments", "batch"),
    [([], (512, False)), (["--batch-size", "512"], (512, True)), (["--config", "finetune-few"], (40, True))],
)
def test_a_batch_size_that_the_user_or_a_recipe_gave_is_told_from_the_default(
    tmp_path, requests, small_model, arguments, batch
):
    command = ["finetune", "SHARDS", "--model", str(small_model), "--output", str(tmp_path / "model")]
    assert run([*command, *arguments]) == 0
    assert (requests[0].batch_size, requests[0].is_batch_asked) == batch


def test_the_end_of_a_training_says_how_many_images_could_not_be_decoded(
    tmp_path, requests, small_model, monkeypatch, capsys
):
    def train(request, on_news):
        means = {"loss": 0.5, "accuracy": 1.0}
        tried = Validation(means=means, images=7, errors=1)
        return EpochNews(epoch=1, step=1, means=means, lr=0.0, rates=None, errors=2, validation=tried)

    command = ["finetune", "SHARDS", "--model", str(small_model), "--output", str(tmp_path / "model")]
    assert run(command) == 0
    assert "left out" not in capsys.readouterr().out
    monkeypatch.setattr("wordsworth.pipeline.training.trainer.train", train)
    assert run(command) == 0
    out = capsys.readouterr().out
    assert re.search(r"left out +2 images that could not be decoded: wordsworth label names them", out)
    assert re.search(r"left out of --val +1 image that could not be decoded", out)


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
        ("width = 32", ["--lr", "inf"], "--lr inf: give a number above 0, finite"),
        ("width = 32", ["--beta2", "1"], "--beta2 1: give a number from 0 on, below 1"),
        ("width = 32", ["--ema", "1"], "--ema 1: give a number from 0 on, below 1"),
        ("width = 32", ["--crop-scale", "0"], "--crop-scale 0: give a number above 0, at most 1"),
        ("width = 32", ["--crop-scale", "1.5"], "--crop-scale 1.5: give a number above 0, at most 1"),
        ("width = 32", ["--aspect", "0"], "--aspect 0: give a number from 1 on, finite"),
        ("width = 32", ["--seed", "9" * 20], "give a number from 0 on, below 9223372036854775808"),
        ("width = 32", ["--variant", "B/16"], "--variant fixes the size"),
        ("mixup = 0.2", ["--objective", "mae"], "--mixup has no meaning with --objective mae: leave it out"),
        (
            "representation-size = 8",
            ["--objective", "mae"],
            "--representation-size has no meaning with --objective mae",
        ),
        (
            "width = 32",
            ["--objective", "mae", "--labels", "x"],
            "--labels has no meaning with --objective mae",
        ),
        ("balance = true", ["--objective", "mae"], "--balance has no meaning with --objective mae: leave it"),
        ("balance = true", ["--class-weights", "balanced"], "both make up for rare classes: choose one"),
        (
            "width = 32",
            ["--class-weights", "none.csv"],
            "--class-weights none.csv: no such file, nor none or",
        ),
        ("keep-best = true", [], "--keep-best compares epochs on --val SOURCE: give one"),
        ("patience = 3", [], "--patience compares epochs on --val SOURCE: give one"),
        (
            "width = 32",
            ["--probe", "S"],
            "--probe is for --objective mae and masked-patch: with classes --val",
        ),
        ("objective = 'mae'", ["--probe-every", "2"], "--probe-every has no meaning without --probe SOURCE"),
        ("probe = ['S']", ["--probe-every", "0", "--objective", "mae"], "--probe-every"),
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


def test_the_head_of_the_papers_pre_training_has_a_hidden_layer_that_fine_tuning_leaves(tmp_path, requests):
    output = str(tmp_path / "model")
    assert run(["pretrain", "SHARDS", "--output", output, *SIZE, "--representation-size", "24"]) == 0
    (asked,) = requests
    assert asked.config.representation_size == 24
    built = build_objective(replace(asked, config=replace(asked.config, num_classes=3))).encoder
    assert isinstance(built.pre_logits, PreLogits) and isinstance(built.pre_logits.act, torch.nn.Tanh)
    assert built.head.weight.shape == (3, 24) and built.pre_logits.weight.abs().max() > 0
    assert built.config.with_head(5).representation_size == 0


def finetune(tmp_path, *arguments: str) -> int:
    return run(["finetune", "SHARDS", "--output", str(tmp_path / "tuned"), *arguments])


def test_finetune_begins_with_the_weights_of_a_file_in_the_model_that_is_named(
    tmp_path, requests, small_model
):
    """A folder, a file, and a file of weights for the model of a folder; the preprocessing can be another."""
    folder = load_folder(small_model)
    state = {name: tensor + 0.5 for name, tensor in folder.state.items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    torch.save({"model": state}, tmp_path / "w.pth")
    for number, file in enumerate(("w.safetensors", "w.pth")):
        weights = ("--weights", str(tmp_path / file))
        assert (
            finetune(tmp_path / str(number), "--model", str(small_model), *weights, "--crop-pct", "0.5") == 0
        )
    assert finetune(tmp_path / "2", "--model", str(small_model)) == 0
    with_safetensors, with_pth, plain = requests
    for asked in (with_safetensors, with_pth):
        assert torch.equal(asked.start.state["norm.weight"], plain.start.state["norm.weight"] + 0.5)
        assert asked.preprocessing == replace(folder.preprocessing, crop_pct=0.5)
        assert asked.config == plain.config


def test_finetune_takes_a_variant_with_a_file_of_weights_and_googles_files(tmp_path, requests, capsys):
    start = random_checkpoint(variant("Ti/16"), Preprocessing(), 5)
    safetensors.torch.save_file(start.state, tmp_path / "ti.safetensors")
    np.savez(tmp_path / "google.npz", **original())
    weights = ("--weights", str(tmp_path / "ti.safetensors"))
    assert finetune(tmp_path / "a", "--model", "Ti/16", *weights) == 0, capsys.readouterr().err
    assert finetune(tmp_path / "b", "--model", str(tmp_path / "google.npz")) == 0, capsys.readouterr().err
    assert torch.equal(requests[0].start.state["pos_embed"], start.state["pos_embed"])
    assert requests[1].config.gelu == "tanh" and requests[1].start.state["cls_token"].any()


def test_finetune_takes_plain_vits_of_timm_and_of_the_hub(tmp_path, requests, monkeypatch, capsys):
    """By timm's name with a file, a repository as timm writes it, and one as transformers writes it."""
    by_name = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    safetensors.torch.save_file(by_name.state_dict(), tmp_path / "timm.safetensors")
    by_timm = tagger(tmp_path / "tagger", as_it_is)
    size = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
    config = transformers.ViTConfig(**size, num_attention_heads=2, intermediate_size=64, num_labels=3)
    by_hf = transformers.ViTForImageClassification(config)
    by_hf.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    weights = ("--weights", str(tmp_path / "timm.safetensors"))
    with hub({"tiny/vit": tmp_path / "vit", "tiny/tagger": tmp_path / "tagger"}) as (endpoint, _):
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        models = (("timm:vit_tiny_patch16_224", *weights), ("hf:tiny/tagger",), ("hf:tiny/vit",))
        for number, given in enumerate(models):
            code = finetune(tmp_path / str(number), "--model", *given)
            assert code == 0, capsys.readouterr().err
    theirs = [model.patch_embed.proj for model in (by_name, by_timm)]
    theirs.append(by_hf.vit.embeddings.patch_embeddings.projection)
    for asked, projection in zip(requests, theirs, strict=True):
        start = initial_checkpoint(replace(asked, config=asked.config.with_head(7)))
        assert start.state["head.weight"].shape[0] == 7 and not start.state["head.weight"].any()
        assert torch.equal(start.state["patch_embed.proj.bias"], projection.bias)
        weight = start.state["patch_embed.proj.weight"]
        torch.testing.assert_close(weight.double().sum(), projection.weight.detach().double().sum())


def test_finetune_says_which_models_it_takes_and_what_to_do_with_another(tmp_path, requests, capsys):
    tagger(tmp_path / "tagger", as_it_is, "convnext_atto")
    assert finetune(tmp_path, "--model", str(tmp_path / "tagger")) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "finetune trains our own Vision Transformer" in error
    assert "convnext_atto is a module of timm. Train it with timm" in error and not requests


def as_it_is(model: torch.nn.Module) -> torch.nn.Module:
    return model


@pytest.mark.parametrize(
    ("arguments", "unfrozen"),
    [
        ((), None),
        (("--freeze",), 0),
        (("--unfreeze-last", "1"), 1),
        (("--freeze", "--unfreeze-last", "2"), 2),
    ],
)
def test_freeze_trains_the_head_and_unfreeze_last_some_blocks_too(
    tmp_path, requests, small_model, arguments, unfrozen
):
    assert finetune(tmp_path, "--model", str(small_model), *arguments) == 0
    assert requests[0].unfreeze_last == unfrozen


def test_an_architecture_without_weights_is_nothing_to_fine_tune(tmp_path, requests, capsys):
    assert finetune(tmp_path, "--model", "S/16") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--model S/16 names an architecture but no weights: add --weights FILE" in line
    assert "wordsworth pretrain --variant S/16" in line and not requests


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
    assert " model " in again.stdout and " next      wordsworth label" in again.stdout
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
