"""Read zip archives of images as shards: a member that is an image is a sample, its name is the key.

A position in such a shard is a byte of the file where an entry of the directory begins.
"""

import io
from array import array
from collections.abc import Callable, Iterator

import fsspec
import numpy as np

from wordsworth.pipeline.sources.file_kinds import base_name, extension_of, kind_of
from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.skipped_names import skip_kind
from wordsworth.pipeline.sources.zip_directory import (
    STORED,
    Directory,
    ZipDamage,
    ZipEntry,
    find_directory,
    read_entries,
    read_member,
    refusal_of,
)
from wordsworth.pipeline.storage.filesystem import open_exact
from wordsworth.pipeline.storage.seekable import RangeReader, SeekableObject

INNER_ARCHIVE = "archive"  # kind of a member that is a tar or a zip, which may hold images
_DIRECTORY_BYTES = 1 << 20  # read ahead in the directory
# Gets the place of an entry that is no part of a sample, and its kind.
_OnSkipped = Callable[[int, str], None]


def zip_samples(
    shard: Shard, settings: ReadSettings, position: int, on_skipped: _OnSkipped = lambda place, kind: None
) -> Iterator[EncodedSample]:
    """Yield the images of an archive from a position on. What a cut archive lacks is one row without a key.

    Args:
        shard: the archive
        settings: how to read
        position: place of an entry of the directory; 0 begins with the first
        on_skipped: hears of members that are no part of a sample

    Raises:
        OSError: the store fails.
    """
    fs, path = open_exact(shard.uri, settings.storage_options)
    entries = _entries(fs, path, shard.size)
    place = position
    share = _Share(shard.size, Directory(start=0, end=shard.size, shift=0))
    try:
        directory = find_directory(entries, shard.size)
        share = _Share(shard.size, directory)
        place = position or directory.start
        members = _Members(fs, path, shard, directory, settings)
        for entry in read_entries(entries, directory, place):
            skipped = skip_reason(entry, settings)
            if skipped:
                if skipped != "other" or not _is_sidecar(entry, settings.keep):
                    on_skipped(entry.start, skipped)
                continue
            sample = members.sample(entry)
            sample.span = (share.of(place), share.of(entry.next))
            place = entry.next
            yield sample
    except ZipDamage as damage:
        yield EncodedSample(
            key=None,
            offset=place,
            next=shard.size,
            error="shard_truncated",
            detail=str(damage),
            span=(share.of(place), shard.size),
        )


def skip_reason(entry: ZipEntry, settings: ReadSettings) -> str | None:
    """Return why a member is no sample; None for an image.

    Returns:
        "directory"; "link"; a kind of `skip_kind`; INNER_ARCHIVE; or "other"
    """
    if entry.name.endswith("/"):
        return "directory"
    kind = None if settings.include_hidden else skip_kind(entry.name)
    if kind:
        return kind
    if entry.is_link:
        return "link"
    kind = kind_of(base_name(entry.name), settings.image_keys)
    if kind == "images":
        return None
    return INNER_ARCHIVE if kind in ("tar", "zip") else "other"


def _entries(fs: fsspec.AbstractFileSystem, path: str, size: int) -> io.BufferedReader:
    return io.BufferedReader(SeekableObject(fs, path, size), _DIRECTORY_BYTES)


class _Share:
    """Say how many bytes of the archive are read at a place in the directory: in proportion, so that the
    bytes of all units add up to those of the archive."""

    def __init__(self, size: int, directory: Directory):
        self.size = size
        self.directory = directory

    def of(self, place: int) -> int:
        length = self.directory.end - self.directory.start
        return self.size * (place - self.directory.start) // length if length else self.size


class _Members:
    """Make samples of the members of one archive."""

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        path: str,
        shard: Shard,
        directory: Directory,
        settings: ReadSettings,
    ):
        self.open = lambda: RangeReader(SeekableObject(fs, path, shard.size))
        self.images = self.open()
        self.texts = self.open()  # all sidecars may stand behind all images
        self.directory = directory
        self.settings = settings
        entries = _entries(fs, path, shard.size)
        self.sidecars = _SidecarIndex(entries, directory, settings.keep) if settings.keep else None

    def sample(self, entry: ZipEntry) -> EncodedSample:
        """Return the image of an entry with its sidecars, or why there is none."""
        made = EncodedSample(key=entry.name, next=entry.next, size=entry.size)
        made.sidecars = [self._text(entry.name, extension) for extension in self.settings.keep]
        refusal = refusal_of(entry, self.settings.max_bytes)
        if refusal:
            made.error, made.detail = refusal
            return made
        try:
            offset, made.data = self._read(self.images, entry)
        except ZipDamage as damage:
            made.error = "damaged_member"
            made.detail = str(damage)
        else:
            made.offset = offset if entry.method == STORED else None
        return made

    def _read(self, file: RangeReader, entry: ZipEntry) -> tuple[int, bytes]:
        """Return a member. Damage counts when it is met twice: a store may answer wrongly once."""
        try:
            return read_member(file, self.directory, entry)
        except ZipDamage:
            return read_member(self.open(), self.directory, entry)

    def _text(self, name: str, extension: str) -> str | None:
        """Return the text of the sidecar of an image; None where there is none that can be read."""
        entry = self.sidecars.find(name, extension) if self.sidecars else None
        if entry is None or refusal_of(entry, self.settings.max_bytes):
            return None
        try:
            return self._read(self.texts, entry)[1].decode("utf-8", "backslashreplace")
        except ZipDamage:
            return None


class _SidecarIndex:
    """Find the sidecars of images, wherever they stand in the directory. Memory holds 16 bytes for each."""

    def __init__(self, file: io.BufferedReader, directory: Directory, keep: tuple[str, ...]):
        """Read the directory once."""
        self.file = file
        self.directory = directory
        hashes = array("q")
        places = array("q")
        try:
            for entry in read_entries(file, directory, directory.start):
                if _is_sidecar(entry, keep):
                    hashes.append(hash(_with_small_extension(entry.name)))
                    places.append(entry.start)
        except ZipDamage:
            pass  # the samples come to the same place, and end there
        order = np.argsort(np.frombuffer(hashes, np.int64), kind="stable")
        self._hashes = np.frombuffer(hashes, np.int64)[order]
        self._places = np.frombuffer(places, np.int64)[order]

    def find(self, name: str, extension: str) -> ZipEntry | None:
        """Return the sidecar of an image; of several with one name the last."""
        wanted = _sidecar_name(name, extension)
        first, behind = (int(np.searchsorted(self._hashes, hash(wanted), side)) for side in ("left", "right"))
        for number in reversed(range(first, behind)):
            entry = next(read_entries(self.file, self.directory, int(self._places[number])))
            if _with_small_extension(entry.name) == wanted:
                return entry
        return None


def _is_sidecar(entry: ZipEntry, keep: tuple[str, ...]) -> bool:
    """Return whether a member is of a kind that is kept."""
    is_file = not (entry.is_link or entry.name.endswith("/"))
    return is_file and extension_of(base_name(entry.name)) in keep


def _with_small_extension(name: str) -> str:
    return _sidecar_name(name, extension_of(base_name(name)))


def _sidecar_name(name: str, extension: str) -> str:
    """Return the name with another extension behind its last dot."""
    return f"{name.rpartition('.')[0]}.{extension}"
