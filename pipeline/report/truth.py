"""Find the right class of each row of a run: where it stands, and which of the run's classes it is."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.pair_counts import PairCounts, pair_numbers, split_pairs
from wordsworth.pipeline.report.html import plural
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.selection import GroupNumbers
from wordsworth.pipeline.sources.class_target import name_in, read_digits_as_names, target_sidecars
from wordsworth.pipeline.sources.kept_columns import output_name
from wordsworth.pipeline.sources.model_target import NO_CLASS, ModelTarget, model_target
from wordsworth.pipeline.sources.wordnet import ID_FILES

NONE = str(NO_CLASS)  # name of the class of a row that has none
MOST_NAMES = 100_000  # different names of classes: more are something else, such as captions
NUM_SHOWN = 3  # names that a message lists
SHOWN_NAME = 40  # characters of each, at most
ENOUGH = 0.5  # share of a head's classes that occur, from which on the head is taken for one of ImageNet's
MANY = 0.5  # share of the numbers in a column that are names of labels, from which on all are names


class TruthNames:
    """Number the names of the classes in the rows of a run, in the order in which they first come.

    Args:
        run: the run.
        where: where the class of a row stands: a kept column, json:FIELD of the kept column json, or folder:
            the last folder of the key.

    Raises:
        UserError: the run keeps no such column.
    """

    def __init__(self, run: RunRows, where: str):
        self.where = where
        self.column = _column_of(run, where)
        self.output = run.output
        self._numbers = GroupNumbers()

    @property
    def names(self) -> list[str]:
        """Return the names by their number; NONE where a row has no class."""
        return [str(name) for name in self._numbers.values]

    def of(self, rows: pa.Table | pa.RecordBatch) -> np.ndarray:
        """Return the number of each row's name, int64.

        Raises:
            UserError: the column holds too many names to be one of classes.
        """
        column = rows[self.column]
        plain = pc.fill_null(column.cast(pa.string()), "")
        if isinstance(plain, pa.ChunkedArray):
            plain = plain.combine_chunks()
        encoded = plain.dictionary_encode()
        names = [name_in(self.where, text) or NONE for text in encoded.dictionary.to_pylist()]
        if not names:
            return np.empty(0, np.int64)
        numbers = self._numbers.of(np.array(names, object))
        if len(self._numbers) > MOST_NAMES:
            raise UserError(
                f"--truth {self.where} gives more than {MOST_NAMES:,} different values in {self.output}, "
                f"such as {_quoted(names[0])}: a column of classes is needed"
            )
        return numbers[encoded.indices.to_numpy(zero_copy_only=False)]


def _column_of(run: RunRows, where: str) -> str:
    """Return the column in which the class stands."""
    if not run.has("label_id"):
        raise UserError(
            f"the rows of {run.output} have no labels to compare with --truth {where}: a run of `wordsworth "
            "label` whose model has classes is needed"
        )
    sidecars = target_sidecars(where)
    if not sidecars:
        return "key"
    column = sidecars[0]
    kept = [output_name(name) for name in run.plan.asked.get("keep") or []]
    if column in kept and run.has(column):
        return column
    there = f"it keeps {', '.join(kept)}" if kept else "it keeps no column"
    raise UserError(
        f"--truth {where}: {run.output} keeps no column {column}: {there}; `wordsworth label --keep "
        f"{column}` keeps one, and --truth folder takes the last folder of the key",
        exit_code=2,
    )


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
        labels[number] = labels[number] if label is None else label
    numbers, unclear, known = [], [], []
    for place, name in enumerate(names):
        number = target.number(name)
        if number is None and (target.labels or ()).count(name) > 1:
            unclear.append(place)
            number = NO_CLASS
        elif number is None:
            number = len(labels)
            labels.append(name)
        elif number != NO_CLASS:
            known.append(name)
        numbers.append(number)
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


# ---- a first pass over the rows -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunTruth:
    """Hold what a first pass over the rows finds.

    Attributes:
        names: numbers the names of the classes.
        classes: the classes of the names.
        counts: (N,) labelled rows by the number of the name.
        pairs: labelled rows by the right class and the predicted one.
    """

    names: TruthNames
    classes: TruthClasses
    counts: np.ndarray
    pairs: PairCounts

    @property
    def num_rows(self) -> int:
        """Return the number of labelled rows."""
        return int(self.counts.sum())

    def worst_pairs(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the most frequent pairs of a right class and another predicted one, and their counts."""
        pairs, counts = self.pairs.all()
        right, said = split_pairs(pairs)
        is_wrong = right != said
        pairs, counts = pairs[is_wrong], counts[is_wrong]
        order = np.argsort(-counts, kind="stable")[:most]
        return pairs[order], counts[order]


def read_truth(run: RunRows, where: str) -> RunTruth:
    """Return which classes the rows of a run have, and which its labels say.

    Memory grows with the different names and with the different pairs of a right and a predicted class.

    Raises:
        UserError: the run keeps no such column, no row has a class, or no class is one of the run's.
    """
    names = TruthNames(run, where)
    classes = RunClasses()
    named_pairs = PairCounts()
    counts = np.zeros(0, np.int64)
    columns = list(dict.fromkeys([names.column, "label_id", "topk"]))
    for batch in run.batches(columns, pc.field("error").is_null() & pc.field("label_id").is_valid()):
        classes.add(batch)
        numbers = names.of(batch)
        counts = _sum(counts, np.bincount(numbers))
        named_pairs.add(numbers, batch["label_id"].to_numpy())
    found = resolve(where, names.names, classes)
    check_truth(run, names, found, counts)
    pairs = PairCounts()
    pair, num = named_pairs.all()
    of_name, said = split_pairs(pair)
    right = found.numbers[of_name]
    has_class = right != NO_CLASS
    pairs.add_counted(pair_numbers(right, said)[has_class], num[has_class])
    return RunTruth(names=names, classes=found, counts=_sum(counts, np.zeros(len(names.names))), pairs=pairs)


def read_classes(run: RunRows) -> RunClasses:
    """Return the classes that stand in the rows of a run."""
    classes = RunClasses()
    for batch in run.batches(["topk"], pc.field("error").is_null() & pc.field("label_id").is_valid()):
        classes.add(batch)
    return classes


def check_truth(run: RunRows, names: TruthNames, found: TruthClasses, counts: np.ndarray) -> None:
    """Check that names of classes can be compared with the labels of a run.

    Raises:
        UserError: no row has a class, or no class is one of the run's.
    """
    total = int(counts.sum())
    if not total:
        raise UserError(f"no row of {run.output} has a label to compare with --truth {names.where}")
    is_class = np.array([name != NONE for name in names.names], bool)
    if not counts[is_class].sum():
        raise UserError(
            f"none of the {total:,} images of {run.output} has a class: --truth {names.where} gives none, "
            "or -1"
        )
    is_known = (found.numbers != NO_CLASS) & (found.numbers < found.num_known)
    if counts[is_known].sum():
        return
    labels = ", ".join(map(_quoted, found.labels[:NUM_SHOWN]))
    raise UserError(
        f"no class that --truth {names.where} gives is a label of {run.output}: it gives "
        f"{told_names(names.names, counts, is_class)}, and the labels are {labels}"
        f"{', ...' if found.num_known > NUM_SHOWN else ''}"
    )


def told_names(names: list[str], counts: np.ndarray, is_meant: np.ndarray) -> str:
    """Return the most frequent of some names, with their counts: 'zebra' (12), 'yak' (3), ..."""
    places = np.flatnonzero(is_meant & (counts > 0))
    order = places[np.argsort(-counts[places], kind="stable")]
    told = [f"{_quoted(names[place])} ({counts[place]:,})" for place in order[:NUM_SHOWN].tolist()]
    return ", ".join(told) + (", ..." if len(order) > NUM_SHOWN else "")


def unknown_told(names: list[str], counts: np.ndarray, classes: TruthClasses) -> str:
    """Say which images have a class that stands in no row; nothing where there are none."""
    is_unknown = classes.numbers >= classes.num_known
    num = int(counts[is_unknown].sum())
    if not num:
        return ""
    share = num / max(1, int(counts[classes.numbers != NO_CLASS].sum()))
    return (
        f"{plural(num, 'image')} ({share:.1%}) count as mistakes because their class is among the best "
        f"classes of no row: {told_names(names, counts, is_unknown)}"
    )


def left_out_told(names: list[str], counts: np.ndarray, classes: TruthClasses) -> list[str]:
    """Say which images have no class to compare with."""
    told = []
    num_none = int(counts[[name == NONE for name in names]].sum())
    if num_none:
        told.append(f"{plural(num_none, 'image')} without a class are left out")
    is_unclear = np.zeros(len(names), bool)
    is_unclear[classes.unclear] = True
    if counts[is_unclear].sum():
        num = plural(int(counts[is_unclear].sum()), "image")
        of = told_names(names, counts, is_unclear)
        told.append(f"{num} are left out, because several classes have their name: {of}")
    return told


def _sum(a: np.ndarray, b: Iterable[int] | np.ndarray) -> np.ndarray:
    """Return the sum of two arrays of counts, of which the shorter one lacks zeros."""
    b = np.asarray(b, np.int64)
    if len(b) < len(a):
        a, b = b, a
    summed = b.copy()
    summed[: len(a)] += a
    return summed


def _quoted(name: str) -> str:
    return repr(name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}...")
