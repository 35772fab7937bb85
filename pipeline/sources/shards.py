"""What the user points at, as shards: tar files, and pages of a listing of loose images. The listing is a stream."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from braceexpand import UnbalancedBracesError, braceexpand

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.file_kinds import FORMATS, IMAGE_KEYS, kind_of
from wordsworth.pipeline.storage.filesystem import full_uri, is_local, open_filesystem, public, version_of
from wordsworth.pipeline.storage.walk import scan

PAGE = 4096  # loose images in one shard: a page of the listing
PEEK = 4096  # files of a source that are looked at before its kind is decided

LISTING = pa.schema(
    [
        ("kind", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("id", pa.string()),
        ("first_index", pa.int32()),
        ("source", pa.int32()),
        (
            "members",
            pa.list_(pa.struct([("key", pa.string()), ("size", pa.int64()), ("version", pa.string())])),
        ),
    ]
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One object that is read front to back.

    kind "tar": `uri` is the tar. kind "images": `uri` is the prefix, `members` a page of the images under it, as dicts of key
    (path under the prefix), size and version; `first_index` is the place of the page's first image in the whole listing.
    version: etag, or time of modification. size: bytes. source: which of the command's sources it was found under; no part of
    what the shard is.
    """

    kind: str
    uri: str
    size: int
    version: str
    first_index: int = 0
    members: tuple[dict, ...] = ()
    source: int = 0

    @property
    def id(self) -> str:
        """12 hex digits made of nothing but what the shard is, never of keys that stand in the data."""
        entries = [f"{member['key']}|{member['size']}|{member['version']}" for member in self.members]
        identity = "\n".join(
            [f"{self.kind}|{self.uri}|{self.size}|{self.version}|{self.first_index}", *entries]
        )
        return hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    @property
    def name(self) -> str:
        """What the names of its units begin with."""
        return unit_stem(self.uri, self.id)

    def to_row(self) -> dict[str, Any]:
        return {**asdict(self), "members": list(self.members), "id": self.id}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Shard":
        fields = {name: row[name] for name in ("kind", "uri", "size", "version", "first_index", "source")}
        return cls(**fields, members=tuple(row["members"] or ()))

    @property
    def last_path(self) -> str:
        """The last file of the shard, as the listing meets it: a URI."""
        return f"{self.uri.rstrip('/')}/{self.members[-1]['key']}" if self.members else self.uri


def unit_stem(uri: str, id: str) -> str:
    """A readable stem and the id."""
    stem = uri.rstrip("/").rsplit("/", 1)[-1].removesuffix(".tar")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", stem).strip("._")[:80] or "shard"
    return f"{stem}-{id}"


@dataclass(slots=True)
class Listing:
    """What a set of sources holds. `ignored`: files that are neither shards nor images, by extension."""

    shards: list[Shard] = field(default_factory=list)
    ignored: Counter = field(default_factory=Counter)


@dataclass
class Place:
    """Where a listing stands: behind `last`, a file of source number `source`.

    kinds: of each source that was met; images: how many of each prefix were. Both decide what comes.
    """

    source: int = 0
    last: str | None = None
    kinds: dict[int, str] = field(default_factory=dict)
    images: Counter = field(default_factory=Counter)

    def passed(self, shards: Iterable[Shard]) -> None:
        for shard in shards:
            self.source, self.last = shard.source, shard.last_path
            self.kinds[shard.source] = shard.kind
            if shard.kind == "images":
                self.images[shard.uri] = max(self.images[shard.uri], shard.first_index + len(shard.members))


class _File(NamedTuple):
    path: str
    info: dict[str, Any]
    kind: str | None  # None: neither a shard nor an image


def find_shards(
    sources: list[str],
    format: str | None = None,
    image_keys: tuple[str, ...] = IMAGE_KEYS,
    storage_options: dict[str, Any] | None = None,
) -> Listing:
    """The whole listing at once: see `Finder`, which streams."""
    finder = Finder(sources, format, image_keys, storage_options)
    return Listing(list(finder.shards()), finder.ignored)


def expand_sources(sources: Iterable[str], storage_options: dict[str, Any] | None = None) -> list[str]:
    """`@FILE` is a list of sources, one a line, `#` begins a comment; `part-{000..127}.tar` is 128 of them.

    Raises UserError for a list that is missing or empty, and for braces that do not close.
    """
    expanded = []
    for source in sources:
        for line in _listed(source, storage_options) if source.startswith("@") else [source]:
            expanded += _braces(line, storage_options)
    return expanded


def _listed(source: str, storage_options: dict[str, Any] | None) -> list[str]:
    fs, path = open_filesystem(source[1:], storage_options)
    if not fs.isfile(path):
        raise UserError(f"{public(source)}: no such file; @FILE is a list of sources, one a line")
    lines = [line.strip() for line in fs.cat_file(path).decode("utf-8", "surrogateescape").splitlines()]
    if not (found := [line for line in lines if line and not line.startswith("#")]):
        raise UserError(f"{public(source)} lists no source")
    return found


def _braces(source: str, storage_options: dict[str, Any] | None) -> list[str]:
    """Expanded, unless there is a file of just this name."""
    if "{" not in source:
        return [source]
    fs, path = open_filesystem(source, storage_options)
    if is_local(fs) and fs.exists(path):
        return [source]
    try:
        return list(braceexpand(source, escape=False))
    except UnbalancedBracesError as error:
        raise UserError(
            f"{public(source)}: its braces do not close; quote a pattern such as 'part-{{000..127}}.tar'"
        ) from error


class Finder:
    """Lists the shards of files, folders and globs, local or of any allowed fsspec URL, in a fixed order, each once.

    A stream: memory holds one folder's names (one answer of the store on S3), whatever a source holds.

    format: one of FORMATS where the names leave it open.
    """

    def __init__(
        self,
        sources: list[str],
        format: str | None = None,
        image_keys: tuple[str, ...] = IMAGE_KEYS,
        storage_options: dict[str, Any] | None = None,
    ):
        self.sources, self.format, self.image_keys, self.options = (
            sources,
            format,
            image_keys,
            storage_options,
        )
        self.ignored: Counter = Counter()
        self._first: dict[str, int] = {}  # the first source of each name
        self._globs: list[tuple[int, re.Pattern]] = []

    def shards(self, after: Place | None = None) -> Iterator[Shard]:
        """All of them, or those behind a place that an earlier listing came to.

        Raises UserError for a source that is missing, that holds nothing to label, or that holds several kinds.
        """
        place = after or Place()
        for number, source in enumerate(self.sources):
            fs, path = open_filesystem(source, self.options)
            self._note_name(number, full_uri(fs, path))
            if number >= place.source:
                begun = place.last if number == place.source else None
                yield from self._source(number, source, fs, path, place, begun)

    def _source(
        self,
        number: int,
        source: str,
        fs: fsspec.AbstractFileSystem,
        path: str,
        place: Place,
        begun: str | None,
    ) -> Iterator[Shard]:
        last = fs._strip_protocol(begun) if begun and not is_local(fs) else begun
        root, entries = _entries(fs, path, source, last)
        files = (self._file(path, info) for path, info in entries)
        kind = place.kinds.get(number)
        if kind is None:
            kind, files = self._kind(files, source)
            place.kinds[number] = kind
        chosen = (
            file
            for file in files
            if self._counts(file, kind) and not self._met(number, full_uri(fs, file.path), kind, place)
        )
        if kind == "images":
            yield from _pages(fs, root, chosen, place, number)
        else:
            yield from (
                Shard(kind, full_uri(fs, f.path), f.info["size"], version_of(f.info), source=number)
                for f in chosen
            )

    def _file(self, path: str, info: dict[str, Any]) -> _File:
        return _File(path, info, kind_of(path.rpartition("/")[2], self.image_keys))

    def _kind(self, files: Iterator[_File], source: str) -> tuple[str, Iterator[_File]]:
        """What a source is, from the first of its files; and all of its files."""
        peeked = list(islice(files, PEEK))
        kinds = list(
            dict.fromkeys(
                file.kind for file in peeked if file.kind and file.kind == (self.format or file.kind)
            )
        )
        # A table beside shards or images tells of them, as img2dataset's .parquet does.
        if len(set(kinds) - {"table"}) > 1:
            both = " and ".join(FORMATS[kind] for kind in FORMATS if kind in kinds)
            say = " or ".join(f"--format {kind}" for kind in FORMATS if kind in kinds)
            raise UserError(f"{public(source)} holds both {both}: say which with {say}")
        while peeked and not kinds:  # a long beginning of other files
            for file in peeked:
                self._counts(file, None)
            peeked = list(islice(files, PEEK))
            kinds = [kind for file in peeked if (kind := file.kind) and kind == (self.format or kind)]
        if not peeked:
            found = (
                ", ".join(f"{count} {name}" for name, count in self.ignored.most_common(3))
                or "no file at all"
            )
            raise UserError(
                f"no {FORMATS.get(self.format) or _either(FORMATS.values())} in {public(source)} (it holds {found})"
            )
        return min(kinds, key=lambda kind: kind == "table"), chain(peeked, files)

    def _counts(self, file: _File, kind: str | None) -> bool:
        """Whether it is of the kind; if not, it is counted among the ignored."""
        base = file.path.rpartition("/")[2]
        if file.kind == kind and kind is not None:
            _check_name(file.path)
            return True
        if base != "labels.txt":  # class names beside the shards are ours
            extension = base.rpartition(".")[2].lower() if "." in base else ""
            self.ignored[f".{extension}" if extension else base] += 1
        return False

    # ---- what an earlier source holds already ----

    def _note_name(self, number: int, uri: str) -> None:
        self._first.setdefault(uri.rstrip("/"), number)
        if any(char in uri for char in "*?["):
            self._globs.append((number, re.compile(fsspec.utils.glob_translate(uri))))

    def _met(self, number: int, uri: str, kind: str, place: Place) -> bool:
        """Whether an earlier source gives this file: it is the file, a folder above it, or a glob."""
        if number == 0:
            return False
        above = chain([uri], map(str, PurePosixPath(uri).parents)) if "://" not in uri else _parents(uri)
        earlier = (first for name in above if (first := self._first.get(name, number)) < number)
        matching = (first for first, glob in self._globs if first < number and glob.match(uri))
        return any(place.kinds.get(first) == kind for first in chain(earlier, matching))


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _parents(uri: str) -> Iterator[str]:
    while uri and not uri.endswith(":/"):
        yield uri
        uri = uri.rpartition("/")[0]


def _entries(
    fs: fsspec.AbstractFileSystem, path: str, source: str, after: str | None
) -> tuple[str, Iterator[tuple[str, dict[str, Any]]]]:
    """The prefix that keys are relative to, and the files in the order of their paths, those up to `after` left out."""
    try:
        info = _info(fs, path)
        if info and info["type"] != "directory":
            return path.rpartition("/")[0], iter([(path, info)] if after is None else [])
        if info:
            return path, scan(fs, path, after)
        if any(char in path for char in "*?["):
            found = fs.glob(path, detail=True)
            root = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
            files = sorted((path, info) for path, info in found.items() if info.get("type") != "directory")
            if files:
                return root, ((path, info) for path, info in files if after is None or path > after)
    except PermissionError as error:
        raise UserError(f"not allowed to list {public(source)}: {error}; check the credentials") from error
    except FileNotFoundError:
        pass
    raise UserError(f"nothing found at {public(source)}: no such file or folder, and no match as a glob")


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        return fs.info(path)
    except FileNotFoundError:
        return None


def _check_name(path: str) -> None:
    """Names on a disk are bytes; one that is no text fits no listing and no prediction row."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"the name {shown} is not UTF-8: rename it") from None


def _pages(
    fs: fsspec.AbstractFileSystem, root: str, files: Iterator[_File], place: Place, source: int
) -> Iterator[Shard]:
    """Pages of PAGE images. Sources under one prefix share its numbering."""
    uri = full_uri(fs, root)
    while page := list(islice(files, PAGE)):
        named = ((file.path[len(root) :].lstrip("/"), file.info) for file in page)
        members = tuple(
            {"key": key, "size": info["size"], "version": version_of(info)} for key, info in named
        )
        size, first = sum(member["size"] for member in members), place.images[uri]
        place.images[uri] += len(members)
        yield Shard("images", uri, size, "", first, members, source)


def listing_table(shards: list[Shard]) -> pa.Table:
    return pa.Table.from_pylist([shard.to_row() for shard in shards], schema=LISTING)
