"""Fetch the encoded images of rows again: by range reads wherever the rows say where their images lie.

tar, stored member of a zip   one range
loose image                   its object
deflated member of a zip      the directory, and the member's range
table                         the row groups of the rows; of a table of text, what comes before the row
URI in a table                its object, where the table may name it
compressed tar                all that comes before the image
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.report.fetched import Fetched, reason_of
from wordsworth.pipeline.report.listed_images import (
    WANTED,
    FoundImages,
    WantedImage,
    find_images,
    wanted_images,
)
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.whole_shards import FRONT_BYTES, fetch_whole
from wordsworth.pipeline.sources.lost_objects import loss_of
from wordsworth.pipeline.sources.samples import ShardChanged, StoreFault, check_info
from wordsworth.pipeline.sources.shards import UNSEEN, ListedImage, Shard
from wordsworth.pipeline.storage.filesystem import is_local, join, open_exact
from wordsworth.pipeline.storage.objects import is_s3, object_info, object_range
from wordsworth.pipeline.storage.patience import patience_of
from wordsworth.pipeline.storage.read_ahead import fetched_ahead
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.storage.whole_object import TooLarge, whole_object

PATIENCE_S = 20.0  # seconds that a fault of a store is waited out: a person waits
MAX_BYTES = DecodeLimits.max_bytes  # of one encoded image
NOT_LISTED = "its shard is not in the listing of the run"
REST = "the row stands for the rest of a damaged shard, and has no image"

__all__ = ["Fetched", "RowImage", "fetch_images", "row_images"]


class RowImage(NamedTuple):
    """Hold one row with its image.

    Attributes:
        row: the columns by name.
        data: the encoded image; None where it could not be fetched.
        reason: why there is none, in one line that may hold names from data; None beside data.
    """

    row: dict[str, Any]
    data: bytes | None
    reason: str | None


def row_images(
    run: RunRows, where: pc.Expression | None = None, columns: Sequence[str] | None = None
) -> Iterator[RowImage]:
    """Yield rows with their images: batch by batch in the order of the run, within a batch as they come.

    Args:
        run: the run.
        where: which rows; None for all.
        columns: columns of `RowImage.row`; None for all but the embedding.

    Raises:
        UserError: as `RunRows.batches`.
    """
    names = [name for name in run.schema.names if name != "embedding"] if columns is None else list(columns)
    for batch in run.batches(list(dict.fromkeys([*names, *WANTED])), where):
        rows = pa.Table.from_batches([batch])
        told = rows.select(names).to_pylist()
        for one in fetch_images(run, rows):
            yield RowImage(told[one.row_number], one.data, one.reason)


def fetch_images(run: RunRows, rows: pa.Table, front_bytes: int = FRONT_BYTES) -> Iterator[Fetched]:
    """Yield the encoded image of each row, or the reason why there is none: one for each row, in any order.

    Nothing is decoded, and no fault of a store is raised: it is the reason of the rows that it concerns.

    Args:
        run: the run of the rows.
        rows: rows of the run, with the columns shard, index, offset, size and key.
        front_bytes: bytes of one shard that are read to come to an image that no range read finds; of a
            compressed tar or table those of the compressed object.
    """
    wanted = []
    for image in wanted_images(rows):
        refusal = _refusal(image)
        if refusal:
            yield Fetched(image.row_number, None, refusal)
        else:
            wanted.append(image)
    missing = {image.row_number for image in wanted}
    whole: list[FoundImages] = []
    with closing(_fetch_ranges(run, wanted, whole)) as fetched:
        for one in fetched:
            missing.discard(one.row_number)
            yield one
    for found in whole:
        for one in fetch_whole(found, run, front_bytes):
            missing.discard(one.row_number)
            yield one
    for row_number in sorted(missing):
        yield Fetched(row_number, None, NOT_LISTED)


def _refusal(image: WantedImage) -> str | None:
    if image.key is None:
        return REST
    if image.size is not None and image.size > MAX_BYTES:
        return f"too_many_bytes: {image.size} bytes"
    return None


# ---- one range, or one object -----------------------------------------------------------------------------


def _fetch_ranges(run: RunRows, wanted: list[WantedImage], whole: list[FoundImages]) -> Generator[Fetched]:
    """Yield the images that one request finds, several under way at once, and collect the others.

    Args:
        whole: gets the rows whose images no range read finds.
    """
    ranges = _Ranges(run)
    with closing(fetched_ahead(_split(run, wanted, whole), ranges.fetch, _claim, _is_good)) as fetched:
        for _, one in fetched:
            yield one


def _split(run: RunRows, wanted: list[WantedImage], whole: list[FoundImages]) -> Iterator[FoundImages]:
    for found in find_images(run.folder, wanted):
        others = []
        for image in found.images:
            if found.shard.is_page or (found.shard.kind != "table" and _has_range(image)):
                yield FoundImages(shard=found.shard, images=[image])
            else:
                others.append(image)
        if others:
            whole.append(FoundImages(shard=found.shard, images=others))


def _has_range(image: WantedImage) -> bool:
    return image.offset is not None and image.size is not None


def _claim(found: FoundImages) -> int:
    size = found.member["size"] if found.member else found.images[0].size
    return size or MAX_BYTES


def _is_good(fetched: Fetched) -> bool:
    return fetched.data is not None


class _Ranges:
    """Fetch images that one request finds; called in threads.

    A store that failed is not asked again for the rest of the rows.
    """

    def __init__(self, run: RunRows):
        self.options = run.storage_options
        self._unchanged: set[str] = set()  # URIs of shards that were looked at
        self._failed: dict[str, str] = {}  # why a store failed, by its name

    def fetch(self, found: FoundImages) -> Fetched:
        """Return the one image of a shard, or why there is none."""
        image = found.images[0]
        store = _store_of(found.shard.uri)
        if store in self._failed:
            return Fetched(image.row_number, None, self._failed[store])
        fs: fsspec.AbstractFileSystem = None
        path = found.shard.uri
        try:
            with patience_of(PATIENCE_S):
                fs, path = open_exact(path, self.options)
                if found.member is None:
                    data = self._of_shard(fs, path, found.shard, image)
                else:
                    path = join(path, found.member["key"])
                    data = self._loose(fs, path, found.member)
        except (OSError, StoreFault, UserError, TooLarge, ValueError) as error:
            reason = reason_of(error, fs, path)
            if isinstance(error, OSError) and _is_fault(error, fs, path):
                self._failed[store] = reason
            return Fetched(image.row_number, None, reason)
        return Fetched(image.row_number, data, None)

    def _of_shard(self, fs: fsspec.AbstractFileSystem, path: str, shard: Shard, image: WantedImage) -> bytes:
        """Return a range of a shard. An answer of S3 says which object it is of; others are asked first."""
        begin = image.offset or 0
        size = image.size or 0
        if not size:
            return b""
        if not is_s3(fs, path) and shard.uri not in self._unchanged:
            check_info(path, shard, with_retries(lambda: object_info(fs, path)))
            self._unchanged.add(shard.uri)
        answer = with_retries(lambda: object_range(fs, path, begin, begin + size))
        if answer.info:
            check_info(path, shard, answer.info)
        if len(answer.data) != size:
            raise ShardChanged(f"{path} gives {len(answer.data)} of {size} bytes")
        return answer.data

    def _loose(self, fs: fsspec.AbstractFileSystem, path: str, member: ListedImage) -> bytes:
        """Return a loose image. One that could not be seen when it was listed may be any object."""
        size = member["size"]
        if (size, member["version"]) == (0, UNSEEN):
            return whole_object(fs, path, MAX_BYTES, lambda num_bytes: True)
        listed = Shard(kind="images", uri=path, size=size, version=member["version"])
        if is_s3(fs, path):
            answer = with_retries(lambda: object_range(fs, path, 0, max(1, size)))
            info: dict[str, Any] = answer.info
            data = answer.data
        else:
            info = with_retries(lambda: object_info(fs, path))
            check_info(path, listed, info)
            data = whole_object(fs, path, MAX_BYTES, lambda num_bytes: True)
        check_info(path, listed, info)
        return data


def _is_fault(error: OSError, fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Return whether an error says that a store fails, and not that this one object is lost."""
    return fs is not None and not is_local(fs) and loss_of(error, fs, path) is None


def _store_of(uri: str) -> str:
    """Return the part of a URI that names a store and a bucket; of a local path its beginning."""
    return "/".join(uri.split("/", 3)[:3])
