"""Find the class of an image: where it stands beside the image, and which number it has."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import UserError


@dataclass(frozen=True)
class Target:
    """Say where the class of each image stands, and which classes there are.

    Attributes:
        where: "cls" or the name of another sidecar or column; "json:FIELD", a field of the sidecar json; or
            "folder", the last folder of an image's key. A number or the name of a label stands there.
        labels: names of the classes in the order of their numbers; None where the classes are numbers only
        classes: number of classes
    """

    where: str
    labels: tuple[str, ...] | None
    classes: int

    @property
    def sidecars(self) -> tuple[str, ...]:
        """Return the sidecars or columns to read for the target: one, or none for "folder"."""
        return target_sidecars(self.where)

    def of(self, rows: pa.Table) -> np.ndarray:
        """Return the classes of rows of predictions.

        Returns:
            int64 array (rows,)

        Raises:
            UserError: a row has no class, or one that the target does not know. The message names the first
                such row.
        """
        texts = rows[self.sidecars[0] if self.sidecars else "key"].to_pylist()
        return self._numbers(
            texts, lambda row: f"{rows['shard'][row].as_py()}: sample {rows['key'][row].as_py()}"
        )

    def of_samples(self, samples: pa.Table, shard: str) -> np.ndarray:
        """Return the classes of a unit's samples, as `of` does. shard: URI for the message.

        Returns:
            int64 array (samples,)
        """
        keys = samples["key"].to_pylist()
        cells = samples["sidecars"].to_pylist()
        texts = [class_text(self.where, key, kept) for key, kept in zip(keys, cells, strict=True)]
        return self._numbers(texts, lambda row: f"{shard}: sample {keys[row]}")

    def _numbers(self, texts: list[str | None], describe: Callable[[int], str]) -> np.ndarray:
        known = {name: number for number, name in enumerate(self.labels or ())}
        numbers: list[int] = []
        for row, text in enumerate(texts):
            name = name_in(self.where, text)
            number = class_number(name, known, self.classes)
            if number is None:
                raise no_class(describe(row), self.where, name, self.classes)
            numbers.append(number)
        return np.array(numbers, np.int64)


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


def no_class(sample: str, where: str, name: str | None, classes: int | None = None) -> UserError:
    """Return the error for a sample without a class.

    classes: number of classes, None where they are not known yet.
    """
    if classes is None:
        return UserError(
            f"{sample} has no class: --target {where} gives {name!r}, a number from 0 on or a name is needed"
        )
    return UserError(f"{sample} has no class of this model's {classes}: --target {where} gives {name!r}")


def name_in(where: str, text: str | None) -> str | None:
    """Return the name of the class that stands in a text from `class_text`; None if it holds no name."""
    if text is None:
        return None
    if where == "folder":
        folders = ["", *text.split("/")]
        return folders[-2] or None
    if where.startswith("json:"):
        try:
            value = json.loads(text).get(where.partition(":")[2])
        except (ValueError, AttributeError):  # no JSON, or no object
            return None
        return None if value is None else str(value)
    return text.strip() or None


def class_number(name: str | None, known: dict[str, int], classes: int) -> int | None:
    """Return the number of a class: the place among the labels, or the name itself; None for no class."""
    if name is None:
        return None
    number = known.get(name)
    if number is None and name.isdecimal():
        number = int(name)
    return number if number is not None and number < classes else None


def labels_of(names: Iterable[str]) -> tuple[str, ...] | None:
    """Return the labels that a data set's names of classes make: sorted; None if all names are numbers."""
    names = set(names)
    if all(name.isdecimal() for name in names):
        return None
    return tuple(sorted(names))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
