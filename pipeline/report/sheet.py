"""Show the images of rows as one contact sheet, or write them as files beside an index."""

import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.commit import parquet_bytes
from wordsworth.pipeline.report.images import Fetched, fetch_images
from wordsworth.pipeline.report.lettering import Lettering
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.thumbnails import ThumbnailSettings, thumbnail
from wordsworth.pipeline.storage.atomic import overwrite
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_filesystem
from wordsworth.pipeline.storage.walk import list_names

SHEETS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # formats by the ending of a name
OTHER_IMAGES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".pdf", ".svg", ".html")
MAX_TILES = 1000  # of a sheet
TILE = 224  # pixels of the longer side of an image in a sheet
TINY = 4  # how often an image fits along a tile from which on it is enlarged
GAP = 12  # pixels between tiles
LETTERS = 13  # pixels of the letters
KEY_LINES = 2  # lines for a key, at most
REASON_LINES = 6  # lines for why there is no image, at most
INDEX = "index.parquet"
SAFE_CHARACTERS = 80  # of a key in the name of a file
PAPER, EMPTY, INK, FAINT, RED = "#ffffff", "#f1f1ef", "#1d1d1b", "#6b6b66", "#a3231b"
# First bytes of an image, and the ending of its file.
ENDINGS = (
    (re.compile(rb"\xff\xd8\xff"), ".jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp"),
    (re.compile(rb"GIF8"), ".gif"),
    (re.compile(rb"BM"), ".bmp"),
    (re.compile(rb"II\*\0|MM\0\*"), ".tif"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), ".avif"),
)


@dataclass
class Shown:
    """Say what became of the rows that were to be shown.

    Attributes:
        num_images: images that were shown.
        reasons: why a row has no image, by the number of the row.
        files: name of the file of each row that has one, by the number of the row.
    """

    num_images: int = 0
    reasons: dict[int, str] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)


def is_sheet(output: str) -> bool:
    """Return whether an output is a sheet by the ending of its name; else it is a folder.

    Raises:
        UserError: it ends like a file of another kind.
    """
    ending = _ending(output)
    if ending in OTHER_IMAGES:
        raise UserError(
            f"--output {output}: a sheet ends in {', '.join(SHEETS)}; any other name is a folder", exit_code=2
        )
    return ending in SHEETS


def _ending(output: str) -> str:
    name = output.rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""


# ---- a sheet ----------------------------------------------------------------------------------------------


def write_sheet(run: RunRows, rows: pa.Table, title: str, output: str) -> Shown:
    """Write a contact sheet: each image with its key, its label and its score, or why there is no image.

    Args:
        run: the run of the rows.
        rows: the rows, as `choose_rows` gives them.
        title: stands above the images.
        output: file, whose ending is one of SHEETS.

    Raises:
        UserError: there are more rows than a sheet takes.
    """
    if rows.num_rows > MAX_TILES:
        raise UserError(
            f"a sheet takes {MAX_TILES} images, not {rows.num_rows}: lower --limit, or give a folder",
            exit_code=2,
        )
    result = Shown()
    sheet = _Sheet(rows.num_rows, title)
    told = rows.to_pylist()
    settings = ThumbnailSettings.of(run.plan, quality=92)
    for one in _fetched(run, rows, skip_errors=True):
        row = told[one.row_number]
        small = thumbnail(one.data, TILE, settings) if one.data is not None else one.reason or ""
        if isinstance(small, str):
            result.reasons[one.row_number] = small
            sheet.tell(one.row_number, small, is_error=bool(row.get("error")))
        else:
            result.num_images += 1
            sheet.paste(one.row_number, Image.open(io.BytesIO(small.data)))
        sheet.caption(one.row_number, row)
    _write(output, sheet.encoded(SHEETS[_ending(output)]), run.storage_options)
    return result


def _fetched(run: RunRows, rows: pa.Table, skip_errors: bool) -> Iterable[Fetched]:
    """Yield what is fetched for each row; a row with an error has its error, where these are skipped."""
    numbers = list(range(rows.num_rows))
    if skip_errors and "error" in rows.column_names:
        errors = rows.select(["error", "error_detail"]).to_pylist()
        for number, told in enumerate(errors):
            if told["error"] is not None:
                numbers.remove(number)
                yield Fetched(number, None, f"{told['error']}: {told['error_detail'] or ''}")
    for one in fetch_images(run, rows.take(pa.array(numbers, pa.int64()))):
        yield one._replace(row_number=numbers[one.row_number])


class _Sheet:
    """Draw tiles on a sheet."""

    def __init__(self, num_tiles: int, title: str):
        self.columns = max(1, min(num_tiles, math.ceil(math.sqrt(num_tiles * 1.3))))
        self.letters = Lettering(LETTERS)
        heading = Lettering(LETTERS + 5)
        width = self.columns * (TILE + GAP) + GAP
        self.width = max(width, 3 * (TILE + GAP) + GAP)
        lines = heading.fitted(title, self.width - 2 * GAP, 2)
        self.top = 2 * GAP + len(lines) * heading.height
        self.step = TILE + (KEY_LINES + 2) * self.letters.height + GAP
        num_rows = -(-num_tiles // self.columns)
        self.image = Image.new("RGB", (self.width, self.top + num_rows * self.step), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        for number, line in enumerate(lines):
            heading.draw(self.pen, (GAP, GAP + number * heading.height), line, INK)

    def _corner(self, number: int) -> tuple[int, int]:
        row, column = divmod(number, self.columns)
        return GAP + column * (TILE + GAP), self.top + row * self.step

    def paste(self, number: int, image: Image.Image) -> None:
        """Put an image into a tile, in the middle. A tiny one, which would be a dot, is enlarged."""
        left, top = self._corner(number)
        self._frame(left, top)
        times = TILE // max(image.size)
        if times >= TINY:
            image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
        place = left + (TILE - image.width) // 2, top + (TILE - image.height) // 2
        self.image.paste(image, place)

    def tell(self, number: int, reason: str, is_error: bool) -> None:
        """Write into a tile why there is no image."""
        left, top = self._corner(number)
        self._frame(left, top)
        colour = RED if is_error else FAINT
        for line, text in enumerate(self.letters.fitted(reason, TILE - 2 * GAP, REASON_LINES)):
            self.letters.draw(self.pen, (left + GAP, top + GAP + line * self.letters.height), text, colour)

    def _frame(self, left: int, top: int) -> None:
        self.pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=EMPTY)

    def caption(self, number: int, row: dict[str, Any]) -> None:
        """Write the key of a row under its tile, and its label and score."""
        left, top = self._corner(number)
        top += TILE + 2
        lines = [(line, INK) for line in self.letters.fitted(key_of(row), TILE, KEY_LINES)]
        numbers = numbers_of(row)
        room = TILE - math.ceil(self.letters.width(f"  {numbers}"))
        label = " ".join(self.letters.fitted(label_of(row), room))
        lines.append((f"{label}  {numbers}".strip(), FAINT))
        for line, (text, colour) in enumerate(lines):
            self.letters.draw(self.pen, (left, top + line * self.letters.height), text, colour)

    def encoded(self, format: str) -> bytes:
        """Return the sheet as a file."""
        file = io.BytesIO()
        self.image.save(file, format, **({} if format == "PNG" else {"quality": 90}))
        return file.getvalue()


def key_of(row: dict[str, Any]) -> str:
    """Return the key of a row; the rest of a damaged shard has its shard instead."""
    return str(row["key"]) if row["key"] is not None else f"(rest of {row['shard']})"


def label_of(row: dict[str, Any]) -> str:
    """Return the best class of a row: its name, or its number for a model without names; empty for none."""
    label = row.get("label") if row.get("label") is not None else row.get("label_id")
    return "" if label is None else str(label)


def numbers_of(row: dict[str, Any]) -> str:
    """Return the numbers of a row in words: its score or value, and how near it is."""
    forms = (("score", "{:.3f}"), ("value", "{:.4g}"), ("similarity", "cosine {:.3f}"))
    return "  ".join(form.format(row[name]) for name, form in forms if row.get(name) is not None)


# ---- files ------------------------------------------------------------------------------------------------


def write_files(run: RunRows, rows: pa.Table, output: str) -> Shown:
    """Write the encoded images as they are in the source into a new folder, and INDEX, which names the rows.

    Args:
        run: the run of the rows.
        rows: the rows, as `choose_rows` gives them.
        output: the folder, which is new or empty.

    Raises:
        UserError: the folder holds something.
    """
    fs, root = open_filesystem(output, run.storage_options)
    root = root.rstrip("/")
    if any(True for _ in list_names(fs, root)):
        raise UserError(f"--output {output} is not empty: choose a new folder")
    result = Shown()
    keys = rows["key"].to_pylist()
    for one in fetch_images(run, rows):
        if one.data is None:
            result.reasons[one.row_number] = one.reason or ""
            continue
        name = file_name(one.row_number, keys[one.row_number], one.data)
        overwrite(fs, f"{root}/{name}", one.data)
        result.files[one.row_number] = name
        result.num_images += 1
    numbers = range(rows.num_rows)
    index = rows.append_column(
        "file", pa.array([result.files.get(number) for number in numbers], pa.string())
    )
    reasons = pa.array([result.reasons.get(number) for number in numbers], pa.string())
    overwrite(fs, f"{root}/{INDEX}", parquet_bytes(index.append_column("reason", reasons)).to_pybytes())
    return result


def file_name(number: int, key: str | None, data: bytes) -> str:
    """Return the name of the file of a row: its number, and what of its key is safe in a name."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", key or "")[-SAFE_CHARACTERS:].strip("_")
    ending = next((ending for head, ending in ENDINGS if head.match(data)), ".bin")
    return f"{number:05d}{'-' if safe else ''}{safe}{ending}"


def _write(output: str, data: bytes, options: StorageOptions) -> None:
    fs, path = open_filesystem(output, options)
    overwrite(fs, path, data)
