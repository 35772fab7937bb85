"""Hold what the functions of the package promise: what the commands do, without a print."""

import inspect
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pyarrow.compute
import pytest

import wordsworth
from tests.support.builders import photo, write_shards, write_tar
from tests.support.report_runs import make_run
from wordsworth.jobs.arguments import command_arguments
from wordsworth.jobs.evaluate import evaluate
from wordsworth.jobs.label import label
from wordsworth.jobs.pretrain import pretrain
from wordsworth.pipeline.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, shards=2, images=6)
    return folder


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"ray", "torch", "pyarrow", "timm", "cyclopts"}
    code = f"import sys, wordsworth; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_light_name_of_the_models_package_does_not_load_torch():
    code = (
        "import sys; from wordsworth.vit_model import ViTConfig, patchify, variant\n"
        "print('torch' in sys.modules)\n"
        "from wordsworth.vit_model import VisionTransformer; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue\n"


def test_every_public_name_of_the_models_package_is_there():
    import wordsworth.vit_model as package

    assert all(getattr(package, name).__name__ == name for name in package.__all__ if name != "VARIANTS")
    assert {*package.__all__} <= {*dir(package)} and package.VARIANTS["B"] == (768, 12, 3072, 12)
    with pytest.raises(AttributeError, match="no attribute 'VisonTransformer'"):
        package.VisonTransformer  # noqa: B018


@pytest.mark.ray
def test_label_gives_a_run_whose_predictions_are_a_dataset_and_prints_nothing(
    local_ray, tmp_path, shards, small_model, capfd
):
    out = tmp_path / "out"
    options = {"top_k": 2, "keep": ["json"], "batch_size": 4, "report": True}
    run = wordsworth.label(shards, output=out, model=small_model, **options)
    rows = run.predictions().to_table(columns=["key", "label", "topk", "json"]).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows) == 12 == run.summary.rows
    assert {len(row["topk"]) for row in rows} == {2} and all(row["json"] for row in rows)
    again = wordsworth.open_run(out)
    assert again == run and again.plan.asked["keep"] == ["json"]
    assert wordsworth.verify(out, source=True).ok  # with the report in the folder
    assert "12 images labelled" in (out / "report.html").read_text()
    assert wordsworth.label(shards, output=out, model=small_model, **options).summary.rows == 12
    assert capfd.readouterr() == ("", "")


@pytest.mark.ray
def test_embed_and_label_are_different_runs_with_the_defaults_of_the_command_line(
    local_ray, tmp_path, shards, small_model
):
    run = wordsworth.embed(str(shards), output=tmp_path / "vectors", model=small_model)
    schema = run.predictions().schema
    assert str(schema.field("embedding").type).startswith("fixed_size_list") and "label" not in schema.names
    page = tmp_path / "page.html"
    assert wordsworth.report(tmp_path / "vectors", file=page).num_images == 12
    assert "this run gives embeddings alone" in page.read_text()
    with pytest.raises(UserError, match="holds another run"):
        wordsworth.label(shards, output=tmp_path / "vectors", model=small_model)


@pytest.mark.ray
def test_too_many_errors_are_raised_and_the_run_is_kept(local_ray, tmp_path, small_model):
    write_tar(tmp_path / "a.tar", {"good.jpg": photo(1), "bad.jpg": b"no image"})
    with pytest.raises(UserError, match=r"50\.00% of the rows have an error, over --max-error-rate 0\.1"):
        wordsworth.label(tmp_path / "a.tar", output=tmp_path / "out", model=small_model, max_error_rate=0.1)
    assert wordsworth.open_run(tmp_path / "out").predictions().count_rows() == 2


def test_an_option_that_is_not_there_is_named(tmp_path, small_model):
    with pytest.raises(TypeError, match="has no option 'topk'"):
        wordsworth.label("shards", output=tmp_path, model=small_model, topk=5)
    with pytest.raises(TypeError, match="prints nothing"):
        wordsworth.label("shards", output=tmp_path, model=small_model, json=True)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'model'"):
        wordsworth.label("shards", output=tmp_path)


LISTS = [(evaluate, "train"), (pretrain, "val"), (pretrain, "probe"), (label, "allow_uris")]


@pytest.mark.parametrize("given", ["train", Path("train"), ["train"], (Path("train"),)])
@pytest.mark.parametrize(("command", "option"), LISTS)
def test_a_text_in_place_of_a_list_is_its_only_element(command, option, given):
    named = {"output": "out"} if command is pretrain else {"output": "out", "model": "m"}
    arguments = command_arguments(command, **named, **{option: given})
    found = arguments.get(option)
    for group in arguments.values():
        if is_dataclass(group) and hasattr(group, option):
            found = getattr(group, option)
    assert found == ["train"]


def test_classes_and_prompts_with_commas_stay_whole():
    prompts = ["a photo of a {}, small", "a drawing of a {}"]
    asked = command_arguments(label, output="out", model="m", classes=["salt, coarse", "cat"], prompt=prompts)
    assert asked["model"].classes == ["salt, coarse", "cat"] and asked["model"].prompt == prompts


def test_a_text_in_place_of_numbers_is_refused():
    with pytest.raises(TypeError, match=r"^mean takes numbers, such as \(0.5, 0.5, 0.5\), and not the text"):
        command_arguments(label, output="out", model="m", mean="0.5")


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [
        (pretrain, {"epochs": 0}, "epochs=0: Must be >= 1."),
        (pretrain, {"lr": float("nan")}, "lr=nan: Must be < inf."),
        (pretrain, {"ema": 1.0}, "ema=1.0: Must be < 1."),
        (pretrain, {"objective": "dino"}, "objective='dino': choose one of supervised, masked-patch, mae"),
        (pretrain, {"decay": "step"}, "decay='step': choose one of cosine, linear, rsqrt, constant"),
        (pretrain, {"position": "rope"}, "position='rope': choose one of learned-1d, learned-2d"),
        (label, {"model": "m", "threshold": 2}, "threshold=2: Must be <= 1."),
        (label, {"model": "m", "precision": "fp16"}, "precision='fp16': choose one of auto, fp32, bf16"),
    ],
)
def test_a_value_that_the_command_line_refuses_is_refused(command, given, said):
    with pytest.raises(UserError) as refused:
        command_arguments(command, output="out", **given)
    assert str(refused.value).startswith(said)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        wordsworth.open_run(tmp_path)


def test_a_run_gives_its_images_again_as_they_are_in_the_source(tmp_path, capfd):
    photos = {f"{number}.jpg": photo(number) for number in range(6)}
    write_tar(tmp_path / "a.tar", {**photos, "bad.jpg": b"no image"})
    run = wordsworth.open_run(make_run(tmp_path / "out", tmp_path / "a.tar"))
    found = {f"{image.row['key']}.jpg": image.data for image in run.images()}
    assert found == {**photos, "bad.jpg": b"no image"}
    bees = list(run.images(pyarrow.compute.field("label") == "bee", columns=["key", "score"]))
    assert [list(image.row) for image in bees] == [["key", "score"]] * 2
    assert [image.data for image in bees] == [photos["1.jpg"], photos["4.jpg"]]
    (tmp_path / "a.tar").unlink()
    assert {image.reason for image in run.images()} == {"not_found: there is no such object"}
    with pytest.raises(UserError, match="have no column lable"):
        next(run.images(columns=["lable"]))
    assert capfd.readouterr() == ("", "")


def test_a_model_is_loaded_by_the_name_that_the_commands_take(small_model):
    model = wordsworth.load_model(small_model)
    assert model.labels == ("ant", "bee", "cat", "dog", "elk")
    assert model.config.image_size == (32, 32) and model.preprocessing.crop_pct == 0.9
    assert model.model().config is model.config
    with pytest.raises(TypeError, match="unexpected keyword argument 'lables'"):
        wordsworth.load_model(small_model, lables="names.txt")
    named = inspect.signature(wordsworth.load_model).parameters
    assert [named[name].default for name in ("device", "precision")] == ["auto", "auto"]


def test_pretrain_asks_for_what_the_command_asks_for(monkeypatch, tmp_path):
    from wordsworth.jobs.cli import run

    asked = []

    def train(request, on_news):
        asked.append(request)
        raise UserError("enough")

    monkeypatch.setattr("wordsworth.pipeline.training.trainer.train", train)
    size = {"width": 64, "depth": 2, "heads": 2, "patch_size": 8, "image_size": 32}
    with pytest.raises(UserError, match="enough"):
        wordsworth.pretrain(
            "shards", output=tmp_path / "m", **size, epochs=3, lr=0.5, workers=2, objective="mae"
        )
    options = [f"--{name.replace('_', '-')}={value}" for name, value in size.items()]
    options += ["--epochs=3", "--lr=0.5", "--workers=2", "--objective=mae"]
    assert run(["pretrain", "shards", f"--output={tmp_path / 'm'}", *options]) == 1
    assert asked[0] == asked[1] and asked[0].epochs == 3
