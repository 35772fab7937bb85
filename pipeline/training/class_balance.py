"""Make rare classes count: weights of the classes in the loss, and epochs in which all come equally often."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.class_target import Target, normalised
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_filesystem, without_credentials
from wordsworth.pipeline.storage.small_files import read_small_text
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.survey import Survey
from wordsworth.pipeline.unit import Unit

NONE = "none"
BALANCED = "balanced"

ClassWeights = str | dict[str, float]  # NONE, BALANCED, or weights by the name of the class


@dataclass(frozen=True, kw_only=True)
class ClassUse:
    """Say how a training uses its classes.

    Attributes:
        weights: K weights, by class, of the losses of images; None where all weigh the same.
        balance: draws samples so that all classes come equally often; None where each is drawn once.
        drawn: samples that an epoch draws of each shard, by its name.
    """

    weights: tuple[float, ...] | None
    balance: "Balance | None"
    drawn: dict[str, int]


def use_classes(
    request: TrainRequest, data: Survey, target: Target | None, unit_rows: int
) -> tuple[ClassUse, list[str]]:
    """Return how a training uses its classes, and what the user should know of that.

    Args:
        request: what the user asked for.
        data: what the sources hold.
        target: finds the class of a sample; None for an objective without classes.
        unit_rows: samples of a unit, at most.

    Raises:
        UserError: a weight is for a class that is not there, or a class has no sample where it needs one.
    """
    use = ClassUse(weights=None, balance=None, drawn=data.rows)
    if target is None:
        return use, []
    counts = _class_counts(data.classes, target)
    weights, notes = _weights_by_class(request.class_weights, counts, target)
    use = replace(use, weights=weights)
    if request.balance:
        balance = _balance(counts, target, request.seed, unit_rows)
        use = replace(use, balance=balance, drawn=_drawn_rows(data, balance))
        notes.append(_extremes("--balance", "comes {:.3g} times in an epoch", balance.factors, target))
    return use, notes


def _class_counts(met: Counter[str], target: Target) -> np.ndarray:
    """Return the samples of each class (K,), from those by the name of the class."""
    counts = np.zeros(target.classes, np.int64)
    for name, count in met.items():
        number = target.number(name)
        if number is not None:
            counts[number] += count
    return counts


def _check_none_empty(counts: np.ndarray, target: Target, option: str, remedy: str) -> None:
    """Check that every class has a sample.

    Raises:
        UserError: names the first one without.
    """
    if not counts.all():
        first = int(np.flatnonzero(counts == 0)[0])
        raise UserError(f"{option}: class {_class_name(first, target)} has no sample: {remedy}")


def _class_name(number: int, target: Target) -> str:
    return f"{number} ({target.labels[number]})" if target.labels else f"{number}"


# ---- weights in the loss ----


def read_class_weights(given: str, storage_options: StorageOptions) -> ClassWeights:
    """Return what --class-weights asks for: itself, or the weights that a file has by the name of the class.

    Args:
        given: "none", "balanced" or a file. A line of it is a class, a comma or a space, and a weight.
        storage_options: of the store of the file.

    Raises:
        UserError: there is no such file, or a line of it is no class and weight.
    """
    if given in (NONE, BALANCED):
        return given
    shown = without_credentials(given)
    fs, path = open_filesystem(given, storage_options)
    if not fs.isfile(path):
        raise UserError(f"--class-weights {shown}: no such file, nor none or balanced", exit_code=2)
    weights: dict[str, float] = {}
    for number, line in enumerate(read_small_text(fs, path, shown).splitlines(), 1):
        if not line.strip():
            continue
        name, weight = _class_and_weight(line)
        if not name or not (math.isfinite(weight) and weight > 0):
            raise UserError(
                f"{shown}, line {number}: a class, a comma and a weight above 0 are needed, such as cat,2.5"
            )
        if name in weights:
            raise UserError(f"{shown}, line {number}: class {name} has a weight already")
        weights[name] = weight
    return weights


def _class_and_weight(line: str) -> tuple[str, float]:
    """Return both; the weight of a line without one is not a number."""
    name, comma, weight = line.rpartition(",")
    if not comma:
        *words, weight = line.split()
        name = " ".join(words)
    try:
        return name.strip(), float(weight)
    except ValueError:
        return name.strip(), math.nan


def _weights_by_class(
    asked: ClassWeights, counts: np.ndarray, target: Target
) -> tuple[tuple[float, ...] | None, list[str]]:
    """Return the weight of each class in the loss (K), None for all the same; and what the user should know.

    "balanced" is scikit-learn's: the samples of all classes, divided by the number of classes and by the
    samples of the class. So each class has the same part in the loss.

    Args:
        asked: as `read_class_weights` returns it.
        counts: (K,) samples of each class.
        target: finds the number of a class.

    Raises:
        UserError: a weight is for a class that is not there, or "balanced" meets a class without a sample.
    """
    if asked == NONE:
        return None, []
    if isinstance(asked, str):
        _check_none_empty(counts, target, "--class-weights balanced", "give FILE, or none")
        weights = counts.sum() / len(counts) / counts
        return tuple(weights.tolist()), [
            _extremes("--class-weights balanced", "weighs {:.3g}", weights, target)
        ]
    weights = np.ones(target.classes)
    named: dict[int, str] = {}
    for name, weight in asked.items():
        number = target.number(normalised(name))
        if number is None:
            raise UserError(
                f"--class-weights has a weight for class {name}, which the training images do not have: "
                "mend the file or the labels"
            )
        if number in named:
            raise UserError(f"--class-weights has two weights for one class, {named[number]} and {name}")
        named[number] = name
        weights[number] = weight
    notes = []
    num_others = target.classes - len(named)
    if num_others:
        notes.append(
            f"--class-weights: {num_others:,} of {target.classes:,} classes are not named: they weigh 1"
        )
    return tuple(weights.tolist()), notes


def _extremes(option: str, says: str, values: Sequence[float], target: Target) -> str:
    """Return a note about the classes with the largest and the smallest value."""
    most = int(np.argmax(values))
    least = int(np.argmin(values))
    parts = [f"class {_class_name(number, target)} {says.format(values[number])}" for number in (most, least)]
    return f"{option}: {', '.join(parts)}"


# ---- samples drawn more often ----


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Draw samples of rare classes several times in an epoch, and of frequent ones not always.

    All classes come equally often. An epoch has as many samples as it has without. Which samples are drawn
    follows from the seed, the epoch and the shard.

    Attributes:
        target: finds the class of a sample.
        factors: K numbers, by class: how often a sample is drawn in an epoch, on the mean.
        seed: decides what is drawn.
        unit_rows: samples of a unit, at most.
    """

    target: Target
    factors: tuple[float, ...]
    seed: int
    unit_rows: int

    def drawn(self, units: Iterator[Unit], epoch: int) -> Iterator[Unit]:
        """Yield the units of a shard with the samples that an epoch draws, numbered from 0.

        Of every class, the shard gives its samples times the factor, rounded down or up. A sample that could
        not be read is drawn once.

        Args:
            units: all units of the shard, as they are read.
            epoch: number of the epoch, from 0.
        """
        factors = np.array(self.factors)
        met = np.zeros(len(factors), np.int64)  # samples of each class so far
        number = 0
        offsets: np.ndarray | None = None
        for unit in units:
            if offsets is None:
                offsets = self._offsets(unit.shard_name, epoch)
            rows = np.repeat(np.arange(len(unit.samples)), self._copies(unit, factors, offsets, met))
            parts = np.array_split(rows, max(1, math.ceil(len(rows) / self.unit_rows)))
            for place, part in enumerate(parts):
                is_last = unit.last and place + 1 == len(parts)
                yield replace(_with_rows(unit, part), number=number, last=is_last)
                number += 1

    def _offsets(self, shard_name: str, epoch: int) -> np.ndarray:
        """Return where the count of each class begins: (K,) in [0, 1)."""
        digest = hashlib.sha256(f"{self.seed}|{epoch}|{shard_name}|balance".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little")).random(len(self.factors))

    def _copies(self, unit: Unit, factors: np.ndarray, offsets: np.ndarray, met: np.ndarray) -> np.ndarray:
        """Return how often each sample of a unit is drawn (M,), and count its classes in `met`.

        Sample j of a class is drawn once for each whole number between offset + j f and offset + (j + 1) f.
        """
        copies = np.ones(len(unit.samples), np.int64)
        good = np.flatnonzero(pc.is_null(unit.samples["error"]).to_numpy())
        if not len(good):
            return copies
        uri = without_credentials(unit.shard_uri)
        for row, number in zip(good, self.target.of_samples(unit.samples.take(good), uri), strict=True):
            begin = offsets[number] + met[number] * factors[number]
            copies[row] = math.floor(begin + factors[number]) - math.floor(begin)
            met[number] += 1
        return copies


def _with_rows(unit: Unit, rows: np.ndarray) -> Unit:
    """Return a unit of encoded images with some of its samples, a sample as often as its row stands there."""
    is_good = pc.is_null(unit.samples["error"]).to_numpy()
    sizes = np.where(is_good, pc.fill_null(unit.samples["size"], 0).to_numpy(), 0)
    ends = np.cumsum(sizes)
    images = [unit.payload[ends[row] - sizes[row] : ends[row]] for row in rows]
    payload = np.concatenate(images) if images else np.empty(0, np.uint8)
    return replace(unit, samples=unit.samples.take(rows), payload=payload)


def _balance(counts: np.ndarray, target: Target, seed: int, unit_rows: int) -> Balance:
    """Return what draws samples so that all classes come equally often.

    Args:
        counts: (K,) samples of each class.
        target: finds the class of a sample.
        seed: decides what is drawn.
        unit_rows: samples of a unit, at most.

    Raises:
        UserError: a class has no sample.
    """
    _check_none_empty(counts, target, "--balance", "mend the labels, add samples, or leave --balance out")
    factors = counts.sum() / len(counts) / counts
    return Balance(target=target, factors=tuple(factors.tolist()), seed=seed, unit_rows=unit_rows)


def _drawn_rows(data: Survey, balance: Balance) -> dict[str, int]:
    """Return the samples that an epoch draws of each shard, by its name; rounding moves the true number."""
    rows = {}
    for shard in data.shards:
        of_class = _class_counts(data.classes_by_shard[shard.name], balance.target)
        without_class = data.rows[shard.name] - int(of_class.sum())
        rows[shard.name] = round(float(of_class @ np.array(balance.factors))) + without_class
    return rows
