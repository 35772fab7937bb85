"""Show that no name from data reaches a terminal as a command, in any of its ways there."""

import ast
import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import Progress
from rich.table import Table

from wordsworth.jobs.terminal import Terminal, data_text, own_stderr
from wordsworth.pipeline.errors import UserError, shown

JOBS = Path(__file__).parents[2] / "jobs"
EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J[bold]:warning:\n\u202eb\u2028\ud800"
TAMED = "\\x1b]0;owned\\x07\\x1b[31m\\x9b2J[bold]:warning:\\n\\u202eb\\u2028\\ud800"


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def terminal(request):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    return Terminal(file=out, force_terminal=request.param, width=200, color_system=None)


def written(terminal):
    terminal.file.flush()
    return terminal.file.buffer.getvalue().decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Grün 図像 \u3000x\xa0.jpg", "Grün 図像 \u3000x\xa0.jpg"),
        (EVIL, TAMED),
        ("a\rb\tc\x00\x85", "a\\rb\\tc\\x00\\x85"),
        ("../../etc/passwd =cmd|' /C calc'!A0", "../../etc/passwd =cmd|' /C calc'!A0"),
    ],
)
def test_a_text_from_data_is_one_line_of_printable_characters(text, expected):
    assert shown(text) == expected
    assert shown(shown(text)) == expected, "what was shown once may be shown again"


def test_a_name_of_ten_kilobytes_keeps_its_ends():
    text = shown("begin" + "x" * 10_000 + "end")
    assert len(text) < 2_100 and text.startswith("beginx") and text.endswith("xend")
    assert "... 8,008 characters ..." in text


def test_an_error_is_one_line_whatever_names_it_has():
    assert str(UserError(f"{EVIL} cannot be read")) == f"{TAMED} cannot be read"


def test_a_line_has_the_names_as_they_are_without_markup_and_emoji(terminal):
    terminal.say(EVIL)
    assert written(terminal) == TAMED + "\n"


def test_cells_and_lines_of_a_forgetful_author_send_no_command_either(terminal):
    table = Table("key", box=None)
    table.add_row(EVIL)
    table.add_row(data_text("[red]x"))
    terminal.print(table)
    terminal.print(f"[bold]key[/] {EVIL}")
    text = written(terminal)
    assert "owned" in text and "[red]x" in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_a_long_path_among_facts_is_not_cut_and_is_only_text(terminal):
    path = "/data/" + "a" * 300
    terminal.print_facts({"rows": "3", "predictions": f"{path} {EVIL}"})
    first, second = written(terminal).rstrip("\n").split("\n")
    assert first == " rows         3" and second.startswith(f" predictions  {path} ")
    assert second.isprintable()


def test_a_display_inside_another_ones_bar_has_a_file_of_its_own_too(monkeypatch):
    """While Ray starts, what is written to descriptor 2 is lost."""
    with open(os.devnull, "w") as stream:
        monkeypatch.setattr(sys, "__stderr__", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress(console=Console(file=stream, force_terminal=True)):
            assert isinstance(sys.stderr, FileProxy)
            with own_stderr() as own:
                assert own.fileno() != stream.fileno()


def test_no_command_prints_past_the_terminal():
    for path in JOBS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                assert path.name == "terminal.py"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                # Both escape what a terminal would obey.
                assert ast.unparse(node.args[0]).startswith(("json.dumps(", "yaml.safe_dump(")), path
