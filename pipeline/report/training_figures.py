"""Draw the curves of a training."""

from dataclasses import dataclass

from wordsworth.pipeline.report.figure_frame import framed
from wordsworth.pipeline.training.last_values import write_last_values

COLOURS = {
    "training": "#2a6f97",
    "validation": "#c8553d",
    "linear probe": "#2a6f97",
    "nearest neighbours": "#588157",
}
MOST_DOTS = 30  # epochs; of more, only the line is drawn


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Hold one figure over the epochs.

    Attributes:
        name: of the figure.
        lines: (epoch, value) by the name of a line in COLOURS; no point where an epoch has no value.
    """

    name: str
    lines: dict[str, list[tuple[int, float]]]


def curves_figure(curves: list[Curve], title: str, note: str = "") -> bytes:
    """Draw curves side by side, each with its last value.

    Args:
        curves: what is drawn.
        title: the first line.
        note: the second line.
    """
    with framed(3.7 * len(curves), 3.0, title, note) as (figure, saved):
        from matplotlib.ticker import MaxNLocator

        for axis, curve in zip(figure.subplots(1, len(curves), squeeze=False).flat, curves, strict=True):
            for name, points in curve.lines.items():
                if not points:
                    continue
                marker = "o" if len(points) <= MOST_DOTS else None
                epochs, heights = zip(*points, strict=True)
                axis.plot(epochs, heights, color=COLOURS[name], marker=marker, markersize=3, label=name)
            write_last_values(axis, curve.lines, ".3g", COLOURS)
            axis.set_title(curve.name, loc="left")
            axis.set_xlabel("epoch")
            axis.margins(x=0.12)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            if curve is curves[0] or not curve.lines.keys() <= curves[0].lines.keys():
                axis.legend(frameon=False, fontsize=8)
    return saved.getvalue()
