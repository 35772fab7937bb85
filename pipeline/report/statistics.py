"""Count what a run's rows say, in one pass over their columns and in bounded memory."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.report.selection import GroupNumbers, Selection

SCORE_BINS = 40  # of equal width between 0 and 1
SIDE_EDGES = 2.0 ** np.arange(3, 16.5, 0.5)  # pixels of the longer side: two bins an octave
BYTE_EDGES = 2.0 ** np.arange(8, 28.5, 0.5)  # bytes of an encoded image, likewise
ASPECT_EDGES = 2.0 ** np.arange(-2, 2.01, 0.25)  # width over height
PLACE = ("key", "shard", "index", "offset", "size")  # columns by which an image is fetched again
NUM_EXAMPLES = 4  # rows with the same error
NUM_EMBEDDED = 6000  # rows whose embeddings are kept
NUM_VALUES = 20_000  # rows whose `value` is kept


@dataclass
class LabelTally:
    """Count rows by their best class.

    Attributes:
        ids: numbers the classes that occur.
        names: name of a class by its number here.
        counts: rows by the number of their class.
        score_sums: sum of the scores of these rows.
    """

    ids: GroupNumbers = field(default_factory=GroupNumbers)
    names: list[str] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    score_sums: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, ids: np.ndarray, names: pa.Array, scores: np.ndarray) -> np.ndarray:
        """Count rows and return the number of each row's class here.

        Args:
            ids: (M,) the best class by its number in the model.
            names: (M,) its name, or null.
            scores: (M,) its score.
        """
        known = len(self.ids)
        groups = self.ids.of(ids)
        if len(self.ids) > known:
            self._name_new(known, groups, names)
        self.counts += np.bincount(groups, minlength=len(self.ids))
        self.score_sums += np.bincount(groups, scores, minlength=len(self.ids))
        return groups

    def _name_new(self, known: int, groups: np.ndarray, names: pa.Array) -> None:
        numbers, first = np.unique(groups, return_index=True)
        is_new = numbers >= known
        found = names.take(pa.array(first[is_new])).to_pylist()
        for number, name in zip(numbers[is_new].tolist(), found, strict=True):
            self.names.append(f"class {self.ids.values[number]}" if name is None else name)
        more = len(self.ids) - len(self.counts)
        self.counts = np.concatenate([self.counts, np.zeros(more, np.int64)])
        self.score_sums = np.concatenate([self.score_sums, np.zeros(more)])

    def by_count(self) -> np.ndarray:
        """Return the numbers of the classes, the most frequent one first."""
        return np.argsort(-self.counts, kind="stable")

    @property
    def means(self) -> np.ndarray:
        """Return the mean score of each class."""
        return self.score_sums / np.maximum(1, self.counts)


@dataclass
class SizeTally:
    """Count the sizes of images.

    Attributes:
        num_sized: rows with a width and a height.
        sides: rows by the longer side, bins of SIDE_EDGES; sizes beyond the edges are in the outer bins.
        aspects: rows by width over height, bins of ASPECT_EDGES, likewise.
        bytes: rows by the size of the encoded image, bins of BYTE_EDGES, likewise.
        num_bytes, sum_bytes: rows whose encoded size is known, and the sum of these sizes.
        smallest, largest: least and most pixels of an image, as (width, height); None without images.
        shapes: rows by orientation: landscape, portrait, square.
    """

    num_sized: int = 0
    sides: np.ndarray = field(default_factory=lambda: np.zeros(len(SIDE_EDGES) - 1, np.int64))
    aspects: np.ndarray = field(default_factory=lambda: np.zeros(len(ASPECT_EDGES) - 1, np.int64))
    bytes: np.ndarray = field(default_factory=lambda: np.zeros(len(BYTE_EDGES) - 1, np.int64))
    num_bytes: int = 0
    sum_bytes: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    shapes: Counter[str] = field(default_factory=Counter)

    def add(self, rows: pa.Table) -> None:
        """Count rows with the columns width, height and size."""
        sizes = rows["size"].drop_null().to_numpy()
        self.num_bytes += len(sizes)
        self.sum_bytes += int(sizes.sum())
        self.bytes += _binned(sizes, BYTE_EDGES)
        is_sized = pc.and_(rows["width"].is_valid(), rows["height"].is_valid())
        sized = rows.filter(is_sized)
        width = sized["width"].to_numpy().astype(np.int64)
        height = sized["height"].to_numpy().astype(np.int64)
        if not len(width):
            return
        self.num_sized += len(width)
        self.sides += _binned(np.maximum(width, height), SIDE_EDGES)
        self.aspects += _binned(width / np.maximum(1, height), ASPECT_EDGES)
        self.shapes["landscape"] += int((width > height).sum())
        self.shapes["portrait"] += int((width < height).sum())
        self.shapes["square"] += int((width == height).sum())
        pixels = width * height
        least, most = int(pixels.argmin()), int(pixels.argmax())
        low, high = (int(width[least]), int(height[least])), (int(width[most]), int(height[most]))
        if self.smallest is None or low[0] * low[1] < self.smallest[0] * self.smallest[1]:
            self.smallest = low
        if self.largest is None or high[0] * high[1] > self.largest[0] * self.largest[1]:
            self.largest = high


def _where(rows: pa.Table, mask: np.ndarray) -> pa.Table:
    """Return the rows of a mask; all of them are not copied."""
    return rows if mask.all() else rows.filter(pa.array(mask))


def _binned(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the counts of values by bin; what lies beyond the edges counts in the outer bins."""
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(bins, minlength=len(edges) - 1)


class RunStatistics:
    """Count a run's rows and choose the rows that a report shows.

    Attributes:
        num_rows: rows that were counted.
        num_errors: rows with an error.
        labels: the best classes.
        scores: rows by score, SCORE_BINS bins.
        num_scored, score_sum: rows with a score, and the sum of their scores.
        sizes: the sizes of the images.
        errors: rows with an error, by code.
        error_examples: a random choice of the rows of each code; their groups are numbers of `error_codes`.
        surest, unsurest, random: rows of each class, by the numbers of `labels`; of a run without classes
            rows of one group 0, whose rank is the head's value.
        embedded: a random choice of the rows with an embedding, with their embeddings.
        num_embedded: rows with an embedding.
        values: a random choice of the values of a head that gives a number.

    Args:
        schema: the columns of a row.
        per_gallery: rows to choose for each gallery.
        seed: of all random choices.
    """

    def __init__(self, schema: pa.Schema, per_gallery: int, seed: int):
        names = set(schema.names)
        self.has_labels = "label_id" in names
        self.has_value = "value" in names
        self.has_embedding = "embedding" in names
        self.num_rows = 0
        self.num_errors = 0
        self.labels = LabelTally()
        self.scores = np.zeros(SCORE_BINS, np.int64)
        self.num_scored = 0
        self.score_sum = 0.0
        self.sizes = SizeTally()
        self.errors: Counter[str] = Counter()
        self.error_codes = GroupNumbers()
        known = [name for name in ("label_id", "label", "score", "value") if name in names]
        told = [*PLACE, *known]
        self.error_examples = Selection(NUM_EXAMPLES, [*PLACE, "error", "error_detail"])
        self.surest, self.unsurest, self.random = (Selection(per_gallery, told) for _ in range(3))
        self.embedded = Selection(NUM_EMBEDDED, [*told, *(["embedding"] if self.has_embedding else [])])
        self.num_embedded = 0
        self.values = Selection(NUM_VALUES, ["value"])
        seeds = np.random.SeedSequence(seed).spawn(4)
        self._draws = [np.random.default_rng(one) for one in seeds]

    @property
    def columns(self) -> list[str]:
        """Return the columns that are read."""
        optional = {
            "label_id": self.has_labels,
            "label": self.has_labels,
            "score": self.has_labels,
            "value": self.has_value,
            "embedding": self.has_embedding,
        }
        asked = [name for name, is_there in optional.items() if is_there]
        return [*PLACE, "width", "height", *asked, "error", "error_detail"]

    def add_all(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Count batches of rows with the columns `columns`."""
        for batch in batches:
            self.add(pa.table(batch))

    def add(self, rows: pa.Table) -> None:
        """Count rows with the columns `columns`."""
        draws = [draw.random(rows.num_rows) for draw in self._draws]  # whatever the rows are: one draw a row
        self.num_rows += rows.num_rows
        self.sizes.add(rows)
        is_error = rows["error"].is_valid().to_numpy()
        self._add_errors(_where(rows, is_error), draws[0][is_error])
        good, random = _where(rows, ~is_error), draws[1][~is_error]
        if self.has_labels:
            self._add_labels(good, random)
        else:
            self._add_unlabelled(good, random, draws[3][~is_error])
        if self.has_embedding:
            is_embedded = good["embedding"].is_valid().to_numpy()
            self.num_embedded += int(is_embedded.sum())
            zeros = np.zeros(int(is_embedded.sum()), np.int64)
            self.embedded.add(_where(good, is_embedded), zeros, draws[2][~is_error][is_embedded])

    def _add_errors(self, rows: pa.Table, random: np.ndarray) -> None:
        self.num_errors += rows.num_rows
        if not rows.num_rows:
            return
        codes = np.array(rows["error"].to_pylist(), object)
        self.errors.update(codes.tolist())
        self.error_examples.add(rows, self.error_codes.of(codes), random)

    def _add_labels(self, rows: pa.Table, random: np.ndarray) -> None:
        scores = rows["score"].to_numpy().astype(np.float64)
        is_scored = rows["label_id"].is_valid().to_numpy() & ~np.isnan(scores)
        rows, scores, random = _where(rows, is_scored), scores[is_scored], random[is_scored]
        if not rows.num_rows:
            return
        ids = rows["label_id"].to_numpy()
        groups = self.labels.add(ids, rows["label"].combine_chunks(), scores)
        bins = np.clip((scores * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
        self.scores += np.bincount(bins, minlength=SCORE_BINS)
        self.num_scored += len(scores)
        self.score_sum += float(scores.sum())
        self.surest.add(rows, groups, scores)
        self.unsurest.add(rows, groups, -scores)
        self.random.add(rows, groups, random)

    def _add_unlabelled(self, rows: pa.Table, random: np.ndarray, more_random: np.ndarray) -> None:
        self.random.add(rows, np.zeros(rows.num_rows, np.int64), random)
        if not self.has_value:
            return
        values = rows["value"].to_numpy().astype(np.float64)
        is_known = ~np.isnan(values)
        rows, values = _where(rows, is_known), values[is_known]
        zeros = np.zeros(len(values), np.int64)
        self.num_scored += len(values)
        self.score_sum += float(values.sum())
        self.surest.add(rows, zeros, values)
        self.unsurest.add(rows, zeros, -values)
        self.values.add(rows, zeros, more_random[is_known])
