"""Take from the indexes beside packed shards what these hold, and check it while a training reads them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError, plural, without_secrets
from wordsworth.pipeline.sources.class_target import class_text, name_in
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shard_index import INDEX, BadIndex, IndexedShard, ShardIndex, read_index
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import without_credentials
from wordsworth.pipeline.storage.schemes import is_web
from wordsworth.pipeline.unit import Unit

INDEXED_TARGET = "cls"  # what `pack` writes, and the only target whose classes an index counts
MOST_FOLDERS = 256  # folders in which an index is looked for
FOLDERS_AT_ONCE = 16  # of these, at a time


@dataclass(frozen=True, kw_only=True)
class ShardCount:
    """Hold what a shard contains.

    Attributes:
        samples: images, also those that cannot be decoded.
        classes: images by the name of their class; empty where no class is needed.
        is_indexed: whether an index says so, and the shard was not read.
    """

    samples: int
    classes: Counter[str] = field(default_factory=Counter)
    is_indexed: bool = False

    @property
    def digest(self) -> str:
        """Return 16 hex digits made from the counts."""
        lines = [str(self.samples), *(f"{name} {count}" for name, count in sorted(self.classes.items()))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def counts_of_indexes(
    shards: Iterable[Shard], reading: ReadSettings, target: str | None, note: Callable[[str], None]
) -> dict[str, ShardCount]:
    """Return what the indexes beside tars say of them, by the shard's name; one request for each folder.

    An index counts for a shard whose size (on a store, whose etag too) is that of the listing. What it says
    is confirmed when the shard is read: see `ContentCheck`.

    Args:
        shards: of the listing.
        reading: how training reads them.
        target: where a class stands, as in `Target.where`; None where no class is needed.
        note: gets a line for each index that does not count, or not for all shards.
    """
    by_folder: dict[str, list[Shard]] = defaultdict(list)
    for shard in shards:
        if shard.kind == "tar" and not is_web(shard.uri):
            by_folder[shard.uri.rpartition("/")[0]].append(shard)
    folders = list(by_folder)[:MOST_FOLDERS]

    def read(folder: str) -> ShardIndex | str | None:
        return _read(folder, reading, target)

    known: dict[str, ShardCount] = {}
    with ThreadPoolExecutor(FOLDERS_AT_ONCE) as pool:
        for folder, index in zip(folders, pool.map(read, folders), strict=True):
            called = without_credentials(f"{folder}/{INDEX}")
            if isinstance(index, str):
                note(f"{called} is not used, all shards beside it are read: {index}")
            elif index:
                counts = _counts(index, by_folder[folder], target)
                known |= counts
                _note_others(called, len(by_folder[folder]), len(counts), note)
    return known


def _read(folder: str, reading: ReadSettings, target: str | None) -> ShardIndex | str | None:
    """Return the index of a folder, or why it is of no use here; None where there is none."""
    try:
        index = read_index(folder, reading.storage_options)
    except BadIndex as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({without_secrets(' '.join(str(error).split()))})"
    if index is None:
        return None
    if not set(index.extensions) <= set(reading.image_keys):
        return "--image-key leaves out some of the images that it counts"
    if target not in (None, INDEXED_TARGET):
        return f"it counts {INDEXED_TARGET}, not --target {target}"
    if target and not index.labels:
        return "its shards have no classes"
    return index


def _counts(index: ShardIndex, shards: list[Shard], target: str | None) -> dict[str, ShardCount]:
    found: dict[str, ShardCount] = {}
    for shard in shards:
        entry: IndexedShard | None = index.shards.get(shard.uri.rpartition("/")[2])
        if entry and entry.is_of(shard):
            classes = Counter(entry.classes) if target else Counter[str]()
            found[shard.name] = ShardCount(samples=entry.samples, classes=classes, is_indexed=True)
    return found


def _note_others(called: str, num_shards: int, num_known: int, note: Callable[[str], None]) -> None:
    left = num_shards - num_known
    if left:
        note(f"{called} does not know {left:,} of {num_shards:,} shards as they are now: these are read")


# ---- while the shards are read ----


@dataclass(frozen=True, kw_only=True)
class ContentCheck:
    """Hold what indexes said of shards, which reading them must confirm.

    Attributes:
        target: where a class stands; None where no class is counted.
        digests: `ShardCount.digest` by the shard's name, of the shards that were not read to count them.
    """

    target: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def of(self, shard: Shard) -> "ContentCounter | None":
        """Return what counts a shard; None where the shard was counted before."""
        digest = self.digests.get(shard.name) if self.digests else None
        return ContentCounter(self.target, digest) if digest else None


NOTHING_INDEXED = ContentCheck()  # of a training whose shards were all read to count them


class ContentCounter:
    """Count the units of one shard, and compare the sum with what an index said."""

    def __init__(self, target: str | None, digest: str):
        self.target = target
        self.digest = digest
        self.count = ShardCount(samples=0)

    def add(self, unit: Unit) -> None:
        """Count the next unit, as it is read.

        Raises:
            UserError: with the shard's last unit, if the shard holds something else.
        """
        classes = self.count.classes
        if self.target:
            classes.update(_classes(unit.samples, self.target))
        self.count = ShardCount(samples=self.count.samples + len(unit.samples), classes=classes)
        if unit.last and self.count.digest != self.digest:
            shard = without_credentials(unit.shard_uri)
            raise UserError(
                f"{shard} holds {plural(self.count.samples, 'image')}, and not what {INDEX} beside it says: "
                f"remove that {INDEX}, and start again with another --output"
            )


def _classes(samples: pa.Table, target: str) -> list[str]:
    """Return the names of the classes of samples that were read; a sample without one is refused later."""
    good = samples.filter(pc.is_null(samples["error"]))
    rows = zip(good["key"].to_pylist(), good["sidecars"].to_pylist(), strict=True)
    names = [name_in(target, class_text(target, key, sidecars)) for key, sidecars in rows]
    return [name for name in names if name is not None]
