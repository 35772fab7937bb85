"""Read a shard: its samples, cut into units of encoded images."""

import contextlib
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import without_secrets
from wordsworth.pipeline.sources import tar
from wordsworth.pipeline.sources.compressed import Decompressed
from wordsworth.pipeline.sources.file_kinds import compression
from wordsworth.pipeline.sources.lost_objects import Loss, Witness, fault_of, loss_of
from wordsworth.pipeline.sources.samples import (
    MAX_READINGS,
    EncodedSample,
    ReadSettings,
    ShardChanged,
    StoreFault,
)
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table import table_samples
from wordsworth.pipeline.sources.tar_fields import encoded_sample, image_field, wanted_fields
from wordsworth.pipeline.sources.tar_headers import TarCut
from wordsworth.pipeline.storage.filesystem import join, open_exact, version_of
from wordsworth.pipeline.storage.objects import object_bytes, object_info
from wordsworth.pipeline.storage.streams import ObjectStream, with_retries
from wordsworth.pipeline.unit import SAMPLE, Unit

TarStream = Decompressed | io.BufferedReader


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
        position: place of its first sample: a byte of a tar, an entry of a page, a row of a table
        index: index of its first sample in the shard
        in_group: samples from `position` on that come before it, of a group of a tar or a list in a table
    """
    cutter = _Cutter(shard=shard, settings=settings, number=number, position=position, index=index)
    held: EncodedSample | None = None  # one sample ahead, to know the last unit when it is made
    try:
        for sample in _samples(shard, settings, position, in_group, cutter.skipped):
            if held is not None and cutter.add(held):
                yield cutter.cut()
            held = sample
    except (OSError, StoreFault) as error:
        yield cutter.fault(fault_of(error, shard, settings.storage_options))
        return
    if held is not None:
        cutter.add(held)
    yield cutter.cut(last=True)


def _samples(
    shard: Shard, settings: ReadSettings, position: int, in_group: int, skipped: "SkippedMembers"
) -> Iterator[EncodedSample]:
    if shard.kind == "tar":
        return tar_samples(shard, settings, position, skipped)
    if shard.kind == "images":
        return page_samples(shard, settings, position)
    fs, path = open_exact(shard.uri, settings.storage_options)
    _check_unchanged(fs, path, shard)
    return table_samples(shard, settings, position, in_group)


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
        self.started = time.perf_counter()

    def add(self, sample: EncodedSample) -> bool:
        """Add a sample; return whether the unit is full."""
        self.batch.append(sample)
        self.held_bytes += len(sample.data) if sample.held_bytes is None else sample.held_bytes
        return len(self.batch) >= self.settings.unit_rows or self.held_bytes >= self.settings.unit_bytes

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
            samples=_sample_table(self.batch, self.shard.first_index + self.index, len(self.settings.keep)),
            payload=np.frombuffer(b"".join(images), np.uint8),
            seconds={"read": time.perf_counter() - self.started},
            skipped=json.dumps(self.skipped.take(None if last else end)),
        )
        self.number += 1
        self.position = unit.next_offset
        self.index = unit.next_index
        self._begin()
        return unit

    def _bytes_read(self, end: int, last: bool) -> int:
        if self.shard.kind == "images":
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


def _check_unchanged(fs: fsspec.AbstractFileSystem, path: str, shard: Shard) -> None:
    info = with_retries(lambda: object_info(fs, path))
    if (info["size"], version_of(info)) != (shard.size, shard.version):
        raise ShardChanged(f"{path} was replaced since the run was planned")


# ---- tars -------------------------------------------------------------------------------------------------


class SkippedMembers:
    """Count the members of a tar that are no part of a sample, by unit, each once."""

    def __init__(self) -> None:
        self._noted: list[
            tuple[int, str]
        ] = []  # byte offset and kind of each member that lies in no unit yet

    def note(self, note: tar.TarNote) -> None:
        """Count a skipped member; ignore other notes."""
        if note.what == "skipped":
            self._noted.append((note.offset, note.kind))

    def read_again(self, position: int) -> None:
        """Forget the members from byte `position` on: another reading begins there."""
        self._noted = [entry for entry in self._noted if entry[0] < position]

    def take(self, end: int | None) -> Counter[str]:
        """Return the number of members before byte `end`, by kind, and forget these; all members for None."""
        taken = [entry for entry in self._noted if end is None or entry[0] < end]
        self._noted = self._noted[len(taken) :]
        return Counter(kind for _, kind in taken)


def tar_samples(
    shard: Shard, settings: ReadSettings, position: int, skipped: SkippedMembers | None = None
) -> Iterator[EncodedSample]:
    """Yield the samples of a tar from byte `position` on.

    If the tar is cut, the rest is one row without a key.

    A cut counts only when it is met twice at the same place: a store may answer short once.

    Args:
        shard: the tar
        settings: how to read
        position: byte of the tar (of a compressed one: of its contents) where a sample begins
        skipped: counts the members that are no part of a sample

    Raises:
        StoreFault: the tar was replaced, or each reading breaks off somewhere else.
        OSError: the store fails.
    """
    fs, path = open_exact(shard.uri, settings.storage_options)
    _check_unchanged(fs, path, shard)
    skipped = skipped or SkippedMembers()
    met: int | None = None  # where the reading before was cut
    for _ in range(MAX_READINGS):
        torn: tar.TarSample | None = None
        skipped.read_again(position)
        with contextlib.closing(tar_stream(fs, path, shard.size, position)) as stream:
            try:
                settle(stream, position)
                for sample in tar.read_samples(
                    stream,
                    position,
                    settings.max_bytes,
                    want_field=wanted_fields(settings),
                    on_note=skipped.note,
                ):
                    if sample.cut:
                        torn = sample
                        continue
                    yield _placed(encoded_sample(sample, settings), stream, position)
                    position = sample.end
                return
            except TarCut as cut:
                if met != cut.offset:
                    met = cut.offset
                    continue
                if torn and image_field(
                    torn, settings
                ):  # without its image, half a sample belongs to the rest
                    yield _placed(encoded_sample(torn, settings), stream, position)
                    position = torn.end
                yield _placed(_rest(cut, shard), stream, position)
                return
    raise StoreFault(f"{path} breaks off somewhere else at each of {MAX_READINGS} readings")


def tar_stream(fs: fsspec.AbstractFileSystem, path: str, size: int, position: int) -> TarStream:
    """Return a stream at `position` of a tar, or at the beginning of a compressed tar: see `settle`."""
    form = compression(path)
    if form:
        return Decompressed(ObjectStream(fs, path, size, 0), form)
    return io.BufferedReader(ObjectStream(fs, path, size, position), 1 << 20)


def settle(stream: TarStream, position: int) -> None:
    """Bring a stream of `tar_stream` to `position`.

    A compressed tar has no other way in than reading from its beginning.

    Raises:
        TarCut: compressed data end or break before `position`.
    """
    if isinstance(stream, Decompressed):
        stream.skip(position)


def _placed(made: EncodedSample, stream: TarStream, position: int) -> EncodedSample:
    """Remove the offset from a sample of a compressed tar, where no range read finds the image; set the span.

    Args:
        made: the sample
        stream: what it was read from
        position: decompressed byte where the sample began
    """
    if isinstance(stream, Decompressed):
        if made.error == "shard_truncated":
            made.detail = f"{made.detail} (byte {made.offset} of the decompressed tar)"
            made.next = position
        made.offset = None
        made.span = (stream.consumed(position), stream.consumed(made.next))
    return made


def _rest(cut: TarCut, shard: Shard) -> EncodedSample:
    """Return the row for all that a cut tar lacks."""
    return EncodedSample(
        key=None, offset=cut.offset, next=shard.size, error="shard_truncated", detail=cut.reason
    )


# ---- loose images -----------------------------------------------------------------------------------------


def page_samples(shard: Shard, settings: ReadSettings, position: int) -> Iterator[EncodedSample]:
    """Yield the images of a page, from entry `position` on. An image that is lost is a sample with an error.

    Raises:
        StoreFault: an image was replaced, or no image of the page can be read.
        OSError: the store fails.
    """
    fs, root = open_exact(shard.uri, settings.storage_options)
    witness = Witness(fs, root, shard, settings.image_keys)
    for entry, member in enumerate(shard.members[position:], position):
        made = EncodedSample(
            key=member["key"],
            offset=0,
            size=member["size"],
            next=entry + 1,
            sidecars=[None] * len(settings.keep),
        )
        if member["size"] > settings.max_bytes:
            made.error = "too_many_bytes"
            made.detail = f"{member['size']} bytes"
            yield made
            continue
        path = join(root, member["key"])
        # The listed size counts, so that units end at the same image whether or not one is lost.
        made.held_bytes = member["size"]
        found = read_image(fs, path, member["size"])
        if isinstance(found, Loss):
            witness.confirm(found, path)
            made.error, made.detail = found
        else:
            made.data = found
            witness.last = path
        yield made


def read_image(fs: fsspec.AbstractFileSystem, path: str, size: int | None) -> bytes | Loss:
    """Return the bytes of a loose image, or why it is lost.

    Args:
        size: bytes of the image when it was listed; None takes any

    Raises:
        ShardChanged: the image has another size.
        OSError: the store fails.
    """
    try:
        data = with_retries(lambda: object_bytes(fs, path))
    except OSError as error:
        loss = loss_of(error, fs, path)
        if loss is None:
            raise
        return loss
    if size is not None and len(data) != size:
        raise ShardChanged(f"{path} has {len(data)} bytes, {size} when it was listed: it was replaced since")
    return data
