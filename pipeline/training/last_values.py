"""Write the last value of each curve beside its end, so that no value lies on another."""

from typing import Any

LABEL_POINTS = 13  # from one value to the next above, at least; a point is a 72nd of an inch
FONT_POINTS = 8

Points = list[tuple[int, float]]  # epochs and values


def write_last_values(axis: Any, lines: dict[str, Points], form: str, colours: dict[str, str]) -> None:
    """Write the last values of the curves of an axis, on which they are drawn already.

    Args:
        axis: of matplotlib.
        lines: by their names; a line without points has no value.
        form: how a value is written, such as ".3f".
        colours: by the names of lines; any other is black.
    """
    last = {name: points[-1] for name, points in lines.items() if points}
    low, high = axis.get_ylim()
    points_of_one = axis.get_position().height * axis.figure.get_figheight() * 72 / (high - low)
    heights = {name: (value - low) * points_of_one for name, (_, value) in last.items()}
    for name, moved in label_offsets(heights).items():
        axis.annotate(
            f"{last[name][1]:{form}}",
            last[name],
            xytext=(4, moved),
            textcoords="offset points",
            fontsize=FONT_POINTS,
            color=colours.get(name, "black"),
        )


def label_offsets(heights: dict[str, float]) -> dict[str, float]:
    """Return how far up each label is moved, from its height and those of the others, all in points."""
    offsets = {}
    least = float("-inf")
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        offsets[name] = max(0.0, least - height)
        least = height + offsets[name] + LABEL_POINTS
    return offsets
