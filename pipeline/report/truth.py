"""Find the right class of each row of a run, in a first pass over the rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.output.pair_counts import PairCounts, pair_numbers, split_pairs
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.selection import GroupNumbers
from wordsworth.pipeline.report.truth_classes import NONE, RunClasses, TruthClasses, resolve
from wordsworth.pipeline.sources.class_target import name_in, target_sidecars
from wordsworth.pipeline.sources.kept_columns import output_name
from wordsworth.pipeline.sources.model_target import NO_CLASS

MOST_NAMES = 100_000  # different names of classes: more are something else, such as captions
NUM_SHOWN = 3  # names that a message lists
SHOWN_NAME = 40  # characters of each, at most


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


def keeps_truth(run: RunRows, where: str) -> bool:
    """Return whether the rows of a run hold what `where` names."""
    sidecars = target_sidecars(where)
    return not sidecars or (sidecars[0] in _kept(run) and run.has(sidecars[0]))


def refuse_column(runs: Sequence[RunRows], where: str) -> UserError:
    """Return the error for a column that no run keeps."""
    column = target_sidecars(where)[0]
    told = []
    for run in runs:
        kept = ", ".join(_kept(run))
        told.append(f"{run.output} keeps {kept or 'no column'}")
    keep = f"{column}=NAME" if runs[0].has(column) else column  # a column of the rows' own has the name
    return UserError(
        f"--truth {where}: no column {column} was kept: {', '.join(told)}; `wordsworth label --keep {keep}` "
        "keeps one, and --truth folder takes the last folder of the key",
        exit_code=2,
    )


def _kept(run: RunRows) -> list[str]:
    return [output_name(name) for name in run.plan.asked.get("keep") or []]


def _column_of(run: RunRows, where: str) -> str:
    """Return the column in which the class stands."""
    if not run.has("label_id"):
        raise UserError(
            f"the rows of {run.output} have no labels to compare with --truth {where}: a run of `wordsworth "
            "label` whose model has classes is needed"
        )
    if not keeps_truth(run, where):
        raise refuse_column([run], where)
    sidecars = target_sidecars(where)
    return sidecars[0] if sidecars else "key"


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
            f"none of the {plural(total, 'image')} of {run.output} has a class: "
            f"--truth {names.where} gives none, or -1"
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
        f"counted as mistakes: {plural(num, 'image')} ({share:.1%}) whose class is among the best classes of "
        f"no row: {told_names(names, counts, is_unknown)}"
    )


def left_out_told(names: list[str], counts: np.ndarray, classes: TruthClasses) -> list[str]:
    """Say which images have no class to compare with."""
    told = []
    num_none = int(counts[[name == NONE for name in names]].sum())
    if num_none:
        told.append(f"left out: {plural(num_none, 'image')} without a class")
    is_unclear = np.zeros(len(names), bool)
    is_unclear[classes.unclear] = True
    if counts[is_unclear].sum():
        num = plural(int(counts[is_unclear].sum()), "image")
        of = told_names(names, counts, is_unclear)
        told.append(f"left out: {num} whose class is the name of several: {of}")
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
