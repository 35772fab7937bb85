"""Count joined rows of two runs and choose the examples that are shown."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.output.intervals import wilson_interval
from wordsworth.pipeline.output.pair_counts import PairCounts, most_frequent, pair_numbers, split_pairs
from wordsworth.pipeline.report.diff_truth import DiffTruth, DiffTruthTally
from wordsworth.pipeline.report.difference import (
    ConfusedPair,
    Drift,
    Flip,
    LabelShift,
    PairExample,
    RowExample,
    RowsOfOne,
    ScoreShift,
    TruthDifference,
)
from wordsworth.pipeline.report.joined_rows import JoinedPart, SharedNames
from wordsworth.pipeline.report.selection import Selection
from wordsworth.pipeline.report.shifts import (
    LEAST_ROWS,
    QUANTILES,
    EmbeddingDrift,
    ScoreTally,
    stability_index,
)

NUM_FLIPS = 24  # pairs of labels that are told, the most frequent first
PER_FLIP = 6  # examples of each
NUM_CONFUSED = 20  # pairs of labels in either direction, likewise
NUM_SHIFTED = 20  # labels whose scores shifted most
NUM_FARTHEST = 12  # images whose embeddings moved most
NUM_EXAMPLES = 5  # rows of one run alone
PAIR = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("index", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label_a", pa.int32()),
        ("label_b", pa.int32()),
        ("score_a", pa.float32()),
        ("score_b", pa.float32()),
        ("truth", pa.int32()),
    ]
)  # a row that both runs have
ROW = ["key", "shard", "index", "error", "error_detail"]


class DiffTally:
    """Count what two runs differ in, part by part.

    Attributes:
        flips_file: is open while parts are added.
        num_joined: rows that both runs have, so far.
        only: the rows of each run alone.

    Args:
        names: the numbers of shards and labels.
        flips: file for the rows that changed their label, which is read again in the end.
        with_embeddings: compare embeddings.
        truth: the classes of the images; None compares with none.
    """

    def __init__(
        self, names: SharedNames, flips: Path, with_embeddings: bool, truth: DiffTruth | None = None
    ):
        self.names = names
        self.flips_file = _FlipsFile(flips)
        self.num_joined = self.num_by_index = self.num_unclear = 0
        self.num_labelled = self.num_agree = self.num_errors_both = self.num_unlabelled = 0
        self.only = (_Rows(names), _Rows(names))
        self.errors = (_Rows(names), _Rows(names))
        self.scores = (ScoreTally(), ScoreTally())
        self.flip_counts = PairCounts()
        self.drift = EmbeddingDrift(PAIR.names, NUM_FARTHEST) if with_embeddings else None
        self._classes = truth
        self.truth: DiffTruthTally | None = None

    def add(self, part: JoinedPart) -> None:
        """Count the rows of a part."""
        if self._classes and self.truth is None:  # now all labels of both runs are numbered
            self.truth = DiffTruthTally(self._classes, self.names, PAIR.names)
        self.num_joined += len(part.pairs)
        self.num_by_index += part.num_by_index
        self.num_unclear += part.num_unclear
        self.only[0].add(part.a.select(ROW).take(pa.array(part.only_a)))
        self.only[1].add(part.b.select(ROW).take(pa.array(part.only_b)))
        for a, b in part.chunks():
            self._add_pairs(a, b)

    def _add_pairs(self, a: pa.Table, b: pa.Table) -> None:
        failed = [np.asarray(rows["error"].is_valid()) for rows in (a, b)]
        self.num_errors_both += int((failed[0] & failed[1]).sum())
        self.errors[0].add(a.select(ROW).filter(pa.array(failed[0] & ~failed[1])))
        self.errors[1].add(b.select(ROW).filter(pa.array(failed[1] & ~failed[0])))
        is_good = ~failed[0] & ~failed[1]
        pairs = _pairs(a, b, self._classes.side if self._classes else 0)
        if self.drift is not None:
            good = pa.array(is_good)
            self.drift.add(pairs.filter(good), a["embedding"].filter(good), b["embedding"].filter(good))
        is_labelled = is_good & np.asarray(a["label"].is_valid()) & np.asarray(b["label"].is_valid())
        self.num_unlabelled += int((is_good & ~is_labelled).sum())
        labelled = pairs.filter(pa.array(is_labelled))
        self._add_labels(labelled)
        if self.truth:
            self.truth.add(labelled)

    def _add_labels(self, pairs: pa.Table) -> None:
        of_a, of_b = pairs["label_a"].to_numpy(), pairs["label_b"].to_numpy()
        is_flip = of_a != of_b
        self.num_labelled += len(of_a)
        self.num_agree += int((~is_flip).sum())
        for tally, of, name in zip(self.scores, (of_a, of_b), ("score_a", "score_b"), strict=True):
            scores = _scores(pairs[name])
            is_scored = ~np.isnan(scores)
            tally.add(of[is_scored].astype(np.int64), scores[is_scored], len(self.names.labels))
        if is_flip.any():
            self.flip_counts.add(of_a[is_flip], of_b[is_flip])
            self.flips_file.add(pairs.filter(pa.array(is_flip)))

    # ---- what is told ----

    def figures(self) -> dict[str, Any]:
        """Return the fields of Difference that are counted here."""
        num_flips = self.num_labelled - self.num_agree
        share = self.num_agree / self.num_labelled if self.num_labelled else None
        return {
            "num_joined": self.num_joined,
            "num_by_index": self.num_by_index,
            "num_unclear": self.num_unclear,
            "only_a": self.only[0].told(),
            "only_b": self.only[1].told(),
            "errors_a": self.errors[0].told(),
            "errors_b": self.errors[1].told(),
            "num_errors_both": self.num_errors_both,
            "num_unlabelled": self.num_unlabelled,
            "num_labelled": self.num_labelled,
            "num_agree": self.num_agree,
            "agreement": share,
            "agreement_interval": (
                wilson_interval(self.num_agree, self.num_labelled) if self.num_labelled else None
            ),
            "num_flips": num_flips,
            "flip_share": num_flips / self.num_labelled if self.num_labelled else None,
            "num_flip_kinds": len(self.flip_counts.all()[0]),
            "confused": self._confused(),
            "scores": self._score_shift(),
            "drift": self._drift(),
            "truth": self._truth(),
        }

    def flips(self) -> list[Flip]:
        """Return the most frequent flips with examples."""
        pairs, counts = self.flip_counts.all()
        most = most_frequent(counts, NUM_FLIPS)
        if not len(most):
            return []
        groups, _, rows = self.flips_file.best(pairs[most], PER_FLIP).chosen()
        examples: list[list[PairExample]] = [[] for _ in most]
        if rows is not None:
            for group, row in zip(groups.tolist(), rows.to_pylist(), strict=True):
                examples[group].append(self._example(row))
        labels = self.names.labels
        told = []
        for place, (a, b) in enumerate(zip(*(of.tolist() for of in split_pairs(pairs[most])), strict=True)):
            num = int(counts[most[place]])
            share = num / self.num_labelled
            better, worse = self.truth.of_flip(a, b) if self.truth else (None, None)
            told.append(
                Flip(
                    label_a=labels[a],
                    label_b=labels[b],
                    num=num,
                    share=share,
                    examples=examples[place],
                    num_better=better,
                    num_worse=worse,
                )
            )
        return told

    def _truth(self) -> TruthDifference | None:
        if self.truth is None:
            return None
        examples = []
        for kept in (self.truth.became_wrong, self.truth.became_right):
            rows = kept.chosen()[2]
            examples.append([self._example(row) for row in rows.to_pylist()] if rows is not None else [])
        return replace(self.truth.figures(), became_wrong=examples[0], became_right=examples[1])

    def _confused(self) -> list[ConfusedPair]:
        all_pairs, all_counts = self.flip_counts.all()
        pairs, counts = self.flip_counts.unordered()
        told = []
        for place in most_frequent(counts, NUM_CONFUSED).tolist():
            pair, num = pairs[place], int(counts[place])
            at = int(np.searchsorted(all_pairs, pair))
            is_there = at < len(all_pairs) and all_pairs[at] == pair
            num_forth = int(all_counts[at]) if is_there else 0
            a, b = (int(label) for label in split_pairs(pair))
            told.append(
                ConfusedPair(
                    labels=(self.names.labels[a], self.names.labels[b]),
                    num=num,
                    num_forth=num_forth,
                    num_back=num - num_forth,
                    share=num / int(counts.sum()),
                )
            )
        return told

    def _score_shift(self) -> ScoreShift | None:
        num_labels = len(self.names.labels)
        a, b = (tally.padded(num_labels) for tally in self.scores)
        counts_a, counts_b = a.bins.sum(1), b.bins.sum(1)
        if not counts_a.sum() or not counts_b.sum():
            return None
        is_frequent = (counts_a >= LEAST_ROWS) & (counts_b >= LEAST_ROWS)
        shifts = []
        for label in np.flatnonzero(is_frequent).tolist():
            shifts.append(
                LabelShift(
                    label=self.names.labels[label],
                    num_a=int(counts_a[label]),
                    num_b=int(counts_b[label]),
                    mean_a=float(a.sums[label] / counts_a[label]),
                    mean_b=float(b.sums[label] / counts_b[label]),
                    psi=stability_index(a.bins[label], b.bins[label]),
                )
            )
        shifts.sort(key=lambda shift: -shift.psi)
        return ScoreShift(
            psi=stability_index(a.bins.sum(0), b.bins.sum(0)),
            mean_a=float(a.sums.sum() / counts_a.sum()),
            mean_b=float(b.sums.sum() / counts_b.sum()),
            labels=shifts[:NUM_SHIFTED],
            num_labels=len(shifts),
            num_rare=int(((counts_a + counts_b > 0) & ~is_frequent).sum()),
            least_rows=LEAST_ROWS,
        )

    def _drift(self) -> Drift | None:
        if self.drift is None:
            return None
        cosines = self.drift.cosines()
        _, ranks, rows = self.drift.farthest.chosen()
        farthest = []
        for rank, row in zip(ranks.tolist(), rows.to_pylist() if rows is not None else [], strict=True):
            farthest.append(self._example(row, cosine=-rank))
        if not len(cosines):
            return Drift(num=0, num_undefined=self.drift.num_undefined, mean=None, quantiles={}, farthest=[])
        quantiles = np.quantile(cosines, QUANTILES).tolist()
        return Drift(
            num=len(cosines),
            num_undefined=self.drift.num_undefined,
            mean=float(cosines.mean(dtype=np.float64)),
            quantiles={f"{share:g}": value for share, value in zip(QUANTILES, quantiles, strict=True)},
            farthest=farthest,
        )

    def _example(self, row: dict[str, Any], cosine: float | None = None) -> PairExample:
        row = row | {"shard": self.names.shards.values[row["shard"]], "cosine": cosine}
        row["truth"] = self.truth.class_of(row["truth"]) if self.truth else None
        for name in ("label_a", "label_b"):
            row[name] = None if row[name] is None else self.names.labels[row[name]]
        for name in ("score_a", "score_b"):
            row[name] = None if row[name] is None or math.isnan(row[name]) else row[name]
        return PairExample(**row)


def _pairs(a: pa.Table, b: pa.Table, truth_side: int) -> pa.Table:
    """Return rows that belong together as PAIR; the class is that of the run `truth_side`."""
    columns = [a[name] for name in ("key", "shard", "index", "offset", "size")]
    columns += [rows[name] for name in ("label", "score") for rows in (a, b)]
    columns.append((a, b)[truth_side]["truth"])
    return pa.table(columns, schema=PAIR)


def _scores(column: pa.ChunkedArray) -> np.ndarray:
    """Return (M,) float64, NaN for null."""
    return column.to_numpy().astype(np.float64)


class _Rows:
    """Count rows of one run and keep some."""

    def __init__(self, names: SharedNames):
        self.num = 0
        self.names = names
        self.kept = Selection(NUM_EXAMPLES, ROW)

    def add(self, rows: pa.Table) -> None:
        self.num += rows.num_rows
        self.kept.add(rows, np.zeros(rows.num_rows, np.int64), np.zeros(rows.num_rows))

    def told(self) -> RowsOfOne:
        rows = self.kept.chosen()[2]
        found = rows.to_pylist() if rows is not None else []
        for row in found:
            row["shard"] = self.names.shards.values[row["shard"]]
        return RowsOfOne(num=self.num, examples=[RowExample(**row) for row in found])


class _FlipsFile:
    """Write the rows that changed their label, and read them again."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        self._file = open(self.path, "wb")
        self._writer = pa.ipc.new_stream(self._file, PAIR)

    def __exit__(self, *raised: Any) -> None:
        self._writer.close()
        self._file.close()

    def add(self, rows: pa.Table) -> None:
        self._writer.write_table(rows)

    def best(self, pairs: np.ndarray, count: int) -> Selection:
        """Return the rows of some pairs of labels of which both models are most sure.

        Args:
            pairs: (P,) numbers of pairs; the groups of the selection are their places.
            count: rows of each pair.
        """
        kept = Selection(count, PAIR.names)
        order = np.argsort(pairs)
        with open(self.path, "rb") as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                rows = pa.table(batch)
                numbers = pair_numbers(rows["label_a"].to_numpy(), rows["label_b"].to_numpy())
                places = order[np.clip(np.searchsorted(pairs[order], numbers), 0, len(pairs) - 1)]
                is_asked = pairs[places] == numbers
                rows = rows.filter(pa.array(is_asked))
                ranks = (_scores(rows["score_a"]) + _scores(rows["score_b"])) / 2
                kept.add(rows, places[is_asked], np.nan_to_num(ranks, nan=-1.0))
        return kept
