"""Hold what a report says of a run whose images have a class: accuracy, calibration, mistakes."""

from typing import Any

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.report.album import Album
from wordsworth.pipeline.report.calibration import Calibrated, bin_rows, counts_chart, reliability_chart
from wordsworth.pipeline.report.html import percent, short_name
from wordsworth.pipeline.report.label_sections import Shown, class_name
from wordsworth.pipeline.report.provenance import Facts
from wordsworth.pipeline.report.truth_tally import NUM_PAIRS, Accuracy, TruthTally

OPEN_PAIRS = 3  # pairs whose images are in view at once
MANY_UNKNOWN = 0.5  # share of the images whose class stands in no row, from which on the page warns


def accuracy_facts(found: Accuracy) -> Facts:
    """Return the figures in words, for the terminal and for the page."""
    low, high = found.interval
    facts = [
        ("images with a class", f"{found.num_images:,}: {found.reading}"),
        ("accuracy", f"{found.accuracy:.2%} (95% interval {low:.2%} to {high:.2%})"),
    ]
    if found.top_k > 1:
        low, high = found.in_top_interval
        facts.append((f"top-{found.top_k}", f"{found.in_top:.2%} (95% interval {low:.2%} to {high:.2%})"))
    facts.append(("calibration", f"expected error {found.calibration_error:.4f}"))
    return facts + [("note", note) for note in found.notes]


def truth_headline(found: Accuracy) -> tuple[str, str, str]:
    """Return the figure of the overview: its name, its value and a note."""
    low, high = found.interval
    return "accuracy", f"{found.accuracy:.1%}", f"95% interval {low:.1%} to {high:.1%}"


def truth_banner(found: Accuracy) -> list[str]:
    """Return a warning where most classes are not the run's."""
    if found.num_unknown < MANY_UNKNOWN * found.num_images:
        return []
    return [
        f"The class of {percent(found.num_unknown / found.num_images)} of the images is among the best "
        "classes of no row. They count as mistakes: check that --truth names the classes of this model."
    ]


def truth_section(tally: TruthTally, found: Accuracy, album: Album, is_multi_label: bool) -> dict[str, Any]:
    """Return what the template prints.

    Args:
        tally: has the rows that are shown.
        found: its figures.
        album: fetches the images later.
        is_multi_label: whether the rows have the column `labels` too.
    """
    run = Calibrated("", found.bins, found.calibration_error)
    groups, _, rows = tally.examples.chosen()
    pairs = []
    for place, pair in enumerate(found.pairs):
        of_pair = None if rows is None else rows.filter(pa.array(groups == place))
        pairs.append(
            {
                "id": f"pair-{place}",
                "is_open": place < OPEN_PAIRS,
                "pair": pair,
                "pictures": _mistakes(tally, of_pair, album),
            }
        )
    return {
        "facts": accuracy_facts(found),
        "chart": reliability_chart([run]),
        "counts": counts_chart(run),
        "calibration_note": _calibration_note(found),
        "bins": [{"name": "", "rows": bin_rows(run)}],
        "pairs": pairs,
        "pairs_note": _pairs_note(found),
        "most": max((pair.num for pair in found.pairs), default=1),
        "worst": found.worst,
        "mistakes": _mistakes(tally, tally.mistakes.chosen()[2], album),
        "multi_label": is_multi_label,
    }


def _mistakes(tally: TruthTally, rows: pa.Table | None, album: Album) -> list[Shown]:
    """Return images with the label and the class of each."""
    if rows is None:
        return []
    labels = tally.truth.classes.labels
    shown = []
    for picture, row in zip(album.add(rows), rows.to_pylist(), strict=True):
        label = short_name(class_name(row["label_id"], row["label"]))
        truth = short_name(labels[row["truth"]])
        shown.append(
            Shown(
                picture=picture,
                caption=f"{label} {row['score']:.3f}, but it is {truth}",
                detail=f"{picture.key} in {short_name(row['shard'])}, index {row['index']}",
                short=f"{truth} → {label}",
            )
        )
    return shown


def _calibration_note(found: Accuracy) -> str:
    bins = np.array(found.bins)
    gap = bins[:, 1].sum() / found.num_images - found.accuracy
    if abs(gap) < 0.01:
        way = "on the whole as sure as it is right"
    else:
        way = f"on the whole {'surer' if gap > 0 else 'less sure'} than it is right, by {abs(gap):.1%}"
    return (
        f"The expected calibration error is {found.calibration_error:.4f}, over {len(bins)} bins of equal "
        f"width; the model is {way}. On the dashed line the share of right labels is the score. The bars are "
        "95% intervals; a larger point has more images."
    )


def _pairs_note(found: Accuracy) -> str:
    if not found.num_pairs:
        return "No image with a class has another label."
    mistakes = plural(found.num_images - found.num_right, "mistake")
    which = f"; the {NUM_PAIRS} most frequent are here" if found.num_pairs > NUM_PAIRS else ""
    return (
        f"{mistakes} of {plural(found.num_pairs, 'kind')}{which}. The share is of the images of the class. "
        "The images are those of which the model is most sure."
    )
