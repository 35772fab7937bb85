"""Hold what a report says of labels, scores and errors."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.report.album import Album, Picture
from wordsworth.pipeline.report.charts import histogram
from wordsworth.pipeline.report.html import number, percent, short_name
from wordsworth.pipeline.report.selection import Selection
from wordsworth.pipeline.report.statistics import SCORE_BINS, RunStatistics

NUM_GALLERIES = 24  # labels with a gallery of their own: the most frequent ones
PER_SHELF = 6  # images of a gallery that are most sure, and as many that are least sure, and random
UNSURE = 0.5  # score below which an image counts as unsure
VALUE_BINS = 30

Context = dict[str, Any]  # what the template prints, by name


class Shown(NamedTuple):
    """Hold one image of a gallery with its texts.

    Attributes:
        picture: the image.
        caption: what stands under the large image.
        detail: where the image lies.
        short: what stands under the small image.
    """

    picture: Picture
    caption: str
    detail: str
    short: str


def shown_images(album: Album, rows: pa.Table | None) -> list[Shown]:
    """Return the images of rows with their texts.

    Args:
        album: fetches the images later.
        rows: with the columns PLACE, and label, score and value where the run has them.
    """
    if rows is None:
        return []
    return [
        Shown(picture=picture, **_texts(row, picture))
        for picture, row in zip(album.add(rows), rows.to_pylist(), strict=True)
    ]


def _texts(row: dict[str, Any], picture: Picture) -> dict[str, str]:
    value = row.get("score") if row.get("score") is not None else row.get("value")
    figure = "" if value is None else f"{value:.3f}"
    label = short_name(class_name(row.get("label_id"), row.get("label")))
    place = f"{picture.key} in {short_name(row['shard'])}, index {row['index']}"
    return {
        "caption": " ".join(part for part in (label, figure) if part) or picture.key,
        "detail": place,
        "short": " · ".join(part for part in (figure, picture.key) if part),
    }


def class_name(number: int | None, name: str | None) -> str | None:
    """Return the name of a class; one without a name has its number, and no class has none."""
    return f"class {number}" if name is None and number is not None else name


# ---- labels and scores ----------------------------------------------------------------------------------


def label_section(statistics: RunStatistics) -> Context:
    """Return the table of labels and the chart of scores, or why there are none."""
    if statistics.has_value and not statistics.has_labels:
        return {"labels": None, "values": True, "no_labels": "", **_value_chart(statistics)}
    if not statistics.num_scored:
        why = (
            ("No row has a label: every row has an error." if statistics.num_rows else "There is no row.")
            if statistics.has_labels
            else ("The rows have no labels: this run gives embeddings alone.")
        )
        return {"labels": None, "values": False, "no_labels": why, "score_chart": None}
    tally = statistics.labels
    means = tally.means
    rows = []
    for place, group in enumerate(tally.by_count().tolist()):
        name = short_name(tally.names[group])
        gallery = f"label-{group}" if place < NUM_GALLERIES else None
        rows.append([name, int(tally.counts[group]), round(float(means[group]), 4), gallery])
    labels = {"rows": rows, "total": statistics.num_scored, "most": rows[0][1]}
    return {"labels": labels, "values": False, "no_labels": "", **_score_chart(statistics)}


def unsure_share(statistics: RunStatistics) -> float:
    """Return the share of the scored rows whose score is below UNSURE."""
    below = statistics.scores[: round(UNSURE * SCORE_BINS)].sum()
    return float(below) / max(1, statistics.num_scored)


def _score_chart(statistics: RunStatistics) -> Context:
    width = 1 / SCORE_BINS
    names = [f"{place * width:.3f} to {(place + 1) * width:.3f}" for place in range(SCORE_BINS)]
    mean = statistics.score_sum / statistics.num_scored
    ticks = [(share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    title = f"Images by score of their best class: mean {mean:.3f}"
    note = (
        f"{plural(statistics.num_scored, 'image')}, mean score {mean:.3f}. "
        f"{percent(unsure_share(statistics))} are below {UNSURE:g}: the model is unsure there, or the image "
        "shows none of its classes."
    )
    return {
        "score_chart": histogram(title, statistics.scores, names, ticks),
        "score_title": "Score of the best class",
        "score_note": note,
    }


def _value_chart(statistics: RunStatistics) -> Context:
    rows = statistics.values.chosen()[2]
    if rows is None:
        return {"score_chart": None}
    values = rows["value"].to_numpy()
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, VALUE_BINS, (low, high if high > low else low + 1))
    names = [f"{number(float(a))} to {number(float(b))}" for a, b in pairwise(edges)]
    ticks = [(0.0, number(float(edges[0]))), (1.0, number(float(edges[-1])))]
    mean = statistics.score_sum / statistics.num_scored
    drawn = (
        ""
        if len(values) == statistics.num_scored
        else f" The chart shows {len(values):,} of them, drawn at random."
    )
    return {
        "score_chart": histogram(f"Images by value: mean {number(mean)}", counts, names, ticks),
        "score_title": "Value",
        "score_note": f"{plural(statistics.num_scored, 'image')}, mean {number(mean)}.{drawn}",
    }


# ---- galleries ------------------------------------------------------------------------------------------


def gallery_section(statistics: RunStatistics, album: Album) -> Context:
    """Return the galleries of the most frequent labels; of a run without labels one gallery of all rows."""
    if not statistics.has_labels:
        return _one_gallery(statistics, album)
    tally = statistics.labels
    sure, unsure, random = (
        _by_group(selection) for selection in (statistics.surest, statistics.unsurest, statistics.random)
    )
    galleries = []
    for group in tally.by_count()[:NUM_GALLERIES].tolist():
        count = int(tally.counts[group])
        galleries.append(
            {
                "id": f"label-{group}",
                "name": short_name(tally.names[group]),
                "note": f"{plural(count, 'image')}, mean score {tally.means[group]:.3f}",
                "shelves": _shelves(album, count, sure[group], unsure[group], random[group]),
            }
        )
    if not galleries:
        return {"galleries": [], "galleries_note": "There is no image with a label to show."}
    of = len(tally.counts)
    which = "every label" if of <= NUM_GALLERIES else f"the {NUM_GALLERIES} most frequent of {of:,} labels"
    note = (
        f"For {which}: the images of which the model is most sure and least sure, and some drawn at random. "
        "They are fetched again from the source. An image opens large; the arrow keys turn."
    )
    return {"galleries": galleries, "galleries_note": note}


def _one_gallery(statistics: RunStatistics, album: Album) -> Context:
    rows = statistics.random.chosen()[2]
    if rows is None:
        return {"galleries": [], "galleries_note": "There is no image without an error to show."}
    shelves = [("Drawn at random", shown_images(album, rows))]
    if statistics.has_value:
        highest, lowest = statistics.surest.chosen()[2], statistics.unsurest.chosen()[2]
        shelves = [
            ("Highest", shown_images(album, highest)),
            ("Lowest", shown_images(album, lowest)),
            *shelves,
        ]
    gallery = {"id": "all-images", "name": "All images", "note": "", "shelves": shelves}
    return {"galleries": [gallery], "galleries_note": "The images are fetched again from the source."}


def _by_group(selection: Selection) -> dict[int, pa.Table]:
    groups, _, rows = selection.chosen()
    if rows is None:
        return {}
    begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    ends = np.r_[begins[1:], len(groups)]
    return {
        int(groups[begin]): rows.slice(begin, end - begin) for begin, end in zip(begins, ends, strict=True)
    }


def _shelves(
    album: Album, count: int, sure: pa.Table, unsure: pa.Table, random: pa.Table
) -> list[tuple[str, list[Shown]]]:
    if count <= PER_SHELF:
        return [("All, the most sure first", shown_images(album, sure))]
    if count <= 2 * PER_SHELF:
        rest = unsure.slice(0, count - PER_SHELF)
        both = pa.concat_tables([sure, rest.take(pa.array(np.arange(len(rest))[::-1]))])
        return [("All, the most sure first", shown_images(album, both))]
    named = (("Most sure", sure), ("Least sure", unsure), ("Drawn at random", random))
    return [(title, shown_images(album, rows)) for title, rows in named]


# ---- errors ---------------------------------------------------------------------------------------------


def error_section(statistics: RunStatistics) -> Context:
    """Return the errors by code, each with rows as examples."""
    examples = _by_group(statistics.error_examples)
    places = {code: place for place, code in enumerate(statistics.error_codes.values)}
    errors = []
    for code, count in statistics.errors.most_common():
        rows = examples[places[code]].to_pylist() if places[code] in examples else []
        errors.append(
            {
                "code": code,
                "count": count,
                "share": count / statistics.num_rows,
                "part": count / statistics.num_errors,
                "examples": list(_examples(rows)),
            }
        )
    note = (
        f"{plural(statistics.num_errors, 'row')} of {statistics.num_rows:,} "
        f"({percent(statistics.num_errors / max(1, statistics.num_rows))}) could not be labelled. Each is in "
        "the output with its key, its place and the reason."
    )
    return {"errors": errors, "errors_note": note}


def _examples(rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    for row in rows:
        yield {
            "key": short_name(row["key"]) or "the rest of a damaged shard",
            "detail": str(row["error_detail"] or ""),
            "shard": short_name(row["shard"]),
            "index": f"{row['index']}",
        }
