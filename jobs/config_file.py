"""Read the file of --config within bounds: a few lines of YAML can stand for gigabytes."""

import tomllib
from pathlib import Path
from typing import Any

from cyclopts.config import Toml, Yaml

from wordsworth.pipeline.errors import UserError

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # with everything that aliases repeat


def config_reader(path: Path) -> Toml | Yaml:
    """Return what gives the options of a file to the commands.

    Raises:
        UserError: there is no such file, or it holds no plain values.
    """
    if not path.is_file():
        raise UserError(f"--config {path}: no such file", exit_code=2)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"--config {path} has more than {MAX_BYTES:,} bytes: it is no list of options", 2)
    reader: type[Toml | Yaml] = Yaml if path.suffix in (".yaml", ".yml") else Toml
    try:
        text = path.read_text(encoding="utf-8")
        if reader is Yaml:
            _check_yaml(text)
        else:
            tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"--config {path}: its brackets are nested too deep", exit_code=2) from error
    except (OSError, ValueError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}", exit_code=2) from error
    return reader(path, use_commands_as_keys=False, must_exist=True)


def _check_yaml(text: str) -> None:
    """Check that a text holds plain values, and not many.

    Raises:
        ValueError: it is no YAML, names a type of Python, or is a few lines that stand for millions.
    """
    import yaml

    try:
        if _count(yaml.compose(text, yaml.SafeLoader), {}) > MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values")
        yaml.safe_load(text)
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
