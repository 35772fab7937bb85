"""Hold that every command in a block of the documentation can be given on a machine with `make setup` alone.

A command of ours is parsed by the command line itself, with all its options and values; `make`, `pip` and
`python` must name what is there. What other programs the pages name is listed here, with what brings them.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from wordsworth.jobs import cli
from wordsworth.jobs.commands import COMMANDS
from wordsworth.jobs.config_file import config_reader

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "SECURITY.md", "CONTRIBUTING.md"]
PAGES += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
# Programs that `make setup` does not bring. The page says of each block what it is for.
ELSEWHERE = {"kubectl": "Kubernetes", "docker": "Docker", "sbatch": "Slurm"}
HERE = ("wordsworth", "make", "pip", "python", "ray", "source", "export")
PROGRAMS = (*HERE, *ELSEWHERE)
COMMAND = re.compile(r"[a-z][a-z0-9_-]+ ")  # what a line begins with that is no file, figure or setting
MODEL = ("--model", "-m")
RAY = Path(sys.executable).with_name("ray")


class Line(NamedTuple):
    """Hold one command of a page: the page, the line's number, and its words."""

    page: str
    number: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {' '.join(self.words)}"


def blocks_of(page: str) -> Iterator[list[tuple[int, str]]]:
    """Yield the blocks of a page that are indented, or fenced as sh, each as (number, line)."""
    block: list[tuple[int, str]] = []
    language: str | None = None
    before = ""
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        fence = re.match(r"```(\w*)", line)
        if fence:
            yield block
            block, language = [], None if language is not None else fence[1]
        elif language == "sh" or (language is None and line.startswith("    ") and (block or not before)):
            block.append((number, line.strip()))
        elif block and line.strip():
            yield block
            block = []
        before = line.strip()
    yield block


def commands_of(page: str) -> Iterator[Line]:
    """Yield every command of a page. A block that begins with a command has nothing else."""
    for block in blocks_of(page):
        lines = [(number, line) for number, line in _whole_lines(block) if line and not line.startswith("#")]
        if not lines or not COMMAND.match(lines[0][1]) or any(" -> " in line for _, line in lines):
            continue
        for number, line in lines:
            for words in _parts(shlex.split(line, comments=True)):
                yield Line(page, number, tuple(words))


def _whole_lines(block: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the lines of a block, joined where one ends with a backslash."""
    begun, start = "", 0
    for number, line in block:
        start = start if begun else number
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        yield start, begun
        begun = ""
    assert not begun, f"line {start} goes on behind the end of its block"


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in ("&&", "|"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


LINES = [line for page in PAGES for line in commands_of(page)]


def lines_of(program: str) -> list[Line]:
    return [line for line in LINES if line.words[0] == program]


def test_the_pages_have_commands_of_each_program():
    assert {line.words[0] for line in LINES} >= {"wordsworth", "make", "pip", "ray", *ELSEWHERE}
    assert len(lines_of("wordsworth")) >= 30


def test_a_page_names_no_program_that_is_not_there():
    """`duckdb` and `tensorboard` are examples: their packages may be here, and their programs are not."""
    assert [str(line) for line in LINES if line.words[0] not in PROGRAMS] == []


def parse(words: Sequence[str]) -> None:
    """Parse a command of ours as the command line does. Dots stand for what the reader gives.

    Raises:
        CycloptsError: it would be refused.
    """
    name, *rest = words
    assert name in COMMANDS, f"there is no command {name}"
    if "--" in rest:
        behind = rest.index("--")
        parse(rest[behind + 1 :])
        rest = rest[:behind]
        cli.app.parse_args([name, *rest, "--", "label"], print_error=False, exit_on_error=False)
        return
    for at in [at for at, word in enumerate(rest) if word == "..."]:
        rest[at] = "PLACE" if at == 0 or rest[at - 1] in MODEL else "..."
    given = with_config([word.removesuffix("...") for word in rest if word != "..."])
    if "..." in words and not {*MODEL} & {*given}:
        given += ["--model", "MODEL"]
    cli.app.parse_args([name, *given], print_error=False, exit_on_error=False)
    cli.app.config = ()


def with_config(given: list[str]) -> list[str]:
    """Return the words without --config FILE or RECIPE, and let the command line have its options."""
    if "--config" not in given:
        return given
    at = given.index("--config")
    named = ROOT / given[at + 1]
    cli.app.config = config_reader(named if named.exists() else ROOT / "recipes" / f"{named.name}.toml")
    return given[:at] + given[at + 2 :]


@pytest.mark.parametrize("line", lines_of("wordsworth"), ids=str)
def test_a_command_of_ours_is_taken_as_it_stands(line):
    parse(line.words[1:])


def test_a_command_that_would_be_refused_is_seen():
    for words in (
        ("label", "in", "--no-such"),
        ("labels", "in"),
        ("label", "in", "--model", "m", "--top-k", "x"),
    ):
        with pytest.raises((cli.CycloptsError, AssertionError)):
            parse(words)


@pytest.mark.parametrize("line", lines_of("make"), ids=str)
def test_a_target_of_make_is_there(line):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(line.words[1:]) <= set(targets)


@pytest.mark.parametrize("line", lines_of("pip"), ids=str)
def test_an_extra_that_pip_installs_is_there(line):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.fullmatch(r"wordsworth\[([\w,]+)\]", line.words[2])
    assert line.words[1] == "install" and set(named[1].split(",")) <= set(extras)


@pytest.mark.slow
@pytest.mark.parametrize("words", sorted({line.words[1:3] for line in lines_of("ray")}), ids=" ".join)
def test_a_command_of_ray_is_there(words):
    command = [word for word in words if not word.startswith(("-", "deploy/"))]
    done = subprocess.run([RAY, *command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
