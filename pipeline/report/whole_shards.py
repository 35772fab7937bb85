"""Fetch images that no range of their shard is: deflated members of zips, rows of tables, compressed tars."""

import io
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, cast

import fsspec
import numpy as np

from wordsworth.pipeline.errors import UserError, without_secrets
from wordsworth.pipeline.output.records import RunPlan
from wordsworth.pipeline.report.fetched import CHANGED, MAX_REASON, Fetched, reason_of
from wordsworth.pipeline.report.listed_images import FoundImages, WantedImage
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS, table_form
from wordsworth.pipeline.sources.image_column import field_of_images
from wordsworth.pipeline.sources.image_fetch import ImageFetch
from wordsworth.pipeline.sources.nested_fields import is_list, type_at
from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings, StoreFault, check_unchanged
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table import Place, named_samples
from wordsworth.pipeline.sources.table_images import NamedImage
from wordsworth.pipeline.sources.table_records import ParquetTable
from wordsworth.pipeline.sources.table_uris import Refused, Resolver
from wordsworth.pipeline.sources.tar_keys import FIRST_DOT
from wordsworth.pipeline.sources.tar_reader import tar_samples
from wordsworth.pipeline.sources.text_object import TableCut
from wordsworth.pipeline.sources.zip_archive import skip_reason
from wordsworth.pipeline.sources.zip_directory import (
    Directory,
    ZipDamage,
    ZipEntry,
    find_directory,
    read_entries,
    read_member,
    refusal_of,
)
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_exact
from wordsworth.pipeline.storage.read_ahead import fetched_ahead
from wordsworth.pipeline.storage.seekable import RangeReader, SeekableObject

FRONT_BYTES = 1 << 30  # bytes of a shard that are read to come to an image that no range read finds
DIRECTORY_BYTES = 1 << 20  # read ahead in the directory of a zip archive
EXPECTED_BYTES = 1 << 20  # of an image that a table names
GONE = "changed: the shard has no such sample any more"

Reader = Callable[["Reading", fsspec.AbstractFileSystem, str], Iterator[Fetched]]


def fetch_whole(found: FoundImages, run: RunRows, front_bytes: int) -> Iterator[Fetched]:
    """Yield what is fetched for rows of one shard, one for each row.

    Args:
        found: the rows and their shard.
        run: the run of the rows.
        front_bytes: bytes of the shard that are read to come to an image that no range read finds.
    """
    missing = {image.row_number for image in found.images}
    reading = Reading(
        shard=found.shard,
        wanted={_number(found.shard, image): image for image in found.images},
        settings=read_settings(run.plan, run.storage_options),
        front_bytes=front_bytes,
    )
    fs: fsspec.AbstractFileSystem | None = None
    path = found.shard.uri
    reason = GONE
    try:
        fs, path = open_exact(path, run.storage_options)
        check_unchanged(fs, path, found.shard)
        for one in _READERS[found.shard.kind](reading, fs, path):
            missing.discard(one.row_number)
            yield one
    except (OSError, StoreFault, UserError, TooFar, ZipDamage, TableCut) as error:
        reason = reason_of(error, fs, path)
    for row_number in sorted(missing):
        yield Fetched(row_number, None, reason)


def _number(shard: Shard, image: WantedImage) -> int:
    """Return the number of a row's sample in its shard: of samples that were drawn, rows are numbered."""
    place = image.index - shard.first_index
    return shard.picks[place] if place < len(shard.picks) else place


def read_settings(plan: RunPlan, options: StorageOptions) -> ReadSettings:
    """Return how a run read its shards, as far as its plan tells; sidecars are left out.

    A plan without a rule for keys is of a version that had one rule.
    """
    asked = plan.asked
    return ReadSettings(
        unit_rows=1,
        image_keys=tuple(asked.get("image-key") or IMAGE_KEYS),
        storage_options=options,
        image_column=asked.get("image-column"),
        key=asked.get("key"),
        key_rule=asked.get("key-rule", FIRST_DOT),
        include_hidden=bool(asked.get("include-hidden")),
    )


class TooFar(Exception):
    """Report that the images that are left lie too far behind the beginning of the shard."""

    def __init__(self, front_bytes: int):
        super().__init__(
            f"too_far: it lies behind byte {front_bytes:,} of a shard that is read from its beginning"
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Say what is read of one shard, and how.

    Attributes:
        shard: the shard.
        wanted: the rows, by the number of their sample in the shard.
        settings: how the run read its shards.
        front_bytes: as in `fetch_whole`.
    """

    shard: Shard
    wanted: dict[int, WantedImage]
    settings: ReadSettings
    front_bytes: int

    def pick(
        self, samples: Iterator[NamedImage], first: int = 0, last: int | None = None
    ) -> "Iterator[Picked]":
        """Yield the samples that are wanted.

        Args:
            samples: samples of the shard, each with its URI.
            first: number of the first of them.
            last: number of the last sample to look at; None looks up to the last one that is wanted.

        Raises:
            TooFar: more than `front_bytes` of the shard lie before the next one.
        """
        last = max(self.wanted) if last is None else last
        for number, (sample, uri) in enumerate(samples, first):
            if number in self.wanted:
                yield Picked(self.wanted[number], sample, uri)
            if number >= last:
                return
            if not first and sample.span and sample.span[1] > self.front_bytes:
                raise TooFar(self.front_bytes)


class Picked(NamedTuple):
    """Hold a sample that is wanted.

    Attributes:
        image: the row.
        sample: the sample, as it is read now.
        uri: name of the image that the sample lacks; None where it has one.
    """

    image: WantedImage
    sample: EncodedSample
    uri: str | None = None

    def fetched(self) -> Fetched:
        """Return what was fetched for the row."""
        if self.sample.error is not None:
            told = " ".join(without_secrets(f"{self.sample.error}: {self.sample.detail}").split())
            return Fetched(self.image.row_number, None, told[:MAX_REASON])
        return Fetched(self.image.row_number, self.sample.data, None)

    def fetched_by_key(self) -> Fetched:
        """Return what was fetched for the row; a sample with another key than the row's is another image."""
        if self.sample.key != self.image.key:
            return Fetched(self.image.row_number, None, CHANGED)
        return self.fetched()


# ---- tars and zips ----------------------------------------------------------------------------------------


def _from_tar(reading: Reading, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Fetched]:
    """Yield the images of a tar, which is read from its beginning up to the last of them."""
    samples = cast(Generator[EncodedSample], tar_samples(reading.shard, reading.settings, 0))
    with closing(samples):
        for picked in reading.pick((sample, None) for sample in samples):
            yield picked.fetched_by_key()


def _from_zip(reading: Reading, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Fetched]:
    """Yield the members of an archive: the directory is read up to the last of them, and a range for each."""
    size = reading.shard.size
    file: io.BufferedReader = io.BufferedReader(SeekableObject(fs, path, size), DIRECTORY_BYTES)
    directory = find_directory(file, size)
    number = 0
    for entry in read_entries(file, directory, directory.start):
        if skip_reason(entry, reading.settings) is not None:
            continue
        if number in reading.wanted:
            sample = _member(RangeReader(SeekableObject(fs, path, size)), directory, entry, reading.settings)
            yield Picked(reading.wanted[number], sample).fetched_by_key()
        if number >= max(reading.wanted):
            return
        number += 1


def _member(
    file: RangeReader, directory: Directory, entry: ZipEntry, settings: ReadSettings
) -> EncodedSample:
    sample = EncodedSample(key=entry.name, next=entry.next, size=entry.size)
    refusal = refusal_of(entry, settings.max_bytes)
    if refusal:
        sample.error, sample.detail = refusal
        return sample
    try:
        _, sample.data = read_member(file, directory, entry)
    except ZipDamage as damage:
        sample.error = "damaged_member"
        sample.detail = str(damage)
    return sample


# ---- tables -----------------------------------------------------------------------------------------------


def _from_table(reading: Reading, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Fetched]:
    """Yield the images of rows of a table. What the rows name is fetched, several at once."""
    rows_of = _parquet_rows if table_form(path) == "parquet" else _text_rows
    names = _Names(Resolver(reading.shard, reading.settings.storage_options), reading.settings.max_bytes)
    picked = rows_of(reading, fs, path)
    with closing(fetched_ahead(picked, names.fetch, _claim)) as fetched:
        for _, one in fetched:
            yield one


def _claim(picked: Picked) -> int:
    return len(picked.sample.data) or EXPECTED_BYTES


def _text_rows(reading: Reading, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Picked]:
    return reading.pick(named_samples(fs, path, reading.shard, reading.settings, Place(0)))


def _parquet_rows(reading: Reading, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Picked]:
    """Yield rows of a Parquet file, of each row group from the first row that is wanted to the last.

    Where a row holds a list of images, no number of a sample says where its row is: then the file is read
    from its beginning.
    """
    table = ParquetTable(fs, path, reading.shard.size)
    image = field_of_images(table.schema, path, reading.settings)
    if is_list(type_at(table.schema, image.path or (image.name,))):
        yield from _text_rows(reading, fs, path)
        return
    begins = table.group_begins()
    numbers = sorted(reading.wanted)
    for _, group in groupby(numbers, lambda number: int(np.searchsorted(begins, number, "right"))):
        rows = list(group)
        samples = named_samples(fs, path, reading.shard, reading.settings, Place(rows[0]))
        yield from reading.pick(samples, rows[0], rows[-1])


class _Names:
    """Fetch what a table names, under the rules for names in tables; called in threads."""

    def __init__(self, resolver: Resolver, max_bytes: int):
        self.resolver = resolver
        self.max_bytes = max_bytes

    def fetch(self, picked: Picked) -> Fetched:
        """Return the image of a row, or why there is none."""
        if picked.uri is None:
            return picked.fetched()
        fetch = ImageFetch(picked.sample)
        try:
            fetch.fs, fetch.path, fetch.refusal = self.resolver.resolve(picked.uri)
            fetch.load_now(self.max_bytes)
        except Refused as refused:
            fetch.fail("refused_uri", str(refused))
        except (OSError, StoreFault) as error:
            return Fetched(picked.image.row_number, None, reason_of(error, fetch.fs, fetch.path))
        refusal = fetch.refused or fetch.unreachable
        if refusal is not None:
            return Fetched(picked.image.row_number, None, reason_of(refusal, fetch.fs, fetch.path))
        return picked.fetched()


_READERS: dict[str, Reader] = {"tar": _from_tar, "zip": _from_zip, "table": _from_table}
