"""Promises of the drawn figures: what the pixels of a PNG file say is what the arrays say."""

import io
import math
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.report import figure_frame, model_figures

GRID = (6, 6)
HOT = np.array(matplotlib.colormaps["inferno"](1.0)[:3]) * 255
HOSTILE = "a<script>alert(1)</script>\x1b[31m$\\frac{1$ \u202e\x00 \N{GRINNING FACE} 画像.jpg"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 180, (96, 96, 3), dtype=np.uint8)


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def is_hot(pixels: np.ndarray) -> np.ndarray:
    return np.abs(pixels - HOT).max(-1) < 12


def boxes_of(hot: np.ndarray, num_panels: int) -> list[tuple[int, int, int, int]]:
    """Return (top, bottom, left, right) of panels side by side that are hot all over."""
    columns = np.flatnonzero(hot.sum(0) > hot.any(1).sum() * 0.6)
    parts = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    panels = sorted(parts, key=len)[-num_panels:]
    boxes = []
    for part in sorted(panels, key=lambda part: part[0]):
        rows = np.flatnonzero(hot[:, part].mean(1) > 0.9)
        boxes.append((rows[0], rows[-1] + 1, part[0], part[-1] + 1))
    return boxes


def cell_of(hot: np.ndarray, box: tuple[int, int, int, int]) -> tuple[int, int]:
    """Return (row, column) of the patch in whose square the hot pixels of a panel lie."""
    top, bottom, left, right = box
    rows, columns = np.nonzero(hot[top:bottom, left:right])
    height, width = (bottom - top) / GRID[0], (right - left) / GRID[1]
    found = {(int(row // height), int(column // width)) for row, column in zip(rows, columns, strict=True)}
    middle = (int(rows.mean() // height), int(columns.mean() // width))
    assert middle in found and len(rows) > 0.8 * height * width
    return middle


@pytest.mark.parametrize("place", [(1, 4), (5, 2)])
def test_the_hottest_patch_of_the_rollout_is_where_the_array_says(image, place):
    everywhere = model_figures.rollout_figure(image, np.full(GRID, 0.03), "title")
    [box] = boxes_of(is_hot(pixels_of(everywhere)), 1)
    rollout = np.random.default_rng(1).uniform(0, 0.01, GRID)
    rollout[place] = 0.03
    drawn = pixels_of(model_figures.rollout_figure(image, rollout, "title"))
    assert cell_of(is_hot(drawn), box) == place


def test_the_image_by_attention_is_whole_at_the_hottest_patch_and_black_without(image):
    rollout = np.zeros(GRID)
    rollout[1:3, 4:] = 0.05
    masked = model_figures.weighted_image(image, rollout)
    np.testing.assert_array_equal(masked[30:34, 76:90], image[30:34, 76:90])
    assert masked[:, :40].max() == 0 and masked[70:].max() == 0


def test_all_heads_have_one_scale(image):
    everywhere = model_figures.heads_figure(image, np.full((2, *GRID), 0.3), "title")
    boxes = boxes_of(is_hot(pixels_of(everywhere)), 2)
    heads = np.full((2, *GRID), 0.001)
    heads[0, 2, 1], heads[1, 4, 4] = 0.3, 0.1
    drawn = pixels_of(model_figures.heads_figure(image, heads, "title"))
    assert cell_of(is_hot(drawn), boxes[0]) == (2, 1)
    top, bottom, left, right = boxes[1]
    assert not is_hot(drawn[top:bottom, left:right]).any()  # a third of the other head's
    row, column = top + (bottom - top) * 9 // 12, left + (right - left) * 9 // 12
    expected = np.array(matplotlib.colormaps["inferno"](math.sqrt(0.1 / 0.3))[:3]) * 255
    assert np.abs(drawn[row, column] - expected).max() <= 3


@pytest.mark.parametrize(("num_panels", "across"), [(2, 2), (4, 4), (5, 5), (7, 7), (13, 7), (17, 6)])
def test_panels_stand_in_full_rows(num_panels, across):
    assert model_figures.panels_across(num_panels) == across


def test_patches_are_numbered_in_raster_order_each_at_its_centre(image, monkeypatch):
    texts: dict[str, tuple[float, float]] = {}
    monkeypatch.setattr(Axes, "text", lambda axis, x, y, text, **how: texts.__setitem__(text, (x, y)))
    model_figures.patches_figure(image[:64], (4, 6), "title")
    assert list(texts) == [str(number) for number in range(1, 25)]
    for number in range(24):
        row, column = divmod(number, 6)
        assert texts[str(number + 1)] == (column * 16 + 7.5, row * 16 + 7.5)


def test_of_many_patches_some_are_numbered_by_the_same_numbers():
    assert model_figures.patch_numbers((2, 3)) == [1, 2, 3, 4, 5, 6]
    assert model_figures.patch_numbers((4, 5), every=2) == [1, 3, 5, 11, 13, 15]


def test_the_filters_have_the_colours_of_the_array():
    filters = np.zeros((2, 4, 4, 3))
    filters[0, :, :] = [1.0, 0.2, 0.0]
    filters[1, :, :] = [0.0, 0.4, 0.8]
    drawn = pixels_of(model_figures.filters_figure(filters, "title"))
    for colour in ([255, 51, 0], [0, 102, 204]):
        assert (np.abs(drawn - colour).max(-1) <= 1).sum() > 5_000


def test_tiles_of_positions_keep_their_place_and_gaps_are_empty():
    similarity = np.random.default_rng(2).uniform(-1, 1, (3, 4, 3, 4))
    mosaic = model_figures.tile_mosaic(similarity)
    assert mosaic.shape == (3 * 4 - 1, 4 * 5 - 1)
    np.testing.assert_array_equal(mosaic[4:7, 10:14], similarity[1, 2])
    assert np.isnan(mosaic[3]).all() and np.isnan(mosaic[:, 4]).all()
    assert model_figures.positions_figure(similarity, "title")


def test_a_head_is_a_dot_at_its_layer_and_its_distance(monkeypatch):
    seen = {}
    scatter = Axes.scatter
    monkeypatch.setattr(
        Axes, "scatter", lambda axis, x, y, **how: seen.update(x=x, y=y) or scatter(axis, x, y, **how)
    )
    distances = np.array([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    model_figures.distances_figure(distances, 55.0, "title")
    assert list(zip(seen["x"], seen["y"], strict=True)) == [
        (1, 10.0), (1, 20.0), (2, 30.0), (2, 40.0), (3, 50.0), (3, 60.0),
    ]  # fmt: skip


def test_equal_arrays_give_equal_bytes_whatever_the_users_settings_are(image):
    rollout = np.random.default_rng(3).random(GRID)
    first = model_figures.rollout_figure(image, rollout, "title", "note")
    with matplotlib.rc_context({"font.size": 30, "image.cmap": "gray", "savefig.dpi": 20}):
        before = dict(matplotlib.rcParams)
        second = model_figures.rollout_figure(image, rollout, "title", "note")
        assert dict(matplotlib.rcParams) == before
    assert first == second
    assert Image.open(io.BytesIO(first)).text == {}  # neither a date nor a version


def test_hostile_names_are_text_in_titles(image):
    text = figure_frame.title_text(HOSTILE, 200)
    assert text.isprintable() and "\\x1b[31m" in text and "\\u202e" in text and "\\x00" in text
    assert "<script>" in text and "\\u753b" in text  # a letter that the font lacks
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a glyph that is missing, of mathematics that is none
        drawn = model_figures.rollout_figure(image, np.ones(GRID), HOSTILE, HOSTILE)
    assert Image.open(io.BytesIO(drawn)).text == {}


def test_a_title_of_thousands_of_letters_keeps_its_ends_and_the_size_of_the_figure(image):
    long = figure_frame.title_text("begin" + "x" * 4000 + "end", 70)
    assert len(long) <= 70 and long.startswith("begin") and long.endswith("end")
    sizes = {pixels_of(model_figures.patches_figure(image, GRID, title)).shape for title in ("a", "b" * 4000)}
    assert len(sizes) == 1


def test_a_head_that_looks_nowhere_and_a_rollout_of_zero_are_drawn(image):
    assert model_figures.heads_figure(image, np.zeros((1, *GRID)), "title")
    assert model_figures.rollout_figure(image, np.zeros(GRID), "title")


def test_without_matplotlib_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(figure_frame, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'wordsworth\[plots\]'"):
        figure_frame.check_can_draw()
