"""Find the file of --config, and read it within bounds: a few lines of YAML can stand for gigabytes."""

import difflib
import json
import tomllib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from cyclopts import App
from cyclopts.config import Dict

from wordsworth.jobs.usage import listed, unknown_option
from wordsworth.pipeline.errors import UserError

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # with everything that aliases repeat
ELSEWHERE = ("config", "debug", "log-format")  # options that are read before a command is called
YAML = (".yaml", ".yml", ".json")  # JSON is YAML too
RECIPES = Path(__file__).resolve().parents[1] / "recipes"  # in a checkout and in an installation


def config_reader(path: Path) -> Callable[[App, tuple[str, ...], Any], None]:
    """Return what gives the options of a file to the command that is called.

    Raises:
        UserError: there is no such file or recipe, or it holds no plain values.
    """
    name = path
    path = recipe(path) or path
    if not path.is_file():
        raise UserError(f"--config {path}: {_missing(path)}", exit_code=2)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"--config {path} has more than {MAX_BYTES:,} bytes: it is no list of options", 2)
    try:
        text = path.read_text(encoding="utf-8")
        values = _yaml(text) if path.suffix in YAML else tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"--config {path}: its brackets are nested too deep", exit_code=2) from error
    except (OSError, ValueError) as error:
        raise UserError(f"--config {path}: {_unread(path, error)}", exit_code=2) from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: give options, one a line, such as top-k: 5", exit_code=2)
    return partial(_give, name, {str(key): value for key, value in values.items()})


def _unread(path: Path, error: Exception) -> str:
    """Say why a file cannot be read, and how its kind is written."""
    said = " ".join(str(error).replace('in "<unicode string>", ', "").split())
    if path.suffix in YAML:
        return f"it is no YAML: {said}: give options such as top-k: 5"
    return f'it is no TOML: {said}: give options such as top-k = 5 or model = "S/16"'


def _give(path: Path, values: dict[str, Any], app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Give the values of a file to the arguments of a command, where the command line has not set them.

    Raises:
        UserError: the file has what is no option of the command.
    """
    options = {
        name.lstrip("-"): argument
        for argument in arguments
        for name in argument.names
        if name.startswith("--")
    }
    given = {}
    for key, value in values.items():
        name = key.replace("_", "-").lstrip("-")
        if name not in options:
            positional = [argument.name for argument in arguments if not argument.names[0].startswith("-")]
            raise UserError(
                f"--config {path}: {_no_option(name, value, commands[0], options, positional)}", exit_code=2
            )
        if value is None:
            raise UserError(f"--config {path}: {key} has no value: give one, or leave it out", exit_code=2)
        is_list = get_origin(_without_none(options[name].hint)) is list
        given[name] = value if is_list else _as_text(f"--config {path}: {key}", value)
    # Each command gets them as a section of its own: the parser drops options that are named like commands.
    Dict({commands[0]: given}, source=str(path))(app, commands, arguments)


def _no_option(key: str, value: Any, command: str, options: Iterable[str], positional: list[str]) -> str:
    """Say of a key that is no option of the command what it is, and where it belongs."""
    if isinstance(value, dict):
        return f"[{key}] is a section: one file is for one command, and its options stand without sections"
    if key.upper() in positional:
        return f"{key} stand on the command line: wordsworth {command} {key.upper()} --config FILE"
    if key in ELSEWHERE:
        return f"--{key} stands on the command line"
    names = [f"--{name}" for name in options]
    told = unknown_option(command, f"--{key}", names).replace("--", "")
    return f"{told} {listed(command)}"


def _without_none(hint: Any) -> Any:
    """Return the type of an option that may be left out."""
    some = [one for one in get_args(hint) if one is not type(None)]
    return some[0] if isinstance(hint, UnionType) or get_origin(hint) is Union else hint


def _as_text(where: str, value: Any) -> Any:
    """Return the value of an option as the text that it is on the command line: a list is joined by commas,
    and a table is a JSON object.

    Raises:
        UserError: a word of a list has a comma.
    """
    if isinstance(value, dict):
        return json.dumps(value)
    if not isinstance(value, list):
        return value
    words = [str(word) for word in value]
    if any("," in word for word in words):
        raise UserError(f"{where}: a comma parts two words here: give names without commas", exit_code=2)
    return ",".join(words)


def recipes() -> dict[str, Path]:
    """Return the files that come with the program, by their names for --config."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def recipe(path: Path) -> Path | None:
    """Return the file of a recipe that is given by its name; None for every other path. A file here wins."""
    if path.name != str(path) or path.is_file():
        return None
    return recipes().get(path.name.removesuffix(".toml"))


def _missing(path: Path) -> str:
    """Say why a path is no file, and what could be meant."""
    if path.is_dir():
        return "it is a folder: give a file with options"
    name = path.name.removesuffix(".toml")
    if name in recipes():
        return f"no such file: the recipe of this name is --config {name}"
    alike = difflib.get_close_matches(name, recipes(), 1)
    meant = f": did you mean {alike[0]}?" if alike else ""
    return f"no such file, and no recipe{meant} (wordsworth models lists the recipes)"


def _yaml(text: str) -> Any:
    """Return the plain values of a text, where they are not many.

    Raises:
        ValueError: it is no YAML, names a type of Python, or is a few lines that stand for millions.
    """
    import yaml

    try:
        if _count(yaml.compose(text, yaml.SafeLoader), {}) > MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values")
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _count(node: Any, counted: dict[int, int]) -> int:
    """Return the values of a node of YAML, as often as aliases repeat each. A node in itself has no end."""
    if id(node) in counted:
        return counted[id(node)]
    counted[id(node)] = MAX_VALUES + 1  # for the node itself, where it stands in itself
    children = node.value if node is not None and isinstance(node.value, list) else []
    total = 1
    for child in children:
        for part in child if isinstance(child, tuple) else (child,):
            total += _count(part, counted)
    counted[id(node)] = total
    return total
