"""What every reader of a shard takes and gives: settings in, encoded samples out, and the one way in which a store fails."""

from dataclasses import dataclass, field
from typing import Any

from wordsworth.pipeline.sources.class_target import Target
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS

MAX_READINGS = 8  # of one shard, to meet the same cut twice


@dataclass(frozen=True)
class ReadSettings:
    """unit_rows: samples in a unit. unit_bytes: a unit ends early when it holds this many encoded bytes.
    max_bytes: a larger image is refused before it is read. keep: the sidecar fields, or columns of a table, that travel along.
    image_column, key: columns of a table, None where its names are to tell. target: a class that every image must have."""

    unit_rows: int
    unit_bytes: int = 128 << 20
    max_bytes: int = 256 << 20
    image_keys: tuple[str, ...] = IMAGE_KEYS
    keep: tuple[str, ...] = ()
    storage_options: dict[str, Any] = field(default_factory=dict)
    image_column: str | None = None
    key: str | None = None
    target: Target | None = None


@dataclass(slots=True)
class EncodedSample:
    """One row to be: an image as it lies in the source, or the reason why there is none.

    next: where reading goes on; span: the bytes of the shard that were read before it and with it, where `next` does not say.
    """

    key: str | None
    offset: int | None
    size: int | None
    next: int
    data: bytes = b""
    sidecars: list[str | None] = field(default_factory=list)
    error: str | None = None
    detail: str | None = None
    span: tuple[int, int] | None = None


class StoreFault(Exception):
    """The store or the question, not the data: the shard stays open and is read again by the next run."""


class ShardChanged(StoreFault):
    """The object is not the one that was planned. No row is made of it: the run would mix two inputs."""

    CODE, HINT = "shard_changed", " (--replace-changed labels it again)"

    def __str__(self) -> str:
        return f"{self.CODE}: {super().__str__()}{self.HINT}"
