"""--help, --version and what is said of unknown options: a person finds the way without the documentation."""

import re
import shlex

import pytest

from wordsworth.jobs import cli
from wordsworth.jobs.commands import COMMANDS
from wordsworth.jobs.hints import COMMAND_HINTS, COMMAND_OPTIONS, HINTS

USUAL = ["--output -o", "--model -m", "--top-k", "--embeddings", "--limit", "--keep"]
IN_ORDER = ["Usual options", "Model", "Source", "Run", "Cluster", "Any command"]


def text_of(capsys, monkeypatch, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.run(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_commands_stand_in_working_order(capsys, monkeypatch):
    text = text_of(capsys, monkeypatch, "--help")
    assert re.findall(r"^│ ([a-z]\w+) ", text, re.MULTILINE) == list(COMMANDS)
    assert re.findall(r"^╭─ ([A-Z][\w ]+) ─", text, re.MULTILINE) == [
        *dict.fromkeys(command.group for command in COMMANDS.values()),
        "Any command",
    ]


def test_the_options_that_matter_most_come_first(capsys, monkeypatch):
    text = text_of(capsys, monkeypatch, "label", "--help")
    assert re.findall(r"^╭─ ([A-Z][\w ]+) ─", text, re.MULTILINE) == ["Arguments", *IN_ORDER]
    usual = text.partition("Usual options")[2].partition("╰")[0]
    assert re.findall(r"^│ [ *]+(--\S+(?: -\w)?)", usual, re.MULTILINE) == USUAL


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_that_it_takes(name, capsys, monkeypatch):
    example = COMMANDS[name].example
    text = " ".join(text_of(capsys, monkeypatch, name, "--help").split())
    assert f"Example: {example}" in text and "--empty-" not in text
    tokens = shlex.split(example)[1:]
    assert tokens[0] == name
    cli.app.parse_args(tokens, print_error=False, exit_on_error=False)
    if "--" in tokens:
        behind = tokens[tokens.index("--") + 1 :]
        cli.app.parse_args(behind, print_error=False, exit_on_error=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_text(name, capsys, monkeypatch):
    text = text_of(capsys, monkeypatch, name, "--help")
    option = r"^│ [ *]{0,4}--(\S+(?: -\w| --no-\S+)?(?: [A-Z.,]+)?) {2,}(.*?) *│$"
    options = re.findall(option, text, re.MULTILINE)
    assert options and [name for name, said in options if not said or said.startswith("[")] == []


def test_three_numbers_of_an_option_are_shown_as_the_one_value_that_they_are(capsys, monkeypatch):
    assert "--mean R,G,B " in text_of(capsys, monkeypatch, "label", "--help")


@pytest.mark.parametrize("option", HINTS)
def test_an_option_of_another_tool_gets_the_word_for_it_here(option, capsys):
    assert cli.run(["label", "in/", "-o", "out", "-m", "S/16", option]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"there is no option {option}: " in told and "{" not in told


def test_what_a_hint_names_is_there():
    names = {"--debug", "--log-format", "--version", "--help"}
    for command in COMMANDS:
        names |= set(cli.option_names(command))
    for hint in [*HINTS.values(), *COMMAND_OPTIONS.values(), *COMMAND_HINTS.values()]:
        assert set(re.findall(r"--[a-z][a-z-]+", hint)) <= names, hint
        for command in re.findall(r"wordsworth ([a-z]+)", hint):
            assert command in COMMANDS


def test_help_is_the_page_of_help(capsys):
    for asked, page in ((["help"], ["--help"]), (["help", "label"], ["label", "--help"])):
        assert cli.run(asked) == cli.run(page) == 0
        told = capsys.readouterr().out
        assert told[: len(told) // 2] == told[len(told) // 2 :] and "Usage: wordsworth" in told


def test_a_typing_error_gets_the_option_that_was_meant(capsys):
    assert cli.run(["label", "in/", "--outptu", "out", "-m", "S/16"]) == 2
    assert "did you mean --output?" in capsys.readouterr().err
    assert cli.run(["lable", "in/"]) == 2
    assert "did you mean label?" in capsys.readouterr().err


def test_the_version_names_the_libraries_and_the_device(capsys):
    cli.run(["--version"])
    name, libraries, device = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"wordsworth \d+\.\d+\S*", name)
    assert re.fullmatch(r"Python 3\S+, ray \S+, torch \S+, timm \S+, pyarrow \S+", libraries)
    assert re.fullmatch(r"no GPU, [\d.]+ CPU cores|\d+ GPUs?", device)


def test_a_shell_completes_commands_and_options():
    script = cli.app.generate_completion(shell="bash")
    assert all(name in script for name in COMMANDS) and "--image-column" in script
