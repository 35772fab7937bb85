"""Read the names of the classes from a config.json of transformers, and the tags of a tagger from its table.

Such files are edited by hand. A name stands where the file tells its place; names without a place are left
out, and a line says so.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wordsworth.vit_model.config import ModelError

TAGS = "selected_tags.csv"  # beside the config.json of a tagger: one row a class, in the order of the outputs
TAG_COLUMN = "name"
NUMBERED = re.compile(r"(?:LABEL_)?(\d{1,9})")  # LABEL_3 is transformers' name of a class without a name

Names = dict[int, str]  # by number of the class


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """Hold the names of the classes that a file gives.

    Attributes:
        labels: one name for each class; None where the file has no names that can be used.
        note: what the user should know of the names, or None.
    """

    labels: tuple[str, ...] | None = None
    note: str | None = None


def class_names(about: dict[str, Any], num_classes: int) -> ClassNames:
    """Return the names of the classes that a config.json of transformers gives.

    Args:
        about: the content of config.json.
        num_classes: outputs of the head, as the weights have them.
    """
    if not num_classes:
        return ClassNames()
    named = about.get("id2label") or _exchanged(about.get("label2id") or {})
    if isinstance(named, list):
        named = dict(enumerate(named))
    if not isinstance(named, Mapping) or not named:
        return ClassNames()
    names = _numbered(named) or _numbered(_exchanged(named))
    if names is None:
        first = next(iter(named))
        return _without("its keys are no numbers of classes, such as " + repr(first))
    if all(name == f"LABEL_{number}" for number, name in names.items()):
        return ClassNames()  # transformers gives such names to classes without names
    return _placed(names, num_classes)


def _placed(names: Names, num_classes: int) -> ClassNames:
    """Return the names in the order of the outputs."""
    low, high = min(names), max(names)
    if high < num_classes:
        labels = tuple(names.get(number, f"LABEL_{number}") for number in range(num_classes))
        missing = num_classes - len(names)
        if not missing:
            return ClassNames(labels=labels)
        unnamed = next(number for number in range(num_classes) if number not in names)
        what = f"{missing} of {num_classes} classes have no name in config.json"
        return ClassNames(labels=labels, note=f"{what}: they are called LABEL_{unnamed} and so on")
    if len(names) == num_classes:
        labels = tuple(names[number] for number in sorted(names))
        what = f"id2label counts from {low} to {high} for {num_classes} classes"
        return ClassNames(labels=labels, note=f"{what}: its names were taken in the order of the numbers")
    return _without(f"it names {len(names)} classes from {low} to {high}, the head has {num_classes}")


def _without(why: str) -> ClassNames:
    advice = "rows have the numbers of the classes alone (--labels FILE names them)"
    return ClassNames(note=f"id2label in config.json cannot be used: {why}; {advice}")


def _numbered(named: Mapping[Any, Any]) -> Names | None:
    """Return names by number; None where a key is no number, or two keys are one number."""
    names: Names = {}
    for key, name in named.items():
        match = NUMBERED.fullmatch(str(key).strip())
        if not match or int(match[1]) in names:
            return None
        number = int(match[1])
        names[number] = f"LABEL_{number}" if name is None else one_line(str(name))
    return names


def _exchanged(named: Any) -> dict[str, Any]:
    """Return keys and values the other way round. Of several keys with one value the first one counts."""
    exchanged: dict[str, Any] = {}
    if isinstance(named, Mapping):
        for name, number in named.items():
            exchanged.setdefault(str(number), name)
    return exchanged


def one_line(name: str) -> str:
    """Return a name without line breaks: a space stands for each run of white space that has one."""
    return re.sub(r"\s*[\r\n]\s*", " ", name).strip() if re.search(r"[\r\n]", name) else name


def read_tags(folder: Path, num_classes: int) -> tuple[str, ...] | None:
    """Return the names in a tagger's table, one for each class; None for a folder without such a table.

    Raises:
        ModelError: the table cannot be read, or has another number of rows than the head has outputs.
    """
    path = folder / TAGS
    if not path.is_file():
        return None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ModelError(f"{path} cannot be read as a table of tags: {error}") from error
    if any(row.get(TAG_COLUMN) is None for row in rows):
        raise ModelError(f"{path} has no column {TAG_COLUMN}, or a row without it")
    if len(rows) != num_classes:
        raise ModelError(f"{path} has {len(rows)} tags, the head has {num_classes} outputs")
    return tuple(one_line(row[TAG_COLUMN]) for row in rows)
