"""Draw charts as inline SVG. Colours and fonts come from the page's style, so they follow light and dark."""

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup, escape

from wordsworth.pipeline.report.html import number, short_name

WIDTH, HEIGHT = 360, 190  # of a chart, in its own units: at this size its text is 11 pixels high
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 10, 26  # margins
NUM_STEPS = 3  # lines across a chart, about

Label = Callable[[float], str]


class Frame:
    """Collect the marks of one chart.

    Attributes:
        most: value at the top of the chart.

    Args:
        title: what a screen reader says of the chart.
        most: the largest value.
        label: how values are written.
        least_step: between two lines across the chart; 1 for counts.
    """

    def __init__(self, title: str, most: float, label: Label = number, least_step: float = 0.0):
        self.title = title
        self.step = max(least_step, _round_step(most))
        self.most = self.step * max(1, np.ceil(most / self.step - 1e-9))
        self.marks: list[Markup] = []
        for value in np.arange(0, self.most + self.step / 2, self.step):
            y = self.y(value)
            kind = "base" if value == 0 else "grid"
            self.add(
                '<line class="{}" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>', kind, LEFT, WIDTH - RIGHT, y, y
            )
            self.text(LEFT - 6, y + 3.5, label(float(value)), "end")

    def x(self, share: float) -> float:
        """Return the place of a share of the width."""
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return the place of a value."""
        return HEIGHT - BOTTOM - value / self.most * (HEIGHT - TOP - BOTTOM)

    def add(self, mark: str, *parts: object) -> None:
        """Add an element; its parts are escaped."""
        self.marks.append(Markup(mark).format(*parts))

    def text(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        """Add a text."""
        self.add('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>', x, y, anchor, text)

    def below(self, share: float, text: str) -> None:
        """Write a text under the axis."""
        anchor = "start" if share <= 0.02 else "end" if share >= 0.98 else "middle"
        self.text(self.x(share), HEIGHT - BOTTOM + 16, text, anchor)

    def svg(self) -> Markup:
        """Return the chart."""
        head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
        return head.format(WIDTH, HEIGHT, self.title) + Markup("").join(self.marks) + Markup("</svg>")


def histogram(
    title: str, counts: Sequence[int] | np.ndarray, names: Sequence[str], ticks: Sequence[tuple[float, str]]
) -> Markup:
    """Return columns side by side.

    Args:
        title: what a screen reader says of the chart.
        counts: (B,) height of each column.
        names: (B,) what a column says when it is pointed at.
        ticks: texts under the axis, each at a share of its width.
    """
    frame = Frame(title, max(1, float(np.max(counts, initial=0))), least_step=1)
    num = len(counts)
    gap = 0.12 if num <= 48 else 0.0
    for place, (count, name) in enumerate(zip(counts, names, strict=True)):
        left, right = frame.x((place + gap / 2) / num), frame.x((place + 1 - gap / 2) / num)
        top, base = frame.y(float(count)), frame.y(0)
        if count:
            top = min(top, base - 1)  # one image among a million is still seen
            frame.add(
                '<rect class="fill" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" rx="1">'
                "<title>{}: {}</title></rect>",
                *(left, top, right - left, base - top, name, number(float(count))),
            )
    for share, text in ticks:
        frame.below(share, text)
    return frame.svg()


def areas(
    title: str, series: dict[str, np.ndarray], ticks: Sequence[tuple[float, str]], label: Label = number
) -> Markup:
    """Return areas on top of each other.

    Args:
        title: what a screen reader says of the chart.
        series: (B,) values by name; the first one lies at the bottom.
        ticks: texts under the axis, each at a share of its width.
        label: how values are written.
    """
    values = np.stack(list(series.values()))
    tops = np.cumsum(values, 0)
    frame = Frame(title, max(1e-9, float(tops[-1].max())), label)
    below = np.zeros(values.shape[1])
    for place, (name, top) in enumerate(zip(series, tops, strict=True)):
        points = [*_steps(frame, top), *reversed(_steps(frame, below))]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"
        frame.add('<path class="own s{}" d="{}"><title>{}</title></path>', place, path, name)
        below = top
    for share, text in ticks:
        frame.below(share, text)
    return frame.svg()


def line(title: str, values: np.ndarray, ticks: Sequence[tuple[float, str]], label: Label = number) -> Markup:
    """Return one line in steps.

    Args:
        title: what a screen reader says of the chart.
        values: (B,) values.
        ticks: texts under the axis, each at a share of its width.
        label: how values are written.
    """
    frame = Frame(title, max(1e-9, float(values.max(initial=0))), label)
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in _steps(frame, values))
    frame.add('<path class="line" d="{}"/>', path)
    for share, text in ticks:
        frame.below(share, text)
    return frame.svg()


def _steps(frame: Frame, values: np.ndarray) -> list[tuple[float, float]]:
    points = []
    for place, value in enumerate(values):
        y = frame.y(float(value))
        points += [(frame.x(place / len(values)), y), (frame.x((place + 1) / len(values)), y)]
    return points


def bar(share: float) -> Markup:
    """Return a bar of a table: a share between 0 and 1."""
    width = 100 * min(1.0, max(0.0, share))
    return Markup(
        '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="6" rx="1"/>'
        '<rect class="part" width="{:.2f}" height="6" rx="1"/></svg>'
    ).format(width)


def scatter(places: np.ndarray, series: Sequence[str], names: Sequence[str], size: int = 560) -> Markup:
    """Return points as circles, each with an id and a name for screen readers.

    Args:
        places: (M, 2) between 0 and 1.
        series: (M,) class of each point's colour.
        names: (M,) what a screen reader says of each point.
        size: side of the square, in the chart's own units.
    """
    circles = []
    for number_, ((x, y), kind, name) in enumerate(zip(places.tolist(), series, names, strict=True)):
        circles.append(
            f'<circle id="p{number_}" role="option" aria-selected="false" class="{escape(kind)}" r="5" '
            f'cx="{x * size:.1f}" cy="{y * size:.1f}" aria-label="{escape(short_name(name))}"/>'
        )
    return Markup("").join(map(Markup, circles))


def _round_step(most: float) -> float:
    """Return a round distance between the lines of a chart: 1, 2 or 5 times a power of ten."""
    rough = most / NUM_STEPS
    power = 10.0 ** np.floor(np.log10(rough))
    for times in (1, 2, 5, 10):
        if times * power >= rough - 1e-12:
            return float(times * power)
    return float(10 * power)
