"""The command line as a person meets it: help at once, and exit codes that scripts can trust."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.jobs import fault_env
from tests.support.builders import photo, write_shards, write_tar
from wordsworth.jobs.cli import COMMANDS, run

LIGHT = """
import sys
from wordsworth.jobs.cli import run
try:
    run({arguments})
except SystemExit:
    pass
heavy = {{"torch", "ray", "pandas", "timm"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["label", "--help"], ["pretrain", "--help"], ["verify", "--help"]]
)
def test_help_imports_neither_torch_nor_ray(arguments):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(arguments=arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: wordsworth" in done.stdout


@pytest.mark.parametrize("more", [["-o", "out"], []])
def test_an_architecture_without_weights_is_refused_before_torch_is_loaded(tmp_path, more):
    photo_file = tmp_path / "a.jpg"
    photo_file.write_bytes(photo(8))
    code = LIGHT.format(arguments=["label", str(photo_file), "-m", "Ti/16", *more])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--model Ti/16 names an architecture but no weights" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


ENDING = """
import atexit, sys
from wordsworth.jobs import cli

class Late:
    def __del__(self):
        print("took its modules apart")

late = Late()
run = cli.run
def running(arguments):
    atexit.register(print, "what a library does at the end")
    return run(arguments)

cli.run = running
sys.argv = ["wordsworth", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(("arguments", "code"), [(["models"], 0), (["models", "--nope"], 2)])
def test_the_prompt_does_not_wait_for_python_to_take_its_modules_apart(arguments, code):
    done = subprocess.run([sys.executable, "-c", ENDING, *arguments], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.endswith("what a library does at the end\n")
    assert ("S/16" in done.stdout) == (code == 0)


def test_help_names_every_command_and_every_command_has_its_own(wordsworth, capsys):
    text = wordsworth("--help").stdout
    for name in COMMANDS:
        assert f" {name} " in text
        assert run([name, "--help"]) == 0
        assert f"Usage: wordsworth {name}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_model):
    """A folder with shards and a model."""
    root = tmp_path_factory.mktemp("place")
    write_shards(root / "shards", shards=2, images=4)
    (root / "model").symlink_to(small_model)
    return root


def test_debug_shows_the_traceback(place, wordsworth):
    done = wordsworth(
        "label", place / "nowhere", "--output", place / "o", "--model", place / "model", "--debug"
    )
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("kind", ["toml", pytest.param("yaml", marks=pytest.mark.long)])
def test_a_config_file_gives_any_option_and_the_command_line_wins(place, tmp_path, wordsworth, kind):
    config = tmp_path / f"run.{kind}"
    values = {
        "output": str(tmp_path / "out"),
        "model": str(place / "model"),
        "top_k": 4,
        "precision": "fp32",
        "json": True,
    }
    separator = " = " if kind == "toml" else ": "
    config.write_text(
        "\n".join(f"{name.replace('_', '-')}{separator}{json.dumps(value)}" for name, value in values.items())
    )
    done = wordsworth("label", place / "shards", "--config", config, "--top-k", 2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 8, "stdout is the JSON and nothing else"
    assert json.loads((tmp_path / "out" / "_run" / "plan.json").read_text())["asked"]["top-k"] == 2


def test_a_typo_in_a_config_file_is_wrong_usage(place, tmp_path, wordsworth):
    config = tmp_path / "run.toml"
    config.write_text('modle = "x"\n')
    done = wordsworth(
        "label",
        place / "shards",
        "--output",
        tmp_path / "out",
        "--model",
        place / "model",
        "--config",
        config,
    )
    assert done.returncode == 2 and "modle" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_over_max_error_rate_exits_3_and_keeps_what_is_good(tmp_path, small_model, wordsworth):
    write_tar(tmp_path / "x.tar", {"a.jpg": photo(1), "b.jpg": b"junk", "c.jpg": photo(2), "d.jpg": b""})
    command = ["label", tmp_path / "x.tar", "--output", tmp_path / "out", "--model", small_model]
    assert wordsworth(*command).returncode == 0, "errors are rows, not failures"
    over = wordsworth(*command, "--max-error-rate", "0.4")
    assert over.returncode == 3 and "50.00% of the rows have an error" in over.stderr
    assert wordsworth("verify", tmp_path / "out", "--source").returncode == 0


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.long)]
)
def test_an_interrupted_run_says_how_to_resume_and_does(tmp_path, small_model, wordsworth, name, code):
    write_shards(tmp_path / "shards", shards=24, images=8)
    arguments = ["label", str(tmp_path / "shards"), "--output", str(tmp_path / "out"), "--model", small_model]
    (tmp_path / "armed").mkdir()
    allowed = tmp_path / "allowed"
    allowed.write_text("2")  # writers wait then: a run that ends before the signal comes would prove nothing
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    process = subprocess.Popen(
        [sys.executable, "-m", "wordsworth", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | fault_env(tmp_path / "armed"),
    )
    signal.signal(signal.SIGINT, ctrl_c)
    deadline = time.time() + 120
    while not list((tmp_path / "out").glob("predictions/*.parquet")) and time.time() < deadline:
        time.sleep(0.05)  # until the first unit is written
    process.send_signal(getattr(signal, name))
    allowed.unlink()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "interrupted: what is done is kept, run the same command again to continue" in errors
    assert "Traceback" not in errors
    if name == "SIGINT":  # what is there is the same after either
        assert wordsworth(*arguments).returncode == 0
        assert wordsworth("verify", tmp_path / "out", "--source").returncode == 0


def test_models_lists_what_the_paper_lists(wordsworth):
    rows = {row["variant"]: row for row in json.loads(wordsworth("models", "--json").stdout)}
    assert (rows["B/16"]["layers"], rows["B/16"]["width"], rows["B/16"]["heads"], rows["B/16"]["mlp"]) == (
        12,
        768,
        12,
        3072,
    )
    assert [round(rows[name]["parameters"] / 1e6) for name in ("B/16", "L/16", "H/14")] == [87, 304, 632]
    assert abs(rows["B/16"]["gflops"] - 35.2) < 0.5


def test_a_config_file_counts_for_its_own_command_only(tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text("width = 3\n")
    assert run(["models", "--config", str(config)]) == 2
    assert run(["models"]) == 0, capsys.readouterr().err
