"""Read a tar: its samples from a place on, what cut it, and what is no part of a sample."""

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fsspec

from wordsworth.pipeline.sources.compressed import Decompressed
from wordsworth.pipeline.sources.file_kinds import compression
from wordsworth.pipeline.sources.samples import (
    MAX_READINGS,
    EncodedSample,
    ReadSettings,
    StoreFault,
    check_info,
    check_unchanged,
)
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.tar import TarNote
from wordsworth.pipeline.sources.tar_fields import (
    encoded_sample,
    image_field,
    other_images,
    sample_rule,
    wanted_fields,
)
from wordsworth.pipeline.sources.tar_groups import TarSample
from wordsworth.pipeline.sources.tar_headers import TarCut
from wordsworth.pipeline.sources.tar_split import read_by_rule
from wordsworth.pipeline.storage.filesystem import open_exact
from wordsworth.pipeline.storage.objects import is_s3
from wordsworth.pipeline.storage.streams import ObjectStream

TarStream = Decompressed | io.BufferedReader


class SkippedMembers:
    """Count what a tar or a zip archive has beside its samples, by unit, each once: members that are no part
    of a sample; and

    * `other_image`: images of samples beside the one that is labelled
    * `dotted_key`: samples that their group was divided into (tar_split.py)
    """

    def __init__(self) -> None:
        # Number by byte offset and kind, of what lies in no unit yet. A group counts where it begins.
        self._counts: dict[tuple[int, str], int] = {}

    def note(self, note: TarNote) -> None:
        """Count a skipped member; ignore other notes."""
        if note.what == "skipped":
            self.count(note.offset, note.kind)

    def sample(self, sample: TarSample, num_other_images: int) -> None:
        """Count what a sample tells."""
        start = sample.start if sample.group_start is None else sample.group_start
        if num_other_images:
            self.count(start, "other_image", num_other_images)
        if sample.group_start is not None:
            self.count(start, "dotted_key")

    def count(self, position: int, kind: str, count: int = 1) -> None:
        """Count `count` of a kind at a position."""
        place = (position, kind)
        self._counts[place] = self._counts.get(place, 0) + count

    def read_again(self, position: int) -> None:
        """Forget what lies from byte `position` on: another reading begins there."""
        self._counts = {place: count for place, count in self._counts.items() if place[0] < position}

    def take(self, end: int | None) -> Counter[str]:
        """Return the numbers before byte `end`, by kind, and forget these; all numbers for None."""
        taken: Counter[str] = Counter()
        left: dict[tuple[int, str], int] = {}
        for place, count in self._counts.items():
            if end is None or place[0] < end:
                taken[place[1]] += count
            else:
                left[place] = count
        self._counts = left
        return taken


def tar_samples(
    shard: Shard,
    settings: ReadSettings,
    position: int,
    in_group: int = 0,
    skipped: SkippedMembers | None = None,
) -> Iterator[EncodedSample]:
    """Yield the samples of a tar from a place on.

    If the tar is cut, the rest is one row without a key.

    A cut counts only when it is met twice at the same place: a store may answer short once.

    Args:
        shard: the tar
        settings: how to read
        position: byte of the tar (of a compressed one: of its contents) where a sample or a group begins
        in_group: samples of the group that are left out
        skipped: counts the members that are no part of a sample

    Raises:
        StoreFault: the tar was replaced, or each reading breaks off somewhere else.
        OSError: the store fails.
    """
    fs, path = open_exact(shard.uri, settings.storage_options)
    check = partial(check_info, path, shard)
    if position >= shard.size or not is_s3(fs, path):  # else each range says which object it is of
        check_unchanged(fs, path, shard)
    skipped = skipped or SkippedMembers()
    met: int | None = None  # where the reading before was cut
    for _ in range(MAX_READINGS):
        torn: list[TarSample] = []
        num_known = in_group  # samples to come that were given before
        begin = position  # byte behind the sample before
        skipped.read_again(position)
        with contextlib.closing(tar_stream(fs, path, shard.size, position, check)) as stream:
            try:
                settle(stream, position)
                for sample in _read(stream, position, settings, skipped):
                    if num_known:
                        num_known -= 1
                        begin = sample.end
                    elif sample.cut:
                        torn.append(sample)
                    else:
                        yield _placed(encoded_sample(sample, settings), stream, begin, sample.end)
                        begin = sample.end
                        position = sample.next
                        in_group = sample.next_in_group
                return
            except TarCut as cut:
                if met != cut.offset:
                    met = cut.offset
                    continue
                for sample in torn:
                    if image_field(sample, settings):  # without its image, half a sample is of the rest
                        yield _placed(encoded_sample(sample, settings), stream, begin, sample.end)
                        begin = sample.end
                yield _placed(_rest(cut, shard, stream, begin), stream, begin, begin)
                return
    raise StoreFault(f"{path} breaks off somewhere else at each of {MAX_READINGS} readings")


def _read(
    stream: TarStream, position: int, settings: ReadSettings, skipped: SkippedMembers
) -> Iterator[TarSample]:
    """Yield the samples from byte `position` on, and count what there is beside them."""
    want = wanted_fields(settings)
    rule = sample_rule(settings)
    for sample in read_by_rule(stream, position, settings.max_bytes, want, skipped.note, rule):
        num_other = other_images(sample, settings)
        if num_other or sample.group_start is not None:
            skipped.sample(sample, num_other)
        yield sample


def tar_stream(
    fs: fsspec.AbstractFileSystem,
    path: str,
    size: int,
    position: int,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> TarStream:
    """Return a stream at `position` of a tar, or at the beginning of a compressed tar: see `settle`.

    Args:
        fs: file system of the tar
        path: path of the tar in `fs`
        size: bytes of the tar
        position: byte to begin at
        check: as ObjectStream takes it
    """
    form = compression(path)
    if form:
        return Decompressed(ObjectStream(fs, path, size, 0, check), form)
    return io.BufferedReader(ObjectStream(fs, path, size, position, check), 1 << 20)


def settle(stream: TarStream, position: int) -> None:
    """Bring a stream of `tar_stream` to `position`.

    A compressed tar has no other way in than reading from its beginning.

    Raises:
        TarCut: compressed data end or break before `position`.
    """
    if isinstance(stream, Decompressed):
        stream.skip(position)


def _placed(made: EncodedSample, stream: TarStream, begin: int, end: int) -> EncodedSample:
    """Set the span of a sample; remove its offset in a compressed tar, where no range read finds the image.

    Args:
        made: the sample
        stream: what it was read from
        begin: byte behind the sample before
        end: byte behind the sample
    """
    made.span = (begin, end)
    if isinstance(stream, Decompressed):
        made.offset = None
        made.span = (stream.consumed(begin), stream.consumed(end))
    return made


def _rest(cut: TarCut, shard: Shard, stream: TarStream, begin: int) -> EncodedSample:
    """Return the row for all that a cut tar lacks, behind byte `begin`."""
    made = EncodedSample(
        key=None, offset=cut.offset, next=shard.size, error="shard_truncated", detail=cut.reason
    )
    if isinstance(stream, Decompressed):
        made.detail = f"{cut.reason} (byte {cut.offset} of the decompressed tar)"
        made.next = begin
    return made
