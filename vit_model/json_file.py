"""Read JSON and text that others put beside weights, within bounds: no few bytes cost hours or memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wordsworth.vit_model.config import MAX_DEPTH, MAX_SIDE, ModelError

MAX_BYTES = 64 << 20  # of a file; a million classes with names take 40 MB
# Names of fields that count layers, and of fields that are pixels. Libraries build a module for each layer.
LAYERS = re.compile(r"depths?|layers|blocks|repeats?|num_stages|(num|n)_(\w+_)?(layers|blocks|stages)(_\w+)?")
PIXELS = re.compile(r"(\w+_)?(image|img|input|crop|grid)_size|size|height|width|\w+_edge")
MAX_NUMBER = 1 << 40  # any other whole number


def read_text(path: Path) -> str:
    """Read a text in UTF-8.

    Raises:
        ModelError: the file is larger than any such text.
        OSError, ValueError: it cannot be read, or is no text.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelError(
            f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} that are read of such a file"
        )
    return path.read_text(encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """Return what a text in JSON holds.

    Raises:
        ValueError: it is no JSON, or nested deeper than the parser goes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: the file cannot be read or is not an object, or a number in it is of no model.
    """
    try:
        about = parse_json(read_text(path))
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {type(error).__name__}: {error}".splitlines()[0]) from error
    if not isinstance(about, dict):
        raise ModelError(f"{path} is not a JSON object")
    check_numbers(about, path)
    return about


def check_numbers(about: dict[str, Any], where: object) -> None:
    """Check the sizes in a config before anything is built from it.

    Raises:
        ModelError: more layers or larger images than any model has.
    """
    for name, number in _numbers(about):
        most = MAX_NUMBER
        if LAYERS.fullmatch(name):
            most = MAX_DEPTH
        elif PIXELS.fullmatch(name):
            most = MAX_SIDE
        if number > most:
            raise ModelError(f"{where}: {name} is {_short(number)}; it must be at most {most:,}")


def _numbers(about: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield every whole number with the name of its field; in a list, with the name of the list."""
    waiting: list[tuple[str, Any]] = [("", about)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(key).lower(), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]
        elif isinstance(value, int):
            yield name, value


def _short(number: int) -> str:
    return f"{number:,}" if number < MAX_NUMBER else "a number of many digits"
