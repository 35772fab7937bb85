"""Frame a figure: its size, its title, its style, its PNG file.

matplotlib is imported when a figure is drawn: it is an extra of this package. Nothing of it is changed for
others: its settings are after every drawing as they were. Equal arrays and texts give equal bytes.
"""

import contextlib
import io
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

from wordsworth.pipeline.errors import UserError, shown

NEEDED = "the figures are drawn by matplotlib: pip install 'wordsworth[plots]'"
FONT = "DejaVu Sans"  # comes with matplotlib, so that the same text is the same drawing everywhere
DPI = 110
INK, PALE = "#1c2430", "#6b7684"
STYLE = {
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "font.family": FONT,
    "figure.facecolor": "white",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
TITLE_CHARS, NOTE_CHARS = 10, 14  # of an inch; a text that is wider than its figure keeps its two ends


def check_can_draw() -> None:
    """Check that matplotlib is installed.

    Raises:
        UserError: it is not.
    """
    if not can_draw():
        raise UserError(NEEDED, exit_code=2)


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


@contextlib.contextmanager
def framed(width: float, height: float, title: str, note: str) -> Iterator[tuple[Any, io.BytesIO]]:
    """Make a figure of that size beside its title, and save it as PNG at the end of the block.

    Yields:
        The figure, and the buffer that has the file after the block.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width = max(width, 4.6)
    title, note = title_text(title, int(width * TITLE_CHARS)), title_text(note, int(width * NOTE_CHARS))
    above = 0.42 + 0.24 * bool(note)  # inches
    saved = io.BytesIO()
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if "backend" not in name}
    with matplotlib.rc_context(defaults | STYLE):
        top = height / (height + above)
        layout = ConstrainedLayoutEngine(rect=(0.01, 0.01, 0.98, top - 0.015))
        figure = Figure(figsize=(width, height + above), dpi=DPI, layout=layout)
        FigureCanvasAgg(figure)
        inch = 1 / (height + above)
        figure.text(0.1 / width, 1 - 0.12 * inch, title, va="top", fontsize=11, weight="bold")
        if note:
            figure.text(0.1 / width, 1 - 0.37 * inch, note, va="top", fontsize=8.5, color=PALE)
        yield figure, saved
        figure.savefig(saved, format="png", metadata={"Software": None})


def title_text(text: str, most: int) -> str:
    """Return a text from data as a figure has it: one line of letters that the font has.

    Args:
        text: any text. A letter that the font lacks is written as Python escapes it.
        most: characters that there is room for; a longer text keeps its two ends.
    """
    letters = _letters()
    drawn = [char if ord(char) in letters else char.encode("unicode_escape").decode() for char in shown(text)]
    text = "".join(drawn)
    if len(text) <= most:
        return text
    half = most // 2 - 2
    return f"{text[:half]} … {text[-half:]}"


@cache
def _letters() -> frozenset[int]:
    """Return the code points that the font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())
