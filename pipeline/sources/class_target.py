"""Find the class of an image: where it stands beside the image, and which number it has."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import UserError

MAX_SHOWN = 300  # characters of a name in a message; of a longer one stand the first 20
NAMED_LABELS = 3  # labels that a message names
MAX_DIGITS = 18  # digits of a number that may count a class; a longer one is none


@dataclass(frozen=True)
class Target:
    """Say where the class of each image stands, and which classes there are.

    Attributes:
        where: "cls" or the name of another sidecar or column; "json:FIELD", a field of the sidecar json; or
            "folder", the last folder of an image's key. A number or the name of a label stands there.
        labels: names of the classes in the order of their numbers; None where the classes are numbers only
        classes: number of classes
        digits_are_names: a name of digits alone, such as 90, is that of a label; else the number of a class.
            None: not known yet, see ModelTarget.
    """

    where: str
    labels: tuple[str, ...] | None
    classes: int
    digits_are_names: bool | None = False

    @property
    def sidecars(self) -> tuple[str, ...]:
        """Return the sidecars or columns to read for the target: one, or none for "folder"."""
        return target_sidecars(self.where)

    def of_samples(self, samples: pa.Table, shard: str) -> np.ndarray:
        """Return the classes of a unit's samples. shard: URI for the message.

        Returns:
            int64 array (samples,)

        Raises:
            UserError: a sample has no class, or one that the target does not know. The message names the
                first such sample.
        """
        keys = samples["key"].to_pylist()
        cells = samples["sidecars"].to_pylist()
        texts = [class_text(self.where, key, kept) for key, kept in zip(keys, cells, strict=True)]
        return self._numbers(texts, lambda row: f"{shard}: sample {keys[row]}")

    def number(self, name: str | None) -> int | None:
        """Return the number of the class of a name; None for no class."""
        if name is None:
            return None
        if name.isdecimal() and not self.digits_are_names:
            return index_in(name, self.classes)
        return self.label_number(name)

    def label_number(self, name: str) -> int | None:
        """Return the number of the label of a name; None where no label, or more than one, has the name."""
        number = self._known.get(name)
        return self._known.get(normalised(name)) if number is None else number

    @cached_property
    def _known(self) -> dict[str, int]:
        """Hold the number of every label, by its name; a name that two labels have is no name."""
        labels = self.labels or ()
        return numbers_of_unique([normalised(label) for label in labels]) | numbers_of_unique(labels)

    def _numbers(self, texts: list[str | None], describe: Callable[[int], str]) -> np.ndarray:
        numbers: list[int] = []
        number_of: dict[str | None, int | None] = {}
        for row, text in enumerate(texts):
            name = name_in(self.where, text)
            if name not in number_of:
                number_of[name] = self.number(name)
            number = number_of[name]
            if number is None:
                raise self._not_known(describe(row), name)
            numbers.append(number)
        return np.array(numbers, np.int64)

    def _not_known(self, sample: str, name: str | None) -> UserError:
        labels = self.labels or ()
        alike = labels.count(name or "")
        why = f", which is the name of {alike} labels" if alike > 1 else ""
        known = ", ".join(_shown_name(label) for label in labels[:NAMED_LABELS])
        if known:
            known = f"; its classes are {known}{', ...' if len(labels) > NAMED_LABELS else ''}"
        return UserError(
            f"{sample} has no class of this model's {self.classes}: --target {self.where} gives "
            f"{_shown_name(name)}{why}{known}: wordsworth finetune makes a model for classes of your own"
        )


def target_sidecars(where: str) -> tuple[str, ...]:
    """Return the sidecars or columns to read for a target: one, or none for "folder"."""
    if where == "folder":
        return ()
    return (where.partition(":")[0],)


def class_text(where: str, key: str | None, sidecars: list[str | None] | None) -> str | None:
    """Return the text that holds a sample's class: the key for "folder", else the sidecar."""
    if where == "folder":
        return key
    return sidecars[0] if sidecars else None


def class_name(where: str, text: str | None, sample: str) -> str:
    """Return the name of a sample's class where the classes are not known yet.

    Args:
        where: as in `Target`
        text: what `class_text` gives
        sample: shard and key, for the message

    Raises:
        UserError: there is no class, or a number that counts no class, such as -1 or 1.5.
    """
    name = name_in(where, text)
    if name is None or (not name.isdecimal() and _is_number(name)):
        raise no_class(sample, where, name)
    return name


def no_class(sample: str, where: str, name: str | None) -> UserError:
    """Return the error for a sample without a class, where the classes are not known yet.

    Args:
        sample: shard and key
        where: as in `Target`
        name: what stands there
    """
    key = sample.rpartition("sample ")[2]
    folder = key.rpartition("/")[0].rpartition("/")[2]
    advice = f": --target folder gives {folder!r}" if where != "folder" and folder else ""
    return UserError(
        f"{sample} has no class: --target {where} gives {_shown_name(name)}, a number from 0 on or a name is "
        f"needed{advice}"
    )


def _shown_name(name: str | None) -> str:
    if name and len(name) > MAX_SHOWN:
        return f"{name[:20]!r}... of {len(name)} characters"
    return repr(name)


def name_in(where: str, text: str | None) -> str | None:
    """Return the name of the class that stands in a text from `class_text`; None if it holds no name."""
    if text is None:
        return None
    if where == "folder":
        folders = [part for part in text.rstrip("/").split("/")[:-1] if part]  # of cat//1.jpg it is cat
        return folders[-1] if folders else None
    if where.startswith("json:"):
        try:
            value = json.loads(text).get(where.partition(":")[2])
        except (ValueError, AttributeError, RecursionError):  # no JSON, or no object
            return None
        return None if value is None else str(value)
    return text.strip() or None


def index_in(name: str, classes: int) -> int | None:
    """Return the number that a name of digits is; None if there are not so many classes."""
    if len(name) > MAX_DIGITS or int(name) >= classes:
        return None
    return int(name)


def numbers_of_unique(labels: Sequence[str]) -> dict[str, int]:
    """Return the places of the labels that occur once."""
    counts = Counter(labels)
    return {label: number for number, label in enumerate(labels) if counts[label] == 1}


def normalised(name: str) -> str:
    """Return the name of a class as it is compared: in NFC, so that names that look alike are one."""
    return unicodedata.normalize("NFC", name)


def labels_of(names: Iterable[str], where: str) -> tuple[str, ...] | None:
    """Return the labels that a data set's names of classes make; None if the names are numbers of classes.

    The order is that of plain text, as of torchvision's ImageFolder: 0, 180, 270, 90. Folders have names,
    whatever they look like. Elsewhere digits are numbers, unless a zero stands before them: no number is
    written 001. A `cls` file holds a number by the rule of WebDataset.
    """
    names = set(names)
    if where != "folder" and all(name.isdecimal() for name in names):
        zero_padded = any(len(name) > 1 and name.startswith("0") for name in names)
        if where == "cls" or not zero_padded:
            return None
    return tuple(sorted(names))


def read_digits_as_names(where: str, names: Iterable[str], labels: tuple[str, ...] | None) -> bool:
    """Tell whether names of digits alone are names of labels, where they could be numbers of classes too.

    Args:
        where: as in `Target`
        names: all names in the data
        labels: names of the classes

    Returns:
        True for folders, if any label is a number. Elsewhere if each such name is a label; in `cls` files,
        which hold numbers by the rule of WebDataset, only if they cannot be numbers of classes.
    """
    known = set(labels or ())
    if where == "folder":
        return any(label.isdecimal() for label in known)
    names = set(names)
    digits = {name for name in names if name.isdecimal()}
    if not digits or not digits <= known:
        return False
    if where != "cls":
        return True
    return digits != names or any(index_in(name, len(known)) is None for name in digits)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
