"""The file of --config: plain values, and no more of them than options need."""

import re
import shutil
import time
import tomllib
from pathlib import Path

import pytest

from wordsworth.jobs.cli import app, run
from wordsworth.jobs.config_file import config_reader, recipe, recipes
from wordsworth.jobs.submitted_command import checked_command

RECIPES = Path(__file__).parents[2] / "recipes"

PAIRS = list(zip("abcdefgh", "bcdefghi", strict=True))


def tens(begin: str, end: str) -> str:
    """Return lines of which each repeats the one before ten times."""
    return "".join(f"{name}: &{name} {begin}[{f'*{before}, ' * 10}]{end}\n" for before, name in PAIRS)


LAUGHS = f"a: &a [{'x, ' * 10}]\n{tens('', '')}"
MERGES = f"a: &a {{x: 1, y: 2}}\n{tens('{<<: ', '}')}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", LAUGHS, "its aliases stand for more than 100,000 values"),
        ("c.yaml", MERGES, "its aliases stand for more than 100,000 values"),
        ("c.yaml", "a: &a [*a]\n", "its aliases stand for more than 100,000 values"),
        ("c.yaml", "image-size: !!python/object/apply:os.system ['touch {marker}']", "could not determine a"),
        ("c.yaml", "[" * 100_000, "its brackets are nested too deep"),
        ("c.toml", "a = " + "[" * 100_000, "its brackets are nested too deep"),
        ("c.toml", "image-size = " + "9" * 5000, "Exceeds the limit (4300 digits)"),
        ("c.yaml", "image-size: " + "9" * 5000, "Exceeds the limit (4300 digits)"),
        ("c.toml", "#" * (2 << 20), "has more than 1,048,576 bytes"),
        ("c.toml", "\x00", "c.toml: "),
        ("c.yaml", "\xff\x00\x1b]0;owned\x07", "c.yaml: "),
    ],
)
def test_a_config_that_is_a_bomb_or_names_code_is_one_line_at_once(tmp_path, capsys, name, text, message):
    marker = tmp_path / "marker"
    (tmp_path / name).write_text(text.replace("{marker}", str(marker)))
    begun = time.monotonic()
    assert run(["models", "--config", str(tmp_path / name)]) == 2
    assert time.monotonic() - begun < 10
    stdout, stderr = capsys.readouterr()
    assert message in stderr and len(stderr.splitlines()) == 1 and stdout == "" and "\x1b" not in stderr
    assert not marker.exists()


def test_aliases_of_a_sane_config_are_read(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("json: &yes true\nimage-size: 32\n")
    assert run(["models", "--config", str(tmp_path / "c.yaml")]) == 0
    assert capsys.readouterr().out.startswith("[")


def values_of(command: str, config: str | Path, *tokens: str) -> dict:
    """Return what a file gives to a command, by the fields of its groups of options."""
    app.config = config_reader(Path(config))
    _, bound, _ = app.parse_args([command, "SOURCES", *tokens], print_error=False, exit_on_error=False)
    app.config = ()
    values: dict = {}
    for name, value in bound.arguments.items():
        values |= vars(value) if hasattr(value, "__dataclass_fields__") else {name: value}
    return values


def test_lists_and_tables_of_a_file_are_what_commas_and_json_are_on_the_command_line(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'model = "S/16"\nkeep = ["json", "txt"]\nmean = [0.5, 0.25, 1]\nstorage-options = { anon = true }\n'
        'allow-uris = ["/a", "/b"]\n'
    )
    given = values_of("label", config)
    typed = values_of(
        "label",
        RECIPES / "label.toml",
        *("--keep", "json,txt", "--mean", "0.5,0.25,1", "--storage-options", '{"anon": true}'),
        *("--allow-uris", "/a", "--allow-uris", "/b"),
    )
    assert given["mean"] == (0.5, 0.25, 1.0)
    for name in ("keep", "mean", "storage_options", "allow_uris"):
        assert given[name] == typed[name], name


def test_a_comma_in_a_list_of_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "c.toml").write_text('model = "S/16"\nclasses = ["cat, black", "dog"]\n')
    assert run(["label", "in/", "--config", str(tmp_path / "c.toml")]) == 2
    assert "c.toml: classes: a comma parts two words here: give names" in capsys.readouterr().err


def test_an_option_that_has_the_name_of_a_command_is_taken(tmp_path):
    (tmp_path / "c.toml").write_text('report = true\nmodel = "S/16"\n')
    assert values_of("label", tmp_path / "c.toml")["report"] is True


@pytest.mark.parametrize("form", ["as it is", "with what is off"])
def test_every_line_of_the_example_for_label_is_an_option_of_it(tmp_path, form):
    text = (RECIPES / "label.toml").read_text()
    if form != "as it is":
        text = re.sub("^#(?=[a-z])", "", text, flags=re.MULTILINE)
    (tmp_path / "label.toml").write_text(text)
    written = tomllib.loads(text)
    given = values_of("label", tmp_path / "label.toml")
    assert len(written) >= (8 if form == "as it is" else 12)
    for name, value in written.items():
        assert given[name.replace("-", "_")] in (
            value,
            ",".join(map(str, value)) if isinstance(value, list) else '{"anon": true}',
        )


def test_a_recipe_is_found_by_its_name_and_a_file_of_that_name_wins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert set(recipes()) == {path.stem for path in RECIPES.glob("*.toml")}
    assert recipe(Path("smoke")) == recipe(Path("smoke.toml")) == RECIPES / "smoke.toml"
    assert recipe(Path("elsewhere/smoke.toml")) is None and recipe(Path("nonesuch")) is None
    shutil.copy(RECIPES / "smoke.toml", tmp_path)
    assert recipe(Path("smoke.toml")) is None
    assert run(["models"]) == 0
    listed = capsys.readouterr().out.partition("--config")[2]
    for name in recipes():
        assert re.search(rf"^ {name} +(label|pretrain|finetune) ", listed, re.MULTILINE), name


def test_a_recipe_travels_with_the_package_and_not_as_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = checked_command(["pretrain", "s3://b/in", "--output", "s3://b/model", "--config", "smoke"])
    assert command.tokens[-2:] == ["--config", "smoke"] and command.carried == {}
