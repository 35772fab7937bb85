"""Hold what a report says of embeddings: the map, and images that are nearly the same."""

from typing import Any

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.report.album import Album
from wordsworth.pipeline.report.charts import scatter
from wordsworth.pipeline.report.duplicates import ALIKE, find_duplicates
from wordsworth.pipeline.report.embedding_map import projections
from wordsworth.pipeline.report.html import short_name
from wordsworth.pipeline.report.label_sections import Context, class_name, shown_images
from wordsworth.pipeline.report.statistics import RunStatistics

NUM_POINTS = 700  # points of the map
NUM_COLOURS = 8  # labels with a colour of their own
NUM_GROUPS = 10  # groups of near-duplicates that are shown
PER_GROUP = 6  # images of a group that are shown
MAP_SIZE = 560  # side of the map, in the chart's own units
NONE = "This run keeps no embeddings: `label --embeddings` or `embed` does. So there is nothing to lay out."
NO_ROW = "No row has an embedding: there is nothing to lay out."


class EmbeddingSections:
    """Make the map and the groups of near-duplicates; their images come when the album is fetched.

    Args:
        statistics: with a random choice of rows and their embeddings.
        album: fetches the images.
        seed: of UMAP.
    """

    def __init__(self, statistics: RunStatistics, album: Album, seed: int):
        self.num_embedded = statistics.num_embedded
        self.has_column = statistics.has_embedding
        rows = statistics.embedded.chosen()[2] if statistics.has_embedding else None
        self.rows, self.embeddings = _finite(rows)
        self.points = self.rows.slice(0, NUM_POINTS) if self.rows is not None else None
        self.pictures = album.add(self.points, small=True)
        self.seed = seed
        self.duplicates = self._duplicates(album)

    def map_section(self) -> Context:
        """Return the map; called after the album was fetched."""
        if self.points is None or not len(self.points):
            return {"map": None, "no_map": NO_ROW if self.has_column else NONE}
        labels = [short_name(label) for label in _labels(self.points)]
        keys, series = _colours(labels)
        found = projections(self.embeddings[: len(self.points)], self.seed)
        prefix = next((p.small.partition(",")[0] + "," for p in self.pictures if p.small), "")
        points = []
        for picture, label in zip(self.pictures, labels, strict=True):
            image = picture.small.removeprefix(prefix) if picture.small else ""
            points.append({"image": image, "label": label or "image", "key": picture.key})
        places = {one.name: (one.places * MAP_SIZE).round(1).tolist() for one in found}
        names = [f"{point['label']}: {point['key']}" for point in points]
        drawn = "" if len(points) == self.num_embedded else f", drawn at random from {self.num_embedded:,}"
        intro = (
            f"{plural(len(points), 'image')}{drawn}. Images that are alike to the model lie side by side. "
            "Point at one to see it, or use the arrow keys; a label's button brings its points out."
        )
        return {
            "map": {
                "intro": intro,
                "projections": found,
                "has_umap": len(found) > 1,
                "circles": scatter(found[0].places, series, names, MAP_SIZE),
                "legend": keys,
                "data": {
                    "points": points,
                    "places": places,
                    "prefix": prefix,
                    "notes": {one.name: one.note for one in found},
                },
            },
            "no_map": "",
        }

    def _duplicates(self, album: Album) -> Context:
        if self.rows is None or len(self.rows) < 2:
            why = (
                "Near-duplicates are found by embeddings, and this run has none."
                if not self.has_column
                else ("Fewer than two rows have an embedding: there is nothing to compare.")
            )
            return {"duplicates": [], "duplicates_note": why}
        found = find_duplicates(self.embeddings)
        groups = []
        for group in found.groups[:NUM_GROUPS]:
            rows = self.rows.take(pa.array(group.members[:PER_GROUP]))
            of = "" if len(group.members) <= PER_GROUP else f", {PER_GROUP} shown"
            title = f"{plural(len(group.members), 'image')}, similarity {group.similarity:.3f}{of}"
            groups.append({"title": title, "pictures": shown_images(album, rows)})
        return {"duplicates": groups, "duplicates_note": self._told(found, len(groups))}

    def _told(self, found: Any, num_shown: int) -> str:
        compared, total = found.num_compared, self.num_embedded
        which = (
            f"All {compared:,} embeddings"
            if compared == total
            else (f"{compared:,} of {total:,} embeddings, drawn at random,")
        )
        pairs = (
            "No pair is"
            if not found.num_pairs
            else f"{plural(found.num_pairs, 'pair')} in "
            + (f"{'at least ' if found.is_cut else ''}{plural(len(found.groups), 'group')}")
            + (" is" if found.num_pairs == 1 else " are")
        )
        text = (
            f"{which} were compared, each with each, by the cosine of the angle between them after their "
            f"mean was taken off. {pairs} at {ALIKE:g} or more."
        )
        if num_shown < len(found.groups):
            text += f" The {num_shown} groups that are most alike are shown."
        if compared < total:
            seen = (compared / total) ** 2
            text += f" That is {seen:.2g} of all pairs: most duplicates of so large a run are not seen."
        return text


def _finite(rows: pa.Table | None) -> tuple[pa.Table | None, np.ndarray]:
    """Return the rows whose embeddings are finite, and these as (M, D) float32."""
    if rows is None:
        return None, np.empty((0, 0), np.float32)
    column = pa.concat_arrays(rows["embedding"].chunks)
    embeddings = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(rows), -1)
    is_finite = np.isfinite(embeddings).all(1)
    return rows.drop_columns("embedding").filter(pa.array(is_finite)), embeddings[is_finite]


def _labels(rows: pa.Table) -> list[str | None]:
    if "label" not in rows.column_names:
        return [None] * len(rows)
    return list(map(class_name, rows["label_id"].to_pylist(), rows["label"].to_pylist()))


def _colours(labels: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the legend of the map, and the class of each point: the most frequent labels have a colour."""
    names, counts = np.unique(np.array(labels, object), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    keys = []
    colours = {}
    for place, number in enumerate(order[:NUM_COLOURS].tolist()):
        colours[names[number]] = f"s{place}"
        keys.append({"series": f"s{place}", "name": names[number] or "image", "count": int(counts[number])})
    rest = counts[order[NUM_COLOURS:]]
    if len(rest):
        keys.append({"series": "srest", "name": plural(len(rest), "other label"), "count": int(rest.sum())})
    return keys, [colours.get(label, "srest") for label in labels]
