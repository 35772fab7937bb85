"""Define what every reader of a shard takes and gives: settings, encoded samples, errors of a store."""

from dataclasses import dataclass, field
from typing import Any

import fsspec

from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS
from wordsworth.pipeline.sources.model_target import ModelTarget
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.tar_keys import DEFAULT_KEY_RULE
from wordsworth.pipeline.storage.filesystem import StorageOptions, version_of
from wordsworth.pipeline.storage.objects import object_info
from wordsworth.pipeline.storage.streams import with_retries

MAX_READINGS = 8  # readings of one shard, to meet the same cut twice


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """Hold the settings of reading.

    Attributes:
        unit_rows: samples in a unit
        unit_bytes: encoded bytes; a unit that holds this many ends early
        max_bytes: bytes of an encoded image; a larger one is refused before it is read
        image_keys: extensions of images, in lower case; the first one that a sample has is labeled
        keep: sidecar fields of a tar or an archive, or columns of a table, that travel along
        storage_options: options of the store's client
        image_column: column of a table that holds or names the images; None: found by its type or its name
        key: column of a table that holds the keys; None: the URI of the image, else the number of the row
        class_names: give the name of a class in place of its number, where a table of Hugging Face has names
        keys_by_path: take the path in a struct of bytes and path as the key; else the number of the row
        target: finds the class of an image among a model's; None: no class is looked for
        cut: samples from the shard's first on after which a unit ends, full or not; None: no such place
        key_rule: how the names of a tar's members become keys: one of the rules of tar_keys.py
        include_hidden: take members too whose names are skipped: see skipped_names.py
    """

    unit_rows: int
    unit_bytes: int = 128 << 20
    max_bytes: int = DecodeLimits.max_bytes
    image_keys: tuple[str, ...] = IMAGE_KEYS
    keep: tuple[str, ...] = ()
    storage_options: StorageOptions = field(default_factory=dict)
    image_column: str | None = None
    key: str | None = None
    class_names: bool = False
    keys_by_path: bool = True
    target: ModelTarget | None = None
    cut: int | None = None
    key_rule: str = DEFAULT_KEY_RULE
    include_hidden: bool = False


@dataclass(slots=True, kw_only=True)
class EncodedSample:
    """Hold an image as it lies in the source, or the reason why it is missing.

    A prediction row is made from it.

    Attributes:
        key: key of the sample; None for the rest of a shard that is cut
        next: place in the shard where reading goes on: a byte of a tar, an entry of a page, a row of a
            table, a byte of an archive where an entry of its directory begins
        next_in_group: samples that a reading from `next` on gives before it goes on: those of a group of a
            tar, or of a table's row with a list of images, that were given already
        offset: byte offset of the image in the shard; None where no range read finds the image
        size: bytes of the image; None where there is none
        data: the image, encoded; empty where `error` is set
        sidecars: text of each field of `ReadSettings.keep`; None for a field that the sample lacks
        error: code of the error, None for a good sample
        detail: what is wrong, in words
        span: bytes of the shard that were read before the sample, and including the sample, where `next`
            does not say
        held_bytes: bytes that count towards the end of a unit; None counts those of `data`
    """

    key: str | None
    next: int
    next_in_group: int = 0
    offset: int | None = None
    size: int | None = None
    data: bytes = b""
    sidecars: list[str | None] = field(default_factory=list)
    error: str | None = None
    detail: str | None = None
    span: tuple[int, int] | None = None
    held_bytes: int | None = None


class StoreFault(Exception):
    """Report that the store or the command is at fault, not the data. The next run reads the shard again."""


class ShardChanged(StoreFault):
    """Report that an object is not the one that was planned.

    No row is made from it: the run would mix two inputs.
    """

    CODE = "shard_changed"
    HINT = " (--replace-changed labels it again)"

    def __str__(self) -> str:
        return f"{self.CODE}: {super().__str__()}{self.HINT}"


class UnfitTable(StoreFault):
    """Report that a table lacks a column that is asked for, or is none: it stays so at every reading."""

    CODE = "unfit_table"

    def __str__(self) -> str:
        return f"{self.CODE}: {super().__str__()}"


def check_unchanged(fs: fsspec.AbstractFileSystem, path: str, shard: Shard) -> None:
    """Check that a tar or a table is the object that was planned.

    Raises:
        ShardChanged: it is another one.
        OSError: the store fails.
    """
    check_info(path, shard, with_retries(lambda: object_info(fs, path)))


def check_info(path: str, shard: Shard, info: dict[str, Any]) -> None:
    """Check what a store tells about the object that was planned. Raises ShardChanged."""
    if (info["size"], version_of(info)) != (shard.size, shard.version):
        raise ShardChanged(f"{path} was replaced since the run was planned")
