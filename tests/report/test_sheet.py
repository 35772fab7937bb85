"""Contact sheets and folders of images: what is drawn where, and which names files get."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from tests.support.builders import photo, write_tar
from tests.support.report_runs import make_run
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.sandbox import close_process_sandbox
from wordsworth.pipeline.report import sheet
from wordsworth.pipeline.report.lettering import Lettering
from wordsworth.pipeline.report.query import Query, choose_rows
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.sheet import GAP, TILE, file_name, is_sheet, write_files, write_sheet

COLOURS = {"red": (220, 20, 20), "green": (20, 160, 20), "blue": (20, 20, 220)}
HOSTILE = ["../../up", "a\x1b[31mred", "<script>alert(1)</script>", "\u202egpj.exe", "日本", "k" * 300, "نص"]


def plain(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), COLOURS[colour]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheet")
    members = {f"{colour}.png": plain(colour) for colour in COLOURS} | {"x.jpg": b"no image"}
    write_tar(folder / "in" / "a.tar", members)
    write_tar(folder / "in" / "b.tar", {f"{key}.jpg": photo(n) for n, key in enumerate(HOSTILE)})
    yield RunRows.open(str(make_run(folder / "out", folder / "in")))
    close_process_sandbox()


def tile(image: Image.Image, number: int, columns: int, num_tiles: int = 4) -> np.ndarray:
    """Return the pixels of a tile, by the height of the whole sheet."""
    row, column = divmod(number, columns)
    rows = -(-num_tiles // columns)
    lettering = Lettering(sheet.LETTERS)
    step = TILE + (sheet.KEY_LINES + 2) * lettering.height + GAP
    top = image.height - rows * step + row * step
    left = GAP + column * (TILE + GAP)
    return np.asarray(image.crop((left, top, left + TILE, top + TILE))).astype(int)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_sheet_has_the_images_in_their_order_and_errors_as_tiles(run, tmp_path, ending):
    rows = choose_rows(run, Query(sql="shard like '%a.tar'"))
    output = tmp_path / f"sheet.{ending}"
    shown = write_sheet(run, rows, "the title", str(output))
    assert shown.num_images == 3 and shown.reasons == {3: "not_an_image: made for a test"}
    image = Image.open(output).convert("RGB")
    columns = 3
    for number, colour in enumerate(COLOURS.values()):
        assert np.abs(tile(image, number, columns)[16:-16, 16:-16] - colour).max() < 30
    error = tile(image, 3, columns)
    assert np.abs(error - (241, 241, 239)).max(2).max() > 60 > np.abs(error[-40:] - (241, 241, 239)).max()
    top = np.asarray(image.crop((0, 0, image.width, 2 * GAP + 20)))
    assert top.min() < 120  # the title


def test_a_tiny_image_is_enlarged_until_it_can_be_seen(tmp_path):
    dots = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    for name, image in {"digit.png": dots, "icon.png": dots.resize((TILE // 3, 8))}.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        image.save(tmp_path / "in" / name)
    run = RunRows.open(str(make_run(tmp_path / "out", tmp_path / "in")))
    write_sheet(run, choose_rows(run, Query()), "dots", str(tmp_path / "sheet.png"))
    image = Image.open(tmp_path / "sheet.png").convert("RGB")
    seen = tile(image, 0, 2, 2)[:, :, 0]
    np.testing.assert_allclose(seen[14::28, 14::28], np.asarray(dots), atol=12)  # 28 pixels for each of 8
    icon = tile(image, 1, 2, 2)
    assert (icon[:100] == icon[0, 0]).all()  # it is a third of the tile wide, and stays as it is
    assert (icon[100:124] != icon[0, 0]).any()


def test_every_odd_key_is_drawn_and_fits(run, tmp_path, monkeypatch):
    drawn = []
    real = Lettering.draw

    def noting(self, pen, place, text, colour):
        drawn.append((place, text, self.width(text)))
        real(self, pen, place, text, colour)

    monkeypatch.setattr(Lettering, "draw", noting)
    rows = choose_rows(run, Query(sql="shard like '%b.tar'"))
    write_sheet(run, rows, "\x1b[2J" + "t" * 4000, str(tmp_path / "s.png"))
    image = Image.open(tmp_path / "s.png")
    texts = [text for _, text, _ in drawn]
    assert all(place[0] + width <= image.width for place, _, width in drawn)
    assert "<script>alert(1)</script>" in texts and "\\u202egpj" in texts
    assert not any(char in text for text in texts for char in "\x1b\u202e\n")
    assert any("..." in text for text in texts)  # the middle of the long key


def test_a_character_that_no_font_has_is_drawn_as_its_escape():
    lettering = Lettering(13)
    assert lettering.text("Łódź naïve") == "Łódź naïve"
    assert lettering.text("a\U0010fffeb") == "a\\U0010fffeb"
    assert lettering.text("a\tb\0") == "a\\tb\\x00"


def test_a_long_text_loses_its_middle_and_keeps_its_ends():
    lettering = Lettering(13)
    lines = lettering.fitted("begin" + "-" * 500 + "end", 200, 2)
    assert len(lines) == 2 and lines[0].startswith("begin") and lines[1].endswith("end")
    assert all(lettering.width(line) <= 200 for line in lines)
    assert lettering.fitted("short", 200, 2) == ["short"] and lettering.fitted("", 200) == [""]
    assert len(lettering.fitted("m" * 100, 3, 2)) == 2  # narrower than a letter


def test_letters_stand_where_they_are_measured():
    lettering = Lettering(20)
    image = Image.new("L", (400, 40))
    lettering.draw(ImageDraw.Draw(image), (10, 5), "measured", 255)
    columns = np.flatnonzero(np.asarray(image).max(0))
    assert 10 <= columns[0] < 14 and abs(columns[-1] - (10 + lettering.width("measured"))) < 4


def test_files_are_the_bytes_of_the_source_beside_an_index(run, tmp_path):
    rows = choose_rows(run, Query(sql="shard like '%b.tar'", limit=100))
    shown = write_files(run, rows, str(tmp_path / "images"))
    index = pq.read_table(tmp_path / "images" / "index.parquet").to_pylist()
    assert shown.num_images == len(HOSTILE) and len(index) == len(HOSTILE)
    for number, row in enumerate(index):
        assert (tmp_path / "images" / row["file"]).read_bytes() == photo(number)
        assert row["label"] and row["reason"] is None
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        "index.parquet",
        *(row["file"] for row in index),
    }
    assert sorted(os.listdir(tmp_path)) == ["images"]


def test_the_name_of_a_file_is_safe_whatever_the_key_is():
    names = [file_name(number, key, photo(1)) for number, key in enumerate(HOSTILE)]
    assert names[0] == "00000-up.jpg" and names[2] == "00002-script_alert_1_script.jpg"
    assert all(name.isascii() and "/" not in name and len(name) < 100 for name in names)
    assert names[4] == "00004.jpg" and file_name(7, None, b"?") == "00007.bin"
    assert file_name(1, "..", plain("red")) == "00001.png"


def test_a_folder_that_holds_something_and_a_file_of_another_kind_are_refused(run, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    rows = choose_rows(run, Query(limit=1))
    with pytest.raises(UserError, match="is not empty: choose a new folder"):
        write_files(run, rows, str(tmp_path))
    assert os.listdir(tmp_path) == ["mine.txt"]
    with pytest.raises(UserError, match=r"a sheet ends in \.png, \.jpg, \.jpeg, \.webp; any other name is a"):
        is_sheet("sheet.pdf")
    assert is_sheet("s3://b/x/Sheet.PNG") and not is_sheet("s3://b.png/folder") and not is_sheet("v1.2")


def test_a_sheet_has_a_bound(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "MAX_TILES", 3)
    with pytest.raises(UserError, match="a sheet takes 3 images, not 4: lower --limit, or give a folder"):
        write_sheet(run, choose_rows(run, Query(limit=4)), "", str(tmp_path / "s.png"))


def test_a_long_label_leaves_the_numbers_whole(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Lettering, "draw", lambda self, pen, place, text, colour: drawn.append((self, text)))
    rows = choose_rows(run, Query(sql="key = 'red'", nearest="red"))
    place = rows.column_names.index("label")
    rows = rows.set_column(place, "label", pa.array(["a label that is far too long for one line of a tile"]))
    write_sheet(run, rows, "t", str(tmp_path / "s.png"))
    lettering, text = drawn[-1]
    assert text.startswith("a lab") and "..." in text and text.endswith("  0.500  cosine 1.000")
    assert lettering.width(text) <= TILE
