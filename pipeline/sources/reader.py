"""Read a shard: its samples, cut into units of encoded images."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import without_secrets
from wordsworth.pipeline.sources.disk_pace import DiskPace
from wordsworth.pipeline.sources.image_sidecars import ImageSidecars
from wordsworth.pipeline.sources.lost_objects import Loss, Witness, fault_of, loss_of
from wordsworth.pipeline.sources.picks import picked
from wordsworth.pipeline.sources.samples import (
    EncodedSample,
    ReadSettings,
    ShardChanged,
    StoreFault,
    check_unchanged,
)
from wordsworth.pipeline.sources.shards import NAMED, UNSEEN, ListedImage, Shard
from wordsworth.pipeline.sources.table import table_samples
from wordsworth.pipeline.sources.tar_reader import SkippedMembers, tar_samples
from wordsworth.pipeline.sources.zip_archive import zip_samples
from wordsworth.pipeline.storage.filesystem import is_local, join, open_exact
from wordsworth.pipeline.storage.objects import object_bytes
from wordsworth.pipeline.storage.read_ahead import fetched_ahead
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.unit import FOLDER, SAMPLE, Unit

MAX_UNIT_TEXTS = 256 << 20  # characters of the keys and sidecars of a unit: it ends early where they are more


def read_units(
    shard: Shard,
    settings: ReadSettings,
    number: int = 0,
    position: int = 0,
    index: int = 0,
    in_group: int = 0,
) -> Iterator[Unit]:
    """Yield the units of a shard, from one of them on.

    The cuts depend on the shard and the settings alone, so a second reading makes the same units. The last
    unit has `last` set; an empty shard gives one unit without samples. If the store fails, the last unit
    has `fault` set instead.

    Args:
        shard: what to read
        settings: how to read
        number: number of the first unit to yield
        position: place of its first sample, as `EncodedSample.next` has it
        index: index of its first sample in the shard
        in_group: samples from `position` on that come before it, of a group of a tar or a list in a table
    """
    cutter = _Cutter(shard=shard, settings=settings, number=number, position=position, index=index)
    held: EncodedSample | None = None  # one sample ahead, to know the last unit when it is made
    try:
        for sample in _samples(cutter, position, in_group):
            if held is not None and cutter.add(held):
                yield cutter.cut()
            held = sample
    except (OSError, StoreFault) as error:
        yield cutter.fault(fault_of(error, shard, settings.storage_options))
        return
    if held is not None:
        cutter.add(held)
    yield cutter.cut(last=True)


def _samples(cutter: "_Cutter", position: int, in_group: int) -> Iterator[EncodedSample]:
    """Return the samples from a place on, which is that of the cutter's next sample."""
    shard = cutter.shard
    settings = cutter.settings
    if shard.is_page:
        return page_samples(shard, settings, position)
    if shard.kind == "tar":
        samples = tar_samples(shard, settings, position, in_group, cutter.skipped)
        return picked(samples, shard.picks, cutter.index)
    fs, path = open_exact(shard.uri, settings.storage_options)
    check_unchanged(fs, path, shard)
    if shard.kind == "zip":
        return picked(zip_samples(shard, settings, position, cutter.skipped.count), shard.picks, cutter.index)
    return table_samples(shard, settings, position, in_group, cutter.index)


@dataclass(kw_only=True)
class _Cutter:
    """Collect samples and cut them into units.

    Attributes:
        number: number of the next unit
        position: place in the shard where the next unit begins
        index: index of the next unit's first sample in the shard
    """

    shard: Shard
    settings: ReadSettings
    number: int
    position: int
    index: int

    def __post_init__(self) -> None:
        self.skipped = SkippedMembers()
        self._begin()

    def _begin(self) -> None:
        self.batch: list[EncodedSample] = []
        self.held_bytes = 0  # of the images, as far as they decide where the unit ends
        self.held_texts = 0  # characters of the keys and sidecars
        self.started = time.perf_counter()

    def add(self, sample: EncodedSample) -> bool:
        """Add a sample; return whether the unit is full."""
        self.batch.append(sample)
        self.held_bytes += len(sample.data) if sample.held_bytes is None else sample.held_bytes
        self.held_texts += sum(len(text) for text in (sample.key, *sample.sidecars) if text)
        is_full = len(self.batch) >= self.settings.unit_rows or self.held_bytes >= self.settings.unit_bytes
        is_full = is_full or self.held_texts >= MAX_UNIT_TEXTS
        return is_full or self.index + len(self.batch) == self.settings.cut

    def cut(self, last: bool = False) -> Unit:
        """Return the unit of the samples that were added, and begin the next one."""
        end = self.batch[-1].next if self.batch else self.position
        images = [sample.data for sample in self.batch if sample.error is None]
        unit = Unit(
            shard_uri=self.shard.uri,
            shard_name=self.shard.name,
            number=self.number,
            last=last,
            next_offset=end,
            next_in_group=self.batch[-1].next_in_group if self.batch else 0,
            next_index=self.index + len(self.batch),
            bytes_read=self._bytes_read(end, last),
            samples=self._sample_table(),
            payload=np.frombuffer(b"".join(images), np.uint8),
            seconds={"read": time.perf_counter() - self.started},
            skipped=json.dumps(self.skipped.take(None if last else end)),
        )
        self.number += 1
        self.position = unit.next_offset
        self.index = unit.next_index
        self._begin()
        return unit

    def _sample_table(self) -> pa.Table:
        samples = _sample_table(self.batch, self.shard.first_index + self.index, len(self.settings.keep))
        if self.shard.kind != NAMED:
            return samples
        members = self.shard.members[self.index : self.index + len(self.batch)]
        folders = [self.shard.place_in_rows(member)[0] for member in members]
        return samples.append_column(FOLDER, pa.array(folders, pa.string()))

    def _bytes_read(self, end: int, last: bool) -> int:
        if self.shard.is_page:
            return sum(len(sample.data) for sample in self.batch)
        if self.batch and self.batch[0].span and self.batch[-1].span:
            begin = self.batch[0].span[0] if self.number else 0
            return (self.shard.size if last else self.batch[-1].span[1]) - begin
        return (
            self.shard.size if last else end
        ) - self.position  # the last unit has read the end blocks, too

    def fault(self, message: str) -> Unit:
        """Return a unit that tells of a store's fault. The next run reads again what was collected."""
        self._begin()
        unit = self.cut()
        unit.fault = without_secrets(message)
        return unit


def _sample_table(batch: list[EncodedSample], first_index: int, num_sidecars: int) -> pa.Table:
    """Return samples as a table of SAMPLE, one row each."""
    columns = [
        [sample.key for sample in batch],
        list(range(first_index, first_index + len(batch))),
        [sample.offset for sample in batch],
        [sample.size for sample in batch],
        [sample.sidecars or [None] * num_sidecars for sample in batch],
        [sample.error for sample in batch],
        [sample.detail for sample in batch],
    ]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, SAMPLE.types, strict=True)]
    return pa.table(arrays, schema=SAMPLE)


# ---- loose images -----------------------------------------------------------------------------------------


Entry = tuple[int, ListedImage]  # an image of a page, with its number in the page


def page_samples(shard: Shard, settings: ReadSettings, position: int) -> Iterator[EncodedSample]:
    """Yield the images of a page, from entry `position` on. An image that is lost is a sample with an error.

    Of a store, and of a disk that is slow, the next images are fetched while one is worked on.

    Raises:
        StoreFault: an image was replaced, or no image of the page can be read.
        OSError: the store fails.
    """
    page = _Page(shard, settings)
    entries = enumerate(shard.members[position:], position)
    pace = DiskPace() if is_local(page.fs) else None
    for first in entries:
        if pace and not pace.rows_in_threads:
            yield page.sample(first, page.fetch_here(first, pace))
            continue
        some = chain([first], islice(entries, pace.rows_in_threads - 1) if pace else entries)
        pace = pace and DiskPace()  # the disk is tried without threads again behind these
        with contextlib.closing(fetched_ahead(some, page.fetch, page.claim, _is_good)) as fetched:
            for entry, found in fetched:
                yield page.sample(entry, found)


class _Found(NamedTuple):
    """Hold what was fetched for an entry of a page.

    Attributes:
        sidecars: texts of the kept fields
        image: the bytes, or why the image is lost; None for an image that is too large
    """

    sidecars: list[str | None]
    image: bytes | Loss | None


class _Page:
    """Make samples of the images of one page."""

    def __init__(self, shard: Shard, settings: ReadSettings):
        self.shard = shard
        self.settings = settings
        self.fs, self.root = open_exact(shard.uri, settings.storage_options)
        self.witness = Witness(self.fs, self.root, shard, settings.image_keys)
        self.sidecars = ImageSidecars(self.fs, self.root, shard, settings) if settings.keep else None

    def claim(self, entry: Entry) -> int:
        """Return the bytes that the image of an entry takes while it is held."""
        size = entry[1]["size"]
        if size > self.settings.max_bytes:
            return 0
        return size if _is_seen(entry[1]) else self.settings.max_bytes

    def fetch(self, entry: Entry) -> _Found:
        """Fetch the image of an entry, and what stands beside it. Entries may be fetched in any order, and at
        the same time.

        Raises:
            StoreFault, OSError: as `page_samples`.
        """
        member = entry[1]
        sidecars = self.sidecars.of(member) if self.sidecars else []
        if member["size"] > self.settings.max_bytes:
            return _Found(sidecars, None)
        path = join(self.root, member["key"])
        return _Found(sidecars, read_image(self.fs, path, member["size"] if _is_seen(member) else None))

    def fetch_here(self, entry: Entry, pace: DiskPace) -> _Found:
        """Fetch the image of an entry from a disk, and take note of how long that took."""
        began = time.perf_counter()
        found = self.fetch(entry)
        pace.saw(time.perf_counter() - began, len(found.image) if isinstance(found.image, bytes) else 0)
        return found

    def sample(self, entry: Entry, found: _Found) -> EncodedSample:
        """Return the sample of an entry. Called in the order of the entries.

        Raises:
            StoreFault, OSError: as `page_samples`.
        """
        number, member = entry
        made = EncodedSample(
            key=self.shard.place_in_rows(member)[1],
            offset=0,
            size=member["size"],
            next=number + 1,
            sidecars=found.sidecars,
        )
        if found.image is None:
            made.error = "too_many_bytes"
            made.detail = f"{member['size']} bytes"
            return made
        # The listed size counts, so that units end at the same image whether or not one is lost.
        made.held_bytes = member["size"]
        path = join(self.root, member["key"])
        if isinstance(found.image, Loss):
            if _is_seen(member) or found.image.code != "not_found":  # else the listing had a witness
                self.witness.confirm(found.image, path)
            made.error, made.detail = found.image
        else:
            made.data = found.image
            made.size = len(found.image)
            self.witness.last = path
        return made


def _is_good(found: _Found) -> bool:
    return not isinstance(found.image, Loss)


def _is_seen(member: ListedImage) -> bool:
    """Return whether an image was there when it was listed."""
    return (member["size"], member["version"]) != (0, UNSEEN)


def read_image(fs: fsspec.AbstractFileSystem, path: str, size: int | None) -> bytes | Loss:
    """Return the bytes of a loose image, or why it is lost.

    Args:
        size: bytes of the image when it was listed; None takes any

    Raises:
        ShardChanged: the image has another size.
        OSError: the store fails.
    """
    try:
        data = with_retries(lambda: object_bytes(fs, path, listed_size=size))
    except OSError as error:
        loss = loss_of(error, fs, path)
        if loss is None:
            raise
        return loss
    if size is not None and len(data) != size:
        raise ShardChanged(f"{path} has {len(data)} bytes, {size} when it was listed: it was replaced since")
    return data
