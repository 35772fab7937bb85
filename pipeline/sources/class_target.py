"""Where an image's class stands, and which number it is."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import UserError


@dataclass(frozen=True)
class Target:
    """where: "cls" or another sidecar or column by its name, "json:FIELD" of the sidecar json, or "folder", the last folder of an
    image's key. What stands there is a number, or a name among the labels."""

    where: str
    labels: tuple[str, ...] | None
    classes: int

    @property
    def kept(self) -> tuple[str, ...]:
        """The sidecar that the rows must carry."""
        return kept(self.where)

    def of(self, rows: pa.Table) -> np.ndarray:
        """The classes of rows of predictions: int64 (rows,). Raises UserError for the first one that is missing or unknown."""
        texts = rows[self.kept[0] if self.kept else "key"].to_pylist()
        return self._numbers(
            texts, lambda row: f"{rows['shard'][row].as_py()}: sample {rows['key'][row].as_py()}"
        )

    def of_samples(self, samples: pa.Table, shard: str) -> np.ndarray:
        """The same of a unit's samples: int64 (samples,)."""
        keys = samples["key"].to_pylist()
        texts = [(cells or [None])[0] for cells in samples["sidecars"].to_pylist()] if self.kept else keys
        return self._numbers(texts, lambda row: f"{shard}: sample {keys[row]}")

    def _numbers(self, texts: list[str | None], called: Callable[[int], str]) -> np.ndarray:
        known = {name: number for number, name in enumerate(self.labels or ())}
        names = [named(self.where, text) for text in texts]
        numbers = [class_of(name, known, self.classes) for name in names]
        if None in numbers:
            row = numbers.index(None)
            raise UserError(
                f"{called(row)} has no class of this model's {self.classes}: --target {self.where} gives {names[row]!r}"
            )
        return np.array(numbers, np.int64)


def kept(where: str) -> tuple[str, ...]:
    """The sidecars or columns to read for a target."""
    return () if where == "folder" else (where.partition(":")[0],)


def named(where: str, text: str | None) -> str | None:
    """What a sample's class is called: of its key for "folder", else of the sidecar; None where it has none."""
    if text is None:
        return None
    if where == "folder":
        return (["", *text.split("/")])[-2] or None
    if where.startswith("json:"):
        try:
            found = json.loads(text).get(where.partition(":")[2])
        except (ValueError, AttributeError):
            return None
        return None if found is None else str(found)
    return text.strip() or None


def class_of(name: str | None, known: dict[str, int], classes: int) -> int | None:
    """The number of a name: its place among the labels, or the number that it is; None for what is no class."""
    number = known.get(name, int(name) if name is not None and name.isdecimal() else None)
    return number if number is not None and number < classes else None


def labels_of(names: Iterable[str]) -> tuple[str, ...] | None:
    """The labels that the names of a data set make: None where all are numbers, else the names in order."""
    names = set(names)
    return None if all(name.isdecimal() for name in names) else tuple(sorted(names))
