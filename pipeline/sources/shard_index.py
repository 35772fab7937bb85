"""Keep beside packed shards what each of them holds, so that a training need not read them to count."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from wordsworth.pipeline.sources.class_target import MAX_DIGITS
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_exact
from wordsworth.pipeline.storage.objects import object_bytes
from wordsworth.pipeline.storage.small_files import MAX_BYTES
from wordsworth.pipeline.storage.streams import with_retries

INDEX = "_index.json"  # in the folder of the shards
FORM = "wordsworth shards"
VERSION = 1  # of the form
LEAST_SAMPLE = 512  # bytes that a sample takes in a tar, at least: a header


class BadIndex(Exception):
    """Report that a file is no index. The message says why, in words of this program alone."""


@dataclass(frozen=True, kw_only=True)
class IndexedShard:
    """Hold what an index says of a shard.

    Attributes:
        name: of the shard, without its folder.
        size: bytes.
        version: etag, where the shard was written to a store; "" on a disk, where a copy has another time.
        samples: images, also those that cannot be decoded.
        classes: images by the number of their class, as `.cls` has it; none where there are no classes.
    """

    name: str
    size: int
    version: str
    samples: int
    classes: Mapping[str, int] = field(default_factory=dict)

    def is_of(self, shard: Shard) -> bool:
        """Tell whether a shard of the listing is the one that was packed, as far as the listing says."""
        is_on_disk = shard.uri.startswith("/")
        same_version = not self.version or is_on_disk or self.version == shard.version
        return shard.kind == "tar" and shard.size == self.size and same_version


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Hold what `pack` knows of the shards that it wrote into one folder.

    Attributes:
        labels: names of the classes in the order of their numbers; none where the shards have no classes.
        extensions: of the images.
        shards: by their names.
    """

    labels: tuple[str, ...]
    extensions: tuple[str, ...]
    shards: Mapping[str, IndexedShard]

    @classmethod
    def of(cls, labels: Sequence[str], extensions: Sequence[str], shards: Iterable[IndexedShard]) -> Self:
        """Return the index of shards."""
        by_name = {shard.name: shard for shard in shards}
        return cls(labels=tuple(labels), extensions=tuple(extensions), shards=by_name)

    def with_versions(self, versions: Mapping[str, str]) -> Self:
        """Return the index with the etags of its shards, by their names."""
        shards = [replace(shard, version=versions.get(shard.name, "")) for shard in self.shards.values()]
        return self.of(self.labels, self.extensions, shards)

    def to_json(self) -> bytes:
        """Return the content of the file, a line for each shard."""
        head = {
            "form": FORM,
            "version": VERSION,
            "labels": self.labels,
            "extensions": self.extensions,
            "shards": [],
        }
        lines = [json.dumps(asdict(shard), separators=(",", ":")) for shard in self.shards.values()]
        begin = json.dumps(head).removesuffix("]}")
        return "\n".join([begin, ",\n".join(lines), "]}\n"]).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Return what `to_json` wrote.

        Raises:
            BadIndex: it is something else, or says what cannot be.
        """
        try:
            told = json.loads(content)
        except (ValueError, RecursionError):
            raise BadIndex("it is no JSON") from None
        if not isinstance(told, dict) or told.get("form") != FORM:
            raise BadIndex("`wordsworth pack` did not write it")
        if told.get("version") != VERSION:
            raise BadIndex("another version of `wordsworth pack` wrote it")
        labels = _texts(told.get("labels"), "labels")
        shards: dict[str, IndexedShard] = {}
        for entry in _list(told.get("shards"), "shards"):
            shard = _shard_of(entry, len(labels))
            if shard.name in shards:
                raise BadIndex("it has a shard twice")
            shards[shard.name] = shard
        return cls(labels=labels, extensions=_texts(told.get("extensions"), "extensions"), shards=shards)


def read_index(folder: str, storage_options: StorageOptions) -> ShardIndex | None:
    """Return the index of a folder of shards; None where there is none. It costs one request.

    Args:
        folder: URI, as that of a listed shard has it.
        storage_options: of the store's client.

    Raises:
        BadIndex: the file is none.
        OSError: it cannot be read.
    """
    fs, path = open_exact(f"{folder}/{INDEX}", storage_options)
    try:
        content = with_retries(lambda: object_bytes(fs, path, 0, MAX_BYTES + 1))
    except FileNotFoundError:
        return None
    if len(content) > MAX_BYTES:
        raise BadIndex(f"it has more than {MAX_BYTES:,} bytes")
    return ShardIndex.from_json(content)


# ---- what is checked ----


def _shard_of(told: Any, num_classes: int) -> IndexedShard:
    """Return a shard of the file. Raises BadIndex where it says what cannot be."""
    if not isinstance(told, dict) or told.keys() != IndexedShard.__dataclass_fields__.keys():
        raise BadIndex("a shard of it has other fields")
    name, version = _texts([told["name"], told["version"]], "names")
    size = _count(told["size"])
    samples = _count(told["samples"])
    if samples * LEAST_SAMPLE > size:
        raise BadIndex("a shard of it has more samples than its size allows")
    classes = told["classes"]
    if not isinstance(classes, dict):
        raise BadIndex("a shard of it has no classes by their numbers")
    if sum(map(_count, classes.values())) > samples:
        raise BadIndex("a shard of it has more samples of classes than samples")
    if not _are_numbers(classes, num_classes):
        raise BadIndex("a shard of it has a class without a label")
    return IndexedShard(name=name, size=size, version=version, samples=samples, classes=classes)


def _are_numbers(names: Iterable[str], end: int) -> bool:
    """Tell whether names are whole numbers from 0 to before `end`, as `pack` writes them."""
    return all(
        name.isascii()
        and name.isdecimal()
        and len(name) <= MAX_DIGITS
        and str(int(name)) == name
        and int(name) < end
        for name in names
    )


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadIndex("a number of it counts nothing")
    return value


def _texts(values: Any, called: str) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in _list(values, called)):
        raise BadIndex(f"its {called} are no texts")
    return tuple(values)


def _list(values: Any, called: str) -> list[Any]:
    if not isinstance(values, list):
        raise BadIndex(f"its {called} are no list")
    return values
