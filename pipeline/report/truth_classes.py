"""Find the class of a name among the classes that stand in the rows of a run."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.sources.class_target import read_digits_as_names
from wordsworth.pipeline.sources.model_target import NO_CLASS, ModelTarget, model_target
from wordsworth.pipeline.sources.wordnet import ID_FILES

NONE = str(NO_CLASS)  # name of the class of a row that has none
ENOUGH = 0.5  # share of a head's classes that occur, from which on the head is taken for one of ImageNet's
MANY = 0.5  # share of the numbers in a column that are names of labels, from which on all are names


class RunClasses:
    """Collect the classes that stand in the rows of a run: a run does not hold the list of its model's.

    Attributes:
        names: name of a class by its number in the model; None for one without a name.
    """

    def __init__(self) -> None:
        self.names: dict[int, str | None] = {}

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Look at the best classes of rows, in their column topk."""
        lists = rows["topk"]
        if isinstance(lists, pa.ChunkedArray):
            lists = lists.combine_chunks()
        entries = lists.flatten()
        numbers, first = np.unique(
            entries.field("label_id").to_numpy(zero_copy_only=False), return_index=True
        )
        new = [place for place, number in enumerate(numbers.tolist()) if number not in self.names]
        if new:
            labels = entries.field("label").take(pa.array(first[new])).to_pylist()
            self.names |= zip(numbers[new].tolist(), labels, strict=True)


@dataclass(frozen=True, kw_only=True)
class TruthClasses:
    """Say which class of a run each name of a class is.

    Attributes:
        numbers: (N,) by the number of the name: the class by its number in the model; NO_CLASS for no class
            and for a name of several classes. A name that is of no class in the rows has a number of its own,
            behind those of the model.
        labels: names of classes by these numbers.
        num_known: classes up to the highest number in the rows.
        reading: by which names the rows have their classes, for people.
        unclear: numbers of the names that several classes have.
    """

    numbers: np.ndarray
    labels: tuple[str, ...]
    num_known: int
    reading: str
    unclear: np.ndarray

    def is_unknown(self, numbers: np.ndarray) -> np.ndarray:
        """Return whether each name is of no class in the rows, from `numbers` of names."""
        return self.numbers[numbers] >= self.num_known


def resolve(where: str, names: list[str], classes: RunClasses) -> TruthClasses:
    """Find the classes of names.

    A name is read as `wordsworth evaluate` reads it: as a label, as the number of a class, as a WordNet id,
    or as a label in other writing.

    Args:
        where: as in `TruthNames`.
        names: the names by their number.
        classes: the classes that stand in the rows.
    """
    target = _target(where, names, classes.names)
    num_known = max([target.classes, *(number + 1 for number in classes.names)])
    labels = [f"class {number}" for number in range(num_known)]
    for number, label in classes.names.items():
        if label is not None:
            labels[number] = label
    numbers: list[int] = []
    unclear: list[int] = []
    known: list[str] = []
    for place, name in enumerate(names):
        found = target.number(name)
        if found is not None:
            numbers.append(found)
            known += [name] if found != NO_CLASS else []
        elif (target.labels or ()).count(name) > 1:
            numbers.append(NO_CLASS)
            unclear.append(place)
        else:
            numbers.append(len(labels))
            labels.append(name)
    return TruthClasses(
        numbers=np.array(numbers, np.int64),
        labels=tuple(labels),
        num_known=num_known,
        reading="".join(target.kinds(known)) if known else "",
        unclear=np.array(unclear, np.int64),
    )


def _target(where: str, names: list[str], classes: dict[int, str | None]) -> ModelTarget:
    """Return what finds the class of a name among the classes that stand in the rows.

    Classes that stand in no row are without a name. The rows of a model of ImageNet's seldom have all of its
    classes, and the WordNet ids want the number of all: it is that of the next larger head of ImageNet's.
    """
    size = max(classes, default=-1) + 1
    larger = [of_head for of_head in sorted(ID_FILES) if of_head >= size]
    if larger and len(classes) >= ENOUGH * larger[0]:
        size = larger[0]
    labels = None
    if any(label is not None for label in classes.values()):
        labels = tuple(classes.get(number) or f"class {number}" for number in range(size))
    target = model_target(where, labels, size)
    # Labels that stand in no row are not known, so a number that is none of the known ones may be one.
    digits = [name for name in names if name.isdecimal()]
    named = [name for name in digits if name in (labels or ())]
    if named and where != "folder" and len(named) >= MANY * len(digits):
        names = [name for name in names if name not in digits or name in named]
    given = [name for name in names if name != NONE]
    return replace(target, digits_are_names=read_digits_as_names(where, given, labels))
