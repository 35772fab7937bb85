"""Draw how often a run is right at each score: the reliability diagram, and the same figures as a table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.output.intervals import wilson_interval
from wordsworth.pipeline.report.charts import Frame, histogram
from wordsworth.pipeline.report.html import percent

LEAST_RADIUS, MOST_RADIUS = 2.0, 6.0  # of a point, in the units of the chart
TICKS = [(share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


class Calibrated(NamedTuple):
    """Hold the bins of one run.

    Attributes:
        name: of the run; empty where there is one only.
        bins: (B, 3) by score: images, sum of their scores, right ones.
        error: the expected calibration error.
    """

    name: str
    bins: Sequence[Sequence[float]]
    error: float


def reliability_chart(runs: Sequence[Calibrated]) -> Markup:
    """Return the share of right labels by score, with 95% intervals; on the dashed line it is the score.

    The area of a point grows with the images of its bin.
    """
    told = "; ".join(f"{f'{run.name}: ' if run.name else ''}expected error {run.error:.3f}" for run in runs)
    title = f"Share of right labels by score: {told}. The figures are in the table below"
    frame = Frame(title, 1.0, lambda share: f"{share:.0%}")
    corners = (frame.x(0), frame.x(1), frame.y(0), frame.y(1))
    frame.add('<line class="ideal" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>', *corners)
    for number, run in enumerate(runs):
        _draw(frame, run, f"s{number}")
    for share, text in TICKS:
        frame.below(share, text)
    return frame.svg()


def _draw(frame: Frame, run: Calibrated, series: str) -> None:
    bins = [row for row in run.bins if row[0]]
    most = max(row[0] for row in bins)
    points = []
    for num, score_sum, num_right in bins:
        x, y = frame.x(score_sum / num), frame.y(num_right / num)
        low, high = wilson_interval(int(num_right), int(num))
        frame.add(
            '<line class="ownline thin {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>',
            *(series, x, x, frame.y(low), frame.y(high)),
        )
        points.append((x, y, num, f"{_told(run, num, score_sum, num_right)}, {low:.1%} to {high:.1%}"))
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, *_ in points)
    frame.add('<path class="ownline {}" d="{}"/>', series, path)
    for x, y, num, text in points:
        radius = LEAST_RADIUS + (MOST_RADIUS - LEAST_RADIUS) * np.sqrt(num / most)
        frame.add(
            '<circle class="own {}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>',
            *(series, x, y, radius, text),
        )


def _told(run: Calibrated, num: float, score_sum: float, num_right: float) -> str:
    name = f"{run.name}: " if run.name else ""
    return f"{name}{plural(int(num), 'image')}, mean score {score_sum / num:.3f}, right {num_right / num:.1%}"


def counts_chart(run: Calibrated) -> Markup:
    """Return the images by score, in the bins of the calibration."""
    counts = [int(row[0]) for row in run.bins]
    names = [f"score {name}" for name in bin_names(len(counts))]
    title = f"Images by score{f' in {run.name}' if run.name else ''}, in the bins of the calibration"
    return histogram(title, counts, names, TICKS)


def bin_names(num: int) -> list[str]:
    """Return the ranges of score of bins of equal width."""
    return [f"{place / num:.2f} to {(place + 1) / num:.2f}" for place in range(num)]


def bin_rows(run: Calibrated) -> list[dict[str, Any]]:
    """Return the bins with images as rows of a table."""
    rows = []
    for name, (num, score_sum, num_right) in zip(bin_names(len(run.bins)), run.bins, strict=True):
        if num:
            low, high = wilson_interval(int(num_right), int(num))
            rows.append(
                {
                    "name": name,
                    "num": int(num),
                    "score": f"{score_sum / num:.3f}",
                    "right": percent(num_right / num),
                    "interval": f"{low:.1%} to {high:.1%}",
                }
            )
    return rows
