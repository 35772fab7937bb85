"""Before training: what the data hold, which classes there are, and which worker gets which shards."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from wordsworth.pipeline.cluster.session import RETRIES
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.class_target import class_of, labels_of, named
from wordsworth.pipeline.sources.reader import tar_samples
from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table import table_rows
from wordsworth.pipeline.storage.filesystem import open_filesystem, public

SURVEYED = 8  # shards in one task: a process that counts takes two seconds to start
MOST_CLASSES = 100_000
LEAST, PAGE, PAGES = (
    16,
    512,
    16,
)  # loose images that are read in one go, at least and at most; pages that there should be


@dataclass(frozen=True)
class Survey:
    """What the shards of a data set hold: samples by shard name, and samples by the name of their class."""

    shards: tuple[Shard, ...]
    rows: dict[str, int]
    classes: Counter

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    @property
    def digest(self) -> str:
        """sha256 over names, sizes and counts of the shards: the same for the same data, in whatever order it was listed."""
        lines = sorted(f"{shard.name} {shard.size} {self.rows[shard.name]}\n" for shard in self.shards)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def paged(shards: list[Shard]) -> list[Shard]:
    """Loose images in smaller pages, so that several workers have some of few images too, and an order by folders is broken up. The
    cuts depend on the images alone."""
    images = sum(len(shard.members) for shard in shards)
    size = min(PAGE, max(LEAST, images // PAGES))
    cut = []
    for shard in shards:
        parts = [shard.members[at : at + size] for at in range(0, len(shard.members), size)]
        firsts = range(shard.first_index, shard.first_index + len(shard.members), size)
        cut += [
            replace(shard, members=part, first_index=first, size=sum(member["size"] for member in part))
            for part, first in zip(parts, firsts, strict=True)
        ] or [shard]
    return cut


def survey(shards: list[Shard], reading: ReadSettings, target: str | None) -> Survey:
    """Count samples and classes in Ray tasks. target: as in pipeline/sources/class_target.py; None where no class is needed.

    Raises UserError for a sample without a class, naming it, and for a shard that cannot be read.
    """
    import ray

    task = ray.remote(num_cpus=0.5, **RETRIES)(_survey_shards)
    parts = [shards[at : at + SURVEYED] for at in range(0, len(shards), SURVEYED)]
    counts = [
        count for part in ray.get([task.remote(part, reading, target) for part in parts]) for count in part
    ]
    classes = sum((counter for _, counter in counts), Counter())
    return Survey(
        tuple(shards), {shard.name: rows for shard, (rows, _) in zip(shards, counts, strict=True)}, classes
    )


def _survey_shards(
    shards: list[Shard], reading: ReadSettings, target: str | None
) -> list[tuple[int, Counter]]:
    return [survey_shard(shard, reading, target) for shard in shards]


def survey_shard(shard: Shard, reading: ReadSettings, target: str | None) -> tuple[int, Counter]:
    """Rows, as training will meet them, and rows by the name of their class."""
    rows, classes = 0, Counter()
    try:
        for sample in _samples(shard, reading):
            rows += 1
            if sample.error is None and target:
                classes[_class_name(sample, shard, target)] += 1
                if len(classes) > MOST_CLASSES:
                    raise UserError(
                        f"{shard.uri} alone has over {MOST_CLASSES:,} classes: does --target {target} name one?"
                    )
    except (OSError, StoreFault) as error:
        raise UserError(f"{shard.uri} could not be read: {error}") from error
    return rows, classes


def _samples(shard: Shard, reading: ReadSettings) -> Iterator[EncodedSample]:
    if shard.kind == "tar":
        return tar_samples(shard, reading, 0)
    if shard.kind == "table":
        return (sample for sample, _ in table_rows(shard, reading))
    return (
        EncodedSample(member["key"], 0, member["size"], 0) for member in shard.members
    )  # the listing says it all


def _class_name(sample: EncodedSample, shard: Shard, target: str) -> str:
    text = sample.key if target == "folder" else (sample.sidecars or [None])[0]
    name = named(target, text)
    if name is None or (not name.isdecimal() and _is_number(name)):
        raise UserError(
            f"{shard.uri}: sample {sample.key} has no class: --target {target} gives {name!r}, "
            "a number from 0 on or a name is needed"
        )
    return name


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def class_names(
    labels: str | None, sources: list[str], storage_options: dict[str, Any]
) -> tuple[str, ...] | None:
    """The class names of a file, else of labels.txt beside the first source, else None."""
    beside = [f"{base}/labels.txt" for base in (sources[0].rstrip("/"), sources[0].rpartition("/")[0] or ".")]
    for uri in [labels] if labels else beside:
        fs, path = open_filesystem(uri, storage_options)
        if fs.isfile(path):
            return tuple(fs.cat_file(path).decode().splitlines())
    if labels:
        raise UserError(f"--labels {public(labels)}: no such file", exit_code=2)
    return None


def classes_of(found: Survey, labels: tuple[str, ...] | None) -> tuple[tuple[str, ...] | None, int]:
    """The labels, those of the data's own names where none are given, and how many classes there are.

    Raises UserError for a class that is none of the labels, and for one without a sample.
    """
    labels = labels or labels_of(found.classes)
    classes = len(labels) if labels else max(map(int, found.classes), default=0) + 1
    known = {name: number for number, name in enumerate(labels or ())}
    check_classes(found, known, classes)
    met = {class_of(name, known, classes) for name in found.classes}
    if empty := [number for number in range(classes) if number not in met]:
        first = f"{empty[0]} ({labels[empty[0]]})" if labels else empty[0]
        raise UserError(
            f"{len(empty)} of {classes} classes have no sample, first class {first}: mend the labels or add samples"
        )
    return labels, classes


def check_classes(found: Survey, known: dict[str, int], classes: int) -> None:
    """Raises UserError for a class that is not one of them."""
    for name in sorted(found.classes):
        if class_of(name, known, classes) is None:
            raise UserError(
                f"class {name} occurs, but there are only {classes} labels: mend the labels or the samples"
            )


def assign(shards: list[Shard], rows: dict[str, int], workers: int) -> list[list[Shard]]:
    """The shards of each worker: the largest first, each to the worker that has the fewest samples."""
    if len(shards) < workers:
        raise UserError(
            f"{workers} workers need at least {workers} shards, there are {len(shards)}: pack smaller ones (--shard-size)"
        )
    parts: list[list[Shard]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for shard in sorted(shards, key=lambda shard: (-rows[shard.name], shard.name)):
        worker = loads.index(min(loads))
        parts[worker].append(shard)
        loads[worker] += rows[shard.name]
    return parts
