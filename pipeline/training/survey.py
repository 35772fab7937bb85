"""Count what the sources of a training hold, and divide the shards among the workers."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from wordsworth.pipeline.cluster.claims import RETRIES
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.class_target import class_name, class_text
from wordsworth.pipeline.sources.image_sidecars import ImageSidecars
from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import ListedImage, Shard
from wordsworth.pipeline.sources.table import table_rows
from wordsworth.pipeline.sources.tar_reader import tar_samples
from wordsworth.pipeline.sources.zip_archive import zip_samples
from wordsworth.pipeline.storage.filesystem import open_exact
from wordsworth.pipeline.training.indexed import ShardCount, counts_of_indexes

SHARDS_PER_TASK = 8  # a process that counts takes two seconds to start
BYTES_READ_HERE = 128 << 20  # bytes that are read in this process, which takes less time than starting others
BYTES_OF_SIDECAR = 1 << 16  # bytes that the sidecar of a loose image counts for: it costs a request
MOST_CLASSES = 100_000  # classes of one shard; more mean that --target names every sample
SMALLEST_PAGE = 16  # loose images that are read together, at least
LARGEST_PAGE = 512  # loose images that are read together, at most
WANTED_PAGES = 16  # pages that a small source is cut into, so that several workers have some


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Hold what the shards of a data set contain.

    Attributes:
        shards: all shards, in the order of the listing.
        rows: samples by the shard's name.
        classes: samples by the name of their class; empty where no class is needed.
        indexed: what an index says of a shard, as `ShardCount.digest`, by the name of each shard that was not
            read.
        classes_by_shard: the same for each shard, by its name; empty where nobody asked for it.
    """

    shards: tuple[Shard, ...]
    rows: dict[str, int]
    classes: Counter[str]
    indexed: dict[str, str] = field(default_factory=dict)
    classes_by_shard: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Count the samples of all shards."""
        return sum(self.rows.values())

    @property
    def digest(self) -> str:
        """Return the sha256 of names, sizes and counts of the shards, whatever their order."""
        lines = sorted(f"{shard.name} {shard.size} {self.rows[shard.name]}\n" for shard in self.shards)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def cut_pages(shards: list[Shard]) -> list[Shard]:
    """Cut pages of loose images into smaller pages; tars, archives and tables stay as they are.

    Several workers then have pages of a small source, and the order by folders is broken up. The cuts depend
    on the images alone.
    """
    images = sum(len(shard.members) for shard in shards)
    size = min(LARGEST_PAGE, max(SMALLEST_PAGE, images // WANTED_PAGES))
    pages: list[Shard] = []
    for shard in shards:
        if not shard.members:
            pages.append(shard)
        for begin in range(0, len(shard.members), size):
            pages.append(_page(shard, begin, shard.members[begin : begin + size]))
    return pages


def _page(shard: Shard, begin: int, members: tuple[ListedImage, ...]) -> Shard:
    num_bytes = sum(member["size"] for member in members)
    return replace(shard, members=members, first_index=shard.first_index + begin, size=num_bytes)


def count_quickly(
    shards: list[Shard], reading: ReadSettings, target: str | None, note: Callable[[str], None]
) -> dict[str, ShardCount]:
    """Count what needs no Ray: what indexes know, and what is read in less time than a process starts.

    Args:
        shards: tars, archives, tables and pages of loose images.
        reading: how training reads them.
        target: where a class stands, as in `Target.where`; None where no class is needed.
        note: gets what the user should know of indexes.

    Returns:
        Counts by the shard's name.

    Raises:
        UserError: a sample has no class, or a shard cannot be read. The message names it.
    """
    counts = counts_of_indexes(shards, reading, target, note)
    unknown = [shard for shard in shards if shard.name not in counts]
    if sum(bytes_to_read(shard, reading) for shard in unknown) <= BYTES_READ_HERE:
        for shard in unknown:
            samples, classes = survey_shard(shard, reading, target)
            counts[shard.name] = ShardCount(samples=samples, classes=classes)
    return counts


def bytes_to_read(shard: Shard, reading: ReadSettings) -> int:
    """Return how many bytes counting a shard reads, at most; what lies beside loose images is not known."""
    if not shard.is_page:
        return shard.size
    return BYTES_OF_SIDECAR * len(shard.members) if reading.keep else 0


def survey(
    shards: list[Shard],
    reading: ReadSettings,
    target: str | None,
    known: Mapping[str, ShardCount],
    by_shard: bool = False,
) -> Survey:
    """Count samples and classes of all shards: what is not known yet, in Ray tasks.

    Args:
        shards, reading, target: as for `count_quickly`.
        known: what it returned.
        by_shard: keep the classes of each shard too.

    Raises:
        UserError: as there.
    """
    unknown = [shard for shard in shards if shard.name not in known]
    counts = {**known, **_count_in_tasks(unknown, reading, target)}
    classes: Counter[str] = Counter()
    for shard in shards:
        classes.update(counts[shard.name].classes)
    return Survey(
        shards=tuple(shards),
        rows={shard.name: counts[shard.name].samples for shard in shards},
        classes=classes,
        classes_by_shard={name: count.classes for name, count in counts.items()} if by_shard else {},
        indexed={name: count.digest for name, count in counts.items() if count.is_indexed},
    )


def _count_in_tasks(shards: list[Shard], reading: ReadSettings, target: str | None) -> dict[str, ShardCount]:
    if not shards:
        return {}
    import ray

    task = ray.remote(num_cpus=0.5, **RETRIES)(_survey_shards)
    parts = [shards[begin : begin + SHARDS_PER_TASK] for begin in range(0, len(shards), SHARDS_PER_TASK)]
    counts: dict[str, ShardCount] = {}
    for part, counted in zip(
        parts, ray.get([task.remote(part, reading, target) for part in parts]), strict=True
    ):
        for shard, (samples, classes) in zip(part, counted, strict=True):
            counts[shard.name] = ShardCount(samples=samples, classes=classes)
    return counts


def _survey_shards(
    shards: list[Shard], reading: ReadSettings, target: str | None
) -> list[tuple[int, Counter[str]]]:
    return [survey_shard(shard, reading, target) for shard in shards]


def survey_shard(shard: Shard, reading: ReadSettings, target: str | None) -> tuple[int, Counter[str]]:
    """Count the samples of a shard as training will meet them, and the samples of each class."""
    rows = 0
    classes: Counter[str] = Counter()
    try:
        for sample in shard_samples(shard, reading):
            rows += 1
            if sample.error is None and target:
                text = class_text(target, sample.key, sample.sidecars)
                classes[class_name(target, text, f"{shard.uri}: sample {sample.key}")] += 1
                check_few(len(classes), shard, target)
    except (OSError, StoreFault) as error:
        raise UserError(f"{shard.uri} could not be read: {error}") from error
    return rows, classes


def check_few(num_classes: int, shard: Shard, target: str) -> None:
    """Check that a shard has no more classes than a target that names classes gives.

    Raises:
        UserError: it has more.
    """
    if num_classes > MOST_CLASSES:
        raise UserError(
            f"{shard.uri} alone has over {MOST_CLASSES:,} classes: does --target {target} name one?"
        )


def shard_samples(shard: Shard, reading: ReadSettings) -> Iterator[EncodedSample]:
    """Yield the samples of a shard in order; those of a page without their bytes."""
    if shard.kind == "tar":
        yield from tar_samples(shard, reading, 0)
    elif shard.kind == "zip":
        yield from zip_samples(shard, reading, 0)
    elif shard.kind == "table":
        for sample, _ in table_rows(shard, reading):
            yield sample
    else:
        yield from _page_samples(shard, reading)


def _page_samples(shard: Shard, reading: ReadSettings) -> Iterator[EncodedSample]:
    """Yield the images of a page without their bytes: what is counted is in the listing, or beside them."""
    fs, root = open_exact(shard.uri, reading.storage_options)
    beside = ImageSidecars(fs, root, shard, reading) if reading.keep else None
    for member in shard.members:
        key = shard.place_in_rows(member)[1]
        texts = beside.of(member) if beside else []
        yield EncodedSample(key=key, next=0, offset=0, size=member["size"], sidecars=texts)


# ---- shards of a worker ----


def assign(shards: list[Shard], rows: dict[str, int], num_workers: int) -> list[list[Shard]]:
    """Divide shards among workers: the largest shard first, each to the worker with the fewest samples.

    Raises:
        UserError: there are fewer shards than workers.
    """
    if len(shards) < num_workers:
        raise UserError(
            f"{num_workers} workers need at least {num_workers} shards, there are {len(shards)}: "
            "pack smaller ones (--shard-size)"
        )
    parts: list[list[Shard]] = [[] for _ in range(num_workers)]
    loads = [0] * num_workers
    for shard in sorted(shards, key=lambda shard: (-rows[shard.name], shard.name)):
        worker = loads.index(min(loads))
        parts[worker].append(shard)
        loads[worker] += rows[shard.name]
    return parts
