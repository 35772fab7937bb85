"""Collect the images that a page shows, fetch each once, and make them small enough for the page."""

import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from markupsafe import Markup

from wordsworth.pipeline.report.html import data_uri, short_name
from wordsworth.pipeline.report.images import fetch_images
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.statistics import PLACE
from wordsworth.pipeline.report.thumbnails import ThumbnailSettings, thumbnail

MOST_BYTES = 6_000_000  # bytes of all images of a page: a third more as text
MOST_SECONDS = 75.0  # of fetching and decoding: what is not there by then is left out
SIDES = ((120, 400), (260, 320))  # images of a page up to a number, and pixels of their longer side
LEAST_SIDE = 256  # pixels of the longer side, of more images
SMALL_SIDE = 72  # pixels of the longer side, of a point of the map
QUALITY = 72  # of WebP
IS_FULL = "no room: the page holds as many images as it may"
TOO_LATE = f"too late: it was not there after {MOST_SECONDS:.0f} seconds"
NOT_FETCHED = "not fetched"
FORMATS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
)


@dataclass(slots=True)
class Picture:
    """Hold one image of a page.

    Attributes:
        key: its key, for people.
        uri: the image as the address of an <img>; None where there is none.
        small: the same, a few pixels large, for the map.
        reason: why there is no image, in one line; None beside an image.
        format: format of the encoded image; None where it was not fetched.
    """

    key: str
    uri: Markup | None = None
    small: Markup | None = None
    reason: str | None = NOT_FETCHED
    format: str | None = None


class Album:
    """Collect the images that a page shows.

    Attributes:
        pictures: the images; an image that was asked for twice is there once.
        num_bytes: bytes of the small images.
    """

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.num_bytes = 0
        self._places: dict[tuple[str | None, int | None], int] = {}
        self._tables: list[pa.Table] = []
        self._large: set[int] = set()
        self._small: set[int] = set()

    def add(self, rows: pa.Table | None, small: bool = False) -> list[Picture]:
        """Ask for the images of rows, and return where they will be once `fetch` has run.

        Args:
            rows: with the columns PLACE.
            small: ask for an image of the map, and not for one of a gallery.
        """
        if rows is None:
            return []
        rows = rows.select(PLACE)
        numbers, new = [], []
        names = zip(*(rows[name].to_pylist() for name in ("shard", "index", "key")), strict=True)
        for place, (shard, index, key) in enumerate(names):
            number = self._places.setdefault((shard, index), len(self.pictures))
            if number == len(self.pictures):
                self.pictures.append(Picture(key=short_name(key)))
                new.append(place)
            numbers.append(number)
        self._tables.append(rows.take(pa.array(new, pa.int64())))
        (self._small if small else self._large).update(numbers)
        return [self.pictures[number] for number in numbers]

    def fetch(self, run: RunRows) -> None:
        """Fetch all images that were asked for.

        Raises:
            UserError: the process that decodes images does not start, or a record of the run is damaged.
        """
        if not self.pictures:
            return
        settings = ThumbnailSettings.of(run.plan, format="webp", quality=QUALITY)
        side_px = self.side_px
        until = time.monotonic() + MOST_SECONDS
        rows = pa.concat_tables(self._tables)
        for one in fetch_images(run, rows):
            picture = self.pictures[one.row_number]
            if one.data is None:
                picture.reason = one.reason
                continue
            picture.format = image_format(one.data)
            if time.monotonic() > until:
                picture.reason = TOO_LATE
                break
            if self.num_bytes > MOST_BYTES:
                picture.reason = IS_FULL
                continue
            self._keep(one.row_number, one.data, side_px, settings)
        for picture in self.pictures:
            if picture.reason == NOT_FETCHED:
                picture.reason = TOO_LATE

    @cached_property
    def side_px(self) -> int:
        """Return the pixels of the longer side of the images in galleries."""
        for most, side_px in SIDES:
            if len(self._large) <= most:
                return side_px
        return LEAST_SIDE

    def _keep(self, number: int, data: bytes, side_px: int, settings: ThumbnailSettings) -> None:
        picture = self.pictures[number]
        picture.reason = None
        sides = {"uri": side_px} if number in self._large else {}
        if number in self._small:
            sides["small"] = SMALL_SIDE
        for name, side in sides.items():
            made = thumbnail(data, side, settings)
            if isinstance(made, str):
                picture.reason = made
                return
            self.num_bytes += len(made.data)
            setattr(picture, name, data_uri(made.data))

    def reasons(self) -> list[tuple[str, int]]:
        """Return why images are missing, the most frequent reason first, and of how many."""
        kinds = Counter(str(picture.reason).partition(":")[0] for picture in self.pictures if picture.reason)
        first = {str(p.reason).partition(":")[0]: str(p.reason) for p in reversed(self.pictures) if p.reason}
        return [(first[kind], count) for kind, count in kinds.most_common()]


def image_format(data: bytes) -> str:
    """Return the format of an encoded image by its first bytes."""
    for begin, name in FORMATS:
        if data.startswith(begin):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        return "AVIF" if b"avif" in data[8:64] else "HEIF"
    return "other"
