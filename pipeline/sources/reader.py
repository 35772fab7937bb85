"""One shard in, its samples out as units of encoded images: the read stage."""

import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.output.committed import unit_file
from wordsworth.pipeline.output.run_folder import read_footer
from wordsworth.pipeline.sources import tar
from wordsworth.pipeline.sources.compressed import Decompressed
from wordsworth.pipeline.sources.file_kinds import compression
from wordsworth.pipeline.sources.samples import (
    MAX_READINGS,
    EncodedSample,
    ReadSettings,
    ShardChanged,
    StoreFault,
)
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table import table_samples
from wordsworth.pipeline.storage.filesystem import (
    ObjectStream,
    open_filesystem,
    patiently,
    public,
    version_of,
)
from wordsworth.pipeline.unit import SAMPLE, Unit


def read_units(
    shard: Shard, settings: ReadSettings, number: int = 0, position: int = 0, index: int = 0
) -> Iterator[Unit]:
    """The units of a shard from `number` on, whose first sample lies at `position` and has place `index`.

    The cuts depend on the shard and the settings alone, so a second reading makes the same units. The last unit has `last` set; an
    empty shard gives one unit without samples. A store that fails gives a unit with `fault` set, and no last one.
    """
    cutter = _Cutter(shard, settings, number, position, index)
    tars = partial(tar_samples, skipped=cutter.skipped)
    read = {"tar": tars, "images": page_samples, "table": _table_samples}[shard.kind]
    held: EncodedSample | None = None  # one sample ahead, to know the last unit when it is made
    try:
        for sample in read(shard, settings, position):
            if held is not None and cutter.add(held):
                yield cutter.cut()
            held = sample
    except (OSError, StoreFault) as error:
        yield cutter.fault(
            str(error) if isinstance(error, ShardChanged) else f"{type(error).__name__}: {error}"
        )
        return
    if held is not None:
        cutter.add(held)
    yield cutter.cut(last=True)


@dataclass
class _Cutter:
    """Collects samples and cuts them into units."""

    shard: Shard
    settings: ReadSettings
    number: int
    position: int
    index: int

    def __post_init__(self):
        self.skipped = Skipped()
        self._begin()

    def _begin(self) -> None:
        self.batch: list[EncodedSample] = []
        self.held_bytes = 0
        self.started = time.perf_counter()

    def add(self, sample: EncodedSample) -> bool:
        """True when the unit is full."""
        self.batch.append(sample)
        self.held_bytes += len(sample.data)
        return len(self.batch) >= self.settings.unit_rows or self.held_bytes >= self.settings.unit_bytes

    def cut(self, last: bool = False) -> Unit:
        end = self.batch[-1].next if self.batch else self.position
        unit = Unit(
            shard_uri=self.shard.uri,
            shard_name=self.shard.name,
            number=self.number,
            last=last,
            next_offset=end,
            next_index=self.index + len(self.batch),
            bytes_read=self._bytes_read(end, last),
            samples=_sample_table(self.batch, self.shard.first_index + self.index, len(self.settings.keep)),
            payload=np.frombuffer(
                b"".join(sample.data for sample in self.batch if sample.error is None), np.uint8
            ),
            seconds={"read": time.perf_counter() - self.started},
            skipped=json.dumps(self.skipped.take(None if last else end)),
        )
        self.number, self.position, self.index = unit.number + 1, unit.next_offset, unit.next_index
        self._begin()
        return unit

    def _bytes_read(self, end: int, last: bool) -> int:
        if self.shard.kind == "images":
            return self.held_bytes
        if self.batch and self.batch[0].span:
            begin = self.batch[0].span[0] if self.number else 0
            return (self.shard.size if last else self.batch[-1].span[1]) - begin
        return (self.shard.size if last else end) - self.position  # the last unit has read the end blocks too

    def fault(self, message: str) -> Unit:
        """What was collected is read again by the next run."""
        self._begin()
        unit = self.cut()
        unit.fault = message
        return unit


def _sample_table(batch: list[EncodedSample], first_index: int, sidecars: int) -> pa.Table:
    columns = [
        [sample.key for sample in batch],
        list(range(first_index, first_index + len(batch))),
        [sample.offset for sample in batch],
        [sample.size for sample in batch],
        [sample.sidecars or [None] * sidecars for sample in batch],
        [sample.error for sample in batch],
        [sample.detail for sample in batch],
    ]
    return pa.table(
        [pa.array(values, kind) for values, kind in zip(columns, SAMPLE.types, strict=True)], schema=SAMPLE
    )


# ---- the stages -----------------------------------------------------------------------------------------------------------


def read_stage(table: pa.Table, settings: ReadSettings, output: str) -> Iterator[pa.Table]:
    """A shard -> its units of encoded images, from the first one on that `output` does not have.

    The row is a shard of the listing with `start`, the number of units that are there without a gap, and `have`, all that are.
    """
    (row,) = table.to_pylist()
    shard, start, have = Shard.from_row(row), row["start"], set(row["have"])
    position = index = 0
    if start:
        fs, root = open_filesystem(output, settings.storage_options)
        footer = read_footer(fs, f"{root}/predictions/{unit_file(shard.name, start - 1, last=False)}")
        position, index = footer["next_offset"], footer["next_index"]
    for unit in read_units(shard, settings, start, position, index):
        if unit.fault or unit.number not in have:
            if settings.target:  # now, not when all is labelled
                settings.target.of_samples(
                    unit.samples.filter(pc.is_null(unit.samples["error"])), public(unit.shard_uri)
                )
            yield unit.to_arrow()


# ---- tars -----------------------------------------------------------------------------------------------------------------


class Skipped:
    """Members of a tar that are no part of a sample, by the unit that they lie in: counted once, however often they are read."""

    def __init__(self):
        self._heard: list[tuple[int, str]] = []  # byte offset and kind, of what lies in no unit yet

    def hear(self, passed: tar.Passed) -> None:
        if passed.what == "skipped":
            self._heard.append((passed.offset, passed.kind))

    def again(self, position: int) -> None:
        """A reading begins at `position`: what lies behind it comes again."""
        self._heard = [(offset, kind) for offset, kind in self._heard if offset < position]

    def take(self, end: int | None) -> Counter:
        """Those before byte `end`, by kind; all of them for None."""
        taken = [entry for entry in self._heard if end is None or entry[0] < end]
        self._heard = self._heard[len(taken) :]
        return Counter(kind for _, kind in taken)


def tar_samples(
    shard: Shard, settings: ReadSettings, position: int, skipped: Skipped | None = None
) -> Iterator[EncodedSample]:
    """The samples of a tar; where it is cut, the rest is one row without a key.

    A cut counts only when it is met twice at the same place: a store may answer short once.

    skipped: hears of what is no part of a sample.
    """
    fs, path = open_filesystem(shard.uri, settings.storage_options)
    _check_unchanged(fs, path, shard.size, shard.version)
    met: int | None = None
    skipped = skipped or Skipped()
    for _ in range(MAX_READINGS):
        torn = None
        stream = tar_stream(fs, path, shard.size, position)
        skipped.again(position)
        try:
            settle(stream, position)
            for sample in tar.read_samples(
                stream, position, settings.max_bytes, _wanted(settings), skipped.hear
            ):
                if sample.cut:
                    torn = sample
                else:
                    yield _placed(_tar_sample(sample, settings), stream, position)
                    position = sample.end
            return
        except tar.TarCut as cut:
            if met != cut.offset:
                met = cut.offset
                continue
            if torn and image_field(
                torn, settings
            ):  # else half a sample without its image: it belongs to the cut
                yield _placed(_tar_sample(torn, settings), stream, position)
                position = torn.end
            rest = EncodedSample(
                None, cut.offset, None, shard.size, error="shard_truncated", detail=cut.reason
            )
            yield _placed(rest, stream, position)
            return
        finally:
            stream.close()
    raise StoreFault(f"{path} breaks off somewhere else at each of {MAX_READINGS} readings")


def tar_stream(
    fs: fsspec.AbstractFileSystem, path: str, size: int, position: int
) -> Decompressed | io.BufferedReader:
    """A stream at `position` of a tar; of one that is compressed at its beginning, for there is no other way in: see `settle`."""
    if form := compression(path):
        return Decompressed(ObjectStream(fs, path, size, 0), form)
    return io.BufferedReader(ObjectStream(fs, path, size, position), 1 << 20)


def settle(stream: Decompressed | io.BufferedReader, position: int) -> None:
    """Bring the stream to `position`. Raises TarCut for compressed data that end or break before."""
    if isinstance(stream, Decompressed):
        stream.skip(position)


def _placed(made: EncodedSample, stream, position: int) -> EncodedSample:
    """In a compressed tar no range read finds an image: no offset, and how much was read is counted in compressed bytes."""
    if isinstance(stream, Decompressed):
        if made.error == "shard_truncated":
            made.detail, made.next = f"{made.detail} (byte {made.offset} of the decompressed tar)", position
        made.offset, made.span = None, (stream.consumed(position), stream.consumed(made.next))
    return made


def _wanted(settings: ReadSettings):
    keep = set(settings.keep)
    return lambda extension: extension in keep or is_image(extension, settings.image_keys)


def is_image(extension: str, image_keys: tuple[str, ...]) -> bool:
    """`img.v1.2.jpg` has the key `img` and the field `v1.2.jpg`: its last part says that it is an image."""
    return extension.rpartition(".")[2] in image_keys


def image_field(sample: tar.Sample, settings: ReadSettings) -> str | None:
    """The field of a sample that is labelled: the first of the image keys, else the first field that ends in one."""
    for wanted in settings.image_keys:
        if wanted in sample.fields:
            return wanted
    return next((name for name in sample.fields if is_image(name, settings.image_keys)), None)


def _tar_sample(sample: tar.Sample, settings: ReadSettings) -> EncodedSample:
    kept = [_text(member.data) if (member := sample.fields.get(name)) else None for name in settings.keep]
    made = EncodedSample(sample.key, None, None, sample.end, sidecars=kept)
    name = image_field(sample, settings)
    if name is None:
        made.error, made.detail = "missing_image", f"has only {', '.join(sample.fields) or 'nothing'}"
        return made
    member = sample.fields[name]
    made.offset, made.size = member.offset, member.size
    if member.data is None:
        made.error, made.detail = member.refused, f"{member.size} bytes"
    else:
        made.data = member.data
    return made


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "backslashreplace")


# ---- loose images ---------------------------------------------------------------------------------------------------------


def page_samples(shard: Shard, settings: ReadSettings, position: int) -> Iterator[EncodedSample]:
    """The images of a page, from entry `position` on."""
    fs, root = open_filesystem(shard.uri, settings.storage_options)
    for entry, member in enumerate(shard.members[position:], position):
        made = EncodedSample(
            member["key"], 0, member["size"], entry + 1, sidecars=[None] * len(settings.keep)
        )
        if member["size"] > settings.max_bytes:
            made.error, made.detail = "too_many_bytes", f"{member['size']} bytes"
        else:
            made.data = read_image(fs, f"{root.rstrip('/')}/{member['key']}", member)
        yield made


def read_image(fs: fsspec.AbstractFileSystem, path: str, member: dict) -> bytes:
    """A loose image, which must have the size that it was listed with. Raises OSError and StoreFault: the store's faults."""
    data = patiently(lambda: fs.cat_file(path))
    if len(data) != member["size"]:
        raise ShardChanged(
            f"{path} has {len(data)} bytes, {member['size']} when it was listed: it was replaced since"
        )
    return data


def _table_samples(shard: Shard, settings: ReadSettings, position: int) -> Iterator[EncodedSample]:
    fs, path = open_filesystem(shard.uri, settings.storage_options)
    _check_unchanged(fs, path, shard.size, shard.version)
    return table_samples(shard, settings, position)


def _check_unchanged(fs: fsspec.AbstractFileSystem, path: str, size: int, version: str) -> None:
    info = patiently(lambda: fs.info(path))
    if (info["size"], version_of(info)) != (size, version):
        raise ShardChanged(f"{path} was replaced since the run was planned")
